"""Building on a device: the same bytes wherever nothing differs but the place, and a retreat where there is no room.

``cpu:0`` is the CPU by another name: everything is copied there as to a GPU, and the arithmetic is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_support import make_small_zoo, run, run_well
from zoo_support import make_zoo

import uws_store
from uws_store.api import extend, rebase
from uws_store.builder import fit
from uws_store.builder.transform import Analysis
from uws_store.device import CPU, each_device, fed, first_that_fits
from uws_store.errors import InvalidInputError, MemoryLimitError
from uws_store.executors import one_thread
from uws_store.quantize import binned_in_any_order
from uws_store.subspace import QuantisedSide

OTHER = "cpu:0"
SHAPES = {"a.weight": (48, 32), "conv.weight": (8, 4, 3, 3), "b.weight": (32, 48), "norm.weight": (64,)}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return make_zoo(tmp_path / "zoo", shapes=SHAPES, models=6)


def _digests(registry: str, family: str = "f") -> list[str]:
    opened = uws_store.open_family(family, registry=registry)
    return [opened.basis().digest, *(opened.resolve(task).digest for task in opened)]


def _options(registry: str) -> dict[str, str]:
    return dict(uws_store.open_family("f", registry=registry).basis().document.build.options)


@pytest.mark.parametrize("held", [1 << 27, 8 * 48 * 32 // 2], ids=["held", "streamed"])
@pytest.mark.parametrize("exact", [False, True], ids=["compact", "exact"])
def test_a_device_of_the_same_kind_gives_the_same_bytes(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch, held: int, *, exact: bool
) -> None:
    monkeypatch.setattr(fit, "_HELD_ELEMENTS", held)
    monkeypatch.setattr(fit, "_LEAST_HELD", 4)
    found = []
    for name, device in (("here", "cpu"), ("there", OTHER)):
        registry = str(tmp_path / name)
        uws_store.build(
            zoo, family="f", registry=registry, exact=exact, change_error=0.1, expect_models=99, device=device
        )
        found.append(_digests(registry))
    assert found[0] == found[1]


def _full(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, refuses: Callable[..., bool]
) -> list[object]:
    """Let a function find no memory whenever something holds for its arguments; tell when it did."""
    whole = getattr(owner, name)
    refused: list[object] = []

    def wrapped(*arguments: object, **more: object) -> object:
        if refuses(*arguments, **more):
            refused.append(arguments)
            raise torch.OutOfMemoryError("CUDA out of memory (as the test wants it)")
        return whole(*arguments, **more)

    monkeypatch.setattr(owner, name, wrapped)
    return refused


@pytest.mark.parametrize(
    ("refuses", "told"),
    [
        (
            lambda *_, held_on: held_on != CPU,
            "the basis of a.weight is made by slices on cpu, which has no room for all of it",
        ),
        (
            lambda _, device, **__: device != CPU,
            "the basis of a.weight is made on the CPU: cpu has no room for it",
        ),
    ],
    ids=["slices", "cpu"],
)
def test_a_tensor_that_finds_no_room_is_fitted_in_pieces_and_then_on_the_cpu(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable[..., bool], told: str
) -> None:
    uws_store.build(zoo, family="f", registry=str(tmp_path / "plain"), change_error=0.1)

    def for_one(job: fit.FitJob, device: torch.device, *, held_on: torch.device) -> bool:
        return job.survey.name == "a.weight" and refuses(job, device, held_on=held_on)

    refused = _full(monkeypatch, fit, "_fit", for_one)
    registry = str(tmp_path / "full")
    result = uws_store.build(zoo, family="f", registry=registry, change_error=0.1, device=OTHER)
    assert refused
    assert [remark for remark in result.remarks if "a.weight" in remark] == [told]
    assert not any("b.weight" in remark for remark in result.remarks)
    assert _options(registry)["device-retreats"] == "1"
    assert [_options(registry)[name] for name in ("fidelity", "expect-models")] == ["change-error 0.1", "6"]
    plain, full = (_digests(str(tmp_path / name))[1:] for name in ("plain", "full"))
    assert len(plain) == len(full)
    for task in uws_store.open_family("f", registry=registry):
        weights = [
            uws_store.load_model("f", task, registry=str(tmp_path / name)) for name in ("plain", "full")
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in SHAPES)


@pytest.mark.parametrize("ways", ["tiles", "cpu"])
def test_a_model_that_finds_no_room_is_encoded_in_tiles_and_then_on_the_cpu(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch, ways: str
) -> None:
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry, change_error=0.1)
    new = make_zoo(tmp_path / "new", shapes=SHAPES, models=1, seed=4) / "task-00.safetensors"
    plain = uws_store.add(new, family="f", task="plain", registry=registry)
    assert not plain.model.notices

    def elsewhere(analysis: Analysis, change: torch.Tensor, _: float) -> bool:
        return analysis.device != CPU and change.ndim == 2

    refused = _full(monkeypatch, Analysis, "coefficients", elsewhere)
    if ways == "cpu":
        refused = _full(monkeypatch, Analysis, "coefficients_by_tiles", elsewhere)
    full = uws_store.add(new, family="f", task="full", registry=registry, device=OTHER)
    assert len(refused) == len(SHAPES)
    word = "is made by tiles on cpu" if ways == "tiles" else "is made on the CPU: cpu has no room"
    assert [word in notice for notice in full.model.notices] == [True] * len(SHAPES)
    family = uws_store.open_family("f", registry=registry)
    assert family.resolve("plain").digest == family.resolve("full").digest


def test_tiles_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uws_store.builder.transform._TILE_ELEMENTS", 100)
    source = torch.Generator().manual_seed(0)

    def side(size: int, block: int) -> QuantisedSide:
        blocks = [
            torch.randint(-9, 9, (min(block, size - at), min(block, size - at)), generator=source)
            + 20 * torch.eye(min(block, size - at), dtype=torch.int64)
            for at in range(0, size, block)
        ]
        entries = torch.cat([part.reshape(-1) for part in blocks]).to(torch.int16)
        return QuantisedSide(size, block, block, entries, torch.full((size,), 4, dtype=torch.int16))

    change = torch.randn(37, 53, dtype=torch.float64, generator=source)
    for left, right in ((side(37, 37), side(53, 16)), (side(37, 10), None), (None, side(53, 53))):
        analysis = Analysis(left, right, device=torch.device(OTHER))
        torch.testing.assert_close(
            analysis.coefficients_by_tiles(change), analysis.coefficients(change), rtol=1e-12, atol=1e-13
        )
        whole = analysis.coefficients(change, 0.5)
        assert whole.dtype == torch.float32
        assert torch.equal(analysis.coefficients_by_tiles(change, 0.5), whole)


def test_where_nothing_has_room_the_error_is_typed() -> None:
    tried = []

    def full(name: str) -> Callable[[], int]:
        def way() -> int:
            tried.append(name)
            raise torch.OutOfMemoryError("CUDA out of memory")

        return way

    with pytest.raises(MemoryLimitError) as caught:
        first_that_fits([("", full("all")), ("tiles", full("tiles")), ("cpu", full("cpu"))], what="fitting w")
    assert caught.value.kind == "memory-limit/device"
    assert "fitting w" in caught.value.message
    assert tried == ["all", "tiles", "cpu"]
    assert first_that_fits([("", full("all")), ("tiles", lambda: 7)], what="x") == (7, "tiles")
    for words in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ):
        ways: list[tuple[str, Callable[[], int]]] = [
            ("", functools.partial(_raise, RuntimeError(words))),
            ("tiles", lambda: 7),
        ]
        assert first_that_fits(ways, what="x") == (7, "tiles")
    with pytest.raises(RuntimeError, match="another"):
        first_that_fits([("", lambda: _raise(RuntimeError("another"))), ("cpu", lambda: 7)], what="x")


def _raise(error: Exception) -> int:
    raise error


def test_cuda_alone_means_every_gpu_and_never_one_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert each_device(torch.device("cuda")) == (torch.device("cuda", 0), torch.device("cuda", 1))
    assert each_device(torch.device("cuda:1")) == (torch.device("cuda", 1),)


def test_tensors_are_fed_in_their_order_and_no_further_than_wanted() -> None:
    taken: list[int] = []

    def source() -> Iterator[torch.Tensor]:
        for index in range(5):
            taken.append(index)
            yield torch.full((3,), index)

    feed = fed(source(), torch.device(OTHER))
    assert [int(next(feed)[0]) for _ in range(2)] == [0, 1]
    assert taken[-1] <= 2
    assert [int(tensor[0]) for tensor in feed] == [2, 3, 4]


def test_sums_of_bins_do_not_depend_on_the_order() -> None:
    source = torch.Generator().manual_seed(1)
    bins = torch.randint(0, 256, (10_000,), generator=source)
    weights = torch.rand(10_000, dtype=torch.float64, generator=source) * 2.0**20
    order = torch.randperm(10_000, generator=source)
    sums = binned_in_any_order(bins, weights)
    assert torch.equal(sums, binned_in_any_order(bins[order], weights[order]))
    torch.testing.assert_close(
        sums, torch.bincount(bins, weights=weights, minlength=256), rtol=1e-12, atol=0.0
    )
    assert not binned_in_any_order(bins, torch.zeros_like(weights)).any()


def test_extend_takes_a_device(tmp_path: Path, zoo: Path) -> None:
    more = make_zoo(tmp_path / "more", shapes=SHAPES, models=2, seed=9)
    found = []
    for name, device in (("here", "cpu"), ("there", OTHER)):
        registry = str(tmp_path / name)
        uws_store.build(zoo, family="f", registry=registry, change_error=0.1)
        assert extend("f", [more], registry=registry, device=device).remarks == ()
        found.append(_digests(registry))
    assert found[0] == found[1]


def test_rebase_takes_a_device_and_tells_where_it_had_no_room(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = make_zoo(tmp_path / "more", shapes=SHAPES, models=2, seed=9)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry, exact=True, change_error=0.1)
    extend("f", [more], registry=registry)
    devices: list[torch.device] = []
    whole = Analysis.coefficients

    def noted(analysis: Analysis, change: torch.Tensor, step: float) -> torch.Tensor:
        devices.append(analysis.device)
        return whole(analysis, change, step)

    monkeypatch.setattr(Analysis, "coefficients", noted)
    here = rebase("f", "task-02@1", registry=registry)
    assert devices == [], "the CPU itself works by panels"
    there = rebase("f", "task-02@1", registry=registry, device=OTHER)
    assert set(devices) == {torch.device(OTHER)}
    digests = [
        uws_store.open_family("f", registry=registry).resolve(f"task-02@{result.model.version}").digest
        for result in (here, there)
    ]
    assert digests[0] == digests[1]
    refused = _full(
        monkeypatch,
        Analysis,
        "coefficients",
        lambda analysis, change, _: analysis.device != CPU and change.ndim,
    )
    run_well("rebase", "f/task-03", "--registry", registry, "--device", OTHER)
    assert len(refused) == len(SHAPES)
    with pytest.raises(InvalidInputError) as caught:
        rebase("f", "task-04", registry=registry, device="cuda:99")
    assert caught.value.kind == "invalid-input/device"


@pytest.mark.parametrize("device", ["cuda:99", "nowhere", "meta"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path, device: str) -> None:
    registry = tmp_path / "registry"
    zoo = make_small_zoo(tmp_path / "zoo", models=3)
    ran = run("build", zoo, "--family", "f", "--registry", registry, "--device", device)
    assert ran.error_kind == "invalid-input/device"
    assert not registry.exists()
    with pytest.raises(InvalidInputError) as caught:
        uws_store.add(zoo / "task-00.safetensors", family="f", registry=str(registry), device=device)
    assert caught.value.kind == "invalid-input/device"


def test_the_command_line_takes_a_device(tmp_path: Path) -> None:
    zoo = make_small_zoo(tmp_path / "zoo", models=5)
    registry = str(tmp_path / "registry")
    run_well("build", zoo, "--family", "f", "--registry", registry, "--device", OTHER)
    run_well(
        "add",
        zoo / "task-00.safetensors",
        "--family",
        "f",
        "--task",
        "again",
        "--registry",
        registry,
        "--device",
        OTHER,
    )
    plan = run_well("build", zoo, "--family", "g", "--plan-only", "--device", OTHER, "--json")
    assert plan.document["tensors"]
    assert each_device(torch.device(OTHER)) == (torch.device(OTHER),)


@needs_cuda
class TestCuda:
    def test_every_gpu_is_meant_by_cuda_alone(self) -> None:
        assert len(each_device(torch.device("cuda"))) == torch.cuda.device_count()
        assert each_device(torch.device("cuda:0")) == (torch.device("cuda:0"),)

    def test_the_same_zoo_gives_the_same_bytes_twice_and_nearly_those_of_the_cpu(
        self, tmp_path: Path, zoo: Path
    ) -> None:
        registries = {name: str(tmp_path / name) for name in ("one", "two", "cpu")}
        sizes = {}
        for name, registry in registries.items():
            device = "cpu" if name == "cpu" else "cuda"
            result = uws_store.build(
                zoo, family="f", registry=registry, exact=True, change_error=0.1, device=device
            )
            assert not result.remarks
            sizes[name] = result.basis_bytes + sum(model.size_bytes for model in result.models)
        assert _digests(registries["one"]) == _digests(registries["two"])
        assert _options(registries["one"])["device"] == "cuda"
        assert abs(sizes["one"] - sizes["cpu"]) < 0.02 * sizes["cpu"]
        assert uws_store.verify("f", registry=registries["one"], against=zoo).ok

    def test_what_is_fed_is_what_was_given(self) -> None:
        tensors = [torch.randn(257, 129) for _ in range(9)]
        with one_thread():
            for given, copy in zip(tensors, fed(tensors, torch.device("cuda", 0)), strict=True):
                assert copy.device.type == "cuda"
                assert torch.equal(copy.cpu(), given)

    def test_a_full_device_costs_a_remark(
        self, tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = _full(monkeypatch, fit, "_fit", lambda *_, held_on: held_on != CPU)
        result = uws_store.build(
            zoo, family="f", registry=str(tmp_path / "r"), change_error=0.1, device="cuda", executor="serial"
        )
        assert refused
        assert any("by slices on cuda" in remark for remark in result.remarks)
        assert uws_store.verify("f", registry=str(tmp_path / "r")).ok
