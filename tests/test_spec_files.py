"""Side files in the format: a frozen registry that holds them, read by both readers, and broken in one way each."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import independent_reader
import pytest
from independent_documents import Refusal
from spec_support import FAMILY, VECTORS, Json, edit_shard, ours, rewrite, theirs, with_chunks

from uws_store import load_model, verify
from uws_store.errors import UwsError

FILES = VECTORS / "files"
REGISTRY = FILES / "registry"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_bytes())
MODELS: list[dict[str, Any]] = EXPECTED["models"]


def our_files(registry: Path, task: str) -> dict[str, bytes] | str:
    """The package's side files, or the kind of its refusal."""
    try:
        return load_model(FAMILY, task, registry=str(registry)).side_files()
    except UwsError as error:
        return error.kind


def their_files(registry: Path, task: str) -> dict[str, bytes] | str:
    try:
        return independent_reader.read_files(registry, FAMILY, task)
    except Refusal as refusal:
        return refusal.rule


def test_the_vectors_hold_every_kind_of_side_file() -> None:
    names = {task["task"]: set(task.get("files", ())) for task in MODELS}
    assert names["same"] == {"config.json", "tokenizer.json", "merges.txt"}
    assert "1_Pooling/config.json" in names["other"]
    assert names["bare"] == set()
    files = {task["task"]: task.get("files", {}) for task in MODELS}
    assert files["same"]["config.json"] != files["other"]["config.json"]
    assert files["same"]["tokenizer.json"] == files["other"]["tokenizer.json"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["task"])
def test_both_readers_give_the_files_on_record(model: dict[str, Any]) -> None:
    mine, other = our_files(REGISTRY, model["task"]), their_files(REGISTRY, model["task"])
    assert isinstance(mine, dict)
    assert mine == other
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in mine.items()}
    assert digests == model.get("files", {})


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["task"])
def test_side_files_change_no_tensor(model: dict[str, Any]) -> None:
    mine = ours(REGISTRY, model["task"], tier="exact")
    assert mine.refused is None
    assert mine.tensors == theirs(REGISTRY, model["task"], tier="exact").tensors
    found = {name: hashlib.sha256(data).hexdigest() for name, (_, _, data) in mine.tensors.items()}
    assert found == {name: row["exact"] for name, row in model["tensors"].items()}


def test_files_of_several_models_are_stored_once() -> None:
    content = b'{"gr\xc3\xb6\xc3\x9fe": [0, 1'
    holding = [path for path in REGISTRY.rglob("*") if path.is_file() and content in path.read_bytes()]
    assert len(holding) == 1


def model(edit: Callable[[Json], object]) -> Callable[[Path], None]:
    def change(document: Json, _: Path) -> None:
        edit(document)

    return lambda registry: rewrite(registry, "other", model=change)


def named(name: str) -> Callable[[Path], None]:
    """Give the first of the model's own files another name."""
    return model(lambda document: document["files"][0].update(name=name))


def _other_bytes(registry: Path) -> None:
    def change(document: Json, folder: Path) -> None:
        def swap(data: bytes) -> bytes:
            # Both the CRC and the shard's digest are made to fit: only the file's own SHA-256 tells.
            size = document["file_bytes"]["length"]
            body = bytes([data[0] ^ 1]) + data[1:size]
            return with_chunks([body])

        edit_shard(folder, "files", document["file_bytes"], swap)

    rewrite(registry, "other", model=change)


CASES = [
    *(
        pytest.param(named(name), "format/document", "R-FILE-1", id=f"named {name[:20]!r}")
        for name in (
            "../config.json",
            "/config.json",
            "a/config.json",
            ".config.json",
            "config.py",
            "model.pkl",
            "config.json\n",
            "con.json",
            "1_Pooling/NUL.json",
            "a\\b.json",
            "c\u043enfig.json",
            "x" * 97 + ".json",
        )
    ),
    pytest.param(named("CONFIG.JSON"), "format/document", "R-FILE-1", id="suffix in capitals"),
    pytest.param(
        model(lambda document: document["shared_files"].append("Config.json")),
        "format/document",
        "R-FILE-2",
        id="two that differ in case",
    ),
    pytest.param(
        model(lambda document: document["files"].append(document["files"][0])),
        "format/document",
        "R-FILE-2",
        id="one name twice",
    ),
    pytest.param(
        model(lambda document: document["files"][0].update(size=1)),
        "format/document",
        "R-FILE-2",
        id="sizes that do not sum",
    ),
    pytest.param(
        model(lambda document: document["shared_files"].append("vocab.txt")),
        "format/model",
        "R-FILE-3",
        id="a name the basis lacks",
    ),
    pytest.param(
        model(lambda document: document["files"][0].update(sha256="0" * 64)),
        "format/digest",
        "R-FILE-3",
        id="another digest",
    ),
    pytest.param(_other_bytes, "format/digest", "R-FILE-3", id="other bytes"),
]


@pytest.mark.parametrize(("damage", "kind", "rule"), CASES)
def test_both_readers_refuse(damage: Callable[[Path], None], kind: str, rule: str, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(REGISTRY, registry)
    damage(registry)
    assert our_files(registry, "other") == kind
    assert their_files(registry, "other") == rule
    assert not verify(FAMILY, "other", registry=str(registry)).ok


def test_damaged_files_leave_the_weights_loadable(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(REGISTRY, registry)
    _other_bytes(registry)
    assert ours(registry, "other", tier="exact").refused is None
