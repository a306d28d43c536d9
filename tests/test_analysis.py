"""What a zoo is: kinship, architectures, and what is shared beside the nulls; known answers on made and on real zoos."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import make_small_zoo, run, run_well
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo

from uws_store import UwsError
from uws_store.analysis import ZooAnalysis, group_architectures
from uws_store.api import analyze

ZOOS = Path(__file__).parents[2] / "shared" / "zoos"
SHAPES: dict[str, tuple[int, ...]] = {
    "fc1.weight": (64, 48),
    "fc1.bias": (64,),
    "norm.weight": (64,),
    "fc2.weight": (32, 64),
}
Weights = dict[str, torch.Tensor]


def write(folder: Path, models: int, make: Callable[[int, torch.Generator], Weights]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(models):
        source = torch.Generator().manual_seed(index)
        save_file(make(index, source), folder / f"task-{index:02d}.safetensors")
    return folder


def independent(_index: int, source: torch.Generator) -> Weights:
    # Norms are near one in all networks: they are no sign of kinship.
    return {
        name: torch.ones(shape) if name == "norm.weight" else torch.randn(shape, generator=source)
        for name, shape in SHAPES.items()
    }


def tuned(base_seed: int, strength: float) -> Callable[[int, torch.Generator], Weights]:
    base = independent(0, torch.Generator().manual_seed(10_000 + base_seed))

    def make(_index: int, source: torch.Generator) -> Weights:
        return {
            name: value + strength * torch.randn(value.shape, generator=source)
            for name, value in base.items()
        }

    return make


def test_models_tuned_from_one_base_in_shared_subspaces(tmp_path: Path) -> None:
    analysis = analyze(make_zoo(tmp_path, models=12, shapes=SHAPES))
    assert analysis.kind == "one base"
    assert analysis.sharing is not None
    assert analysis.sharing.shares == "subspace"
    assert analysis.mean_error < 0.5
    assert analysis.measured_share == 1.0
    for mode in analysis.modes[1:]:
        assert mode.held_out > 2 * max(mode.gaussian, mode.shuffled)


def test_models_from_independent_seeds(tmp_path: Path) -> None:
    analysis = analyze(write(tmp_path, 12, independent))
    assert analysis.kind == "independent"
    assert analysis.sharing is not None
    assert analysis.sharing.shares == "nothing"
    assert len(analysis.relations.bases) == 12
    assert not analysis.relations.initialisations


def test_a_mean_without_a_subspace(tmp_path: Path) -> None:
    analysis = analyze(write(tmp_path, 12, tuned(0, 0.2)))
    assert analysis.kind == "one base"
    assert analysis.sharing is not None
    assert analysis.sharing.shares == "mean"
    assert analysis.mean_error == pytest.approx(0.2, rel=0.15)


def test_two_bases_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    first, second = tuned(1, 0.1), tuned(2, 0.1)
    analysis = analyze(write(tmp_path, 10, lambda index, source: (first, second)[index % 2](index, source)))
    assert analysis.kind == "2 bases"
    assert sorted(map(len, analysis.relations.bases)) == [5, 5]
    assert {int(task[-2:]) % 2 for task in analysis.relations.bases[0]} in ({0}, {1})
    directions = analysis.modes[0]
    assert directions.held_out > 0.9, "one direction tells the bases apart"


def test_far_training_from_one_initialisation(tmp_path: Path) -> None:
    analysis = analyze(write(tmp_path, 10, tuned(3, 2.0)))
    assert analysis.kind == "one initialisation"
    assert len(analysis.relations.initialisations[0]) == 10


def test_copies_near_copies_and_outliers_are_found(tmp_path: Path) -> None:
    write(tmp_path, 8, tuned(4, 0.1))
    shutil.copy(tmp_path / "task-00.safetensors", tmp_path / "copy.safetensors")
    near = load_file(tmp_path / "task-01.safetensors")
    near["fc1.weight"][0, 0] += 1e-6
    save_file(near, tmp_path / "near.safetensors")
    huge = {name: 1e9 * value for name, value in load_file(tmp_path / "task-02.safetensors").items()}
    save_file(huge, tmp_path / "huge.safetensors")
    relations = analyze(tmp_path).relations
    assert relations.duplicates == (("copy", "task-00"),)
    assert relations.near_duplicates == (("near", "task-01"),)
    assert relations.outliers == ("huge",)


def test_a_folder_that_is_not_one_family(tmp_path: Path) -> None:
    write(tmp_path, 5, tuned(5, 0.1))
    base = load_file(tmp_path / "task-00.safetensors")
    save_file({f"encoder.{name}": value for name, value in base.items()}, tmp_path / "renamed.safetensors")
    turned = {name: value.T.contiguous() if value.ndim == 2 else value for name, value in base.items()}
    save_file(turned, tmp_path / "turned.safetensors")
    save_file({"other": torch.ones(3)}, tmp_path / "other.safetensors")
    first, *rest = analyze(tmp_path).architectures
    assert len(first.tasks) == 5
    by_task = {group.tasks[0]: group for group in rest}
    assert by_task["renamed"].renamed_from == 0
    assert ("encoder.fc1.bias", "fc1.bias") in by_task["renamed"].rename or (
        "encoder.norm.weight",
        "fc1.bias",
    ) in by_task["renamed"].rename
    assert by_task["turned"].transposed_from == 0
    assert by_task["turned"].renamed_from is None
    assert by_task["other"].renamed_from is by_task["other"].transposed_from is None


def test_every_checkpoint_is_in_one_architecture() -> None:
    members: dict[str, dict[str, tuple[int, ...]]] = {
        "a": {"x": (2, 3)},
        "b": {"x": (2, 3)},
        "c": {"y": (5,)},
        "d": {"x": (9, 9), "z": (1,)},
    }
    groups = group_architectures(members)
    assert sorted(task for group in groups for task in group.tasks) == ["a", "b", "c", "d"]
    assert groups[0].tasks == ("a", "b")


def test_mixed_dtypes_are_said_and_compared(tmp_path: Path) -> None:
    make = tuned(6, 0.1)

    def half(index: int, source: torch.Generator) -> Weights:
        weights = make(index, source)
        return {name: value.to(torch.bfloat16) for name, value in weights.items()} if index % 2 else weights

    analysis = analyze(write(tmp_path, 8, half))
    assert dict(analysis.dtypes) == {"F32": 4, "BF16": 4}
    assert analysis.kind == "one base"
    assert "mixed dtypes" in run_well("analyze", tmp_path).stdout


def test_weights_that_are_no_numbers_do_not_spoil_the_rest(tmp_path: Path) -> None:
    make = tuned(7, 0.1)

    def broken(index: int, source: torch.Generator) -> Weights:
        weights = make(index, source)
        if index == 3:
            weights["fc1.weight"][0, 0] = float("nan")
        return weights

    analysis = analyze(write(tmp_path, 8, broken))
    assert analysis.kind == "one base"


def test_the_same_zoo_gives_the_same_answer(tmp_path: Path) -> None:
    def plain(analysis: ZooAnalysis) -> object:
        return analysis.modes, analysis.sharing, analysis.tensors, analysis.kind

    zoo = make_zoo(tmp_path, models=6, shapes=SHAPES)
    assert plain(analyze(zoo)) == plain(analyze(zoo))


def test_too_little_to_compare_is_refused(tmp_path: Path) -> None:
    make_zoo(tmp_path, models=1)
    with pytest.raises(UwsError) as caught:
        analyze(tmp_path)
    assert caught.value.kind == "invalid-input/one-model-zoo"
    make_zoo(tmp_path, models=2)
    assert analyze(tmp_path).sharing is None
    assert "too few models" in run_well("analyze", tmp_path).stdout


def test_the_command_says_it_in_words_json_and_a_plot(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=8, shapes=SHAPES)
    (zoo / "task-00.safetensors").rename(zoo / "日本 🎉.safetensors")
    plot = tmp_path / "zoo.svg"
    ran = run_well("analyze", zoo, "--plot", plot)
    assert "these models share a subspace" in ran.stdout
    assert "Gaussian null" in ran.stdout
    assert plot.read_text().startswith("<?xml")
    assert "日本 🎉" in plot.read_text()
    run_well("analyze", zoo, "--no-plan", "--plot", tmp_path / "zoo.png")
    document = run_well("analyze", zoo, "--json").document
    assert document["kind"] == "one base"
    assert document["shares"] == "subspace"
    assert len(document["tensors"]) == len(SHAPES)
    assert run("analyze", zoo, "--plot", plot).error_kind == "already-exists/file"
    assert run("analyze", zoo, "--plot", tmp_path / "a.txt").error_kind == "invalid-input/plot"
    assert run("analyze", tmp_path / "none").error_kind == "not-found/zoo"


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_zoo_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uws_store.report.zoo_plot", None)
    ran = run("analyze", tmp_path / "none", "--plot", tmp_path / "zoo.svg")
    assert ran.error_kind == "invalid-input/extra"


@pytest.mark.skipif(not (ZOOS / "acasxu").is_dir(), reason="the zoo acasxu is not on this machine")
def test_acasxu_is_independent() -> None:
    analysis = analyze(ZOOS / "acasxu")
    assert analysis.kind == "independent"
    assert analysis.sharing is not None
    assert analysis.sharing.shares == "nothing"


@pytest.mark.skipif(not (ZOOS / "ani_1x_1ccx").is_dir(), reason="the zoo ani_1x_1ccx is not on this machine")
def test_ani_is_eight_pairs() -> None:
    analysis = analyze(ZOOS / "ani_1x_1ccx")
    assert analysis.kind == "8 bases"
    assert {len(group) for group in analysis.relations.bases} == {2}


def test_the_bytes_that_a_build_would_store_are_predicted(tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo")
    ran = run_well("analyze", zoo, "--json")
    predicted = ran.document["predicted"]
    models = len(ran.document["tasks"])
    assert predicted["family_bytes"] == predicted["basis_bytes"] + models * predicted["model_bytes"]
    assert predicted["family_bytes_at_100"] == predicted["basis_bytes"] + 100 * predicted["model_bytes"]
    built = run_well("build", zoo, "--family", "nets", "--registry", tmp_path / "r", "--json").document
    stored = built["basis_bytes"] + sum(model["size_bytes"] for model in built["models"])
    assert 0.8 < predicted["family_bytes"] / stored < 1.25
    text = run_well("analyze", zoo).stdout
    assert "what `build` would store" in text
    assert "family at 100" in text
    assert run_well("analyze", zoo, "--no-plan", "--json").document["predicted"] is None
