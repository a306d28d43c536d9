"""One large coded tensor on the CPU, reconstructed canonically through products of 8-bit integers.

Owns the exact integer form of section 11 of ``spec/uws-1.md``: operands are split into signed digits of 8 bits, each
product of digits is summed in 32-bit integers and never rounds, and the sums are put together in float64. On CPUs
with dot products of bytes this is several times faster than float64 products and gives the same bits. Works panel by
panel, so that what it needs beside the result stays small. Whether the machine's byte products are exact is tried
once, since some saturate on the way. Knows nothing about storage or models.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from uws_store.basis.stack import rounded
from uws_store.basis.tensor import StoredTensor
from uws_store.canonical import EXACT_LIMIT, FRACTION_BITS, Step, power_of_two
from uws_store.dtypes import DType
from uws_store.subspace import QuantisedSide, block_extents

__all__ = ["WideTensor", "byte_products_are_exact"]

_DIGIT = 256.0
_SPARED = 0.9
_LIMIT = float(1 << 30)
_NARROW = 1 << 14
_INT32_LIMIT = float(1 << 31)
_PANEL = 1 << 19
_PANEL_STEP = 256
# Sums of products of digits stay in 32 bits up to this many terms: 2^14 * 2^16 < 2^31.
_MAX_TERMS = 1 << 16
_LEAST_EXTENT = 32


@dataclass(frozen=True, slots=True)
class _Side:
    """A factor in bytes: one matrix per diagonal block, (rows x columns) or turned, and an exponent per column."""

    size: int
    block: int
    blocks: tuple[torch.Tensor, ...]
    exponents: torch.Tensor
    grid: int
    spread: float
    """The largest sum of absolute values over a column of a block, which bounds what a product of it sums up to."""

    @classmethod
    def of(cls, side: QuantisedSide, *, turned: bool) -> _Side:
        blocks, entry = [], 0
        for start, stop in block_extents(side.size, side.block):
            rows, columns = stop - start, min(side.rank, stop - start)
            part = side.integers[entry : entry + rows * columns].reshape(rows, columns)
            blocks.append((part.T.contiguous() if turned else part).to(torch.int8))
            entry += rows * columns
        exponents = side.exponents.to(torch.int64)
        spread = max(float(block.to(torch.int32).abs().sum(0).max()) for block in blocks)
        return cls(side.size, side.block, tuple(blocks), exponents, int(exponents.max()), spread)

    @property
    def lift(self) -> torch.Tensor:
        """2**(grid - exponent) of each column, float64: what puts the columns on one grid."""
        return power_of_two(self.grid - self.exponents)


@functools.cache
def byte_products_are_exact() -> bool:
    """Whether this machine multiplies matrices of signed bytes into 32-bit integers without rounding or saturating."""
    try:
        extremes = torch.full((64, 64), 127, dtype=torch.int8)
        extremes[::2] = -128
        mixed = torch.arange(64 * 64, dtype=torch.int32).reshape(64, 64).to(torch.int8)
        for first in (extremes, extremes.T.contiguous(), mixed):
            for second in (extremes, mixed, mixed.T.contiguous()):
                wide = first.to(torch.int64) @ second.to(torch.int64)
                if not torch.equal(torch._int_mm(first, second).to(torch.int64), wide):  # noqa: SLF001
                    return False
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


class WideTensor:
    """A large coded tensor, ready for canonical reconstruction on the CPU.

    Parameters
    ----------
    tensor : StoredTensor
        Its integers; see :meth:`accepts`.
    """

    def __init__(self, tensor: StoredTensor) -> None:
        self.record = tensor.record
        self.matrix = tensor.record.matrix
        self._mean = tensor.mean
        self._mean_peak = _peak(tensor.mean)
        self._left = _Side.of(tensor.left, turned=True) if tensor.left is not None else None
        self._right = _Side.of(tensor.right, turned=False) if tensor.right is not None else None

    @staticmethod
    def accepts(tensor: StoredTensor) -> bool:
        """Whether a tensor's factors fit bytes and are large enough to be worth it."""
        sides = [side for side in (tensor.left, tensor.right) if side is not None]
        return bool(sides) and all(
            _LEAST_EXTENT <= side.rank <= side.block <= _MAX_TERMS
            and side.integers.numel() > 0
            and int(side.integers.abs().max()) <= 127
            for side in sides
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers held."""
        sides = [side for side in (self._left, self._right) if side is not None]
        held = [block.numel() for side in sides for block in side.blocks]
        return sum(held) + self._mean.numel() * self._mean.element_size()

    def predict(self, core_pq: torch.Tensor | None, *, step: Step, dtype: DType) -> torch.Tensor | None:
        """Reconstruct the tensor canonically.

        Parameters
        ----------
        core_pq : torch.Tensor or None
            Integers of any type, (p, q), on the CPU; None stands for zeros.
        step : Step
            The model's step.
        dtype : DType
            The tensor's dtype in the model.

        Returns
        -------
        torch.Tensor or None
            In the tensor's own shape; None when an intermediate integer leaves 32 bits and the products must be made
            in float64.
        """
        m, n = self.matrix
        assert self.record.mean_grid is not None
        assert self.record.shift is not None
        unit = math.ldexp(step.mantissa, step.exponent - self.record.shift)
        out = torch.empty(m, n, dtype=dtype.torch)
        lifted = None
        if core_pq is not None:
            lifted = self._lifted(core_pq)
            if lifted is None:
                return None
        for columns in self._panels():
            values = self._mean[:, columns].to(torch.float64).mul_(math.ldexp(1.0, -self.record.mean_grid))
            if lifted is not None:
                first_pw, exponent = self._first(*lifted, columns)
                if not self._add_second(values, first_pw, unit=math.ldexp(unit, -exponent)):
                    return None
            out[:, columns] = rounded(values, dtype, decode="canonical")
        return out.reshape(self.record.shape)

    def _panels(self) -> Iterator[slice]:
        """Columns that are made together: whole blocks of the right factor, about ``_PANEL`` elements."""
        m, n = self.matrix
        width = max(_PANEL // m // _PANEL_STEP, 1) * _PANEL_STEP
        if self._right is not None and len(self._right.blocks) > 1:
            width = max(1, width // self._right.block) * self._right.block
        for start in range(0, n, width):
            yield slice(start, min(start + width, n))

    def _lifted(self, core_pq: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        """The core with its columns on the right factor's grid, and its peak; None beyond 32 bits."""
        if self._right is None:
            return core_pq, _peak(core_pq)
        lift_q = self._right.lift
        peak = _peak(core_pq) * float(lift_q.max())
        if peak >= _LIMIT:
            return None
        narrow = torch.int8 if peak <= 127 else torch.int16 if peak < _NARROW else torch.int32
        return core_pq.to(narrow) * lift_q.to(narrow), peak

    def _first(self, lifted_pq: torch.Tensor, peak: float, columns: slice) -> tuple[torch.Tensor, int]:
        """Some columns of the rounded first product, whole numbers, and the exponent of their unit.

        On a grid that is no finer than what the first product keeps there is nothing to round: it stays int32 then, as
        long as one digit is all that the core has.
        """
        if self._right is None:
            return lifted_pq[:, columns].to(torch.float64, copy=True), 0
        right = self._right
        whole = peak <= 127 and right.grid <= FRACTION_BITS
        if len(right.blocks) == 1:
            out_pw = _right_product(lifted_pq, right.blocks[0][columns], peak=peak, whole=whole)
        else:
            out_pw = torch.empty(
                len(lifted_pq),
                columns.stop - columns.start,
                dtype=torch.int32 if whole else torch.float64,
            )
            rank = right.blocks[0].shape[1]
            for index in range(columns.start // right.block, -(-columns.stop // right.block)):
                block = right.blocks[index]
                at = index * right.block - columns.start
                values = lifted_pq[:, index * rank : index * rank + block.shape[1]]
                out_pw[:, at : at + block.shape[0]] = _right_product(values, block, peak=peak, whole=whole)
        if whole:
            return out_pw, right.grid
        return out_pw.mul_(math.ldexp(1.0, FRACTION_BITS - right.grid)).round_(), FRACTION_BITS

    def _add_second(self, values_mw: torch.Tensor, first_pw: torch.Tensor, *, unit: float) -> bool:
        """Add the second product times the unit of the first; False when that would need more than 32 bits."""
        if self._left is None:
            values_mw.add_(first_pw, alpha=unit)
            return True
        left = self._left
        lift_p = left.lift[:, None]
        if first_pw.dtype == torch.int32 and _peak(first_pw) * float(lift_p.max()) < _LIMIT:
            lifted_pw = first_pw.mul_(lift_p.to(torch.int32))
        else:
            lifted_pw = first_pw.to(torch.float64).mul_(lift_p)
        peak = _peak(lifted_pw)
        if peak >= _LIMIT:
            return False
        own = math.ldexp(unit, -left.grid)
        # Products of digits may be summed up with the mean as long as that cannot round; else on their own, first.
        target_mw = values_mw if self._sums_are_exact(own, peak) else torch.zeros_like(values_mw)
        scale = own if target_mw is values_mw else 1.0
        whole_pw = lifted_pw.to(torch.int32)
        rank = left.blocks[0].shape[0]
        # As in `_sums_are_exact`: no digit, times what it counts, is beyond this.
        narrow = left.spread * (2 * peak + 512) < _INT32_LIMIT
        for index, block in enumerate(left.blocks):
            values = whole_pw[index * rank : index * rank + block.shape[0]]
            target = target_mw[index * left.block :][: block.shape[1]]
            _add_left(target, block, values, peak=peak, unit=scale, narrow=narrow)
        if target_mw is not values_mw:
            values_mw.add_(target_mw, alpha=own)
        return True

    def _sums_are_exact(self, unit: float, peak: float) -> bool:
        """Whether the mean and products of digits up to a peak, in any order, stay below 2**53 of the finer unit."""
        assert self._left is not None
        assert self.record.mean_grid is not None
        grid = math.ldexp(1.0, -self.record.mean_grid)
        # A digit is at most 128 off what it stands for, on every place.
        largest = len(self._left.exponents) * 127.0 * (2 * peak + 512)
        _, exponent = math.frexp(unit)
        finest = min(math.ldexp(1.0, exponent - 8), grid)  # the step's mantissa has 8 bits
        return (self._mean_peak * grid + largest * unit) / finest < EXACT_LIMIT


def _peak(values: torch.Tensor) -> float:
    if values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def _digits(
    values_rk: torch.Tensor, peak: float, *, spared_from: int
) -> Iterator[tuple[float, torch.Tensor | None, torch.Tensor]]:
    """Split 32-bit integers into signed digits of 8 bits, lowest first.

    Parameters
    ----------
    values_rk : torch.Tensor
        Integers, at most ``peak`` in size.
    peak : float
        Below 2**30 for int32, 2**14 for int16, 2**7 for int8.
    spared_from : int
        From this digit on, rows that have none are left out: few rows of a core are large.

    Yields
    ------
    weight : float
        What the digit counts.
    rows : torch.Tensor or None
        Which rows it has; None for all.
    digit : torch.Tensor
        int8, (rows x k).
    """
    rows: torch.Tensor | None = None
    weight = 1.0
    for place in itertools.count():
        if place >= spared_from:
            held = (values_rk != 0).any(1)
            count = int(held.sum())
            if count == 0:
                return
            if count < _SPARED * len(held):
                index = held.nonzero().squeeze(1)
                values_rk = values_rk[index]
                rows = index if rows is None else rows[index]
        yield weight, rows, values_rk.to(torch.int8)  # the lowest byte, as a signed number
        # What is left above that digit: (v - digit) / 256 is (v + 128) // 256.
        peak = (peak + 128) // _DIGIT
        if peak < 1:
            return
        values_rk = (values_rk + 128).bitwise_right_shift_(8)
        weight *= _DIGIT


def _right_product(
    values_rk: torch.Tensor, bytes_ck: torch.Tensor, *, peak: float, whole: bool
) -> torch.Tensor:
    """``values @ bytes.T`` in float64: integers below 2**30 times int8; int32 where ``whole``, for a single digit."""
    out_rc: torch.Tensor | None = None
    for weight, rows, digit in _digits(values_rk, peak, spared_from=1):
        product = _byte_product(digit, bytes_ck.T)
        if whole:
            return product
        if out_rc is None:
            out_rc = product.to(torch.float64)
        elif rows is None:
            out_rc.add_(product, alpha=weight)
        else:
            out_rc.index_add_(0, rows, product.to(torch.float64), alpha=weight)
    assert out_rc is not None
    return out_rc


def _add_left(
    out_rc: torch.Tensor,
    bytes_kr: torch.Tensor,
    values_kc: torch.Tensor,
    *,
    peak: float,
    unit: float,
    narrow: bool,
) -> None:
    """Add ``unit * bytes.T @ values``: int8 times int32 below 2**30, into float64.

    Where ``narrow``, products of all digits are put together in 32 bits first: that is where they come from, and an
    addition there takes a tenth of one that widens.
    """
    total: torch.Tensor | None = None
    for weight, rows, digit in _digits(values_kc, peak, spared_from=2):
        product = _byte_product((bytes_kr if rows is None else bytes_kr[rows]).T, digit)
        if not narrow:
            out_rc.add_(product, alpha=weight * unit)
        elif total is None:
            total = product
        else:
            total.add_(product, alpha=int(weight))
    if total is not None:
        # Widened on its own: an addition of two types takes three times as long.
        out_rc.add_(total.to(torch.float64), alpha=unit)


def _byte_product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    if first.shape[1] == 1:  # where torch 2.13 takes one operand for turned
        return first.to(torch.int32) * second.to(torch.int32)
    product: torch.Tensor = torch._int_mm(first, second)  # noqa: SLF001 - torch has no public name for it
    return product
