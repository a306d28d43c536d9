"""Products of two factors for the independent reader: ranks, scales and gauges, in whole numbers.

Written from spec/uws-1.md, section 11.5. Values of a dtype are taken apart into a whole number and an exponent of two,
so that nothing rounds but where the section says so.
"""

from __future__ import annotations

import base64
import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import independent_arrays
import numpy as np
from independent_arithmetic import round_to
from independent_documents import KINDS, Json, Refusal, require

Product = tuple[dict[str, Json], dict[str, Json]]


class Gauge(NamedTuple):
    """The numbers of one factor."""

    factor_grid: int
    grid: int
    matrix: list[list[int]]


def products_of(rows: list[dict[str, Json]]) -> list[Product]:
    """The left and the right row of each product, by number."""
    found = {(row["low_rank"]["product"], row["low_rank"]["side"]): row for row in rows if "low_rank" in row}
    return [(found[number, "left"], found[number, "right"]) for number in range(len(found) // 2)]


def check_products(rows: list[dict[str, Json]]) -> None:
    found: dict[int, dict[str, dict[str, Json]]] = {}
    for row in rows:
        if "low_rank" in row:
            require(row["mode"] == "coded", "R-RANK-1", row["name"])
            require(len(row["shape"]) > 1, "R-RANK-1", f"{row['name']}: one size")
            sides = found.setdefault(row["low_rank"]["product"], {})
            require(row["low_rank"]["side"] not in sides, "R-RANK-1", f"{row['name']}: a side twice")
            sides[row["low_rank"]["side"]] = row
    require(set(found) == set(range(len(found))), "R-RANK-1", "numbers")
    for sides in found.values():
        require(len(sides) == 2, "R-RANK-1", "one factor")
        left, right = sides["left"]["shape"], sides["right"]["shape"]
        require(math.prod(left[2:]) == 1 and left[1] == right[0], "R-RANK-1", f"{left} and {right}")


def with_rank(shape: tuple[int, ...], place: tuple[int, int]) -> tuple[int, ...]:
    axis, rank = place
    return (*shape[:axis], rank, *shape[axis + 1 :])


def read_products(
    folder: Path, document: dict[str, Json], products: list[Product], coded: set[str]
) -> tuple[dict[str, tuple[int, int]], dict[str, list[int]], dict[str, Gauge]]:
    """Per factor that is coded in a model: axis and rank, exponents of its slices, its gauge."""
    here: list[Product] = []
    for left, right in products:
        both = (left["name"] in coded, right["name"] in coded)
        require(both[0] == both[1], "R-RANK-2", f"one factor of {left['name']}")
        if both[0]:
            here.append((left, right))
    ranks = document.get("ranks") or [left["shape"][1] for left, _ in here]
    ranks = ranks * len(here) if len(ranks) == 1 else ranks
    require(len(ranks) == len(here), "R-RANK-2", f"{len(ranks)} ranks of {len(here)}")
    for rank, (left, _) in zip(ranks, here, strict=True):
        require(rank <= left["shape"][1], "R-RANK-2", f"{left['name']}: {rank}")
    try:
        signed = [
            (byte + 128) % 256 - 128 for byte in base64.b64decode(document.get("scales", ""), validate=True)
        ]
    except ValueError as error:
        raise Refusal("R-RANK-3", "not base64") from error
    require(all(abs(value) <= 64 for value in signed), "R-RANK-3", "range")
    if "scales" not in document:
        signed = [0] * sum(ranks)
    require(len(signed) == sum(ranks), "R-RANK-3", f"{len(signed)} of {sum(ranks)}")
    array = document.get("gauge")
    require(array is None or "exact" in document, "R-RANK-4", "a gauge without the tier")
    require(array is None or array["dtype"] == "int16", "R-ARRAY-2", "gauge")
    numbers = [int(value) for value in independent_arrays.read_array(folder, "gauge", array)]
    needed = sum(2 * (2 + rank * rank) for rank in ranks)
    require(array is None or len(numbers) == needed, "R-RANK-4", f"{len(numbers)} of {needed}")
    axes: dict[str, tuple[int, int]] = {}
    scales: dict[str, list[int]] = {}
    gauges: dict[str, Gauge] = {}
    for rank, pair in zip(ranks, here, strict=True):
        own, signed = signed[:rank], signed[rank:]
        for axis, row in zip((1, 0), pair, strict=True):
            axes[row["name"]], scales[row["name"]] = (axis, rank), own
            if array is not None:
                flat, numbers = numbers[: 2 + rank * rank], numbers[2 + rank * rank :]
                require(max(abs(flat[0]), abs(flat[1])) <= 256, "R-RANK-4", "a grid")
                gauges[row["name"]] = Gauge(
                    flat[0], flat[1], [flat[2 + i * rank : 2 + (i + 1) * rank] for i in range(rank)]
                )
    return axes, scales, gauges


def slice_exponents(matrix: tuple[int, int], scales: list[int], side: str) -> list[int]:
    """The exponent of each element; those beyond the rank are not used."""
    m, n = matrix
    whole = [*scales, *([0] * ((n if side == "left" else m) - len(scales)))]
    return [whole[j if side == "left" else i] for i in range(m) for j in range(n)]


def through_gauge(
    data: bytes, matrix: tuple[int, int], scales: list[int], gauge: Gauge, side: str, dtype: str
) -> bytes:
    m, n = matrix
    size = KINDS[dtype].size
    values = [value_of(data[at : at + size], dtype) for at in range(0, len(data), size)]
    whole = [
        [
            round(values[i * n + j] * Fraction(2) ** (scales[j if side == "left" else i] + gauge.factor_grid))
            for j in range(n)
        ]
        for i in range(m)
    ]
    k, g = np.array(whole, object), np.array(gauge.matrix, object)
    product = k @ g if side == "left" else g @ k
    exponent = -(gauge.factor_grid + gauge.grid)
    return b"".join(round_to(int(value), exponent, dtype) for value in product.reshape(-1))


def value_of(data: bytes, dtype: str) -> Fraction:
    """The number that finite bits stand for."""
    kind = KINDS[dtype]
    bits = int.from_bytes(data, "little")
    sign = -1 if bits >> (8 * kind.size - 1) else 1
    field, fraction = divmod(bits & ((1 << (8 * kind.size - 1)) - 1), 1 << (kind.precision - 1))
    significand = fraction + (1 << (kind.precision - 1) if field else 0)
    return sign * significand * Fraction(2) ** (max(field, 1) - 1 + kind.min_exponent - (kind.precision - 1))
