"""Coded tensors of one shape, stacked, and their reconstruction in a few batched products.

Owns two arithmetics. *Canonical* is section 11 of ``spec/uws-1.md`` in float64: powers of two are moved between
operands (a column's exponent onto the row it meets, the step onto the rounded first product), which changes no bit,
because every term stays the same integer multiple of the same power of two. *Fast* is the same expression in float32
without the rounding of the first product; :func:`uws_store.canonical.fast_bound` bounds what it gives away. Knows
nothing about storage, models or names of families.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from uws_store.basis.tensor import StoredTensor
from uws_store.canonical import FRACTION_BITS, Step, power_of_two, round_to_dtype
from uws_store.dtypes import DType
from uws_store.metadata.basis import TensorRecord
from uws_store.subspace import QuantisedSide, side_shape

__all__ = ["Decode", "Stack", "fits_float32", "float32_is_whole", "rounded"]

Decode = Literal["canonical", "fast"]
"""``canonical``: the bits on record. ``fast``: float32 products, within a stated distance of them."""

_SAFE_EXPONENT = 100


@dataclass(frozen=True, slots=True)
class _Factors:
    """One side of a stack: the stored integers of every tensor, and a power of two per column.

    Attributes
    ----------
    block, columns : int
        Rows of a diagonal block; columns of the whole factor.
    whole : torch.Tensor
        (B, blocks, block, rank), integers in the arithmetic's dtype.
    rest : torch.Tensor or None
        (B, rows, rank), the last block when it is shorter.
    exponents : torch.Tensor
        int64, (B, columns): the real factor is ``integers * 2**-exponents``.
    """

    block: int
    columns: int
    whole: torch.Tensor
    rest: torch.Tensor | None
    exponents: torch.Tensor

    @classmethod
    def of(cls, sides: Sequence[QuantisedSide], *, device: torch.device, dtype: torch.dtype) -> _Factors:
        first = sides[0]
        count = first.size // first.block
        entries = count * first.block * first.rank
        _, columns = side_shape(first.size, first.block, first.rank)
        integers = torch.stack([side.integers for side in sides]).to(device).to(dtype)
        exponents = torch.stack([side.exponents for side in sides]).to(device).to(torch.int64)
        remaining = first.size - count * first.block
        return cls(
            first.block,
            columns,
            integers[:, :entries].reshape(len(sides), count, first.block, first.rank),
            integers[:, entries:].reshape(len(sides), remaining, -1) if remaining else None,
            exponents,
        )

    @property
    def size_bytes(self) -> int:
        held = (self.whole, self.rest, self.exponents)
        return sum(part.numel() * part.element_size() for part in held if part is not None)

    def expand(self, values_bcn: torch.Tensor) -> torch.Tensor:
        """Multiply onto the second axis: (B, columns, n) to (B, size, n)."""
        stacked, count, block, rank = self.whole.shape
        if count == 1 and self.rest is None:
            return torch.bmm(self.whole[:, 0], values_bcn)
        n = values_bcn.shape[2]
        head = values_bcn[:, : count * rank].reshape(stacked, count, rank, n)
        parts = [torch.matmul(self.whole, head).reshape(stacked, count * block, n)]
        if self.rest is not None:
            parts.append(torch.bmm(self.rest, values_bcn[:, count * rank :]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def expand_right(self, values_bpc: torch.Tensor) -> torch.Tensor:
        """Multiply the transpose onto the last axis: (B, p, columns) to (B, p, size)."""
        if self.whole.shape[1] == 1 and self.rest is None:
            return torch.bmm(values_bpc, self.whole[:, 0].mT)
        return self.expand(values_bpc.mT).mT


class Stack:
    """Coded tensors that have a matrix shape and the geometry of their factors in common.

    Parameters
    ----------
    tensors : sequence of StoredTensor
        At least one.
    device : torch.device
        Where the numbers are held and products are made.
    decode : {"canonical", "fast"}
        The arithmetic.
    """

    def __init__(self, tensors: Sequence[StoredTensor], *, device: torch.device, decode: Decode) -> None:
        self.records: tuple[TensorRecord, ...] = tuple(tensor.record for tensor in tensors)
        self.matrix = self.records[0].matrix
        self.decode = decode
        dtype = torch.float64 if decode == "canonical" else torch.float32
        self._dtype = dtype
        lefts = [tensor.left for tensor in tensors if tensor.left is not None]
        rights = [tensor.right for tensor in tensors if tensor.right is not None]
        self._left = _Factors.of(lefts, device=device, dtype=dtype) if lefts else None
        self._right = _Factors.of(rights, device=device, dtype=dtype) if rights else None
        grids = torch.tensor([[[-_grid(record)]] for record in self.records])
        means = torch.stack([tensor.mean for tensor in tensors]).to(device)
        # Exact in float64; in float32 it is the first of the roundings that the bound counts.
        self._mean = (means.to(torch.float64) * power_of_two(grids).to(device)).to(dtype)
        shifts = torch.tensor([[_shift(record)] for record in self.records])
        fraction = FRACTION_BITS if decode == "canonical" and self._right is not None else 0
        self._first = (
            power_of_two(fraction - self._right.exponents)[:, None, :].to(dtype) if self._right else None
        )
        last = -(shifts.to(device) + fraction)
        if self._left is not None:
            last = last - self._left.exponents
        # Without the step, which is each model's own.
        self._last = power_of_two(last)[:, :, None]

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers held."""
        held = [part.size_bytes for part in (self._left, self._right) if part is not None]
        return sum(held) + self._mean.numel() * self._mean.element_size()

    def predict(self, core_bpq: torch.Tensor | None, *, step: Step) -> torch.Tensor:
        """Reconstruct, without the rounding to the tensors' own dtype.

        Parameters
        ----------
        core_bpq : torch.Tensor or None
            Integers of any type, (B, p, q), on the stack's device; None stands for zeros.
        step : Step
            The model's step.

        Returns
        -------
        torch.Tensor
            float64 or, fast, float32: (B, m, n), the caller's own.
        """
        if core_bpq is None:
            return self._mean.clone()
        values = core_bpq.to(self._dtype)
        if self._right is not None:
            assert self._first is not None
            values = self._right.expand_right(values * self._first)
            if self.decode == "canonical":
                values = values.round_()
        scale = self._last * math.ldexp(step.mantissa, step.exponent)
        values = values * scale.to(self._dtype)
        if self._left is not None:
            values = self._left.expand(values)
        return values.add_(self._mean)


def rounded(values: torch.Tensor, dtype: DType, *, decode: Decode) -> torch.Tensor:
    """Round what :meth:`Stack.predict` gave to a tensor's dtype; the values may be overwritten."""
    if dtype.torch == values.dtype:
        return values
    if decode == "canonical" and dtype.torch != torch.float32:
        return round_to_dtype(values, dtype)
    if dtype.torch == torch.float64:
        return values.to(torch.float64)
    return values.clamp_(-dtype.max_finite, dtype.max_finite).to(dtype.torch)


def float32_is_whole(device: torch.device) -> bool:
    """Whether products of float32 are made in it: a process may have allowed TF32 or bfloat16 in their place."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    asked = getattr(matmul, "fp32_precision", None)
    if asked is None:  # before torch 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return asked in {"ieee", "none"}


def fits_float32(tensor: StoredTensor, step: Step) -> bool:
    """Whether no power of two of a tensor's reconstruction leaves the range in which float32 is relative.

    Outside it the fast arithmetic would underflow, and the canonical one is taken in its place.
    """
    sides = [side.exponents for side in (tensor.left, tensor.right) if side is not None]
    widest = sum(int(exponents.abs().max()) for exponents in sides)
    scale = abs(step.exponent - _shift(tensor.record)) + 8
    return max(widest + scale, abs(_grid(tensor.record))) <= _SAFE_EXPONENT


def _grid(record: TensorRecord) -> int:
    assert record.mean_grid is not None
    return record.mean_grid


def _shift(record: TensorRecord) -> int:
    assert record.shift is not None
    return record.shift
