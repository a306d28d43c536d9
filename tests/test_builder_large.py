"""Architectures beyond memory: tensors by tiles of their rows, means and objects on the disk, the basis tensor by tensor.

What is large here is so because the bounds are lowered.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.api import plan
from uws_store.basis import opened
from uws_store.basis.positions import positions_of
from uws_store.builder import BuiltBasis, Fidelity, Members, build_basis, fit, fit_tiles, members, tiles
from uws_store.builder.memory import MemoryProjection
from uws_store.builder.object_folder import ObjectFolder
from uws_store.builder.scratch import Scratch
from uws_store.checkpoint import scan_zoo
from uws_store.checkpoint.safetensors_file import SafetensorsFile
from uws_store.errors import InvalidInputError, MemoryLimitError, StorageError
from uws_store.plan import Candidate, Choice, SideChoice

SHAPES = {
    "table.weight": (2100, 48),
    "wide.weight": (1536, 3, 4, 4),
    "a.weight": (64, 48),
    "norm.weight": (48,),
}
LARGE = {"table.weight", "wide.weight"}


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these zoos be large in every way."""
    monkeypatch.setattr(members, "SMALL_ELEMENTS", 1)
    monkeypatch.setattr(tiles, "_LARGE_ELEMENTS", 1000)
    monkeypatch.setattr(tiles, "_TILED_ELEMENTS", 1 << 16)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 512 * 48)
    monkeypatch.setattr(tiles, "_PLANNED_ELEMENTS", 1)
    monkeypatch.setattr(opened, "_MOST_HELD", 1000)
    monkeypatch.setattr(opened, "_HELD_OF_LARGE", 1 << 17)


def _basis(zoo: Path, *, bits: float | None = None) -> BuiltBasis:
    fidelity = Fidelity("bits", bits) if bits else Fidelity("change-error", 0.1)
    with Members(scan_zoo(zoo)) as held:
        return build_basis(held, fidelity=fidelity)


def test_a_small_zoo_of_a_large_tensor_is_built_and_nothing_that_is_kept_is_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_TILED_ELEMENTS", 1 << 16)
    zoo = make_zoo(
        tmp_path / "zoo", shapes={"table.weight": (2100, 48), "norm": (48,)}, dtype=torch.float64, models=5
    )
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry, change_error=0.1, exact=True, expect_models=500)
    assert uws_store.verify("f", registry=registry, against=zoo).ok
    with Members(scan_zoo(zoo)) as held:
        held.checkpoints.keep(0, always=["table.weight"])
        list(held.checkpoints.slices("table.weight", list(held.checkpoints)))
        survey = next(survey for survey in held.survey() if survey.name == "table.weight")
        first, second = (
            fit_tiles.fit_by_tiles(fit.FitJob(held.checkpoints, survey, 0.1, 0, 9, ())) for _ in range(2)
        )
    assert torch.equal(first.mean, second.mean)


def test_where_means_and_objects_lie_is_no_part_of_a_basis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES)
    plain = _basis(zoo)
    monkeypatch.setattr(tiles, "_LARGE_ELEMENTS", 1000)
    spilled = _basis(zoo)
    assert isinstance(spilled.objects, ObjectFolder)
    assert not isinstance(plain.objects, ObjectFolder)
    assert dict(spilled.objects) == dict(plain.objects)
    assert spilled.size_bytes == plain.size_bytes == sum(map(len, plain.objects.values()))


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("exact", [False, True], ids=["compact", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_large_family_is_built_loaded_and_verified(
    tmp_path: Path, dtype: torch.dtype, *, exact: bool
) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES, dtype=dtype, models=6)
    registry = str(tmp_path / "registry")
    uws_store.build(zoo, family="f", registry=registry, change_error=0.02, exact=exact, expect_models=500)
    family = uws_store.open_family("f", registry=registry)
    assert family.basis().is_large
    assert any(family.basis().table[name].right is not None for name in LARGE)
    assert uws_store.verify("f", registry=registry, against=zoo).ok
    original = load_file(zoo / "task-03.safetensors")
    found = uws_store.load_model("f", "task-03", registry=registry).materialize()
    change = {name: found[name].double() - original[name].double() for name in original}
    spread = {name: original[name].double() - _mean(zoo, name) for name in original}
    error = sum(float(each.square().sum()) for each in change.values())
    assert error <= 0.03**2 * sum(float(each.square().sum()) for each in spread.values())
    if exact:
        found = uws_store.load_model("f", "task-03", registry=registry, tier="exact").materialize()
        assert all(same_bits(found[name], original[name]) for name in original)


def _mean(zoo: Path, name: str) -> torch.Tensor:
    tensors = [load_file(path)[name].double() for path in sorted(zoo.glob("*.safetensors"))]
    return torch.stack(tensors).mean(0)


@pytest.mark.usefixtures("small_bounds")
def test_a_basis_made_by_tiles_is_the_same_twice_and_whoever_works(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES, models=6)
    digests = []
    for executor, workers in (("serial", 1), ("threads", 3)):
        registry = str(tmp_path / executor)
        uws_store.build(
            zoo, family="f", registry=registry, change_error=0.1, executor=executor, workers=workers
        )
        family = uws_store.open_family("f", registry=registry)
        digests.append([family.basis().digest, *(family.resolve(task).digest for task in family)])
    assert digests[0] == digests[1]


def _count_bytes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the elements that are read of each tensor of each file."""
    counts: Counter[str] = Counter()
    whole, rows = SafetensorsFile._read, SafetensorsFile._read_rows

    def read(self: SafetensorsFile, info: object) -> torch.Tensor:
        tensor = whole(self, info)  # type: ignore[arg-type]
        counts[f"{self.path.stem}/{info.name}"] += tensor.numel()  # type: ignore[attr-defined]
        return tensor

    def read_rows(self: SafetensorsFile, info: object, start: int, stop: int) -> torch.Tensor:
        tensor = rows(self, info, start, stop)  # type: ignore[arg-type]
        counts[f"{self.path.stem}/{info.name}"] += tensor.numel()  # type: ignore[attr-defined]
        return tensor

    monkeypatch.setattr(SafetensorsFile, "_read", read)
    monkeypatch.setattr(SafetensorsFile, "_read_rows", read_rows)
    return counts


@pytest.mark.usefixtures("small_bounds")
def test_each_byte_of_a_large_tensor_is_read_twice_and_never_all_of_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES, models=12)
    counts = _count_bytes(monkeypatch)
    _basis(zoo)
    expected = {
        f"task-{index:02d}/{name}": 2 * int(np.prod(shape))
        for index in range(12)
        for name, shape in SHAPES.items()
    }
    assert counts == expected


def test_a_fit_by_tiles_is_that_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes={"table.weight": (2100, 48)}, models=8)
    choice = Choice(Candidate(SideChoice(64, 64), SideChoice(48, 48)), 1.0, 0.1, 1.0, 1.0)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 512 * 48)
    with Members(scan_zoo(zoo)) as held:
        survey = held.survey()[0]
        job = fit.FitJob(held.checkpoints, survey, 0.1, 1, 500, ("task-00", "task-07"), decided=choice)
        whole, tiled = fit.fit_tensor(job), fit_tiles.fit_by_tiles(job)
        refused = Choice(Candidate(SideChoice(1024, 1024)), 1.0, 0.1, 1.0, 1.0)
        with pytest.raises(InvalidInputError) as caught:
            fit_tiles.fit_by_tiles(fit.FitJob(held.checkpoints, survey, 0.1, 1, 9, (), decided=refused))
    assert caught.value.kind == "invalid-input/plan"
    assert torch.allclose(whole.mean, tiled.mean.double(), rtol=2**-23)
    assert tiled.sampled_rows is not None
    assert (tiled.sampled_rows < 2048).all(), "the last block is ragged"
    assert whole.right is not None
    assert tiled.right is not None
    first, second = (fitted.integers.reshape(48, 48)[:, :4] for fitted in (whole.right, tiled.right))
    assert float((first - second).abs().max()) <= 1
    # As many bits either way: classes are in quarters of an octave.
    for own, other in ((whole.rows, tiled.rows), (whole.columns, tiled.columns)):
        assert float((own - other).abs().float().mean()) < 1.0
    for task, samples in tiled.samples.items():
        mine = whole.samples[task][tiled.sampled_rows]
        assert abs(float(samples.square().sum() / mine.square().sum()) - 1.0) < 0.01


def test_samples_of_few_rows_find_the_step_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=SHAPES, models=6)
    monkeypatch.setattr(members, "SMALL_ELEMENTS", 1)
    steps = []
    for most in (1 << 27, 1 << 16):
        monkeypatch.setattr(members, "_SAMPLED_COEFFICIENTS", most)
        step = _basis(zoo).basis.document.step
        steps.append(step.mantissa * 2.0**step.exponent)
    assert 0.8 < steps[0] / steps[1] < 1.25


def test_a_survey_by_tiles_tells_what_a_whole_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(index: int, weights: dict[str, torch.Tensor]) -> None:
        if index == 2:
            weights["table.weight"][2099, 3] = torch.nan
        if index == 4:
            weights["table.weight"] *= 1e4

    zoo = make_zoo(tmp_path / "zoo", shapes={"table.weight": (2100, 48)}, models=8, change=spoil)
    with Members(scan_zoo(zoo)) as held:
        whole, outliers = held.survey()[0], held.outliers
    monkeypatch.setattr(tiles, "_TILED_ELEMENTS", 1 << 16)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 512 * 48)
    with Members(scan_zoo(zoo)) as held:
        tiled = held.survey()[0]
        assert held.outliers == outliers == {"task-04": ("table.weight",)}
    assert (tiled.usable, tiled.mode) == (whole.usable, whole.mode)
    assert "task-02" not in tiled.usable
    assert tiled.energy == pytest.approx(whole.energy, rel=1e-12)
    assert tiled.change_energy == pytest.approx(whole.change_energy, rel=1e-9)


@pytest.mark.parametrize("rows", [1, 37, 300])
def test_sorting_by_positions_undoes_what_readers_do(rows: int) -> None:
    source = np.random.default_rng(rows)
    profile = (
        source.integers(-9, 9, rows).astype(np.int16),
        source.integers(-9, 9, 41).astype(np.int16),
    )
    for profiles in ([profile], [profile, profile]):
        values = source.integers(-99, 99, sum(len(r) * len(c) for r, c in profiles)).astype(np.int32)
        stored, back = np.empty(len(values), np.int16), np.empty(len(values), np.int16)
        positions = positions_of(profiles)
        positions.sort(values, stored)
        positions.unsort(stored, back)
        assert np.array_equal(back, values)


def test_scratch_keeps_what_it_is_given_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(tmp_path / "scratch")
    values = torch.arange(1 << 20, dtype=torch.float64).reshape(1024, 1024)
    kept = scratch.keep(values)
    scratch.forget()
    assert same_bits(kept, values)
    assert kept.data_ptr() != values.data_ptr()
    assert scratch.keep(kept) is kept
    small = torch.zeros(3)
    assert scratch.keep(small) is small
    assert not list((tmp_path / "scratch").iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(os, "truncate", full)
    with pytest.raises(StorageError) as caught:
        scratch.zeros((1 << 20,), np.int16)
    assert caught.value.kind == "storage/scratch"


def test_a_folder_of_objects_goes_with_its_last_user(tmp_path: Path) -> None:
    folder = ObjectFolder(tmp_path / "objects")
    folder.add("core/c/0", b"abc")
    folder.add("zarr.json", b"{}")
    assert dict(folder) == {"core/c/0": b"abc", "zarr.json": b"{}"}
    assert folder.sizes == {"core/c/0": 3, "zarr.json": 2}
    with pytest.raises(KeyError):
        folder["core/c/1"]
    assert list((tmp_path / "objects").iterdir())
    del folder
    assert not list((tmp_path / "objects").iterdir())


def _sparse_llamas(folder: Path, *, count: int) -> Path:
    """Write checkpoints of LLaMA-3-8B's shapes that are all header and hole."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128256, 4096)}
    for index in range(32):
        at = f"model.layers.{index}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (4096, 4096),
            f"{at}.self_attn.k_proj.weight": (1024, 4096),
            f"{at}.self_attn.v_proj.weight": (1024, 4096),
            f"{at}.self_attn.o_proj.weight": (4096, 4096),
            f"{at}.mlp.gate_proj.weight": (14336, 4096),
            f"{at}.mlp.up_proj.weight": (14336, 4096),
            f"{at}.mlp.down_proj.weight": (4096, 14336),
            f"{at}.input_layernorm.weight": (4096,),
            f"{at}.post_attention_layernorm.weight": (4096,),
        }
    shapes |= {"model.norm.weight": (4096,), "lm_head.weight": (128256, 4096)}
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    for index in range(count):
        with (folder / f"llama-{index:02d}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    return folder


def test_a_zoo_of_llamas_is_projected_from_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = _sparse_llamas(tmp_path / "zoo", count=50)
    counts = _count_bytes(monkeypatch)
    with Members(scan_zoo(zoo)) as held:
        projection = held.projected_memory(
            fidelity=Fidelity("change-error", 0.05), exact=False, shares_memory=True
        )
    assert sum(projection.elements) == 8_030_261_248
    # As of a process that has just begun: this one has run other tests.
    assert replace(projection, base_bytes=400 << 20).fitting_workers(2, 24 << 30) == 2
    with pytest.raises(MemoryLimitError) as caught:
        plan(zoo, memory="8GiB")
    assert "in each of 50 models" in caught.value.message
    assert not counts


def _llama(*, exact: bool) -> MemoryProjection:
    block = (
        (4096, 4096),
        (1024, 4096),
        (1024, 4096),
        (4096, 4096),
        (14336, 4096),
        (14336, 4096),
        (4096, 14336),
        (1, 4096),
        (1, 4096),
    )
    return MemoryProjection(
        block * 32 + ((128256, 4096), (128256, 4096), (1, 4096)),
        50,
        1,
        source_bytes=2,
        exact=exact,
        pinned_bytes=0,
        base_bytes=400 << 20,
    )


def test_fifty_llamas_of_eight_billion_weights_fit_a_machine_of_24_gib() -> None:
    assert _llama(exact=False).fitting_workers(2, 24 << 30) == 2
    assert _llama(exact=True).fitting_workers(2, 24 << 30) == 1
