"""Where everything lies: paths of the registry, names of arrays, chunk sizes, the codec chain.

Nobody else spells a path or a Zarr metadata document. Pure: it reads and writes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from uws_store.errors import FormatError
from uws_store.metadata.arrays import SHARD_CHUNKS, ArrayRecord

__all__ = [
    "CORE_CHUNK",
    "FAMILIES_PREFIX",
    "GROUP_COEFFICIENTS",
    "GROUP_PATH",
    "HEAD_PATH",
    "LOG_PREFIX",
    "PCODEC_LEVEL",
    "PENDING_PREFIX",
    "POOL_COEFFICIENTS",
    "PRIVATE_CHUNK",
    "REGISTRY_DOCUMENT",
    "RESIDUAL_CHUNK",
    "array_metadata",
    "array_path",
    "basis_prefix",
    "commit_number",
    "commit_path",
    "core_chunk_for",
    "family_groups",
    "model_prefix",
    "pack_path",
    "page_for",
    "pending_path",
    "shard_path",
    "signature_path",
    "snapshot_path",
    "stored_bytes",
    "verification_path",
]

REGISTRY_DOCUMENT = "uws.json"
"""The registry's own document, written by ``init``."""

LOG_PREFIX = "_log"
"""The commits."""

HEAD_PATH = "_log/head"
"""An overwritable hint to the newest commit; never trusted."""

PENDING_PREFIX = "_pending"
"""Notes that writers leave for each other; readers do not look there."""

FAMILIES_PREFIX = "families"
"""The families' objects."""

GROUP_PATH = "zarr.json"
"""Metadata document of a Zarr v3 node, relative to it."""

GROUP_COEFFICIENTS = 1 << 17
"""A tensor with at least this many coefficients is a read group of its own; smaller ones are pooled."""

POOL_COEFFICIENTS = 1 << 20
"""A pool is closed before it would exceed this many coefficients."""

CORE_CHUNK = 1 << 17
"""Inner chunk of the core, at most: read groups start on its boundaries."""

RESIDUAL_CHUNK = 1 << 17
"""Inner chunk of the residual, at most."""

PRIVATE_CHUNK = 1 << 20
"""Inner chunk of arrays stored byte for byte."""

PCODEC_LEVEL = 8
"""Compression level of PCodec; the level never matters to a reader."""

_COMMIT = re.compile(r"^_log/([0-9]{20})\.json$")


def commit_path(number: int) -> str:
    """Path of a commit's log object; the first is 1, and paths sort as the numbers do."""
    if not 1 <= number < 10**18:
        raise FormatError(f"commit number {number} is out of range", kind="format/commit-number")
    return f"{LOG_PREFIX}/{number:020d}.json"


def commit_number(path: str) -> int | None:
    """Read the commit number from a path in the log, or None for any other object."""
    match = _COMMIT.match(path)
    return int(match.group(1)) if match else None


def snapshot_path(digest: str) -> str:
    """Object of a family's snapshot."""
    return f"{LOG_PREFIX}/snapshots/{digest}.json"


def verification_path(family: str, digest: str) -> str:
    """Object of the record of a verification."""
    return f"{FAMILIES_PREFIX}/{family}/verifications/{digest}.json"


def pending_path(kind: str, nonce: str) -> str:
    """Object of a writer's note."""
    return f"{PENDING_PREFIX}/{kind}-{nonce}.json"


def signature_path(key: str, family: str | None) -> str:
    """Object of a signature by a key, of a family or of the registry."""
    return f"_signatures/{key}/{f'{FAMILIES_PREFIX}/{family}' if family is not None else 'registry'}.json"


def family_groups(family: str) -> tuple[str, ...]:
    """Paths of the plain Zarr groups that make a family one hierarchy."""
    root = f"{FAMILIES_PREFIX}/{family}"
    return (f"{root}/{GROUP_PATH}", f"{root}/basis/{GROUP_PATH}", f"{root}/models/{GROUP_PATH}")


def basis_prefix(family: str, digest: str) -> str:
    """Folder of a basis."""
    return f"{FAMILIES_PREFIX}/{family}/basis/{digest}"


def model_prefix(family: str, digest: str) -> str:
    """Folder of a model."""
    return f"{FAMILIES_PREFIX}/{family}/models/{digest}"


def pack_path(family: str, digest: str) -> str:
    """Object that holds many models of a family."""
    return f"{FAMILIES_PREFIX}/{family}/packs/{digest}"


def array_path(prefix: str, name: str) -> str:
    """Metadata document of an array."""
    return f"{prefix}/{name}/{GROUP_PATH}"


def shard_path(prefix: str, name: str, index: int) -> str:
    """Object of an array's shard."""
    return f"{prefix}/{name}/c/{index}"


def page_for(length: int) -> int:
    """Integers of a PCodec page: short enough to follow the falling variance, long enough to pay for its header."""
    return max(1 << 12, min(1 << 14, 1 << max(0, (length // 8).bit_length() - 1)))


def core_chunk_for(largest_group: int) -> int:
    """Inner chunk of the core: a family of one small group is not padded to whole chunks."""
    return largest_group if largest_group <= 2 * CORE_CHUNK else CORE_CHUNK


def array_metadata(record: ArrayRecord) -> bytes:
    """Write the ``zarr.json`` of an array: it follows from the record alone, so opening needs no extra request."""
    if record.chunk is None:
        shard, keys, codecs = record.length, {}, [*_coder(record, {}), {"name": "crc32c"}]
    else:
        shard = record.chunk * min(record.chunks, SHARD_CHUNKS)
        keys, codecs = {"configuration": {"separator": "/"}}, [_sharding(record, record.chunk)]
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [record.length],
        "data_type": record.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
        "chunk_key_encoding": {"name": "default", **keys},
        "fill_value": 0,
        "codecs": codecs,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def stored_bytes(record: ArrayRecord | None) -> int:
    """Bytes of an array's objects, its metadata document among them; 0 where there is no array."""
    return record.size_bytes + len(array_metadata(record)) if record is not None else 0


def _coder(record: ArrayRecord, configuration: Mapping[str, object]) -> list[dict[str, object]]:
    if record.page is None:
        return [{"name": "bytes"}]
    return [{"name": "numcodecs.pcodec", "configuration": dict(configuration)}]


def _sharding(record: ArrayRecord, chunk: int) -> dict[str, object]:
    pages = {
        "level": PCODEC_LEVEL,
        "mode_spec": "classic",
        "delta_spec": "none",
        "equal_pages_up_to": record.page,
    }
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [chunk],
            "codecs": [*_coder(record, pages), {"name": "crc32c"}],
            "index_codecs": index,
            "index_location": "end",
        },
    }
