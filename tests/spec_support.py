"""The golden vectors, both readers over them, and surgery on a copy: damage with and without making digests fit again.

Without: a stored byte is changed, and what names it no longer does. With (``rewrite``): a document or a shard is edited,
and everything above it is made to fit, so that only the rule under test is broken.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import independent_reader
import numpy as np
from independent_documents import Refusal
from pcodec import ChunkConfig, standalone

from uws_store import load_model
from uws_store.errors import UwsError
from uws_store.model import Tier
from uws_store.tensor_bytes import bytes_of

VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors" / "v1"
FAMILY = "vectors"
HEAD = b'{"attributes":{"uws_store":'
TAIL = b'},"node_type":"group","zarr_format":3}'

Json = dict[str, Any]
Edit = Callable[[Json, Path], None]
"""Changes a document in place; its folder may be changed too."""


@dataclass(frozen=True)
class Outcome:
    """What a reader made of a model: an error's kind or rule, or the tensors."""

    refused: str | None
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]


def ours(registry: Path, task: str, *, tier: Tier = "compact", revision: int | str | None = None) -> Outcome:
    """Read a model with the package."""
    try:
        weights = load_model(FAMILY, task, registry=str(registry), tier=tier, revision=revision)
        made = weights.materialize()
    except UwsError as error:
        return Outcome(error.kind, {})
    dtypes = {name: source.dtype.name for name, source in weights.model.sources.items()}
    return Outcome(
        None, {name: (dtypes[name], tuple(tensor.shape), bytes_of(tensor)) for name, tensor in made.items()}
    )


def theirs(registry: Path, task: str, *, tier: str = "compact", revision: int | str | None = None) -> Outcome:
    """Read a model with the independent reader."""
    try:
        tensors = independent_reader.read_model(registry, FAMILY, task, revision=revision, tier=tier)
    except Refusal as refusal:
        return Outcome(refusal.rule, {})
    return Outcome(
        None, {name: (tensor.dtype, tensor.shape, tensor.data) for name, tensor in tensors.items()}
    )


def to_json(value: object) -> bytes:
    """Write JSON in the canonical form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def log_path(registry: Path, number: int) -> Path:
    return registry / "_log" / f"{number:020d}.json"


def read_commits(registry: Path) -> list[Json]:
    return [json.loads(path.read_bytes()) for path in sorted((registry / "_log").glob("*.json"))]


def write_commits(registry: Path, commits: list[Json]) -> None:
    """Write the log anew, each commit bound to the one before."""
    for number, commit in enumerate(commits, start=1):
        commit["number"] = number
        if number > 1:
            commit["parent"] = hashlib.sha256(log_path(registry, number - 1).read_bytes()).hexdigest()
        log_path(registry, number).write_bytes(to_json(commit))


def append_commit(registry: Path, *actions: Json) -> None:
    """Publish actions that nobody checked."""
    commits = read_commits(registry)
    write_commits(registry, [*commits, {**commits[-1], "actions": list(actions)}])


def model_folder(registry: Path, task: str, version: int = 1) -> Path:
    for commit in read_commits(registry):
        for action in commit["actions"]:
            if (action["op"], action.get("task"), action.get("version")) == ("model", task, version):
                return registry / "families" / FAMILY / "models" / str(action["digest"])
    raise AssertionError(f"{task} {version} is not in the log")


def basis_folder(registry: Path) -> Path:
    action = next(action for action in read_commits(registry)[0]["actions"] if action["op"] == "basis")
    return registry / "families" / FAMILY / "basis" / str(action["digest"])


def read_document(folder: Path) -> Json:
    data = (folder / "zarr.json").read_bytes()
    document: Json = json.loads(data[len(HEAD) : -len(TAIL)])
    return document


def as_group(document: Json) -> bytes:
    return HEAD + to_json(document) + TAIL


def rewrite(
    registry: Path,
    task: str,
    *,
    model: Edit | None = None,
    basis: Edit | None = None,
    group: Callable[[bytes], bytes] = lambda data: data,
) -> None:
    """Edit the first version of a task, or its basis, and make every digest above fit.

    Parameters
    ----------
    registry : Path
        Changed in place. Other tasks are dropped.
    task : str
        The task that is kept.
    model, basis : callable, optional
        The edits.
    group : callable
        Changes the bytes of the model's group document.
    """
    source, old_basis = model_folder(registry, task), basis_folder(registry)
    document = read_document(source)
    family, basis_action, *_ = read_commits(registry)[0]["actions"]
    if basis is not None:
        basis_document = read_document(old_basis)
        basis(basis_document, old_basis)
        document["basis"] = basis_action["digest"] = _store(old_basis, as_group(basis_document))
    if model is not None:
        model(document, source)
    digest = _store(source, group(as_group(document)))
    action = {"op": "model", "family": FAMILY, "task": task, "version": 1, "basis_revision": 1}
    action |= {"digest": digest, "size_bytes": 1, "exact": "exact" in document or "lossless" in document}
    commit = read_commits(registry)[0]
    for path in (registry / "_log").iterdir():
        path.unlink()
    write_commits(registry, [{**commit, "actions": [family, basis_action, action]}])


def _store(folder: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    if folder.name != digest:
        shutil.copytree(folder, folder.parent / digest)
    (folder.parent / digest / "zarr.json").write_bytes(data)
    return digest


def crc(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


def edit_shard(folder: Path, name: str, record: Json, change: Callable[[bytes], bytes]) -> None:
    """Change an array's first shard, and its size and SHA-256 on record."""
    path = folder / name / "c" / "0"
    data = change(path.read_bytes())
    path.write_bytes(data)
    record["shards"][0] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def slots_of(record: Json) -> int:
    return min(-(-int(record["length"]) // int(record["chunk"])), 4096)


def index_of(data: bytes, slots: int) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<QQ", data[-(16 * slots + 4) : -4]))


def with_index(data: bytes, entries: list[tuple[int, int]]) -> bytes:
    """Put another index, with a CRC that fits, at the end of a shard."""
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return data[: -(16 * len(entries) + 4)] + index + crc(index)


def with_chunks(chunks: list[bytes]) -> bytes:
    """Make a shard from payloads."""
    body, entries = b"", []
    for payload in chunks:
        entries.append((len(body), len(payload) + 4))
        body += payload + crc(payload)
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return body + index + crc(index)


def payloads_of(data: bytes, slots: int) -> list[bytes]:
    return [data[offset : offset + length - 4] for offset, length in index_of(data, slots)]


def decoded(payload: bytes) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """The integers of a stream that is known to be sound."""
    values: np.ndarray[tuple[int], np.dtype[np.generic]] = np.asarray(standalone.simple_decompress(payload))
    return values


def encoded(values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> bytes:
    """A stream as any writer may make it."""
    return bytes(standalone.simple_compress(np.ascontiguousarray(values), ChunkConfig()))


def edit_values(
    folder: Path,
    name: str,
    record: Json,
    change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None],
) -> None:
    """Change the integers of an array's first chunk, in place or by what is returned."""

    def shard(data: bytes) -> bytes:
        payloads = payloads_of(data, slots_of(record))
        values = decoded(payloads[0]).copy()
        changed = change(values)
        payloads[0] = encoded(values if changed is None else changed)
        return with_chunks(payloads)

    edit_shard(folder, name, record, shard)
