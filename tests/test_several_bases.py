"""Zoos that mix models of several base models: found, stored with a basis for each, and no larger than a family for each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from independent_reader import read_model
from safetensors.torch import load_file, save_file
from zoo_support import Weights, make_zoo, same_bits

import uws_store
from uws_store import api
from uws_store.analysis import bases_of
from uws_store.api import building, publish
from uws_store.api.generation import current_bases, nearest_basis
from uws_store.api.results import BuildResult
from uws_store.builder import DEFAULT_FIDELITY, Fidelity, Members
from uws_store.checkpoint import open_checkpoint, scan_zoo
from uws_store.cli.program import PROGRAM
from uws_store.errors import UwsError

WIDE = {"a.weight": (64, 48), "b.weight": (48, 64), "norm.weight": (64,)}
REL_ERROR = 0.01


def _zoo(folder: Path, *seeds: int, models: int = 12) -> Path:
    """Models of several base models in one folder, those of base 0 called ``base0-task-00`` and so on."""
    folder.mkdir()
    for number, seed in enumerate(seeds):
        own = make_zoo(folder / "own", shapes=WIDE, models=models, seed=seed)
        for path in sorted(own.iterdir()):
            path.rename(folder / f"base{number}-{path.name}")
        own.rmdir()
    return folder


def _total(result: BuildResult) -> int:
    return result.basis_bytes + sum(model.size_bytes for model in result.models)


def _groups(zoo: Path, fidelity: Fidelity = DEFAULT_FIDELITY) -> list[int]:
    with Members(scan_zoo(zoo)) as members:
        return [len(group) for group in bases_of(members, fidelity=fidelity)]


def _as_one(members: Members, *, fidelity: Fidelity) -> tuple[tuple[str, ...], ...]:
    return (tuple(members.checkpoints),)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, BuildResult]:
    folder = tmp_path_factory.mktemp("mixed")
    zoo = _zoo(folder / "zoo", 0, 1)
    registry = str(folder / "registry")
    return zoo, registry, uws_store.build(zoo, family="f", registry=registry, rel_error=REL_ERROR, exact=True)


def test_two_bases_in_one_zoo_take_what_two_families_take(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, _, _ = mixed
    whole = uws_store.build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=REL_ERROR)
    assert [len(group) for group in whole.groups] == [12, 12]
    assert any("2 base models" in remark for remark in whole.remarks)
    apart = 0
    for number in range(2):
        part = tmp_path / f"zoo{number}"
        part.mkdir()
        for path in zoo.glob(f"base{number}-*"):
            shutil.copy(path, part)
        built = uws_store.build(part, family="f", registry=str(tmp_path / f"r{number}"), rel_error=REL_ERROR)
        apart += _total(built)
    assert _total(whole) < 1.02 * apart
    monkeypatch.setattr(publish, "bases_of", _as_one)
    one = uws_store.build(zoo, family="f", registry=str(tmp_path / "one"), rel_error=REL_ERROR)
    assert [len(group) for group in one.groups] == [24]
    assert _total(whole) < 0.8 * _total(one)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    "fidelity", [Fidelity("change-error", 0.05), Fidelity("bits", 0.7), Fidelity("rel-error", 0.3)], ids=str
)
def test_one_base_stays_one_basis(seed: int, fidelity: Fidelity, tmp_path: Path) -> None:
    assert _groups(_zoo(tmp_path / "zoo", seed), fidelity) == [12]


def test_the_bytes_of_a_zoo_of_one_base_do_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = _zoo(tmp_path / "zoo", 3, models=9)
    first = uws_store.build(zoo, family="f", registry=str(tmp_path / "first"))
    monkeypatch.setattr(publish, "bases_of", _as_one)
    second = uws_store.build(zoo, family="f", registry=str(tmp_path / "second"))
    assert first.groups == second.groups
    digests = [
        uws_store.open_family("f", registry=str(tmp_path / name)).basis().digest
        for name in ("first", "second")
    ]
    assert digests[0] == digests[1]
    options = dict(
        uws_store.open_family("f", registry=str(tmp_path / "first")).basis().document.build.options
    )
    assert "basis" not in options


def _random_zoo(folder: Path, models: int) -> Path:
    folder.mkdir()
    for index in range(models):
        source = torch.Generator().manual_seed(index)
        weights = {name: torch.randn(shape, generator=source) for name, shape in WIDE.items()}
        save_file(weights, folder / f"task-{index:02d}.safetensors")
    return folder


def test_independent_networks_are_not_grouped(tmp_path: Path) -> None:
    assert _groups(_random_zoo(tmp_path / "zoo", 12)) == [12]


def test_too_few_models_of_a_base_are_not_grouped(tmp_path: Path) -> None:
    assert _groups(_zoo(tmp_path / "three", 0, 1, models=3)) == [6]


def _lift(index: int, weights: Weights) -> None:
    weights["a.weight"].add_(0.05 * (index % 2))


def test_bases_that_are_nearly_one_share_a_basis(tmp_path: Path) -> None:
    """Where the base models differ by less than their fine-tunes do, a second mean costs more than it saves."""
    assert _groups(make_zoo(tmp_path / "zoo", shapes=WIDE, models=12, change=_lift)) == [12]


def test_who_belongs_to_no_base_goes_with_the_others(tmp_path: Path) -> None:
    zoo = _zoo(tmp_path / "zoo", 0, 1, models=6)
    for index, path in enumerate(sorted(_random_zoo(tmp_path / "random", 5).iterdir())):
        shutil.copy(path, zoo / f"stray-{path.name}")
        if index == 0:
            assert sorted(_groups(zoo)) == [6, 7]
    assert sorted(_groups(zoo)) == [5, 6, 6]


def test_every_model_of_a_family_of_two_bases_is_whole(mixed: tuple[Path, str, BuildResult]) -> None:
    zoo, registry, built = mixed
    result = uws_store.verify("f", registry=registry, against=zoo)
    assert result.ok
    assert len(result.models) == 24
    assert all(verdict.safe_to_delete for verdict in result.models)
    family = uws_store.open_family("f", registry=registry)
    for number, group in enumerate(built.groups, 1):
        assert {family.resolve(task).basis_revision for task in group} == {number}
        assert len({task.partition("-")[0] for task in group}) == 1
    for task in ("base0-task-03", "base1-task-05"):
        source = load_file(zoo / f"{task}.safetensors")
        for name, tensor in family.load(task, tier="exact").items():
            assert same_bits(tensor, source[name])
            assert float((family.load(task)[name] - tensor).norm() / tensor.norm()) < 3 * REL_ERROR
        tensors = read_model(Path(registry), "f", task)
        assert set(tensors) == set(source)
    stacked = family.stack(["base0-task-00", "base1-task-00"])
    assert stacked["a.weight"].shape == (2, 64, 48)


def test_the_control_of_a_model_is_the_mean_of_its_own_base(mixed: tuple[Path, str, BuildResult]) -> None:
    zoo, registry, _ = mixed
    family = uws_store.open_family("f", registry=registry)
    for number in range(2):
        members = [load_file(path)["a.weight"] for path in sorted(zoo.glob(f"base{number}-*"))]
        control = family.load(f"base{number}-task-00", tier="mean")["a.weight"]
        torch.testing.assert_close(control, torch.stack(members).mean(0), atol=0.05, rtol=0.0)


def test_a_model_is_added_to_the_basis_of_its_base(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path
) -> None:
    _, source, built = mixed
    registry = str(tmp_path / "registry")
    shutil.copytree(source, registry)
    for number, seed in enumerate((0, 1)):
        # A zoo of one more model begins with the same twelve.
        new = make_zoo(tmp_path / f"new{number}", shapes=WIDE, models=13, seed=seed) / "task-12.safetensors"
        added = uws_store.add(new, family="f", task=f"new{number}", registry=registry)
        entry = uws_store.open_family("f", registry=registry).resolve(f"new{number}")
        assert f"base{number}-task-00" in built.groups[entry.basis_revision - 1]
        usual = max(model.compact_bytes for model in built.models)
        assert added.model.compact_bytes < 1.3 * usual
    with pytest.raises(uws_store.UwsError) as caught:
        api.rebase("f", "new0", registry=registry)
    assert caught.value.kind == "invalid-input/newest-basis"
    summary, models = api.show("f", registry=registry)
    assert summary.growth is not None
    assert (summary.growth.basis_models, summary.growth.newer_models, summary.growth.older_models) == (
        24,
        2,
        0,
    )
    assert len(models) == 26


def _objects(registry: str) -> dict[str, bytes]:
    families = Path(registry) / "families"
    return {str(path): path.read_bytes() for path in families.rglob("*") if path.is_file()}


def test_a_family_that_gets_another_base_model_keeps_the_bases_of_the_others_as_they_were(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path
) -> None:
    _, source, built = mixed
    registry = str(tmp_path / "registry")
    shutil.copytree(source, registry)
    more = _zoo(tmp_path / "more", 2, models=5)
    for path in sorted(more.iterdir()):
        path.rename(path.with_name(path.name.replace("base0", "base2")))
    before = _objects(registry)
    result = api.extend("f", [more], registry=registry)
    assert result.revision == 3, "the new base has a basis, and the old ones have theirs"
    assert any("3 base models" in remark for remark in result.remarks)
    after = _objects(registry)
    assert {path: data for path, data in after.items() if path in before} == before
    family = uws_store.open_family("f", registry=registry)
    state = family.registry.state().family("f")
    current = current_bases(family.registry, state)
    assert [held.entry.revision for held in current] == [1, 2, 3]
    assert family.resolve("base2-task-00").basis_revision == 3
    with open_checkpoint(more / "base2-task-01.safetensors") as checkpoint:
        assert nearest_basis(current, checkpoint).entry.revision == 3
    with pytest.raises(UwsError) as caught:
        api.rebase("f", built.groups[0][0], registry=registry)
    assert caught.value.kind == "invalid-input/newest-basis"
    with pytest.raises(UwsError) as caught:
        api.extend("f", registry=registry)
    assert caught.value.kind == "invalid-input/nothing-new"
    summary, _ = api.show("f", registry=registry)
    assert summary.growth is not None
    assert (summary.growth.basis_models, summary.growth.newer_models, summary.growth.older_models) == (
        29,
        0,
        0,
    )
    assert uws_store.verify("f", registry=registry).ok


def test_a_group_that_grows_gets_a_basis_beside_those_of_the_others(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path
) -> None:
    zoo, source, built = mixed
    registry = str(tmp_path / "registry")
    shutil.copytree(source, registry)
    more = tmp_path / "more"
    more.mkdir()
    grown, other = built.groups[1], built.groups[0]
    for task in grown[:4]:
        weights = {
            name: tensor + 1e-4 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5))
            for name, tensor in load_file(zoo / f"{task}.safetensors").items()
        }
        save_file(weights, more / f"{task}-more.safetensors")
    result = api.extend("f", [more], registry=registry)
    family = uws_store.open_family("f", registry=registry)
    state = family.registry.state().family("f")
    assert result.revision == 3
    assert [held.entry.revision for held in current_bases(family.registry, state)] == [1, 3]
    moved = api.rebase("f", grown[0], registry=registry)
    assert moved.model.version == 2
    assert family.resolve(grown[0]).basis_revision == 3
    uws_store.add(zoo / f"{other[0]}.safetensors", family="f", task="again", registry=registry)
    assert family.resolve("again").basis_revision == 1
    target = str(tmp_path / "other")
    api.push("f", target, task="again", registry=registry)
    api.push("f", target, task=f"{grown[0]}-more", registry=registry)
    copied = uws_store.open_family("f", registry=target)
    found = current_bases(copied.registry, copied.registry.state().family("f"))
    assert [held.basis.digest for held in found] == [state.bases[number].digest for number in (1, 3)]
    assert uws_store.verify("f", registry=registry).ok


def test_a_task_that_is_copied_brings_both_bases_and_can_be_added_to(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path
) -> None:
    zoo, registry, built = mixed
    first, last = built.groups[0][0], built.groups[1][0]
    target = str(tmp_path / "other")
    api.push("f", target, task=last, registry=registry)
    uws_store.add(zoo / f"{first}.safetensors", family="f", task="again", registry=target)
    family = uws_store.open_family("f", registry=target)
    assert family.resolve(last).basis_revision == 2
    assert family.resolve("again").basis_revision == 1


def _score(weights: Mapping[str, torch.Tensor], task: str) -> dict[str, object]:
    return {"metric": "norm", "value": -float(weights["a.weight"].norm()), "higher_is_better": True, "n": 1}


def test_a_promise_on_scores_is_kept_on_each_basis(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path
) -> None:
    zoo, _, _ = mixed
    built = uws_store.build(
        zoo, family="f", registry=str(tmp_path / "r"), max_drop=0.5, evaluate=_score, search_evaluate=_score
    )
    assert len(built.groups) == 2
    assert all(score.drop <= 0.5 for model in built.models for score in model.scores)
    assert len(set(built.remarks)) == len(built.remarks)


def test_a_plan_is_for_one_basis_and_says_that_there_are_two(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path
) -> None:
    zoo, _, _ = mixed
    plan = api.plan(zoo, rel_error=REL_ERROR)
    assert plan.bases == 2
    built = uws_store.build(zoo, family="f", registry=str(tmp_path / "r"), rel_error=REL_ERROR, plan=plan)
    assert [len(group) for group in built.groups] == [24]
    said = CliRunner().invoke(
        PROGRAM, ["build", str(zoo), "--family", "f", "--plan-only", "--rel-error", "0.01"]
    )
    assert said.exit_code == 0
    assert "2 base models" in said.stderr


def test_a_build_that_was_killed_goes_on_with_both_bases(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, _, _ = mixed
    registry = str(tmp_path / "r")
    make = building.make_basis
    made: list[int] = []

    def stop(members: Members, *args: object, **named: object) -> object:
        if made:
            raise KeyboardInterrupt
        made.append(len(members.checkpoints))
        return make(members, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(publish, "make_basis", stop)
    with pytest.raises(KeyboardInterrupt):
        uws_store.build(zoo, family="f", registry=registry, rel_error=REL_ERROR)
    monkeypatch.setattr(publish, "make_basis", make)
    built = uws_store.build(zoo, family="f", registry=registry, rel_error=REL_ERROR)
    assert [len(group) for group in built.groups] == [12, 12]
    assert uws_store.verify("f", registry=registry).ok


def test_the_groups_are_in_the_command_s_document(
    mixed: tuple[Path, str, BuildResult], tmp_path: Path
) -> None:
    zoo, _, _ = mixed
    said = CliRunner().invoke(
        PROGRAM,
        [
            "build",
            str(zoo),
            "--family",
            "f",
            "--registry",
            str(tmp_path / "r"),
            "--change-error",
            "0.3",
            "--json",
        ],
    )
    assert said.exit_code == 0, said.stderr
    assert [len(group) for group in json.loads(said.stdout)["groups"]] == [12, 12]
