"""The record of one stored array: what it holds and the digest of every object it is kept in.

Owns the limits on arrays. Must not know how arrays are encoded or where they lie.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from uws_store.metadata.document import Part

__all__ = ["MAX_CHUNK", "MAX_ELEMENTS", "SHARD_CHUNKS", "ArrayRecord", "ObjectRecord", "Sha256Hex"]

MAX_ELEMENTS = 1 << 42
"""Most elements of one array or tensor."""

MAX_CHUNK = 1 << 24
"""Most elements of a chunk."""

SHARD_CHUNKS = 4096
"""Most inner chunks in one shard object."""

Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MAX_ELEMENTS)]


class ObjectRecord(Part):
    """One immutable object: its length and digest.

    Attributes
    ----------
    size : int
        Bytes.
    sha256 : str
        SHA-256 of the bytes, hex.
    """

    size: Annotated[int, Field(ge=0, le=1 << 46)]
    sha256: Sha256Hex


class ArrayRecord(Part):
    """One packed 1-D array.

    Attributes
    ----------
    dtype : str
        Zarr data type of an element.
    length : int
        Elements.
    chunk : int or None
        Elements of an inner chunk. None: the array is one chunk, and its object is that chunk, without an index.
    page : int or None
        Integers of a PCodec page, or None when the bytes are stored as they are.
    shards : tuple of ObjectRecord
        The shard objects ``c/0``, ``c/1``, ...
    """

    dtype: Literal["uint8", "int16", "int32", "uint16", "uint32", "uint64"]
    length: Annotated[int, Field(ge=1, le=MAX_ELEMENTS)]
    chunk: Annotated[int, Field(ge=1, le=MAX_CHUNK)] | None = None
    page: Annotated[int, Field(ge=256, le=MAX_CHUNK)] | None = None
    shards: tuple[ObjectRecord, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chunk is None and self.length > MAX_CHUNK:
            raise ValueError(f"a chunk has at most {MAX_CHUNK} elements, an array of one has {self.length}")
        expected = math.ceil(self.chunks / SHARD_CHUNKS)
        if len(self.shards) != expected:
            raise ValueError(f"{self.chunks} chunks lie in {expected} shards, found {len(self.shards)}")
        if (self.dtype == "uint8") != (self.page is None):
            raise ValueError("uint8 arrays are stored as they are, all others as PCodec pages")
        return self

    @property
    def chunk_length(self) -> int:
        """Elements of a chunk, whether it is a shard's or the whole array."""
        return self.chunk or self.length

    @property
    def chunks(self) -> int:
        """Chunks of the array."""
        return math.ceil(self.length / self.chunk_length)

    @property
    def size_bytes(self) -> int:
        """Bytes of the shard objects together."""
        return sum(shard.size for shard in self.shards)
