"""Which tensors are worked on by tiles of their rows, and where the tiles are cut.

A constant of the method and not of the machine: how much memory there is must not change a basis. Must not know what is
done with a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["UNIT", "is_large", "is_tiled", "sampled_rows", "spread", "tile_extents"]

UNIT = 256
"""Rows of a tile are a multiple of this, and so of any block that a large side's factor may have."""

_LARGE_ELEMENTS = 1 << 28
_TILED_ELEMENTS = 1 << 24
_TILE_ELEMENTS = 1 << 21
_PLANNED_ELEMENTS = 1 << 22
_PLANNED_ROWS = 1280
"""More than the planner would take for a side that gets one whole factor."""


def is_large(elements: int) -> bool:
    """Whether an architecture has so many that means, and a basis's objects, lie on the disk while it is built."""
    return elements > _LARGE_ELEMENTS


def is_tiled(matrix: tuple[int, int]) -> bool:
    """Whether a tensor of this extent is worked on by tiles: a large one, of rows enough to be planned for by some."""
    return matrix[0] * matrix[1] > _TILED_ELEMENTS and matrix[0] > _PLANNED_ROWS


def tile_extents(matrix: tuple[int, int]) -> list[tuple[int, int]]:
    """First and last row of each tile: about two million elements, at least 256 rows."""
    m, n = matrix
    rows = max(1, _TILE_ELEMENTS // (max(1, n) * UNIT)) * UNIT
    return [(start, min(start + rows, m)) for start in range(0, m, rows)]


def sampled_rows(matrix: tuple[int, int]) -> list[tuple[int, int]]:
    """The tiles, spread over the rows, by which a tensor is planned for."""
    extents = tile_extents(matrix)
    rows = extents[0][1] - extents[0][0]
    # The last one may be short, and would be a ragged block between others.
    whole = [extent for extent in extents if extent[1] - extent[0] == rows]
    wanted = max(_PLANNED_ROWS, _PLANNED_ELEMENTS // max(1, matrix[1]))
    return spread(whole, -(-wanted // rows))


def spread(extents: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Pick some of a sequence, evenly, in its order."""
    count = min(count, len(extents))
    picked = np.unique(np.linspace(0, len(extents) - 1, count).round().astype(int))
    return [extents[index] for index in picked.tolist()]
