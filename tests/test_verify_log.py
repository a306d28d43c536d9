"""``verify --log``: the whole log read again, from its first commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import make_small_zoo, run, run_well

from uws_store import api
from uws_store.layout import commit_path, snapshot_path
from uws_store.registry import Registry, committing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(committing, "_CHECKPOINT_COMMITS", 3)
    zoo = make_small_zoo(tmp_path / "zoo", models=2)
    registry = Registry.init(str(tmp_path / "registry"))
    api.build(zoo, family="f", registry=registry)
    for number in range(5):
        api.add(zoo / "task-00.safetensors", family="f", task=f"again-{number}", registry=registry)
    return tmp_path / "registry"


def test_a_log_that_is_whole_is_said_to_be(folder: Path) -> None:
    shown = run_well("verify", "f", "--log", "--registry", folder).stdout
    assert "read the log from its first commit (6 commits): each follows from the one before" in shown
    assert "the log" not in run_well("verify", "f", "--registry", folder).stdout
    assert api.verify("f", registry=str(folder), log=True).commits == 6


def test_a_change_before_the_newest_snapshot_is_found_by_it_alone(folder: Path) -> None:
    path = folder / commit_path(1)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"task-01", b"task-99"))
    assert run("verify", "f", "--registry", folder).code == 0
    ran = run("verify", "f", "--log", "--registry", folder)
    assert ran.code == 1
    assert "format/log-chain" in ran.stdout
    result = api.verify("f", registry=str(folder), log=True)
    assert not result.ok
    assert {problem.kind for problem in result.problems} == {"format/log-chain"}


def test_a_damaged_snapshot_is_found(folder: Path) -> None:
    snapshots = list((folder / "_log" / "snapshots").iterdir())
    assert snapshots
    snapshots[0].unlink()
    problems = api.verify("f", registry=str(folder), log=True).problems
    assert [(problem.loc, problem.kind) for problem in problems] == [
        (snapshot_path(snapshots[0].stem), "format/missing-object")
    ]
