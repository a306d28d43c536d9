"""The arrays of a group, read from the specification (section 6) alone: metadata, shards, checksums, integers."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from independent_documents import (
    Json,
    Refusal,
    check_record,
    load_json,
    read_file,
    require,
)

SHARD_CHUNKS = 4096


def read_group(folder: Path, *, digest: str, most_bytes: int, kind: str) -> dict[str, Json]:
    head, tail = b'{"attributes":{"uws_store":', b'},"node_type":"group","zarr_format":3}'
    data = read_file(folder / "zarr.json", most_bytes=most_bytes + len(head) + len(tail), rule="R-GROUP-3")
    require(hashlib.sha256(data).hexdigest() == digest, "R-GROUP-2", "the document's digest")
    require(data.startswith(head) and data.endswith(tail), "R-GROUP-1", "head or tail")
    document = load_json(data[len(head) : -len(tail)], most_bytes=most_bytes)
    check_record(kind, document, kind)
    return document


def array_metadata(array: dict[str, Json]) -> bytes:
    whole = array.get("chunk") is None
    coder: dict[str, Json] = {"name": "bytes"}
    if array.get("page") is not None:
        configuration = {
            "delta_spec": "none",
            "equal_pages_up_to": array["page"],
            "level": 8,
            "mode_spec": "classic",
        }
        coder = {"configuration": {} if whole else configuration, "name": "numcodecs.pcodec"}
    keys: dict[str, Json] = {"configuration": {"separator": "/"}, "name": "default"}
    chunk = array["length"] if whole else array["chunk"]
    chunks = -(-array["length"] // chunk)
    sharding = {
        "chunk_shape": [chunk],
        "codecs": [coder, {"name": "crc32c"}],
        "index_codecs": [{"configuration": {"endian": "little"}, "name": "bytes"}, {"name": "crc32c"}],
        "index_location": "end",
    }
    shard = chunk * min(chunks, SHARD_CHUNKS)
    sharded = [{"configuration": sharding, "name": "sharding_indexed"}]
    document = {
        "chunk_grid": {"configuration": {"chunk_shape": [shard]}, "name": "regular"},
        "chunk_key_encoding": {"name": "default"} if whole else keys,
        "codecs": [coder, {"name": "crc32c"}] if whole else sharded,
        "data_type": array["dtype"],
        "fill_value": 0,
        "node_type": "array",
        "shape": [array["length"]],
        "zarr_format": 3,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def read_array(
    folder: Path, name: str, array: dict[str, Json] | None, *, dtype: str = ""
) -> npt.NDArray[Any]:
    """Read a whole array, having checked every object of it."""
    if array is None:
        return np.zeros(0, dtype or "uint8")
    require(array["dtype"] == (dtype or array["dtype"]), "R-ARRAY-2", f"{name} is {array['dtype']}")
    require((array["dtype"] == "uint8") == (array.get("page") is None), "R-ARRAY-1", f"{name}: page")
    whole = array.get("chunk") is None
    require(not whole or array["length"] <= 2**24, "R-ARRAY-11", f"{name}: a chunk of {array['length']}")
    chunks = 1 if whole else -(-array["length"] // array["chunk"])
    require(len(array["shards"]) == -(-chunks // SHARD_CHUNKS), "R-ARRAY-1", f"{name}: shards")
    path = folder / name / "zarr.json"
    require(path.is_file() and path.read_bytes() == array_metadata(array), "R-ARRAY-3", f"{name}: metadata")
    slots = min(chunks, SHARD_CHUNKS)
    for index, entry in enumerate(array["shards"]):
        shard = folder / name / "c" / str(index)
        require(shard.is_file(), "R-ARRAY-4", f"{name}: shard {index} is missing")
        data = shard.read_bytes()
        require(len(data) == entry["size"], "R-ARRAY-5", f"{name}: {len(data)} bytes")
        require(hashlib.sha256(data).hexdigest() == entry["sha256"], "R-ARRAY-5", f"{name}: digest")
        if not whole:
            check_index(data, slots=slots, held=min(SHARD_CHUNKS, chunks - index * SHARD_CHUNKS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the codec is not in the Zarr specification
        try:
            values = np.asarray(zarr.open_array(folder / name, mode="r")[:])
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise Refusal("R-ARRAY-8", f"{name}: {error}") from error
    require(values.shape == (array["length"],), "R-ARRAY-8", f"{name}: {values.shape}")
    return values


def check_index(data: bytes, *, slots: int, held: int) -> None:
    """zarr-python takes a missing entry for zeros; here it is damage."""
    size = 16 * slots + 4
    require(len(data) >= size, "R-ARRAY-6", "too short for an index")
    whole = len(data) - size
    entries = list(struct.iter_unpack("<QQ", data[whole:-4]))
    missing = (2**64 - 1, 2**64 - 1)
    require(all(entry == missing for entry in entries[held:]), "R-ARRAY-7", "more chunks than there are")
    require(
        2**64 - 1 not in {part for entry in entries[:held] for part in entry}, "R-ARRAY-7", "missing chunk"
    )
    for offset, length in entries[:held]:
        require(offset + length <= whole, "R-ARRAY-6", "an entry points outside")
    require(sum(length for _, length in entries[:held]) <= whole, "R-ARRAY-6", "chunks overlap")
