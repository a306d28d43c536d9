"""How well the newest basis of a family serves the models that were added after it was made."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from uws_store.registry import FamilyState, ModelEntry

__all__ = ["Growth", "growth_of"]

_NOTABLE_DRIFT = 0.05
_ENOUGH_NEW = 3


@dataclass(frozen=True, slots=True)
class Growth:
    """How well the newest basis serves the models that were added since.

    Attributes
    ----------
    basis_models, newer_models : int
        Models on the newest revision: those it was published with, and those added later.
    basis_bits, newer_bits : float or None
        Mean bytes of them as stored, in bits per basis-coded parameter; None where there are none.
    older_models : int
        Tasks whose newest version is on an older revision.
    drift : float or None
        How much more the newer ones take: 0.1 is a tenth.
    should_extend : bool
        Whether a new revision is worth a try: at least three newer models that take a twentieth more, or as many newer
        ones as the revision was made with.
    """

    basis_models: int
    newer_models: int
    basis_bits: float | None
    newer_bits: float | None
    older_models: int
    drift: float | None
    should_extend: bool


def growth_of(
    state: FamilyState, sizes: Sequence[tuple[ModelEntry, float]], *, current: Collection[int] = ()
) -> Growth:
    """Compare the models of the newest revision.

    Parameters
    ----------
    state : FamilyState
        The family.
    sizes : sequence of (ModelEntry, float)
        Each task's newest version, with its bits per basis-coded parameter.
    current : collection of int
        The newest revision and those in use with it; the newest alone when empty.
    """
    latest = state.latest_basis
    revisions = {latest.revision if latest else 0, *current}
    own: list[float] = []
    newer: list[float] = []
    for entry, bits in sizes:
        if entry.basis_revision in revisions:
            came_with_it = entry.commit == state.bases[entry.basis_revision].commit
            (own if came_with_it else newer).append(bits)
    basis_bits = sum(own) / len(own) if own else None
    newer_bits = sum(newer) / len(newer) if newer else None
    drift = newer_bits / basis_bits - 1 if newer_bits is not None and basis_bits else None
    worse = drift is not None and drift > _NOTABLE_DRIFT and len(newer) >= _ENOUGH_NEW
    many = bool(own) and len(newer) >= max(_ENOUGH_NEW, len(own))
    older = sum(entry.basis_revision not in revisions for entry, _ in sizes)
    return Growth(len(own), len(newer), basis_bits, newer_bits, older, drift, worse or many)
