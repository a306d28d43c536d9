"""The residual: any bit pattern comes back from any prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uws_store.dtypes import DTYPES, DType
from uws_store.residual import apply_residual, residual_dtype, residual_of

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
