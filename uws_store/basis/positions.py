"""Where each coefficient of a read group stands in the group's stored sequence: the inverse of significance order.

A pool of small tensors keeps one index of the whole group. A tensor that is a group of its own keeps a table of
(rows x classes of columns) instead, from which the index is made in two passes when it is needed: the index of a
whole model would be as large as the model, and sorting it anew for each load costs more than the products do. Knows
nothing about storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from uws_store.entropy import significance_order

__all__ = ["KEPT_INDEX", "PoolPositions", "Positions", "TensorPositions", "positions_of"]

Profile = tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]
Integers = npt.NDArray[np.integer]

KEPT_INDEX = 1 << 22
"""A group of at most this many coefficients may keep an index of them all."""

# Above this many entries per coefficient a table is no smaller than the index it stands for.
_TABLE_SHARE = 2
# Entries of an index that are made at a time: what a core's own cache holds.
_INDEX_SLICE = 1 << 15
# Copying a piece costs about as much as looking so many coefficients up one by one.
_LEAST_PIECE = 512


@dataclass(frozen=True, slots=True)
class PoolPositions:
    """Positions of a group by an index of all its coefficients.

    Attributes
    ----------
    profiles : sequence of (rows, columns)
        Classes of each tensor, in coding order.
    index : numpy.ndarray or None
        int32 or int64: coefficient ``c`` of the concatenated cores is stored at ``index[c]``; None when it is too
        large to be kept.
    """

    profiles: Sequence[Profile]
    index: npt.NDArray[np.integer] | None

    @property
    def pooled(self) -> npt.NDArray[np.integer] | None:
        """The index, for who wants the coefficients in an order of their own."""
        return self.index

    def unsort(self, stored: Integers, out: Integers) -> None:
        """Put a group's stored sequence into coding order.

        Parameters
        ----------
        stored : numpy.ndarray
            The group's integers as stored, without padding.
        out : numpy.ndarray
            1-D, the same length and dtype; is filled.
        """
        if self.index is not None:
            np.take(stored, self.index, out=out, mode="clip")
        else:
            out[significance_order(self.profiles)] = stored

    def sort(self, values: Integers, out: Integers) -> None:
        """Put a group's integers, in coding order, into the order in which they are stored: undo :meth:`unsort`."""
        if self.index is not None:
            out[self.index] = values
        else:
            np.take(values, significance_order(self.profiles), out=out, mode="clip")


@dataclass(frozen=True, slots=True)
class Runs:
    """A tensor's rows and columns cut where the class changes: what two runs have in common is stored in one piece.

    Attributes
    ----------
    rows : tuple of (slice, tuple of int)
        Each run of rows, and where it begins in the stored sequence for each class of columns.
    columns : tuple of (int, int, slice, slice)
        Each run of columns: its class, how many columns of that class there are, which of those it is, and where it
        stands.
    """

    rows: tuple[tuple[slice, tuple[int, ...]], ...]
    columns: tuple[tuple[int, int, slice, slice], ...]

    def unsort(self, stored: Integers, out_pq: Integers) -> None:
        """Put the tensor's stored sequence into place."""
        for rows, starts in self.rows:
            height = rows.stop - rows.start
            for index, width, inside, columns in self.columns:
                start = starts[index]
                piece = stored[start : start + height * width].reshape(height, width)
                out_pq[rows, columns] = piece[:, inside]

    def sort(self, values_pq: Integers, out: Integers) -> None:
        """Undo :meth:`unsort`."""
        for rows, starts in self.rows:
            height = rows.stop - rows.start
            for index, width, inside, columns in self.columns:
                start = starts[index]
                piece = out[start : start + height * width].reshape(height, width)
                piece[:, inside] = values_pq[rows, columns]

    @classmethod
    def of(
        cls,
        rows_p: npt.NDArray[np.int16],
        starts_pk: npt.NDArray[np.intp],
        class_q: npt.NDArray[np.intp],
        rank_q: npt.NDArray[np.intp],
    ) -> Runs | None:
        """Find the runs; None when they are so short that an index of all coefficients is faster."""
        row_cuts, column_cuts = _cuts(rows_p), _cuts(class_q)
        if (len(row_cuts) - 1) * (len(column_cuts) - 1) * _LEAST_PIECE > len(rows_p) * len(class_q):
            return None
        widths = np.bincount(class_q).tolist()
        rows = tuple(
            (slice(start, stop), tuple(starts_pk[start].tolist())) for start, stop in pairwise(row_cuts)
        )
        columns = tuple(
            (
                int(class_q[start]),
                widths[class_q[start]],
                slice(int(rank_q[start]), int(rank_q[start]) + stop - start),
                slice(start, stop),
            )
            for start, stop in pairwise(column_cuts)
        )
        return cls(rows, columns)


def _cuts(values: npt.NDArray[np.integer]) -> list[int]:
    """Where a sequence begins, changes, and ends."""
    return [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]


@dataclass(frozen=True, slots=True)
class TensorPositions:
    """Positions of a group of one tensor.

    Attributes
    ----------
    starts_pk : numpy.ndarray
        Machine words, (p x classes): where the run of row ``i`` and a class of columns begins.
    class_q : numpy.ndarray
        int64, (q,): each column's class, as an index into the second axis of ``starts_pk``.
    rank_q : numpy.ndarray
        Machine words, (q,): a column's place among the columns of its class.
    runs : Runs or None
        Where neighbours are of one class, when that is mostly so.
    """

    starts_pk: npt.NDArray[np.intp]
    class_q: npt.NDArray[np.intp]
    rank_q: npt.NDArray[np.intp]
    runs: Runs | None

    @property
    def pooled(self) -> None:
        """No index is kept."""
        return

    def unsort(self, stored: Integers, out: Integers) -> None:
        """Put the tensor's stored sequence into row-major order; as :meth:`PoolPositions.unsort`."""
        p, q = len(self.starts_pk), len(self.class_q)
        if self.runs is not None:
            self.runs.unsort(stored, out.reshape(p, q))
            return
        for start, index in self._indexes():
            np.take(stored, index, out=out[start : start + len(index)], mode="clip")

    def sort(self, values: Integers, out: Integers) -> None:
        """Put the tensor's integers, row by row, into the order in which they are stored: undo :meth:`unsort`."""
        p, q = len(self.starts_pk), len(self.class_q)
        if self.runs is not None:
            self.runs.sort(values.reshape(p, q), out)
            return
        for start, index in self._indexes():
            out[index] = values[start : start + len(index)]

    def _indexes(self) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Where the coefficients are stored, some rows at a time: the first one's number, and the places."""
        p, q = len(self.starts_pk), len(self.class_q)
        rows = max(1, _INDEX_SLICE // q)
        index = np.empty((min(rows, p), q), np.intp)
        for start in range(0, p, rows):
            part = index[: min(rows, p - start)]
            np.take(self.starts_pk[start : start + rows], self.class_q, axis=1, out=part, mode="clip")
            part += self.rank_q
            yield start * q, part.reshape(-1)


Positions = PoolPositions | TensorPositions


def positions_of(profiles: Sequence[Profile]) -> Positions:
    """Work the positions of a read group out from the profiles of its tensors, in coding order."""
    count = sum(len(rows) * len(columns) for rows, columns in profiles)
    if len(profiles) == 1 and count < 1 << 31:
        found = _table(*profiles[0])
        if found is not None:
            return found
    if count > KEPT_INDEX:
        return PoolPositions(profiles, None)
    index = np.empty(count, np.int32)
    index[significance_order(profiles)] = np.arange(count, dtype=np.int32)
    # Indexed by machine words: a narrower index is widened on each use.
    return PoolPositions(profiles, index.astype(np.intp))


def _table(rows_p: npt.NDArray[np.int16], columns_q: npt.NDArray[np.int16]) -> TensorPositions | None:
    values_k, class_q, counts_k = np.unique(columns_q, return_inverse=True, return_counts=True)
    falling_pk = -(rows_p.astype(np.int64)[:, None] + values_k.astype(np.int64)[None, :])
    falling_pk -= falling_pk.min()
    classes = int(falling_pk.max()) + 1
    p, k = falling_pk.shape
    if p * max(classes, k) > _TABLE_SHARE * p * len(columns_q):
        return None
    # How many coefficients of each class the rows hold, so that runs of one class follow each other row by row.
    held_pc = np.zeros((p, classes), np.int64)
    np.put_along_axis(held_pc, falling_pk, np.broadcast_to(counts_k, (p, k)), axis=1)
    totals_c = held_pc.sum(0)
    first_c = np.cumsum(totals_c) - totals_c
    held_pc = np.cumsum(held_pc, axis=0) - held_pc
    starts_pk = first_c[falling_pk] + np.take_along_axis(held_pc, falling_pk, axis=1)
    order = np.argsort(class_q, kind="stable")
    rank_q = np.empty(len(columns_q), np.intp)
    ends = np.cumsum(counts_k)
    rank_q[order] = np.arange(len(columns_q)) - np.repeat(ends - counts_k, counts_k)
    starts_pk, class_q = starts_pk.astype(np.intp), class_q.astype(np.intp)
    return TensorPositions(starts_pk, class_q, rank_q, Runs.of(rows_p, starts_pk, class_q, rank_q))
