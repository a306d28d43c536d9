"""A model's tensor projected onto its basis in whole numbers: the same coefficients on every machine, and soon.

Owns the encoder's half of the transform for steps that are not very fine. A change about the mean is rounded to a small
part of a step, the left inverses of the factors to 15 bits, and products of these integers are exact: in bytes where the
machine has such products, else in float64. What each rounding adds to the error of a coefficient is about a hundredth of
a step. Which integers a model gets then depends neither on the device nor on how the work was cut up. Works panel by panel.
Knows one tensor at a time, and nothing of how coefficients are quantised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from uws_store.basis.digits import PANEL, SCRATCH, byte_product, byte_products_are_exact, peak_of
from uws_store.basis.tensor import StoredTensor
from uws_store.canonical import power_of_two
from uws_store.subspace import QuantisedSide, analysis_matrix, side_from_integers

__all__ = ["WHOLE_LIMIT", "WholeAnalysis", "WholeInverse", "divided", "unit_of"]

_PER_STEP = 32
"""A step is between so many units of a change and twice as many: finer ones keep no more of a model, and take longer."""
_BITS = 14
WHOLE_LIMIT = 32_512.0
"""What has two signed digits of 8 bits."""
_DIGIT = 256
_LEAST_EXTENT = 32
_INT32_LIMIT = float(1 << 31)
_MAX_TERMS = 1 << 16
_FARTHEST = 90


def unit_of(step: float) -> float | None:
    """The power of two to which a change is rounded at a step; None where float32 has no room for it."""
    exponent = math.frexp(step)[1] - 1
    return math.ldexp(1.0, exponent) / _PER_STEP if abs(exponent) <= _FARTHEST else None


def divided(product: torch.Tensor) -> torch.Tensor:
    """Divide a product of integers by 256, as float32: rounded to a whole number first, halves up.

    Parameters
    ----------
    product : torch.Tensor
        Whole numbers, float64; is overwritten.
    """
    return product.mul_(1 / _DIGIT).add_(0.5).floor_().to(torch.float32)


@dataclass(frozen=True, slots=True)
class WholeInverse:
    """The left inverse of a factor: integers of 15 bits, a power of two per row.

    Attributes
    ----------
    block : int
        Rows of a diagonal block of the factor.
    digits : tuple of (torch.Tensor, torch.Tensor)
        For each block its low and its high digit, int8, (columns x rows).
    scales : torch.Tensor
        float32, (columns,): 2**(8 - exponent), what a product that was divided by 256 is multiplied by.
    """

    block: int
    digits: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    scales: torch.Tensor

    @classmethod
    def of(cls, side: QuantisedSide) -> WholeInverse | None:
        """Invert a factor; None where products with it could leave 32 bits."""
        digits, exponents = [], []
        for real_kr in analysis_matrix(side_from_integers(side)):
            peak_k = real_kr.abs().amax(1)
            if real_kr.shape[1] > _MAX_TERMS or not bool(((peak_k > 0) & peak_k.isfinite()).all()):
                return None
            exponent_k = _BITS - torch.frexp(peak_k)[1].to(torch.int64)
            if int(exponent_k.abs().max()) > _FARTHEST:
                return None
            whole_kr = torch.round(real_kr * power_of_two(exponent_k)[:, None]).to(torch.int16)
            reach = float(whole_kr.to(torch.int32).abs().sum(1).max())
            if reach * WHOLE_LIMIT / _DIGIT + 3 * _DIGIT * real_kr.shape[1] >= _INT32_LIMIT:
                return None
            digits.append(_two_digits(whole_kr))
            exponents.append(exponent_k)
        return cls(side.block, tuple(digits), power_of_two(8 - torch.cat(exponents)).to(torch.float32))

    @property
    def columns(self) -> int:
        """Columns of the factor: the extent of the core along this side."""
        return len(self.scales)

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers held."""
        return sum(low.numel() + high.numel() for low, high in self.digits) + 4 * len(self.scales)

    def matrices(self) -> tuple[torch.Tensor, ...]:
        """The integers of each block, float64, (columns x rows)."""
        return tuple(_joined(low, high) for low, high in self.digits)

    def on_rows(self, whole_rn: torch.Tensor) -> torch.Tensor:
        """Multiply onto the last axis: int16 (r x size) to float32 (r x columns), divided by 256."""
        parts = []
        for index, (low_kb, high_kb) in enumerate(self.digits):
            own = slice(index * self.block, index * self.block + low_kb.shape[1])
            parts.append(_product(whole_rn[:, own], low_kb, high_kb))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def on_columns(self, whole_mc: torch.Tensor) -> torch.Tensor:
        """Multiply onto the first axis: int16 (size x c) to float32 (columns x c), divided by 256."""
        return self.on_rows(whole_mc.T).T


def _two_digits(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split int16 into signed digits of 8 bits, the low one first."""
    return whole.to(torch.int8), (whole + 128).bitwise_right_shift_(8).to(torch.int8)


def _joined(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return high.to(torch.float64).mul_(_DIGIT).add_(low)


def _product(whole_rb: torch.Tensor, low_kb: torch.Tensor, high_kb: torch.Tensor) -> torch.Tensor:
    """``whole @ inverse.T / 256``, as :func:`divided`; the inverse in two digits."""
    if min(*whole_rb.shape, len(low_kb)) < _LEAST_EXTENT or not byte_products_are_exact():
        return divided(whole_rb.to(torch.float64) @ _joined(low_kb, high_kb).T)
    low_rb, high_rb = _two_digits(whole_rb.contiguous())
    total_rk = byte_product(low_rb, low_kb.T)
    total_rk.add_(_DIGIT // 2).bitwise_right_shift_(8)
    total_rk.add_(byte_product(low_rb, high_kb.T))
    # Where steps are coarse few rows have a second digit.
    held = ((high_rb.amax(1) > 0) | (high_rb.amin(1) < 0)).nonzero().squeeze(1)
    if len(held):
        high_hb = high_rb[held]
        more_hk = byte_product(high_hb, low_kb.T).add_(byte_product(high_hb, high_kb.T), alpha=_DIGIT)
        total_rk.index_add_(0, held, more_hk)
    return total_rk.to(torch.float32)


class WholeAnalysis:
    """The inverses of one tensor's factors, ready to project any model's tensor; threads may share it.

    Parameters
    ----------
    tensor : StoredTensor
        The basis's integers of it.
    """

    def __init__(self, tensor: StoredTensor) -> None:
        self._tensor = tensor
        self._left = WholeInverse.of(tensor.left) if tensor.left else None
        self._right = WholeInverse.of(tensor.right) if tensor.right else None
        self._is_ready = (tensor.left is None or self._left is not None) and (
            tensor.right is None or self._right is not None
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers held."""
        return sum(side.size_bytes for side in (self._left, self._right) if side is not None)

    def coefficients(self, source_mn: torch.Tensor, step: float) -> torch.Tensor | None:
        """Project a tensor's change about the mean.

        Parameters
        ----------
        source_mn : torch.Tensor
            The tensor as a matrix, of any float type, on the CPU.
        step : float
            The tensor's step: it says how finely a change is rounded.

        Returns
        -------
        torch.Tensor or None
            float32, (p x q). None where a change is more than 500 steps, or is no number: such are projected in
            float64. Besides the result it takes half as much memory, where both sides have factors.
        """
        unit = unit_of(step)
        if unit is None or not self._is_ready:
            return None
        m, n = self._tensor.record.matrix
        p = self._left.columns if self._left else m
        q = self._right.columns if self._right else n
        out_pq = torch.empty(p, q, dtype=torch.float32)
        if self._right is None and self._left is not None:
            for columns in _panels(n, m):
                whole_mc = self._change(source_mn, slice(0, m), columns, unit)
                if whole_mc is None:
                    return None
                out_pq[:, columns] = self._left.on_columns(whole_mc.to(torch.int16))
            return out_pq.mul_(self._left.scales[:, None] * unit)
        # The first of two products is kept in units, as the change is.
        first_mq = torch.empty(m, q, dtype=torch.int16) if self._left is not None else None
        for rows in _panels(m, n):
            made = self._change(source_mn, rows, slice(0, n), unit)
            if made is None:
                return None
            if self._right is not None:
                made = self._right.on_rows(made.to(torch.int16)).mul_(self._right.scales)
            if first_mq is None:
                out_pq[rows] = made if self._right is None else made.mul_(unit)
            elif not peak_of(made) <= WHOLE_LIMIT:
                return None
            else:
                first_mq[rows] = made.round_()
        if first_mq is not None:
            assert self._left is not None
            for columns in _panels(q, m):
                out_pq[:, columns] = self._left.on_columns(first_mq[:, columns].contiguous())
            out_pq.mul_(self._left.scales[:, None] * unit)
        return out_pq

    def _change(
        self, source_mn: torch.Tensor, rows: slice, columns: slice, unit: float
    ) -> torch.Tensor | None:
        """A part of the change, float64: in units, rounded, or as it is where nothing is multiplied."""
        record = self._tensor.record
        assert record.mean_grid is not None
        part = source_mn[rows, columns]
        values = SCRATCH.like(part, torch.float64, "values").copy_(part)
        mean = SCRATCH.like(part, torch.float64, "change").copy_(self._tensor.mean[rows, columns])
        values.sub_(mean, alpha=math.ldexp(1.0, -record.mean_grid))
        if not peak_of(values) <= WHOLE_LIMIT * unit:
            return None
        if self._left is None and self._right is None:
            return values
        return values.mul_(1.0 / unit).round_()


def _panels(count: int, other: int) -> Iterator[slice]:
    """Rows or columns that are worked on together: about ``PANEL`` elements."""
    together = max(1, PANEL // other)
    for start in range(0, count, together):
        yield slice(start, min(start + together, count))
