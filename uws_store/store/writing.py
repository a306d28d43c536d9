"""Writing the packed Zarr arrays: from numbers to objects, and objects into a storage.

Bytes are written by zarr-python; integers are put into shards here, since their pages follow the numbers. Knows
nothing about models, bases or names.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import cpu
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from uws_store import layout
from uws_store.entropy import encode_integers
from uws_store.errors import StorageError
from uws_store.metadata.arrays import SHARD_CHUNKS, ArrayRecord, ObjectRecord
from uws_store.storage import Storage
from uws_store.store.shards import CRC, MISSING

__all__ = ["EncodedArray", "encode_array", "put_verified"]

# The codec is ours by choice; zarr-python tells every user of it that other readers may lack it.
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr", category=ZarrUserWarning)

Array = npt.NDArray[Any]


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
    made: Callable[[str, bytes], None] | None = None,
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
    made : callable, optional
        Takes each object by its path below the array's folder as it is made; none is held then.
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
    take = made or objects.__setitem__
    for index, data in enumerate(shards):
        take(f"c/{index}", data)
        records.append(ObjectRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    take(layout.GROUP_PATH, metadata)
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
        index = np.full((min(chunks, SHARD_CHUNKS), 2), MISSING, "<u8")
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
        yield b"".join([*payloads, tail, CRC.pack(google_crc32c.value(tail))])


def _integer_chunk(values: Array, *, cuts: Sequence[int] | None, level: int) -> bytes:
    sizes = None if cuts is None else np.diff([0, *cuts, len(values)]).tolist()
    stream = encode_integers(values, sizes=sizes, level=level)
    return stream + CRC.pack(google_crc32c.value(stream))


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
