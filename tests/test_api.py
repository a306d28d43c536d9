"""Families end to end: what publishing may change, and what no failure may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo, same_bits, snapshot

import uws_store
from uws_store.errors import (
    AlreadyExistsError,
    IncompatibleError,
    InvalidInputError,
    NotFoundError,
)
from uws_store.storage import LocalStorage

NAMES = ["with space", "org/model", "emoji-🦙", "ünïcödé", "a.b.c", "task-07"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def family(zoo: Path, tmp_path: Path) -> str:
    registry = str(tmp_path / "registry")
    # Models this small would be stored bit-identical at every tier.
    uws_store.build(zoo, family="f", registry=registry, exact=True, exact_overhead=1.0)
    return registry


def test_adding_a_model_changes_no_old_byte(zoo: Path, family: str) -> None:
    before = snapshot(Path(family))
    result = uws_store.add(zoo / "task-00.safetensors", family="f", task="again", registry=family)
    after = snapshot(Path(family))
    changed = {path for path, data in before.items() if after.get(path) != data}
    assert changed <= {"_log/head"}, "the head is a hint, and all else is immutable"
    assert set(after) > set(before)
    assert result.model.version == 1


def test_versions_count_up_and_old_ones_stay_loadable(zoo: Path, family: str, tmp_path: Path) -> None:
    weights = load_file(zoo / "task-00.safetensors")
    first = {name: value.clone() for name, value in weights.items()}
    weights["fc1.bias"] += 1
    save_file(weights, tmp_path / "task-00.safetensors")
    result = uws_store.add(tmp_path / "task-00.safetensors", family="f", registry=family, exact=True)
    assert result.model.version == 2
    newest = uws_store.load_model("f", "task-00", registry=family, tier="exact")
    assert same_bits(newest["fc1.bias"], weights["fc1.bias"])
    for old in (
        uws_store.load_model("f", "task-00@1", registry=family, tier="exact"),
        uws_store.load_model("f", "task-00", revision=1, registry=family, tier="exact"),
    ):
        assert same_bits(old["fc1.bias"], first["fc1.bias"])
    with pytest.raises(InvalidInputError) as caught:
        uws_store.load_model("f", "task-00@1", revision=2, registry=family)
    assert caught.value.kind == "invalid-input/revision"


def test_the_registry_is_plain_zarr(family: str) -> None:
    models = zarr.open_group(str(Path(family) / "families" / "f"), mode="r")["models"]
    assert isinstance(models, zarr.Group)
    name, model = next(iter(models.groups()))
    assert len(name) == 64
    core = model["core"]
    assert isinstance(core, zarr.Array)
    assert np.asarray(core[:]).dtype == np.int16
    assert "uws_store" in dict(model.attrs)


def test_a_build_is_few_objects(zoo: Path, family: str) -> None:
    files = snapshot(Path(family))
    models = len(list(zoo.iterdir()))
    of_basis = [path for path in files if "/basis/" in path]
    of_models = [path for path in files if "/models/" in path]
    assert len(of_basis) <= 14
    assert len(of_models) <= 7 * models + 1


@pytest.mark.parametrize("name", NAMES)
def test_task_names_people_use_work(zoo: Path, family: str, name: str) -> None:
    uws_store.add(zoo / "task-01.safetensors", family="f", task=name, registry=family)
    assert name in {entry.task for entry in uws_store.list_models("f", registry=family)}
    assert len(uws_store.load_model("f", name, registry=family).materialize()) == 4
    assert uws_store.is_model("f", name, registry=family)


@pytest.mark.parametrize("name", ["..", "a/../b", "", " lead", "a\\b", "nul\0", "v@2", "/abs"])
def test_task_names_that_could_be_paths_are_refused(zoo: Path, family: str, name: str) -> None:
    before = snapshot(Path(family))
    with pytest.raises(InvalidInputError) as caught:
        uws_store.add(zoo / "task-01.safetensors", family="f", task=name, registry=family)
    assert caught.value.kind == "invalid-input/task-name"
    assert snapshot(Path(family)) == before


def test_names_that_differ_by_case_alone_are_refused(zoo: Path, family: str) -> None:
    with pytest.raises(AlreadyExistsError) as caught:
        uws_store.add(zoo / "task-01.safetensors", family="f", task="TASK-01", registry=family)
    assert caught.value.kind == "already-exists/name"


def test_a_family_is_not_built_twice(zoo: Path, family: str) -> None:
    before = snapshot(Path(family))
    with pytest.raises(AlreadyExistsError) as caught:
        uws_store.build(zoo, family="f", registry=family)
    assert caught.value.kind == "already-exists/family"
    assert snapshot(Path(family)) == before


def test_a_checkpoint_of_another_architecture_is_not_added(zoo: Path, family: str, tmp_path: Path) -> None:
    save_file({"fc1.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    before = snapshot(Path(family))
    with pytest.raises(IncompatibleError) as caught:
        uws_store.add(tmp_path / "other.safetensors", family="f", registry=family)
    assert caught.value.kind == "incompatible/architecture"
    assert snapshot(Path(family)) == before


def test_what_a_reader_left_out_stands_in_the_result(zoo: Path, family: str, tmp_path: Path) -> None:
    weights = load_file(zoo / "task-00.safetensors")
    for task in ("a", "b"):
        (tmp_path / "zoo").mkdir(exist_ok=True)
        torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "zoo" / f"{task}.pt")
    built = uws_store.build(tmp_path / "zoo", family="wrapped", registry=family)
    added = uws_store.add(tmp_path / "zoo" / "a.pt", family="f", registry=family)
    for model in (*built.models, added.model):
        assert [text for text in model.notices if "'epoch'" in text], model


def _as_shards(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    parts = [dict(list(weights.items())[:2]), dict(list(weights.items())[2:])]
    for number, part in enumerate(parts, start=1):
        save_file(part, folder / f"shoes-{number:05d}-of-00002.safetensors")
    return folder / "shoes-00001-of-00002.safetensors"


def _as_folder(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    (folder / "shoes").mkdir()
    save_file(weights, folder / "shoes" / "model.safetensors")
    return folder / "shoes"


def _as_file(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, folder / "shoes.safetensors")
    return folder / "shoes.safetensors"


@pytest.mark.parametrize("save", [_as_shards, _as_folder, _as_file])
def test_a_task_is_named_after_its_checkpoint(zoo: Path, family: str, tmp_path: Path, save: object) -> None:
    assert callable(save)
    path = save(tmp_path, load_file(zoo / "task-00.safetensors"))
    assert uws_store.add(path, family="f", registry=family).model.task == "shoes"


def test_a_task_is_named_after_the_folder_one_stands_in(
    zoo: Path, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _as_folder(tmp_path, load_file(zoo / "task-00.safetensors"))
    registry = str(Path(family).resolve())
    monkeypatch.chdir(folder)
    assert uws_store.add(".", family="f", registry=registry).model.task == "shoes"


def test_odd_shapes_are_named_and_private(tmp_path: Path) -> None:
    def odd(index: int, weights: dict[str, torch.Tensor]) -> None:
        if index == 4:
            weights["fc2.bias"] = torch.arange(3.0)

    folder = make_zoo(tmp_path / "zoo", change=odd)
    registry = str(tmp_path / "r")
    result = uws_store.build(folder, family="g", registry=registry)
    assert list(result.odd_tensors) == ["task-04"]
    assert "fc2.bias" in result.odd_tensors["task-04"][0]
    assert uws_store.load_model("g", "task-04", registry=registry)["fc2.bias"].tolist() == [0, 1, 2]


def test_unknown_names_say_what_there_is(family: str) -> None:
    for action, kind in (
        (lambda: uws_store.load_model("g", "task-00", registry=family), "not-found/family"),
        (lambda: uws_store.load_model("f", "task-0", registry=family), "not-found/task"),
        (lambda: uws_store.load_model("f", "task-00@7", registry=family), "not-found/version"),
        (lambda: uws_store.open_family("f", registry=family + "-nowhere"), "not-found/registry"),
    ):
        with pytest.raises(NotFoundError) as caught:
            action()
        assert caught.value.kind == kind


def test_show_adds_up(zoo: Path, family: str) -> None:
    summary, models = uws_store.show("f", registry=family)
    storage = LocalStorage(Path(family))
    stored = sum(storage.size(path) or 0 for path in storage.list("families/f/models") if path.count("/") > 3)
    assert summary.models_bytes == stored == sum(model.size_bytes for model in models)
    assert summary.tasks == len(models) == 8
    for model in models:
        assert model.source_bytes == (zoo / f"{model.task}.safetensors").stat().st_size
        assert model.compact_bytes < model.size_bytes


def test_export_gives_the_checkpoint_back(zoo: Path, family: str, tmp_path: Path) -> None:
    result = uws_store.export("f", "task-02", tmp_path / "out.safetensors", registry=family, tier="exact")
    assert result.size_bytes == (tmp_path / "out.safetensors").stat().st_size
    original, exported = load_file(zoo / "task-02.safetensors"), load_file(tmp_path / "out.safetensors")
    assert set(original) == set(exported)
    assert all(same_bits(exported[name], original[name]) for name in original)
    with pytest.raises(AlreadyExistsError):
        uws_store.export("f", "task-02", tmp_path / "out.safetensors", registry=family)
    uws_store.export("f", "task-02", tmp_path / "out.safetensors", registry=family, overwrite=True)


def test_verify_against_another_zoo_is_no_proof(family: str, tmp_path: Path) -> None:
    other = make_zoo(tmp_path / "other", seed=5)
    verdict = uws_store.verify("f", registry=family, against=other)
    assert not verdict.ok
    assert not any(model.safe_to_delete for model in verdict.models)
    assert {problem.kind for model in verdict.models for problem in model.report.problems} == {
        "incompatible/source"
    }


def test_models_added_later_need_no_original_to_verify_the_rest(
    zoo: Path, family: str, tmp_path: Path
) -> None:
    uws_store.add(zoo / "task-00.safetensors", family="f", task="later", registry=family)
    verdict = uws_store.verify("f", registry=family, against=zoo)
    assert verdict.ok
    assert verdict.not_compared == ("later",)
    assert not next(model for model in verdict.models if model.task == "later").safe_to_delete
    strangers = make_zoo(tmp_path / "strangers", models=2)
    for path in strangers.iterdir():
        path.rename(path.with_name(f"x-{path.name}"))
    with pytest.raises(NotFoundError) as caught:
        uws_store.verify("f", registry=family, against=strangers)
    assert caught.value.kind == "not-found/original"
