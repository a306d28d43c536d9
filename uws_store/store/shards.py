"""A shard's bytes and its index: what is checked before any of it is believed, and bytes that are still on their way.

Knows nothing about where shards lie, nor what their chunks hold.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import threading
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from uws_store.errors import FormatError
from uws_store.metadata.arrays import ObjectRecord

__all__ = ["CRC", "MISSING", "ShardBytes", "checked_chunk", "index_bytes", "parse_index", "verify_object"]

CRC = struct.Struct("<I")
"""A CRC-32C as it follows a chunk and an index."""

MISSING = 2**64 - 1
"""Offset and length of a chunk that is not there."""


def index_bytes(slots: int) -> int:
    """Length of an index of so many chunks, its CRC-32C included."""
    return 16 * slots + CRC.size


def verify_object(data: bytes, record: ObjectRecord, *, where: str) -> bytes:
    """Check an object's length and SHA-256.

    Raises
    ------
    FormatError
        On any difference (kinds ``format/size``, ``format/digest``).
    """
    if len(data) != record.size:
        raise FormatError(f"{where}: expected {record.size} bytes, found {len(data)}", kind="format/size")
    _require_digest(hashlib.sha256(data).hexdigest(), record, where=where)
    return data


def parse_index(data: bytes, *, slots: int, held: int, shard_bytes: int, where: str) -> npt.NDArray[np.int64]:
    """Parse a shard's index.

    Parameters
    ----------
    data : bytes
        The index, which ends the shard.
    slots : int
        Entries: as many as the metadata document's shard shape has chunks.
    held : int
        How many of them are chunks of the array.
    shard_bytes : int
        Length of the shard.
    where : str
        The shard, for messages.

    Returns
    -------
    numpy.ndarray
        int64, (held x 2): byte offset and length of each chunk.

    Raises
    ------
    FormatError
        Kinds ``format/shard-index``, ``format/missing-chunk``.
    """
    if len(data) != index_bytes(slots):
        raise FormatError(f"{where}: too short for its index", kind="format/shard-index")
    if CRC.unpack(data[-CRC.size :])[0] != google_crc32c.value(data[: -CRC.size]):
        raise FormatError(f"{where}: the index fails its CRC-32C", kind="format/shard-index")
    whole: npt.NDArray[Any] = np.frombuffer(data[: -CRC.size], "<u8").reshape(slots, 2)
    if bool((whole[held:] != MISSING).any()) or bool((whole[:held] == MISSING).any()):
        raise FormatError(f"{where}: a chunk is missing from the index", kind="format/missing-chunk")
    limit = shard_bytes - len(data)
    entries = whole[:held]
    # Compared without adding, so that nothing wraps around.
    if bool((entries[:, 0] > limit).any()) or bool((entries[:, 1] > limit - entries[:, 0]).any()):
        raise FormatError(f"{where}: the index points outside the shard", kind="format/shard-index")
    if int(entries[:, 1].sum(dtype=np.float64)) > limit:
        raise FormatError(f"{where}: chunks overlap", kind="format/shard-index")
    return entries.astype(np.int64)


def checked_chunk(data: bytes, *, where: str) -> bytes:
    """A chunk without its CRC-32C, which fits.

    Raises
    ------
    FormatError
        Kind ``format/crc``.
    """
    if len(data) < CRC.size or CRC.unpack(data[-CRC.size :])[0] != google_crc32c.value(data[: -CRC.size]):
        raise FormatError(f"{where}: fails its CRC-32C; the object is damaged", kind="format/crc")
    return data[: -CRC.size]


class ShardBytes:
    """The bytes of a whole shard, perhaps still on their way; threads may share it.

    Parameters
    ----------
    record : ObjectRecord
        Length and digest.
    pieces : int
        In how many pieces it comes. The last bytes come first, since the index is there, and then the others in order.
    tail_bytes : int
        The least that the first piece holds.
    """

    def __init__(self, record: ObjectRecord, *, pieces: int = 1, tail_bytes: int = 0) -> None:
        self._record = record
        share = -(-record.size // pieces)
        rest = record.size - min(record.size, max(share, tail_bytes))
        count = max(1, pieces - 1)
        cuts = sorted({rest * index // count for index in range(count + 1)}) if rest else [0]
        self.pieces: tuple[tuple[int, int], ...] = (
            (rest, record.size),
            *itertools.pairwise(cuts),
        )
        """First and last byte of each piece, as they come."""
        self._came: dict[int, bytes] = {}
        self._ended = False
        self._error: BaseException | None = None
        self._change = threading.Condition()

    def put(self, place: int, data: bytes) -> None:
        """Give the bytes of a piece."""
        with self._change:
            self._came[place] = data
            self._change.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Say that no more bytes will come; who waits for some is given the error, or nothing."""
        with self._change:
            self._ended, self._error = True, error
            self._change.notify_all()

    def last_piece(self, start: int, end: int) -> int:
        """Which piece of those that hold some bytes comes last."""
        return max(
            (place for place, (first, last) in enumerate(self.pieces) if first < end and start < last),
            default=0,
        )

    def wait(self, start: int, end: int) -> bool:
        """Wait until some bytes came; tell whether they did, for they never will when fetching was given up.

        Raises
        ------
        UwsError
            What the fetching failed with.
        """
        needed = {place for place, (first, last) in enumerate(self.pieces) if first < end and start < last}
        with self._change:
            self._change.wait_for(lambda: self._ended or needed <= self._came.keys())
            if self._error is not None:
                raise self._error
            return needed <= self._came.keys()

    def is_complete(self) -> bool:
        """Wait until no more bytes will come; tell whether all did.

        Raises
        ------
        UwsError
            What the fetching failed with.
        """
        with self._change:
            self._change.wait_for(lambda: self._ended)
            if self._error is not None:
                raise self._error
            return len(self._came) == len(self.pieces)

    def take(self, start: int, end: int) -> bytes | None:
        """Give some bytes when they came; None when fetching was given up."""
        if not self.wait(start, end):
            return None
        parts = [
            self._came[place][max(start, first) - first : end - first]
            for place, (first, last) in sorted(enumerate(self.pieces), key=lambda held: held[1])
            if first < end and start < last
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def in_order(self) -> list[bytes]:
        """All pieces, from the first byte to the last."""
        return [self._came[place] for place, _ in sorted(enumerate(self.pieces), key=lambda held: held[1])]

    def verify(self, *, where: str) -> None:
        """Compare what came, all of it, with length and SHA-256 on record.

        Raises
        ------
        FormatError
            Kinds ``format/size``, ``format/digest``.
        """
        parts, digest = self.in_order(), hashlib.sha256()
        found = sum(map(len, parts))
        if found != self._record.size:
            raise FormatError(
                f"{where}: expected {self._record.size} bytes, found {found}", kind="format/size"
            )
        for part in parts:
            digest.update(part)
        _require_digest(digest.hexdigest(), self._record, where=where)


def _require_digest(found: str, record: ObjectRecord, *, where: str) -> None:
    if found != record.sha256:
        raise FormatError(
            f"{where}: SHA-256 is {found}, the record says {record.sha256}; the object is damaged",
            kind="format/digest",
        )
