"""Growth: a new basis revision without the old checkpoints, models moved onto it, and when it is time for one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from zoo_support import make_zoo, same_bits, snapshot

import uws_store
from uws_store.api import extend, rebase
from uws_store.api.drift import growth_of
from uws_store.cli.program import PROGRAM
from uws_store.errors import IncompatibleError, InvalidInputError
from uws_store.registry import BasisEntry, FamilyState, ModelEntry

WIDE = {"a.weight": (48, 32), "b.weight": (32, 48), "norm.weight": (64,)}


@pytest.fixture
def registry(tmp_path: Path) -> str:
    """A family of one kind of models, and three of another kind that were added; their checkpoints are gone."""
    registry = str(tmp_path / "registry")
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=6)
    uws_store.build(zoo, family="f", registry=registry, change_error=0.1, exact=True, expect_models=300)
    shutil.move(zoo, tmp_path / "away")
    return registry


def _others(tmp_path: Path, count: int = 4) -> Path:
    zoo = make_zoo(tmp_path / "others", shapes=WIDE, models=count, seed=5)
    for path in sorted(zoo.iterdir()):
        path.rename(path.with_name(f"other-{path.name}"))
    return zoo


def _more(tmp_path: Path, count: int = 4) -> Path:
    """More models of the family's own kind."""
    zoo = make_zoo(tmp_path / "more", shapes=WIDE, models=6 + count)
    for index, path in enumerate(sorted(zoo.iterdir())):
        if index < 6:
            path.unlink()
        else:
            path.rename(path.with_name(f"more-{path.name}"))
    return zoo


def test_extend_covers_old_and_new_without_the_old_checkpoints(tmp_path: Path, registry: str) -> None:
    others = _others(tmp_path)
    before = {
        path: data for path, data in snapshot(Path(registry)).items() if not path.startswith("_log/head")
    }
    added = uws_store.add(
        others / "other-task-00.safetensors", family="f", task="alien", registry=registry
    ).model
    result = extend("f", [others], registry=registry)
    # Two base models: a basis for each, r1 for what was there, as it is, and r2 for the others.
    assert (result.revision, result.from_registry, result.from_compact) == (2, 7, 1)
    assert [model.task for model in result.models] == [f"other-task-{index:02d}" for index in range(4)]
    assert max(model.compact_bytes for model in result.models) < added.compact_bytes
    family = uws_store.open_family("f", registry=registry)
    assert family.resolve("other-task-01").basis_revision == 2
    assert family.resolve("task-01").basis_revision == 1
    after = snapshot(Path(registry))
    changed = [path for path, data in before.items() if after.get(path) != data]
    assert changed == [], "no stored byte changes"
    for task, folder in (("task-01", "away"), ("other-task-01", "others")):
        compact = uws_store.load_model("f", task, registry=registry).materialize()
        original = load_file(tmp_path / folder / f"{task}.safetensors")
        mean = uws_store.load_model("f", task, registry=registry, tier="mean").materialize()
        for name in ("a.weight", "b.weight"):
            assert torch.dist(compact[name], original[name]) < 0.5 * torch.dist(mean[name], original[name])
    assert uws_store.verify("f", registry=registry).ok


def test_extend_reads_what_was_added_since(tmp_path: Path, registry: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        extend("f", registry=registry)
    assert caught.value.kind == "invalid-input/nothing-new"
    others = _others(tmp_path, 2)
    uws_store.add(others / "other-task-00.safetensors", family="f", registry=registry, exact=True)
    result = extend("f", registry=registry)
    assert (result.revision, result.models, result.from_registry, result.from_compact) == (2, (), 7, 0)


def test_extend_refuses_another_architecture(tmp_path: Path, registry: str) -> None:
    strangers = make_zoo(tmp_path / "strangers", shapes={"x.weight": (48, 48)}, models=3)
    before = snapshot(Path(registry))
    with pytest.raises((IncompatibleError, InvalidInputError)):
        extend("f", [strangers], registry=registry)
    assert snapshot(Path(registry)) == before


def test_a_task_of_the_same_name_gets_its_next_version(tmp_path: Path, registry: str) -> None:
    zoo = make_zoo(tmp_path / "again", shapes=WIDE, models=2, seed=3)
    result = extend("f", [zoo], registry=registry)
    assert [(model.task, model.version) for model in result.models] == [("task-00", 2), ("task-01", 2)]
    assert result.from_registry == 4


def test_rebase_moves_a_model_bit_by_bit(tmp_path: Path, registry: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        rebase("f", "task-00", registry=registry)
    assert caught.value.kind == "invalid-input/newest-basis"
    extend("f", [_more(tmp_path)], registry=registry)
    moved = rebase("f", "task-00", registry=registry)
    assert moved.model.version == 2
    entry = uws_store.open_family("f", registry=registry).resolve("task-00")
    assert (entry.basis_revision, entry.exact) == (2, True)
    original = load_file(tmp_path / "away" / "task-00.safetensors")
    for version in (1, 2):
        exact = uws_store.load_model("f", f"task-00@{version}", registry=registry, tier="exact").materialize()
        assert all(same_bits(exact[name], original[name]) for name in original)
    from_source = rebase("f", "task-01", source=tmp_path / "away" / "task-01.safetensors", registry=registry)
    assert from_source.model.version == 2


def test_rebase_of_a_lossy_model_needs_its_own_checkpoint(tmp_path: Path, registry: str) -> None:
    others = _others(tmp_path)
    uws_store.add(others / "other-task-00.safetensors", family="f", task="lossy", registry=registry)
    extend("f", [others], registry=registry)
    with pytest.raises(IncompatibleError) as caught:
        rebase("f", "lossy", registry=registry)
    assert caught.value.kind == "incompatible/no-exact-tier"
    with pytest.raises(IncompatibleError) as caught:
        rebase("f", "lossy", source=others / "other-task-01.safetensors", registry=registry)
    assert caught.value.kind == "incompatible/source"
    done = rebase("f", "lossy", source=others / "other-task-00.safetensors", registry=registry)
    assert done.model.version == 2


def _state(models: list[tuple[int, int, float]]) -> tuple[FamilyState, list[tuple[ModelEntry, float]]]:
    """A family with bases of commits 1 and 5, and models of (revision, commit, bits)."""
    bases = {1: BasisEntry(1, "a" * 64, 10, 1), 2: BasisEntry(2, "b" * 64, 10, 5)}
    entries = [
        (ModelEntry("f", f"t{index}", 1, revision, "a" * 64, "c" * 64, 9, False, commit, "now"), bits)
        for index, (revision, commit, bits) in enumerate(models)
    ]
    return FamilyState("f", "d" * 64, bases, {}, {}), entries


def test_drift_is_that_of_models_added_to_the_newest_basis() -> None:
    growth = growth_of(
        *_state([(1, 1, 9.0), (2, 5, 1.0), (2, 5, 2.0), (2, 6, 1.8), (2, 7, 2.1), (2, 8, 2.1)])
    )
    assert (growth.basis_models, growth.newer_models, growth.older_models) == (2, 3, 1)
    assert growth.drift == pytest.approx(1 / 3)
    assert growth.should_extend
    alike = growth_of(*_state([(2, 5, 2.0)] * 8 + [(2, 6, 2.0)] * 3))
    assert alike.drift == pytest.approx(0.0)
    assert not alike.should_extend
    assert not growth_of(*_state([(2, 5, 2.0), (2, 5, 2.0), (2, 6, 9.0)])).should_extend
    alone = growth_of(*_state([(1, 1, 2.0)]))
    assert (alone.drift, alone.should_extend) == (None, False)


def test_the_commands_tell_what_they_did(tmp_path: Path, registry: str) -> None:
    others = _others(tmp_path)
    for index in range(3):
        uws_store.add(others / f"other-task-{index:02d}.safetensors", family="f", registry=registry)

    def run(*words: str) -> str:
        done = CliRunner().invoke(PROGRAM, [*words, "--registry", registry])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "uws-store extend" in run("show", "f")
    told = json.loads(run("extend", "f", str(_more(tmp_path)), "--exact", "--json"))
    assert told["revision"] == 2
    assert "rebase" in run("show", "f")
    assert run("rebase", "f/task-02", "-q").strip() == "f/task-02@2"
    assert "f/task-03@2" in run("rebase", "f/task-03")
