"""Judging what is stored: every object, every reconstructed tensor, and the distance to the originals.

Owns the checks and their result. Changes nothing, and collects every problem instead of stopping at the first. Knows
open bases and models, not names of families and tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from uws_store import layout
from uws_store.basis import ARRAYS, Basis, array_record
from uws_store.checkpoint import Checkpoint
from uws_store.errors import FormatError, NotFoundError, Problem, UwsError
from uws_store.low_rank import product_energy, product_error
from uws_store.metadata.arrays import ArrayRecord
from uws_store.metadata.model import relative_error
from uws_store.model import Model, Tier
from uws_store.storage import Storage
from uws_store.tensor_bytes import digest_of

__all__ = ["Comparison", "ModelReport", "verify_basis", "verify_model"]

_CPU = torch.device("cpu")
# Metadata that is another's is told apart from what is only longer; beyond this it is not read.
_MORE_METADATA = 1 << 16


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model beside its original.

    Attributes
    ----------
    rel_error : float
        ``||W - W'|| / ||W||`` of the compact tier, measured now over the weights of which the family has a mean: the
        coded ones, and those that are stored alone with their read group.
    mean_rel_error : float
        The same for the zoo's mean alone: the control.
    worst_tensor : str or None
        The coded tensor with the largest relative error.
    worst_rel_error : float
        Its relative error.
    identical : int or None
        Tensors that are bit-identical to the original at the exact tier; None without that tier.
    """

    rel_error: float
    mean_rel_error: float
    worst_tensor: str | None
    worst_rel_error: float
    identical: int | None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The verdict on one model.

    Attributes
    ----------
    objects : int
        Stored objects that were read and digested.
    tensors : int
        Tensors that were reconstructed, at every tier the model has.
    tiers : tuple of str
        Those tiers.
    rel_error : float
        The relative error on record.
    comparison : Comparison or None
        Where an original was given.
    problems : tuple of Problem
        Everything that is wrong; empty when all is well.
    """

    objects: int
    tensors: int
    tiers: tuple[str, ...]
    rel_error: float
    comparison: Comparison | None
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def with_problems(self, problems: tuple[Problem, ...]) -> ModelReport:
        """The same report with further problems."""
        return replace(self, problems=self.problems + problems)


class _Findings:
    """Problems as they come up."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def attempt(self, where: str, action: Callable[[], object]) -> bool:
        """Run a check; a typed error becomes a problem."""
        try:
            action()
        except UwsError as error:
            self.problems.append(Problem(where, error.kind, error.message))
            return False
        return True

    def add(self, where: str, kind: str, message: str) -> None:
        self.problems.append(Problem(where, kind, message))


def _verify_array(
    storage: Storage, prefix: str, *, name: str, record: ArrayRecord, findings: _Findings
) -> int:
    """Digest every object of an array and compare its metadata document with the one its record demands."""
    path = layout.array_path(prefix, name)

    def metadata() -> None:
        expected = layout.array_metadata(record)
        found = storage.read_at_most(path, len(expected) + _MORE_METADATA)
        if found is None:
            raise FormatError("the object is missing", kind="format/missing-object")
        if found != expected:
            raise FormatError(
                "the array's metadata is not what its record says", kind="format/array-metadata"
            )

    findings.attempt(path, metadata)
    for index, entry in enumerate(record.shards):
        shard = layout.shard_path(prefix, name, index)

        def check(shard: str = shard, size: int = entry.size, sha256: str = entry.sha256) -> None:
            found = storage.size(shard)
            if found is None:
                raise FormatError("the object is missing", kind="format/missing-object")
            if found != size:
                raise FormatError(f"expected {size} bytes, found {found}", kind="format/size")
            if hashlib.sha256(storage.read(shard, start=0, end=size)).hexdigest() != sha256:
                raise FormatError("the object does not have its SHA-256", kind="format/digest")

        findings.attempt(shard, check)
    return 1 + len(record.shards)


def verify_basis(basis: Basis, *, storage: Storage, prefix: str) -> tuple[int, tuple[Problem, ...]]:
    """Check every object of a basis.

    Returns
    -------
    objects : int
        How many were read.
    problems : tuple of Problem
        What is wrong.
    """
    findings = _Findings()
    objects = 1
    for name in ARRAYS:
        record = array_record(basis.document, name)
        if record is not None:
            objects += _verify_array(storage, prefix, name=name, record=record, findings=findings)
    return objects, tuple(findings.problems)


def verify_model(
    model: Model, *, storage: Storage, prefix: str, against: Checkpoint | None = None
) -> ModelReport:
    """Check a model: its objects, its tensors at every tier, and, where an original is given, its promises.

    Parameters
    ----------
    model : Model
        The open model.
    storage, prefix
        Where it lies.
    against : Checkpoint, optional
        The original.
    """
    findings = _Findings()
    objects = 1
    document = model.document
    for name, record in document.arrays.items():
        objects += _verify_array(storage, prefix, name=name, record=record, findings=findings)
    tiers: tuple[Tier, ...] = ("compact", "exact") if model.has_exact else ("compact",)
    tensors = 0
    if not findings.problems:
        findings.attempt("files", model.side_files)
        findings.attempt("core", model.read_all)
    if not findings.problems:
        for tier in tiers:
            tensors += _verify_tensors(model, tier, findings)
    comparison = None
    if against is not None and not findings.problems:
        comparison = _compare(model, against, findings)
    model.forget()
    return ModelReport(objects, tensors, tiers, document.rel_error, comparison, tuple(findings.problems))


def _verify_tensors(model: Model, tier: Tier, findings: _Findings) -> int:
    digests: dict[str, bytes] = {}
    for name, source in model.sources.items():
        if source.digest is None:
            continue

        def check(name: str = name) -> None:
            digests[name] = digest_of(model.tensor(name, tier=tier, device=_CPU))
            model.require_digest(name, digests[name], tier=tier)

        findings.attempt(f"{name} ({tier})", check)
    if not findings.problems:
        findings.attempt(f"all tensors ({tier})", lambda: model.require_root(digests, tier=tier))
    return len(digests)


def _compare(model: Model, against: Checkpoint, findings: _Findings) -> Comparison | None:
    """Measure the distance to the original, and hold it against what is on record."""
    if against.sha256() != model.document.source.sha256:
        findings.add(
            against.source,
            "incompatible/source",
            "this is not the file that the model was made from (SHA-256 differs)",
        )
        return None
    recorded = iter(model.document.error_list())
    energy = error = control = 0.0
    worst: tuple[float, str | None] = (0.0, None)
    identical = 0
    for name, source in model.sources.items():
        try:
            original = against.read(name)
        except NotFoundError:
            findings.add(name, "incompatible/source", "the original has no such tensor")
            continue
        if model.has_exact:
            same = digest_of(model.tensor(name, tier="exact", device=_CPU)) == digest_of(original)
            identical += same
            if not same:
                findings.add(name, "fidelity/exact", "the exact tier is not bit-identical to the original")
        if not model.is_decoded(name, tier="mean"):
            continue
        own_error, own_energy, own_control = _distance(model, against, name)
        if source.kind != "coded":
            # Exact at every tier, and no error of it is on record.
            energy += own_energy
            control += own_control
            continue
        relative = relative_error(own_error, own_energy)
        worst = max(worst, (relative, name), key=lambda pair: pair[0])
        promised = next(recorded)
        # Recorded in half precision, rounded up; the sums may be taken in another order here.
        if relative > promised * (1 + 1e-6) + 1e-12:
            findings.add(
                name, "fidelity/error", f"relative error {relative:.3g}, the record promises {promised:.3g}"
            )
        if source.slices is not None and source.slices.side == "right":
            continue  # its product was counted with the other factor
        error += own_error
        energy += own_energy
        control += own_control
    missing = [name for name in against.tensors if name not in model.sources]
    for name in missing:
        findings.add(name, "fidelity/missing", "the original has this tensor and the model has not")

    return Comparison(
        rel_error=relative_error(error, energy),
        mean_rel_error=relative_error(control, energy),
        worst_tensor=worst[1],
        worst_rel_error=worst[0],
        identical=identical if model.has_exact else None,
    )


def _distance(model: Model, against: Checkpoint, name: str) -> tuple[float, float, float]:
    """Sums of squares of a tensor's error at ``compact``, of the tensor, and of its error at ``mean``.

    Of a factor these are its product's: what the factors are by themselves means nothing.
    """
    record = model.basis.table[name]
    tiers: tuple[Tier, Tier] = ("compact", "mean")
    if record.low_rank is None:
        values = against.read(name).to(torch.float64)
        compact, mean = (model.tensor(name, tier=tier, device=_CPU).to(torch.float64) for tier in tiers)
        error, control = (float((made - values).square().sum()) for made in (compact, mean))
        return error, float(values.square().sum()), control
    rows = model.basis.document.products()[record.low_rank.product]
    left, right = (_as_matrix(against.read(row.name)) for row in rows)
    errors = []
    for tier in tiers:
        made = [_as_matrix(model.tensor(row.name, tier=tier, device=_CPU)) for row in rows]
        errors.append(product_error(left, right, made[0], made[1]))
    return errors[0], product_energy(left, right), errors[1]


def _as_matrix(factor: torch.Tensor) -> torch.Tensor:
    return factor.reshape(factor.shape[0], -1)
