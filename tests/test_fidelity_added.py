"""Models that are added to a family that made a promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from promise_support import SHAPES, Weights, agreement_of, distance_of, identity_of, shown_model, value_of
from zoo_support import make_zoo, snapshot

import uws_store
from uws_store.errors import FidelityError, InvalidInputError


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), shapes=SHAPES, models=11)


@pytest.fixture
def promised(zoo: Path, registry: str) -> str:
    evaluate = distance_of(zoo, seed=1)
    uws_store.build(zoo, family="f", registry=registry, max_drop=0.003, evaluate=evaluate)
    return registry


@pytest.fixture(scope="module")
def newcomers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with other changes: one like the family's, one whose outputs are a hundred times larger."""

    def grow(index: int, weights: Weights) -> None:
        if index == 1:
            for name in ("fc2.weight", "fc2.bias"):
                weights[name] *= 10

    return make_zoo(tmp_path_factory.mktemp("new"), shapes=SHAPES, models=2, seed=0, change=grow)


def test_a_model_that_is_added_keeps_the_familys_promise(promised: str, newcomers: Path) -> None:
    evaluate = distance_of(newcomers, seed=1)
    added = uws_store.add(
        newcomers / "task-01.safetensors", family="f", task="task-01", registry=promised, evaluate=evaluate
    )
    weights = uws_store.load_model("f", "task-01", registry=promised).materialize()
    assert value_of(evaluate(weights, "task-01")) <= 0.003
    (score,) = added.model.scores
    assert (score.max_drop, score.purpose) == (0.003, "both")
    family = uws_store.show("f", "task-00", registry=promised)[1][0]
    assert added.model.bits_per_parameter > family.bits_per_parameter


def test_a_model_that_is_added_without_an_evaluation_is_said_to_be_unmeasured(
    promised: str, newcomers: Path
) -> None:
    added = uws_store.add(newcomers / "task-00.safetensors", family="f", task="new", registry=promised)
    assert added.model.remarks
    assert not added.model.scores


def test_another_evaluation_than_the_familys_is_told(promised: str, newcomers: Path) -> None:
    def other(weights: Weights, task: str) -> object:
        return distance_of(newcomers, seed=1)(weights, task)

    path = newcomers / "task-00.safetensors"
    added = uws_store.add(path, family="f", registry=promised, evaluate=other)
    assert added.model.remarks
    same = uws_store.add(path, family="f", registry=promised, evaluate=distance_of(newcomers, seed=1))
    assert not same.model.remarks


def test_an_added_model_that_misses_is_refused_or_kept_exact(promised: str, newcomers: Path) -> None:
    path, evaluate = newcomers / "task-00.safetensors", identity_of(newcomers, "task-00")
    before = snapshot(Path(promised))
    with pytest.raises(FidelityError) as caught:
        uws_store.add(path, family="f", registry=promised, evaluate=evaluate)
    assert caught.value.kind == "fidelity/max-drop"
    assert snapshot(Path(promised)) == before
    added = uws_store.add(path, family="f", registry=promised, evaluate=evaluate, on_miss="exact")
    assert added.model.remarks
    assert shown_model(promised, "task-00").exact


def test_own_steps_are_remembered_for_models_that_come_later(
    zoo: Path, registry: str, newcomers: Path
) -> None:
    built = uws_store.build(
        zoo, family="f", registry=registry, max_drop=0.05, evaluate=distance_of(zoo, seed=1), per_model=True
    )
    path = newcomers / "task-00.safetensors"
    loose = uws_store.add(
        path,
        family="f",
        registry=registry,
        evaluate=lambda _weights, _task: {"metric": "m", "value": 0.0, "higher_is_better": False, "n": 1},
    )
    assert loose.model.step > 10 * built.step


def test_options_of_a_promise_need_a_family_that_made_one(zoo: Path, registry: str) -> None:
    uws_store.build(zoo, family="f", registry=registry)
    path = zoo / "task-00.safetensors"
    with pytest.raises(InvalidInputError) as caught:
        uws_store.add(
            path, family="f", registry=registry, evaluate=agreement_of(zoo, seed=1), on_miss="exact"
        )
    assert caught.value.kind == "invalid-input/max-drop"
    added = uws_store.add(path, family="f", registry=registry, evaluate=agreement_of(zoo, seed=1))
    assert added.model.scores[0].purpose == "report"
