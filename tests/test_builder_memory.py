"""Memory: projected before anything is read, kept to, and what a zoo beyond it costs in reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from build_in_process import build_in_process
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.api import plan
from uws_store.builder import BuiltBasis, Fidelity, Members, build_basis, fit, members
from uws_store.builder.memory import MemoryProjection, parse_bytes
from uws_store.checkpoint import Checkpoint, scan_zoo
from uws_store.checkpoint.safetensors_file import SafetensorsFile
from uws_store.errors import InvalidInputError, MemoryLimitError

WIDE = {"a.weight": (96, 64), "b.weight": (64, 96), "c.weight": (80, 80), "norm.weight": (64,)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("streamed", [False, True], ids=["small", "streamed"])
def test_the_measured_peak_is_below_the_projection_and_above_half_of_it(
    tmp_path: Path, *, streamed: bool
) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=18, shapes={"a.weight": (256, 384), "b.weight": (384, 256)})
    options = {"workers": 2, "exact": True, "change_error": 0.1}
    bounds: dict[str, Any] = {"small": 1_000_000, "held": 10 * 384 * 256} if streamed else {}
    told = build_in_process(zoo, tmp_path / "registry", options=options, **bounds)
    assert told["peak"] <= told["projected"] <= 2 * told["peak"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize(
    ("shapes", "models"),
    [({"a.weight": (4608, 96)}, 6), ({f"{index}.weight": (32, 48) for index in range(48)}, 6)],
    ids=["side above 4096", "many tensors"],
)
def test_the_peak_is_below_the_projection_for_wide_sides_and_for_many_tensors(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], models: int
) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=models, shapes=shapes)
    told = build_in_process(zoo, tmp_path / "registry", options={"workers": 2, "change_error": 0.1})
    assert told["peak"] <= told["projected"] <= 2 * told["peak"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_a_large_architecture_is_built_in_less_than_fitting_its_largest_tensor_whole_takes(
    tmp_path: Path,
) -> None:
    shapes = {"table.weight": (8192, 256), "up.weight": (1536, 256), "norm.weight": (256,)}
    zoo = make_zoo(tmp_path / "zoo", models=6, shapes=shapes, dtype=torch.bfloat16)
    bounds = {
        "tiles": {
            "_TILED_ELEMENTS": 1 << 18,
            "_TILE_ELEMENTS": 1 << 17,
            "_LARGE_ELEMENTS": 1 << 20,
            "_PLANNED_ELEMENTS": 1,
        },
        "opened": {"_MOST_HELD": 1 << 20, "_HELD_OF_LARGE": 1 << 20},
        "memory": {"_BASIS_HELD": 1 << 20},
    }
    options = {"executor": "serial", "exact": True, "change_error": 0.1, "memory": "1GiB"}
    told = build_in_process(zoo, tmp_path / "registry", options=options, small=1000, bounds=bounds)
    assert told["peak"] <= told["projected"] <= 1 << 30
    whole = MemoryProjection(
        ((8192, 256), (1536, 256), (1, 256)), 6, 6, source_bytes=2, exact=True, pinned_bytes=0, base_bytes=0
    )
    assert whole.peak_bytes(1) > (1 << 30) - (400 << 20)


@pytest.mark.parametrize("job", ["build", "plan"])
def test_a_build_that_cannot_fit_is_refused_before_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE)

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(SafetensorsFile, "_read", refuse)
    jobs: dict[str, Callable[[], object]] = {
        "build": lambda: uws_store.build(
            zoo, family="f", registry=str(tmp_path / "registry"), memory="100MiB"
        ),
        "plan": lambda: plan(zoo, memory="100MiB"),
    }
    with pytest.raises(MemoryLimitError) as caught:
        jobs[job]()
    assert caught.value.kind == "memory-limit/build"
    assert "GiB" in caught.value.message


def test_less_memory_means_fewer_workers_and_then_a_refusal() -> None:
    projection = MemoryProjection(
        ((768, 3072),) * 12, 500, 1, source_bytes=4, exact=False, pinned_bytes=0, base_bytes=400 << 20
    )
    needed = [projection.peak_bytes(count) for count in (1, 2, 4)]
    assert needed == sorted(needed)
    assert projection.fitting_workers(4, None) == 4
    assert projection.fitting_workers(4, needed[2]) == 4
    assert projection.fitting_workers(4, needed[1]) == 2
    assert projection.fitting_workers(4, needed[0]) == 1
    with pytest.raises(MemoryLimitError):
        projection.fitting_workers(4, needed[0] - 1)


def test_five_hundred_vits_fit_a_machine_of_24_gib() -> None:
    block = ((768, 768),) * 4 + ((3072, 768), (768, 3072)) + ((1, 768),) * 10
    projection = MemoryProjection(
        block * 12 + ((768, 768), (197, 768)),
        500,
        1,
        source_bytes=4,
        exact=True,
        pinned_bytes=0,
        base_bytes=400 << 20,
    )
    assert projection.peak_bytes(2) < 24 << 30


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    projection = MemoryProjection(
        ((4096, 4096),) * 64 + ((128256, 4096),),
        50,
        1,
        source_bytes=2,
        exact=False,
        pinned_bytes=0,
        base_bytes=400 << 20,
    )
    with pytest.raises(MemoryLimitError) as caught:
        projection.fitting_workers(2, 4 << 30)
    assert f"{projection.peak_bytes(1) / 2**30:.2f} GiB" in caught.value.message
    assert "may take 4.00 GiB" in caught.value.message
    assert "525,336,576 elements in each of 50 models" in caught.value.message


def test_moments_of_a_wide_side_are_projected_block_by_block() -> None:
    def needed(size: int) -> int:
        return MemoryProjection(
            ((size, 1),), 8, 1, source_bytes=4, exact=False, pinned_bytes=0, base_bytes=0
        ).deriving_bytes(1)

    assert needed(100_000) - needed(50_000) >= 50_000 * 256 * 8


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("500MB", 500_000_000), ("2g", 2 << 30), ("1.5 MiB", 3 << 19), (77, 77)],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "8Gi B", "nan", "inf"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_bytes(text)
    assert caught.value.kind == "invalid-input/memory"


def _counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each tensor of each file is read."""
    reads: Counter[str] = Counter()
    whole = SafetensorsFile.read

    def read(self: SafetensorsFile, info: object) -> torch.Tensor:
        reads[f"{self.path.stem}/{info.name}"] += 1  # type: ignore[attr-defined]
        return whole(self, info)  # type: ignore[arg-type]

    monkeypatch.setattr(SafetensorsFile, "read", read)
    return reads


def _basis(zoo: Path, *, kept_bytes: int = 0) -> BuiltBasis:
    with Members(scan_zoo(zoo)) as opened:
        return build_basis(opened, fidelity=Fidelity("change-error", 0.1), kept_bytes=kept_bytes)


def test_each_tensor_is_read_once_where_the_slices_fit_and_twice_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=12)
    reads = _counted(monkeypatch)
    _basis(zoo)
    assert set(reads.values()) == {1}
    assert len(reads) == 12 * len(WIDE)
    monkeypatch.setattr(members, "SMALL_ELEMENTS", 1)
    monkeypatch.setattr(fit, "_HELD_ELEMENTS", 1)
    reads.clear()
    streamed = _basis(zoo)
    assert set(reads.values()) == {2}
    reads.clear()
    kept = _basis(zoo, kept_bytes=1 << 30)
    assert set(reads.values()) == {1}
    assert kept.objects == streamed.objects, "memory is no part of the result"


def test_a_streamed_fit_is_that_of_all_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=40)
    with Members(scan_zoo(zoo)) as opened:
        surveys = {survey.name: survey for survey in opened.survey()}
        survey = surveys["a.weight"]
        job = fit.FitJob(opened.checkpoints, survey, 0.1, 0, 500, ("task-00", "task-39"))
        whole = fit.fit_tensor(job)
        monkeypatch.setattr(fit, "_HELD_ELEMENTS", 20 * 96 * 64)
        streamed = fit.fit_tensor(job)
    assert whole.choice.candidate == streamed.choice.candidate
    assert torch.allclose(whole.mean, streamed.mean, rtol=1e-13, atol=1e-15)
    for own, other in ((whole.left, streamed.left), (whole.right, streamed.right)):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            # The shared subspace comes first; the noise behind it has no direction of its own.
            first = own.integers.reshape(own.size, -1)[:, :3]
            second = other.integers.reshape(own.size, -1)[:, :3]
            assert float((first - second).abs().max()) <= 1
    assert set(streamed.samples) == {"task-00", "task-39"}


def test_kept_slices_of_float64_are_not_written_into(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, dtype=torch.float64)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry, exact=True)
    found = uws_store.load_model("f", "task-03", registry=registry, tier="exact").materialize()
    from safetensors.torch import load_file  # noqa: PLC0415 - one use

    original = load_file(zoo / "task-03.safetensors")
    assert all(same_bits(found[name], original[name]) for name in original)


def test_the_files_of_a_zoo_are_closed_with_it(tmp_path: Path) -> None:
    with Members(scan_zoo(make_zoo(tmp_path / "zoo", shapes=WIDE))) as opened:
        checkpoint: Checkpoint = opened.checkpoints["task-00"]
    with pytest.raises(InvalidInputError) as caught:
        checkpoint.read("a.weight")
    assert caught.value.kind == "invalid-input/closed"
