"""Verification with scores: sides beside each other, built-in evaluations, broken promises, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import TASKS, make_small_zoo, run, run_well
from safetensors.torch import load_file, save_file
from zoo_support import snapshot

from uws_store import UwsError, build, verify
from uws_store.api import VerifyResult, open_registry
from uws_store.fidelity import basis_free
from uws_store.fidelity.examples import draw_examples, find_examples
from uws_store.fidelity.sides import ORIGINAL, examine


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(48, 64)
        self.fc2 = torch.nn.Linear(64, 32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.fc2(torch.relu(self.fc1(inputs)))
        return answer


def module_of(task: str) -> torch.nn.Module:
    del task
    return Net()


MODULE = """
import torch

def make(task):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = torch.nn.Linear(48, 64)
            self.fc2 = torch.nn.Linear(64, 32)

        def forward(self, inputs):
            return self.fc2(torch.relu(self.fc1(inputs)))

    with torch.device("meta"):
        return Net()

def score(weights, task):
    print("scoring")
    return {"metric": "size", "value": float(weights["fc1.weight"].abs().sum()), "higher_is_better": True, "n": 1}

def not_a_function_result(task):
    return "no module"
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def registry(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("registry"))
    build(zoo, family="nets", registry=place, change_error=0.4)
    return place


@pytest.fixture(scope="module")
def data(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each original answers, as labels: its accuracy is 1."""
    folder = tmp_path_factory.mktemp("data")
    inputs = torch.randn(200, 48, generator=torch.Generator().manual_seed(5))
    for task in TASKS:
        net = Net()
        net.load_state_dict(load_file(zoo / f"{task}.safetensors"))
        with torch.inference_mode():
            labels = net(inputs).argmax(-1)
        save_file({"inputs": inputs, "labels": labels}, folder / f"{task}.safetensors")
    return folder


def test_accuracy_of_every_side_stands_beside_the_originals(zoo: Path, registry: str, data: Path) -> None:
    result = verify(
        "nets", registry=registry, against=zoo, evaluate="accuracy", data=data, module=module_of, workers=2
    )
    assert result.ok
    assert result.evaluation == f"accuracy on {data.name}"
    for verdict in result.models:
        (one,) = verdict.scores
        assert (one.metric, one.n, one.higher_is_better) == ("accuracy", 200, True)
        assert [side.side for side in one.sides] == ["original", "compact", "mean", "basis-free"]
        assert one.sides[0].value == 1.0
        assert one.sides[0].drop is None
    means = {side.side: side for side in result.scores}
    compact, mean, plain = means["compact"], means["mean"], means["basis-free"]
    assert compact.models == len(TASKS)
    assert compact.value > 0.8
    assert mean.value < compact.value
    assert plain.value < compact.value, (
        "the same bits without a basis do worse on a zoo that shares subspaces"
    )
    assert mean.significant
    assert mean.interval is not None
    assert mean.interval[0] <= (mean.drop or 0) <= mean.interval[1]


def test_workers_change_nothing_in_the_result(zoo: Path, registry: str, data: Path) -> None:
    def result(workers: int) -> VerifyResult:
        return verify(
            "nets",
            registry=registry,
            against=zoo,
            evaluate="accuracy",
            data=data,
            module=module_of,
            workers=workers,
        )

    assert result(1) == result(4)


def test_logits_need_no_labels_and_fall_with_fidelity(zoo: Path, registry: str, data: Path) -> None:
    result = verify("nets", registry=registry, against=zoo, evaluate="logits", data=data, module=module_of)
    means = {(side.metric, side.side): side.value for side in result.scores}
    assert means["agreement", ORIGINAL] == 1.0
    assert means["KL divergence", ORIGINAL] == pytest.approx(0.0, abs=1e-6)
    assert means["agreement", "mean"] < means["agreement", "compact"] < 1.0
    assert 0.0 < means["KL divergence", "compact"] < means["KL divergence", "mean"]


def test_the_exact_tier_serves_as_the_original(zoo: Path, data: Path, tmp_path: Path) -> None:
    build(zoo, family="nets", registry=str(tmp_path), change_error=0.4, exact=True)
    result = verify("nets", registry=str(tmp_path), evaluate="accuracy", data=data, module=module_of)
    assert {side.side for side in result.scores} == {"original", "compact", "mean", "basis-free"}
    assert next(side.value for side in result.scores if side.side == "original") == 1.0


def test_a_side_without_an_original_has_no_drop(registry: str, data: Path) -> None:
    result = verify("nets", TASKS[0], registry=registry, evaluate="accuracy", data=data, module=module_of)
    (one,) = result.models[0].scores
    assert [side.side for side in one.sides] == ["compact", "mean"]
    assert all(side.drop is None for side in one.sides)


def test_tasks_without_examples_are_told(zoo: Path, registry: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / f"{TASKS[0]}.safetensors").write_bytes((data / f"{TASKS[0]}.safetensors").read_bytes())
    result = verify(
        "nets", registry=registry, against=zoo, evaluate="accuracy", data=tmp_path, module=module_of
    )
    assert [verdict.task for verdict in result.models if verdict.scores] == [TASKS[0]]
    assert result.ok


class Falling:
    """An evaluation whose reconstruction scores worse from the second use on."""

    def __init__(self) -> None:
        self.drop = 0.001
        self.seen: set[tuple[str, float]] = set()
        self.originals: dict[str, float] = {}

    def __call__(self, weights: dict[str, torch.Tensor], task: str) -> dict[str, object]:
        total = float(weights["fc1.weight"].double().sum())
        first = self.originals.setdefault(task, total)
        return {
            "metric": "m",
            "value": 1.0 if total == first else 1.0 - self.drop,
            "higher_is_better": True,
            "n": 10,
        }


def test_a_promise_that_no_longer_holds_is_a_problem(zoo: Path, tmp_path: Path) -> None:
    evaluation = Falling()
    build(zoo, family="nets", registry=str(tmp_path), max_drop=0.01, evaluate=evaluation)
    before = snapshot(tmp_path)
    well = verify("nets", registry=str(tmp_path), against=zoo, evaluate=evaluation)
    assert well.ok
    assert all(one.max_drop == 0.01 for verdict in well.models for one in verdict.scores)
    evaluation.drop = 0.5
    badly = verify("nets", registry=str(tmp_path), against=zoo, evaluate=evaluation)
    assert not badly.ok
    kinds = {problem.kind for verdict in badly.models for problem in verdict.report.problems}
    assert kinds == {"fidelity/max-drop"}
    assert snapshot(tmp_path) == before


def test_a_damaged_model_is_not_scored(zoo: Path, data: Path, tmp_path: Path) -> None:
    build(zoo, family="nets", registry=str(tmp_path), change_error=0.4)
    entry = open_registry(str(tmp_path)).resolve("nets", TASKS[1])
    shard = tmp_path / "families/nets/models" / entry.digest / "core/c/0"
    shard.chmod(0o644)
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    result = verify(
        "nets", registry=str(tmp_path), against=zoo, evaluate="accuracy", data=data, module=module_of
    )
    assert [verdict.task for verdict in result.models if not verdict.scores] == [TASKS[1]]
    assert not result.ok


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"evaluate": "accuracy", "module": module_of}, "invalid-input/evaluation"),
        ({"evaluate": "logits"}, "incompatible/no-config"),
        ({"evaluate": "logits", "module": module_of, "metric": "m"}, "invalid-input/evaluation"),
        ({"evaluate": lambda _w, _t: None, "data": "x.npz"}, "invalid-input/evaluation"),
        ({"metric": "m"}, "invalid-input/evaluation"),
        ({"evaluate": "accuracy", "data": "absent.npz", "module": module_of}, "not-found/data"),
        ({"evaluate": "no-such", "module": None}, "invalid-input/evaluation"),
        ({"evaluate": "logits", "module": lambda _task: "no module"}, "invalid-input/module"),
        ({"workers": 0}, "invalid-input/workers"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    registry: str, zoo: Path, options: dict[str, object], kind: str
) -> None:
    with pytest.raises(UwsError) as caught:
        verify("nets", registry=registry, against=zoo, **options)  # type: ignore[arg-type]
    assert caught.value.kind == kind


def test_data_files_are_read_and_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez(good, pixel_values=np.zeros((3, 1, 2, 2), np.float32), labels=np.arange(3))
    examples = find_examples(good, "t", labelled=True)
    assert examples is not None
    assert len(examples) == 3
    assert next(iter(examples.batches()))[1].keys() == {"pixel_values"}
    cases: dict[str, dict[str, Any]] = {
        "lengths": {"inputs": np.zeros((3, 2)), "labels": np.zeros(2, int)},
        "unlabelled": {"inputs": np.zeros((3, 2))},
        "no inputs": {"labels": np.zeros(3, int)},
        "float labels": {"inputs": np.zeros((3, 2)), "labels": np.zeros(3)},
        "empty": {"inputs": np.zeros((0, 2)), "labels": np.zeros(0, int)},
        "pickled": {"inputs": np.array([{}, {}], object), "labels": np.zeros(2, int)},
    }
    for name, arrays in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(UwsError) as caught:
            find_examples(tmp_path / f"{name}.npz", "t", labelled=True)
        assert caught.value.kind == "invalid-input/data", name
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(UwsError) as caught:
        find_examples(tmp_path / "text.txt", "t", labelled=True)
    assert caught.value.kind == "invalid-input/data"
    (tmp_path / "torn.npz").write_bytes(good.read_bytes()[:50])
    with pytest.raises(UwsError) as caught:
        find_examples(tmp_path / "torn.npz", "t", labelled=True)
    assert caught.value.kind == "invalid-input/data"


def test_inputs_are_drawn_only_where_the_module_says_what_it_takes() -> None:
    class Config:
        vocab_size = 11
        max_position_embeddings = 6

    class Model(Net):
        config = Config()
        main_input_name = "input_ids"

    drawn = draw_examples(Model())
    assert drawn.inputs["input_ids"].shape == (64, 6)
    assert int(drawn.inputs["input_ids"].max()) < 11
    assert torch.equal(drawn.inputs["input_ids"], draw_examples(Model()).inputs["input_ids"])
    with pytest.raises(UwsError) as caught:
        draw_examples(Net())
    assert caught.value.kind == "invalid-input/data"


def test_the_control_spends_the_bits_it_is_given() -> None:
    source = torch.Generator().manual_seed(6)
    weights = {"a": torch.randn(200, 100, generator=source), "b": 10 * torch.randn(3000, generator=source)}
    weights["zero"] = torch.zeros(5)
    for bits in (0.5, 2.0, 6.0):
        made = basis_free(weights, bits=bits)
        total = 0.0
        for name in ("a", "b"):
            _, counts = torch.unique(made[name], return_counts=True)
            share = counts.double() / counts.sum()
            total += float(-(share * share.log2()).sum()) * made[name].numel()
            assert made[name].dtype == torch.float32
        assert total / 23005 == pytest.approx(bits, rel=0.03)
        assert torch.equal(made["zero"], weights["zero"])


def test_an_evaluation_that_changes_its_mind_is_refused() -> None:
    class Fickle:
        identity = "fickle"
        metric = "a"

        def begin(self, task: str, original: object) -> None:
            pass

        def scores(self, weights: object, task: str) -> object:
            from uws_store.fidelity import Score  # noqa: PLC0415

            self.metric += "a"
            return (Score(self.metric, 1.0, True, 1, None),)

    with pytest.raises(UwsError) as caught:
        examine(Fickle(), "t", sides={ORIGINAL: dict, "compact": dict})  # type: ignore[arg-type]
    assert caught.value.kind == "invalid-input/evaluation"


def test_the_command_prints_the_sides_and_its_json_holds_them(
    zoo: Path, registry: str, data: Path, tmp_path: Path
) -> None:
    code = tmp_path / "net.py"
    code.write_text(MODULE)
    named = ("--against", zoo, "--eval", "accuracy", "--data", data, "--module", f"{code}:make")
    ran = run_well("verify", "nets", "--registry", registry, *named)
    for word in ("original", "mean only", "basis-free, same bits", "significant", TASKS[0]):
        assert word in ran.stdout
    found = run_well("verify", "nets", "--registry", registry, *named, "--json").document
    assert found["ok"] is True
    assert {side["side"] for side in found["scores"]} == {"original", "compact", "mean", "basis-free"}
    assert len(found["models"][0]["scores"][0]["sides"]) == 4
    json.dumps(found, allow_nan=False)
    own = run_well("verify", "nets", TASKS[0], "--registry", registry, "--eval", f"{code}:score", "--json")
    assert own.document["models"][0]["scores"][0]["metric"] == "size"
    refused = run("verify", "nets", "--registry", registry, "--eval", "accuracy", "--data", data)
    assert refused.code == 2
    assert refused.error_kind == "incompatible/no-config"
