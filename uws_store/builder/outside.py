"""What a model outside the zoo looks like in a basis: sampled members, each in a fit of the others.

A basis knows its members: their changes are shorter about a mean that they have a part in, and their coefficients more
alike in factors made from them. A model that is added later has neither. Owns the folds and the coefficients; chooses
nothing, and searches for no step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from uws_store.builder.transform import Analysis
from uws_store.device import fed
from uws_store.moments import SideMoment
from uws_store.plan import Candidate, SideChoice
from uws_store.subspace import (
    PROFILE_UNITS_PER_OCTAVE,
    QuantisedSide,
    eigenvectors,
    flat_profile,
    quantise_side,
    separable_profile,
)

__all__ = ["Outside", "coded_by_others"]

_HELD_SHARE = 4
"""At most one model of so many is kept out at a time."""


@dataclass(frozen=True, slots=True)
class Outside:
    """A member's tensor in the fit of other members.

    Attributes
    ----------
    coefficients : torch.Tensor
        float32, (p x q), times ``2**shift``, on the CPU: in units of the family's step.
    rows, columns : torch.Tensor
        int16 variance classes of that fit, (p,) and (q,).
    fitted_share : float
        Of all members, those in the fit.
    """

    coefficients: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    fitted_share: float

    def of_rows(self, picked: torch.Tensor) -> Outside:
        """Some rows of it alone."""
        return replace(self, coefficients=self.coefficients[picked], rows=self.rows[picked])


def coded_by_others(
    changes: Mapping[str, torch.Tensor],
    candidate: Candidate,
    *,
    sampled: Sequence[str],
    members: int,
    shift: int,
    device: torch.device,
) -> dict[str, Outside]:
    """Code sampled members as models that the fit has not seen.

    Parameters
    ----------
    changes : mapping of str to torch.Tensor
        The held members' changes about their mean, or their weights where there is no mean; each (m x n), float64.
    candidate : Candidate
        How the tensor is coded.
    sampled : sequence of str
        The tasks that are wanted; those that are not held are left out.
    members : int
        Of the whole zoo, held or not.
    shift : int
        The tensor's step is the family's times ``2**-shift``.
    device : torch.device
        Where to do it.

    Returns
    -------
    dict of str to Outside
        By task; empty for less than two members. Costs one fit for each fold, of which there are at most as many as tasks,
        and one where there are 32 members.
    """
    tasks = [task for task in sampled if task in changes]
    if len(changes) < 2:
        return {}
    folds = -(-len(tasks) // max(1, len(changes) // _HELD_SHARE))
    found: dict[str, Outside] = {}
    for fold in range(folds):
        held = tasks[fold::folds]
        fitted = [change for task, change in changes.items() if task not in held]
        kept_out = {task: changes[task] for task in held}
        found |= _coded(fitted, kept_out, candidate, members=members, shift=shift, device=device)
    return found


def _coded(
    fitted: Sequence[torch.Tensor],
    kept_out: Mapping[str, torch.Tensor],
    candidate: Candidate,
    *,
    members: int,
    shift: int,
    device: torch.device,
) -> dict[str, Outside]:
    centre = torch.zeros_like(fitted[0], device=device)
    if candidate.centred:
        for change in fed(fitted, device):
            centre += change
        centre /= len(fitted)
    left, right = (
        _fitted_side(fitted, choice, name, centre) if choice is not None else None
        for name, choice in (("left", candidate.left), ("right", candidate.right))
    )
    analysis = Analysis(left, right, device=device)
    variance: torch.Tensor | None = None
    for change in fed(fitted, device):
        squared = analysis.coefficients(change - centre).square()
        variance = squared if variance is None else variance.add_(squared)
    assert variance is not None
    rows, columns = (separable_profile if candidate.ordered else flat_profile)(variance / len(fitted))
    return {
        task: Outside(
            (analysis.coefficients(change - centre) * 2.0**shift).to(torch.float32).cpu(),
            rows + PROFILE_UNITS_PER_OCTAVE * shift,
            columns,
            len(fitted) / members,
        )
        for task, change in zip(kept_out, fed(kept_out.values(), device), strict=True)
    }


def _fitted_side(
    changes: Sequence[torch.Tensor], choice: SideChoice, side: str, centre: torch.Tensor
) -> QuantisedSide:
    """A factor as it would be stored, from changes about another mean than their own."""
    size = int(centre.shape[0 if side == "left" else 1])
    moment = SideMoment(size=size, block=choice.block, side=side)
    for change in fed(changes, centre.device):
        moment.add(change)
    moment.add(centre, times=-len(changes))
    vectors = [eigenvectors(each, choice.rank) for each in moment.blocks()]
    return quantise_side(vectors, size=size, block=choice.block, rank=choice.rank)
