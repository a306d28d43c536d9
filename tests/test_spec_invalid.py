"""Registries that break one rule each: both readers refuse, ours with the kind and the other with the rule."""

from __future__ import annotations

import base64
import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spec_support import (
    FAMILY,
    VECTORS,
    Json,
    append_commit,
    basis_folder,
    edit_shard,
    edit_values,
    encoded,
    index_of,
    log_path,
    model_folder,
    ours,
    payloads_of,
    read_commits,
    rewrite,
    slots_of,
    theirs,
    with_chunks,
    with_index,
)

from uws_store import verify
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


STORED = [
    Case("flipped byte in a shard", lambda r: flip(shard(r), 10), "format/digest", "R-ARRAY-5"),
    Case(
        "truncated shard",
        lambda r: shard(r).write_bytes(shard(r).read_bytes()[:-1]),
        "format/truncated",
        "R-ARRAY-5",
    ),
    Case("empty shard", lambda r: shard(r).write_bytes(b""), "format/truncated", "R-ARRAY-5"),
    Case("missing shard", lambda r: shard(r).unlink(), "format/missing-object", "R-ARRAY-4"),
    Case(
        "missing residual",
        lambda r: shard(r, "residual32").unlink(),
        "format/missing-object",
        "R-ARRAY-4",
        tier="exact",
    ),
    Case(
        "missing shard of the basis",
        lambda r: (basis_folder(r) / "mean" / "c" / "0").unlink(),
        "format/missing-object",
        "R-ARRAY-4",
    ),
    Case(
        "missing model document",
        lambda r: (model_folder(r, "exact") / "zarr.json").unlink(),
        "format/missing-object",
        "R-GROUP-3",
    ),
    Case(
        "missing basis document",
        lambda r: (basis_folder(r) / "zarr.json").unlink(),
        "format/missing-object",
        "R-GROUP-3",
    ),
    Case(
        "flipped byte in the model document",
        lambda r: flip(model_folder(r, "exact") / "zarr.json", 100),
        "format/digest",
        "R-GROUP-2",
    ),
    Case(
        "flipped byte in the basis document",
        lambda r: flip(basis_folder(r) / "zarr.json", 100),
        "format/digest",
        "R-GROUP-2",
    ),
]

LOG = [
    Case("no uws.json", lambda r: (r / "uws.json").unlink(), "not-found/registry", "R-LOG-1"),
    Case("a gap", lambda r: log_path(r, 5).unlink(), "format/log-gap", "R-LOG-6"),
    Case(
        "a wide gap that the hint shows",
        lambda r: remove(log_path(r, 3), log_path(r, 4), log_path(r, 5)),
        "format/log-gap",
        "R-LOG-6",
    ),
    Case("no first commit", lambda r: log_path(r, 1).unlink(), "format/log-gap", "R-LOG-6"),
    Case(
        "history changed",
        lambda r: log_path(r, 2).write_bytes(log_path(r, 2).read_bytes().replace(b":02Z", b":59Z")),
        "format/log-chain",
        "R-LOG-4",
    ),
    Case(
        "a first commit with a parent",
        lambda r: log_path(r, 1).write_bytes(
            put_field(b"parent", b'"%s"' % DIGEST.encode())(log_path(r, 1).read_bytes())
        ),
        "format/log-chain",
        "R-LOG-4",
    ),
    Case("another number", newest(in_place_of(b'"number":8', b'"number":9')), "format/log-number", "R-LOG-3"),
    Case("a family twice", action(op="family", architecture=DIGEST), "format/log", "R-FOLD-2"),
    Case(
        "an unknown family",
        action(op="basis", family="other", revision=1, digest=DIGEST, size_bytes=1),
        "format/log",
        "R-FOLD-3",
    ),
    Case(
        "a basis revision left out",
        action(op="basis", revision=4, digest=DIGEST, size_bytes=1),
        "format/log",
        "R-FOLD-4",
    ),
    Case(
        "an unknown basis revision",
        action(op="model", task="new", version=1, basis_revision=3, digest=DIGEST, size_bytes=1, exact=False),
        "format/log",
        "R-FOLD-5",
    ),
    Case(
        "a version left out",
        action(
            op="model", task="plain", version=4, basis_revision=1, digest=DIGEST, size_bytes=1, exact=False
        ),
        "format/log",
        "R-FOLD-6",
    ),
    Case(
        "a version of a deleted model used again",
        action(
            op="model", task="gone", version=1, basis_revision=1, digest=DIGEST, size_bytes=1, exact=False
        ),
        "format/log",
        "R-FOLD-6",
    ),
    Case(
        "an alias of a deleted version",
        action(op="alias", task="gone", alias="prod", version=1),
        "format/log",
        "R-FOLD-7",
    ),
    Case(
        "an alias of an unknown task",
        action(op="alias", task="no", alias="a", version=1),
        "format/log",
        "R-FOLD-7",
    ),
    Case("a version deleted twice", action(op="delete", task="gone", version=1), "format/log", "R-FOLD-7"),
    Case("no alias to remove", action(op="alias", task="plain", alias="old"), "format/log", "R-FOLD-8"),
    Case(
        "an aliased version deleted", action(op="delete", task="plain", version=1), "format/log", "R-FOLD-9"
    ),
    Case(
        "a family's name with a path in it",
        action(op="family", family="../x", architecture=DIGEST),
        "format/document",
        "R-JSON-7",
    ),
    Case(
        "a family named like a device",
        action(op="family", family="con.x", architecture=DIGEST),
        "format/document",
        "R-JSON-7",
    ),
    Case(
        "a task's name with a control character",
        action(op="alias", task="a\nb", alias="a", version=1),
        "format/document",
        "R-JSON-7",
    ),
    Case(
        "an alias that could be a version",
        action(op="alias", task="plain", alias="3", version=1),
        "format/document",
        "R-JSON-7",
    ),
    Case("an unknown action", action(op="rename", task="plain"), "format/document", "R-JSON-7"),
]

JSON = [
    Case("a newer registry", lambda r: _registry(r, uws=2), "format/newer-version", "R-VERSION-1"),
    Case(
        "a newer registry of other fields",
        lambda r: _registry(r, uws=3, new=1),
        "format/newer-version",
        "R-VERSION-1",
    ),
    Case("writers in words", lambda r: _registry(r, writers="two"), "format/document", "R-JSON-7"),
    Case(
        "a newer commit", newest(in_place_of(b'"uws":1', b'"uws":2')), "format/newer-version", "R-VERSION-1"
    ),
    Case("a newer model", model(lambda d: d.update(uws=2)), "format/newer-version", "R-VERSION-1"),
    Case("a newer basis", basis(lambda d: d.update(uws=2)), "format/newer-version", "R-VERSION-1"),
    Case("no version", newest(in_place_of(b',"uws":1', b"")), "format/document", "R-JSON-7"),
    Case("true for 1", newest(in_place_of(b'"uws":1', b'"uws":true')), "format/document", "R-JSON-7"),
    Case("1.0 for 1", newest(in_place_of(b'"uws":1', b'"uws":1.0')), "format/document", "R-JSON-7"),
    Case(
        "text for a number",
        newest(in_place_of(b'"number":8', b'"number":"8"')),
        "format/document",
        "R-JSON-7",
    ),
    Case("an unknown field of a commit", newest(put_field(b"note", b'"x"')), "format/document", "R-JSON-6"),
    Case("an unknown field of a model", model(lambda d: d.update(note="x")), "format/document", "R-JSON-6"),
    Case(
        "an unknown field of a row",
        basis(lambda d: d["tensors"][0].update(note="x")),
        "format/document",
        "R-JSON-6",
    ),
    Case("null for no dtype", model(lambda d: d.update(dtype=None)), "format/document", "R-JSON-8"),
    Case(
        "null for no parent",
        lambda r: log_path(r, 1).write_bytes(put_field(b"parent", b"null")(log_path(r, 1).read_bytes())),
        "format/document",
        "R-JSON-8",
    ),
    Case("no kind", model(lambda d: d.pop("kind")), "format/document", "R-JSON-7"),
    Case(
        "a score of no tier",
        model(lambda d: d.update(scores=[{**SCORE, "tier": "best"}])),
        "format/document",
        "R-JSON-7",
    ),
    Case(
        "an interval the wrong way",
        model(lambda d: d.update(scores=[{**SCORE, "paired": {**PAIRED, "low": 2}}])),
        "format/document",
        "R-JSON-7",
    ),
    Case(
        "a registry document without fields",
        lambda r: (r / "uws.json").write_bytes(b"{}"),
        "format/document",
        "R-JSON-7",
    ),
    Case("very deep", newest(lambda data: b"[" * 100_000), "format/depth", "R-JSON-3"),
    Case("no step", model(lambda d: d.pop("step")), "format/document", "R-JSON-7"),
    Case("a duplicate key", newest(put_field(b"number", b"8")), "format/duplicate-key", "R-JSON-4"),
    Case(
        "a duplicate key of a model",
        group(in_place_of(b'"kind":"model"', b'"kind":"model","kind":"model"')),
        "format/duplicate-key",
        "R-JSON-4",
    ),
    Case(
        "an integer of 65 bits",
        newest(in_place_of(b'"number":8', b'"number":%d' % 2**64)),
        "format/json",
        "R-JSON-5",
    ),
    Case(
        "a number beyond float64",
        newest(in_place_of(b'"number":8', b'"number":1e999')),
        "format/json",
        "R-JSON-5",
    ),
    Case("NaN", newest(in_place_of(b'"number":8', b'"number":NaN')), "format/json", "R-JSON-1"),
    Case("half a surrogate pair", newest(in_place_of(b'"old"', b'"\\ud83d"')), "format/json", "R-JSON-1"),
    Case("a byte order mark", newest(lambda data: b"\xef\xbb\xbf" + data), "format/json", "R-JSON-1"),
    Case("not UTF-8", newest(in_place_of(b'"old"', b'"\xff"')), "format/json", "R-JSON-1"),
    Case("half a document", newest(lambda data: data[: len(data) // 2]), "format/json", "R-JSON-1"),
    Case("a document and more", newest(lambda data: data + b"{}"), "format/json", "R-JSON-1"),
    Case("too deep", newest(put_field(b"deep", b"[" * 32 + b"]" * 32)), "format/depth", "R-JSON-3"),
    Case("too long", newest(lambda data: data + b" " * (1 << 22)), "format/size", "R-JSON-2"),
    Case(
        "too long for a model",
        lambda r: (model_folder(r, "exact") / "zarr.json").write_bytes(bytes(17 << 20)),
        "format/size",
        "R-JSON-2",
    ),
    Case(
        "too long for a basis",
        lambda r: (basis_folder(r) / "zarr.json").write_bytes(bytes(65 << 20)),
        "format/size",
        "R-JSON-2",
    ),
    Case(
        "a space in the head of a group",
        group(in_place_of(b'{"attributes"', b'{ "attributes"')),
        "format/group",
        "R-GROUP-1",
    ),
    Case("another order of the tail", group(lambda data: data[:-2] + b"4}"), "format/group", "R-GROUP-1"),
    Case("two attributes", group(in_place_of(b'"uws":1}', b'"uws":1},"x":{}')), "format/json", "R-JSON-1"),
]

ARRAYS = [
    Case("a wrong SHA-256 on record", model(lambda d: d["core"]["shards"][0].update(sha256=DIGEST)), "format/digest", "R-ARRAY-5"),
    Case("a smaller size on record", model(lambda d: _add(d["core"]["shards"][0], "size", -1)), "format/size", "R-ARRAY-5"),
    Case("a larger size on record", model(lambda d: _add(d["core"]["shards"][0], "size", 1)), "format/truncated", "R-ARRAY-5"),
    Case("a shard too many on record", model(lambda d: d["core"]["shards"].append(d["core"]["shards"][0])), "format/document", "R-ARRAY-1"),
    Case("bytes with pages", model(lambda d: d["private_bytes"].update(page=4096)), "format/document", "R-ARRAY-1"),
    Case("integers without pages", model(lambda d: d["residual16"].pop("page")), "format/document", "R-ARRAY-1"),
    Case("no room for the index", core_shard(lambda data, slots: data[-(16 * slots + 3) :]), "format/shard-index", "R-ARRAY-6"),
    Case("a flipped bit in the index", core_shard(lambda data, slots: _flipped(data, len(data) - 4 - 8 * slots)), "format/shard-index", "R-ARRAY-8"),
    Case("a missing chunk", core_shard(entries(lambda index: _put(index, 0, (MISSING, MISSING)))), "format/missing-chunk", "R-ARRAY-7"),
    Case("a half missing chunk", core_shard(entries(lambda index: _put(index, 1, (MISSING, 8)))), "format/missing-chunk", "R-ARRAY-7"),
    Case("a zeroed entry", core_shard(entries(lambda index: _put(index, 0, (0, 0)))), "format/crc", "R-ARRAY-8"),
    Case("an entry beyond the chunks", core_shard(entries(lambda index: _put(index, 0, (1 << 40, 8)))), "format/shard-index", "R-ARRAY-6"),
    Case("an entry that wraps around", core_shard(entries(lambda index: _put(index, 0, (8, MISSING - 7)))), "format/shard-index", "R-ARRAY-6"),
    Case("chunks that overlap", core_shard(entries(lambda index: _put(index, 1, (0, index[0][1] + index[1][1] + 1)))), "format/shard-index", "R-ARRAY-6"),
    Case("two chunks in each other's place", core_shard(entries(lambda index: index.reverse())), "format/tensor-digest", "R-DIGEST-4"),
    Case("a flipped bit in a chunk", core_shard(lambda data, _: _flipped(data, 3)), "format/crc", "R-ARRAY-8"),
    Case("private bytes that are too few", private_shard(first_chunk(lambda data: data[:-1])), "format/size", "R-ARRAY-8"),
    Case("private bytes that are too many", private_shard(first_chunk(lambda data: data + b"x")), "format/size", "R-ARRAY-8"),
    Case("no stream", core_shard(first_chunk(lambda _: b"")), "format/entropy", "R-ARRAY-8"),
    Case("half a stream", core_shard(first_chunk(lambda data: data[: len(data) // 2])), "format/entropy", "R-ARRAY-8"),
    Case("not a stream", core_shard(first_chunk(lambda data: bytes(len(data)))), "format/entropy", "R-ARRAY-8"),
    Case("too few integers", core_values(lambda values: values[:-1]), "format/entropy", "R-ARRAY-8"),
    Case("too many integers", core_values(lambda values: np.append(values, values[:1])), "format/entropy", "R-ARRAY-8"),
    Case("other integers", core_values(lambda values: values[::-1].copy()), "format/tensor-digest", "R-DIGEST-4"),
]  # fmt: skip

TABLE = [
    Case("another fraction", basis(lambda d: d.update(fraction_bits=11)), "format/document", "R-JSON-7"),
    Case("a mean beyond its range", basis(lambda d: d["tensors"][0].update(mean_grid=257)), "format/document", "R-JSON-7"),
    Case("a dtype of no name", basis(lambda d: d["tensors"][0].update(dtype="F4")), "format/document", "R-JSON-7"),
    Case("a tensor twice", basis(lambda d: d["tensors"].append(d["tensors"][-1])), "format/document", "R-BASIS-2"),
    Case("a coded tensor without a shift", basis(lambda d: d["tensors"][0].pop("shift")), "format/document", "R-BASIS-3"),
    Case("a coded tensor of integers", basis(lambda d: d["tensors"][0].update(dtype="I32")), "format/document", "R-BASIS-3"),
    Case("a coded tensor of nothing", basis(lambda d: rows(d)["scale"].update(shape=[0])), "format/document", "R-BASIS-3"),
    Case("a private tensor with a factor", basis(lambda d: rows(d)["running_var"].update(right={"block": 1, "rank": 1})), "format/document", "R-BASIS-3"),
    Case("more elements than any tensor", basis(lambda d: rows(d)["running_var"].update(shape=[2**40, 8])), "format/document", "R-BASIS-3"),
    Case("a gap between groups", basis(lambda d: [row.update(group=4) for row in d["tensors"] if row.get("group") == 2]), "format/document", "R-BASIS-4"),
    Case("tied to nothing", basis(lambda d: rows(d)["head.weight"].update(tied_to="no")), "format/document", "R-BASIS-5"),
    Case("tied to itself", basis(lambda d: rows(d)["head.weight"].update(tied_to="head.weight")), "format/document", "R-BASIS-5"),
    Case("tied to another shape", basis(lambda d: rows(d)["head.weight"].update(tied_to="scale")), "format/document", "R-BASIS-5"),
    Case("shared and tied", basis(lambda d: rows(d)["mask"].update(tied_to="scale")), "format/document", "R-BASIS-5"),
    Case("a rank above its block", basis(lambda d: rows(d)["conv.weight"]["left"].update(rank=9)), "format/document", "R-FACTOR-1"),
    Case("a block above its side", basis(lambda d: rows(d)["conv.weight"]["left"].update(block=9)), "format/document", "R-FACTOR-1"),
    Case("a longer tensor than its mean", basis(lambda d: rows(d)["conv.bias"].update(shape=[9])), "format/table", "R-BASIS-6"),
    Case("another rank than is stored", basis(lambda d: rows(d)["conv.weight"]["left"].update(rank=4)), "format/table", "R-BASIS-6"),
    Case("no profile", basis(lambda d: d.pop("profile")), "format/table", "R-BASIS-6"),
    Case("a longer mean on record", basis(lambda d: _add(d["mean"], "length", 1)), "format/table", "R-BASIS-6"),
    Case("a mean of another dtype", basis(lambda d: d["mean"].update(dtype="int16")), "format/table", "R-ARRAY-2"),
    Case("a longer core", basis(lambda d: _add(d, "core_length", 512)), "format/table", "R-CORE-2"),
    Case("a core of another chunk", basis(lambda d: d.update(core_chunk=256)), "format/table", "R-CORE-2"),
    Case("an exponent beyond 60", basis_values("exponents", lambda v: v.__setitem__(slice(None), 61)), "format/table", "R-FACTOR-3"),
    Case("exponents too far apart", basis_values("exponents", lambda v: v.__setitem__(0, -40)), "format/table", "R-FACTOR-3"),
    Case("a class whose sums could wrap", basis_values("profile", lambda v: v.__setitem__(0, 8192)), "format/table", "R-CORE-4"),
    Case("a class that negates to itself", basis_values("profile", lambda v: v.__setitem__(0, -32768)), "format/table", "R-CORE-4"),
    Case("another order", basis_values("profile", lambda v: v.__setitem__(slice(None), 0)), "format/tensor-digest", "R-DIGEST-4"),
    Case("another mean", basis_values("mean", lambda v: v.__setitem__(5, v[5] + 1)), "format/tensor-digest", "R-DIGEST-4"),
]  # fmt: skip

MODELS = [
    Case("another basis", model(lambda d: d.update(basis=DIGEST)), "format/model", "R-MODEL-1"),
    Case("a private tensor twice", model(lambda d: d["private"].append(d["private"][0])), "format/document", "R-MODEL-3"),
    Case("private bytes missing", model(lambda d: d["private"].append({"name": "x", "shape": [1], "dtype": "U8"})), "format/document", "R-MODEL-3"),
    Case("an absent tensor of no name", model(lambda d: d.update(absent=["no"])), "format/model", "R-MODEL-4"),
    Case("an absent tensor twice", model(lambda d: d.update(absent=["scale", "scale"])), "format/document", "R-MODEL-4"),
    Case("private and absent", model(lambda d: d.update(absent=["running_var"])), "format/document", "R-MODEL-4"),
    Case("a private tensor under another name", model(lambda d: d["private"][0].update(name="x")), "format/model", "R-MODEL-5"),
    Case("tied to what is absent", model(lambda d: d.update(absent=["embed.weight"])), "format/model", "R-MODEL-6"),
    Case("a dtype twice", model(lambda d: d.update(dtypes=[["scale", "F16"], ["scale", "F32"]])), "format/document", "R-MODEL-7"),
    Case("a dtype of a private tensor", model(lambda d: d.update(dtypes=[["running_var", "F16"]])), "format/model", "R-MODEL-7"),
    Case("a dtype of integers", model(lambda d: d.update(dtypes=[["scale", "I32"]])), "format/model", "R-MODEL-7"),
    Case("one dtype of integers", model(lambda d: d.update(dtype="U8")), "format/model", "R-MODEL-7"),
    Case("another dtype of the same width", model(lambda d: d.update(dtypes=[["half.weight", "BF16"]])), "format/tensor-digest", "R-DIGEST-4"),
    Case("an error missing", model(lambda d: d.update(errors=d["errors"][:-4])), "format/model", "R-MODEL-8"),
    Case("an error that is NaN", model(lambda d: d.update(errors="/34AAAAA" + d["errors"][8:])), "format/document", "R-MODEL-8"),
    Case("errors that are not base64", model(lambda d: d.update(errors="?" * len(d["errors"]))), "format/document", "R-MODEL-8"),
    Case("a private group of no basis", model(lambda d: d.update(private_groups=[9])), "format/model", "R-MODEL-10"),
    Case("private groups that fall", model(lambda d: d.update(private_groups=[2, 1])), "format/document", "R-MODEL-10"),
    Case("a private group without its bytes", model(lambda d: d.update(private_groups=[1])), "format/model", "R-MODEL-3"),
    Case("no core", model(lambda d: d.pop("core")), "format/model", "R-CORE-3"),
    Case("a core of wrong length", model(lambda d: _add(d["core"], "length", -1)), "format/model", "R-CORE-3"),
    Case("a core of another page", model(lambda d: d["core"].update(page=8192)), "format/model", "R-CORE-3"),
    Case("a core of unsigned integers", model(lambda d: d["core"].update(dtype="uint16")), "format/document", "R-CORE-3"),
    Case("a core of another dtype than stored", model(lambda d: d["core"].update(dtype="int32")), "format/entropy", "R-ARRAY-3"),
    Case("a leaf too few", model(lambda d: d["compact"].update(leaves=_leaves(d, slice(8, None)))), "format/model", "R-DIGEST-3"),
    Case("a wrong leaf", model(lambda d: d["compact"].update(leaves=_leaves(d, slice(None, None, -1)))), "format/tensor-digest", "R-DIGEST-4"),
    Case("a wrong root", model(lambda d: d["compact"].update(root=DIGEST)), "format/tensor-digest", "R-DIGEST-4"),
    Case("a coarser step", model(lambda d: _add(d["step"], "mantissa", 1)), "format/tensor-digest", "R-DIGEST-4"),
    Case("a step beyond exactness", model(lambda d: d["step"].update(exponent=100)), "format/tensor-digest", "R-EXACT-1"),
    Case("no exact tier", model(lambda d: [d.pop(name) for name in ("exact", "residual16", "residual32", "residual64")]), "fidelity/no-exact-tier", "R-TIER-2", tier="exact"),
    Case("a residual without the tier", model(lambda d: d.pop("exact")), "format/document", "R-RES-1"),
    Case("a residual of another width", model(lambda d: d["residual16"].update(dtype="uint32")), "format/document", "R-ARRAY-2", tier="exact"),
    Case("no residual", model(lambda d: d.pop("residual64")), "format/model", "R-RES-2", tier="exact"),
    Case("another residual", lambda r: rewrite(r, "exact", model=lambda d, f: edit_values(f, "residual32", d["residual32"], lambda v: v[::-1].copy())), "format/tensor-digest", "R-DIGEST-4", tier="exact"),
    Case("a wrong root of the exact tier", model(lambda d: d["exact"].update(root=DIGEST)), "format/tensor-digest", "R-DIGEST-4", tier="exact"),
]  # fmt: skip

CASES = [*STORED, *LOG, *JSON, *ARRAYS, *TABLE, *MODELS]


def _registry(registry: Path, **fields: object) -> None:
    path = registry / "uws.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def _add(record: Json, name: str, amount: int) -> None:
    record[name] += amount


def _put(index: list[tuple[int, int]], position: int, entry: tuple[int, int]) -> None:
    index[position] = entry


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def _leaves(document: Json, part: slice) -> str:
    return base64.b64encode(base64.b64decode(document["compact"]["leaves"])[part]).decode()


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    shutil.copytree(VECTORS / "registry", folder)
    return folder


def problems(registry: Path) -> set[str]:
    """What the package's verification of the model finds."""
    result = verify(FAMILY, registry=str(registry), task="exact")
    return {problem.kind for verdict in result.models for problem in verdict.report.problems}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_readers_refuse(case: Case, registry: Path) -> None:
    case.damage(registry)
    assert ours(registry, "exact", tier=case.tier).refused == case.kind
    assert theirs(registry, "exact", tier=case.tier).refused == case.rule


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda registry: flip(registry / "families" / FAMILY / "models" / "zarr.json"),
        model(lambda document: None),
        model(lambda document: [document.pop(name) for name in ("absent", "dtypes", "scores")]),
        model(
            lambda document: document.update(
                scores=[SCORE, {**SCORE, "n": 9, "max_drop": 0, "paired": PAIRED}]
            )
        ),
        basis(lambda document: document.update(build={**document["build"], "tool": "another"})),
        core_values(lambda values: None),
        private_shard(lambda data, slots: with_chunks(payloads_of(data, slots))),
        lambda registry: flip(registry / "_log" / "head", 1),
        lambda registry: _registry(registry, writers="one"),
        lambda registry: (registry / "_log" / "head").write_bytes(b"{"),
        lambda registry: (registry / "_log" / "head").write_bytes(b'{"number":3,"uws":1}'),
        lambda registry: flip(registry / "families" / FAMILY / "zarr.json"),
        lambda registry: (registry / "_log" / ".tmp-123").write_bytes(b"half"),
        newest(in_place_of(b":08Z", b":59Z")),
        newest(lambda data: json.dumps(json.loads(data), indent=2).encode()),
    ],
)
@pytest.mark.parametrize("tier", ["compact", "exact"])
def test_what_breaks_no_rule_is_read(damage: Damage, tier: Tier, registry: Path) -> None:
    damage(registry)
    mine, other = ours(registry, "exact", tier=tier), theirs(registry, "exact", tier=tier)
    assert mine.refused is None
    assert other.refused is None
    assert mine.tensors == other.tensors == theirs(VECTORS / "registry", "exact", tier=tier).tensors


def test_other_array_metadata_is_refused_where_it_is_read(registry: Path) -> None:
    path = model_folder(registry, "exact") / "core" / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"fill_value":0', b'"fill_value":1'))
    assert theirs(registry, "exact").refused == "R-ARRAY-3"
    assert problems(registry) == {"format/array-metadata"}
    # The record says all that the metadata does, so a reader of ranges never asks for it.
    assert ours(registry, "exact").refused is None


def test_a_shard_with_bytes_behind_its_index_is_found_by_who_reads_it_whole(registry: Path) -> None:
    path = shard(registry)
    path.write_bytes(path.read_bytes() + b"x")
    assert theirs(registry, "exact").refused == "R-ARRAY-5"
    assert problems(registry) == {"format/size"}


def test_a_stream_that_claims_millions_is_refused_without_room_for_them(registry: Path) -> None:
    claim = encoded(np.zeros(1 << 24, np.int16))
    assert len(claim) < 10_000
    core_shard(first_chunk(lambda _: claim))(registry)
    tracemalloc.start()
    try:
        assert ours(registry, "exact").refused == "format/entropy"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_stream_of_another_dtype_is_refused(registry: Path) -> None:
    core_values(lambda values: values.astype(np.int32))(registry)
    assert ours(registry, "exact").refused == "format/entropy"
    # A library that converts gives the same weights.
    assert theirs(registry, "exact").tensors == ours(VECTORS / "registry", "exact").tensors


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_table_of_a_trillion_blocks_is_refused_without_a_list_of_them(side: str, registry: Path) -> None:
    def edit(document: Json) -> None:
        shape = [2**41, 1] if side == "left" else [2**41]
        rows(document)["conv.bias"].update({"shape": shape, side: {"block": 1, "rank": 1}})

    basis(edit)(registry)
    tracemalloc.start()
    try:
        assert ours(registry, "exact").refused == "format/table"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert theirs(registry, "exact").refused == "R-BASIS-6"


@pytest.mark.parametrize(
    ("task", "revision", "kind"),
    [
        ("no", None, "not-found/task"),
        ("plain", 9, "not-found/version"),
        ("plain", "old", "not-found/version"),
        ("gone", None, "not-found/version"),
        ("gone", 1, "not-found/version"),
    ],
)
def test_a_name_that_resolves_to_nothing_is_refused(
    task: str, revision: int | str | None, kind: str, registry: Path
) -> None:
    assert ours(registry, task, revision=revision).refused == kind
    assert theirs(registry, task, revision=revision).refused == "R-FOLD-10"
