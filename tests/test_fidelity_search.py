"""The numbers behind a promise: the bracketed search, paired statistics, fidelities as words."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo_support import make_zoo

import uws_store
from uws_store.builder import Fidelity, FidelityKind
from uws_store.canonical import Step
from uws_store.errors import InvalidInputError
from uws_store.fidelity import Promise
from uws_store.fidelity.bracket import TRIALS, largest_passing
from uws_store.fidelity.paired import PairedDrop, mean_interval, paired_drop, student_quantile
from uws_store.fidelity.results import ModelScore, summarise

START = Step.nearest(1.0)


def _search(passes: object, *, trials: int = TRIALS) -> tuple[Step | None, dict[Step, bool]]:
    tried: dict[Step, bool] = {}

    def recorded(step: Step) -> bool:
        assert step not in tried, "no step is paid for twice"
        assert callable(passes)
        tried[step] = bool(passes(step))
        return tried[step]

    found = largest_passing(recorded, start=START, finest=2.0**-10, coarsest=2.0**6, trials=trials)
    return found, tried


@given(st.floats(-9.9, 5.9))
def test_a_threshold_is_found_within_five_percent(octave: float) -> None:
    threshold = 2.0**octave
    found, tried = _search(lambda step: step.value <= threshold)
    assert found is not None
    assert len(tried) <= TRIALS
    assert threshold / 1.06 <= found.value <= threshold


@given(st.randoms(use_true_random=False), st.integers(1, TRIALS))
def test_whatever_the_noise_a_step_that_is_found_was_tried_and_passed(source: object, trials: int) -> None:
    found, tried = _search(lambda _step: source.random() < 0.5, trials=trials)  # type: ignore[attr-defined]
    assert 1 <= len(tried) <= trials
    assert (found is None) == (not any(tried.values()))
    if found is not None:
        assert tried[found]


def test_nothing_passes_is_known_only_after_the_finest_was_tried() -> None:
    found, tried = _search(lambda _step: False)
    assert found is None
    assert min(step.value for step in tried) == 2.0**-10


def test_everything_passes_ends_at_the_coarsest() -> None:
    found, tried = _search(lambda _step: True)
    assert found == Step.nearest(2.0**6)
    assert max(step.value for step in tried) == 2.0**6


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (5, 2.5706), (10, 2.2281), (30, 2.0423), (100, 1.9840), (1000, 1.9623)],
)
def test_student_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=6e-5)


def test_the_interval_of_answers_is_that_of_agresti_and_min() -> None:
    # Ten examples: three lost, one won. By hand: (3.5 - 1.5) / 12 -+ 1.96 * sqrt(5 - 4 / 12) / 12.
    original = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0.0])
    reconstruction = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0.0])
    drop = paired_drop(original, reconstruction)
    assert drop is not None
    assert drop.mean == pytest.approx(0.2)
    assert drop.low == pytest.approx(-0.186167, abs=1e-6)
    assert drop.high == pytest.approx(0.519500, abs=1e-6)


def test_the_interval_of_numbers_is_students() -> None:
    # Differences 1, 2, 3, 4: mean 2.5, deviation 1.290994, t 3.182446 at three degrees of freedom.
    drop = paired_drop(np.array([3.5, 2, 3, 4]), np.array([2.5, 0, 0, 0.0]))
    assert drop is not None
    assert (drop.mean, drop.low, drop.high) == pytest.approx((2.5, 0.445740, 4.554260), abs=1e-6)


def test_no_change_in_a_few_answers_is_not_certainty() -> None:
    few, many = np.ones(10), np.ones(10_000)
    drops = [paired_drop(few, few), paired_drop(many, many)]
    assert all(drop is not None and drop.mean == 0 and drop.low < 0 < drop.high for drop in drops)
    assert drops[0] is not None
    assert drops[1] is not None
    assert drops[0].high > 100 * drops[1].high


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_mean_lies_in_its_interval_and_the_interval_in_what_is_possible(
    pairs: list[tuple[bool, bool]],
) -> None:
    drop = paired_drop(*np.array(pairs, np.float64).T)
    assert drop is not None
    assert -1 <= drop.low <= drop.mean <= drop.high <= 1


@pytest.mark.parametrize("values", [[], [0.5], [np.nan, 1.0], [np.inf, 1.0]])
def test_too_little_to_say_gives_no_interval(values: list[float]) -> None:
    assert paired_drop(np.array(values), np.zeros(len(values))) is None


def test_intervals_cover_what_they_promise() -> None:
    source = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        original = source.random(200) < 0.9
        flipped = source.random(200) < 0.05
        drop = paired_drop(original.astype(float), (original ^ flipped).astype(float))
        assert drop is not None
        covered += drop.low <= 0.05 * (0.9 - 0.1) <= drop.high
    assert 0.92 <= covered / 400 <= 0.985


def _model_score(drop: float, *, purpose: str = "report", higher: bool = True) -> ModelScore:
    after = 0.9 - drop if higher else 0.9 + drop
    return ModelScore("m", "compact", 0.9, after, higher, 10, "e", purpose, None, drop, None, None)


def test_a_family_is_averaged_by_metric_and_purpose() -> None:
    pairs = [("a", _model_score(0.01)), ("b", _model_score(0.03)), ("b", _model_score(0.5, purpose="search"))]
    report, search = summarise(pairs)
    assert (report.models, report.worst_task) == (2, "b")
    assert report.drop == pytest.approx(0.02)
    # Two drops 0.02 apart: t 12.7062 times their deviation over the root of two, which is 0.01.
    assert report.interval == pytest.approx((0.02 - 0.127062, 0.02 + 0.127062), abs=1e-5)
    assert report.significant is False
    assert (search.models, search.interval, search.significant) == (1, None, None)
    assert mean_interval(np.array([1.0, 1.0])) == PairedDrop(1.0, 1.0, 1.0)


@pytest.mark.parametrize(("original", "after"), [(0.95, 0.94), (0.3, 0.29), (0.07, 0.06), (1.0, 0.99)])
def test_a_drop_of_exactly_what_was_promised_is_kept(original: float, after: float) -> None:
    assert Promise(0.01).is_kept_by(original - after, original=original)
    assert not Promise(0.0099).is_kept_by(original - after, original=original)
    assert not Promise(0.01).is_kept_by(math.inf, original=original)


@given(st.sampled_from(["bits", "rel-error", "change-error", "max-drop"]), st.floats(1e-300, 1.0))
def test_a_fidelity_is_read_back_as_it_was_written(kind: FidelityKind, value: float) -> None:
    fidelity = Fidelity(kind, value)
    assert Fidelity.parse(str(fidelity)) == fidelity


@pytest.mark.parametrize("words", ["", "bits", "bits x", "bits 99", "speed 3", "max-drop nan", "max-drop -1"])
def test_words_that_are_no_fidelity_are_told(words: str) -> None:
    assert Fidelity.parse(words) is None


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_promise_below_zero_or_without_bound_is_refused(value: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Fidelity("max-drop", value)
    assert caught.value.kind == "invalid-input/fidelity"


def test_bits_far_above_the_first_guess_are_met(tmp_path: Path) -> None:
    # Nearly all of so small a model is metadata: the step ends 2**24 above where its search began.
    zoo = make_zoo(tmp_path / "zoo", models=5, seed=1125)
    result = uws_store.build(zoo, family="f", registry=str(tmp_path / "r"), bits=26.5)
    assert sum(model.bits_per_parameter for model in result.models) / 5 <= 26.5
