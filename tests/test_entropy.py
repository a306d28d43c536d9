"""Entropy coding: order, streams, bounds on what a stream may claim."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uws_store.entropy import decode_integers, encode_integers, ideal_bits, significance_order
from uws_store.errors import FormatError, InvalidInputError
from uws_store.quantize import preserving_offset, quantise

DTYPES = ["int16", "int32", "uint16", "uint32", "uint64"]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), page=st.sampled_from([256, 1024]))
def test_integers_come_back(data: st.DataObject, dtype: str, page: int) -> None:
    values = data.draw(hnp.arrays(dtype, st.integers(1, 700)))
    stream = encode_integers(values, page=page)
    assert np.array_equal(decode_integers(stream, dtype=dtype, count=len(values)), values)


@pytest.mark.parametrize("promised", [0, 9, 11, 1 << 20])
def test_a_stream_of_another_length_is_refused(promised: int) -> None:
    stream = encode_integers(np.arange(10, dtype=np.int16), page=256)
    with pytest.raises(FormatError) as caught:
        decode_integers(stream, dtype="int16", count=promised)
    assert caught.value.kind == "format/entropy"


def test_a_stream_of_another_type_is_refused() -> None:
    stream = encode_integers(np.arange(10, dtype=np.int32), page=256)
    with pytest.raises(FormatError) as caught:
        decode_integers(stream, dtype="int16", count=10)
    assert caught.value.kind == "format/entropy"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_streams_are_refused_or_harmless(data: st.DataObject) -> None:
    values = np.random.default_rng(0).laplace(0, 3, 500).round().astype(np.int16)
    stream = bytearray(encode_integers(values, page=256))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode_integers(bytes(stream), dtype="int16", count=500)
    except FormatError as error:
        assert error.kind == "format/entropy"
    else:
        assert found.shape == (500,)


def test_a_stream_that_claims_much_allocates_little() -> None:
    # Millions of zeros in some hundred bytes: what a hostile file would send.
    stream = encode_integers(np.zeros(1 << 24, np.int16), page=1 << 20)
    assert len(stream) < 4096
    tracemalloc.start()
    with pytest.raises(FormatError):
        decode_integers(stream, dtype="int16", count=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tensors=st.integers(1, 3))
def test_significance_order_is_a_stable_sort_by_falling_class(seed: int, tensors: int) -> None:
    rng = np.random.default_rng(seed)
    profiles = [
        (
            rng.integers(-9, 9, rng.integers(1, 6)).astype(np.int16),
            rng.integers(-9, 9, rng.integers(1, 6)).astype(np.int16),
        )
        for _ in range(tensors)
    ]
    classes = [int(r) + int(c) for rows, columns in profiles for r in rows for c in columns]
    expected = sorted(range(len(classes)), key=lambda index: -classes[index])
    assert significance_order(profiles).tolist() == expected


def test_the_ideal_length_is_the_entropy_of_a_laplace_source() -> None:
    rng = np.random.default_rng(3)
    scale = 1.7
    whole = (
        quantise(torch.from_numpy(rng.laplace(0, scale, 400_000)), 1.0, offset=0.4).numpy().astype(np.int64)
    )
    counts = np.unique(whole, return_counts=True)[1] / len(whole)
    entropy = float(-(counts * np.log2(counts)).sum())
    found = ideal_bits(whole, np.full(len(whole), scale)) / len(whole)
    assert found == pytest.approx(entropy, rel=0.005)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.3, 50))
def test_the_default_offset_preserves_the_projection(seed: int, scale: float) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).laplace(0, scale, 20_000))
    offset = preserving_offset(values, 1.0)
    whole = quantise(values, 1.0)
    ratio = float((values * whole).sum() / (values * values).sum())
    if 0.4 < offset < 0.75:
        assert ratio == pytest.approx(1.0, abs=0.01)
    shrunk = quantise(values, 1.0, offset=0.4)
    assert abs(1 - ratio) <= abs(1 - float((values * shrunk).sum() / (values * values).sum()))
    assert offset == pytest.approx(0.5, abs=0.03) or scale < 10


def test_nothing_to_quantise_is_quantised() -> None:
    assert quantise(torch.zeros(0), 1.0).shape == (0,)
    assert quantise(torch.zeros(5), 1.0).tolist() == [0] * 5


def test_quantiser_has_an_offset_and_no_negative_zero() -> None:
    found = quantise(torch.tensor([0.0, -0.0, 0.59, 0.61, -0.59, -0.61, 1.7, -2.4]), 1.0, offset=0.4)
    assert found.tolist() == [0, 0, 0, 1, 0, -1, 2, -2]
    assert not torch.signbit(found[:3]).any()


def test_quantiser_refuses_what_32_bits_cannot_hold() -> None:
    with pytest.raises(InvalidInputError) as caught:
        quantise(torch.tensor([1e12]), 1e-3)
    assert caught.value.kind == "invalid-input/range"
