"""Pages: cut where the integers change, and never worse than pages of one size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uws_store.entropy import decode_integers, encode_integers
from uws_store.pages import page_sizes


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["int16", "int32", "uint16", "uint32", "uint64"]))
def test_pages_cover_the_sequence_and_integers_come_back(data: st.DataObject, dtype: str) -> None:
    piece = data.draw(hnp.arrays(dtype, st.integers(0, 300)))
    values = np.concatenate([piece, np.repeat(piece[:2], 3000), piece])
    sizes = page_sizes(values)
    assert sum(sizes) == len(values)
    assert all(size > 0 for size in sizes)
    if len(values):
        assert np.array_equal(
            decode_integers(encode_integers(values), dtype=dtype, count=len(values)), values
        )


def test_pages_end_where_the_integers_change() -> None:
    random = np.random.default_rng(0)
    wide = random.laplace(0, 40, 40_000).round().astype(np.int16)
    narrow = random.laplace(0, 0.3, 60_000).round().astype(np.int16)
    sizes = page_sizes(np.concatenate([wide, narrow]))
    # The piece that straddles the change may be a page of its own.
    assert len(sizes) <= 3
    assert 38_000 < sizes[0] < 42_000


def test_integers_of_one_size_stay_in_one_page() -> None:
    random = np.random.default_rng(1)
    assert page_sizes(random.laplace(0, 2, 100_000).round().astype(np.int32)) == [100_000]
    assert page_sizes(np.zeros(1 << 17, np.int16)) == [1 << 17]


@pytest.mark.parametrize("scale", [3.0, 0.7, 0.2])
def test_cut_pages_take_less_than_equal_ones(scale: float) -> None:
    random = np.random.default_rng(2)
    # A few large variances and a long tail, as the profiles of fine-tuned networks have.
    spread = scale * np.exp2(3 - 10 * np.sqrt(np.linspace(0, 1, 120_000)))
    values = (random.laplace(size=len(spread)) * spread).round().astype(np.int16)
    ours = len(encode_integers(values))
    for page in (1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 17):
        assert ours < 0.995 * len(encode_integers(values, page=page))
