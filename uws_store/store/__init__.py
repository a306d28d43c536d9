"""Typed reads and writes of the packed Zarr arrays, with digests."""

from __future__ import annotations

from uws_store.store.arriving import Arriving, read_whole
from uws_store.store.reading import ArrayReader
from uws_store.store.shards import verify_object
from uws_store.store.writing import EncodedArray, encode_array, put_verified

__all__ = [
    "ArrayReader",
    "Arriving",
    "EncodedArray",
    "encode_array",
    "put_verified",
    "read_whole",
    "verify_object",
]
