"""The arithmetic of the independent reader: whole numbers only, and one rounding at the end.

Written from spec/uws-1.md, sections 9 to 12. Products are summed in int64 with the last column first; everything
after them is done with Python's unbounded integers, so nothing here can round or overflow by accident.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from independent_documents import KINDS, Json, require

Ints = npt.NDArray[np.int64]


@dataclass
class Side:
    """One factor: per block its first row and its lifted integers; ``grid`` is their common exponent."""

    size: int
    blocks: list[tuple[int, Ints]]
    grid: int

    def times(self, columns_kn: Ints) -> Ints:
        """Multiply, one column after the other, the last first."""
        out = np.zeros((self.size, columns_kn.shape[1]), np.int64)
        at = len(columns_kn)
        for start, block in reversed(self.blocks):
            at -= block.shape[1]
            for column in reversed(range(block.shape[1])):
                out[start : start + len(block)] += block[:, column, None] * columns_kn[None, at + column]
        return out

    def magnitude(self) -> Side:
        return Side(self.size, [(start, np.abs(block)) for start, block in self.blocks], self.grid)


@dataclass
class Coded:
    """A coded tensor's numbers."""

    row: dict[str, Json]
    matrix: tuple[int, int]
    core_shape: tuple[int, int]
    mean: Ints
    left: Side | None
    right: Side | None
    classes: Ints


def matrix_of(shape: list[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def side_counts(side: dict[str, int] | None, size: int) -> tuple[int, int]:
    """Stored integers and columns."""
    if side is None:
        return 0, size
    whole, rest = divmod(size, side["block"])
    last = min(side["rank"], rest)
    return whole * side["block"] * side["rank"] + rest * last, whole * side["rank"] + last


def make_side(side: dict[str, int] | None, size: int, integers: Ints, exponents: Ints) -> Side | None:
    if side is None:
        return None
    grid = int(exponents.max())
    good = grid <= 60 and exponents.min() >= -60 and grid - exponents.min() <= 32
    require(good, "R-FACTOR-3", f"exponents {exponents.min()} to {grid}")
    blocks, entry, column = [], 0, 0
    for start in range(0, size, side["block"]):
        rows = min(side["block"], size - start)
        columns = min(side["rank"], rows)
        block = integers[entry : entry + rows * columns].reshape(rows, columns)
        blocks.append((start, block << (grid - exponents[column : column + columns])[None, :]))
        entry, column = entry + rows * columns, column + columns
    return Side(size, blocks, grid)


FRACTION_BITS = 10


def halve_even(values: Ints, shift: int) -> Ints:
    """Divide by ``2**shift`` and round to nearest, ties to even."""
    if shift <= 0:
        return values << -shift
    floor = values >> shift
    rest = values - (floor << shift)
    half = 1 << (shift - 1)
    up: Ints = ((rest > half) | ((rest == half) & (floor & 1 == 1))).astype(np.int64)
    return floor + up


def check_exactness(tensor: Coded, core_pq: Ints, step: dict[str, int], first_pn: Ints) -> None:
    """The encoder's duty: no sum of absolute values reaches 2**53. Python's integers cannot overflow."""

    def sums(side: Side | None, values: Ints) -> list[int]:
        """Bound the sums over the first axis, for each column of the product."""
        if side is None:
            return [int(value) for value in np.abs(values).max(axis=0, initial=0)]
        widest = [int(column) for _, block in side.blocks for column in np.abs(block).max(axis=0)]
        rows = [[int(value) for value in row] for row in np.abs(values)]
        return [sum(w * row[j] for w, row in zip(widest, rows, strict=True)) for j in range(values.shape[1])]

    grid, first = 0, max(sums(tensor.right, core_pq.T), default=0)
    second = max(sums(tensor.left, first_pn), default=0)
    grid = FRACTION_BITS + (tensor.left.grid if tensor.left else 0)
    change = step["exponent"] - tensor.row["shift"] - grid
    finest = min(change, -tensor.row["mean_grid"])
    peak = max(abs(int(tensor.mean.max())), abs(int(tensor.mean.min())))
    scaled = second * step["mantissa"]
    total = (scaled << (change - finest)) + (peak << (-tensor.row["mean_grid"] - finest))
    require(max(first, second, scaled, total) < 2**53, "R-EXACT-1", tensor.row["name"])


def predict(
    tensor: Coded,
    core_pq: Ints | None,
    step: dict[str, int],
    dtype: str,
    scales: list[int] | None = None,
) -> bytes:
    """Reconstruct a tensor with whole numbers, and round it once; ``scales`` are exponents of each element."""
    by_element = scales if scales is not None else [0] * tensor.mean.size
    mean_exponent = -tensor.row["mean_grid"]
    mean = [int(value) for value in tensor.mean.reshape(-1)]
    if core_pq is None:
        return b"".join(
            round_to(value, mean_exponent + scale, dtype)
            for value, scale in zip(mean, by_element, strict=True)
        )
    first_pn, shift = core_pq, -FRACTION_BITS
    if tensor.right is not None:
        first_pn, shift = tensor.right.times(core_pq.T).T, tensor.right.grid - FRACTION_BITS
    first_pn = halve_even(first_pn, shift)
    check_exactness(tensor, core_pq, step, first_pn)
    change_exponent = step["exponent"] - tensor.row["shift"] - FRACTION_BITS
    change_mn = first_pn
    if tensor.left is not None:
        change_mn = tensor.left.times(first_pn)
        change_exponent -= tensor.left.grid
    finest = min(change_exponent, mean_exponent)
    change = (int(value) * step["mantissa"] for value in change_mn.reshape(-1))
    return b"".join(
        round_to((c << (change_exponent - finest)) + (m << (mean_exponent - finest)), finest + scale, dtype)
        for c, m, scale in zip(change, mean, by_element, strict=True)
    )


def round_to(value: int, exponent: int, dtype: str) -> bytes:
    """Round ``value * 2**exponent`` to the nearest of a type: ties to even, saturating, the sign kept."""
    kind = KINDS[dtype]
    if value == 0:
        return bytes(kind.size)
    magnitude = abs(value)
    quantum = max(magnitude.bit_length() - 1 + exponent, kind.min_exponent) - (kind.precision - 1)
    if quantum <= exponent:
        significand = magnitude << (exponent - quantum)
    else:
        shift = quantum - exponent
        significand, rest = magnitude >> shift, magnitude & ((1 << shift) - 1)
        half = 1 << (shift - 1)
        significand += rest > half or (rest == half and significand & 1)
    # A carry runs into the exponent by itself: bit patterns are in the order of the numbers.
    biased = quantum - (kind.min_exponent - (kind.precision - 1))
    bits = min((biased << (kind.precision - 1)) + significand, kind.largest)
    sign = (value < 0) << (8 * kind.size - 1)
    return (sign | bits).to_bytes(kind.size, "little")


def correct(prediction: bytes, residual: npt.NDArray[Any], dtype: str) -> bytes:
    """Add the residual to the prediction's ordered integers, modulo the width, in unsigned arithmetic."""
    size = KINDS[dtype].size
    mask = np.uint64((1 << 8 * size) - 1)
    sign = np.uint64(1 << (8 * size - 1))
    bits = np.frombuffer(prediction, f"<u{size}").astype(np.uint64)
    ordered = np.where(bits & sign, ~(bits ^ sign) & mask, bits)
    folded = residual.astype(np.uint64)
    one_bit = np.uint64(1)
    difference = (folded >> one_bit) ^ (np.uint64(0) - (folded & one_bit))
    ordered = (ordered + difference) & mask
    bits = np.where(ordered & sign, (~ordered & mask) | sign, ordered)
    return bits.astype(f"<u{size}").tobytes()


def exponents(prediction: bytes, dtype: str) -> list[int | None]:
    """The e of |P| = f * 2**e, 0.5 <= f < 1, read off the bit patterns; None for zeros."""
    kind = KINDS[dtype]
    found: list[int | None] = []
    for start in range(0, len(prediction), kind.size):
        magnitude = int.from_bytes(prediction[start : start + kind.size], "little") & (
            (1 << 8 * kind.size - 1) - 1
        )
        field, fraction = divmod(magnitude, 1 << (kind.precision - 1))
        if field:
            found.append(field + kind.min_exponent)
        elif fraction:
            found.append(fraction.bit_length() + kind.min_exponent - (kind.precision - 1))
        else:
            found.append(None)
    return found


def falling(classes: list[int]) -> list[int]:
    """Indexes by falling class, equals in their order."""
    return [index for _, index in sorted((-value, index) for index, value in enumerate(classes))]
