"""Typed reads and writes of the packed Zarr arrays, with digests.

Owns the step between numbers and stored objects. Bytes are written by zarr-python; integers are put
into shards here, since their pages follow the numbers. Arrays are read by ranges here: a reader must know how many
requests it makes, must allocate nothing that a file merely claims, and must treat a missing chunk as an error and
never as zeros. Knows nothing about models, bases or names.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import cpu
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from uws_store import layout
from uws_store.entropy import decode_integers, encode_integers
from uws_store.errors import FormatError, NotFoundError, StorageError
from uws_store.metadata.arrays import SHARD_CHUNKS, ArrayRecord, ObjectRecord
from uws_store.storage import LocalStorage, MemoryStorage, Storage

__all__ = ["ArrayReader", "EncodedArray", "encode_array", "of_each", "put_verified", "verify_object"]

# The codec is ours by choice; zarr-python tells every user of it that other readers may lack it.
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr", category=ZarrUserWarning)

Array = npt.NDArray[Any]
T = TypeVar("T")
_LARGE_BYTES = 1 << 20
_MISSING = 2**64 - 1
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class EncodedArray:
    """An array ready to be stored.

    Attributes
    ----------
    record : ArrayRecord
        What the owning document says of it.
    objects : dict of str to bytes
        Path below the array's folder to bytes; the metadata document comes last.
    """

    record: ArrayRecord
    objects: dict[str, bytes]


def encode_array(
    values: Array,
    *,
    chunk: int,
    page: int | None,
    cuts: Sequence[int] | None = None,
    level: int = layout.PCODEC_LEVEL,
) -> EncodedArray:
    """Encode a 1-D array as the chunks and shards of a Zarr array.

    Parameters
    ----------
    values : numpy.ndarray
        1-D, not empty, of a dtype that :class:`ArrayRecord` allows.
    chunk : int
        Elements of an inner chunk. An array that is no longer is one chunk, without a shard's index.
    page : int or None
        Integers of a PCodec page, for the metadata: what other writers would take; pages are cut where the integers
        change. None stores bytes as they are.
    cuts : sequence of int, optional
        Where pages begin instead, rising.
    level : int
        PCodec's effort; it never matters to a reader.
    """
    chunks = -(-len(values) // chunk)
    blank = ObjectRecord(size=0, sha256="0" * 64)
    draft = ArrayRecord(
        dtype=str(values.dtype),  # type: ignore[arg-type]
        length=len(values),
        chunk=chunk if chunks > 1 else None,
        page=page,
        shards=(blank,) * -(-chunks // SHARD_CHUNKS),
    )
    metadata = layout.array_metadata(draft)
    shards: Iterable[bytes]
    if page is None:
        shards = _zarr_shards(values, metadata)
    elif chunks == 1:
        shards = [_integer_chunk(values, cuts=cuts, level=level)]
    else:
        shards = _integer_shards(values, chunk, cuts, level)
    objects: dict[str, bytes] = {}
    records: list[ObjectRecord] = []
    for index, data in enumerate(shards):
        objects[f"c/{index}"] = data
        records.append(ObjectRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    objects[layout.GROUP_PATH] = metadata
    return EncodedArray(draft.model_copy(update={"shards": tuple(records)}), objects)


def _zarr_shards(values: Array, metadata: bytes) -> Iterator[bytes]:
    """Let zarr-python write an array of bytes."""
    held: dict[str, Any] = {layout.GROUP_PATH: cpu.Buffer.from_bytes(metadata)}
    # All-zero chunks are written too: an absent chunk must always mean damage.
    # (open_array takes the same option and ignores it for an array that exists, seen in zarr 3.1.6.)
    array = zarr.open_array(MemoryStore(held), mode="r+").with_config({"write_empty_chunks": True})
    array[:] = values
    for index in range(len(held) - 1):
        yield bytes(held[f"c/{index}"].to_bytes())


def _integer_shards(values: Array, chunk: int, cuts: Sequence[int] | None, level: int) -> Iterator[bytes]:
    """Write shards of integers as zarr-python would, but for the pages: its codec knows only pages of one size."""
    chunks = -(-len(values) // chunk)
    for first in range(0, chunks, SHARD_CHUNKS):
        held = range(first, min(first + SHARD_CHUNKS, chunks))
        index = np.full((min(chunks, SHARD_CHUNKS), 2), _MISSING, "<u8")
        payloads: list[bytes] = []
        at = 0
        for slot, position in enumerate(held):
            part = values[position * chunk : (position + 1) * chunk]
            if len(part) < chunk:
                part = np.concatenate([part, np.zeros(chunk - len(part), values.dtype)])
            start = position * chunk
            inside = None if cuts is None else [cut - start for cut in cuts if start < cut < start + chunk]
            payloads.append(_integer_chunk(part, cuts=inside, level=level))
            index[slot] = at, len(payloads[-1])
            at += len(payloads[-1])
        tail = index.tobytes()
        yield b"".join([*payloads, tail, _CRC.pack(google_crc32c.value(tail))])


def _integer_chunk(values: Array, *, cuts: Sequence[int] | None, level: int) -> bytes:
    sizes = None if cuts is None else np.diff([0, *cuts, len(values)]).tolist()
    stream = encode_integers(values, sizes=sizes, level=level)
    return stream + _CRC.pack(google_crc32c.value(stream))


def put_verified(storage: Storage, path: str, data: bytes) -> bool:
    """Store an immutable object for a commit to name; when it is there already, check that it holds the same bytes.

    Returns
    -------
    bool
        Whether it is new.

    Raises
    ------
    StorageError
        When another content stands at the path (kind ``storage/conflict``): the registry is damaged.
    """
    if storage.stage(path, data):
        return True
    if storage.size(path) != len(data) or storage.read(path) != data:
        raise StorageError(
            f"{storage.url}/{path} exists with other bytes than its digest names; an earlier write was damaged. "
            "Remove the object and publish again",
            kind="storage/conflict",
        )
    return False


def verify_object(data: bytes, record: ObjectRecord, *, where: str) -> bytes:
    """Check an object's length and SHA-256.

    Raises
    ------
    FormatError
        On any difference (kinds ``format/size``, ``format/digest``).
    """
    if len(data) != record.size:
        raise FormatError(f"{where}: expected {record.size} bytes, found {len(data)}", kind="format/size")
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise FormatError(
            f"{where}: SHA-256 is {found}, the record says {record.sha256}; the object is damaged",
            kind="format/digest",
        )
    return data


def of_each(readers: Sequence[ArrayReader], do: Callable[[ArrayReader], T]) -> list[T]:
    """Do something with several arrays, at the same time where they are large or behind a network.

    Parameters
    ----------
    readers : sequence of ArrayReader
        The arrays.
    do : callable
        Called with each, from any thread.

    Raises
    ------
    Exception
        What the first of them, in order, raises; the others are run to their end.
    """
    if len(readers) < 2 or all(reader.is_quick for reader in readers):
        return [do(reader) for reader in readers]
    with ThreadPoolExecutor(len(readers), thread_name_prefix="uws-fetch") as pool:
        return list(pool.map(do, readers))


class ArrayReader:
    """Reads of one stored array, whole or by ranges; threads may share it.

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
        self._held: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Read elements ``start`` to ``stop``.

        The whole array costs one request per shard and is checked against its SHA-256. A part costs one request
        for a shard's index, the first time, and one for the bytes of the chunks it touches, each checked by its
        CRC-32C.

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
        first, last = start // record.chunk_length, (stop - 1) // record.chunk_length
        parts: list[Array] = []
        for shard in range(first // SHARD_CHUNKS, last // SHARD_CHUNKS + 1):
            base = shard * SHARD_CHUNKS
            held = min(SHARD_CHUNKS, record.chunks - base)
            low, high = max(first - base, 0), min(last - base, held - 1)
            if low == 0 and high == held - 1:
                parts += self._whole_shard(shard)
            else:
                parts += self._partial_shard(shard, low, high)
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        offset = first * record.chunk_length
        return joined[start - offset : stop - offset]

    def hold(self) -> None:
        """Fetch every shard whole, check it against its SHA-256, and serve reads from memory until :meth:`release`.

        What is held is as stored: compressed.

        Raises
        ------
        FormatError
            Damaged or missing shards (kinds ``format/...``).
        """
        for shard in range(len(self.record.shards)):
            with self._lock:
                if shard in self._held:
                    continue
            data = self._fetch_whole(shard)
            with self._lock:
                self._held[shard] = data

    @property
    def is_quick(self) -> bool:
        """Whether reading the whole array takes less time than starting a thread for it, or nearly."""
        near = isinstance(self._storage, LocalStorage | MemoryStorage)
        return near and self.record.size_bytes < _LARGE_BYTES

    def release(self) -> None:
        """Drop what :meth:`hold` fetched."""
        with self._lock:
            self._held.clear()

    def _where(self, shard: int) -> str:
        return f"{self._storage.url}/{layout.shard_path(self._prefix, self._name, shard)}"

    def _slots(self) -> int:
        """Entries in a shard's index: as many as the metadata document's shard shape has chunks."""
        return min(self.record.chunks, SHARD_CHUNKS)

    def _whole_shard(self, shard: int) -> list[Array]:
        with self._lock:
            data = self._held.get(shard)
        if data is None:
            data = self._fetch_whole(shard)
        if self.record.chunk is None:
            return [self._chunk(data, shard, 0)]
        index = self._index(shard, data[-(16 * self._slots() + 4) :])
        return [
            self._chunk(data[offset : offset + size], shard, position)
            for position, (offset, size) in enumerate(index)
        ]

    def _partial_shard(self, shard: int, low: int, high: int) -> list[Array]:
        with self._lock:
            index = self._indexes.get(shard)
        if index is None:
            size = self.record.shards[shard].size
            tail = 16 * self._slots() + 4
            index = self._index(shard, self._fetch(shard, max(0, size - tail), size))
            with self._lock:
                self._indexes[shard] = index
        begin = int(index[low : high + 1, 0].min())
        end = int((index[low : high + 1, 0] + index[low : high + 1, 1]).max())
        data = self._fetch(shard, begin, end)
        return [
            self._chunk(data[int(offset) - begin : int(offset) - begin + int(size)], shard, low + position)
            for position, (offset, size) in enumerate(index[low : high + 1])
        ]

    def _fetch_whole(self, shard: int) -> bytes:
        """Read a whole shard and check it; what keeps objects may keep it."""
        entry, where = self.record.shards[shard], self._where(shard)
        path = layout.shard_path(self._prefix, self._name, shard)
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
        with self._lock:
            held = self._held.get(shard)
        if held is not None:
            return held[start:end]
        path = layout.shard_path(self._prefix, self._name, shard)
        try:
            return self._storage.read(path, start=start, end=end)
        except NotFoundError as error:
            raise FormatError(
                f"{self._where(shard)}: the object is missing though the record names it",
                kind="format/missing-object",
            ) from error

    def _index(self, shard: int, data: bytes) -> Array:
        """Parse a shard's index: int64 (chunks x 2), byte offset and length of each chunk."""
        where = self._where(shard)
        slots = self._slots()
        if len(data) != 16 * slots + 4:
            raise FormatError(f"{where}: too short for its index", kind="format/shard-index")
        if _CRC.unpack(data[-4:])[0] != google_crc32c.value(data[:-4]):
            raise FormatError(f"{where}: the index fails its CRC-32C", kind="format/shard-index")
        held = min(SHARD_CHUNKS, self.record.chunks - shard * SHARD_CHUNKS)
        whole = np.frombuffer(data[:-4], "<u8").reshape(slots, 2)
        if bool((whole[held:] != _MISSING).any()) or bool((whole[:held] == _MISSING).any()):
            raise FormatError(f"{where}: a chunk is missing from the index", kind="format/missing-chunk")
        limit = self.record.shards[shard].size - len(data)
        entries = whole[:held]
        # Compared without adding, so that nothing wraps around.
        if bool((entries[:, 0] > limit).any()) or bool((entries[:, 1] > limit - entries[:, 0]).any()):
            raise FormatError(f"{where}: the index points outside the shard", kind="format/shard-index")
        if int(entries[:, 1].sum(dtype=np.float64)) > limit:
            raise FormatError(f"{where}: chunks overlap", kind="format/shard-index")
        return entries.astype(np.int64)

    def _chunk(self, data: bytes, shard: int, position: int) -> Array:
        where = f"{self._where(shard)} chunk {position}"
        if len(data) < 4 or _CRC.unpack(data[-4:])[0] != google_crc32c.value(data[:-4]):
            raise FormatError(f"{where}: fails its CRC-32C; the object is damaged", kind="format/crc")
        record = self.record
        if record.page is None:
            # Zarr pads the last chunk of an array to the full chunk.
            if len(data) - 4 != record.chunk_length:
                raise FormatError(f"{where}: expected {record.chunk_length} bytes", kind="format/size")
            values: Array = np.frombuffer(data[:-4], np.uint8)
        else:
            try:
                values = decode_integers(data[:-4], dtype=record.dtype, count=record.chunk_length)
            except FormatError as error:
                raise FormatError(f"{where}: {error.message}", kind=error.kind) from error
        return values
