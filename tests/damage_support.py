"""Ways to damage a registry of the vectors: stored bytes, and documents and shards with every digest made to fit."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spec_support import (
    FAMILY,
    Json,
    append_commit,
    edit_shard,
    edit_values,
    index_of,
    log_path,
    model_folder,
    payloads_of,
    read_commits,
    rewrite,
    slots_of,
    with_chunks,
    with_index,
)

from uws_store.model import Tier

MISSING = 2**64 - 1
DIGEST = "0123456789abcdef" * 4
SCORE = {
    "metric": "accuracy",
    "tier": "compact",
    "original": 1,
    "reconstruction": 0.5,
    "higher_is_better": True,
}
SCORE |= {"evaluation": "package.module:function"}
PAIRED = {"mean": 0.5, "low": 0.25, "high": 1}
Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One way to be wrong, on a copy of the vectors; read are the task ``exact`` and the tier given."""

    name: str
    damage: Damage
    kind: str
    rule: str
    tier: Tier = "compact"


def flip(path: Path, position: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def shard(registry: Path, name: str = "core") -> Path:
    return model_folder(registry, "exact") / name / "c" / "0"


def model(edit: Callable[[Json], object]) -> Damage:
    """Edit the model's document."""
    return lambda registry: rewrite(registry, "exact", model=lambda document, _: _drop(edit(document)))


def basis(edit: Callable[[Json], object]) -> Damage:
    """Edit the basis's document."""
    return lambda registry: rewrite(registry, "exact", basis=lambda document, _: _drop(edit(document)))


def core_shard(change: Callable[[bytes, int], bytes]) -> Damage:
    """Change the bytes of the core's shard; the function gets the number of its index entries too."""

    def edit(document: Json, folder: Path) -> None:
        core = document["core"]
        edit_shard(folder, "core", core, lambda data: change(data, slots_of(core)))

    return lambda registry: rewrite(registry, "exact", model=edit)


def private_shard(change: Callable[[bytes, int], bytes]) -> Damage:
    def edit(document: Json, folder: Path) -> None:
        array = document["private_bytes"]
        edit_shard(folder, "private", array, lambda data: change(data, slots_of(array)))

    return lambda registry: rewrite(registry, "exact", model=edit)


def basis_values(name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]) -> Damage:
    """Change the integers of one of the basis's arrays."""
    return lambda registry: rewrite(
        registry,
        "exact",
        basis=lambda document, folder: edit_values(folder, name, document[name], change),
    )


def core_values(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]) -> Damage:
    return lambda registry: rewrite(
        registry,
        "exact",
        model=lambda document, folder: edit_values(folder, "core", document["core"], change),
    )


def rows(document: Json) -> dict[str, Json]:
    return {row["name"]: row for row in document["tensors"]}


def action(**fields: object) -> Damage:
    """Publish one action more."""
    return lambda registry: append_commit(registry, {"family": FAMILY, **fields})


def newest(change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of the newest commit, which no other names."""

    def damage(registry: Path) -> None:
        path = log_path(registry, len(read_commits(registry)))
        path.write_bytes(change(path.read_bytes()))

    return damage


def put_field(name: bytes, value: bytes) -> Callable[[bytes], bytes]:
    """Put a field in front of the others."""
    return lambda data: b'{"' + name + b'":' + value + b"," + data[1:]


def in_place_of(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def group(change: Callable[[bytes], bytes]) -> Damage:
    return lambda registry: rewrite(registry, "exact", group=change)


def entries(change: Callable[[list[tuple[int, int]]], object]) -> Callable[[bytes, int], bytes]:
    """Change a shard's index; its CRC is made to fit."""

    def edit(data: bytes, slots: int) -> bytes:
        index = index_of(data, slots)
        _drop(change(index))
        return with_index(data, index)

    return edit


def first_chunk(change: Callable[[bytes], bytes]) -> Callable[[bytes, int], bytes]:
    """Change the first chunk's payload; CRC and index are made to fit."""

    def edit(data: bytes, slots: int) -> bytes:
        payloads = payloads_of(data, slots)
        return with_chunks([change(payloads[0]), *payloads[1:]])

    return edit


def _drop(_value: object) -> None:
    """Let a lambda's result go."""


def with_fields(registry: Path, **fields: object) -> None:
    path = registry / "uws.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def add(record: Json, name: str, amount: int) -> None:
    record[name] += amount


def put(index: list[tuple[int, int]], position: int, entry: tuple[int, int]) -> None:
    index[position] = entry


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def leaves(document: Json, part: slice) -> str:
    return base64.b64encode(base64.b64decode(document["compact"]["leaves"])[part]).decode()
