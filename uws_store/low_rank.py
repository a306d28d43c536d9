"""Products of two thin factors, as adapters store them: the form in which they are coded, and back.

Owns the numbers of one product ``B A`` (m x r times r x n): its balanced form, the scale of each of its ``r`` slices,
the gauge that leads back to the factors as they were, and the error of the product. Pure: knows neither files nor
documents. No function makes the m x n product.

Between the factors any invertible r x r matrix may stand, ``(B G) (G^-1 A)``: the factors of equal products need not
be alike, and what a family shares does not show in them. In the balanced form they are ``U sqrt(S)`` and
``sqrt(S) V^T`` of the product's singular value decomposition. Slice i is then coded times about ``sqrt(s_i)``: an
error of either factor's slice is multiplied by the other's norm in the product, so that equal steps for all
coefficients, after this scale, are the best for the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from uws_store.canonical import EXACT_LIMIT, power_of_two, round_to_dtype
from uws_store.dtypes import DType
from uws_store.metadata.model import MAX_SCALE

__all__ = [
    "MAX_GRID",
    "Gauge",
    "LowRankForm",
    "LowRankSide",
    "apply_gauge",
    "apply_scales",
    "balanced",
    "fit_gauge",
    "is_exact_gauge",
    "pad",
    "product_energy",
    "product_error",
    "unpad",
]

LowRankSide = Literal["left", "right"]
"""Which factor: ``left`` is B (m x r), whose columns are the slices; ``right`` is A (r x n), whose rows are."""

MAX_GRID = 256
"""Largest absolute exponent of a gauge's grids."""

_NOTHING = 1e-12
"""Singular values below this share of the largest are noise of the arithmetic."""

_GAUGE_BITS = 12
_FACTOR_BITS = 26


@dataclass(frozen=True, slots=True)
class LowRankForm:
    """A product in the form in which it is coded.

    Attributes
    ----------
    left, right : torch.Tensor
        float64, (m x r) and (r x n): what goes through the basis.
    scales : tuple of int
        Per slice: the balanced factors are ``left[:, i] * 2**scales[i]`` and ``right[i] * 2**scales[i]``.
    """

    left: torch.Tensor
    right: torch.Tensor
    scales: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Gauge:
    """What leads from a reconstructed factor to the factor as it was: whole numbers on dyadic grids.

    Attributes
    ----------
    factor_grid : int
        Slice i of the reconstructed factor, times ``2**scales[i]``, is rounded to whole multiples of
        ``2**-factor_grid``.
    grid : int
        The gauge is ``integers * 2**-grid``.
    integers : torch.Tensor
        int32, (r x r): multiplied onto these whole numbers from the right for B, from the left for A.
    """

    factor_grid: int
    grid: int
    integers: torch.Tensor


def balanced(left_mr: torch.Tensor, right_rn: torch.Tensor) -> LowRankForm:
    """Bring a product into its balanced form, slices by falling singular value, signs fixed.

    Parameters
    ----------
    left_mr, right_rn : torch.Tensor
        The factors, finite; computed in float64.

    Returns
    -------
    LowRankForm
        Costs two thin QR decompositions and one r x r singular value decomposition. Of a product of zero, zeros.
    """
    left, right = left_mr.to(torch.float64), right_rn.to(torch.float64)
    rank = left.shape[1]
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.T.contiguous())
    u, values, vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    keep = values > _NOTHING * max(float(values.max()), torch.finfo(torch.float64).tiny)
    values = torch.where(keep, values, torch.zeros_like(values))
    u_m, v_n = left_basis @ u, right_basis @ vh.T
    # Either sign is right; that of the largest entry is made positive, so that equal products have equal forms.
    largest = u_m.gather(0, u_m.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    root = values.sqrt()
    # Without a singular value there is no scale: that of the slice before it keeps the list smooth.
    scales: list[int] = []
    for value in root.tolist():
        if value > 0:
            scales.append(max(-MAX_SCALE, min(MAX_SCALE, -round(math.log2(value)))))
        else:
            scales.append(scales[-1] if scales else 0)
    scales += [scales[-1] if scales else 0] * (rank - len(scales))
    coded = torch.zeros(rank, dtype=torch.float64)
    coded[: len(root)] = root * power_of_two(-torch.tensor(scales[: len(root)]))
    made_left = torch.zeros_like(left)
    made_right = torch.zeros_like(right)
    count = u_m.shape[1]
    made_left[:, :count] = u_m * sign * coded[:count]
    made_right[:count] = (v_n * sign * coded[:count]).T
    return LowRankForm(made_left, made_right, tuple(scales))


def pad(values: torch.Tensor, rank: int, *, side: LowRankSide) -> torch.Tensor:
    """Add slices of zeros up to a rank: (m x r) to (m x rank), (r x n) to (rank x n)."""
    own = values.shape[1 if side == "left" else 0]
    if own == rank:
        return values
    shape = (values.shape[0], rank) if side == "left" else (rank, values.shape[1])
    padded = values.new_zeros(shape)
    unpad(padded, own, side=side).copy_(values)
    return padded


def unpad(values: torch.Tensor, rank: int, *, side: LowRankSide) -> torch.Tensor:
    """Give the first slices alone, as a view."""
    return values[:, :rank] if side == "left" else values[:rank]


def apply_scales(
    values: torch.Tensor, scales: torch.Tensor | None, dtype: DType, *, side: LowRankSide
) -> torch.Tensor:
    """Multiply each slice with its power of two and round once to a dtype.

    Parameters
    ----------
    values : torch.Tensor
        float64, (m x r) or (r x n): the canonical reconstruction, not yet rounded.
    scales : torch.Tensor or None
        int, (r,); None stands for zeros.
    dtype : DType
        A float type.
    """
    return round_to_dtype(_level(values, scales, side), dtype).contiguous()


def fit_gauge(
    source: torch.Tensor, factor: torch.Tensor, scales: torch.Tensor | None, *, side: LowRankSide
) -> Gauge:
    """Find the gauge that leads nearest from a reconstructed factor to the source.

    Parameters
    ----------
    source, factor : torch.Tensor
        (m x r) or (r x n), finite.
    scales : torch.Tensor or None
        int, (r,): those of the slices; with them balanced slices are of one size, and so is the gauge.

    Returns
    -------
    Gauge
        By least squares; its precision is far below the error of a lossy tier.
    """
    known, wanted = _level(factor, scales, side), source.to(torch.float64)
    if side == "right":
        known, wanted = known.T, wanted.T
    factor_grid = _grid_for(known, _FACTOR_BITS)
    # Through the singular values, since slices that were quantised to nothing leave columns of zeros.
    real = torch.linalg.pinv(known, rtol=1e-6) @ wanted
    grid = _grid_for(real, _GAUGE_BITS)
    integers = torch.round(real * math.ldexp(1.0, grid)).to(torch.int32)
    return Gauge(factor_grid, grid, integers if side == "left" else integers.T.contiguous())


def _grid_for(values: torch.Tensor, bits: int) -> int:
    """The finest grid on which the largest of some numbers needs at most so many bits."""
    peak = float(values.abs().max()) if values.numel() else 0.0
    return max(-MAX_GRID, min(MAX_GRID, bits - math.frexp(peak)[1])) if peak > 0.0 else 0


def _level(factor: torch.Tensor, scales: torch.Tensor | None, side: LowRankSide) -> torch.Tensor:
    """Multiply each slice with its power of two, in float64: exact."""
    values = factor.to(torch.float64)
    if scales is None:
        return values
    factors = power_of_two(scales.to(values.device))
    return values * (factors if side == "left" else factors[:, None])


def _whole(
    factor: torch.Tensor, scales: torch.Tensor | None, gauge: Gauge, side: LowRankSide
) -> torch.Tensor:
    return torch.round(_level(factor, scales, side) * math.ldexp(1.0, gauge.factor_grid))


def is_exact_gauge(
    factor: torch.Tensor, scales: torch.Tensor | None, gauge: Gauge, *, side: LowRankSide
) -> bool:
    """Prove that no sum of :func:`apply_gauge` can round."""
    whole = _whole(factor, scales, gauge, side).abs()
    integers = gauge.integers.to(torch.float64).abs()
    # The largest entry of each slice bounds every entry of the product.
    bound = whole.amax(0) @ integers if side == "left" else integers @ whole.amax(1)
    return max(float(bound.max()), float(whole.max())) < EXACT_LIMIT


def apply_gauge(
    factor: torch.Tensor, scales: torch.Tensor | None, gauge: Gauge | None, dtype: DType, *, side: LowRankSide
) -> torch.Tensor:
    """Predict the source's factor from the reconstructed one, canonically.

    Parameters
    ----------
    factor : torch.Tensor
        (m x r) or (r x n), in ``dtype``: what the compact tier gives.
    scales : torch.Tensor or None
        int, (r,).
    gauge : Gauge or None
        None is the identity.
    """
    if gauge is None:
        return factor
    whole = _whole(factor, scales, gauge, side)
    integers = gauge.integers.to(torch.float64).to(whole.device)
    product = whole @ integers if side == "left" else integers @ whole
    # Sums of products of zeros may be -0; adding 0 makes them the one zero there is.
    return round_to_dtype(product * math.ldexp(1.0, -gauge.grid - gauge.factor_grid) + 0.0, dtype)


def product_energy(left_mr: torch.Tensor, right_rn: torch.Tensor) -> float:
    """Sum of squares of a product, from its thin factors; at least 0."""
    left, right = left_mr.to(torch.float64), right_rn.to(torch.float64)
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def product_error(
    left: torch.Tensor, right: torch.Tensor, other_left: torch.Tensor, other_right: torch.Tensor
) -> float:
    """Sum of squares of the difference of two products, without cancellation: ``B A - B' A' = [B, -B'] [A; A']``."""
    _, left_core = torch.linalg.qr(torch.cat([left.to(torch.float64), -other_left.to(torch.float64)], 1))
    stacked = torch.cat([right.to(torch.float64), other_right.to(torch.float64)])
    _, right_core = torch.linalg.qr(stacked.T.contiguous())
    return float((left_core @ right_core.T).square().sum())
