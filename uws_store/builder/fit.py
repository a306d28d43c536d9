"""Fitting one tensor's part of a basis: mean, factors, variance profile.

Sees one tensor of all members at a time. Knows nothing about documents or storage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uws_store.builder.members import Members, TensorSurvey
from uws_store.builder.transform import Analysis
from uws_store.plan import Choice, choose_sides, fit_side
from uws_store.subspace import (
    PROFILE_UNITS_PER_OCTAVE,
    QuantisedSide,
    separable_profile,
    side_from_integers,
)

__all__ = ["TensorFit", "fit_tensor"]


@dataclass(frozen=True, slots=True)
class TensorFit:
    """The numbers a basis holds for one coded tensor, before the mean is put on its grid.

    Attributes
    ----------
    survey : TensorSurvey
        Which tensor.
    mean : torch.Tensor
        float64, (m x n).
    choice : Choice
        The planner's decision.
    left, right : QuantisedSide or None
        The factors.
    rows, columns : torch.Tensor
        int16 variance classes, (p,) and (q,).
    shift : int
        The tensor's step is the family's times ``2**-shift``.
    samples : dict of str to torch.Tensor
        Coefficients of the sampled tasks times ``2**shift``, float32, (p x q): for the search of the step.
    """

    survey: TensorSurvey
    mean: torch.Tensor
    choice: Choice
    left: QuantisedSide | None
    right: QuantisedSide | None
    rows: torch.Tensor
    columns: torch.Tensor
    shift: int
    samples: dict[str, torch.Tensor]

    @property
    def coefficients(self) -> int:
        """Coefficients of the tensor's core."""
        return len(self.rows) * len(self.columns)


def fit_tensor(
    members: Members, survey: TensorSurvey, *, step: float, shift: int, models: int, sampled: Iterable[str]
) -> TensorFit:
    """Fit one tensor.

    Parameters
    ----------
    members : Members
        The zoo.
    survey : TensorSurvey
        The tensor, of mode ``coded``.
    step : float
        The family's step to plan for.
    shift : int
        The tensor's step is ``step * 2**-shift``.
    models : int
        Models the basis will serve.
    sampled : iterable of str
        Tasks whose coefficients are kept.
    """
    tasks: list[str] = []
    changes: list[torch.Tensor] = []
    for task, values in members.values(survey):
        tasks.append(task)
        changes.append(values)
    mean = torch.zeros_like(changes[0])
    for values in changes:
        mean += values
    mean /= len(changes)
    for values in changes:
        values.sub_(mean)
    choice = choose_sides(changes, step=step * 2.0**-shift, models=models)
    left = fit_side(changes, choice.candidate.left, side="left")
    right = fit_side(changes, choice.candidate.right, side="right")
    analysis = Analysis(
        side_from_integers(left) if left else None,
        side_from_integers(right) if right else None,
    )
    wanted = set(sampled)
    samples: dict[str, torch.Tensor] = {}
    variance: torch.Tensor | None = None
    for task, change in zip(tasks, changes, strict=True):
        coefficients = analysis.coefficients(change)
        squared = coefficients.square()
        variance = squared if variance is None else variance + squared
        if task in wanted:
            samples[task] = (coefficients * 2.0**shift).to(torch.float32)
    assert variance is not None
    rows, columns = separable_profile(variance / len(changes))
    # Classes order integers, and a finer step makes larger ones.
    rows = rows + PROFILE_UNITS_PER_OCTAVE * shift
    return TensorFit(survey, mean, choice, left, right, rows, columns, shift, samples)
