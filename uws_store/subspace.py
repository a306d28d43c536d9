"""The universal subspaces of one tensor: second moments, their eigenvectors, quantised factors, variance profile.

Pure numerics on the HOSVD of a zoo (De Lathauwer, De Moor, Vandewalle 2000; the subspaces are those of
arXiv:2512.05117): with ``D_i`` the models' changes about the mean, the left factor holds the leading eigenvectors
of ``sum_i D_i D_i^T`` and the right factor those of ``sum_i D_i^T D_i``. Knows nothing about files or steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from uws_store.canonical import Side, power_of_two
from uws_store.moments import block_extents, block_moments, eigenvectors

__all__ = [
    "FACTOR_BITS",
    "PROFILE_UNITS_PER_OCTAVE",
    "QuantisedSide",
    "analysis_matrix",
    "block_extents",
    "block_moments",
    "eigenvectors",
    "flat_profile",
    "profile_of_margins",
    "project",
    "quantise_side",
    "separable_profile",
    "side_from_integers",
]

FACTOR_BITS = 6
"""Bits of a factor's integers with the sign: against 7, a sixth less of basis for 0.3 % more bits (spec/rfcs/0005)."""

PROFILE_UNITS_PER_OCTAVE = 4
"""Resolution of the variance profile: units of log2(standard deviation)."""


@dataclass(frozen=True, slots=True)
class QuantisedSide:
    """A factor as it is stored.

    Attributes
    ----------
    size, block, rank : int
        As in :class:`uws_store.canonical.Side`.
    integers : torch.Tensor
        int16, 1-D: the blocks one after the other, each row-major (rows x columns), entries in [-31, 31].
    exponents : torch.Tensor
        int16, 1-D, one per column: column ``j`` of the real factor is ``integers * 2**-exponents[j]``.
    """

    size: int
    block: int
    rank: int
    integers: torch.Tensor
    exponents: torch.Tensor


def side_shape(size: int, block: int, rank: int) -> tuple[int, int]:
    """Count the integers and the columns of a side of given size, block and rank.

    In closed form: the numbers come from a document, and a side of 2^42 rows in blocks of one must cost nothing.
    """
    whole, rest = divmod(size, block)
    full, last = min(rank, block), min(rank, rest)
    return whole * block * full + rest * last, whole * full + last


def quantise_side(blocks: list[torch.Tensor], *, size: int, block: int, rank: int) -> QuantisedSide:
    """Round the real blocks of a factor to integers with a power of two per column."""
    limit = (1 << (FACTOR_BITS - 1)) - 1
    integers, exponents = [], []
    for vectors in blocks:
        peak = vectors.abs().amax(0).clamp(min=2.0**-30)
        exponent = torch.floor(torch.log2(limit / peak))
        integers.append(torch.round(vectors * torch.exp2(exponent)).to(torch.int16).reshape(-1).cpu())
        exponents.append(exponent.to(torch.int16).cpu())
    return QuantisedSide(size, block, rank, torch.cat(integers), torch.cat(exponents))


def side_from_integers(stored: QuantisedSide) -> Side:
    """Put a stored factor on one common grid, ready for canonical reconstruction."""
    grid = int(stored.exponents.max())
    blocks: list[torch.Tensor] = []
    entry = column = 0
    for start, stop in block_extents(stored.size, stored.block):
        rows, columns = stop - start, min(stored.rank, stop - start)
        part = stored.integers[entry : entry + rows * columns].reshape(rows, columns).to(torch.float64)
        # Not exp2, which a device may compute an ulp off.
        lift = power_of_two(grid - stored.exponents[column : column + columns])
        blocks.append(part * lift)
        entry += rows * columns
        column += columns
    return Side(stored.size, stored.block, stored.rank, tuple(blocks), grid)


def analysis_matrix(side: Side) -> tuple[torch.Tensor, ...]:
    """The left inverse of a factor, block by block: coefficients are ``analysis @ change``.

    Quantised factors are not quite orthonormal; the encoder undoes that here, so that quantising them is a change
    of basis and not an error.
    """
    return tuple(_left_inverse(integers * math.ldexp(1.0, -side.grid)) for integers in side.integers)


def _left_inverse(real_rk: torch.Tensor) -> torch.Tensor:
    """Invert a matrix of full rank: a square one as it is, another by way of its products of columns."""
    if real_rk.shape[0] == real_rk.shape[1]:
        inverse_kr: torch.Tensor
        inverse_kr, failed = torch.linalg.inv_ex(real_rk)
        if not int(failed):
            return inverse_kr
    gram_kk = real_rk.T @ real_rk
    triangle_kk, failed = torch.linalg.cholesky_ex(gram_kk)
    if int(failed):
        solved: torch.Tensor = torch.linalg.solve(gram_kk, real_rk.T)
    else:
        solved = torch.cholesky_solve(real_rk.T, triangle_kk)
    return solved


def project(change: torch.Tensor, analysis: tuple[torch.Tensor, ...] | None, *, block: int) -> torch.Tensor:
    """Apply an analysis matrix to the first axis: (size x n) to (columns x n)."""
    if analysis is None:
        return change
    if len(analysis) == 1:
        return analysis[0].to(change.dtype) @ change
    parts = [
        matrix.to(change.dtype) @ change[index * block : index * block + matrix.shape[1]]
        for index, matrix in enumerate(analysis)
    ]
    return torch.cat(parts)


def separable_profile(variance_pq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit ``variance[i, j] ~ row[i] * column[j]`` and put it on the integer scale of the format.

    Parameters
    ----------
    variance_pq : torch.Tensor
        Mean squared coefficient over the basis models, float64, (p x q).

    Returns
    -------
    rows, columns : torch.Tensor
        int16, (p,) and (q,): ``log2`` of the standard deviation in units of 1/4, their sum is a coefficient's class.
    """
    return profile_of_margins(variance_pq.sum(1), variance_pq.sum(0), count=1)


def profile_of_margins(
    rows_p: torch.Tensor, columns_q: torch.Tensor, *, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the profile from sums of squares over rows and over columns.

    Parameters
    ----------
    rows_p, columns_q : torch.Tensor
        float64, (p,) and (q,): sums over the other axis and over models, on any device; the profile is on the CPU.
    count : int
        How many models.

    Returns
    -------
    rows, columns : torch.Tensor
        As :func:`separable_profile`.
    """
    p, q = len(rows_p), len(columns_q)
    row_mean = rows_p / (q * count)
    column_mean = columns_q / (p * count)
    total = row_mean.mean()
    if not bool(total > 0):
        return torch.zeros(p, dtype=torch.int16), torch.zeros(q, dtype=torch.int16)
    row = row_mean.clamp(min=total * 2.0**-40)
    column = (column_mean / total).clamp(min=2.0**-40)
    units = PROFILE_UNITS_PER_OCTAVE / 2
    return (
        torch.round(torch.log2(row) * units).to(torch.int16).cpu(),
        torch.round(torch.log2(column) * units).to(torch.int16).cpu(),
    )


def flat_profile(variance_pq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give all coefficients of a tensor one class, so that they stay in their own order.

    Parameters
    ----------
    variance_pq : torch.Tensor
        As for :func:`separable_profile`.

    Returns
    -------
    rows, columns : torch.Tensor
        int16, (p,) and (q,); the columns are zeros.
    """
    total = float(variance_pq.mean())
    level = round(math.log2(total) * PROFILE_UNITS_PER_OCTAVE / 2) if total > 0 else 0
    p, q = variance_pq.shape
    return torch.full((p,), level, dtype=torch.int16), torch.zeros(q, dtype=torch.int16)
