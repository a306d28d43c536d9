"""Packs in the format: a frozen registry of models in packs and in folders, read by both readers, and broken in one way each."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_pack_vectors
import pytest
from independent_documents import read_log
from independent_log import read_from_checkpoint
from independent_reader import read_files
from spec_support import FAMILY, VECTORS, Json, ours, read_commits, theirs, write_commits
from test_spec_schemas import documents_of, is_valid

from uws_store import load_model, verify
from uws_store.model import Tier
from uws_store.registry import Registry

PACKS = VECTORS / "packs"
REGISTRY = PACKS / "registry"
MODELS: list[dict[str, Any]] = json.loads((PACKS / "expected.json").read_bytes())["models"]
TIERS: tuple[Tier, ...] = ("mean", "compact", "exact")
READS = [
    pytest.param(model, tier, id=f"{model['task']}@{model['version']}-{tier}")
    for model in MODELS
    for tier in TIERS
    if tier in next(iter(model["tensors"].values()))
]


def packed(registry: Path = REGISTRY) -> dict[tuple[str, int], Json]:
    """The actions of the versions that lie in packs."""
    return {
        (action["task"], action["version"]): action
        for commit in read_commits(registry)
        for action in commit["actions"]
        if "pack" in action
    }


def pack_of(registry: Path, task: str) -> Path:
    return registry / "families" / FAMILY / "packs" / str(packed(registry)[task, 1]["pack"]["digest"])


@pytest.mark.parametrize(("model", "tier"), READS)
@pytest.mark.parametrize("read", [ours, theirs])
def test_both_readers_give_the_bits_on_record(read: Any, model: dict[str, Any], tier: Tier) -> None:
    outcome = read(REGISTRY, model["task"], tier=tier, revision=model["version"])
    assert outcome.refused is None
    found = {
        name: [dtype, list(shape), hashlib.sha256(data).hexdigest()]
        for name, (dtype, shape, data) in outcome.tensors.items()
    }
    assert found == {name: [row["dtype"], row["shape"], row[tier]] for name, row in model["tensors"].items()}


def test_side_files_are_read_from_a_pack_too() -> None:
    (expected,) = [model["files"] for model in MODELS if "files" in model]
    mine = load_model(FAMILY, "odd", registry=str(REGISTRY)).side_files()
    assert mine == read_files(REGISTRY, FAMILY, "odd")
    assert {name: hashlib.sha256(data).hexdigest() for name, data in mine.items()} == expected


def test_both_readers_know_places_from_the_log_and_from_a_snapshot() -> None:
    logged, kept = read_log(REGISTRY)[FAMILY], read_from_checkpoint(REGISTRY)[FAMILY]
    assert {task: held.versions for task, held in logged.tasks.items()} == {
        task: held.versions for task, held in kept.tasks.items()
    }
    opened = Registry.open(str(REGISTRY))
    found = {
        (entry.task, entry.version): entry.pack and entry.pack.model_dump()
        for entry in opened.state().models()
    }
    assert found == {
        (task, number): version.place
        for task, held in logged.tasks.items()
        for number, version in held.versions.items()
    }
    assert sum(place is not None for place in found.values()) == 5
    assert opened.audit() == ()


def test_a_pack_is_models_end_to_end_and_nothing_else() -> None:
    spans: dict[str, set[tuple[int, int]]] = {}
    for action in packed().values():
        place = action["pack"]
        spans.setdefault(place["digest"], set()).add((place["offset"], place["offset"] + place["length"]))
    assert len(spans) == 2
    for digest, held in spans.items():
        data = (REGISTRY / "families" / FAMILY / "packs" / digest).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        ends = sorted(held)
        assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
        assert ends[-1][1] == len(data)
        assert b"chunk_grid" not in data


def test_a_model_is_the_same_in_a_pack_and_in_a_folder() -> None:
    sizes: dict[str, list[tuple[int, bool]]] = {}
    for commit in read_commits(REGISTRY):
        for action in commit["actions"]:
            if action["op"] == "model":
                sizes.setdefault(action["digest"], []).append((action["size_bytes"], "pack" in action))
    both = [held for held in sizes.values() if {packed for _, packed in held} == {True, False}]
    assert len(both) == 2
    assert all(len({size for size, _ in held}) == 1 for held in both)
    folders = [path for path in (REGISTRY / "families" / FAMILY / "models").iterdir() if path.is_dir()]
    for folder in folders:
        objects = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert sizes[folder.name][0][0] == objects
    for task, first, second in (("exact", 1, 2),):
        assert ours(REGISTRY, task, revision=first).tensors == ours(REGISTRY, task, revision=second).tensors


def test_the_documents_fit_their_schemas() -> None:
    documents = documents_of(REGISTRY)
    assert {name for name, _ in documents} >= {"registry", "head", "commit", "snapshot", "model", "basis"}
    assert all(is_valid(name, document) for name, document in documents)


def test_every_object_of_a_packed_model_is_verified() -> None:
    result = verify(FAMILY, registry=str(REGISTRY))
    assert result.ok
    assert len(result.models) >= 5


def test_the_tool_writes_what_was_written_then(tmp_path: Path) -> None:
    assert make_pack_vectors.main([str(tmp_path / "made")]) == 0
    assert make_pack_vectors.main([str(tmp_path / "made")]) == 2
    for task in ("plain", "exact", "odd"):
        mine = ours(tmp_path / "made" / "registry", task)
        assert mine.refused is None
        assert mine.tensors == theirs(tmp_path / "made" / "registry", task).tensors


def in_place(task: str = "exact", **changes: int) -> Callable[[Path], None]:
    """Move a version's place by some bytes."""

    def change(registry: Path) -> None:
        commits = read_commits(registry)
        for commit in commits:
            for action in commit["actions"]:
                if (action.get("task"), action.get("version")) == (task, 1) and "pack" in action:
                    for name, by in changes.items():
                        action["pack"][name] += by
        forget_snapshots(registry, commits)

    return change


def forget_snapshots(registry: Path, commits: list[Json]) -> None:
    for commit in commits:
        commit.pop("index", None)
    write_commits(registry, commits)


def in_pack(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(registry: Path) -> None:
        path = pack_of(registry, "exact")
        path.write_bytes(change(path.read_bytes()))

    return damage


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


PLACE: Json = packed()["exact", 1]["pack"]
START: int = PLACE["offset"]
SHARDS: int = START + PLACE["document"]
END: int = START + PLACE["length"]
DAMAGES: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("no pack", lambda registry: pack_of(registry, "exact").unlink(), "format/missing-object", "R-PACK-2"),
    ("a pack cut short", in_pack(lambda data: data[: END - 1]), "format/truncated", "R-PACK-2"),
    ("a pack cut within the document", in_pack(lambda data: data[: START + 9]), "format/truncated", "R-PACK-2"),
    ("an empty pack", in_pack(lambda _: b""), "format/truncated", "R-PACK-2"),
    ("a flipped bit in the document", in_pack(lambda data: flipped(data, START + 40)), "format/digest", "R-GROUP-2"),
    ("a flipped bit in the core", in_pack(lambda data: flipped(data, SHARDS + 5)), "format/digest", "R-ARRAY-5"),
    ("another offset", in_place(offset=-1), "format/digest", "R-GROUP-2"),
    ("an offset beyond the pack", in_place(offset=1 << 40), "format/truncated", "R-PACK-2"),
    ("a document too short", in_place(document=-1), "format/digest", "R-GROUP-2"),
    ("a length too short", in_place(length=-1), "format/pack", "R-PACK-2"),
    ("a length beyond the pack", in_place(length=1), "format/truncated", "R-PACK-2"),
    ("no length", in_place(length=-PLACE["length"]), "format/document", "R-JSON-7"),
    ("a document longer than the model", in_place(length=PLACE["document"] - 1 - PLACE["length"]), "format/document", "R-JSON-7"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage[0])
def test_both_readers_refuse(damage: tuple[str, Callable[[Path], None], str, str], tmp_path: Path) -> None:
    _, change, kind, rule = damage
    registry = tmp_path / "registry"
    shutil.copytree(REGISTRY, registry)
    (registry / "_log" / "head").unlink()
    change(registry)
    # The same model lies whole in a folder, and is no way out.
    assert ours(registry, "exact", revision=1, tier="exact").refused == kind
    assert theirs(registry, "exact", revision=1, tier="exact").refused == rule


def test_a_model_is_no_longer_than_its_parts(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(REGISTRY, registry)
    (registry / "_log" / "head").unlink()
    in_place("plain", length=1)(registry)
    assert ours(registry, "plain", revision=1).refused == "format/pack"
    assert theirs(registry, "plain", revision=1).refused == "R-PACK-2"


def test_a_damaged_pack_is_told_by_verify(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(REGISTRY, registry)
    in_pack(lambda data: flipped(data, SHARDS + 5))(registry)
    assert verify(FAMILY, "same", registry=str(registry)).ok
    (verdict,) = verify(FAMILY, "exact@1", registry=str(registry)).models
    assert [problem.kind for problem in verdict.report.problems] == ["format/digest"]
