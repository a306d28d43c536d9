"""Promised scores end to end: built, held by every model, recorded, kept for models that come later, refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from promise_support import (
    EXAMPLES,
    SHAPES,
    Evaluate,
    Weights,
    agreement_of,
    bits_of,
    bytes_of,
    distance_of,
    identity_of,
    shown_model,
    value_of,
)
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo, same_bits, snapshot

import uws_store
from uws_store.builder import BasisBuilder, Fidelity, Members
from uws_store.canonical import Step
from uws_store.checkpoint import scan_zoo
from uws_store.errors import FidelityError, InvalidInputError


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), shapes=SHAPES, models=11)


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


@pytest.mark.parametrize("max_drop", [0.05, 0.01])
@pytest.mark.parametrize("own", ["family", "per-model"])
def test_every_loaded_model_keeps_the_promise(zoo: Path, registry: str, max_drop: float, own: str) -> None:
    search = agreement_of(zoo, seed=1)
    uws_store.build(
        zoo,
        family="f",
        registry=registry,
        max_drop=max_drop,
        evaluate=agreement_of(zoo, seed=2),
        search_evaluate=search,
        per_model=own == "per-model",
    )
    for task in uws_store.open_family("f", registry=registry).tasks():
        weights = uws_store.load_model("f", task, registry=registry).materialize()
        assert 1.0 - value_of(search(weights, task)) <= max_drop + 1e-9
    assert uws_store.verify("f", registry=registry, against=zoo).ok


def test_no_step_is_stored_that_was_not_scored(zoo: Path, registry: str) -> None:
    seen: dict[str, list[Weights]] = {}
    agreement = agreement_of(zoo, seed=1)

    def recording(weights: Weights, task: str) -> object:
        seen.setdefault(task, []).append({name: value.clone() for name, value in weights.items()})
        return agreement(weights, task)

    uws_store.build(zoo, family="f", registry=registry, max_drop=0.02, evaluate=recording)
    for task, scored in seen.items():
        stored = uws_store.load_model("f", task, registry=registry).materialize()
        assert any(all(same_bits(weights[name], stored[name]) for name in stored) for weights in scored)
        # The original, two searches of the family, the model's own: what a user waits for is bounded.
        assert len(scored) <= 40


def test_less_drop_takes_more_bits_and_own_steps_take_fewer_bytes(zoo: Path, tmp_path: Path) -> None:
    results = {
        (max_drop, per_model): uws_store.build(
            zoo,
            family="f",
            registry=str(tmp_path / f"{max_drop}-{per_model}"),
            max_drop=max_drop,
            evaluate=agreement_of(zoo, seed=1),
            per_model=per_model,
        )
        for max_drop in (0.1, 0.01)
        for per_model in (False, True)
    }
    for per_model in (False, True):
        assert bits_of(results[0.1, per_model]) < bits_of(results[0.01, per_model])
    for max_drop in (0.1, 0.01):
        family, own = results[max_drop, False], results[max_drop, True]
        assert family.step == own.step
        assert bytes_of(own) < bytes_of(family)
        assert any(model.step > own.step for model in own.models)
        assert all(model.step <= family.step for model in family.models)


def test_lower_is_better_is_held_too(zoo: Path, registry: str) -> None:
    distance = distance_of(zoo, seed=1)
    result = uws_store.build(zoo, family="f", registry=registry, max_drop=0.003, evaluate=distance)
    for model in result.models:
        weights = uws_store.load_model("f", model.task, registry=registry).materialize()
        (score,) = model.scores
        assert (score.original, score.higher_is_better) == (0.0, False)
        assert score.drop == score.reconstruction == pytest.approx(value_of(distance(weights, model.task)))
        assert 0.003 / 20 < score.drop <= 0.003
        assert score.significant, "every output moved"
    assert result.scores[0].significant


def test_a_model_that_is_harder_than_the_sample_gets_a_finer_step(tmp_path: Path, registry: str) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES, models=20)
    # Eight of twenty are sampled; this one is not among them.
    hard, loose = "task-01", distance_of(zoo, seed=1)

    def uneven(weights: Weights, task: str) -> object:
        answer = loose(weights, task)
        assert isinstance(answer, dict)
        return answer | {"value": answer["value"] * (100 if task == hard else 1), "per_example": None}

    result = uws_store.build(zoo, family="f", registry=registry, max_drop=0.01, evaluate=uneven)
    steps = {model.task: model.step for model in result.models}
    assert steps[hard] < result.step / 5
    assert sum(step == result.step for step in steps.values()) >= 10
    assert all(model.scores[0].drop <= 0.01 for model in result.models)


def test_what_cannot_be_scored_keeps_the_familys_step_and_says_so(zoo: Path, registry: str) -> None:
    evaluate = agreement_of(zoo, seed=1, unknown=("task-02", "task-05"))
    result = uws_store.build(
        zoo, family="f", registry=registry, max_drop=0.02, evaluate=evaluate, per_model=True
    )
    silent = {model.task: model for model in result.models if not model.scores}
    assert set(silent) == {"task-02", "task-05"}
    for model in silent.values():
        assert model.step == result.step
        assert model.remarks
    assert not any(model.remarks for model in result.models if model.task not in silent)
    assert result.scores[0].models == 9


def test_an_evaluation_that_can_score_nothing_promises_nothing(zoo: Path, registry: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        uws_store.build(
            zoo, family="f", registry=registry, max_drop=0.1, evaluate=lambda _weights, _task: None
        )
    assert caught.value.kind == "invalid-input/evaluation"


@pytest.mark.parametrize(
    "tasks", [("task-00",), ("task-01", "task-10"), tuple(f"task-{n:02d}" for n in range(11))]
)
def test_models_that_miss_are_refused_by_name_and_nothing_is_stored(
    zoo: Path, registry: str, tasks: tuple[str, ...]
) -> None:
    uws_store.build(zoo, family="other", registry=registry)
    before = snapshot(Path(registry))
    with pytest.raises(FidelityError) as caught:
        uws_store.build(zoo, family="f", registry=registry, max_drop=0.5, evaluate=identity_of(zoo, *tasks))
    assert caught.value.kind == "fidelity/max-drop"
    assert tuple(problem.loc for problem in caught.value.problems) == tasks
    assert snapshot(Path(registry)) == before


def test_models_that_miss_are_kept_exact_when_asked(zoo: Path, registry: str) -> None:
    hard = ("task-03", "task-07")
    result = uws_store.build(
        zoo, family="f", registry=registry, max_drop=0.5, evaluate=identity_of(zoo, *hard), on_miss="exact"
    )
    for model in result.models:
        shown = shown_model(registry, model.task)
        assert shown.exact == (model.task in hard) == bool(model.remarks)
        (score,) = shown.scores
        assert score.original == 1.0
        # A model that is kept exact may be stored so at every tier, where that is smaller.
        assert score.reconstruction == 1.0 or model.task in hard
        assert score.max_drop == 0.5
    for task in hard:
        exact = uws_store.load_model("f", task, registry=registry, tier="exact").materialize()
        original = load_file(zoo / f"{task}.safetensors")
        assert all(same_bits(exact[name], original[name]) for name in original)


def test_records_tell_the_report_from_the_search(zoo: Path, registry: str) -> None:
    result = uws_store.build(
        zoo,
        family="f",
        registry=registry,
        max_drop=0.03,
        evaluate=agreement_of(zoo, seed=2),
        search_evaluate=agreement_of(zoo, seed=1),
    )
    assert not result.remarks
    assert {score.purpose: score.models for score in result.scores} == {"report": 11, "search": 11}
    report, search = shown_model(registry, "task-04").scores
    assert (report.purpose, report.max_drop) == ("report", None)
    assert (search.purpose, search.max_drop, search.interval) == ("search", 0.03, None)
    assert report.interval is not None
    assert report.interval[0] <= report.drop <= report.interval[1]
    assert report.significant == (report.interval[0] > 0)
    for score in (report, search):
        assert (score.metric, score.tier, score.n, score.original) == ("agreement", "compact", EXAMPLES, 1.0)
        assert score.drop == pytest.approx(1.0 - score.reconstruction)
        assert "agreement sha256:" in score.evaluation
    weights = uws_store.load_model("f", "task-04", registry=registry).materialize()
    assert value_of(agreement_of(zoo, seed=2)(weights, "task-04")) == report.reconstruction
    assert result.models[4].scores == (report, search)


def test_one_set_of_examples_for_both_is_told(zoo: Path, registry: str) -> None:
    result = uws_store.build(
        zoo, family="f", registry=registry, max_drop=0.03, evaluate=agreement_of(zoo, seed=1)
    )
    assert result.remarks
    (score,) = shown_model(registry, "task-04").scores
    assert (score.purpose, score.max_drop) == ("both", 0.03)


def test_an_evaluation_without_a_promise_is_only_measured(zoo: Path, registry: str, tmp_path: Path) -> None:
    plain = uws_store.build(zoo, family="f", registry=str(tmp_path / "plain"), change_error=0.2)
    scored = uws_store.build(
        zoo,
        family="f",
        registry=registry,
        change_error=0.2,
        evaluate=lambda weights, _task: {"mass": float(weights["fc1.bias"].abs().sum())},
        metric="mass",
        higher_is_better=True,
    )
    assert not scored.remarks
    assert [model.step for model in scored.models] == [model.step for model in plain.models]
    (score,) = shown_model(registry, "task-04").scores
    assert (score.metric, score.n, score.purpose, score.max_drop, score.interval) == (
        "mass",
        None,
        "report",
        None,
        None,
    )
    assert score.original == pytest.approx(
        float(load_file(zoo / "task-04.safetensors")["fc1.bias"].abs().sum())
    )
    size = len(next(iter(Path(registry).glob("families/f/models/*/zarr.json"))).read_bytes())
    assert size < 2400, "a score stays small beside a small model's core"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_drop": 0.1}, "invalid-input/max-drop"),
        ({"max_drop": -0.1, "evaluate": "x:f"}, "invalid-input/fidelity"),
        ({"max_drop": 0.1, "bits": 2.0, "evaluate": "x:f"}, "invalid-input/fidelity"),
        ({"evaluate": "json:loads", "search_evaluate": "json:loads"}, "invalid-input/max-drop"),
        ({"evaluate": "json:loads", "per_model": True}, "invalid-input/max-drop"),
        ({"on_miss": "exact"}, "invalid-input/max-drop"),
        ({"max_drop": 0.1, "evaluate": "json:loads", "on_miss": "shrug"}, "invalid-input/max-drop"),
        ({"search_evaluate": "json:loads"}, "invalid-input/evaluation"),
        ({"metric": "auc"}, "invalid-input/evaluation"),
        ({"evaluate": "no_such_module_anywhere:f"}, "not-found/evaluation"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_any_work(
    registry: str, options: dict[str, Any], kind: str
) -> None:
    with pytest.raises(uws_store.UwsError) as caught:
        uws_store.build("no/such/zoo", family="f", registry=registry, **options)
    assert caught.value.kind == kind
    assert not Path(registry).exists()


def _nan_for_the_original(weights: Weights, task: str) -> object:
    return {"metric": "m", "value": math.nan, "higher_is_better": True, "n": 1}


def _counting() -> Evaluate:
    calls = iter(range(1, 10**6))
    return lambda _weights, _task: {"metric": "m", "value": 1.0, "higher_is_better": True, "n": next(calls)}


def _failing_at(count: int) -> Evaluate:
    calls = iter(range(10**6))

    def failing(_weights: Weights, _task: str) -> object:
        if next(calls) == count:
            raise RuntimeError("no memory left")
        return {"metric": "m", "value": 1.0, "higher_is_better": True, "n": 1}

    return failing


@pytest.mark.parametrize(
    ("evaluate", "kind"),
    [
        (_nan_for_the_original, "invalid-input/evaluation"),
        (_counting(), "invalid-input/evaluation"),
        (lambda _weights, _task: {"value": 1}, "invalid-input/evaluation"),
        (_failing_at(0), "invalid-input/evaluation-raised"),
        (_failing_at(13), "invalid-input/evaluation-raised"),
    ],
)
def test_an_evaluation_that_goes_wrong_leaves_the_registry_as_it_was(
    zoo: Path, registry: str, evaluate: Evaluate, kind: str
) -> None:
    uws_store.build(zoo, family="other", registry=registry)
    before = snapshot(Path(registry))
    with pytest.raises(InvalidInputError) as caught:
        uws_store.build(zoo, family="f", registry=registry, max_drop=0.1, evaluate=evaluate)
    assert caught.value.kind == kind
    assert "task-" in str(caught.value)
    assert snapshot(Path(registry)) == before


def test_a_score_that_is_no_number_is_a_miss_and_never_a_record(zoo: Path, registry: str) -> None:
    distance = distance_of(zoo, seed=1)

    def explosive(weights: Weights, task: str) -> object:
        value = value_of(distance(weights, task))
        return {
            "metric": "m",
            "value": value if value < 1e-3 else math.nan,
            "higher_is_better": False,
            "n": 1,
        }

    result = uws_store.build(zoo, family="f", registry=registry, max_drop=1e9, evaluate=explosive)
    assert all(model.scores[0].drop < 1e-3 for model in result.models)
    with pytest.raises(FidelityError) as caught:
        uws_store.build(zoo, family="g", registry=registry, change_error=1.0, evaluate=explosive)
    assert caught.value.kind == "fidelity/not-a-number"


def test_a_zoo_of_one_network_needs_no_search(tmp_path: Path, registry: str) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES, models=3)
    for task in ("task-01", "task-02"):
        save_file(load_file(zoo / "task-00.safetensors"), zoo / f"{task}.safetensors")
    result = uws_store.build(
        zoo, family="f", registry=registry, max_drop=0.0, evaluate=identity_of(zoo, "task-01")
    )
    assert all(model.scores[0].drop == 0 for model in result.models)


def test_progress_never_exceeds_what_there_is_to_do(zoo: Path, registry: str) -> None:
    phases: list[str] = []
    counted: dict[str, int] = {}

    def report(phase: str, done: int, total: int, size_bytes: int = 0) -> None:
        assert 1 <= done <= total
        phases.append(phase)
        counted[phase] = size_bytes

    evaluate = agreement_of(zoo, seed=1)
    uws_store.build(zoo, family="f", registry=registry, max_drop=0.02, evaluate=evaluate, progress=report)
    assert {"scoring", "reading", "fitting", "searching", "checking", "encoding"} <= set(phases)
    files = sum(path.stat().st_size for path in zoo.iterdir())
    assert counted["encoding"] == files
    assert 0.8 * files < counted["reading"] <= files, "headers are no tensors"
    assert 0 < counted["fitting"] <= counted["reading"]


def test_a_basis_is_refitted_only_for_a_step_that_is_far(zoo: Path) -> None:
    with Members(scan_zoo(zoo)) as members:
        builder = BasisBuilder(members, fidelity=Fidelity("max-drop", 0.01))
        first = builder.build()
        step = first.basis.document.step
        near, refitted = builder.at_step(Step.nearest(Step(step.mantissa, step.exponent).value * 1.1))
        assert not refitted
        assert near.fits == first.fits
        assert near.basis.document.step != step
        far, refitted = builder.at_step(Step(step.mantissa, step.exponent + 3))
        assert refitted
        assert far.basis.document.step.exponent == step.exponent + 3
