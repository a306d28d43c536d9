"""Loading into the modules that people have: wrapped, compiled, half trained, of a library that renames, in any mode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from storage_support import CountingStorage
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.api import aload_model
from uws_store.api.family import Family, open_family
from uws_store.basis import Decoder
from uws_store.basis.stack import float32_is_whole
from uws_store.errors import FormatError, InvalidInputError
from uws_store.loader import decoding
from uws_store.registry import Registry
from uws_store.storage import LocalStorage

CPU = torch.device("cpu")
SHAPES = {"fc1.weight": (256, 192), "fc1.bias": (256,), "fc2.weight": (96, 256), "fc2.bias": (96,)}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(192, 256)
        self.fc2 = torch.nn.Linear(256, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> str:
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"), models=3, shapes=SHAPES)
    url = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="mlp", registry=url, rel_error=0.02)
    return url


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Everything is made in the caller's own thread, whose settings would count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _loaded(url: str, task: str) -> dict[str, torch.Tensor]:
    return open_family("mlp", registry=url).load(task).materialize()


def _holds(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == weights.keys() and all(same_bits(own[name], weights[name]) for name in own)


# Of torch's own making, when its compiler is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel], ids=["compiled", "data-parallel"])
def test_what_stands_around_a_module_is_looked_through(nets: str, wrap: type[torch.nn.Module]) -> None:
    module = Net()
    wrapped = wrap(module)
    assert uws_store.load_model("mlp", "task-00", registry=nets, into=wrapped) is wrapped
    assert _holds(module, _loaded(nets, "task-00"))
    assert open_family("mlp", registry=nets).switch(wrapped, "task-01") is wrapped
    assert _holds(module, _loaded(nets, "task-01"))


def test_what_is_no_module_is_refused_before_anything_is_read(nets: str) -> None:
    storage = CountingStorage(LocalStorage(Path(nets)))
    registry = Registry.over(storage)
    with pytest.raises(InvalidInputError) as caught:
        uws_store.load_model("mlp", "task-00", registry=registry, into=cast("Any", {}))
    assert caught.value.kind == "invalid-input/module"
    assert not [request for request in storage.requests if "/core/" in request.path]
    with pytest.raises(InvalidInputError):
        Family(registry, "mlp").switch(cast("Any", []), "task-00")


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nowhere"])
def test_weights_do_not_move_to_a_device_that_holds_none(nets: str, device: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        uws_store.load_model("mlp", "task-00", registry=nets).to(device)
    assert caught.value.kind == "invalid-input/device"


def test_training_goes_on_with_the_same_parameters_after_a_switch(nets: str) -> None:
    module, family = Net().train(), open_family("mlp", registry=nets)
    module.fc2.weight.requires_grad = False
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=0.5)
    before = [(id(p), p.data_ptr(), p.requires_grad) for p in module.parameters()]
    for task in ("task-00", "task-01"):
        family.switch(module, task)
        assert _holds(module, _loaded(nets, task))
        assert module.training
        optimizer.zero_grad()
        module(torch.ones(2, 192)).sum().backward()
        optimizer.step()
        assert not same_bits(module.fc1.weight.detach(), _loaded(nets, task)["fc1.weight"])
        assert same_bits(module.fc2.weight.detach(), _loaded(nets, task)["fc2.weight"])
    assert [(id(p), p.data_ptr(), p.requires_grad) for p in module.parameters()] == before
    uws_store.load_model("mlp", "task-02", registry=nets, into=module.eval())
    assert not module.training
    assert [(id(p), p.data_ptr(), p.requires_grad) for p in module.parameters()] == before


def test_a_graph_that_needs_the_old_weights_is_not_run_with_the_new(nets: str) -> None:
    module, family = Net(), open_family("mlp", registry=nets)
    family.switch(module, "task-00")
    loss = module(torch.ones(2, 192)).sum()
    family.switch(module, "task-01")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("given", [None, torch.bfloat16])
def test_a_module_in_bfloat16_keeps_its_type_and_one_on_meta_takes_the_weights(
    nets: str, given: torch.dtype | None
) -> None:
    module = Net().bfloat16()
    uws_store.load_model("mlp", "task-00", registry=nets, dtype=given, into=module)
    expected = {name: value.bfloat16() for name, value in _loaded(nets, "task-00").items()}
    assert _holds(module, expected)
    open_family("mlp", registry=nets).switch(module, "task-00")
    assert _holds(module, expected)
    with torch.device("meta"):
        empty = Net().bfloat16()
    uws_store.load_model("mlp", "task-00", registry=nets, dtype=given, into=empty)
    assert {value.dtype for value in empty.parameters()} == {given or torch.float32}


@pytest.mark.usefixtures("one_thread")
def test_what_was_loaded_in_inference_mode_spoils_no_later_load(nets: str) -> None:
    expected = _loaded(nets, "task-01")
    family, module, other = open_family("mlp", registry=nets), Net(), Net()
    with torch.inference_mode():
        family.switch(module, "task-00")
        weights = family.load("task-00")
        assert not weights["fc1.weight"].is_inference()
        filled = uws_store.load_model("mlp", "task-00", registry=nets, into=other)
        frozen = Net()
    filled(torch.ones(2, 192)).sum().backward()
    module(torch.ones(2, 192)).sum().backward()
    assert all(same_bits(family.load("task-01")[name], tensor) for name, tensor in expected.items())
    family.switch(module, "task-01")
    assert _holds(module, expected)
    for task in ("task-00", "task-01"):
        family.switch(frozen, task)
    assert _holds(frozen, expected)
    uws_store.load_model("mlp", "task-00", registry=nets, into=frozen)
    assert _holds(frozen, _loaded(nets, "task-00"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("decode", ["canonical", "fast"])
def test_what_a_thread_is_set_to_changes_no_bit(nets: str, decode: str) -> None:
    def load() -> dict[str, torch.Tensor]:
        weights = open_family("mlp", registry=nets).load("task-00", decode=cast("Any", decode))
        return dict(weights.items()) | weights.materialize()

    expected = load()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = load()
    with torch.device("meta"):
        elsewhere = load()
    torch.set_default_dtype(torch.float16)
    try:
        half = load()
    finally:
        torch.set_default_dtype(torch.float32)
    for found in (mixed, elsewhere, half):
        assert all(same_bits(found[name], tensor) for name, tensor in expected.items())


def test_fast_products_are_not_made_of_fewer_bits_than_the_bound_counts(nets: str) -> None:
    family = open_family("mlp", registry=nets, decode="fast")
    plain = family.load("task-00").materialize()
    backend: Any = torch.backends.mkldnn
    settings = backend.matmul
    before = settings.fp32_precision
    assert float32_is_whole(CPU)
    settings.fp32_precision = "bf16"
    try:
        assert not float32_is_whole(CPU)
        lowered = family.load("task-00").materialize()
        assert settings.fp32_precision == "bf16", "the process's setting is as it was"
    finally:
        settings.fp32_precision = before
    expected = _loaded(nets, "task-00")
    assert all(same_bits(lowered[name], tensor) for name, tensor in expected.items())
    again = family.load("task-00").materialize()
    assert all(same_bits(again[name], tensor) for name, tensor in plain.items())


def test_a_load_that_is_cancelled_while_bytes_come_leaves_nothing_behind(
    nets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()
    pieces: list[str] = []

    class Slow(CountingStorage):
        def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
            if "/core/" in path:
                pieces.append(path)
                asked.set()
                assert go_on.wait(30)
            return super().read_at_most(path, limit_bytes)

    registry = Registry.over(Slow(LocalStorage(Path(nets))))
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    decoded: list[int] = []
    whole = Decoder.predict

    def predict(self: Decoder, *args: Any, **options: Any) -> list[torch.Tensor | None]:
        decoded.append(1)
        return whole(self, *args, **options)

    monkeypatch.setattr(Decoder, "predict", predict)

    async def serve() -> None:
        load = asyncio.create_task(aload_model("mlp", "task-01", registry=registry, into=module))
        assert await asyncio.to_thread(asked.wait, 30)
        load.cancel()
        # The cancellation has set what stops the threads once the task waits for them.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not load.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await load

    asyncio.run(serve())
    assert len(pieces) == 1
    assert not decoded
    assert _holds(module, before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("uws-fetch")]
    uws_store.load_model("mlp", "task-01", registry=registry, into=module)
    assert _holds(module, _loaded(nets, "task-01"))


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A family whose checkpoints and modules call their tensors by different names."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("vits")
    torch.manual_seed(0)
    module = transformers.ViTForImageClassification(config)
    for task in ("one", "two"):
        with torch.no_grad():
            for value in module.parameters():
                value.add_(0.01 * torch.randn_like(value))
        module.save_pretrained(folder / "zoo" / task)
    uws_store.build(folder / "zoo", family="vits", registry=str(folder / "registry"), exact=True)
    return str(folder / "registry")


@pytest.mark.parametrize("tier", ["compact", "mean"])
def test_integers_and_digests_of_what_is_made_elsewhere_are_worked_on_side_by_side(
    nets: str, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    def load() -> dict[str, torch.Tensor]:
        return open_family("mlp", registry=nets).load("task-01", tier=cast("Any", tier)).materialize()

    expected = load()
    monkeypatch.setattr(decoding, "is_elsewhere", lambda _device: True)
    monkeypatch.setattr(decoding, "place_for", lambda _device, _count: "here")
    for checked_bytes in (1, 1 << 30):
        monkeypatch.setattr(decoding, "_CHECKED_BYTES", checked_bytes)
        found = load()
        assert found.keys() == expected.keys()
        assert all(same_bits(found[name], tensor) for name, tensor in expected.items())
    monkeypatch.setattr(decoding, "digest_of", lambda _tensor: bytes(32))
    if tier == "compact":
        with pytest.raises(FormatError) as caught:
            load()
        assert caught.value.kind == "format/tensor-digest"


class TestRenaming:
    def test_a_module_that_was_made_from_a_record_is_switched(self, vits: str) -> None:
        family = open_family("vits", registry=vits)
        module = family.load("one").module()
        expected = family.load("two").module().state_dict()
        for _ in range(2):
            family.switch(module, "one")
            family.switch(module, "two")
            assert all(same_bits(value, expected[name]) for name, value in module.state_dict().items())

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_module_of_the_library_is_filled(self, vits: str, device: str) -> None:
        made = uws_store.load_model("vits", "one", registry=vits).module()
        with torch.device(device):
            module = cast("Any", type(made))(made.config)
        uws_store.load_model("vits", "one", registry=vits, into=module)
        expected = made.state_dict()
        assert all(same_bits(value, expected[name]) for name, value in module.state_dict().items())

    def test_a_body_is_filled_from_a_model_with_a_head(self, vits: str) -> None:
        made = uws_store.load_model("vits", "one", registry=vits).module()
        whole: Any = made
        body = type(whole.vit)(whole.config, add_pooling_layer=False)
        uws_store.load_model("vits", "one", registry=vits, into=body, strict=False)
        expected = whole.vit.state_dict()
        assert all(same_bits(value, expected[name]) for name, value in body.state_dict().items())
