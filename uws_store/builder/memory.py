"""How much memory a build will take at its peak, told before anything is read.

Owns the arithmetic, phase by phase, from shapes alone, and the choice of how much may run at once. The terms count
arrays as the code holds them; what allocators waste is one factor. Must not know about files.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uws_store.basis import is_large_basis
from uws_store.builder.fit import held_members
from uws_store.builder.tiles import is_large, is_tiled, sampled_rows, tile_extents
from uws_store.errors import InvalidInputError, MemoryLimitError

__all__ = ["MemoryProjection", "available_bytes", "give_back", "parse_bytes", "resident_bytes"]

_WASTE = 1.2
_REAL = 8
"""Bytes of a float64."""

_WORKER_BYTES = 450 << 20
"""A worker's process before it has read anything: the interpreter and torch."""

_LAZY_BYTES = 160 << 20
"""What libraries take when they are first used."""

_FULL_SIDE, _WIDE_BLOCK = 1024, 256
"""Extent of a side beyond which its factor is in blocks, and how wide these are at most."""

_FOLDS, _FOLDED_MODELS, _FOLDED_ELEMENTS = 4, 16, 1 << 18
"""How often the planner fits a tensor that is this small at most."""

_SAMPLED, _BASIS_HELD, _SHARD = 1 << 27, 1 << 26, 1 << 29
"""Coefficients that the search looks at, that are held of a basis read tensor by tensor, and of a shard."""

_UNKNOWN_BASE_BYTES = 400 << 20
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1 << 10 * _power, f"{_letter}ib": 1 << 10 * _power, f"{_letter}b": 1000**_power}
_USABLE_SHARE = 0.8


def parse_bytes(text: str | int) -> int:
    """Read a size such as ``8GiB``, ``500MB`` or ``2g`` (binary) or a number of bytes.

    Raises
    ------
    InvalidInputError
        Kind ``invalid-input/memory``.
    """
    words = str(text).strip().lower()
    digits = words.rstrip("kmgtib ")
    unit = words[len(digits) :].strip()
    try:
        value = float(digits) * _UNITS[unit]
    except (ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{text!r} is no size; write 8GiB, 500MiB or a number of bytes", kind="invalid-input/memory"
        ) from error
    if not 0 < value < math.inf:
        raise InvalidInputError(f"a size is above 0, not {text!r}", kind="invalid-input/memory")
    return int(value)


def available_bytes() -> int | None:
    """Tell how much memory a build may take when nobody says: four fifths of what is free; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(int(fields["MemAvailable"].split()[0]) * 1024 * _USABLE_SHARE) + resident_bytes()
    except (OSError, KeyError, ValueError):
        return None


def resident_bytes() -> int:
    """Memory of this process now; a usual amount where the system does not tell."""
    try:
        statistics = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in statistics.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return _UNKNOWN_BASE_BYTES


def give_back() -> None:
    """Return what this process has freed to the system, where its allocator can be told to.

    The C library keeps what a thread freed for that thread: after work in several threads, much memory is nobody's.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@dataclass(frozen=True, slots=True)
class MemoryProjection:
    """What a build will need.

    Attributes
    ----------
    matrices : tuple of (int, int)
        Rows and columns of each tensor of the architecture.
    members : int
        Models of the zoo.
    sampled : int
        Models whose coefficients are kept for the search of the step.
    source_bytes : int
        Bytes of one element as stored in the zoo.
    exact : bool
        Whether residuals are made.
    pinned_bytes : int
        Slices that stay in memory between the passes in any case.
    base_bytes : int
        This process before it begins.
    worker_bytes : int
        What each worker takes besides its work: 0 where workers share this process's memory.
    crossed : bool
        Whether the sampled models are coded by fits of the others, too.
    """

    matrices: tuple[tuple[int, int], ...]
    members: int
    sampled: int
    source_bytes: int
    exact: bool
    pinned_bytes: int
    base_bytes: int
    worker_bytes: int = 0
    crossed: bool = False

    @classmethod
    def of(
        cls,
        shapes: Iterable[Sequence[int]],
        *,
        members: int,
        sampled: int,
        source_bytes: int,
        exact: bool,
        pinned_bytes: int = 0,
        shares_memory: bool = True,
        crossed: bool = False,
    ) -> MemoryProjection:
        """Project from the shapes of an architecture, in this process as it is now."""
        return cls(
            tuple(
                (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
                for shape in shapes
            ),
            members,
            sampled,
            source_bytes,
            exact,
            pinned_bytes,
            resident_bytes(),
            0 if shares_memory else _WORKER_BYTES,
            crossed,
        )

    @property
    def elements(self) -> list[int]:
        """Elements of each tensor."""
        return [rows * columns for rows, columns in self.matrices]

    def deriving_bytes(self, workers: int) -> int:
        """Peak until the basis is made: surveying, fitting, the search of the step, assembling."""
        whole = sum(self.elements)
        if is_large(whole):
            return self._total(workers, self._deriving_large(workers) + self.pinned_bytes)
        survey = self._largest(workers, self._survey_bytes)
        # Of a large zoo only a part is crossed, which may be most of it where one tensor is.
        fits = whole * (_REAL + 4 * self.sampled * (1 + self.crossed))
        fitting = fits + self._largest(workers, self._fit_bytes)
        # The mean on its grid, packed, encoded and read back; the order of all coefficients and what is sorted by it.
        assembling = fits + whole * 30
        # A zoo that stays in memory is compared with a plain coder: integers of both for the sampled models, the order of
        # one model's, and the weights of one tensor with what they are quantised by.
        comparing = 0.0
        if self.pinned_bytes:
            comparing = fits + whole * (8 * self.sampled + 24)
            comparing += max(self.elements, default=0) * self.sampled * 4 * _REAL
        return self._total(workers, max(survey, fitting, assembling, comparing) + self.pinned_bytes)

    def encoding_bytes(self, workers: int) -> int:
        """Peak while models are encoded."""
        whole, largest = sum(self.elements), max(self.elements, default=0)
        if is_large_basis(whole):
            return self._total(workers, self._encoding_large(workers))
        basis = whole * 20
        model = whole * (16 + (2 * self.source_bytes + 10 if self.exact else 0)) + largest * 12 * _REAL
        return self._total(workers, basis + workers * model)

    def peak_bytes(self, workers: int) -> int:
        """The larger of the two."""
        return max(self.deriving_bytes(workers), self.encoding_bytes(workers))

    def fitting_workers(self, workers: int, limit_bytes: int | None) -> int:
        """How many pieces may run at once.

        Raises
        ------
        MemoryLimitError
            When not even one may (kind ``memory-limit/build``).
        """
        if limit_bytes is None:
            return workers
        for count in range(workers, 0, -1):
            if self.peak_bytes(count) <= limit_bytes:
                return count
        largest = max(self.elements, default=0)
        raise MemoryLimitError(
            f"this build needs {self.peak_bytes(1) / 2**30:.2f} GiB with one worker and may take "
            f"{limit_bytes / 2**30:.2f} GiB; nothing was read. Its largest tensor has {largest:,} elements in each of "
            f"{self.members} models. Give more with --memory, or build where there is more",
            kind="memory-limit/build",
        )

    def room_bytes(self, workers: int, limit_bytes: int | None) -> int:
        """What is left for slices that are kept between the passes: no more than there are."""
        if limit_bytes is None or self.worker_bytes:
            return 0
        zoo = sum(self.elements) * self.members * self.source_bytes - self.pinned_bytes
        return max(0, min(int((limit_bytes - self.deriving_bytes(workers)) / _WASTE), zoo))

    def with_room_bytes(self, workers: int, limit_bytes: int | None) -> int:
        """Peak when as many slices are kept as there is room for."""
        kept = int(_WASTE * self.room_bytes(workers, limit_bytes))
        return max(self.deriving_bytes(workers) + kept, self.encoding_bytes(workers))

    def _total(self, workers: int, arrays_bytes: float) -> int:
        return int(self.base_bytes + _LAZY_BYTES + workers * self.worker_bytes + _WASTE * arrays_bytes)

    def _deriving_large(self, workers: int) -> float:
        """Bytes of arrays until the basis is made, where means and objects lie on the disk."""
        whole, largest = sum(self.elements), max(self.elements, default=0)
        # Factors at 16 bits, and what the search of the step looks at.
        factors = 2 * sum(m * min(m, _WIDE_BLOCK) + n * min(n, _WIDE_BLOCK) for m, n in self.matrices)
        sampled = min(whole, _SAMPLED)
        fits = factors + sampled * 4 * self.sampled * (1 + self.crossed)
        survey = self._largest(workers, self._survey_bytes)
        fitting = fits + self._largest(workers, self._fit_bytes)
        searching = fits + sampled * 30
        # Touched of one tensor's mean and of the mean on its grid, a shard of it encoded and put together.
        shard = min(whole, _SHARD)
        assembling = fits + max(2 * factors, largest * _REAL + shard * 4 * 3)
        return max(survey, fitting, searching, assembling)

    def _encoding_large(self, workers: int) -> float:
        """Bytes of arrays while models are encoded, where the basis is read tensor by tensor."""
        largest = max(self.elements, default=0)
        # A tensor as stored, and its mean as it is read, joined, and held.
        loading = largest * (self.source_bytes + 12)
        # The tensor, what readers make of it, its mean, its integers twice; residuals and their classes as they are joined.
        coding = max(largest, _BASIS_HELD) * 4 + largest * (
            2 * self.source_bytes + 8 + (8 if self.exact else 0)
        )
        coding += self._tile(largest) * 12 * _REAL
        # A read group's integers and its residuals before and after, and the residuals' classes; a shard of all.
        packing = largest * (4 + 8 + (2 * max(2, self.source_bytes) + 2 if self.exact else 0)) + largest // 4
        shard = min(sum(self.elements), _SHARD) * 4 * 2
        return workers * max(loading, coding, packing, shard)

    def _tile(self, most: int) -> int:
        """Elements of the largest piece of a tensor that is worked on at once."""
        pieces = [
            max(stop - start for start, stop in tile_extents((m, n))) * n if is_tiled((m, n)) else m * n
            for m, n in self.matrices
        ]
        return max(pieces, default=most)

    def _survey_bytes(self, m: int, n: int) -> int:
        """A slice as stored and the one read ahead, its values, their squares, the sum."""
        rows = tile_extents((m, n))[0][1] if is_tiled((m, n)) else m
        return rows * n * (2 * self.source_bytes + 3 * _REAL)

    def _tiled_bytes(self, m: int, n: int) -> int:
        """Fitting by tiles: the planner's, then a tile of all members and the moments, then the result as it is kept."""
        planned = sum(stop - start for start, stop in sampled_rows((m, n)))
        rows = tile_extents((m, n))[0][1]
        seen = held_members(planned * n, self.members) * planned * n * self.source_bytes
        planning = seen + self._whole_bytes(planned, n)
        sides = n * (n if n <= _FULL_SIDE else _WIDE_BLOCK) + rows * _WIDE_BLOCK
        factors = 2 * (m * _WIDE_BLOCK + n * min(n, _FULL_SIDE))
        at_once = rows * n * (self.members * self.source_bytes + 8 * _REAL)
        fitting = seen + at_once + 4 * _REAL * sides + factors
        return max(planning, fitting, m * n * 4 * 4 + factors)

    def _fit_bytes(self, m: int, n: int) -> int:
        return self._tiled_bytes(m, n) if is_tiled((m, n)) else self._whole_bytes(m, n)

    def _whole_bytes(self, m: int, n: int) -> int:
        held = held_members(m * n, self.members)
        # The changes, the planner's own copy, and what it measures a candidate with; moments and their eigenvectors.
        sides = sum(size * (size if size <= _FULL_SIDE else _WIDE_BLOCK) for size in (m, n))
        # A small zoo is fitted several times over, and each of these fits keeps its moments and factors.
        folds = _FOLDS if held <= _FOLDED_MODELS and m * n <= _FOLDED_ELEMENTS else 1
        return _REAL * (m * n * (2 * held + 16) + (4 + 4 * folds) * sides)

    def _largest(self, workers: int, need: Callable[[int, int], int]) -> int:
        return sum(sorted((need(m, n) for m, n in self.matrices), reverse=True)[:workers])
