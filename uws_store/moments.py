"""Second moments of a zoo's changes, accumulated as they go by, and the leading eigenvectors of a symmetric matrix.

Owns the accumulation, its precision, and the randomised range finder. Pure numerics: knows nothing about factors,
files or steps.
"""

from __future__ import annotations

import functools
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
    error is at most 2^-12 for adversarial signs, and below 2^-19 for what was measured. Half of each product is made,
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
        self._sums: list[list[torch.Tensor]] = []
        self._short: list[list[torch.Tensor]] = []
        self._whole: list[torch.Tensor] = []
        self._terms = 0

    def add(self, change_md: torch.Tensor, *, times: float = 1.0) -> None:
        """Take in one change, (m x d), float32 or float64, on the device of all others; `times` may be negative."""
        rows = change_md if self._side == "left" else change_md.T
        self._split()
        if not self._sums:
            self._sums = self._zeros(torch.float64, rows.device)
        if rows.dtype == torch.float64:
            self._add_to(self._sums, rows, times)
            return
        if not self._short:
            self._short = self._zeros(torch.float32, rows.device)
        if self._terms and self._terms + rows.shape[1] > _FLOAT32_TERMS:
            self._flush()
        self._add_to(self._short, rows, times)
        self._terms += rows.shape[1]

    def blocks(self) -> list[torch.Tensor]:
        """Give one float64 matrix per block, symmetric to rounding; more changes may follow."""
        self._finish()
        while self._sums:
            strips = self._sums.pop(0)
            whole = torch.empty(
                strips[0].shape[1], strips[0].shape[1], dtype=torch.float64, device=strips[0].device
            )
            for start in range(0, len(whole), _STRIP):
                strip = strips.pop(0)
                whole[start : start + _STRIP, start:] = strip
                whole[start + _STRIP :, start : start + _STRIP] = strip[:, _STRIP:].T
            self._whole.append(whole)
        return self._whole

    def leading(self, rank: int) -> list[torch.Tensor]:
        """Give each block's leading eigenvectors, as :func:`eigenvectors` does; few of many need no whole matrix."""
        self._finish()
        if self._whole:
            return [eigenvectors(whole, rank) for whole in self._whole]
        found = [
            _few(functools.partial(_times, strips), strips[0].shape[1], rank, strips[0].device)
            for strips in self._sums
        ]
        if any(vectors is None for vectors in found):
            return [eigenvectors(whole, rank) for whole in self.blocks()]
        return [_turned(vectors) for vectors in found if vectors is not None]

    def _zeros(self, dtype: torch.dtype, device: torch.device) -> list[list[torch.Tensor]]:
        """The upper half of each block, in strips of rows: the other half is its mirror."""
        return [
            [
                torch.zeros(min(_STRIP, size - start), size - start, dtype=dtype, device=device)
                for start in range(0, size, _STRIP)
            ]
            for size in (stop - start for start, stop in self._extents)
        ]

    def _split(self) -> None:
        """Go back to strips, where whole matrices were made of them."""
        while self._whole:
            whole = self._whole.pop(0)
            strips = [whole[start : start + _STRIP, start:].clone() for start in range(0, len(whole), _STRIP)]
            self._sums.append(strips)

    def _add_to(self, sums: list[list[torch.Tensor]], rows: torch.Tensor, times: float) -> None:
        for strips, (first, last) in zip(sums, self._extents, strict=True):
            part = rows[first:last]
            for index, strip in enumerate(strips):
                start = index * _STRIP
                strip.addmm_(part[start : start + _STRIP], part[start:].T, alpha=times)

    def _finish(self) -> None:
        self._flush()
        self._short = []

    def _flush(self) -> None:
        if self._terms:
            for strips, short in zip(self._sums, self._short, strict=True):
                # Strip by strip: a sum of two types copies one of them.
                for strip, part in zip(strips, short, strict=True):
                    strip.add_(part)
                    part.zero_()
            self._terms = 0


def _times(strips: list[torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
    """Multiply a symmetric matrix, of which strips of the upper half are there."""
    image = torch.zeros_like(vectors)
    for index, strip in enumerate(strips):
        start = index * _STRIP
        stop = start + len(strip)
        image[start:stop] += strip @ vectors[start:]
        if stop < len(vectors):
            image[stop:] += strip[:, len(strip) :].T @ vectors[start:stop]
    return image


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
    leading = _few(lambda block: moment @ block, len(moment), rank, moment.device)
    if leading is None:
        _, vectors = torch.linalg.eigh(moment)
        leading = vectors.flip(1)[:, :rank]
    return _turned(leading)


def _few(
    multiply: Callable[[torch.Tensor], torch.Tensor], size: int, rank: int, device: torch.device
) -> torch.Tensor | None:
    """Few of many eigenvectors, where they are found well."""
    if size < _RANDOMISED_LEAST or rank * _RANDOMISED_SHARE > size:
        return None
    found = range_finder(multiply, size=size, rank=rank, tolerance=_SETTLED, device=device)
    return found.vectors if found.residual <= _SETTLED else None


def _turned(leading: torch.Tensor) -> torch.Tensor:
    peak = leading.abs().argmax(0, keepdim=True)
    return leading * torch.sign(leading.gather(0, peak))
