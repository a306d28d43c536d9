"""Fitting one large tensor's part of a basis by tiles of its rows.

Every tile is read once from every member, and nothing as large as the tensor is held but its mean, which lies on the
disk. The planner sees some tiles of some members. A side of more than 1,024 has its factor in blocks, so that no
eigenproblem is larger than a block. Knows nothing about documents or storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from uws_store.builder.fit import FitJob, TensorFit, fit_tensor, held_members, spread_members
from uws_store.builder.planning import PLAN_KIND
from uws_store.builder.scratch import Scratch
from uws_store.builder.tiles import UNIT, is_tiled, sampled_rows, spread, tile_extents
from uws_store.builder.transform import Analysis
from uws_store.canonical import Side
from uws_store.device import CPU, fed, first_that_fits
from uws_store.errors import InvalidInputError
from uws_store.moments import SideMoment
from uws_store.plan import Choice, SideChoice, choose_sides
from uws_store.subspace import (
    PROFILE_UNITS_PER_OCTAVE,
    QuantisedSide,
    analysis_matrix,
    eigenvectors,
    flat_profile,
    profile_of_margins,
    quantise_side,
    side_from_integers,
)

__all__ = ["fit_any", "fit_by_tiles"]

Extent = tuple[int, int]


def fit_any(job: FitJob) -> TensorFit:
    """Fit one tensor, whole or by tiles."""
    by_tiles = is_tiled(job.survey.matrix) and job.survey.place is None
    return fit_by_tiles(job) if by_tiles else fit_tensor(job)


def fit_by_tiles(job: FitJob) -> TensorFit:
    """Fit one tensor by tiles of its rows; what it lacks in accuracy beside :func:`fit_tensor` is in float32 products.

    Raises
    ------
    InvalidInputError
        When a plan that was given wants a factor of rows that no tile holds whole (kind ``invalid-input/plan``).
    """
    made, retreat = first_that_fits(
        (("", lambda: _fit(job, job.device)), ("cpu", lambda: _fit(job, CPU))),
        what=f"fitting tensor {job.survey.name!r}",
    )
    return replace(made, retreat=retreat)


def _fit(job: FitJob, device: torch.device) -> TensorFit:
    tiles = _Tiles(job)
    choice = job.decided or _planned(job, tiles, device)
    left, right = choice.candidate.left, choice.candidate.right
    if left is not None and (UNIT % left.block or left.rank < left.block):
        raise InvalidInputError(
            f"the plan gives {job.survey.name!r} a factor of {left} rows; a tensor this large is fitted by tiles, and takes "
            f"blocks that divide {UNIT}; plan this zoo anew",
            kind=PLAN_KIND,
        )
    m, n = job.survey.matrix
    tasks = list(job.survey.usable)
    scratch = job.scratch or Scratch()
    mean_mn = scratch.zeros((m, n), np.float32)
    sums = _Sums(m, n, left, right, device)
    samples = _Samples(job, left)
    for start, stop in tile_extents((m, n)):
        stored = list(tiles.of_all((start, stop), tasks))
        mean = torch.zeros(stop - start, n, dtype=torch.float64)
        if choice.candidate.centred:
            for tensor in stored:
                mean += tensor.to(torch.float64)
            mean /= len(stored)
        mean_mn[start:stop] = mean.to(torch.float32).numpy()
        reference = mean.to(device)
        # Not in place: a slice of float64 may be kept for others.
        changes = (tensor.to(torch.float64) - reference for tensor in fed(stored, device))
        sums.begin(start, stop)
        for task, change in zip(tasks, changes, strict=True):
            sums.add(change)
            samples.take(task, start, change)
        sums.end()
        del stored
        scratch.forget()
    rows, columns = sums.profile(len(tasks), ordered=choice.candidate.ordered)
    units = PROFILE_UNITS_PER_OCTAVE * job.shift
    left_side, right_side = sums.left(), sums.right()
    return TensorFit(
        job.survey,
        torch.from_numpy(mean_mn),
        choice,
        left_side,
        right_side,
        rows + units,
        columns,
        job.shift,
        samples.coefficients(left_side, right_side, device),
        sampled_rows=samples.rows(),
    )


class _Tiles:
    """Tiles of a tensor's members, those that the planner saw kept until they are wanted again."""

    def __init__(self, job: FitJob) -> None:
        self._files = job.files
        self._survey = job.survey
        self._kept: dict[tuple[str, Extent], torch.Tensor] = {}

    def plan_for(self, extents: Sequence[Extent], tasks: Sequence[str]) -> Iterator[torch.Tensor]:
        """Give the same tiles of some members, end to end, as float64; these tiles are kept."""
        for task in tasks:
            parts = []
            for extent in extents:
                self._kept[task, extent] = self._files.rows(self._survey.name, task, *extent)
                parts.append(self._matrix(self._kept[task, extent], extent).to(torch.float64))
            yield torch.cat(parts)

    def of_all(self, extent: Extent, tasks: Sequence[str]) -> Iterator[torch.Tensor]:
        """Give a tile of every member as a matrix as it is stored; it is not kept any longer."""
        missing = [task for task in tasks if (task, extent) not in self._kept]
        read = self._files.tiles(self._survey.name, missing, *extent)
        for task in tasks:
            found = self._kept.pop((task, extent), None)
            if found is None:
                _, found = next(read)
            yield self._matrix(found, extent)

    def _matrix(self, tensor: torch.Tensor, extent: Extent) -> torch.Tensor:
        return tensor.reshape(extent[1] - extent[0], self._survey.matrix[1])


def _planned(job: FitJob, tiles: _Tiles, device: torch.device) -> Choice:
    """Plan by some tiles of some members; bits are those of the whole tensor."""
    matrix = job.survey.matrix
    extents = sampled_rows(matrix)
    elements = sum(stop - start for start, stop in extents) * matrix[1]
    tasks = list(job.survey.usable)
    held = spread_members(tasks, held_members(elements, len(tasks)), including=job.sampled)
    changes = list(tiles.plan_for(extents, held))
    mean = torch.zeros_like(changes[0])
    for values in changes:
        mean += values
    mean /= len(changes)
    for values in changes:
        values.sub_(mean)
    choice = choose_sides(
        changes,
        step=job.step * 2.0**-job.shift,
        models=job.models,
        mean=mean,
        unit=math.prod(job.survey.shape[2:]),
        max_flops_per_weight=job.max_flops_per_weight,
        rounding=job.rounding,
        device=device,
    )
    return _scaled(choice, matrix[0] * matrix[1] / elements)


def _scaled(choice: Choice, times: float) -> Choice:
    """Bits of a tensor from those of a part of it."""
    return replace(
        choice,
        bits_per_model=choice.bits_per_model * times,
        basis_bits=choice.basis_bits * times,
        plain_bits_per_model=choice.plain_bits_per_model * times,
        plain_basis_bits=choice.plain_basis_bits * times,
        saved_bits_per_model=choice.saved_bits_per_model * times,
        simple=_scaled(choice.simple, times) if choice.simple is not None else None,
    )


class _Sums:
    """Second moments of both sides and sums of squares, of changes that go by tile by tile."""

    def __init__(
        self, m: int, n: int, left: SideChoice | None, right: SideChoice | None, device: torch.device
    ) -> None:
        self._m, self._n = m, n
        self._left_choice, self._right_choice = left, right
        self._device = device
        self._right = SideMoment(size=n, block=right.block, side="right") if right is not None else None
        self._columns = torch.zeros(n, dtype=torch.float64, device=device)
        self._rows: list[torch.Tensor] = []
        self._left_parts: list[QuantisedSide] = []
        self._right_side: QuantisedSide | None = None

    def begin(self, start: int, stop: int) -> None:
        """Begin a tile."""
        self._height = stop - start
        self._tile_rows = torch.zeros(self._height, dtype=torch.float64, device=self._device)
        block = self._left_choice.block if self._left_choice is not None else 0
        self._left = SideMoment(size=self._height, block=block, side="left") if block else None

    def add(self, change: torch.Tensor) -> None:
        """Take one member's change in the tile in."""
        squares = change.square()
        self._tile_rows += squares.sum(1)
        self._columns += squares.sum(0)
        short = change.to(torch.float32)
        for moment in (self._left, self._right):
            if moment is not None:
                moment.add(short)

    def end(self) -> None:
        """End a tile: its rows' factors are known."""
        choice = self._left_choice
        if self._left is None or choice is None:
            self._rows.append(self._tile_rows.cpu())
            return
        moments = self._left.blocks()
        side = _side(moments, choice, self._height)
        self._left_parts.append(side)
        self._rows.append(_margin(side, moments))
        self._left = None

    def left(self) -> QuantisedSide | None:
        """The factor of the rows."""
        if self._left_choice is None:
            return None
        return QuantisedSide(
            self._m,
            self._left_choice.block,
            self._left_choice.rank,
            torch.cat([part.integers for part in self._left_parts]),
            torch.cat([part.exponents for part in self._left_parts]),
        )

    def right(self) -> QuantisedSide | None:
        """The factor of the columns."""
        if self._right_side is None and self._right is not None and self._right_choice is not None:
            self._right_side = _side(self._right.blocks(), self._right_choice, self._n)
        return self._right_side

    def profile(self, members: int, *, ordered: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The variance profile, without the tensor's shift."""
        rows = torch.cat(self._rows)
        side = self.right()
        columns = self._columns.cpu()
        if side is not None and self._right is not None:
            columns = _margin(side, self._right.blocks())
        if ordered:
            return profile_of_margins(rows, columns, count=members)
        mean = rows.sum() / (members * len(rows) * len(columns))
        return flat_profile(mean.expand(len(rows), len(columns)))


def _side(moments: Sequence[torch.Tensor], choice: SideChoice, size: int) -> QuantisedSide:
    vectors = [eigenvectors(moment, choice.rank) for moment in moments]
    return quantise_side(vectors, size=size, block=choice.block, rank=choice.rank)


def _margin(side: QuantisedSide, moments: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of squares of each of a side's coefficients, from the second moments of what it is applied to."""
    found = []
    for rows, moment in zip(analysis_matrix(side_from_integers(side)), moments, strict=True):
        there = rows.to(moment.device)
        found.append(((there @ moment) * there).sum(1).cpu())
    return torch.cat(found)


@dataclass(slots=True)
class _Samples:
    """Changes of the sampled members at some rows, until the factors are known."""

    job: FitJob
    left: SideChoice | None
    blocks: list[Extent] = field(init=False)
    changes: dict[str, list[torch.Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        m = self.job.survey.matrix[0]
        whole = [(start, start + UNIT) for start in range(0, m - UNIT + 1, UNIT)]
        self.blocks = spread(whole, max(1, round(self.job.sampled_share * len(whole))))
        self.changes = {task: [] for task in self.job.sampled if task in set(self.job.survey.usable)}

    def take(self, task: str, start: int, change: torch.Tensor) -> None:
        """Keep what is wanted of a tile that begins at a row."""
        if task in self.changes:
            self.changes[task] += [
                change[first - start : last - start].to("cpu", torch.float32, copy=True)
                for first, last in self.blocks
                if start <= first < start + len(change)
            ]

    def rows(self) -> torch.Tensor:
        """The core's rows that are sampled."""
        return torch.cat([torch.arange(first, last) for first, last in self.blocks])

    def coefficients(
        self, left: QuantisedSide | None, right: QuantisedSide | None, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Samples as of :attr:`TensorFit.samples`."""
        found: dict[str, torch.Tensor] = {}
        analysis = Analysis(
            self._part(side_from_integers(left)) if left is not None else None,
            side_from_integers(right) if right is not None else None,
            device=device,
        )
        for task, parts in self.changes.items():
            coefficients = analysis.coefficients(torch.cat(parts)) * 2.0**self.job.shift
            found[task] = coefficients.to("cpu", torch.float32)
        return found

    def _part(self, side: Side) -> Side:
        """The blocks of a factor that belong to the sampled rows."""
        each = UNIT // side.block
        picked = [
            side.integers[first // side.block + index] for first, _ in self.blocks for index in range(each)
        ]
        return Side(len(self.blocks) * UNIT, side.block, side.rank, tuple(picked), side.grid)
