"""Canonical reconstruction: integers on dyadic grids in, the same bits on every machine out.

Owns the arithmetic of ``spec/uws-1.md`` section 6: how integer factors, a dyadic step and an integer mean become
a real matrix, the proof that no sum along the way can round, and the rounding to a tensor's dtype. Knows nothing
about files, models or how the integers were found.

Every intermediate value is an integer multiple of a power of two whose magnitude over that power stays below
2**53, so float64 sums and products are exact and their order does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from uws_store.dtypes import DType
from uws_store.errors import InvalidInputError

__all__ = [
    "EXACT_LIMIT",
    "FRACTION_BITS",
    "Reach",
    "Side",
    "Step",
    "exactness_bound",
    "fast_bound",
    "power_of_two",
    "reconstruct",
    "round_to_dtype",
]

EXACT_LIMIT = 2.0**53
"""Integers up to here are exact in float64."""

FRACTION_BITS = 10
"""Bits below one step that the first product keeps."""

_BOUNDED = 1 << 18
"""Coefficients that are looked at together."""


@dataclass(frozen=True, slots=True)
class Step:
    """A dyadic quantiser step, ``mantissa * 2**exponent``.

    Attributes
    ----------
    mantissa : int
        In [128, 255].
    exponent : int
        In [-200, 100].
    """

    mantissa: int
    exponent: int

    def __post_init__(self) -> None:
        if not (128 <= self.mantissa <= 255 and -200 <= self.exponent <= 100):
            raise InvalidInputError(
                f"{self.mantissa} * 2**{self.exponent} is not a step: weights of this scale cannot be coded",
                kind="invalid-input/range",
            )

    @property
    def value(self) -> float:
        """The step as a real number (exact)."""
        return math.ldexp(self.mantissa, self.exponent)

    @classmethod
    def nearest(cls, value: float) -> Step:
        """Round a positive real to the nearest representable step (within 0.4 %)."""
        if not (value > 0 and math.isfinite(value)):
            raise InvalidInputError(f"a step is positive and finite, not {value}", kind="invalid-input/range")
        fraction, exponent = math.frexp(value)
        mantissa = round(fraction * 256)
        return cls(128, exponent - 7) if mantissa == 256 else cls(mantissa, exponent - 8)


@dataclass(frozen=True, slots=True)
class Side:
    """One quantised factor of a tensor: block-diagonal, integer entries, a power of two per column.

    The real factor is ``integers[:, j] * 2**-exponents[j]`` for column ``j``; row block ``b`` (rows
    ``b*block`` to ``min((b+1)*block, size)``) has its own ``rank_b = min(rank, rows in the block)`` columns, and
    columns are numbered block by block.

    Attributes
    ----------
    size : int
        Rows of the factor: the extent of the tensor's side.
    block : int
        Rows of a diagonal block, in [1, size]; ``size`` means one full block.
    rank : int
        Columns kept per block, in [1, block].
    integers : tuple of torch.Tensor
        One float64 matrix of whole numbers per block, rows x columns of that block, already on the common grid:
        column ``j`` holds ``integers << (grid - exponents[j])``.
    grid : int
        Exponent of the common grid: the real factor is ``integers * 2**-grid``.
    """

    size: int
    block: int
    rank: int
    integers: tuple[torch.Tensor, ...]
    grid: int

    @property
    def columns(self) -> int:
        """Columns of the whole factor: the extent of the core along this side."""
        return sum(int(block.shape[1]) for block in self.integers)

    def expand(self, core_kn: torch.Tensor) -> torch.Tensor:
        """Multiply the factor onto the first axis: (columns x n) to (size x n), in float64."""
        if len(self.integers) == 1:
            return self.integers[0] @ core_kn
        whole = self.size // self.block
        first = self.integers[0]
        columns = int(first.shape[1])
        stacked_bmk = torch.stack(self.integers[:whole])
        head = torch.bmm(stacked_bmk, core_kn[: whole * columns].reshape(whole, columns, -1))
        parts = [head.reshape(whole * self.block, -1)]
        if whole < len(self.integers):
            parts.append(self.integers[whole] @ core_kn[whole * columns :])
        return torch.cat(parts)

    def column_bounds(self) -> torch.Tensor:
        """Largest absolute entry of each column on the common grid, float64, shape (columns,)."""
        return torch.cat([block.abs().amax(0) for block in self.integers])

    def reach(self) -> Reach:
        """What :func:`exactness_bound` needs of the factor."""
        return Reach(self.column_bounds(), self.grid)

    def to(self, device: torch.device) -> Side:
        """Copy to a device."""
        return Side(self.size, self.block, self.rank, tuple(b.to(device) for b in self.integers), self.grid)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far one factor carries a value.

    Attributes
    ----------
    columns : torch.Tensor
        As :meth:`Side.column_bounds`.
    grid : int
        Exponent of the factor's common grid.
    """

    columns: torch.Tensor
    grid: int


def _first_product(core_pq: torch.Tensor, right: Side | None) -> torch.Tensor:
    """``core @ right.T`` rounded half-even to FRACTION_BITS bits below one, as whole numbers in float64."""
    if right is None:
        return core_pq * float(1 << FRACTION_BITS)
    product_pn = right.expand(core_pq.T.contiguous()).T
    return torch.round(product_pn * math.ldexp(1.0, FRACTION_BITS - right.grid))


def reconstruct(
    core_pq: torch.Tensor, *, left: Side | None, right: Side | None, step: Step, shift: int
) -> torch.Tensor:
    """Turn a core into the real change it stands for: ``left @ (step * 2**-shift * core) @ right.T``.

    Parameters
    ----------
    core_pq : torch.Tensor
        Whole numbers, float64, (left columns x right columns).
    left, right : Side or None
        The quantised factors; None is the identity.
    step : Step
        The model's step.
    shift : int
        The tensor's step is ``step * 2**-shift``.

    Returns
    -------
    torch.Tensor
        float64, (m x n); exact multiples of a power of two when :func:`exactness_bound` held.
    """
    first_pn = _first_product(core_pq, right)
    grid = FRACTION_BITS
    if left is not None:
        first_pn = left.expand(first_pn)
        grid += left.grid
    return first_pn * math.ldexp(step.mantissa, step.exponent - shift - grid)


def exactness_bound(
    core_pq: torch.Tensor,
    *,
    left: Reach | None,
    right: Reach | None,
    step: Step,
    shift: int,
    mean_bound: float,
    mean_grid: int,
) -> float:
    """Bound every sum of absolute values that canonical reconstruction of this core can meet.

    Canonical decoding is exact when the result is below ``EXACT_LIMIT``. The bound is cheap (no matrix product)
    and may be loose; it is never too small.

    Parameters
    ----------
    core_pq : torch.Tensor
        Whole numbers, of any type.
    left, right : Reach or None
        Of the quantised factors.
    step : Step
        The model's step.
    shift : int
        The tensor's step is ``step * 2**-shift``.
    mean_bound : float
        Largest absolute value of the mean, real.
    mean_grid : int
        The mean is whole multiples of ``2**-mean_grid``.

    Returns
    -------
    float
        Largest possible sum, in units of the finest grid in use.
    """
    rows_p = _row_bounds(core_pq, right)
    if right is None:
        worst = float(rows_p.max()) if rows_p.numel() else 0.0
        first_scale = float(1 << FRACTION_BITS)
    else:
        worst = float(rows_p.max()) if rows_p.numel() else 0.0
        first_scale = math.ldexp(1.0, FRACTION_BITS - right.grid)
    first_p = rows_p * first_scale + 1.0
    worst = max(worst, float(first_p.max()) if first_p.numel() else 0.0)
    grid = FRACTION_BITS
    second = float(first_p.max()) if first_p.numel() else 0.0
    if left is not None:
        second = float((left.columns * first_p).sum())
        grid += left.grid
    worst = max(worst, second)
    scaled = second * step.mantissa
    worst = max(worst, scaled)
    change_exponent = step.exponent - shift - grid
    finest = min(change_exponent, -mean_grid)
    total = math.ldexp(scaled, change_exponent - finest) + math.ldexp(mean_bound, -finest)
    return max(worst, total)


def _row_bounds(core_pq: torch.Tensor, right: Reach | None) -> torch.Tensor:
    """What the entries of each row can add up to, float64, (p,); a few rows at a time."""
    p, q = core_pq.shape
    if not p or not q:
        return torch.zeros(p, dtype=torch.float64, device=core_pq.device)
    parts: list[torch.Tensor] = []
    for part in torch.split(core_pq, max(1, _BOUNDED // q)):
        sizes = part.to(torch.float64).abs()
        parts.append(sizes.amax(1) if right is None else sizes @ right.columns)
    return torch.cat(parts)


def fast_bound(
    core_pq: torch.Tensor,
    *,
    left: Side | None,
    right: Side | None,
    step: Step,
    shift: int,
    mean_bound: float,
    dtype: DType,
    roundoff: float = 2.0**-24,
) -> float:
    """Bound how far float32 reconstruction of a tensor lies from the canonical one, for every element.

    Written with the error of a sum of k products in floating point, ``|fl(A B) - A B| <= g_k |A| |B|`` with
    ``g_k = k u / (1 - k u)`` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.5), which
    holds in any order of summation. The two products give ``g_p + g_q + g_p g_q``; the canonical first product is
    rounded to ``FRACTION_BITS`` bits and the fast one is not, which is at most half a unit per entry; then come the
    scale, the mean, the sum, and one rounding to the tensor's dtype on either side.

    Parameters
    ----------
    core_pq, left, right, step, shift, mean_bound
        As of :func:`exactness_bound`.
    dtype : DType
        The tensor's dtype.
    roundoff : float
        Unit roundoff u of the products: 2**-24 for IEEE float32, 2**-11 for TF32, 2**-8 for bfloat16.

    Returns
    -------
    float
        Largest possible absolute difference.
    """
    p, q = core_pq.shape
    core_abs = core_pq.abs()
    if right is None:
        first_p, inner, rounding = core_abs.amax(1), 0.0, 0.0
    else:
        first_p = core_abs @ right.column_bounds() * math.ldexp(1.0, -right.grid)
        inner, rounding = _growth(q, roundoff), 2.0 ** -(FRACTION_BITS + 1)
    outer = 0.0 if left is None else _growth(p, roundoff)
    # One rounding each for the core as float32 and for the scale.
    share = inner + outer + inner * outer + 4 * roundoff
    error_p, size_p = first_p * share + rounding, first_p + rounding
    if left is not None:
        bound_m = Side(left.size, left.block, left.rank, tuple(b.abs() for b in left.integers), left.grid)
        scale = math.ldexp(1.0, -left.grid)
        error_p, size_p = (bound_m.expand(part[:, None])[:, 0] * scale for part in (error_p, size_p))
    unit = math.ldexp(step.mantissa, step.exponent - shift)
    change = unit * float(size_p.max())
    largest = (mean_bound + change) * (1 + 2 * share)
    own = 2.0**-dtype.precision
    least = math.ldexp(1.0, dtype.min_exponent - dtype.precision + 1)
    return unit * float(error_p.max()) + (3 * 2.0**-24 + 2 * own) * largest + least


def _growth(terms: int, roundoff: float) -> float:
    grown = terms * roundoff
    return grown / (1 - grown) if grown < 1 else math.inf


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """``2**exponents`` in float64 from its bits, since a device's ``pow`` may be an ulp off; exponents in [-1022, 1023]."""
    return ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)


def round_to_dtype(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Round float64 values to a float dtype: nearest, ties to even, saturating at the largest finite value.

    The rule is the same for all types and uses only exact float64 operations, because casts in frameworks are not
    single roundings everywhere (through float32, or saturating infinity).

    Parameters
    ----------
    values : torch.Tensor
        float64, finite.
    dtype : DType
        A float type of the table.

    Returns
    -------
    torch.Tensor
        The same shape in ``dtype.torch``.
    """
    if dtype.torch == torch.float64:
        return values
    if dtype.torch == torch.float32:
        # One IEEE rounding from float64; only the saturation is ours.
        return values.clamp(-dtype.max_finite, dtype.max_finite).to(torch.float32)
    _, exponents = torch.frexp(values)
    quantum = torch.clamp(exponents - 1, min=dtype.min_exponent) - (dtype.precision - 1)
    rounded = torch.round(values * power_of_two(-quantum)) * power_of_two(quantum)
    # Exact in float32, so the last cast does not round.
    exact = rounded.clamp(-dtype.max_finite, dtype.max_finite).to(torch.float32)
    return exact.to(dtype.torch)
