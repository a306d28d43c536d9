"""Decoding in batches, in bytes and fast: the same bits as tensor by tensor in float64, or a bounded distance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.basis import Decoder, StoredTensor, TensorBasis, digits, wide
from uws_store.basis.digits import byte_products_are_exact
from uws_store.basis.positions import PoolPositions, TensorPositions, positions_of
from uws_store.basis.stack import Stack, fits_float32, rounded
from uws_store.basis.wide import WideTensor
from uws_store.canonical import Step
from uws_store.dtypes import DTYPES, DType
from uws_store.entropy import significance_order
from uws_store.metadata.basis import SideRecord, TensorRecord
from uws_store.subspace import QuantisedSide, side_shape
from uws_store.tensor_bytes import digest_of

CPU = torch.device("cpu")
FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_float]


def _side(rng: np.random.Generator, size: int, block: int, rank: int, spread: int) -> QuantisedSide:
    entries, columns = side_shape(size, block, rank)
    return QuantisedSide(
        size,
        block,
        rank,
        torch.from_numpy(rng.integers(-63, 64, entries).astype(np.int16)),
        torch.from_numpy(rng.integers(7, 8 + spread, columns).astype(np.int16)),
    )


def _tensor(
    rng: np.random.Generator,
    *,
    matrix: tuple[int, int],
    left: tuple[int, int] | None,
    right: tuple[int, int] | None,
    spread: int = 3,
) -> StoredTensor:
    m, n = matrix
    record = TensorRecord(
        name="w",
        shape=matrix,
        dtype="F32",
        mode="coded",
        left=SideRecord(block=left[0], rank=left[1]) if left else None,
        right=SideRecord(block=right[0], rank=right[1]) if right else None,
        mean_grid=int(rng.integers(6, 12)),
        shift=int(rng.integers(-2, 3)),
        group=0,
    )
    return StoredTensor(
        record,
        torch.from_numpy(rng.integers(-400, 401, matrix).astype(np.int16)),
        _side(rng, m, *left, spread) if left else None,
        _side(rng, n, *right, spread) if right else None,
    )


def _core(rng: np.random.Generator, tensor: StoredTensor, largest: int) -> torch.Tensor:
    m, n = tensor.record.matrix
    p = len(tensor.left.exponents) if tensor.left else m
    q = len(tensor.right.exponents) if tensor.right else n
    # As in a model: few rows are large, most are small, some are empty.
    fall = np.exp2(-np.linspace(0, 12, p))[:, None] * np.exp2(-np.linspace(0, 4, q))
    return torch.from_numpy(np.round(rng.uniform(-largest, largest, (p, q)) * fall).astype(np.int32))


def _reference(tensor: StoredTensor, core: torch.Tensor, step: Step, dtype: DType) -> torch.Tensor:
    return TensorBasis.of(tensor).predict(core.to(torch.float64), step=step, dtype=dtype)


geometry = st.tuples(st.integers(32, 90), st.integers(0, 3), st.integers(32, 90))


def _sides(drawn: tuple[int, int, int]) -> tuple[int, tuple[int, int] | None]:
    size, kind, block = drawn
    block = min(block, size)
    return size, None if kind == 0 else (size, size) if kind == 1 else (block, block if kind == 2 else 32)


@pytest.mark.skipif(not byte_products_are_exact(), reason="this CPU's byte products saturate or are missing")
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=geometry,
    columns=geometry,
    largest=st.sampled_from([0, 1, 90, 30_000, 10_000_000]),
    name=st.sampled_from(FLOATS),
)
def test_byte_products_give_the_canonical_bits(
    seed: int, rows: tuple[int, int, int], columns: tuple[int, int, int], largest: int, name: str
) -> None:
    rng = np.random.default_rng(seed)
    (m, left), (n, right) = _sides(rows), _sides(columns)
    tensor = _tensor(rng, matrix=(m, n), left=left, right=right)
    assert WideTensor.accepts(tensor)
    core = _core(rng, tensor, largest)
    step = Step(int(rng.integers(128, 256)), -12)
    found = WideTensor(tensor).predict(core, step=step, dtype=DTYPES[name])
    if found is None:
        assert largest > 90, "small cores stay within 32 bits"
        return
    assert same_bits(found, _reference(tensor, core, step, DTYPES[name]))


@pytest.mark.skipif(not byte_products_are_exact(), reason="this CPU's byte products saturate or are missing")
@pytest.mark.parametrize("left", [None, (90, 90), (32, 32), (40, 33)])
@pytest.mark.parametrize("right", [None, (200, 200), (32, 32), (64, 40)])
@pytest.mark.parametrize("largest", [1, 300])
def test_byte_products_give_the_same_bits_panel_by_panel(
    monkeypatch: pytest.MonkeyPatch, left: tuple[int, int] | None, right: tuple[int, int] | None, largest: int
) -> None:
    for module in (wide, digits):
        monkeypatch.setattr(module, "PANEL", 90 * 32)
    monkeypatch.setattr(wide, "_PANEL_STEP", 16)
    rng = np.random.default_rng(largest)
    tensor = _tensor(rng, matrix=(90, 200), left=left, right=right)
    assert WideTensor.accepts(tensor)
    core, step = _core(rng, tensor, largest), Step(200, -12)
    found = WideTensor(tensor).predict(core, step=step, dtype=DTYPES["F32"])
    assert found is not None
    assert same_bits(found, _reference(tensor, core, step, DTYPES["F32"]))


@pytest.mark.skipif(not byte_products_are_exact(), reason="this CPU's byte products saturate or are missing")
def test_byte_products_decline_what_leaves_32_bits() -> None:
    rng = np.random.default_rng(0)
    tensor = _tensor(rng, matrix=(40, 40), left=(40, 40), right=(40, 40))
    core = torch.full((40, 40), 2**31 - 1, dtype=torch.int32)
    assert WideTensor(tensor).predict(core, step=Step(128, -12), dtype=DTYPES["F32"]) is None


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9)),
    columns=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9)),
    stacked=st.integers(1, 4),
    name=st.sampled_from(FLOATS),
)
def test_a_batch_gives_the_bits_of_each_tensor_alone(
    seed: int, rows: tuple[int, int, int], columns: tuple[int, int, int], stacked: int, name: str
) -> None:
    rng = np.random.default_rng(seed)
    sides = []
    for size, block, rank in (rows, columns):
        width = min(block, size)
        sides.append((size, (width, min(rank, width)) if width else None))
    (m, left), (n, right) = sides
    tensors = [_tensor(rng, matrix=(m, n), left=left, right=right) for _ in range(stacked)]
    cores = [_core(rng, tensor, 3000) for tensor in tensors]
    step = Step(int(rng.integers(128, 256)), -12)
    values = Stack(tensors, device=CPU, decode="canonical").predict(torch.stack(cores), step=step)
    found = rounded(values, DTYPES[name], decode="canonical")
    for tensor, core, own in zip(tensors, cores, found.unbind(0), strict=True):
        assert same_bits(own, _reference(tensor, core, step, DTYPES[name]))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=geometry,
    columns=geometry,
    largest=st.sampled_from([1, 90, 30_000]),
    name=st.sampled_from(FLOATS),
)
def test_fast_lies_within_its_bound(
    seed: int, rows: tuple[int, int, int], columns: tuple[int, int, int], largest: int, name: str
) -> None:
    rng = np.random.default_rng(seed)
    (m, left), (n, right) = _sides(rows), _sides(columns)
    tensor = _tensor(rng, matrix=(m, n), left=left, right=right)
    core, step, dtype = _core(rng, tensor, largest), Step(200, -14), DTYPES[name]
    assert fits_float32(tensor, step)
    fast = rounded(
        Stack([tensor], device=CPU, decode="fast").predict(core[None], step=step), dtype, decode="fast"
    )
    reference = _reference(tensor, core, step, dtype).double()
    bound = TensorBasis.of(tensor).fast_bound(core.double(), step=step, dtype=dtype)
    assert float((fast[0].double() - reference).abs().max()) <= bound


def test_the_bound_of_fast_is_far_below_a_step() -> None:
    rng = np.random.default_rng(0)
    tensor = _tensor(rng, matrix=(64, 64), left=(64, 64), right=(64, 64))
    step = Step(128, -20)
    bound = TensorBasis.of(tensor).fast_bound(_core(rng, tensor, 90).double(), step=step, dtype=DTYPES["F64"])
    unit = step.value * 2.0 ** -(tensor.record.shift or 0)
    assert 0 < bound < 0.1 * unit


def test_steps_beyond_float32_are_not_decoded_fast() -> None:
    rng = np.random.default_rng(0)
    tensor = _tensor(rng, matrix=(8, 8), left=(8, 8), right=(8, 8))
    assert not fits_float32(tensor, Step(128, -150))


@given(
    seed=st.integers(0, 2**32 - 1),
    tensors=st.integers(1, 3),
    classes=st.sampled_from([1, 3, 40, 8191]),
    extent=st.integers(1, 30),
)
def test_positions_undo_significance_order(seed: int, tensors: int, classes: int, extent: int) -> None:
    rng = np.random.default_rng(seed)
    profiles = [
        (
            rng.integers(-classes, classes + 1, rng.integers(1, extent + 1)).astype(np.int16),
            rng.integers(-classes, classes + 1, rng.integers(1, extent + 1)).astype(np.int16),
        )
        for _ in range(tensors)
    ]
    order = significance_order(profiles)
    stored = rng.integers(-9, 9, len(order)).astype(np.int16)
    expected = np.empty_like(stored)
    expected[order] = stored
    for positions in (positions_of(profiles), PoolPositions(profiles, None)):
        found = np.empty_like(stored)
        positions.unsort(stored, found)
        assert np.array_equal(found, expected)
        positions.sort(expected, found)
        assert np.array_equal(found, stored)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 3), classes=st.integers(1, 3))
def test_positions_by_runs_undo_significance_order(seed: int, blocks: int, classes: int) -> None:
    # Classes that fall within each block of a factor, as a planner writes them: the same class stands in many places.
    rng = np.random.default_rng(seed)
    rows, columns = (
        np.concatenate([-np.sort(rng.integers(0, classes, 150)) for _ in range(count)]).astype(np.int16)
        for count in (blocks, 4 - blocks)
    )
    positions = positions_of([(rows, columns)])
    assert isinstance(positions, TensorPositions)
    assert positions.runs is not None
    order = significance_order([(rows, columns)])
    stored = rng.integers(-9, 9, len(order)).astype(np.int16)
    expected, found = np.empty_like(stored), np.empty_like(stored)
    expected[order] = stored
    positions.unsort(stored, found)
    assert np.array_equal(found, expected)
    positions.sort(expected, found)
    assert np.array_equal(found, stored)


def test_a_tensor_alone_keeps_a_table_and_no_index() -> None:
    rows, columns = np.arange(300, dtype=np.int16) // 10, -np.arange(400, dtype=np.int16) // 20
    positions = positions_of([(rows, columns)])
    assert isinstance(positions, TensorPositions)
    assert positions.starts_pk.size < math.prod((300, 400)) / 10


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_threads_or_on_what_is_made_together(tmp_path: Path, threads: int) -> None:
    shapes = {
        "big.weight": (384, 352),
        "twin.weight": (384, 352),
        "small.weight": (20, 30),
        "small.bias": (20,),
    }
    registry = str(tmp_path / "registry")
    uws_store.build(make_zoo(tmp_path / "zoo", models=3, shapes=shapes), family="nets", registry=registry)
    model = uws_store.load_model("nets", "task-00", registry=registry).model
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for across in (False, True):
            decoder = Decoder(model.basis, device=CPU, decode="canonical", across=across)
            made: dict[str, torch.Tensor] = {}
            for index in range(len(decoder.jobs)):
                made |= model.decode_job(decoder, index, tier="compact")
            for name, tensor in made.items():
                model.require_digest(name, digest_of(tensor), tier="compact")
            assert made.keys() == shapes.keys()
            assert (len(decoder.jobs) == 2) == across, "twins are one job where all of a model is made"
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FLOATS)
def test_cuda_gives_the_canonical_bits(name: str) -> None:
    rng = np.random.default_rng(0)
    tensors = [_tensor(rng, matrix=(96, 80), left=(40, 32), right=(80, 80)) for _ in range(3)]
    cores = [_core(rng, tensor, 3000) for tensor in tensors]
    step = Step(200, -12)
    stack = Stack(tensors, device=torch.device("cuda"), decode="canonical")
    values = stack.predict(torch.stack(cores).cuda(), step=step)
    found = rounded(values, DTYPES[name], decode="canonical").cpu()
    for tensor, core, own in zip(tensors, cores, found.unbind(0), strict=True):
        assert same_bits(own, _reference(tensor, core, step, DTYPES[name]))
