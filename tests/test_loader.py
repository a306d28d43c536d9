"""Loading: laziness, tiers, devices, modules, and how little is read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from storage_support import CountingStorage
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store import layout
from uws_store.api.family import Family
from uws_store.errors import FidelityError, IncompatibleError, InvalidInputError, NotFoundError
from uws_store.registry import Registry
from uws_store.storage import LocalStorage

SHAPES = {
    "small.weight": (20, 30),
    "big.weight": (384, 352),
    "other.weight": (512, 300),
    "small.bias": (20,),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), models=5, shapes=SHAPES)


@pytest.fixture(scope="module")
def registry(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="nets", registry=url, rel_error=0.02, exact=True, exact_overhead=1.0)
    return url


def _counting(registry: str) -> tuple[Family, CountingStorage]:
    storage = CountingStorage(LocalStorage(Path(registry)))
    return Family(Registry.over(storage), "nets"), storage


def test_weights_are_a_mapping_of_tensors(zoo: Path, registry: str) -> None:
    weights = uws_store.load_model("nets", "task-00", registry=registry)
    original = load_file(zoo / "task-00.safetensors")
    assert isinstance(weights, Mapping)
    assert set(weights) == set(original)
    assert len(weights) == 4
    assert "0 reconstructed" in repr(weights)
    for name, tensor in weights.items():
        assert tensor.shape == original[name].shape
        assert tensor.dtype == original[name].dtype
    assert weights["small.bias"] is weights["small.bias"]


def test_exact_is_bit_identical_and_compact_is_within_its_promise(zoo: Path, registry: str) -> None:
    for path in sorted(zoo.glob("*.safetensors")):
        original = load_file(path)
        exact = uws_store.load_model("nets", path.stem, registry=registry, tier="exact")
        assert all(same_bits(exact[name], original[name]) for name in original)
        compact = uws_store.load_model("nets", path.stem, registry=registry)
        error = sum(float((compact[name] - original[name]).double().square().sum()) for name in original)
        energy = sum(float(original[name].double().square().sum()) for name in original)
        assert 0 < (error / energy) ** 0.5 <= 0.02


def test_touching_one_tensor_reads_only_the_ranges_of_its_read_group(registry: str) -> None:
    family, storage = _counting(registry)
    entry = family.resolve("task-00")
    model = family.model(entry)
    groups = {name: model.basis.slots[name].record.group for name in SHAPES}
    assert groups["small.weight"] == groups["small.bias"], "small tensors are pooled"
    assert len(set(groups.values())) == 3, "large tensors are read groups of their own"
    group = model.basis.groups[groups["big.weight"] or 0]
    prefix = layout.model_prefix("nets", entry.digest)
    core = layout.shard_path(prefix, "core", 0)
    storage.requests.clear()
    model.tensor("big.weight", tier="compact", device=torch.device("cpu"))
    of_model = [request for request in storage.reads if request.path.startswith(prefix)]
    assert [request.path for request in of_model] == [core, core], "the shard's index and one range"
    index, data = of_model
    record = model.document.core
    assert record is not None
    assert index.end == record.shards[0].size
    chunks = (group.stop - group.start) // record.chunk_length
    assert (data.end or 0) - (data.start or 0) < record.shards[0].size * (chunks + 1) / record.chunks
    # The basis, too, is read by the ranges of the group.
    of_basis = [
        request for request in storage.reads if "/basis/" in request.path and "/mean/" in request.path
    ]
    mean = model.basis.document.mean
    assert mean is not None
    assert sum((request.end or 0) - (request.start or 0) for request in of_basis) < mean.size_bytes


def test_a_warm_basis_makes_a_model_four_requests(registry: str) -> None:
    family, storage = _counting(registry)
    family.load("task-00").materialize()
    entry = family.resolve("task-01")
    storage.requests.clear()
    from_storage = family.model(entry)
    from_storage.read_all()
    assert len(storage.requests) <= 4
    storage.requests.clear()
    family.load("task-02", tier="exact").materialize()
    assert len(storage.requests) <= 10


def test_a_cold_family_is_at_most_forty_requests(registry: str) -> None:
    storage = CountingStorage(LocalStorage(Path(registry)))
    Family(Registry.over(storage), "nets").load("task-03", tier="exact").materialize()
    assert len(storage.requests) <= 40


def test_mean_is_the_zoos_mean(zoo: Path, registry: str) -> None:
    originals = [load_file(path) for path in sorted(zoo.glob("*.safetensors"))]
    mean = torch.stack([weights["small.weight"].double() for weights in originals]).mean(0)
    found = uws_store.load_model("nets", "task-00", registry=registry, tier="mean")["small.weight"]
    assert float((found.double() - mean).norm() / mean.norm()) < 0.06


def test_threads_may_share_the_weights(registry: str) -> None:
    weights = uws_store.load_model("nets", "task-04", registry=registry)
    seen: list[torch.Tensor] = []

    def touch() -> None:
        seen.append(weights["big.weight"])

    threads = [threading.Thread(target=touch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(tensor) for tensor in seen}) == 1


def test_dtype_converts_floats_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    def change(index: int, weights: dict[str, torch.Tensor]) -> None:
        weights["fc1.bias"] = weights["fc1.bias"] * 1e6 + index
        weights["steps"] = torch.tensor([index])

    zoo = make_zoo(tmp_path / "zoo", change=change)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="big", registry=registry)
    weights = uws_store.load_model("big", "task-00", registry=registry, dtype=torch.bfloat16)
    assert weights["fc1.bias"].dtype == torch.bfloat16
    assert weights["steps"].dtype == torch.int64
    with pytest.raises(IncompatibleError) as caught:
        uws_store.load_model("big", "task-00", registry=registry, dtype=torch.float16)["fc1.bias"]
    assert caught.value.kind == "incompatible/dtype"


class _Net(torch.nn.Module):
    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(16, hidden)
        self.fc2 = torch.nn.Linear(hidden, 10)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    zoo = make_zoo(tmp_path_factory.mktemp("zoo"))
    url = str(tmp_path_factory.mktemp("registry"))
    uws_store.build(zoo, family="mlp", registry=url, exact=True)
    return zoo, url


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_into_fills_a_module(nets: tuple[Path, str], device: str) -> None:
    zoo, url = nets
    with torch.device(device):
        module = _Net()
    filled = uws_store.load_model("mlp", "task-03", registry=url, tier="exact", into=module)
    assert filled is module
    original = load_file(zoo / "task-03.safetensors")
    assert all(same_bits(value, original[name]) for name, value in module.state_dict().items())


def test_into_leaves_the_module_untouched_on_failure(nets: tuple[Path, str]) -> None:
    _, url = nets
    module = _Net(hidden=25)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(IncompatibleError) as caught:
        uws_store.load_model("mlp", "task-00", registry=url, into=module)
    assert caught.value.kind == "incompatible/module"
    assert "size mismatch for fc1.weight" in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_into_names_missing_and_unexpected_keys_as_torch_does(nets: tuple[Path, str]) -> None:
    _, url = nets
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(IncompatibleError) as caught:
        uws_store.load_model("mlp", "task-00", registry=url, into=module)
    assert 'Missing key(s) in state_dict: "0.weight", "0.bias"' in str(caught.value)
    assert "Unexpected key(s) in state_dict" in str(caught.value)
    untouched = {name: value.clone() for name, value in module.state_dict().items()}
    uws_store.load_model("mlp", "task-00", registry=url, into=module, strict=False)
    assert all(torch.equal(untouched[name], value) for name, value in module.state_dict().items())


def test_meta_modules_are_not_left_half_filled(nets: tuple[Path, str]) -> None:
    _, url = nets
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(IncompatibleError) as caught:
        uws_store.load_model("mlp", "task-00", registry=url, into=module, strict=False)
    assert caught.value.kind == "incompatible/module"


@pytest.mark.parametrize(
    ("options", "error", "kind"),
    [
        ({"tier": "best"}, InvalidInputError, "invalid-input/tier"),
        ({"device": "meta"}, InvalidInputError, "invalid-input/device"),
        ({"device": "no-such"}, InvalidInputError, "invalid-input/device"),
        ({"dtype": torch.int8}, InvalidInputError, "invalid-input/dtype"),
        ({"revision": 9}, NotFoundError, "not-found/version"),
    ],
)
def test_bad_arguments_are_refused(
    nets: tuple[Path, str], options: dict[str, object], error: type[Exception], kind: str
) -> None:
    _, url = nets
    with pytest.raises(error) as caught:
        uws_store.load_model("mlp", "task-00", registry=url, **options)  # type: ignore[call-overload]
    assert caught.value.kind == kind  # type: ignore[attr-defined]


def test_a_model_without_exact_tier_says_so(tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    uws_store.build(make_zoo(tmp_path / "zoo"), family="mlp", registry=registry)
    with pytest.raises(FidelityError) as caught:
        uws_store.load_model("mlp", "task-00", registry=registry, tier="exact")
    assert caught.value.kind == "fidelity/no-exact-tier"


def test_unknown_tensors_and_tasks_are_key_errors(nets: tuple[Path, str]) -> None:
    _, url = nets
    with pytest.raises(KeyError):
        uws_store.load_model("mlp", "task-00", registry=url)["nothing"]
    with pytest.raises(KeyError):
        uws_store.load_model("mlp", "task-99", registry=url)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_reconstructs_the_bits_on_record(registry: str) -> None:
    weights = uws_store.load_model(
        "nets", "task-00", registry=registry, device="cuda", tier="exact"
    ).materialize()
    assert all(tensor.is_cuda for tensor in weights.values())
