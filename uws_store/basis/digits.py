"""Integers as signed digits of 8 bits, and products of them that never round.

Owns the split, the sums of products of digits, and a thread's buffers for both. Whether the machine's byte products are
exact is tried once, since some saturate on the way. Must not know what a factor or a core is.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "PANEL",
    "SCRATCH",
    "Digit",
    "byte_product",
    "byte_products_are_exact",
    "digits_of",
    "left_product",
    "peak_of",
    "right_product",
]

PANEL = 1 << 18
"""Elements that are worked on at a time: their float64 values fit a core's own cache, or nearly."""

_DIGIT = 256
_SPARED = 0.9


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


@dataclass(frozen=True, slots=True)
class Digit:
    """A signed digit of 8 bits of some integers.

    Attributes
    ----------
    weight : int
        What it counts.
    peak : float
        The most it can be.
    rows : torch.Tensor or None
        Which rows have it; None for all.
    values : torch.Tensor
        int8, (rows x k).
    """

    weight: int
    peak: float
    rows: torch.Tensor | None
    values: torch.Tensor


class _Scratch(threading.local):
    """A thread's buffers, used panel after panel: memory that was never used has to be given by the system first."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def like(self, other: torch.Tensor, dtype: torch.dtype, what: str) -> torch.Tensor:
        """A buffer of another tensor's shape; its contents are whatever they are."""
        count = other.numel()
        if count > 2 * PANEL:
            return torch.empty(other.shape, dtype=dtype)
        held = self._held.get((what, dtype))
        if held is None or len(held) < count:
            held = self._held[what, dtype] = torch.empty(max(count, PANEL), dtype=dtype)
        return held[:count].view(other.shape)


SCRATCH = _Scratch()


def peak_of(values: torch.Tensor) -> float:
    """The largest absolute value; 0 where there is none."""
    if values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def digits_of(values_rk: torch.Tensor, peak: float, *, spared_from: int) -> Iterator[Digit]:
    """Split 32-bit integers into signed digits of 8 bits, lowest first.

    Parameters
    ----------
    values_rk : torch.Tensor
        Integers, at most ``peak`` in size.
    peak : float
        Below 2**30 for int32, 2**15 - 128 for int16, 2**7 for int8.
    spared_from : int
        From this digit on, rows that have none are left out.
    """
    rows: torch.Tensor | None = None
    weight = 1
    for place in itertools.count():
        if place >= spared_from:
            held = (values_rk.amax(1) > 0) | (values_rk.amin(1) < 0)
            count = int(held.sum())
            if count == 0:
                return
            if count < _SPARED * len(held):
                index = held.nonzero().squeeze(1)
                values_rk = values_rk[index]
                rows = index if rows is None else rows[index]
        # The lowest byte, as a signed number.
        yield Digit(weight, min(peak, 128.0), rows, values_rk.to(torch.int8))
        # What is left above that digit: (v - digit) / 256 is (v + 128) // 256.
        peak = (peak + 128) // _DIGIT
        if peak < 1:
            return
        values_rk = (values_rk + 128).bitwise_right_shift_(8)
        weight *= _DIGIT


def right_product(
    digits: Sequence[Digit], bytes_ck: torch.Tensor, own: slice, *, narrow: bool
) -> torch.Tensor:
    """Sum ``digit @ bytes.T`` over digits, of which only some columns meet the block: int32 where narrow, or float64."""
    total_rc: torch.Tensor | None = None
    for digit in digits:
        product = byte_product(digit.values[:, own], bytes_ck.T)
        product = product if narrow else product.to(torch.float64)
        if total_rc is None:
            total_rc = product
        elif digit.rows is None:
            total_rc.add_(product, alpha=digit.weight)
        else:
            total_rc.index_add_(0, digit.rows, product, alpha=digit.weight)
    assert total_rc is not None
    return total_rc


def left_product(
    bytes_kr: torch.Tensor, values_kc: torch.Tensor, *, peak: float, narrow: bool
) -> torch.Tensor:
    """``bytes.T @ values``: int8 times integers below 2**30; int32 where narrow, or float64."""
    total_rc: torch.Tensor | None = None
    for digit in digits_of(values_kc, peak, spared_from=2):
        block_kr = bytes_kr if digit.rows is None else bytes_kr[digit.rows]
        product = byte_product(block_kr.T, digit.values)
        product = product if narrow else product.to(torch.float64)
        if total_rc is None:
            total_rc = product
        else:
            total_rc.add_(product, alpha=digit.weight)
    assert total_rc is not None
    return total_rc


def byte_product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Multiply int8 matrices into int32; exact where :func:`byte_products_are_exact`."""
    if first.shape[1] == 1:  # where torch 2.13 takes one operand for turned
        return first.to(torch.int32) * second.to(torch.int32)
    product: torch.Tensor = torch._int_mm(first, second)  # noqa: SLF001 - torch has no public name for it
    return product
