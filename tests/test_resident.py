"""Resident families: switching a module in place, hot models, stacks, and failures that leave the module as it was."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from storage_support import CountingStorage
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.api.family import Family, open_family
from uws_store.basis import Decoder
from uws_store.errors import FormatError, IncompatibleError, InvalidInputError, MemoryLimitError, WorkerError
from uws_store.loader import resident as resident_module
from uws_store.loader import workers
from uws_store.loader.workers import Where, run_tasks
from uws_store.registry import Registry
from uws_store.storage import LocalStorage

MODELS = 6


class Net(torch.nn.Module):
    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(16, hidden)
        self.fc2 = torch.nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> str:
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"), models=MODELS)
    url = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="mlp", registry=url, rel_error=0.02)
    return url


def _loaded(url: str, task: str) -> dict[str, torch.Tensor]:
    return uws_store.load_model("mlp", task, registry=url).materialize()


def _holds(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(same_bits(value, weights[name]) for name, value in module.state_dict().items())


def test_a_switch_writes_the_loaded_bits_into_the_same_memory(nets: str) -> None:
    family, module = open_family("mlp", registry=nets), Net()
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}
    for task in ("task-00", "task-01", "task-00", "task-01", "task-02"):
        assert family.switch(module, task) is module
        assert _holds(module, _loaded(nets, task))
    assert {name: value.data_ptr() for name, value in module.state_dict().items()} == places


def test_a_hot_model_needs_no_storage_but_the_log(nets: str) -> None:
    storage = CountingStorage(LocalStorage(Path(nets)))
    family = Family(Registry.over(storage), "mlp")
    module = Net()
    family.switch(module, "task-03")
    family.switch(module, "task-04")
    storage.requests.clear()
    family.switch(module, "task-03")
    assert all(
        "/models/" not in request.path and "/basis/" not in request.path for request in storage.requests
    )
    assert len(storage.requests) <= 1
    assert _holds(module, _loaded(nets, "task-03"))


def test_the_cache_of_hot_models_is_bounded(nets: str) -> None:
    family, module = open_family("mlp", registry=nets), Net()
    family.switch(module, "task-00")
    one = family.resident().size_bytes
    assert 0 < one < sum(value.numel() * 4 for value in module.state_dict().values()), "integers are bytes"
    small = open_family("mlp", registry=nets, cache_bytes=2 * one)
    for index in range(MODELS):
        small.switch(module, f"task-{index:02d}")
        assert small.resident().size_bytes <= 2 * one
    assert len(small.resident().hot_models()) == 2
    nothing = open_family("mlp", registry=nets, cache_bytes=0)
    nothing.switch(module, "task-01")
    assert len(nothing.resident().hot_models()) == 1
    assert _holds(module, _loaded(nets, "task-01"))


def test_concurrent_switches_leave_each_module_one_whole_model(nets: str) -> None:
    family = open_family("mlp", registry=nets, cache_bytes=0)
    expected = {f"task-{index:02d}": _loaded(nets, f"task-{index:02d}") for index in range(MODELS)}
    own, shared = [Net() for _ in range(4)], Net()
    failures: list[str] = []

    def work(place: int) -> None:
        for turn in range(8):
            task = f"task-{(place + turn) % MODELS:02d}"
            family.switch(own[place], task)
            if not _holds(own[place], expected[task]):
                failures.append(task)
            family.switch(shared, task)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(own))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert any(_holds(shared, weights) for weights in expected.values()), "no mixture of two models"


@pytest.mark.parametrize("hot", [False, True])
def test_a_module_that_does_not_fit_is_left_as_it_was(nets: str, *, hot: bool) -> None:
    family = open_family("mlp", registry=nets)
    if hot:
        family.switch(Net(), "task-00")
    module = Net(hidden=25)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(IncompatibleError) as caught:
        family.switch(module, "task-00")
    assert caught.value.kind == "incompatible/module"
    assert _holds(module, before)


@pytest.mark.parametrize("hot", [False, True])
def test_a_dtype_that_cannot_hold_the_weights_leaves_the_module_as_it_was(
    tmp_path: Path, *, hot: bool
) -> None:
    def change(index: int, weights: dict[str, torch.Tensor]) -> None:
        weights["fc2.bias"] = weights["fc2.bias"] * 1e6 + index

    registry = str(tmp_path / "registry")
    uws_store.build(make_zoo(tmp_path / "zoo", change=change), family="mlp", registry=registry)
    family, module = open_family("mlp", registry=registry), Net().half()
    if hot:
        family.switch(Net(), "task-00")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(IncompatibleError) as caught:
        family.switch(module, "task-00")
    assert caught.value.kind == "incompatible/dtype"
    assert _holds(module, before)
    family.switch(module.bfloat16(), "task-00")


def test_damage_is_found_before_the_module_is_touched(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    uws_store.build(make_zoo(tmp_path / "zoo"), family="mlp", registry=str(registry))
    family, module = open_family("mlp", registry=str(registry)), Net()
    family.switch(module, "task-00")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    digest = family.resolve("task-01").digest
    core = registry / "families" / "mlp" / "models" / digest / "core" / "c" / "0"
    data = bytearray(core.read_bytes())
    data[len(data) // 2] ^= 1
    core.chmod(0o644)
    core.write_bytes(data)
    with pytest.raises(FormatError):
        family.switch(module, "task-01")
    assert _holds(module, before)


def test_wrong_numbers_are_found_by_digest_before_the_module_is_touched(
    nets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, module = open_family("mlp", registry=nets), Net()
    family.switch(module, "task-00")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    whole = resident_module.Resident._job

    def wrong(self: resident_module.Resident, *args: object, **options: object) -> dict[str, torch.Tensor]:
        made = whole(self, *args, **options)  # type: ignore[arg-type]
        made["fc1.weight"].view(-1)[3] += 1e-3
        return made

    monkeypatch.setattr(resident_module.Resident, "_job", wrong)
    with pytest.raises(FormatError) as caught:
        family.switch(module, "task-01")
    assert caught.value.kind == "format/tensor-digest"
    assert _holds(module, before)


def test_running_out_of_memory_is_typed_and_leaves_the_module(
    nets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, module = open_family("mlp", registry=nets), Net()
    family.switch(module, "task-01")
    family.switch(module, "task-00")
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def full(self: object, *args: object, **options: object) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(resident_module.Resident, "_job", full)
    with pytest.raises(MemoryLimitError) as caught:
        family.switch(module, "task-01")
    assert caught.value.kind == "memory-limit/device"
    assert _holds(module, before)


def _fail_at(monkeypatch: pytest.MonkeyPatch, *, call: int, message: str) -> None:
    """Let making a batch fail, but for those before the given one."""
    whole, calls = Decoder.predict, iter(range(1000))

    def failing(self: Decoder, *args: object, **options: object) -> object:
        if next(calls) == call:
            raise RuntimeError(message)
        return whole(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "predict", failing)


def test_an_unforeseen_failure_of_a_hot_switch_leaves_the_module(
    nets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, module = open_family("mlp", registry=nets), Net()
    family.switch(module, "task-01")
    family.switch(module, "task-00")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    _fail_at(monkeypatch, call=1, message="the unforeseen")
    with pytest.raises(RuntimeError, match="the unforeseen"):
        family.switch(module, "task-01")
    assert _holds(module, before)


def test_a_large_module_that_was_half_written_is_told_of(nets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "_BESIDE_BYTES", 0)
    family, module = open_family("mlp", registry=nets), Net()
    family.switch(module, "task-01")
    family.switch(module, "task-00")
    family.switch(module, "task-01")
    assert _holds(module, _loaded(nets, "task-01"))
    whole = resident_module._copy

    def broken(targets: dict[str, list[torch.Tensor]], made: dict[str, torch.Tensor]) -> None:
        whole(targets, {"fc1.weight": made["fc1.weight"]})
        raise torch.OutOfMemoryError("the unforeseen")

    with monkeypatch.context() as patched:
        patched.setattr(resident_module, "_copy", broken)
        with pytest.raises(WorkerError) as caught:
            family.switch(module, "task-00")
    assert caught.value.kind == "worker/half-switched"
    # What fails before anything was written leaves the module, and is no such error.
    family.switch(module, "task-01")
    with monkeypatch.context() as patched:
        _fail_at(patched, call=1, message="the unforeseen")
        with pytest.raises(RuntimeError, match="the unforeseen"):
            family.switch(module, "task-00")
    assert _holds(module, _loaded(nets, "task-01"))
    family.switch(module, "task-00")
    assert _holds(module, _loaded(nets, "task-00"))


def test_a_meta_module_is_filled_by_assignment(nets: str) -> None:
    with torch.device("meta"):
        module = Net()
    open_family("mlp", registry=nets).switch(module, "task-05")
    assert _holds(module, _loaded(nets, "task-05"))


def test_stacks_evaluate_many_tasks_at_once(nets: str) -> None:
    family = open_family("mlp", registry=nets)
    tasks = family.tasks()
    stacked = family.stack(tasks)
    module, inputs = Net(), torch.randn(7, 16)

    def run(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(module, weights, (inputs,))
        return out

    together = torch.func.vmap(run)(stacked)
    for place, task in enumerate(tasks):
        alone = run(_loaded(nets, task))
        assert torch.allclose(together[place], alone, rtol=1e-4, atol=1e-5)


def test_models_of_other_shapes_are_not_stacked(tmp_path: Path) -> None:
    def change(index: int, weights: dict[str, torch.Tensor]) -> None:
        if index == 1:
            weights["fc2.bias"] = weights["fc2.bias"][:-1].clone()

    registry = str(tmp_path / "registry")
    uws_store.build(make_zoo(tmp_path / "zoo", change=change), family="mlp", registry=registry)
    family = open_family("mlp", registry=registry)
    with pytest.raises(IncompatibleError) as caught:
        family.stack(["task-00", "task-01"])
    assert caught.value.kind == "incompatible/stack"
    assert family.stack(["task-00", "task-02"])["fc2.bias"].shape == (2, 10)
    with pytest.raises(InvalidInputError):
        family.stack([])


def test_a_fast_family_is_close_and_says_so(nets: str) -> None:
    fast = open_family("mlp", registry=nets, decode="fast")
    module = Net()
    fast.switch(module, "task-00")
    weights = fast.load("task-00")
    assert "fast" in repr(weights)
    for name, canonical in _loaded(nets, "task-00").items():
        assert torch.allclose(module.state_dict()[name], canonical, rtol=1e-4, atol=1e-5)
        assert torch.equal(module.state_dict()[name], weights[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("decode", ["canonical", "fast"])
def test_a_family_on_cuda_switches_to_the_same_weights(nets: str, decode: str) -> None:
    family = open_family("mlp", registry=nets, device="cuda", decode=decode)  # type: ignore[arg-type]
    module = Net().cuda()
    for task in ("task-00", "task-01", "task-00"):
        family.switch(module, task)
        for name, value in module.state_dict().items():
            expected = _loaded(nets, task)[name]
            if decode == "canonical":
                assert same_bits(value.cpu(), expected)
            else:
                assert torch.allclose(value.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_decoding_side_by_side_gives_the_same_bits(nets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _loaded(nets, "task-02")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(workers, "_PARALLEL_COEFFICIENTS", 0)
        together = _loaded(nets, "task-02")
        family, module = open_family("mlp", registry=nets), Net()
        family.switch(module, "task-02")
        family.switch(module, "task-02")
        assert torch.get_num_threads() == 2, "the caller's own threads are as they were"
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(together[name], tensor) for name, tensor in alone.items())
    assert _holds(module, alone)


@pytest.mark.parametrize("where", ["worker", "workers"])
def test_workers_leave_the_other_threads_of_torch_alone(where: Where) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        asked = run_tasks([torch.get_num_threads] * 4, where=where)
        here = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert asked == [1] * 4
    assert here == 2
