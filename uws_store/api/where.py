"""Search by what the records say: ``list --where KEY=VALUE``.

Owns what a condition is and which values a model has under a key. Reads one record per model, and none for
conditions that the log alone decides.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from uws_store import layout
from uws_store.basis import Basis
from uws_store.errors import InvalidInputError
from uws_store.metadata.model import ModelDocument
from uws_store.model import read_document
from uws_store.registry import ModelEntry, Registry

__all__ = ["Condition", "parse_condition", "select"]

_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FROM_LOG = frozenset({"version", "basis", "exact", "size_bytes", "alias", "published"})

Value = str | float


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison.

    Attributes
    ----------
    key : str
        ``version``, ``basis``, ``exact`` (yes or no), ``size_bytes``, ``alias``, ``published``; ``dtype``,
        ``rel_error``, ``source`` (SHA-256 or its beginning), ``score.METRIC``, ``drop.METRIC``, ``metadata.KEY``;
        any other key is the source's metadata.
    operation : str
        One of ``= != < <= > >=``; the last four compare numbers.
    value : str
        What is compared with.
    """

    key: str
    operation: str
    value: str

    def holds(self, values: Sequence[Value]) -> bool:
        """Whether one of a model's values fulfils it; ``!=`` asks that none is equal."""
        if self.operation == "!=":
            return not any(_equal(self.key, value, self.value) for value in values)
        if self.operation == "=":
            return any(_equal(self.key, value, self.value) for value in values)
        compare = _COMPARE[self.operation]
        wanted = float(self.value)
        return any((number := _number(value)) is not None and compare(number, wanted) for value in values)


def parse_condition(text: str) -> Condition:
    """Read a condition as it is typed, such as ``rel_error<=0.05`` or ``licence=mit``.

    Raises
    ------
    InvalidInputError
        Kind ``invalid-input/where``.
    """
    matched = _CONDITION.fullmatch(text)
    if matched is None:
        raise InvalidInputError(
            f"{text!r} is no condition; write KEY=VALUE, such as dtype=F32, licence=mit or rel_error<=0.05",
            kind="invalid-input/where",
        )
    condition = Condition(matched[1], matched[2], matched[3])
    if condition.operation in _COMPARE and _number(condition.value) is None:
        raise InvalidInputError(
            f"{text!r} compares with {condition.value!r}, which is no number", kind="invalid-input/where"
        )
    return condition


def select(
    registry: Registry, entries: Iterable[ModelEntry], conditions: Sequence[Condition]
) -> Iterable[ModelEntry]:
    """Give the models that fulfil every condition, in their order."""
    from_log = [condition for condition in conditions if condition.key in _FROM_LOG]
    from_record = [condition for condition in conditions if condition.key not in _FROM_LOG]
    state = registry.state(refresh=False)
    bases: dict[str, Basis] = {}
    for entry in entries:
        if from_log:
            aliases = state.family(entry.family).tasks[entry.task].aliases
            if not all(condition.holds(_logged(entry, aliases, condition.key)) for condition in from_log):
                continue
        if from_record:
            document = read_document(registry.storage_of(entry), entry.prefix, digest=entry.digest)
            if any(condition.key == "dtype" for condition in from_record) and entry.basis_digest not in bases:
                prefix = layout.basis_prefix(entry.family, entry.basis_digest)
                bases[entry.basis_digest] = Basis.open(registry.storage, prefix, digest=entry.basis_digest)
            basis = bases.get(entry.basis_digest)
            if not all(
                condition.holds(_recorded(document, condition.key, basis)) for condition in from_record
            ):
                continue
        yield entry


def _logged(entry: ModelEntry, aliases: Mapping[str, int], key: str) -> Sequence[Value]:
    if key == "alias":
        return [alias for alias, version in aliases.items() if version == entry.version]
    values: dict[str, Value] = {
        "version": entry.version,
        "basis": entry.basis_revision,
        "exact": "yes" if entry.exact else "no",
        "size_bytes": entry.size_bytes,
        "published": entry.time,
    }
    return [values[key]]


def _recorded(document: ModelDocument, key: str, basis: Basis | None) -> Sequence[Value]:
    metadata = document.source.metadata
    if key == "rel_error":
        return [document.rel_error]
    if key == "source":
        return [document.source.sha256]
    if key == "dtype":
        assert basis is not None
        return sorted(_dtypes(document, basis))
    kind, dot, name = key.partition(".")
    if dot and kind in {"score", "drop"}:
        return [
            score.reconstruction
            if kind == "score"
            else (score.original - score.reconstruction) * (1 if score.higher_is_better else -1)
            for score in document.scores
            if score.metric == name
        ]
    wanted = name if dot and kind == "metadata" else key
    return [value for held, value in metadata if held == wanted]


def _dtypes(document: ModelDocument, basis: Basis) -> set[str]:
    """Every dtype that a tensor of the model has."""
    own = dict(document.dtypes)
    kept = {record.name for record in document.private} | set(document.absent)
    found: set[str] = {record.dtype for record in document.private}
    for record in basis.document.tensors:
        if record.name not in kept and record.mode != "tied":
            coded = own.get(record.name) or document.dtype
            found.add(coded if coded and record.mode == "coded" else record.dtype)
    return found


def _equal(key: str, found: Value, wanted: str) -> bool:
    if key == "source":
        return bool(wanted) and str(found).startswith(wanted.lower())
    if isinstance(found, str):
        return found == wanted
    return found == _number(wanted)


def _number(value: Value) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
