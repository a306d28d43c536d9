"""Loading into modules, slices, devices, dtypes and from servers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from storage_support import CountingStorage
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store import layout
from uws_store.api import aload_model
from uws_store.api.family import Family
from uws_store.errors import IncompatibleError, InvalidInputError, MemoryLimitError, NotFoundError
from uws_store.loader.conversion import converted
from uws_store.model import Model
from uws_store.registry import Registry
from uws_store.storage import LocalStorage


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"))
    url = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="mlp", registry=url, exact=True)
    return zoo, url


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(16, 24)
        self.fc2 = torch.nn.Linear(24, 10)


class Buffered(Net):
    """Has what no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.arange(4.0), persistent=False)


class Tied(torch.nn.Module):
    """Two names, one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(12, 8)
        self.head = torch.nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture(scope="module", params=["both names", "one name"])
def tied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    def change(index: int, weights: dict[str, torch.Tensor]) -> None:
        if request.param == "both names":
            weights["head.weight"] = weights["embed.weight"].clone()

    zoo = make_zoo(tmp_path_factory.mktemp("zoo"), shapes={"embed.weight": (12, 8)}, change=change)
    url = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="tied", registry=url, exact=True)
    return zoo, url


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_parameters_stay_one(tied: tuple[Path, str], device: str) -> None:
    zoo, url = tied
    with torch.device(device):
        module = Tied()
    uws_store.load_model("tied", "task-02", registry=url, tier="exact", into=module)
    assert module.head.weight is module.embed.weight
    assert same_bits(module.head.weight.data, load_file(zoo / "task-02.safetensors")["embed.weight"])


def test_a_parameter_that_was_frozen_stays_frozen_through_assignment(nets: tuple[Path, str]) -> None:
    with torch.device("meta"):
        module = Net()
    module.fc1.weight.requires_grad = False
    uws_store.load_model("mlp", "task-00", registry=nets[1], into=module)
    assert not module.fc1.weight.requires_grad
    assert module.fc2.weight.requires_grad


def test_buffers_that_are_not_persistent_keep_their_values(nets: tuple[Path, str]) -> None:
    module = Buffered()
    uws_store.load_model("mlp", "task-00", registry=nets[1], into=module)
    assert torch.equal(module.get_buffer("positions"), torch.arange(4.0))


def test_buffers_that_are_not_persistent_are_not_left_without_memory(nets: tuple[Path, str]) -> None:
    with torch.device("meta"):
        module = Buffered()
    with pytest.raises(IncompatibleError, match="positions") as caught:
        uws_store.load_model("mlp", "task-00", registry=nets[1], into=module)
    assert caught.value.kind == "incompatible/module"
    assert all(value.is_meta for value in module.state_dict().values())
    uws_store.load_model("mlp", "task-00", registry=nets[1], into=module, strict=False)
    assert module.get_buffer("positions").is_meta
    assert not module.fc1.weight.is_meta


def test_what_is_missing_is_worded_as_torch_words_it(nets: tuple[Path, str]) -> None:
    zoo, url = nets
    module = torch.nn.Sequential(torch.nn.Linear(16, 24))
    with pytest.raises(IncompatibleError) as caught:
        uws_store.load_model("mlp", "task-00", registry=url, into=module)
    with pytest.raises(RuntimeError) as theirs:
        module.load_state_dict(load_file(zoo / "task-00.safetensors"))
    for line in str(theirs.value).splitlines()[1:]:
        assert sorted(line.split()) in [sorted(own.split()) for own in str(caught.value).splitlines()]


def test_a_slice_reads_only_the_read_group_of_its_tensor(tmp_path: Path) -> None:
    shapes = {"small.weight": (20, 30), "big.weight": (384, 352), "other.weight": (512, 300)}
    zoo = make_zoo(tmp_path / "zoo", models=4, shapes=shapes)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="nets", registry=registry, rel_error=0.02)
    storage = CountingStorage(LocalStorage(Path(registry)))
    family = Family(Registry.over(storage), "nets")
    weights = family.load("task-00")
    part = weights.get_slice("big.weight")
    assert part.get_shape() == [384, 352]
    assert part.get_dtype() == "F32"
    storage.requests.clear()
    rows = part[10:20, ::2]
    core = layout.shard_path(layout.model_prefix("nets", family.resolve("task-00").digest), "core", 0)
    assert [request.path for request in storage.reads].count(core) == 2, "the shard's index and one range"
    assert rows.shape == (10, 176)
    assert torch.equal(
        rows, uws_store.load_model("nets", "task-00", registry=registry)["big.weight"][10:20, ::2]
    )
    with pytest.raises(NotFoundError):
        weights.get_slice("nothing")


def test_weights_move_to_a_device_and_go_on_being_lazy(nets: tuple[Path, str]) -> None:
    weights = uws_store.load_model("mlp", "task-00", registry=nets[1])
    first = weights["fc1.weight"]
    moved = weights.to("cpu")
    assert "1 reconstructed" in repr(moved)
    assert same_bits(moved["fc1.weight"], first)
    whole = weights.materialize()
    assert all(same_bits(tensor, whole[name]) for name, tensor in moved.materialize().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_dtype_is_refused_just_when_a_weight_is_beyond_it(dtype: torch.dtype) -> None:
    limits = {torch.float16: 65504.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
    limit = limits[dtype]
    held = torch.tensor([-limit, 0.0, limit, float("nan"), float("inf")])
    assert float(converted("w", held, dtype)[2].to(torch.float32)) == limit
    for beyond in (1.1 * limit, -2 * limit):
        with pytest.raises(IncompatibleError) as caught:
            converted("w", torch.tensor([0.0, beyond]), dtype)
        assert caught.value.kind == "incompatible/dtype"


def test_short_memory_is_a_typed_error(nets: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Model, *args: object, **options: object) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("no room")

    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    monkeypatch.setattr(Model, "decode_job", full)
    for load in (
        lambda: uws_store.load_model("mlp", "task-00", registry=nets[1])["fc1.weight"],
        lambda: uws_store.load_model("mlp", "task-00", registry=nets[1], into=module),
    ):
        with pytest.raises(MemoryLimitError) as caught:
            load()
        assert caught.value.kind == "memory-limit/device"
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("options", [{"decode": "quick"}, {"decode": "fast", "tier": "exact"}])
def test_an_arithmetic_that_cannot_be_is_refused(nets: tuple[Path, str], options: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        uws_store.load_model("mlp", "task-00", registry=nets[1], **options)  # type: ignore[call-overload]
    assert caught.value.kind == "invalid-input/decode"


def test_a_server_loads_beside_its_other_work(nets: tuple[Path, str]) -> None:
    _, url = nets
    module = Net()

    async def serve() -> list[object]:
        loads = [aload_model("mlp", f"task-{index:02d}", registry=url) for index in range(4)]
        return list(await asyncio.gather(*loads, aload_model("mlp", "task-05", registry=url, into=module)))

    *weights, filled = asyncio.run(serve())
    assert filled is module
    for index, found in enumerate(weights):
        expected = uws_store.load_model("mlp", f"task-{index:02d}", registry=url).materialize()
        assert isinstance(found, uws_store.LazyStateDict)
        assert all(same_bits(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(NotFoundError):
        asyncio.run(aload_model("mlp", "task-99", registry=url))


def test_a_cancelled_load_stops_between_tensors_and_leaves_the_module(
    nets: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = nets
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    begun, go_on = threading.Event(), threading.Event()
    whole = Model.decode_job
    jobs: list[int] = []

    def slow(self: Model, *args: object, **options: object) -> dict[str, torch.Tensor]:
        begun.set()
        assert go_on.wait(120)
        jobs.append(1)
        return whole(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "decode_job", slow)

    async def serve() -> None:
        load = asyncio.create_task(aload_model("mlp", "task-01", registry=url, into=module))
        await asyncio.to_thread(begun.wait, 120)
        load.cancel()
        await asyncio.sleep(0.05)
        assert not load.done(), "the thread is still at work"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await load

    asyncio.run(serve())
    assert len(jobs) == 1
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_move_to_cuda(nets: tuple[Path, str]) -> None:
    weights = uws_store.load_model("mlp", "task-00", registry=nets[1])
    whole = weights.materialize()
    moved = weights.to("cuda").materialize()
    assert all(same_bits(tensor.cpu(), whole[name]) for name, tensor in moved.items())
