"""Encoding in whole numbers: the same coefficients in bytes, in float64 and in tiles, near those of real products."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uws_store.basis import PanelTensor, StoredTensor, TensorBasis, digits
from uws_store.basis.digits import byte_products_are_exact
from uws_store.builder import whole_analysis
from uws_store.builder.coded import TensorCoder
from uws_store.builder.transform import Analysis
from uws_store.builder.whole_analysis import WholeAnalysis
from uws_store.canonical import Step
from uws_store.dtypes import DTYPES
from uws_store.errors import InvalidInputError
from uws_store.metadata.basis import SideRecord, TensorRecord
from uws_store.moments import block_extents
from uws_store.quantize import preserving_offset, quantise, quantised_integers
from uws_store.subspace import QuantisedSide, analysis_matrix, quantise_side, side_from_integers
from uws_store.tensor_bytes import bytes_of

needs_bytes = pytest.mark.skipif(
    not byte_products_are_exact(), reason="this CPU's byte products saturate or are missing"
)
SIDES = [None, (80, 80), (80, 40), (32, 32)]


def _side(rng: np.random.Generator, size: int, shape: tuple[int, int] | None) -> QuantisedSide | None:
    """A factor as the builder makes one: blocks of orthonormal columns, quantised."""
    if shape is None:
        return None
    block, rank = shape
    blocks = [
        torch.from_numpy(np.linalg.qr(rng.normal(size=(stop - start, stop - start)))[0][:, :rank].copy())
        for start, stop in block_extents(size, block)
    ]
    return quantise_side(blocks, size=size, block=block, rank=rank)


def _tensor(
    rng: np.random.Generator,
    left: tuple[int, int] | None,
    right: tuple[int, int] | None,
    matrix: tuple[int, int] = (80, 80),
) -> StoredTensor:
    m, n = matrix
    record = TensorRecord(
        name="w",
        shape=(m, n),
        dtype="F32",
        mode="coded",
        left=SideRecord(block=left[0], rank=left[1]) if left else None,
        right=SideRecord(block=right[0], rank=right[1]) if right else None,
        mean_grid=12,
        shift=1,
        group=0,
    )
    mean = torch.from_numpy(rng.integers(-400, 401, (m, n)).astype(np.int16))
    return StoredTensor(record, mean, _side(rng, m, left), _side(rng, n, right))


def _change(rng: np.random.Generator, tensor: StoredTensor) -> torch.Tensor:
    scales = np.exp2(-np.linspace(0, 4, tensor.record.matrix[1]))
    return torch.from_numpy(rng.normal(size=tensor.record.matrix) * scales * 0.01)


def _source(tensor: StoredTensor, change: torch.Tensor) -> torch.Tensor:
    return TensorBasis.of(tensor).mean() + change


@pytest.mark.parametrize("left", SIDES)
@pytest.mark.parametrize("right", SIDES)
@pytest.mark.parametrize("step", [0.02, 0.0005])
def test_coefficients_are_the_same_in_bytes_in_float64_and_in_tiles_and_near_real_ones(
    monkeypatch: pytest.MonkeyPatch, left: tuple[int, int] | None, right: tuple[int, int] | None, step: float
) -> None:
    rng = np.random.default_rng(5)
    tensor = _tensor(rng, left, right)
    source = _source(tensor, _change(rng, tensor))
    # The mean is on a grid and the change is not: float64 holds their sum to far less than a unit.
    change = source - TensorBasis.of(tensor).mean()
    found = WholeAnalysis(tensor).coefficients(source, step)
    assert found is not None
    analysis = Analysis.of(tensor)
    assert torch.equal(analysis.coefficients(change, step), found)
    assert torch.equal(analysis.coefficients_by_tiles(change, step), found)
    monkeypatch.setattr(whole_analysis, "PANEL", 37 * 80)
    in_panels = WholeAnalysis(tensor).coefficients(source, step)
    monkeypatch.setattr(whole_analysis, "byte_products_are_exact", lambda: False)
    in_float64 = WholeAnalysis(tensor).coefficients(source, step)
    assert in_panels is not None
    assert in_float64 is not None
    assert torch.equal(in_panels, found)
    assert torch.equal(in_float64, found)
    real = analysis.coefficients(change)
    assert real.dtype == torch.float64
    assert float((found - real).square().mean().sqrt()) < 0.03 * step


def test_left_inverses_undo_factors() -> None:
    rng = np.random.default_rng(0)
    side = _side(rng, 40, (40, 20))
    assert side is not None
    (inverse,) = analysis_matrix(side_from_integers(side))
    factor = side_from_integers(side).integers[0] * math.ldexp(1.0, -side_from_integers(side).grid)
    torch.testing.assert_close(inverse @ factor, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [1e3, math.nan, math.inf])
def test_a_change_too_large_for_whole_numbers_is_left_to_float64(value: float) -> None:
    rng = np.random.default_rng(1)
    tensor = _tensor(rng, None, (80, 80))
    source = _source(tensor, _change(rng, tensor))
    source[3, 4] = value
    assert WholeAnalysis(tensor).coefficients(source, 0.02) is None
    assert WholeAnalysis(tensor).coefficients(source, 2.0**-120) is None


def test_a_first_product_too_large_for_whole_numbers_is_left_to_float64() -> None:
    rng = np.random.default_rng(1)
    tensor = _tensor(rng, (80, 80), (80, 80))
    assert tensor.right is not None
    # All of the change lies along one column of the factor: what is small in each place is large in sum.
    column = tensor.right.integers.reshape(80, 80)[:, 0].to(torch.float64)
    change = 6.0 * torch.ones(80, 1, dtype=torch.float64) * column / column.abs().max()
    source = _source(tensor, change)
    assert WholeAnalysis(tensor).coefficients(source, 0.02) is None
    real = Analysis.of(tensor).coefficients(change)
    assert torch.equal(Analysis.of(tensor).coefficients(change, 0.02), real)


@needs_bytes
def test_byte_products_that_are_wrong_are_found_and_float64_takes_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = digits.byte_product

    def off_by_one(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return whole(first, second).add_(1)

    monkeypatch.setattr(digits, "byte_product", off_by_one)
    rng = np.random.default_rng(3)
    step = Step(200, -14)
    for left, right in [((80, 80), (80, 80)), ((32, 32), (32, 32)), (None, (80, 80)), ((80, 80), None)]:
        tensor = _tensor(rng, left, right)
        core = torch.from_numpy(rng.integers(-9, 10, (80, 80)).astype(np.int16))
        expected = TensorBasis.of(tensor).predict(core.double(), step=step, dtype=DTYPES["F32"])
        coder = TensorCoder(tensor)
        for _ in range(2):
            assert bytes_of(coder.predict(core, step=step, dtype=DTYPES["F32"])) == bytes_of(expected)


@pytest.mark.parametrize("left", SIDES)
@pytest.mark.parametrize("right", SIDES)
def test_panels_give_the_canonical_bits(
    monkeypatch: pytest.MonkeyPatch, left: tuple[int, int] | None, right: tuple[int, int] | None
) -> None:
    monkeypatch.setattr("uws_store.basis.panels._ELEMENTS", 80 * 70)
    rng = np.random.default_rng(7)
    tensor = _tensor(rng, left, right, (96, 112))
    p, q = (
        len(side.exponents) if side else extent for side, extent in ((tensor.left, 96), (tensor.right, 112))
    )
    core = torch.from_numpy(rng.integers(-300, 301, (p, q)).astype(np.int16))
    step = Step(200, -14)
    basis = TensorBasis.of(tensor)
    for name in ("F32", "BF16", "F64"):
        panels = PanelTensor(tensor, "canonical")
        expected = basis.predict(core.double(), step=step, dtype=DTYPES[name])
        assert bytes_of(panels.predict(core, step=step, dtype=DTYPES[name])) == bytes_of(expected)
        assert panels.confirms(expected, core, step=step, dtype=DTYPES[name])
        assert not panels.confirms(expected + 1, core, step=step, dtype=DTYPES[name])
        mean = basis.predict(None, step=step, dtype=DTYPES[name])
        assert bytes_of(panels.predict(None, step=step, dtype=DTYPES[name])) == bytes_of(mean)
    fast = PanelTensor(tensor, "fast").predict(core, step=step, dtype=DTYPES["F32"]).double()
    exact = basis.predict(core.double(), step=step, dtype=DTYPES["F32"]).double()
    assert float((fast - exact).abs().max()) <= basis.fast_bound(
        core.double(), step=step, dtype=DTYPES["F32"]
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.3, 5.0, 40_000.0]),
    rounding=st.sampled_from(["length", "error"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_integers_in_parts_are_those_of_the_whole(
    seed: int, scale: float, rounding: str, dtype: torch.dtype
) -> None:
    source = torch.Generator().manual_seed(seed)
    values = (torch.randn(37, 19, generator=source, dtype=torch.float64) * scale).to(dtype)
    whole = quantise(values, 0.7, rounding=rounding)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uws_store.quantize._PART", 100)
        found = quantised_integers(values, 0.7, rounding=rounding)  # type: ignore[arg-type]
        assert abs(preserving_offset(values, 0.7) - preserving_offset(values.flip(0), 0.7)) <= 1 / 256
    assert torch.equal(found.to(dtype), whole)
    assert found.dtype == (torch.int32 if scale > 1000 else torch.int16)


def test_coefficients_beyond_32_bits_are_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        quantised_integers(torch.tensor([1.0, 1e30]), 1e-3)
    assert caught.value.kind == "invalid-input/range"
