"""The residual: any bit pattern comes back from any prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uws_store import residual as residuals
from uws_store.dtypes import DTYPES, DType
from uws_store.residual import (
    StoredResidual,
    apply_residual,
    residual_classes,
    residual_dtype,
    residual_of,
    sorted_residual,
)

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_float]


def _from_bits(bits: list[int], dtype: DType) -> torch.Tensor:
    unsigned = np.array(bits, np.uint64).astype(f"u{dtype.size_bytes}")
    return torch.from_numpy(unsigned.view(np.uint8).copy()).view(dtype.torch)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(FLOATS))
def test_every_source_comes_back_from_every_prediction(data: st.DataObject, dtype: DType) -> None:
    patterns = st.integers(0, 2**dtype.bits - 1)
    pairs = data.draw(st.lists(st.tuples(patterns, patterns), min_size=1, max_size=20))
    source = _from_bits([a for a, _ in pairs], dtype)
    prediction = _from_bits([b for _, b in pairs], dtype)
    residual = residual_of(source, prediction, dtype)
    assert residual.dtype == np.dtype(residual_dtype(dtype))
    back = apply_residual(prediction, residual, dtype)
    assert torch.equal(back.view(torch.uint8), source.view(torch.uint8))


def test_neighbouring_floats_differ_by_one_step_and_zeros_are_kept_apart() -> None:
    dtype = DTYPES["F32"]
    one = torch.tensor([1.0])
    after = torch.nextafter(one, torch.tensor([2.0]))
    assert residual_of(after, one, dtype).tolist() == [2], "plus one, folded by zigzag"
    assert residual_of(one, after, dtype).tolist() == [1], "minus one"
    minus, plus = torch.tensor([-0.0]), torch.tensor([0.0])
    assert residual_of(minus, plus, dtype).tolist() == [1]


def test_shape_is_that_of_the_prediction() -> None:
    prediction = torch.zeros(2, 3, dtype=torch.bfloat16)
    source = torch.ones(2, 3, dtype=torch.bfloat16)
    residual = residual_of(source, prediction, DTYPES["BF16"])
    assert apply_residual(prediction, residual, DTYPES["BF16"]).shape == (2, 3)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_an_exact_prediction_leaves_zeros(dtype: DType) -> None:
    values = torch.linspace(-1, 1, 9, dtype=torch.float32).to(dtype.torch)
    assert not residual_of(values, values, dtype).any()


@pytest.mark.parametrize("tile", [1 << 16, 64, 7], ids="tiles of {}".format)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_residuals_of_several_tensors_are_sorted_by_class_and_come_back_whatever_the_tiles(
    monkeypatch: pytest.MonkeyPatch, dtype: DType, tile: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = [torch.randn(count, generator=generator) for count in (300, 1, 64, 0, 77)]
    predictions[0][::5] = 0.0
    predictions = [values.mul(0.1).to(dtype.torch) for values in predictions]
    sources = [torch.randn(len(told), generator=generator).mul(0.1).to(dtype.torch) for told in predictions]
    pairs = list(zip(sources, predictions, strict=True))
    plain = np.concatenate([residual_of(own, told, dtype) for own, told in pairs])
    classes = np.concatenate([residual_classes(told, 3) for told in predictions])
    monkeypatch.setattr(residuals, "_TILE", tile)
    assert np.array_equal(np.concatenate([residual_classes(told, 3) for told in predictions]), classes)
    taken = [residual_of(own, told.clone(), dtype, in_place=True) for own, told in pairs]
    assert np.array_equal(np.concatenate(taken), plain)
    stored = sorted_residual(plain, classes)
    order = sorted(range(len(classes)), key=lambda place: -int(classes[place]))
    assert np.array_equal(stored, plain[order]), "a stable sort"
    found = StoredResidual(stored, classes)
    for own, told in pairs:
        back = found.apply(told.clone(), dtype)
        assert torch.equal(back.view(torch.uint8), own.view(torch.uint8))


@pytest.mark.parametrize("name", ["F32", "BF16", "F64"])
def test_a_residual_takes_its_prediction_s_memory_and_gives_it_back(name: str) -> None:
    dtype = DTYPES[name]
    source, prediction = torch.linspace(-1, 1, 9).to(dtype.torch), torch.zeros(9, dtype=dtype.torch)
    taken = prediction.clone()
    residual = residual_of(source, taken, dtype, in_place=True)
    assert residual.ctypes.data == taken.data_ptr()
    back = apply_residual(prediction, residual, dtype)
    assert back.data_ptr() == prediction.data_ptr()
    assert torch.equal(back, source)
