"""A user's evaluation: how it is found, what it may return, and what is made of everything else."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uws_store.errors import InvalidInputError, NotFoundError
from uws_store.fidelity import Evaluation, Score, load_evaluation

GOOD = {"metric": "accuracy", "value": 0.75, "higher_is_better": True, "n": 4}


def _evaluation(answer: Any, **options: Any) -> Evaluation:
    return Evaluation("test", None, lambda _weights, _task: answer, **options)


def _score(answer: Any, **options: Any) -> Score:
    score = _evaluation(answer, **options).score({}, "task-00")
    assert score is not None
    return score


def module_level(weights: dict[str, torch.Tensor], task: str) -> dict[str, object]:
    return GOOD | {"value": float(len(weights)) + len(task)}


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3), torch.tensor(0.5), float("nan")])
def test_every_kind_of_number_is_a_value(value: object) -> None:
    score = _score(GOOD | {"value": value})
    assert np.isnan(score.value) or score.value in (1.0, 0.5, 3.0)


@pytest.mark.parametrize("key", ["correct", "per_example"])
@pytest.mark.parametrize(
    "results", [[1, 0, 1, 1], (True, False, True, True), np.array([1, 0, 1, 1]), torch.tensor([1.0, 0, 1, 1])]
)
def test_results_per_example_may_be_any_list_of_numbers(key: str, results: object) -> None:
    score = _score(GOOD | {key: results})
    assert score.goodness is not None
    assert score.goodness.tolist() == [1, 0, 1, 1]


def test_losses_per_example_are_turned_and_correct_answers_are_not() -> None:
    losses = _score(GOOD | {"higher_is_better": False, "per_example": [1, 2, 3, 4]})
    answers = _score(GOOD | {"higher_is_better": False, "correct": [1, 0, 1, 1]})
    assert losses.goodness is not None
    assert answers.goodness is not None
    assert losses.goodness.tolist() == [-1, -2, -3, -4]
    assert answers.goodness.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ({"metric": None}, {"metric"}),
        ({"metric": 3}, {"metric"}),
        ({"metric": ""}, {"metric"}),
        ({"metric": "m" * 201}, {"metric"}),
        ({"value": "high"}, {"value"}),
        ({"value": True}, {"value"}),
        ({"value": None}, {"value"}),
        ({"value": torch.zeros(2)}, {"value"}),
        ({"value": 10**400}, {"value"}),
        ({"higher_is_better": 1}, {"higher_is_better"}),
        ({"higher_is_better": None}, {"higher_is_better"}),
        ({"n": 0}, {"n"}),
        ({"n": 4.0}, {"n"}),
        ({"n": True}, {"n"}),
        ({"n": None}, {"n"}),
        ({"n": 2**63}, {"n"}),
        ({"correct": [1, 0, 1]}, {"correct"}),
        ({"correct": "yes"}, {"correct"}),
        ({"correct": [[1, 0], [1, 1]]}, {"correct"}),
        ({"correct": [1, [2], 3, 4]}, {"correct"}),
        ({"correct": ["a", "b", "c", "d"]}, {"correct"}),
        ({"correct": [1, 1, 1, 1], "per_example": [1, 1, 1, 1]}, {"per_example"}),
        ({"value": "high", "n": -1}, {"value", "n"}),
    ],
)
def test_a_malformed_answer_is_refused_with_every_problem(
    change: dict[str, object], places: set[str]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        _score(GOOD | change)
    assert caught.value.kind == "invalid-input/evaluation"
    assert {problem.loc for problem in caught.value.problems} == places


@pytest.mark.parametrize("answer", [0.93, [0.93], "0.93", (0.93, 4), object()])
def test_an_answer_that_is_no_mapping_is_refused(answer: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        _score(answer)
    assert caught.value.kind == "invalid-input/evaluation"
    assert "task-00" in str(caught.value)


def test_a_plain_mapping_needs_its_metric_and_direction_said() -> None:
    with pytest.raises(InvalidInputError) as caught:
        _score({"auc": 0.93})
    assert {problem.loc for problem in caught.value.problems} == {"metric", "higher_is_better"}
    with pytest.raises(InvalidInputError) as caught:
        _score({"auc": 0.93}, metric="auc")
    assert {problem.loc for problem in caught.value.problems} == {"higher_is_better"}
    with pytest.raises(InvalidInputError) as caught:
        _score({"auc": 0.93}, metric="loss", higher_is_better=False)
    assert {problem.loc for problem in caught.value.problems} == {"loss"}
    score = _score({"auc": 0.93}, metric="auc", higher_is_better=True)
    assert (score.metric, score.value, score.higher_is_better, score.n) == ("auc", 0.93, True, None)


def test_another_number_of_a_full_answer_does_not_inherit_its_direction() -> None:
    answer = GOOD | {"loss": 0.2, "correct": [1, 0, 1, 1]}
    with pytest.raises(InvalidInputError):
        _score(answer, metric="loss")
    score = _score(answer, metric="loss", higher_is_better=False)
    assert (score.value, score.higher_is_better, score.goodness) == (0.2, False, None)


def test_a_direction_said_twice_must_agree() -> None:
    with pytest.raises(InvalidInputError) as caught:
        _score(GOOD, higher_is_better=False)
    assert {problem.loc for problem in caught.value.problems} == {"higher_is_better"}


def test_none_and_a_key_error_of_the_task_mean_not_scorable() -> None:
    def unknown(_weights: object, task: str) -> object:
        raise KeyError(task)

    assert _evaluation(None).score({}, "task-00") is None
    assert Evaluation("test", None, unknown).score({}, "task-00") is None


@pytest.mark.parametrize(
    "error", [KeyError("head.weight"), KeyError(), RuntimeError("no data"), SystemExit(3)]
)
def test_what_an_evaluation_raises_is_chained_and_names_the_task(error: BaseException) -> None:
    def broken(_weights: object, _task: str) -> object:
        raise error

    with pytest.raises(InvalidInputError) as caught:
        Evaluation("test", None, broken).score({}, "task-77")
    assert caught.value.kind == "invalid-input/evaluation-raised"
    assert "task-77" in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_drop_is_positive_when_worse_in_either_direction() -> None:
    higher = _score(GOOD), _score(GOOD | {"value": 0.5}), _score(GOOD | {"value": float("nan")})
    lower = [_score(GOOD | {"value": value, "higher_is_better": False}) for value in (0.5, 0.75)]
    assert higher[0].drop_to(higher[1]) == 0.25
    assert higher[1].drop_to(higher[0]) == -0.25
    assert higher[0].drop_to(higher[2]) == np.inf
    assert lower[0].drop_to(lower[1]) == 0.25


def _write(folder: Path, name: str, code: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(code)
    return path


SOURCE = "def f(weights, task):\n    return {'metric': 'm', 'value': 1.0, 'higher_is_better': True, 'n': 1}\n"


def test_a_file_is_named_without_its_folder_and_hashed_whole(tmp_path: Path) -> None:
    path = _write(tmp_path / "secret-place", "score.py", SOURCE)
    evaluation = load_evaluation(f"{path}:f")
    assert evaluation.name == "score.py:f"
    assert evaluation.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert evaluation.identity == f"score.py:f sha256:{evaluation.sha256[:16]}"
    assert evaluation.score({}, "task") is not None


def test_two_functions_of_a_file_share_one_module_and_an_edit_makes_another(tmp_path: Path) -> None:
    path = _write(tmp_path, "score.py", f"{SOURCE}\ng = f\nheld = []\n")
    first, second = load_evaluation(f"{path}:f"), load_evaluation(f"{path}:g")
    assert first.function is second.function
    # The same length and, likely, the same second: a cached compilation would not notice.
    path.write_text(path.read_text().replace("1.0", "2.0"))
    edited = load_evaluation(f"{path}:f")
    assert edited.sha256 != first.sha256
    score = edited.score({}, "task")
    assert score is not None
    assert score.value == 2.0


def test_a_file_finds_the_modules_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    _write(tmp_path, "neighbour_of_score.py", "VALUE = 0.25\n")
    code = SOURCE.replace("1.0", "neighbour_of_score.VALUE")
    path = _write(tmp_path, "score.py", f"import neighbour_of_score\n{code}")
    score = load_evaluation(f"{path}:f").score({}, "task")
    assert score is not None
    assert score.value == 0.25


def test_a_module_is_imported_and_its_function_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(
        tmp_path / "scoring_package",
        "inner.py",
        f"class Held:\n    @staticmethod\n    {SOURCE.replace(chr(10), chr(10) + '    ')}\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    evaluation = load_evaluation("scoring_package.inner:Held.f")
    assert evaluation.name == "scoring_package.inner:Held.f"
    assert evaluation.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert evaluation.score({}, "task") is not None


def test_a_function_is_named_after_where_it_is_written() -> None:
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    for function in (module_level, functools.partial(module_level)):
        evaluation = load_evaluation(function)
        assert evaluation.name.endswith(":module_level")
        assert evaluation.sha256 == own


def test_a_function_without_a_file_has_no_hash() -> None:
    held: dict[str, Any] = {}
    exec("def typed(weights, task): return None", held)
    evaluation = load_evaluation(held["typed"])
    assert evaluation.sha256 is None
    assert evaluation.identity == evaluation.name


@pytest.mark.parametrize(
    ("source", "error", "kind"),
    [
        ("nothing", InvalidInputError, "invalid-input/evaluation"),
        (":f", InvalidInputError, "invalid-input/evaluation"),
        ("module:", InvalidInputError, "invalid-input/evaluation"),
        ("module:not a name", InvalidInputError, "invalid-input/evaluation"),
        ("no_such_module_anywhere:f", NotFoundError, "not-found/evaluation"),
        ("json.no_such_part:f", NotFoundError, "not-found/evaluation"),
        ("json:no_such_function", NotFoundError, "not-found/evaluation"),
        ("json:__name__", InvalidInputError, "invalid-input/evaluation"),
        ("no/such/file.py:f", NotFoundError, "not-found/evaluation"),
        (3, InvalidInputError, "invalid-input/evaluation"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(source: Any, error: type[Exception], kind: str) -> None:
    with pytest.raises(error) as caught:
        load_evaluation(source)
    assert getattr(caught.value, "kind", None) == kind


@pytest.mark.parametrize("code", ["import no_such_module_anywhere\n", "raise SystemExit(2)\n", "def f(:\n"])
def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path, code: str) -> None:
    path = _write(tmp_path, "score.py", code)
    for _ in range(2):
        with pytest.raises(InvalidInputError) as caught:
            load_evaluation(f"{path}:f")
        assert caught.value.kind == "invalid-input/evaluation"
        assert caught.value.__cause__ is not None
    assert not [name for name in sys.modules if name.startswith("_uws_evaluation") and str(path) in name]


def test_a_module_whose_own_import_fails_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "module_with_a_hole.py", "import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidInputError) as caught:
        load_evaluation("module_with_a_hole:f")
    assert caught.value.kind == "invalid-input/evaluation"
    assert "no_such_module_anywhere" in str(caught.value)
