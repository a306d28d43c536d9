"""Second moments of a zoo's changes, accumulated as they go by, and the leading eigenvectors of a symmetric matrix.

Owns the accumulation, its precision, and the randomised range finder. Pure numerics: knows nothing about factors,
files or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

__all__ = ["RangeFound", "SideMoment", "block_extents", "block_moments", "eigenvectors", "range_finder"]

_STRIP = 128
_FLOAT32_TERMS = 1 << 12
_OVERSAMPLING = 16
_PASSES = 12
_RANDOMISED_SHARE = 8
_RANDOMISED_LEAST = 256
_SETTLED = 1e-7


def block_extents(size: int, block: int) -> list[tuple[int, int]]:
    """Row ranges of the diagonal blocks of a side."""
    return [(start, min(start + block, size)) for start in range(0, size, block)]


class SideMoment:
    """The second moment of one side, ``sum_i D_i D_i^T`` or ``sum_i D_i^T D_i``, block by block.

    Changes of float64 are multiplied and summed in float64: the relative error of an entry, against the product of
    the norms of its two rows, is at most the number of terms times 2^-53. Changes of float32 are multiplied in
    float32, at most 4,096 terms (one change at least) are summed there, and these sums are added up in float64: the
    error is at most 2^-12 for adversarial signs, and below 2^-20 for what was measured. Half of each product is made,
    in strips: the other half is its mirror.

    Parameters
    ----------
    size : int
        Extent of the side.
    block : int
        Width of the diagonal blocks.
    side : {"left", "right"}
        Rows (``D D^T``) or columns (``D^T D``).
    """

    def __init__(self, *, size: int, block: int, side: str) -> None:
        self._extents = block_extents(size, block)
        self._side = side
        self._sums: list[torch.Tensor] = []
        self._short: list[torch.Tensor] = []
        self._terms = 0

    def add(self, change_md: torch.Tensor, *, times: float = 1.0) -> None:
        """Take in one change, (m x d), float32 or float64, on the device of all others; `times` may be negative."""
        rows = change_md if self._side == "left" else change_md.T
        if not self._sums:
            sizes = [stop - start for start, stop in self._extents]
            self._sums = [torch.zeros(size, size, dtype=torch.float64, device=rows.device) for size in sizes]
        if rows.dtype == torch.float64:
            self._add_to(self._sums, rows, times)
            return
        if not self._short:
            self._short = [torch.zeros_like(moment, dtype=torch.float32) for moment in self._sums]
        if self._terms and self._terms + rows.shape[1] > _FLOAT32_TERMS:
            self._flush()
        self._add_to(self._short, rows, times)
        self._terms += rows.shape[1]

    def blocks(self) -> list[torch.Tensor]:
        """Give one float64 matrix per block, symmetric to rounding; more changes may follow."""
        self._flush()
        self._short = []
        for moment in self._sums:
            for start in range(_STRIP, len(moment), _STRIP):
                moment[start:, start - _STRIP : start] = moment[start - _STRIP : start, start:].T
        return self._sums

    def _add_to(self, sums: list[torch.Tensor], rows: torch.Tensor, times: float) -> None:
        for moment, (first, last) in zip(sums, self._extents, strict=True):
            part = rows[first:last]
            for start in range(0, last - first, _STRIP):
                strip = moment[start : start + _STRIP, start:]
                strip.addmm_(part[start : start + _STRIP], part[start:].T, alpha=times)

    def _flush(self) -> None:
        if self._terms:
            for moment, short in zip(self._sums, self._short, strict=True):
                moment.add_(short)
                short.zero_()
            self._terms = 0


def block_moments(changes: Iterable[torch.Tensor], *, size: int, block: int, side: str) -> list[torch.Tensor]:
    """Accumulate the second moment of one side over changes, each (m x d): :class:`SideMoment` in one call.

    Returns
    -------
    list of torch.Tensor
        One symmetric float64 matrix per block.
    """
    moment = SideMoment(size=size, block=block, side=side)
    for change_md in changes:
        moment.add(change_md)
    return moment.blocks()


@dataclass(frozen=True, slots=True)
class RangeFound:
    """Leading eigenvectors as a randomised method found them.

    Attributes
    ----------
    vectors : torch.Tensor
        float64, (size x rank), orthonormal, largest eigenvalue first.
    values : torch.Tensor
        float64, (rank,): the Ritz values. Each is within ``residual * values[0]`` of an eigenvalue.
    residual : float
        The largest ``||M v - value v||`` over the vectors, over the largest value: measured, not estimated.
    passes : int
        Products with the matrix that were made.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    residual: float
    passes: int


def range_finder(
    multiply: Callable[[torch.Tensor], torch.Tensor],
    *,
    size: int,
    rank: int,
    passes: int = _PASSES,
    tolerance: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> RangeFound:
    """Find leading eigenvectors of a symmetric positive matrix that is known by its products alone.

    The subspace iteration of Halko, Martinsson and Tropp 2011 (algorithm 4.4, section 5.3 for the eigenvectors),
    with sixteen columns more than the rank and a QR after every product. A side of any size takes memory for a
    few blocks of (size x rank + 16), not for the matrix.

    Parameters
    ----------
    multiply : callable
        Gives ``M @ block`` for a float64 block (size x k). One pass over the zoo, where M is a sum over its changes.
    size, rank : int
        Of the matrix, and how many vectors.
    passes : int
        The most products, at least 2.
    tolerance : float
        Stop once the residual is below.
    seed : int
        Of the random start.
    device : torch.device or str
        Where the blocks live. The random start is drawn on the CPU, alike for every device.

    Returns
    -------
    RangeFound
        Whatever was reached: the residual says how good it is.
    """
    width = min(size, rank + _OVERSAMPLING)
    source = torch.Generator().manual_seed(seed)
    start = torch.randn(size, width, dtype=torch.float64, generator=source).to(device)
    basis, _ = torch.linalg.qr(start)
    for done in range(1, max(2, passes) + 1):
        image = multiply(basis)
        if done > 1:
            small = basis.T @ image
            values, turn = torch.linalg.eigh((small + small.T) / 2)
            values, turn = values.flip(0)[:rank], turn.flip(1)[:, :rank]
            vectors = basis @ turn
            wrong = (image @ turn - vectors * values).norm(dim=0).max()
            residual = float(wrong / values[0]) if bool(values[0] > 0) else 0.0
            if residual <= tolerance or done >= passes:
                break
        basis, _ = torch.linalg.qr(image)
    return RangeFound(vectors, values, residual, done)


def eigenvectors(moment: torch.Tensor, rank: int) -> torch.Tensor:
    """Leading eigenvectors of a symmetric positive matrix, largest first, each with its largest entry positive.

    Few of many are found by :func:`range_finder`, and taken where its residual is below 1e-7: what a factor's six
    bits round is a million times more. Otherwise LAPACK's, or the device's, solver of the whole problem finds them.

    Parameters
    ----------
    moment : torch.Tensor
        float64, (size x size).
    rank : int
        How many, at most the size.

    Returns
    -------
    torch.Tensor
        float64, (size x rank).
    """
    size = len(moment)
    leading: torch.Tensor | None = None
    if size >= _RANDOMISED_LEAST and rank * _RANDOMISED_SHARE <= size:
        found = range_finder(
            lambda block: moment @ block, size=size, rank=rank, tolerance=_SETTLED, device=moment.device
        )
        leading = found.vectors if found.residual <= _SETTLED else None
    if leading is None:
        _, vectors = torch.linalg.eigh(moment)
        leading = vectors.flip(1)[:, :rank]
    peak = leading.abs().argmax(0, keepdim=True)
    return leading * torch.sign(leading.gather(0, peak))
