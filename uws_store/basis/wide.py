"""One large coded tensor on the CPU, reconstructed canonically through products of 8-bit integers.

Owns the exact integer form of section 11 of ``spec/uws-1.md``: operands are split into signed digits of 8 bits, each
product of digits is summed in 32-bit integers and never rounds, and the sums are put together in float64. On CPUs
with dot products of bytes this is several times faster than float64 products and gives the same bits. Works panel by
panel, so that what it needs beside the result stays small. Knows nothing about storage or models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from uws_store.basis.digits import (
    PANEL,
    SCRATCH,
    Digit,
    byte_products_are_exact,
    digits_of,
    left_product,
    peak_of,
    right_product,
)
from uws_store.basis.stack import rounded
from uws_store.basis.tensor import StoredTensor
from uws_store.canonical import EXACT_LIMIT, FRACTION_BITS, Step, power_of_two
from uws_store.dtypes import DType
from uws_store.subspace import QuantisedSide, block_extents

__all__ = ["WideTensor", "is_wide"]

_LIMIT = float(1 << 30)
_INT16_LIMIT = float((1 << 15) - 128)
_INT32_LIMIT = float(1 << 31)
_FLOAT32_LIMIT = float(1 << 24)
_PANEL_STEP = 128
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
    reach: float
    """The largest sum of absolute values over a row of a block: times a peak, it bounds what a product sums up to."""

    @classmethod
    def of(cls, side: QuantisedSide, *, turned: bool) -> _Side:
        blocks, entry, reach = [], 0, 0.0
        for start, stop in block_extents(side.size, side.block):
            rows, columns = stop - start, min(side.rank, stop - start)
            part = side.integers[entry : entry + rows * columns].reshape(rows, columns)
            reach = max(reach, float(part.to(torch.int32).abs().sum(1).max()))
            blocks.append((part.T.contiguous() if turned else part).to(torch.int8))
            entry += rows * columns
        exponents = side.exponents.to(torch.int64)
        return cls(side.size, side.block, tuple(blocks), exponents, int(exponents.max()), reach)

    @property
    def lift(self) -> torch.Tensor:
        """2**(grid - exponent) of each column, float64: what puts the columns on one grid."""
        return power_of_two(self.grid - self.exponents)


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
        self._left = _Side.of(tensor.left, turned=True) if tensor.left is not None else None
        self._right = _Side.of(tensor.right, turned=False) if tensor.right is not None else None

    @staticmethod
    def accepts(tensor: StoredTensor) -> bool:
        """Whether a tensor's factors fit bytes and are large enough to be worth it; so it is where it has none."""
        sides = [side for side in (tensor.left, tensor.right) if side is not None]
        return all(
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
        mean_unit = math.ldexp(1.0, -self.record.mean_grid)
        out_mn = torch.empty(m, n, dtype=dtype.torch)
        if core_pq is not None and not self._fits(core_pq):
            return None
        for panel in self._row_panels():
            digits = [] if core_pq is None else self._core_digits(core_pq[panel.core_rows])
            for columns in self._column_panels(panel.rows.stop - panel.rows.start):
                mean_rw = self._mean[panel.rows, columns]
                values_rw = SCRATCH.like(mean_rw, torch.float64, "values").copy_(mean_rw).mul_(mean_unit)
                if core_pq is not None:
                    change = self._change(panel, digits, core_pq, columns)
                    if change is None:
                        return None
                    integers_rw, exponent = change
                    # Widened on its own: an addition of two types takes three times as long.
                    change_rw = SCRATCH.like(integers_rw, torch.float64, "change").copy_(integers_rw)
                    values_rw.add_(change_rw, alpha=math.ldexp(unit, -exponent))
                if dtype.torch == torch.float32:  # rounded on the way, as `rounded` does
                    values_rw.clamp_(-dtype.max_finite, dtype.max_finite)
                else:
                    values_rw = rounded(values_rw, dtype, decode="canonical")
                out_mn[panel.rows, columns].copy_(values_rw)
        return out_mn.reshape(self.record.shape)

    def _row_panels(self) -> Iterator[_RowPanel]:
        """Rows that are made together: a block of the left factor, which needs its own rows of the core alone."""
        m, n = self.matrix
        if self._left is None:
            height = max(1, PANEL // n)
            for start in range(0, m, height):
                rows = slice(start, min(start + height, m))
                yield _RowPanel(rows, rows, None)
            return
        row = core_row = 0
        for block_kr in self._left.blocks:
            rank, height = block_kr.shape
            yield _RowPanel(slice(row, row + height), slice(core_row, core_row + rank), block_kr)
            row, core_row = row + height, core_row + rank

    def _column_panels(self, height: int) -> Iterator[slice]:
        """Columns that are made together: whole blocks of the right factor, about ``PANEL`` elements."""
        n = self.matrix[1]
        width = max(PANEL // height // _PANEL_STEP, 1) * _PANEL_STEP
        if self._right is not None and len(self._right.blocks) > 1:
            width = max(1, width // self._right.block) * self._right.block
        for start in range(0, n, width):
            yield slice(start, min(start + width, n))

    def _fits(self, core_pq: torch.Tensor) -> bool:
        """Whether the core, on the right factor's grid, stays within 32 bits."""
        return self._right is None or peak_of(core_pq) * float(self._right.lift.max()) < _LIMIT

    def _core_digits(self, core_rq: torch.Tensor) -> list[Digit]:
        """Some rows of the core, on the right factor's grid, in digits."""
        if self._right is None:
            return []
        lift_q = self._right.lift
        peak = peak_of(core_rq) * float(lift_q.max())
        narrow = torch.int8 if peak <= 127 else torch.int16 if peak < _INT16_LIMIT else torch.int32
        lifted_rq = core_rq.to(narrow)
        if float(lift_q.max()) != 1.0:
            lifted_rq = lifted_rq * lift_q.to(narrow)
        # Few rows of a core are large.
        return list(digits_of(lifted_rq, peak_of(lifted_rq), spared_from=1))

    def _change(
        self, panel: _RowPanel, digits: Sequence[Digit], core_pq: torch.Tensor, columns: slice
    ) -> tuple[torch.Tensor, int] | None:
        """What a panel is changed by, before the step: whole numbers, and the exponent of their unit."""
        if self._right is None:
            first_rw, exponent = core_pq[panel.core_rows, columns], 0
        else:
            largest = self._right.reach * sum(digit.weight * digit.peak for digit in digits)
            if largest >= EXACT_LIMIT:
                return None
            first_rw, exponent = self._first(digits, columns, narrow=largest < _INT32_LIMIT)
        if self._left is None or panel.block_kr is None:
            return first_rw, exponent
        whole_kw = self._on_left_grid(first_rw, self._left.lift[panel.core_rows, None])
        if whole_kw is None:
            return None
        peak = peak_of(whole_kw)
        # No digit, times what it counts, is beyond this.
        largest = self._left.reach * (2 * peak + 512)
        if largest >= EXACT_LIMIT:
            return None
        total_rw = left_product(panel.block_kr, whole_kw, peak=peak, narrow=largest < _INT32_LIMIT)
        return total_rw, exponent + self._left.grid

    def _first(self, digits: Sequence[Digit], columns: slice, *, narrow: bool) -> tuple[torch.Tensor, int]:
        """Some columns of the rounded first product, whole numbers, and the exponent of their unit.

        On a grid that is no finer than what the first product keeps there is nothing to round.
        """
        right = self._right
        assert right is not None
        if len(right.blocks) == 1:
            total_rw = right_product(digits, right.blocks[0][columns], slice(None), narrow=narrow)
        else:
            rank = right.blocks[0].shape[1]
            parts = []
            for index in range(columns.start // right.block, -(-columns.stop // right.block)):
                block = right.blocks[index]
                own = slice(index * rank, index * rank + block.shape[1])
                parts.append(right_product(digits, block, own, narrow=narrow))
            total_rw = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if right.grid <= FRACTION_BITS:
            return total_rw, right.grid
        # Integers below 2^24 are exact in float32, and so is their division by a power of two.
        exact = torch.float32 if narrow and peak_of(total_rw) < _FLOAT32_LIMIT else torch.float64
        real_rw = SCRATCH.like(total_rw, exact, "first").copy_(total_rw)
        return real_rw.mul_(math.ldexp(1.0, FRACTION_BITS - right.grid)).round_(), FRACTION_BITS

    def _on_left_grid(self, first_kw: torch.Tensor, lift_k1: torch.Tensor) -> torch.Tensor | None:
        """The first product with its rows on the left factor's grid, in 16 or 32 bits; None beyond 30."""
        highest = float(lift_k1.max())
        peak = peak_of(first_kw) * highest
        if peak >= _LIMIT:
            first_kw = first_kw.to(torch.float64) * lift_k1
            peak, highest = peak_of(first_kw), 1.0
            if peak >= _LIMIT:
                return None
        narrow = torch.int16 if peak < _INT16_LIMIT else torch.int32
        if highest == 1.0:
            return first_kw.to(narrow)
        if first_kw.is_floating_point():
            exact = first_kw.dtype if peak < _FLOAT32_LIMIT else torch.float64
            return first_kw.to(exact).mul_(lift_k1.to(exact)).to(narrow)
        return first_kw.to(narrow) * lift_k1.to(narrow)


def is_wide(tensor: StoredTensor) -> bool:
    """Whether products with a tensor's factors are made in bytes on this machine."""
    return WideTensor.accepts(tensor) and byte_products_are_exact()


@dataclass(frozen=True, slots=True)
class _RowPanel:
    """Rows of the tensor, the rows of the core that they need, and the block of the left factor, turned."""

    rows: slice
    core_rows: slice
    block_kr: torch.Tensor | None
