"""The vectors of the log: checkpoints and snapshots, read by both readers, from the beginning and from a checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import make_log_vectors
import pytest
from independent_documents import Family, Refusal, check_record, fold, read_log
from independent_log import read_commit, read_from_checkpoint, read_snapshot
from spec_support import VECTORS
from test_spec_schemas import documents_of, is_valid

from uws_store.registry import Registry
from uws_store.registry.reading import replay

FOLDER = VECTORS / "log"
REGISTRY = FOLDER / "registry"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_bytes())
COMMITS = 9


def names_of(families: dict[str, Family]) -> dict[str, Any]:
    return {
        name: {
            "bases": family.bases,
            "tasks": {
                task: {
                    "last_version": held.last,
                    "versions": {str(version): digests[0] for version, digests in held.versions.items()},
                    "aliases": dict(held.aliases),
                }
                for task, held in family.tasks.items()
            },
        }
        for name, family in families.items()
    }


def expected() -> dict[str, Any]:
    return {
        name: {key: value for key, value in family.items() if key != "architecture"}
        for name, family in EXPECTED.items()
    }


def test_both_readers_give_the_names_on_record_from_a_checkpoint() -> None:
    assert names_of(read_from_checkpoint(REGISTRY)) == expected()
    assert make_log_vectors.names_of(Registry.open(str(REGISTRY)).state()) == EXPECTED


def test_both_readers_give_the_names_on_record_from_the_beginning() -> None:
    assert names_of(read_log(REGISTRY)) == expected()
    storage = Registry.open(str(REGISTRY)).storage
    assert make_log_vectors.names_of(replay(storage, COMMITS)) == EXPECTED
    assert Registry.open(str(REGISTRY)).audit() == ()


def test_checkpoints_say_what_the_commits_before_them_say() -> None:
    families: dict[str, Family] = {}
    newest: int | None = None
    for number in range(1, COMMITS + 1):
        commit, _ = read_commit(REGISTRY, number)
        assert commit.get("checkpoint") == newest
        if "index" in commit:
            newest = number
            kept = {entry["family"]: read_snapshot(REGISTRY, entry) for entry in commit["index"]}
            assert names_of(kept) == names_of(families)
        for action in commit["actions"]:
            fold(families, action)
    assert newest == make_log_vectors.CHECKPOINTS[-1]


def test_the_tail_is_the_log() -> None:
    head = json.loads((REGISTRY / "_log" / "head").read_bytes())
    check_record("head", head, "head")
    stored = [read_commit(REGISTRY, number)[1].decode() for number in range(7, COMMITS + 1)]
    assert head["tail"] == stored


def test_the_documents_fit_their_schemas() -> None:
    documents = documents_of(REGISTRY)
    assert {name for name, _ in documents} == {"registry", "head", "commit", "snapshot"}
    assert all(is_valid(name, document) for name, document in documents)


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_snapshot_is_refused_or_replaced_by_the_log(tmp_path: Path, damage: str) -> None:
    registry = Path(shutil.copytree(REGISTRY, tmp_path / "registry"))
    for path in (registry / "_log" / "snapshots").iterdir():
        data = path.read_bytes()
        path.unlink()
        if damage == "flipped":
            path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(Refusal) as caught:
        read_from_checkpoint(registry)
    assert caught.value.rule == "R-SNAP-3"
    assert make_log_vectors.names_of(Registry.open(str(registry)).state()) == EXPECTED


def test_what_is_written_today_is_what_was_written_then(tmp_path: Path) -> None:
    assert make_log_vectors.main([str(tmp_path / "new")]) == 0
    assert make_log_vectors.main([str(tmp_path / "new")]) == 2
    made = {
        path.relative_to(tmp_path / "new"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "new").rglob("*")
        if path.is_file()
    }
    kept = {
        path.relative_to(FOLDER): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.rglob("*")
        if path.is_file()
    }
    assert made == kept
