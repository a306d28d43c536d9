"""The vectors of the log: checkpoints and snapshots, read by both readers, from the beginning and from a checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_log_vectors
import pytest
from independent_documents import Family, Refusal, check_record, fold, read_log
from independent_log import read_commit, read_from_checkpoint, read_snapshot
from spec_support import VECTORS
from storage_support import found_family
from test_spec_schemas import documents_of, is_valid

from uws_store.errors import FormatError, NotFoundError
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


def test_from_a_checkpoint_the_registrys_document_need_not_be_read(tmp_path: Path) -> None:
    registry = Path(shutil.copytree(REGISTRY, tmp_path / "registry"))
    (registry / "uws.json").unlink()
    assert names_of(read_from_checkpoint(registry)) == expected()
    opened = Registry.open(str(registry))
    assert make_log_vectors.names_of(opened.state()) == EXPECTED
    with pytest.raises(NotFoundError) as caught:
        opened.publish(found_family("delta"))
    assert caught.value.kind == "not-found/registry"
    # Who begins at commit 1 refuses, and so does a reader that nothing leads to a checkpoint.
    with pytest.raises(Refusal) as refused:
        read_log(registry)
    assert refused.value.rule == "R-LOG-1"
    (registry / "_log" / "head").unlink()
    with pytest.raises(NotFoundError) as caught:
        Registry.open(str(registry))
    assert caught.value.kind == "not-found/registry"


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("head", ["stale", "new", "none"])
def test_a_log_that_goes_on_in_a_later_version_is_refused_wherever_one_begins(
    tmp_path: Path, head: str, *, replaced: bool
) -> None:
    registry = Path(shutil.copytree(FOLDER / "newer", tmp_path / "registry"))
    if not replaced:  # its writer was cut off between the commit and the document
        shutil.copyfile(REGISTRY / "uws.json", registry / "uws.json")
    if head == "none":
        (registry / "_log" / "head").unlink()
    elif head == "new":
        (registry / "_log" / "head").write_bytes(b'{"number":%d,"uws":1}' % (COMMITS + 1))
    with pytest.raises(FormatError) as caught:
        Registry.open(str(registry)).state()
    assert caught.value.kind == "format/newer-version"
    for read in (read_log, read_from_checkpoint) if head != "none" else (read_log,):
        with pytest.raises(Refusal) as refused:
            read(registry)
        assert refused.value.rule == "R-VERSION-1"


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


def rechain(registry: Path, edit: Callable[[dict[str, Any]], None], *, first: int) -> None:
    """Edit a commit and let those after it follow from it."""
    parent: str | None = None
    for number in range(first, COMMITS + 1):
        path = registry / "_log" / f"{number:020d}.json"
        commit = json.loads(path.read_bytes())
        if number == first:
            edit(commit)
        else:
            commit["parent"] = parent
        data = json.dumps(commit, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        parent = hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
    (registry / "_log" / "head").write_text(json.dumps({"uws": 1, "number": COMMITS}))


def resnap(registry: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the snapshot of family beta in the newest checkpoint, and let its digest fit."""

    def into(commit: dict[str, Any]) -> None:
        (entry,) = (entry for entry in commit["index"] if entry["family"] == "beta")
        folder = registry / "_log" / "snapshots"
        snapshot = json.loads((folder / f"{entry['digest']}.json").read_bytes())
        edit(snapshot)
        data = json.dumps(snapshot, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        entry.update(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        (folder / f"{entry['digest']}.json").write_bytes(data)

    rechain(registry, into, first=7)


@pytest.mark.parametrize(
    ("rule", "edit"),
    [
        ("R-SNAP-1", lambda snapshot: snapshot["tasks"].append(snapshot["tasks"][0])),
        ("R-SNAP-1", lambda snapshot: snapshot["tasks"][0]["versions"].reverse()),
        ("R-SNAP-1", lambda snapshot: snapshot["tasks"][0].update(last_version=1)),
        ("R-SNAP-1", lambda snapshot: snapshot["tasks"][0]["aliases"].reverse()),
        ("R-SNAP-1", lambda snapshot: snapshot["tasks"][0].update(aliases=[["prod", 9]])),
        ("R-SNAP-1", lambda snapshot: snapshot["bases"].pop()),
        ("R-SNAP-3", lambda snapshot: snapshot.update(family="gamma")),
        ("R-SNAP-3", lambda snapshot: snapshot.update(architecture="0" * 64)),
        ("R-JSON-6", lambda snapshot: snapshot.update(more=1)),
        ("R-JSON-7", lambda snapshot: snapshot.pop("tasks")),
    ],
)
def test_a_snapshot_that_breaks_a_rule_is_refused_or_replaced_by_the_log(
    tmp_path: Path, rule: str, edit: Callable[[dict[str, Any]], None]
) -> None:
    registry = Path(shutil.copytree(REGISTRY, tmp_path / "registry"))
    resnap(registry, edit)
    with pytest.raises(Refusal) as caught:
        read_from_checkpoint(registry)
    assert caught.value.rule == rule
    opened = Registry.open(str(registry))
    assert make_log_vectors.names_of(opened.state()) == EXPECTED
    assert [problem.kind for problem in opened.audit()] == ["format/snapshot"]


def test_a_checkpoint_without_an_index_is_refused_by_both(tmp_path: Path) -> None:
    registry = Path(shutil.copytree(REGISTRY, tmp_path / "registry"))
    rechain(registry, lambda commit: commit.pop("index"), first=7)
    with pytest.raises(Refusal) as caught:
        read_from_checkpoint(registry)
    assert caught.value.rule == "R-SNAP-5"
    with pytest.raises(FormatError) as refused:
        Registry.open(str(registry)).state()
    assert refused.value.kind == "format/checkpoint"


def test_a_hint_that_is_no_document_is_none(tmp_path: Path) -> None:
    registry = Path(shutil.copytree(REGISTRY, tmp_path / "registry"))
    (registry / "_log" / "head").unlink()
    with pytest.raises(Refusal) as caught:
        read_from_checkpoint(registry)
    assert caught.value.rule == "R-LOG-7"
    assert make_log_vectors.names_of(Registry.open(str(registry)).state()) == EXPECTED
