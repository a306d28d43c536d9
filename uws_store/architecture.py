"""What makes checkpoints one architecture: their tensors' names and shapes.

Owns the majority signature of a zoo, how much of it each member shares, and the digest of a signature. Pure: it
must not know about files, and not about dtypes, since those may mix within a family.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uws_store.errors import IncompatibleError, InvalidInputError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "ArchitectureReport",
    "MemberReport",
    "OddTensor",
    "TensorSignature",
    "compare",
    "signature_digest",
    "signature_of",
]

Shape = tuple[int, ...]

# A member that holds less of the majority's elements than this is another architecture.
_SHARE_PERCENT = 90
_SHOWN_TENSORS = 4


@dataclass(frozen=True, slots=True, order=True)
class TensorSignature:
    """A tensor's name and shape.

    Attributes
    ----------
    name : str
        The tensor's name.
    shape : tuple of int
        Its sizes, each at least 0; empty for a 0-d tensor.
    """

    name: str
    shape: Shape

    @property
    def numel(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class OddTensor:
    """A tensor in which a member and the majority differ.

    Attributes
    ----------
    name : str
        The tensor's name.
    expected : tuple of int or None
        The majority's shape; None for a tensor the majority has not.
    found : tuple of int or None
        The member's shape; None for a tensor the member has not.
    """

    name: str
    expected: Shape | None
    found: Shape | None

    @property
    def reason(self) -> str:
        """How they differ: ``"missing"``, ``"extra"`` or ``"shape"``."""
        if self.found is None:
            return "missing"
        return "extra" if self.expected is None else "shape"

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} is missing"
        if self.expected is None:
            return f"{self.name} {list(self.found)} is extra"
        return f"{self.name} is {list(self.found)} where the others have {list(self.expected)}"


@dataclass(frozen=True, slots=True)
class MemberReport:
    """How one member compares with the majority.

    Attributes
    ----------
    task : str
        The member.
    odd : tuple of OddTensor
        Every tensor that differs: the majority's order, then the member's own.
    share : float
        Elements in common with the majority over the majority's elements, from 0 to 1.
    fits : bool
        Whether the member is of the majority's architecture: at least nine tenths in common.
    renamed : bool
        Whether a member that does not fit has the shapes of another member under other names.
    """

    task: str
    odd: tuple[OddTensor, ...]
    share: float
    fits: bool
    renamed: bool = False

    @property
    def problem(self) -> Problem:
        """Why the member does not fit, naming the first tensors that differ."""
        shown = "; ".join(str(tensor) for tensor in self.odd[:_SHOWN_TENSORS])
        more = len(self.odd) - _SHOWN_TENSORS
        tensors = f"{shown}; and {more} more" if more > 0 else shown
        if self.renamed:
            return Problem(
                self.task,
                "incompatible/renamed",
                f"the same shapes under other names ({tensors}): give the names with --rename map.json",
            )
        return Problem(
            self.task,
            "incompatible/architecture",
            f"another architecture, {100 * self.share:.3g} % in common with the others and {_SHARE_PERCENT} % needed"
            + (f" ({tensors})" if tensors else ""),
        )


@dataclass(frozen=True, slots=True)
class ArchitectureReport:
    """The signature most members of a zoo share, and who departs from it.

    Attributes
    ----------
    majority : tuple of TensorSignature
        The tensors that at least half of the members have, each with its most frequent shape, in file order.
    members : tuple of MemberReport
        One for each member, sorted by task.
    signature_count : int
        How many different signatures the members have.
    """

    majority: tuple[TensorSignature, ...]
    members: tuple[MemberReport, ...]
    signature_count: int

    @property
    def digest(self) -> str:
        """SHA-256 of the majority's signature, in hex."""
        return signature_digest(self.majority)

    @property
    def matched(self) -> tuple[MemberReport, ...]:
        """The members of the majority's architecture; their odd tensors are private."""
        return tuple(member for member in self.members if member.fits)

    @property
    def mismatched(self) -> tuple[MemberReport, ...]:
        """The members of another architecture."""
        return tuple(member for member in self.members if not member.fits)

    def require_one_family(self) -> None:
        """Refuse a zoo that is not one family.

        Raises
        ------
        IncompatibleError
            When a member is of another architecture: kind ``incompatible/renamed`` when all of these have the
            others' shapes under other names, else ``incompatible/architecture``. Each is one of its problems.
        """
        problems = tuple(member.problem for member in self.mismatched)
        if not problems:
            return
        what = (
            f"the zoo is not one family: {len(problems)} of {len(self.members)} members are of another "
            f"architecture ({self.signature_count} different signatures)"
        )
        if all(member.renamed for member in self.mismatched):
            raise IncompatibleError(
                f"{what}, with the same shapes under other names; give the names with --rename map.json",
                kind="incompatible/renamed",
                problems=problems,
            )
        raise IncompatibleError(
            f"{what}; take them out, or leave them out with --skip-mismatched",
            kind="incompatible/architecture",
            problems=problems,
        )


def signature_of(shapes: Mapping[str, Shape]) -> tuple[TensorSignature, ...]:
    """Give the signature of a checkpoint from its tensors' shapes, in their order."""
    return tuple(TensorSignature(name, tuple(shape)) for name, shape in shapes.items())


def signature_digest(signature: Iterable[TensorSignature]) -> str:
    """Compute the SHA-256 of a signature, the same for any order of its tensors.

    The bytes are JSON in UTF-8 without spaces: an array of ``[name, [size, ...]]``, sorted by the name's code
    points, with no character escaped that JSON does not require to be. This is RFC 8785's form of that array.

    Parameters
    ----------
    signature : iterable of TensorSignature
        Names must differ.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    InvalidInputError
        When two tensors have one name (kind ``invalid-input/signature``).
    """
    tensors = sorted(signature)
    doubled = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if doubled:
        raise InvalidInputError(f"a signature names {doubled[0]!r} twice", kind="invalid-input/signature")
    rows = [[tensor.name, list(tensor.shape)] for tensor in tensors]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def compare(members: Mapping[str, Mapping[str, Shape]]) -> ArchitectureReport:
    """Find the architecture most members of a zoo share, and how far each is from it.

    The answer does not depend on the order of the members: they are taken by sorted task. Among shapes that are
    equally frequent the first member's is taken.

    Parameters
    ----------
    members : mapping of str to mapping of str to tuple of int
        For each task, the shapes of its tensors by name, in file order.

    Returns
    -------
    ArchitectureReport
        Costs time linear in the number of tensors of all members.

    Raises
    ------
    InvalidInputError
        When there is no member (kind ``invalid-input/empty-zoo``).
    """
    if not members:
        raise InvalidInputError("a zoo with no members has no architecture", kind="invalid-input/empty-zoo")
    signatures = {task: {t.name: t.shape for t in signature_of(members[task])} for task in sorted(members)}
    majority = _majority(signatures)
    twins = _shape_twins(signatures)
    return ArchitectureReport(
        majority=tuple(TensorSignature(name, shape) for name, shape in majority.items()),
        members=tuple(
            _compare_one(task, shapes, majority=majority, renamed=twins[task])
            for task, shapes in signatures.items()
        ),
        signature_count=len({frozenset(shapes.items()) for shapes in signatures.values()}),
    )


def _majority(signatures: Mapping[str, Mapping[str, Shape]]) -> dict[str, Shape]:
    shapes_by_name: dict[str, Counter[Shape]] = {}
    for shapes in signatures.values():
        for name, shape in shapes.items():
            shapes_by_name.setdefault(name, Counter())[shape] += 1
    return {
        name: counts.most_common(1)[0][0]
        for name, counts in shapes_by_name.items()
        if 2 * counts.total() >= len(signatures)
    }


def _shape_twins(signatures: Mapping[str, Mapping[str, Shape]]) -> dict[str, bool]:
    """Say of each member whether another has the same shapes under other names."""
    names_by_shapes: dict[tuple[Shape, ...], set[frozenset[str]]] = {}
    keys = {task: tuple(sorted(shapes.values())) for task, shapes in signatures.items()}
    for task, shapes in signatures.items():
        names_by_shapes.setdefault(keys[task], set()).add(frozenset(shapes))
    return {task: len(names_by_shapes[key]) > 1 for task, key in keys.items()}


def _compare_one(
    task: str, shapes: Mapping[str, Shape], *, majority: Mapping[str, Shape], renamed: bool
) -> MemberReport:
    odd = [
        OddTensor(name, expected, shapes.get(name))
        for name, expected in majority.items()
        if shapes.get(name) != expected
    ]
    odd += [OddTensor(name, None, shape) for name, shape in shapes.items() if name not in majority]
    total = sum(math.prod(shape) for shape in majority.values())
    common = sum(math.prod(shape) for name, shape in majority.items() if shapes.get(name) == shape)
    if total:
        # In integers: the share that is shown may be rounded, the decision may not.
        fits = 100 * common >= _SHARE_PERCENT * total
        share = common / total
    else:
        # A majority of no elements is shared by whoever has the same tensors.
        fits = bool(majority) and not odd
        share = float(fits)
    return MemberReport(task, tuple(odd), share, fits, renamed=renamed and not fits)
