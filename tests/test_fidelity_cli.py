"""Promised scores on the command line: options, what is printed where, records shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import TASKS, make_small_zoo, run, run_well

SCORE = '''
"""An evaluation that prints, as people's evaluations do."""
import torch

ORIGINALS = {}

def outputs(weights, seed):
    inputs = torch.randn(100, 48, generator=torch.Generator().manual_seed(seed))
    hidden = torch.relu(inputs @ weights["fc1.weight"].T + weights["fc1.bias"])
    return hidden @ weights["fc2.weight"].T + weights["fc2.bias"]

def agreement(weights, task, seed):
    print("scoring", task)
    answers = outputs(weights, seed).argmax(1)
    # The first that is scored of a task is its original.
    correct = answers == ORIGINALS.setdefault((task, seed), answers)
    return {"metric": "agree[bold]ment", "value": correct.float().mean(), "higher_is_better": True, "n": 100,
            "correct": correct}

def report(weights, task):
    return agreement(weights, task, 1)

def search(weights, task):
    return agreement(weights, task, 2)

def plain(weights, task):
    return {"loss": float(weights["fc1.bias"].abs().sum())}

def broken(weights, task):
    raise RuntimeError("the data is not here")

def impossible(weights, task):
    ORIGINALS.setdefault("seen", set())
    first = task not in ORIGINALS["seen"]
    ORIGINALS["seen"].add(task)
    return {"metric": "m", "value": float(first), "higher_is_better": True, "n": 1}
'''


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def score(tmp_path: Path) -> Path:
    path = tmp_path / "score.py"
    path.write_text(SCORE)
    return path


def test_a_promised_build_tells_scores_and_shows_them(zoo: Path, score: Path, tmp_path: Path) -> None:
    options = ("--registry", tmp_path / "registry", "--max-drop", 0.05)
    built = run_well(
        "build",
        zoo,
        "--family",
        "f",
        *options,
        "--eval",
        f"{score}:report",
        "--search-eval",
        f"{score}:search",
    )
    assert "agree[bold]ment" in built.stdout
    assert "significant drop" in built.stdout
    assert "scoring task-00" not in built.stdout
    assert "scoring task-00" in built.stderr
    model = run_well("show", "f/task-03", *options[:2])
    assert "agree[bold]ment" in model.stdout
    assert "promised: at most 0.05" in model.stdout
    family = run_well("show", "f", *options[:2])
    assert "drop" in family.stdout
    shown = run_well("show", "f", *options[:2], "--json").document["families"][0]["models"]
    assert [[entry["purpose"] for entry in one["scores"]] for one in shown] == [["report", "search"]] * len(
        TASKS
    )
    assert all(one["scores"][1]["drop"] <= 0.05 for one in shown)


def test_json_stays_one_document_while_the_evaluation_prints(zoo: Path, score: Path, tmp_path: Path) -> None:
    registry = ("--registry", tmp_path / "registry")
    built = run_well(
        "build",
        zoo,
        "--family",
        "f",
        *registry,
        "--max-drop",
        0.05,
        "--eval",
        f"{score}:report",
        "--per-model",
        "--json",
    ).document
    assert built["remarks"]
    assert {model["step"] for model in built["models"]} != {built["step"]}
    assert built["scores"][0]["models"] == len(TASKS)
    added = run_well(
        "add",
        zoo / "task-00.safetensors",
        "--family",
        "f",
        "--task",
        "again",
        *registry,
        "--eval",
        f"{score}:report",
        "--json",
    ).document
    assert added["model"]["scores"][0]["max_drop"] == 0.05
    unmeasured = run_well("add", zoo / "task-00.safetensors", "--family", "f", *registry)
    assert "not measured" in unmeasured.stderr


def test_a_plain_dict_needs_metric_and_direction(zoo: Path, score: Path, tmp_path: Path) -> None:
    options = ("build", zoo, "--family", "f", "--registry", tmp_path / "registry", "--eval", f"{score}:plain")
    assert run(*options).error_kind == "invalid-input/evaluation"
    assert run(*options, "--metric", "loss").error_kind == "invalid-input/evaluation"
    ran = run_well(*options, "--metric", "loss", "--lower-is-better", "--json")
    assert {model["scores"][0]["higher_is_better"] for model in ran.document["models"]} == {False}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--max-drop", 0.1), "invalid-input/max-drop"),
        (("--per-model",), "invalid-input/max-drop"),
        (("--max-drop", 0.1, "--eval", "{}:broken"), "invalid-input/evaluation-raised"),
        (("--max-drop", 0.1, "--eval", "{}:nothing"), "not-found/evaluation"),
        (("--max-drop", 0.1, "--eval", "{}:impossible"), "fidelity/max-drop"),
    ],
)
def test_what_cannot_be_promised_is_an_error_with_its_kind(
    zoo: Path, score: Path, tmp_path: Path, options: tuple[object, ...], kind: str
) -> None:
    filled = [str(option).format(score) for option in options]
    ran = run("build", zoo, "--family", "f", "--registry", tmp_path / "registry", *filled)
    assert ran.code == 2
    assert ran.error_kind == kind


def test_a_model_that_misses_is_kept_exact_and_named(zoo: Path, score: Path, tmp_path: Path) -> None:
    options = ("--max-drop", 0.1, "--eval", f"{score}:impossible", "--on-miss", "exact")
    ran = run_well("build", zoo, "--family", "f", "--registry", tmp_path / "registry", *options)
    assert "task-00" in ran.stderr
    assert "tier='exact'" in ran.stderr
