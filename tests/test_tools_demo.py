"""The demo's zoo, small: tasks follow from their names, training is repeatable, the evaluation is strict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import evaluation
import pytest
import torch
import zoo
from digit_tasks import BASE_TASK, scored_images, task_named, task_names, training_images, turned
from safetensors import safe_open
from safetensors.torch import load_file
from vit import DigitsViT


def test_a_task_follows_from_its_name_alone() -> None:
    assert task_named.__wrapped__("task-07") == task_named("task-07")
    assert task_named("task-07") != task_named("task-08")
    # Written down, so that a published accuracy stays comparable: any change of the drawing shows here.
    assert task_named("task-00").groups == (3, 3, 2, 2, 0, 3, 1, 2, 0, 1)


def test_every_task_has_two_to_five_classes_and_none_is_empty() -> None:
    tasks = [task_named(name) for name in task_names(80)]
    assert {task.n_classes for task in tasks} == {2, 3, 4, 5}
    assert all(set(task.groups) == set(range(task.n_classes)) for task in tasks)
    assert all(-180 <= task.rotation_deg <= 180 for task in tasks)


def test_search_report_and_training_images_do_not_overlap() -> None:
    task = task_named(BASE_TASK)
    parts = [scored_images(task, part)[0] for part in ("search", "report", "all")]
    assert [len(part) for part in parts] == [299, 298, 597]
    assert len(training_images()[0]) + 597 == 1797
    search, report, everything = ({tuple(image.flatten().tolist()) for image in part} for part in parts)
    assert not search & report
    assert search | report == everything


def test_a_quarter_turn_moves_pixels_exactly() -> None:
    images = training_images()[0][:5]
    quarter = turned(images, torch.full((5,), 90.0))
    torch.testing.assert_close(quarter, torch.rot90(images, 1, (1, 2)), atol=1e-5, rtol=0)


def test_the_network_has_the_parameters_it_tells() -> None:
    assert sum(value.numel() for value in DigitsViT(3).parameters()) == 135_488 + 65 * 3


def test_two_tasks_train_into_files_that_load_and_score(tmp_path: Path) -> None:
    base_path = tmp_path / "base.safetensors"
    steps: list[int] = []
    base = zoo.train_base(base_path, steps=40, on_step=lambda: steps.append(1))
    assert len(steps) == 40
    done: list[str] = []
    jobs = [(name, tmp_path / f"{name}.safetensors") for name in ("task-00", "task-01")]
    zoo.fine_tune_all(base_path, jobs, steps=30, workers=2, on_done=done.append)
    assert sorted(done) == ["task-00", "task-01"]
    for name, path in jobs:
        weights = load_file(path)
        task = task_named(name)
        assert weights["head.weight"].shape == (task.n_classes, 64)
        changed = [key for key, value in base.items() if "head" not in key and not weights[key].equal(value)]
        assert len(changed) == len(base) - 2, "every parameter is fine-tuned"
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["task"] == name
            assert file.metadata()["rotation_deg"] == str(task.rotation_deg)
        trained = evaluation.search(weights, name)
        assert trained["n"] == len(trained["correct"]) == 299
        assert trained["value"] == sum(trained["correct"]) / 299
        untrained = evaluation.search({key: torch.zeros_like(value) for key, value in weights.items()}, name)
        assert trained["value"] > untrained["value"]


def test_fine_tuning_in_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    base_path = tmp_path / "base.safetensors"
    zoo.train_base(base_path, steps=2)
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    threads = torch.get_num_threads()
    zoo.fine_tune(base_path, "task-02", here, steps=3)
    assert torch.get_num_threads() == threads
    zoo.fine_tune_all(base_path, [("task-02", there)], steps=3)
    # Tensors, not files: safetensors writes its metadata in no fixed order.
    one, other = load_file(here), load_file(there)
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


def test_evaluation_refuses_a_model_with_a_tensor_missing() -> None:
    weights = dict(DigitsViT(task_named("task-00").n_classes).state_dict())
    del weights["blocks.2.fc1.bias"]
    with pytest.raises(KeyError, match=r"blocks\.2\.fc1\.bias"):
        evaluation.evaluate(weights, "task-00")


def test_evaluation_takes_any_floating_point_dtype() -> None:
    weights = DigitsViT(task_named("task-00").n_classes).state_dict()
    exact = evaluation.evaluate(weights, "task-00")
    as_float64 = {key: value.to(torch.float64) for key, value in weights.items()}
    assert evaluation.evaluate(as_float64, "task-00") == exact


def test_evaluation_loads_by_path_alone(repository: Path) -> None:
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('by_path', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.evaluate.__name__)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, repository / "tools" / "demo" / "evaluation.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert run.stdout.split() == ["evaluate"]
