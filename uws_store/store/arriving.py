"""Arrays that are fetched in threads of their own, so that what came of them is decoded while the rest is on its way.

Owns in how many requests an array is fetched, and that no thread is left behind. Knows nothing about what is decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from uws_store.store.reading import ArrayReader

__all__ = ["Arriving", "read_whole"]

LEAST_PIECE_BYTES = 1 << 20
"""A piece is no smaller: below it, waiting for one more answer takes as long as decoding."""

_LARGE_BYTES = 1 << 20
# Of an array that is read whole: it takes seconds to come where a model's takes tenths.
_MOST_WHOLE_PIECES = 4
_LEAST_WHOLE_PIECE_BYTES = 8 << 20


class Arriving:
    """Several arrays on their way into memory: a context in which reads of them wait for their bytes.

    Where it ends with an error, or without :meth:`finish`, what was fetched is dropped.

    Parameters
    ----------
    readers : sequence of ArrayReader
        The arrays. Those that lie on this machine are held before the context begins.
    requests : int
        How many requests they may take together; each takes one for every shard in any case.
    stopped : threading.Event, optional
        When it is set, nothing more is asked for.
    """

    def __init__(
        self, readers: Sequence[ArrayReader], *, requests: int = 0, stopped: threading.Event | None = None
    ) -> None:
        self._readers = readers
        self._pieces = _pieces_of(readers, requests)
        self._given = stopped
        self._left = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._fetching: list[Future[None]] = []
        self._finished = False

    def __enter__(self) -> Self:
        near = [reader for reader in self._readers if reader.is_near]
        try:
            if sum(reader.record.size_bytes for reader in near) < _LARGE_BYTES:
                for reader in near:
                    reader.hold()
                near = []
            far = [reader for reader in self._readers if not reader.is_near]
            if near or far:
                self._pool = ThreadPoolExecutor(len(near) + len(far), thread_name_prefix="uws-fetch")
                holding = [self._pool.submit(reader.hold) for reader in near]
                for reader in far:
                    reader.begin(self._pieces[reader])
                    self._fetching.append(self._pool.submit(reader.fetch, self._is_stopped))
                for held in holding:
                    held.result()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def finish(self) -> None:
        """Wait until everything came and was found to have the digests on record.

        Raises
        ------
        FormatError
            Damaged or missing shards (kinds ``format/...``).
        """
        for fetching in self._fetching:
            fetching.result()
        # Nothing is left to be done but where another thread fetched it, and gave up.
        for reader in self._readers:
            reader.hold()
        self._finished = True

    def _is_stopped(self) -> bool:
        return self._left.is_set() or (self._given is not None and self._given.is_set())

    def _leave(self) -> None:
        self._left.set()
        if self._pool is not None:
            self._pool.shutdown()
        if not self._finished:
            for reader in self._readers:
                reader.release()


def read_whole(readers: Sequence[ArrayReader]) -> list[npt.NDArray[Any]]:
    """Read arrays whole, 32-bit integers in 16 bits where they fit; all at the same time where it pays.

    Each is decoded while it comes, and takes a request for every shard or, where it is large, a few.

    Raises
    ------
    FormatError
        Damaged or missing shards (kinds ``format/...``).
    """
    if all(reader.is_near and reader.record.size_bytes < _LARGE_BYTES for reader in readers):
        return [_alone(reader) for reader in readers]
    with ThreadPoolExecutor(len(readers), thread_name_prefix="uws-read") as pool:
        return list(pool.map(_alone, readers))


def _alone(reader: ArrayReader) -> npt.NDArray[Any]:
    if reader.is_near:
        return reader.read(narrow=True)
    most = reader.record.size_bytes // _LEAST_WHOLE_PIECE_BYTES
    with Arriving([reader], requests=min(most, _MOST_WHOLE_PIECES)) as arriving:
        values = reader.read(narrow=True)
        arriving.finish()
    reader.release()
    return values


def _pieces_of(readers: Sequence[ArrayReader], requests: int) -> dict[ArrayReader, int]:
    """Share requests among arrays, the largest first: those of one shard may come in several pieces."""
    pieces = dict.fromkeys(readers, 1)
    spare = requests - sum(len(reader.record.shards) for reader in readers)
    growing = sorted(
        (reader for reader in readers if len(reader.record.shards) == 1),
        key=lambda reader: -reader.record.size_bytes,
    )
    while spare > 0 and growing:
        growing = [r for r in growing if r.record.size_bytes // LEAST_PIECE_BYTES > pieces[r]]
        for reader in growing[:spare]:
            pieces[reader] += 1
        spare -= len(growing)
    return pieces
