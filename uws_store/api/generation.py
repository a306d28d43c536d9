"""The bases that a family's next model may go onto: its newest one, or the newest ones of a family that has several.

A zoo that mixes models of several base models is stored with a basis for each, one revision after the other, and each says
in its build options which of how many it is. A base model that comes later gets a basis beside those that are there, which it
names. Owns these options, and the choice for a checkpoint. Encodes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uws_store.api.encoding import option_of
from uws_store.api.family import kept_basis
from uws_store.basis import Basis
from uws_store.checkpoint import Checkpoint
from uws_store.errors import NotFoundError
from uws_store.registry import BasisEntry, FamilyState, Registry

__all__ = [
    "CurrentBasis",
    "basis_options",
    "current_bases",
    "nearest_basis",
    "remarks_on_groups",
    "revisions_in_use",
    "share_of",
]

_OPTION = "basis"
_BESIDE = "beside"
_ORDER = re.compile(r"([1-9][0-9]{0,3}) of ([1-9][0-9]{0,3})")
_TENSORS = 16
_MOST = 64


@dataclass(frozen=True, slots=True)
class CurrentBasis:
    """A basis revision that models are added to.

    Attributes
    ----------
    entry : BasisEntry
        What the log says of it.
    basis : Basis
        Open.
    """

    entry: BasisEntry
    basis: Basis


def basis_options(
    number: int, count: int, beside: Sequence[CurrentBasis] = ()
) -> tuple[tuple[str, str], ...]:
    """What a basis remembers of the others that are in use with it; nothing where it is the only one.

    Parameters
    ----------
    number, count : int
        Which of how many that are made together.
    beside : sequence of CurrentBasis
        Earlier ones that stay in use, as they are.
    """
    together = ((_OPTION, f"{number} of {count}"),) if count > 1 else ()
    # By digest: in a registry to which some tasks were copied, revisions have other numbers.
    digests = " ".join(sorted(held.basis.digest for held in beside))
    return (*together, *(((_BESIDE, digests),) if digests else ()))


def share_of(expected: int | None, models: int, all_models: int) -> int | None:
    """How many models a basis is planned for, of those that the family is, in proportion to what it has."""
    return None if expected is None else max(1, -(-expected * models // all_models))


def remarks_on_groups(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What the caller should know of a family with several bases."""
    if len(groups) < 2:
        return ()
    sizes = ", ".join(str(len(group)) for group in groups)
    remark = (
        f"these models were tuned from {len(groups)} base models: each group ({sizes} models) has a basis of its own, which "
        "is smaller than one for all"
    )
    return (remark,)


def current_bases(registry: Registry, state: FamilyState) -> tuple[CurrentBasis, ...]:
    """Open the newest basis of a family, and those that are in use with it, the oldest revision first.

    Raises
    ------
    NotFoundError
        When the family has no basis yet (``not-found/basis``).
    FormatError
        When a basis is damaged.
    """
    latest = state.latest_basis
    if latest is None:
        raise NotFoundError(f"family {state.name!r} has no basis yet", kind="not-found/basis")
    newest = CurrentBasis(latest, _open(registry, state.name, latest))
    found = [newest]
    number, count = _place_of(newest.basis)
    # Where only some tasks were copied here, some of the others are missing: what is before is of another build then.
    for revision in range(latest.revision - 1, max(0, latest.revision - min(count, _MOST)), -1):
        entry = state.bases[revision]
        basis = _open(registry, state.name, entry)
        before, of = _place_of(basis)
        if of != count or before >= number:
            break
        number = before
        found.append(CurrentBasis(entry, basis))
    opened = {held.entry.revision for held in found}
    found += [
        CurrentBasis(state.bases[revision], _open(registry, state.name, state.bases[revision]))
        for revision in _beside(state, newest.basis)
        if revision not in opened
    ]
    return tuple(sorted(found, key=lambda held: held.entry.revision))


def revisions_in_use(state: FamilyState, revision: int, basis: Basis) -> tuple[int, ...]:
    """Revisions of the bases that are in use with a family's newest one, from its own record, ascending."""
    together = range(max(1, revision - _place_of(basis)[0] + 1), revision + 1)
    return tuple(sorted({*together, *_beside(state, basis)}))


def _beside(state: FamilyState, basis: Basis) -> list[int]:
    """Earlier revisions that a basis names and the family has."""
    named = set(option_of(basis, _BESIDE).split()[:_MOST])
    return [revision for revision, entry in state.bases.items() if entry.digest in named]


def nearest_basis(bases: Sequence[CurrentBasis], checkpoint: Checkpoint) -> CurrentBasis:
    """The basis whose mean is nearest to a checkpoint, over some matrices; the newest where none is nearer."""
    if len(bases) == 1:
        return bases[0]
    return min(reversed(bases), key=lambda held: _distance(held.basis, checkpoint))


def _open(registry: Registry, family: str, entry: BasisEntry) -> Basis:
    return kept_basis(registry, family, entry.digest)


def _place_of(basis: Basis) -> tuple[int, int]:
    read = _ORDER.fullmatch(option_of(basis, _OPTION))
    number, count = (int(read[1]), int(read[2])) if read else (1, 1)
    return (number, count) if number <= count else (1, 1)


def _distance(basis: Basis, checkpoint: Checkpoint) -> float:
    """Mean relative squared distance of a checkpoint's matrices to a basis's mean."""
    names = [
        record.name
        for record in basis.document.tensors
        if record.mode == "coded"
        and record.low_rank is None
        and (info := checkpoint.tensors.get(record.name)) is not None
        and info.shape == record.shape
        and info.dtype.is_float
    ]
    matrices = [name for name in names if len(basis.table[name].shape) > 1] or names
    count = min(_TENSORS, len(matrices))
    total = 0.0
    for index in range(count):
        name = matrices[index * len(matrices) // count]
        values = checkpoint.read(name).to(torch.float64).reshape(basis.table[name].matrix)
        energy = float(values.square().sum())
        stored = basis.stored(name)
        assert stored.record.mean_grid is not None
        mean = stored.mean.to(torch.float64) * math.ldexp(1.0, -stored.record.mean_grid)
        apart = float((values - mean).square().sum()) / energy if energy else 0.0
        total += apart if math.isfinite(apart) else 1.0
    return total / count if count else math.inf
