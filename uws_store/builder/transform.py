"""The encoder's half of the transform: from a tensor to its real coefficients in the basis.

Unlike decoding this need not be canonical: any float noise here only picks other integers. Knows one tensor at a
time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch

from uws_store.basis import StoredTensor
from uws_store.basis.digits import peak_of
from uws_store.builder.whole_analysis import WHOLE_LIMIT, WholeInverse, divided, unit_of
from uws_store.canonical import Side
from uws_store.device import CPU, fed
from uws_store.subspace import QuantisedSide, analysis_matrix, project, side_from_integers

__all__ = ["Analysis"]

_TILE_ELEMENTS = 1 << 20

Matrices = tuple[torch.Tensor, ...]


class Analysis:
    """Coefficients of changes about a mean, for one tensor's factors.

    Parameters
    ----------
    left, right : QuantisedSide, Side or None
        The factors; None is the identity. Whole numbers are for those that are as they are stored.
    dtype : torch.dtype
        Precision of the products.
    device : torch.device
        Where they are made. The left inverses are computed on the CPU, so that they are the same for every device.
    """

    def __init__(
        self,
        left: QuantisedSide | Side | None,
        right: QuantisedSide | Side | None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self._sides = left, right
        self._left_block = left.block if left else 0
        self._right_block = right.block if right else 0
        self._dtype = dtype

    @classmethod
    def of(cls, tensor: StoredTensor, *, device: torch.device = CPU) -> Analysis:
        """Make the analysis of a basis's tensor, for a device."""
        return cls(tensor.left, tensor.right, device=device)

    def part(self, start: int, stop: int) -> Analysis:
        """The analysis of some rows; `start` begins a block of the left factor, and `stop` ends one."""
        left, right = self._real
        if left is None:
            return self
        found = copy.copy(self)
        found.__dict__["_real"] = left[start // self._left_block : -(-stop // self._left_block)], right
        return found

    def coefficients(self, change_mn: torch.Tensor, step: float | None = None) -> torch.Tensor:
        """Project a change, (m x n) to (p x q), on the device.

        Parameters
        ----------
        change_mn : torch.Tensor
            The change.
        step : float, optional
            The tensor's step. With it, and where the change is not too large for it, products are of whole numbers and
            the coefficients, float32, are those of :class:`uws_store.builder.whole_analysis.WholeAnalysis`.
        """
        return self._project(change_mn.to(self.device, self._dtype), step, tiles=False)

    def coefficients_by_tiles(self, change_mn: torch.Tensor, step: float | None = None) -> torch.Tensor:
        """Project a change that lies elsewhere a few megabytes at a time; the coefficients lie where it does."""
        return self._project(change_mn.to(self._dtype), step, tiles=True)

    def coefficients_in_place(self, change_mn: torch.Tensor) -> torch.Tensor:
        """Project a change, float64 on the CPU, panel by panel where it lies; what is given is a part of it."""
        (left, right), (m, n) = self._real, change_mn.shape
        p = sum(len(matrix) for matrix in left) if left is not None else m
        q = sum(len(matrix) for matrix in right) if right is not None else n
        if right is not None:
            for rows in torch.split(change_mn, max(1, _TILE_ELEMENTS // n)):
                rows[:, :q] = project(rows.T.contiguous(), right, block=self._right_block).T
        if left is not None:
            for columns in torch.split(change_mn[:, :q], max(1, _TILE_ELEMENTS // m), dim=1):
                columns[:p] = project(columns.contiguous(), left, block=self._left_block)
        return change_mn[:p, :q]

    def _project(self, change: torch.Tensor, step: float | None, *, tiles: bool) -> torch.Tensor:
        made = None if step is None else self._in_whole_numbers(change, step, tiles=tiles)
        if made is not None:
            return made
        left, right = self._real
        if right is not None:
            change = self._on_right(change, right, tiles=tiles)
        if left is not None:
            change = self._on_left(change, left, tiles=tiles)
        return change.contiguous()

    def _in_whole_numbers(self, change: torch.Tensor, step: float, *, tiles: bool) -> torch.Tensor | None:
        unit = unit_of(step)
        if unit is None or self._whole is None or not peak_of(change) <= WHOLE_LIMIT * unit:
            return None
        (left, left_scales), (right, right_scales) = self._whole
        if left is None and right is None:
            return change.to(torch.float32)
        made = torch.round(change * (1.0 / unit))
        if right is not None:
            made = divided(self._on_right(made, right, tiles=tiles)).mul_(right_scales.to(made.device))
        if left is None:
            return made.mul_(unit).contiguous()
        if right is not None:
            if not peak_of(made) <= WHOLE_LIMIT:
                return None
            made = made.round_().to(torch.float64)
        made = divided(self._on_left(made, left, tiles=tiles))
        return made.mul_(left_scales.to(made.device)[:, None] * unit).contiguous()

    @functools.cached_property
    def _real(self) -> tuple[Matrices | None, Matrices | None]:
        left, right = (
            _on(
                analysis_matrix(side_from_integers(side) if isinstance(side, QuantisedSide) else side),
                self.device,
            )
            if side
            else None
            for side in self._sides
        )
        return left, right

    @functools.cached_property
    def _whole(
        self,
    ) -> tuple[tuple[Matrices | None, torch.Tensor], tuple[Matrices | None, torch.Tensor]] | None:
        found: list[tuple[Matrices | None, torch.Tensor]] = []
        for side in self._sides:
            inverse = WholeInverse.of(side) if isinstance(side, QuantisedSide) else None
            if side is not None and inverse is None:
                return None
            found.append(
                (_on(inverse.matrices(), self.device), inverse.scales) if inverse else (None, torch.ones(1))
            )
        return found[0], found[1]

    def _on_right(self, values: torch.Tensor, matrices: Matrices, *, tiles: bool) -> torch.Tensor:
        def work(rows: torch.Tensor) -> torch.Tensor:
            return project(rows.T.contiguous(), matrices, block=self._right_block).T

        return _by_tiles(values, work, self.device) if tiles else work(values)

    def _on_left(self, values: torch.Tensor, matrices: Matrices, *, tiles: bool) -> torch.Tensor:
        if tiles:
            return _by_tiles(
                values.T,
                lambda columns: project(columns.T.contiguous(), matrices, block=self._left_block).T,
                self.device,
            ).T
        return project(values.contiguous(), matrices, block=self._left_block)


def _on(matrices: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(matrix.to(device) for matrix in matrices)


def _by_tiles(
    change: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Do something to rows of a matrix that do not depend on each other, a tile of them at a time."""
    rows = max(1, _TILE_ELEMENTS // max(1, change.shape[1]))
    tiles = fed((part.contiguous() for part in torch.split(change, rows)), device)
    return torch.cat([work(tile).to(change.device) for tile in tiles])
