"""Tensors that go by other names: maps that are refused, and families that are built, added to and verified under them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_support import TASKS, make_small_zoo, run, run_well
from safetensors.torch import load_file, save_file
from zoo_support import same_bits

from uws_store import api
from uws_store.checkpoint import RENAME_KEY, Renaming, open_checkpoint
from uws_store.errors import IncompatibleError, InvalidInputError, NotFoundError, UwsError

MAP = {f"encoder.{name}": name for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
OTHERS = TASKS[:2]


def rename_file(path: Path) -> None:
    back = {new: old for old, new in MAP.items()}
    save_file({back[name]: tensor for name, tensor in load_file(path).items()}, path)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six networks, two of them under other names."""
    folder = make_small_zoo(tmp_path_factory.mktemp("zoo") / "zoo", models=6)
    for task in OTHERS:
        rename_file(folder / f"{task}.safetensors")
    return folder


@pytest.fixture(scope="module")
def place(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("registry"))
    api.build(zoo, family="nets", registry=place, rename=MAP, exact=True)
    return place


def test_a_zoo_under_two_sorts_of_names_is_refused_with_the_hint(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError) as caught:
        api.build(zoo, family="nets", registry=str(tmp_path / "r"))
    assert caught.value.kind == "incompatible/renamed"
    assert "--rename" in caught.value.message


def test_a_renamed_zoo_is_one_family_and_every_bit_comes_back_under_its_names(zoo: Path, place: str) -> None:
    for task in TASKS[:6]:
        stored = api.load_model("nets", task, registry=place, tier="exact").materialize()
        original = load_file(zoo / f"{task}.safetensors")
        wanted = {MAP.get(name, name): tensor for name, tensor in original.items()}
        assert stored.keys() == wanted.keys()
        assert all(same_bits(stored[name], wanted[name]) for name in wanted)


def test_the_record_says_which_models_were_renamed(place: str) -> None:
    _, models = api.show("nets", registry=place)
    said = {model.task: dict(model.lineage.source_metadata).get(RENAME_KEY) for model in models}
    assert [task for task, text in said.items() if text is not None] == OTHERS
    assert len({text for text in said.values() if text}) == 1
    assert str(said[OTHERS[0]]).startswith("4 tensors, map ")


def test_originals_are_compared_under_the_same_map(zoo: Path, place: str) -> None:
    found = api.verify("nets", registry=place, against=zoo, rename=MAP)
    assert found.ok
    assert all(verdict.safe_to_delete for verdict in found.models)
    without = api.verify("nets", registry=place, against=zoo)
    assert [verdict.task for verdict in without.models if not verdict.report.ok] == OTHERS


def test_a_map_per_task_is_for_that_task_alone(zoo: Path, tmp_path: Path) -> None:
    own = dict.fromkeys(OTHERS, MAP)
    api.build(zoo, family="nets", registry=str(tmp_path / "r"), rename=own, executor="processes", workers=2)
    assert api.verify("nets", registry=str(tmp_path / "r"), against=zoo, rename=own).ok


def test_a_checkpoint_is_added_under_the_familys_names(zoo: Path, place: str, tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    save_file({f"encoder.{name}": t for name, t in load_file(zoo / f"{TASKS[3]}.safetensors").items()}, new)
    with pytest.raises(IncompatibleError):
        api.add(new, family="nets", registry=place)
    api.add(new, family="nets", registry=place, rename=MAP, exact=True)
    assert api.verify("nets", "new", registry=place, against=new, rename=MAP).ok


def test_names_may_be_swapped(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.full((3, 2), 2.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    swap = Renaming.parse({"a": "b", "b": "a"}, where="here")
    with open_checkpoint(tmp_path / "x.safetensors") as plain:
        seen = swap.apply("x", plain)
        assert seen.read("a").tolist() == [1, 1]
        assert seen.read("b").tolist() == [0, 0]
        assert seen.read_rows("c", 1, 2).tolist() == [[2, 2]]
        assert seen.sha256() == plain.sha256()
        assert seen.identity() != plain.identity()
        with pytest.raises(NotFoundError):
            seen.read("d")


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, "invalid-input/rename"),
        ([], "invalid-input/rename"),
        ({"a": 1}, "invalid-input/rename"),
        ({"a": "b", "task": {"c": "d"}}, "invalid-input/rename"),
        ({"a": "x", "b": "x"}, "invalid-input/rename"),
        ({"a": ""}, "invalid-input/rename"),
        ({"a": "a"}, "invalid-input/rename"),
        ({"task": {}}, "invalid-input/rename"),
        ({"no.such": "fc1.weight"}, "invalid-input/rename"),
        ({"no-such-task": {"fc1.weight": "w"}}, "invalid-input/rename"),
        ({**MAP, "encoder.more": "more"}, "incompatible/rename"),
        ({TASKS[3]: {"fc1.weight": "fc2.weight"}}, "incompatible/rename"),
        ({TASKS[3]: MAP}, "incompatible/rename"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(zoo: Path, tmp_path: Path, given: object, kind: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(given))
    with pytest.raises(UwsError) as caught:
        api.build(zoo, family="nets", registry=str(tmp_path / "r"), rename=path)
    assert caught.value.kind == kind
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("text", ["{", '{"a": "b", "a": "c"}', "[" * 100_000])
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        Renaming.of(tmp_path / "map.json")
    assert caught.value.kind == "invalid-input/rename"


def test_a_map_without_originals_is_refused(place: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        api.verify("nets", registry=place, rename=MAP)
    assert caught.value.kind == "invalid-input/rename"


def test_the_commands_take_a_map(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    options = ("--rename", tmp_path / "map.json", "--registry", tmp_path / "r")
    run_well("build", zoo, "--family", "nets", *options)
    assert run_well("verify", "nets", "--against", zoo, *options, "--json").document["ok"]
    assert run("verify", "nets", "--against", zoo, "--registry", tmp_path / "r").code == 1
    run_well("add", zoo / f"{OTHERS[0]}.safetensors", "--family", "nets", "--task", "again", *options)
    assert RENAME_KEY in run_well("show", "nets/again", "--registry", tmp_path / "r").stdout


def test_analyze_writes_the_map_that_it_suggests(zoo: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    ran = run_well("analyze", zoo, "--rename-out", path, "--no-plan")
    assert "check" in ran.stderr
    assert json.loads(path.read_text()) == dict.fromkeys(OTHERS, MAP)
    run_well("build", zoo, "--family", "nets", "--rename", path, "--registry", tmp_path / "r")
    assert run("analyze", zoo, "--rename-out", path).error_kind == "already-exists/file"


def test_analyze_has_no_map_to_suggest_for_one_sort_of_names(tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=3)
    assert (
        run("analyze", zoo, "--rename-out", tmp_path / "m.json", "--no-plan").error_kind
        == "invalid-input/rename"
    )
