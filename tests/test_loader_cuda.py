"""What the loader promises on a GPU: the bits on record, nothing from the host, and the process's settings left alone.

Skipped where torch has no GPU. Times are the bench's: ``python tools/bench load --device cuda``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.api.family import Family, open_family
from uws_store.errors import MemoryLimitError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

SHAPES = {
    "a.weight": (512, 384),
    "b.weight": (384, 512),
    "c.weight": (512, 384),
    "d.weight": (96, 40),
    "d.bias": (96,),
}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            owner, last = name.split(".")
            if owner not in dict(self.named_children()):
                self.add_module(owner, torch.nn.Module())
            value = torch.nn.Parameter(torch.zeros(shape), requires_grad=False)
            self.get_submodule(owner).register_parameter(last, value)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> str:
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"), models=4, shapes=SHAPES)
    url = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="nets", registry=url, rel_error=0.02, exact=True, exact_overhead=1.0)
    return url


@pytest.fixture
def family(nets: str) -> Family:
    return open_family("nets", registry=nets, device="cuda")


def _on_cpu(url: str, task: str, tier: str = "compact") -> dict[str, torch.Tensor]:
    return open_family("nets", registry=url).load(task, tier=tier).materialize()  # type: ignore[arg-type]


def _holds(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(same_bits(value.cpu(), weights[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("tier", ["compact", "exact", "mean"])
def test_whole_and_lazy_loads_give_the_bits_of_the_cpu(nets: str, family: Family, tier: str) -> None:
    expected = _on_cpu(nets, "task-00", tier)
    whole = family.load("task-00", tier=tier).materialize()  # type: ignore[arg-type]
    lazy = family.load("task-00", tier=tier)  # type: ignore[arg-type]
    for name, tensor in expected.items():
        assert whole[name].device == family.device
        assert same_bits(whole[name].cpu(), tensor)
        assert same_bits(lazy[name].cpu(), tensor)


def test_a_family_stays_on_the_device_that_was_current(family: Family) -> None:
    assert family.device == torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_a_module_is_switched_wherever_it_is(nets: str, family: Family, place: str) -> None:
    module = Net().to(place)
    for task in ("task-00", "task-01", "task-00"):
        family.switch(module, task)
        assert _holds(module, _on_cpu(nets, task))


def test_a_switch_to_a_model_on_the_device_takes_little_memory_and_gives_it_back(
    nets: str, family: Family
) -> None:
    module = Net().cuda()
    for task in family.tasks():
        family.switch(module, task)
    family.switch(module, "task-00")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    family.switch(module, "task-01")
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert family.resident().hot_models()[-1] == family.resolve("task-01").digest
    assert _holds(module, _on_cpu(nets, "task-01"))


def test_switches_on_streams_of_their_own_leave_each_module_one_model(nets: str, family: Family) -> None:
    expected = {task: _on_cpu(nets, task) for task in family.tasks()}
    small = open_family("nets", registry=nets, device="cuda", cache_bytes=0)
    failures: list[str] = []

    def work(place: int) -> None:
        module, stream = Net().cuda(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for turn in range(8):
                task = f"task-{(place + turn) % len(expected):02d}"
                # One family keeps all, the other drops a model while another stream may still read it.
                (family if turn % 2 else small).switch(module, task)
                stream.synchronize()
                if not _holds(module, expected[task]):
                    failures.append(task)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("tf32")
def test_tf32_and_autocast_reach_no_product(nets: str) -> None:
    expected = _on_cpu(nets, "task-00")
    for decode in ("canonical", "fast"):
        family = open_family("nets", registry=nets, device="cuda", decode=decode)
        with torch.autocast("cuda", dtype=torch.float16):
            found = family.load("task-00").materialize()
        assert all(same_bits(found[name].cpu(), tensor) for name, tensor in expected.items())
    assert torch.backends.cuda.matmul.fp32_precision == "tf32", "the process's setting is as it was"


def test_a_device_that_is_full_is_a_typed_error(nets: str, family: Family) -> None:
    module = Net().cuda()
    family.switch(module, "task-00")
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    try:
        with pytest.raises(MemoryLimitError) as caught:
            family.stack(["task-00"] * 2000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert caught.value.kind == "memory-limit/device"
    assert _holds(module, _on_cpu(nets, "task-00"))


def test_hundreds_of_tasks_stay_on_the_device_beside_a_model(nets: str, family: Family) -> None:
    module = Net().cuda()
    for task in family.tasks():
        family.switch(module, task)
    one = family.resident().size_bytes / len(family.tasks())
    model = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    assert one < 0.3 * model, "a byte for each integer"
    stacked = family.stack([f"task-{index % 4:02d}" for index in range(200)])
    assert stacked["a.weight"].shape == (200, *SHAPES["a.weight"])
    assert same_bits(stacked["d.bias"][3].cpu(), _on_cpu(nets, "task-03")["d.bias"])
