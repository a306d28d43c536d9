"""Fitting one tensor's part of a basis: mean, factors, variance profile.

Sees one tensor at a time: of all members where these are few enough to be held, else of a spread of members that are
held and of the others as they go by, each read once. Knows nothing about documents or storage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from uws_store.builder.outside import Outside, coded_by_others
from uws_store.builder.scratch import Scratch
from uws_store.builder.sources import ZooFiles
from uws_store.builder.survey import TensorSurvey
from uws_store.builder.transform import Analysis
from uws_store.device import CPU, fed, first_that_fits
from uws_store.moments import SideMoment
from uws_store.nulls import Sharing, sharing
from uws_store.plan import Choice, SideChoice, choose_sides, fit_side
from uws_store.quantize import Rounding
from uws_store.subspace import (
    PROFILE_UNITS_PER_OCTAVE,
    QuantisedSide,
    flat_profile,
    quantise_side,
    separable_profile,
)

__all__ = ["FitJob", "TensorFit", "fit_tensor", "held_members", "spread_members"]

_HELD_ELEMENTS = 1 << 27
_LEAST_HELD = 8
_NULL_MODELS = 32


def held_members(numel: int, members: int) -> int:
    """Count the members whose tensors are held in memory while a tensor is fitted: a GiB of float64, at least eight.

    A constant of the method and not of the machine: how much memory there is must not change a basis.
    """
    return min(members, max(_LEAST_HELD, _HELD_ELEMENTS // max(1, numel)))


@dataclass(frozen=True, slots=True)
class TensorFit:
    """The numbers a basis holds for one coded tensor, before the mean is put on its grid.

    Attributes
    ----------
    survey : TensorSurvey
        Which tensor.
    mean : torch.Tensor
        float64, (m x n), of a tensor that is fitted by tiles float32; zeros where the planner found that it does not pay.
    choice : Choice
        The planner's decision.
    left, right : QuantisedSide or None
        The factors.
    rows, columns : torch.Tensor
        int16 variance classes, (p,) and (q,).
    shift : int
        The tensor's step is the family's times ``2**-shift``.
    samples : dict of str to torch.Tensor
        Coefficients of the sampled tasks times ``2**shift``, float32, (p x q) or some of its rows: for the search of the
        step.
    sharing : Sharing or None
        What the tensor shares beside its nulls, where that was asked for.
    outside : dict of str to Outside
        The sampled tasks in fits of the other members, where that was asked for.
    retreat : str
        Where the device had no room: ``slices`` when models were copied there one by one, ``cpu`` when the CPU did the
        work; else empty.
    sampled_rows : torch.Tensor or None
        int64, 1-D: which rows the samples have, rising; None for all.
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
    sharing: Sharing | None = None
    outside: dict[str, Outside] = field(default_factory=dict)
    retreat: str = ""
    sampled_rows: torch.Tensor | None = None

    @property
    def coefficients(self) -> int:
        """Coefficients of the tensor's core."""
        return len(self.rows) * len(self.columns)

    @property
    def sampled_classes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Classes of the rows that the samples have, and of the columns."""
        return self.rows if self.sampled_rows is None else self.rows[self.sampled_rows], self.columns

    @property
    def sampled_part(self) -> float:
        """How many coefficients a sampled one stands for."""
        return 1.0 if self.sampled_rows is None else len(self.rows) / len(self.sampled_rows)


@dataclass(frozen=True, slots=True)
class FitJob:
    """One tensor to fit.

    Attributes
    ----------
    files : ZooFiles
        The zoo.
    survey : TensorSurvey
        The tensor, of mode ``coded``.
    step : float
        The family's step to plan for.
    shift : int
        The tensor's step is ``step * 2**-shift``.
    models : int
        Models the basis will serve.
    sampled : tuple of str
        Tasks whose coefficients are kept.
    max_flops_per_weight : float
        The most that decoding the tensor may take.
    truncate : bool
        Whether factors may drop columns.
    rounding : {"length", "error"}
        How models will be quantised.
    decided : Choice or None
        What a saved plan says; None plans.
    with_nulls : bool
        Whether to measure what the tensor shares beside its nulls.
    with_outside : bool
        Whether to code the sampled members by fits of the others, too.
    device : torch.device
        Where to do it.
    sampled_share : float
        Part of the sampled tasks' coefficients that is kept: below 1 for models beyond what a search can look at.
    scratch : Scratch or None
        Where what is as large as a large tensor lies.
    """

    files: ZooFiles
    survey: TensorSurvey
    step: float
    shift: int
    models: int
    sampled: tuple[str, ...]
    max_flops_per_weight: float = math.inf
    truncate: bool = False
    rounding: Rounding = "length"
    decided: Choice | None = None
    with_nulls: bool = False
    with_outside: bool = False
    device: torch.device = CPU
    sampled_share: float = 1.0
    scratch: Scratch | None = None


def fit_tensor(job: FitJob) -> TensorFit:
    """Fit one tensor.

    Sums are taken in float64, member by member in the order of the tasks: their relative error is at most the number
    of members times 2^-53. Moments are taken about the mean of the held members and moved to the mean of all, so that
    no digits are lost to the common part of the weights. Where all members are held they are products of float64, else
    of changes rounded to float32: see :class:`uws_store.moments.SideMoment` for both errors.

    Where the device has no room for all that is held, this stays in memory and is copied there one by one each time it is
    used; where there is no room for that, the CPU does the work.
    """
    device = job.device
    fit, retreat = first_that_fits(
        (
            ("", lambda: _fit(job, device, held_on=device)),
            ("slices", lambda: _fit(job, device, held_on=CPU)),
            ("cpu", lambda: _fit(job, CPU, held_on=CPU)),
        ),
        what=f"fitting tensor {job.survey.name!r}",
    )
    return replace(fit, retreat=retreat)


def _fit(job: FitJob, device: torch.device, *, held_on: torch.device) -> TensorFit:
    survey = job.survey
    step = job.step * 2.0**-job.shift
    tasks = list(survey.usable)
    count = held_members(survey.matrix[0] * survey.matrix[1], len(tasks))
    # The sampled members are among the held: their coefficients are wanted.
    held = spread_members(tasks, count, including=job.sampled)
    slices = (tensor for _, tensor in job.files.slices(survey.name, held))
    changes = [_matrix(survey, tensor) for tensor in fed(slices, held_on)]
    mean = torch.zeros_like(changes[0])
    for values in changes:
        mean += values
    mean /= len(changes)
    for values in changes:
        values.sub_(mean)
    # On the whole weights: the mean is among what may be shared.
    found = sharing(changes[:_NULL_MODELS], origin=mean) if job.with_nulls else None
    choice = job.decided or choose_sides(
        changes,
        step=step,
        models=job.models,
        mean=mean,
        unit=math.prod(survey.shape[2:]),
        max_flops_per_weight=job.max_flops_per_weight,
        truncate=job.truncate,
        rounding=job.rounding,
        device=device,
    )
    if not choice.candidate.centred:
        for values in changes:
            values.add_(mean)
        mean = torch.zeros_like(mean)
        left = right = None
    elif len(held) == len(tasks):
        left = fit_side(changes, choice.candidate.left, side="left", device=device)
        right = fit_side(changes, choice.candidate.right, side="right", device=device)
    else:
        moments = _Moments(survey.matrix, choice.candidate.left, choice.candidate.right, device)
        for values in fed(changes, device):
            moments.add(values)
        rest = [task for task in tasks if task not in set(held)]
        reference = mean.to(device)
        slices = (tensor for _, tensor in job.files.slices(survey.name, rest))
        for tensor in fed(slices, device):
            moments.add(_matrix(survey, tensor).sub_(reference))
        shifted = moments.centre().to(held_on)
        left, right = moments.side("left"), moments.side("right")
        mean += shifted
        for values in changes:
            values.sub_(shifted)
    by_task = dict(zip(held, changes, strict=True))
    fit = _finished(job, by_task, mean.cpu(), choice, left=left, right=right, device=device)
    outside: dict[str, Outside] = {}
    if job.with_outside:
        outside = coded_by_others(
            by_task,
            choice.candidate,
            sampled=job.sampled,
            members=len(tasks),
            shift=job.shift,
            device=device,
        )
    if fit.sampled_rows is not None:
        outside = {task: each.of_rows(fit.sampled_rows) for task, each in outside.items()}
    return replace(fit, sharing=found, outside=outside)


def _finished(
    job: FitJob,
    changes: Mapping[str, torch.Tensor],
    mean: torch.Tensor,
    choice: Choice,
    *,
    left: QuantisedSide | None,
    right: QuantisedSide | None,
    device: torch.device,
) -> TensorFit:
    """Take the held members' coefficients in the basis: their profile, and the samples."""
    shift = job.shift
    analysis = Analysis(left, right, device=device)
    samples: dict[str, torch.Tensor] = {}
    picked: torch.Tensor | None = None
    variance: torch.Tensor | None = None
    for task, change in zip(changes, fed(changes.values(), device), strict=True):
        coefficients = analysis.coefficients(change)
        squared = coefficients.square()
        if task in job.sampled:
            if job.sampled_share < 1.0:
                picked = _picked_rows(len(coefficients), job.sampled_share)
            kept = coefficients if picked is None else coefficients[picked.to(coefficients.device)]
            samples[task] = (kept * 2.0**shift).to(torch.float32).cpu()
        variance = squared if variance is None else variance.add_(squared)
    assert variance is not None
    profile = separable_profile if choice.candidate.ordered else flat_profile
    rows, columns = profile(variance / len(changes))
    # Classes order integers, and a finer step makes larger ones.
    rows = rows + PROFILE_UNITS_PER_OCTAVE * shift
    return TensorFit(
        job.survey, mean, choice, left, right, rows, columns, shift, samples, sampled_rows=picked
    )


def _picked_rows(rows: int, share: float) -> torch.Tensor:
    # At random: rows of coefficients fall in variance block by block, and a stride may meet the first of each.
    picked = np.random.default_rng(0).permutation(rows)[: max(1, round(rows * share))]
    return torch.from_numpy(np.sort(picked))


def _matrix(survey: TensorSurvey, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor as a real matrix, float64, that may be written into."""
    return tensor.to(torch.float64, copy=True).reshape(survey.matrix)


def spread_members(tasks: Sequence[str], count: int, *, including: Sequence[str]) -> list[str]:
    """Pick members evenly, the sampled ones in any case, in the order of the tasks."""
    if count >= len(tasks):
        return list(tasks)
    picked = {task for task in including if task in set(tasks)}
    for index in np.linspace(0, len(tasks) - 1, count).round().astype(int):
        if len(picked) < count:
            picked.add(tasks[index])
    return [task for task in tasks if task in picked]


class _Moments:
    """Second moments of the sides that were chosen, and the sum, of changes that go by once.

    Parameters
    ----------
    matrix : tuple of int
        Rows and columns of the tensor.
    left, right : SideChoice or None
        What was chosen.
    device : torch.device
        Where the changes are.
    """

    def __init__(
        self,
        matrix: tuple[int, int],
        left: SideChoice | None,
        right: SideChoice | None,
        device: torch.device,
    ) -> None:
        self._choices = {"left": left, "right": right}
        self._sizes = {"left": matrix[0], "right": matrix[1]}
        self._moments = {
            side: SideMoment(size=self._sizes[side], block=choice.block, side=side)
            for side, choice in self._choices.items()
            if choice is not None
        }
        self._total = torch.zeros(matrix, dtype=torch.float64, device=device)
        self._count = 0

    def add(self, change: torch.Tensor) -> None:
        """Take one member's change about the reference in."""
        self._total += change
        self._count += 1
        short = change.to(torch.float32)
        for moment in self._moments.values():
            moment.add(short)

    def centre(self) -> torch.Tensor:
        """Move the moments to the mean of all that went by, and give that mean about the reference."""
        mean: torch.Tensor = self._total / self._count
        for moment in self._moments.values():
            moment.add(mean, times=-self._count)
        return mean

    def side(self, side: str) -> QuantisedSide | None:
        """Make the factor of a side; after :meth:`centre`."""
        choice = self._choices[side]
        if choice is None:
            return None
        size = self._sizes[side]
        vectors = self._moments[side].leading(choice.rank)
        return quantise_side(vectors, size=size, block=choice.block, rank=choice.rank)
