"""What a tensor may get: the mean or nothing to start from, an order, factors of bounded width.

Owns the candidates, what they cost to decode, and how they are named. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uws_store.subspace import side_shape

__all__ = ["Candidate", "SideChoice", "decode_budget", "side_options"]

_FULL_LIMIT = 1024
_BLOCKS = (64, 256)
_SMALLEST = 4
_BUDGET_FLOPS = 2.0**36
_LEAST_BUDGET = 512.0


@dataclass(frozen=True, slots=True)
class SideChoice:
    """Block width and rank of a factor."""

    block: int
    rank: int

    def __str__(self) -> str:
        return f"{self.block}" + (f" rank {self.rank}" if self.rank < self.block else "")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to code a tensor.

    Attributes
    ----------
    left, right : SideChoice or None
        Factors; None is the identity.
    centred : bool
        Whether the zoo's mean is taken off first. Without it nothing of the zoo is used but, maybe, the order.
    ordered : bool
        Whether coefficients are sorted by predicted variance, or stay in the tensor's own order.
    """

    left: SideChoice | None = None
    right: SideChoice | None = None
    centred: bool = True
    ordered: bool = True

    def __str__(self) -> str:
        words = [f"{name} {side}" for name, side in (("left", self.left), ("right", self.right)) if side]
        if words:
            return " + ".join(words)
        return "mean" if self.centred else "plain"

    @property
    def is_truncated(self) -> bool:
        """Whether a factor has fewer columns than rows."""
        return any(side is not None and side.rank < side.block for side in (self.left, self.right))

    def flops_per_weight(self, m: int, n: int) -> float:
        """Multiplications and additions that decoding takes, over the tensor's elements."""
        p = side_shape(m, self.left.block, self.left.rank)[1] if self.left else m
        flops = 0.0
        if self.right:
            flops += 2.0 * p * n * min(self.right.rank, n)
        if self.left:
            flops += 2.0 * m * n * min(self.left.rank, m)
        return flops / (m * n)


def decode_budget(parameters: int) -> float:
    """Flops per weight that a model's decoding may take by default: about a second on two cores, and at least 512.

    Parameters
    ----------
    parameters : int
        Coded parameters of a model. Two cores do some 2^36 multiplications and additions a second in float64.
    """
    return max(_LEAST_BUDGET, _BUDGET_FLOPS / max(1, parameters))


def side_options(size: int, *, unit: int = 1) -> Iterator[SideChoice]:
    """Factors worth trying on a side.

    Parameters
    ----------
    size : int
        Extent of the side.
    unit : int
        Neighbours that belong together, such as the taps of a kernel: blocks are whole multiples of it.
    """
    if size < _SMALLEST:
        return
    if size <= _FULL_LIMIT:
        yield SideChoice(size, size)
    for width in _BLOCKS:
        block = max(unit, width // unit * unit)
        if size > block * 3 // 2 and block <= _FULL_LIMIT:
            yield SideChoice(block, block)
