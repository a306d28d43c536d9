"""The encoder's half of the transform: from a tensor to its real coefficients in the basis.

Unlike decoding this need not be canonical: any float noise here only picks other integers. Knows one tensor at a
time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from uws_store.basis import TensorBasis
from uws_store.canonical import Side
from uws_store.device import CPU, fed
from uws_store.subspace import analysis_matrix, project

__all__ = ["Analysis"]

_TILE_ELEMENTS = 1 << 20


class Analysis:
    """Coefficients of changes about a mean, for one tensor's factors.

    Parameters
    ----------
    left, right : Side or None
        Quantised factors; None is the identity.
    dtype : torch.dtype
        Precision of the products.
    device : torch.device
        Where they are made. The left inverses are computed on the CPU, so that they are the same for every device.
    """

    def __init__(
        self,
        left: Side | None,
        right: Side | None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device = CPU,
    ) -> None:
        self._left = _on(analysis_matrix(left), device) if left else None
        self._right = _on(analysis_matrix(right), device) if right else None
        self.device = device
        self._left_block = left.block if left else 0
        self._right_block = right.block if right else 0
        self._dtype = dtype

    @classmethod
    def of(cls, basis: TensorBasis, *, device: torch.device = CPU) -> Analysis:
        """Make the analysis of a basis's tensor, for a device."""
        return cls(basis.left, basis.right, device=device)

    def part(self, start: int, stop: int) -> Analysis:
        """The analysis of some rows; `start` begins a block of the left factor, and `stop` ends one."""
        if self._left is None:
            return self
        found = copy.copy(self)
        found._left = self._left[start // self._left_block : -(-stop // self._left_block)]  # noqa: SLF001 - of this class
        return found

    def coefficients(self, change_mn: torch.Tensor) -> torch.Tensor:
        """Project a change, (m x n) to (p x q), on the device."""
        change = change_mn.to(self.device, self._dtype)
        if self._right is not None:
            change = project(change.T.contiguous(), self._right, block=self._right_block).T
        if self._left is not None:
            change = project(change.contiguous(), self._left, block=self._left_block)
        return change.contiguous()

    def coefficients_by_tiles(self, change_mn: torch.Tensor) -> torch.Tensor:
        """Project a change that lies elsewhere a few megabytes at a time; the coefficients lie where it does."""
        change = change_mn.to(self._dtype)
        if self._right is not None:
            right = self._right
            change = _by_tiles(
                change,
                lambda rows: project(rows.T.contiguous(), right, block=self._right_block).T,
                self.device,
            )
        if self._left is not None:
            left = self._left
            change = _by_tiles(
                change.T,
                lambda columns: project(columns.T.contiguous(), left, block=self._left_block).T,
                self.device,
            ).T
        return change.contiguous()


def _on(matrices: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(matrix.to(device) for matrix in matrices)


def _by_tiles(
    change: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Do something to rows of a matrix that do not depend on each other, a tile of them at a time."""
    rows = max(1, _TILE_ELEMENTS // max(1, change.shape[1]))
    tiles = fed((part.contiguous() for part in torch.split(change, rows)), device)
    return torch.cat([work(tile).to(change.device) for tile in tiles])
