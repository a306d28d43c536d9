"""Reading one packed Zarr array, whole or by ranges.

A reader must know how many requests it makes, must allocate nothing that a file merely claims, and must treat a
missing chunk as an error and never as zeros. Knows nothing about models, bases or names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from uws_store import layout
from uws_store.entropy import decode_integers
from uws_store.errors import FormatError, NotFoundError
from uws_store.metadata.arrays import SHARD_CHUNKS, ArrayRecord
from uws_store.storage import CachedStorage, LocalStorage, MemoryStorage, Storage, dropped_if_damaged
from uws_store.store.shards import ShardBytes, checked_chunk, index_bytes, parse_index, verify_object

__all__ = ["ArrayReader"]

Array = npt.NDArray[Any]


class ArrayReader:
    """Reads of one stored array; threads may share it.

    Parameters
    ----------
    storage : Storage
        Where the objects lie.
    prefix : str
        Folder of the group that owns the array.
    name : str
        The array's name in the group.
    record : ArrayRecord
        What the owning document says of it.
    """

    def __init__(self, storage: Storage, prefix: str, *, name: str, record: ArrayRecord) -> None:
        self._storage = storage
        self._prefix = prefix
        self._name = name
        self.record = record
        self._indexes: dict[int, Array] = {}
        self._held: dict[int, ShardBytes] = {}
        self._due: list[int] = []
        self._lock = threading.Lock()

    @property
    def is_near(self) -> bool:
        """Whether the array lies on this machine, where waiting for bytes takes next to nothing."""
        return isinstance(self._storage, LocalStorage | MemoryStorage)

    def read(self, start: int = 0, stop: int | None = None, *, narrow: bool = False) -> Array:
        """Read elements ``start`` to ``stop``.

        The whole array costs one request per shard and is checked against its SHA-256. A part costs one request
        for a shard's index, the first time, and one for the bytes of the chunks it touches, each checked by its
        CRC-32C. What is held costs none, and is waited for while it is on its way.

        Parameters
        ----------
        start, stop : int
            The range; the whole array by default.
        narrow : bool
            Whether 32-bit integers may be given in 16 bits, where all of them fit.

        Returns
        -------
        numpy.ndarray
            1-D, of the array's dtype.

        Raises
        ------
        FormatError
            Damaged, missing or inconsistent bytes (kinds ``format/...``).
        """
        record = self.record
        stop = record.length if stop is None else stop
        if not 0 <= start <= stop <= record.length:
            raise FormatError(
                f"{self._prefix}/{self._name}: elements {start}:{stop} of {record.length}",
                kind="format/range",
            )
        if start == stop:
            return np.zeros(0, record.dtype)
        length = record.chunk_length
        first, last = start // length, (stop - 1) // length
        made: Array | None = None
        for shard, low, high in self._parts(start, stop):
            for position, data in self._chunks(shard, low, high):
                values = self._values(data, shard, position)
                if first == last:
                    return values[start - first * length : stop - first * length]
                if made is None:
                    dtype = np.int16 if narrow and record.dtype == "int32" else values.dtype
                    made = np.empty((last - first + 1) * length, dtype)
                if made.dtype != values.dtype and not _fits(values):
                    made = made.astype(values.dtype)
                at = (shard * SHARD_CHUNKS + position - first) * length
                made[at : at + length] = values
        assert made is not None
        return made[start - first * length : stop - first * length]

    def hold(self) -> None:
        """Fetch every shard whole, check it against its SHA-256, and serve reads from memory until :meth:`release`.

        What is held is as stored: compressed. What another thread fetches is waited for.

        Raises
        ------
        FormatError
            Damaged or missing shards (kinds ``format/...``).
        """
        for shard in range(len(self.record.shards)):
            complete = False
            while not complete:
                self.begin()
                self.fetch()
                with self._lock:
                    held = self._held.get(shard)
                # Given up, or released by another thread: fetched anew.
                complete = held is not None and held.is_complete()

    def begin(self, pieces: int = 1) -> None:
        """Let reads wait for what :meth:`fetch` will bring, which must be called next, from any thread.

        Parameters
        ----------
        pieces : int
            In how many requests an array of one shard is fetched, so that it can be decoded while it comes.
        """
        with self._lock:
            for shard, record in enumerate(self.record.shards):
                if shard not in self._held:
                    parts = pieces if len(self.record.shards) == 1 and self.record.chunk is not None else 1
                    tail_bytes = index_bytes(self._slots)
                    self._held[shard] = ShardBytes(record, pieces=parts, tail_bytes=tail_bytes)
                    self._due.append(shard)

    def fetch(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Fetch what :meth:`begin` announced.

        Parameters
        ----------
        is_stopped : callable
            When it says so, nothing more is asked for, and what did not come whole is forgotten.

        Raises
        ------
        FormatError
            Damaged or missing shards (kinds ``format/...``); who waits for bytes of them is given the same error.
        """
        with self._lock:
            due = [(shard, self._held[shard]) for shard in self._due if shard in self._held]
            self._due.clear()
        failure: BaseException | None = None
        for shard, held in due:
            complete = False
            try:
                complete = failure is None and self._bring(shard, held, is_stopped)
            except BaseException as error:  # noqa: BLE001 - raised again, when no one waits in vain
                failure = error
            if not complete:
                with self._lock:
                    if self._held.get(shard) is held:
                        del self._held[shard]
                    self._indexes.pop(shard, None)
            held.end(failure)
        if failure is not None:
            raise failure

    def wait(self, start: int, stop: int) -> bool:
        """Wait for the bytes of some elements, if they are on their way; tell whether they came.

        Raises
        ------
        UwsError
            What fetching them failed with.
        """
        return all(
            held.wait(begin, end)
            for held, begin, end in (self._span(*part) for part in self._parts(start, stop))
            if held is not None
        )

    def piece_of(self, start: int, stop: int) -> int:
        """Which piece of those on their way brings the last of some elements; waits for the index."""
        return max(
            (
                held.last_piece(begin, end)
                for held, begin, end in (self._span(*part) for part in self._parts(start, stop))
                if held is not None
            ),
            default=0,
        )

    def release(self) -> None:
        """Drop what was fetched whole."""
        with self._lock:
            self._held.clear()

    @property
    def _slots(self) -> int:
        """Entries in a shard's index: as many as the metadata document's shard shape has chunks."""
        return min(self.record.chunks, SHARD_CHUNKS)

    def _chunks_of(self, shard: int) -> int:
        """How many chunks of the array lie in a shard."""
        return min(SHARD_CHUNKS, self.record.chunks - shard * SHARD_CHUNKS)

    def _where(self, shard: int) -> str:
        return f"{self._storage.url}/{self._path(shard)}"

    def _path(self, shard: int) -> str:
        return layout.shard_path(self._prefix, self._name, shard)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Shards that hold some elements, and the first and the last chunk of each that do."""
        if start >= stop:
            return
        first, last = start // self.record.chunk_length, (stop - 1) // self.record.chunk_length
        for shard in range(first // SHARD_CHUNKS, last // SHARD_CHUNKS + 1):
            base = shard * SHARD_CHUNKS
            yield shard, max(first - base, 0), min(last - base, self._chunks_of(shard) - 1)

    def _span(self, shard: int, low: int, high: int) -> tuple[ShardBytes | None, int, int]:
        """A shard that is held or on its way, and the bytes of some of its chunks; None when it is not."""
        with self._lock:
            held = self._held.get(shard)
        if held is None:
            return None, 0, 0
        if self.record.chunk is None:
            return held, 0, self.record.shards[shard].size
        index = self._index(shard, held)
        return (None, 0, 0) if index is None else (held, *_extent(index[low : high + 1]))

    def _chunks(self, shard: int, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """Chunks of a shard as they come, each with its position."""
        with self._lock:
            held = self._held.get(shard)
        if held is None and low == 0 and high == self._chunks_of(shard) - 1:
            held = ShardBytes(self.record.shards[shard])
            held.put(0, self._fetch_whole(shard))
            held.end()
        if self.record.chunk is None:
            data = held.take(0, self.record.shards[shard].size) if held is not None else None
            yield 0, self._fetch_whole(shard) if data is None else data
            return
        index = self._index(shard, held) if held is not None else None
        if held is None or index is None:
            yield from self._fetched_chunks(shard, low, high)
            return
        extents = [(position, *_extent(index[position : position + 1])) for position in range(low, high + 1)]
        if len(held.pieces) > 1:
            extents.sort(key=lambda extent: held.last_piece(extent[1], extent[2]))
        for position, begin, end in extents:
            data = held.take(begin, end)
            if data is None:  # given up by who fetched it
                yield from self._fetched_chunks(shard, position, position)
            else:
                yield position, data

    def _fetched_chunks(self, shard: int, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """Ask for neighbouring chunks alone: one request, and one for the index the first time."""
        with self._lock:
            index = self._indexes.get(shard)
        if index is None:
            size = self.record.shards[shard].size
            index = self._parsed(shard, self._fetch(shard, max(0, size - index_bytes(self._slots)), size))
        begin, end = _extent(index[low : high + 1])
        data = self._fetch(shard, begin, end)
        for position in range(low, high + 1):
            start, stop = _extent(index[position : position + 1])
            yield position, data[start - begin : stop - begin]

    def _bring(self, shard: int, held: ShardBytes, is_stopped: Callable[[], bool]) -> bool:
        """Fetch a shard and check it; False when it was stopped on the way."""
        if is_stopped():
            return False
        if len(held.pieces) == 1:
            held.put(0, self._fetch_whole(shard))
            return True
        cache = self._storage if isinstance(self._storage, CachedStorage) else None
        path = self._path(shard)
        kept = cache.kept(path) if cache is not None else None
        for place, (begin, end) in enumerate(held.pieces):
            if is_stopped():
                return False
            held.put(place, self._fetch(shard, begin, end) if kept is None else kept[begin:end])
        with dropped_if_damaged(self._storage, path):
            held.verify(where=self._where(shard))
        if cache is not None and kept is None:
            cache.keep(path, held.in_order())
        return True

    def _fetch_whole(self, shard: int) -> bytes:
        """Read a whole shard and check it; what keeps objects may keep it."""
        entry, where = self.record.shards[shard], self._where(shard)
        path = self._path(shard)
        with dropped_if_damaged(self._storage, path):
            data = self._storage.read_at_most(path, entry.size)
            if data is None:
                raise FormatError(
                    f"{where}: the object is missing though the record names it", kind="format/missing-object"
                )
            if len(data) < entry.size:
                raise FormatError(
                    f"{where}: {len(data)} bytes, and the record says {entry.size}; it is damaged or incomplete",
                    kind="format/truncated",
                )
            return verify_object(data, entry, where=where)

    def _fetch(self, shard: int, start: int, end: int) -> bytes:
        """Read a byte range of a shard; never more than the record says there is."""
        try:
            return self._storage.read(self._path(shard), start=start, end=end)
        except NotFoundError as error:
            raise FormatError(
                f"{self._where(shard)}: the object is missing though the record names it",
                kind="format/missing-object",
            ) from error

    def _index(self, shard: int, held: ShardBytes) -> Array | None:
        """The index of a shard that is held or on its way; None when fetching it was given up."""
        with self._lock:
            index = self._indexes.get(shard)
        if index is None:
            size = self.record.shards[shard].size
            data = held.take(max(0, size - index_bytes(self._slots)), size)
            index = None if data is None else self._parsed(shard, data)
        return index

    def _parsed(self, shard: int, data: bytes) -> Array:
        index = parse_index(
            data,
            slots=self._slots,
            held=self._chunks_of(shard),
            shard_bytes=self.record.shards[shard].size,
            where=self._where(shard),
        )
        with self._lock:
            self._indexes[shard] = index
        return index

    def _values(self, data: bytes, shard: int, position: int) -> Array:
        where = f"{self._where(shard)} chunk {position}"
        stream, record = checked_chunk(data, where=where), self.record
        if record.page is None:
            # Zarr pads the last chunk of an array to the full chunk.
            if len(stream) != record.chunk_length:
                raise FormatError(f"{where}: expected {record.chunk_length} bytes", kind="format/size")
            return np.frombuffer(stream, np.uint8)
        try:
            return decode_integers(stream, dtype=record.dtype, count=record.chunk_length)
        except FormatError as error:
            raise FormatError(f"{where}: {error.message}", kind=error.kind) from error


def _extent(entries: Array) -> tuple[int, int]:
    """First and last byte of some chunks, from their entries in the index."""
    return int(entries[:, 0].min()), int((entries[:, 0] + entries[:, 1]).max())


def _fits(values: Array) -> bool:
    """Whether integers fit 16 bits."""
    return int(values.min()) >= -(1 << 15) and int(values.max()) < 1 << 15
