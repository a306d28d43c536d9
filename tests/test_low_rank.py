"""The arithmetic of products: balanced form, scales, gauges and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uws_store.dtypes import DTYPES, dtype_named
from uws_store.low_rank import (
    Gauge,
    LowRankSide,
    apply_gauge,
    apply_scales,
    balanced,
    fit_gauge,
    is_exact_gauge,
    pad,
    product_energy,
    product_error,
    unpad,
)

F64 = dtype_named("F64")
SIDES: tuple[LowRankSide, LowRankSide] = ("left", "right")


def factors(m: int, n: int, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    left = torch.randn(m, rank, generator=source, dtype=torch.float64)
    return left, torch.randn(rank, n, generator=source, dtype=torch.float64)


def restored(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    form = balanced(left, right)
    scales = torch.tensor(form.scales)
    return (
        apply_scales(form.left, scales, F64, side="left"),
        apply_scales(form.right, scales, F64, side="right"),
    )


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 20), n=st.integers(1, 20), rank=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_balanced_form_has_the_same_product_and_orthogonal_slices(
    m: int, n: int, rank: int, seed: int
) -> None:
    left, right = factors(m, n, rank, seed)
    b, a = restored(left, right)
    torch.testing.assert_close(b @ a, left @ right)
    for gram in (b.T @ b, a @ a.T):
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-9, rtol=0)
    torch.testing.assert_close((b.T @ b).diagonal(), (a @ a.T).diagonal())


def test_the_balanced_form_does_not_depend_on_the_gauge() -> None:
    left, right = factors(14, 11, 4, 0)
    gauge = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = balanced(left, right), balanced(left @ gauge, torch.linalg.solve(gauge, right))
    torch.testing.assert_close(first.left, second.left)
    torch.testing.assert_close(first.right, second.right)
    assert first.scales == second.scales


def test_equal_errors_in_coded_slices_are_about_equal_errors_in_the_product() -> None:
    """Each slice's singular value differs by four octaves from the next; the products' errors by less than one."""
    left, right = (torch.linalg.qr(part)[0] for part in factors(30, 30, 4, 2))
    form = balanced(left[:, :4] * torch.tensor([256.0, 16.0, 1.0, 1 / 16]), right[:4])
    errors = []
    for index in range(4):
        noisy = form.left.clone()
        noisy[:, index] += 1e-3
        parts = [
            apply_scales(part, torch.tensor(form.scales), F64, side="left") for part in (form.left, noisy)
        ]
        a = apply_scales(form.right, torch.tensor(form.scales), F64, side="right")
        errors.append(float(((parts[0] - parts[1]) @ a).norm()))
    assert max(errors) / min(errors) < 2.1


@pytest.mark.parametrize("side", SIDES)
def test_a_product_of_zero_stays_zero(side: LowRankSide) -> None:
    left, right = factors(6, 5, 3, 4)
    form = balanced(left * 0, right) if side == "left" else balanced(left, right * 0)
    assert not form.left.any()
    assert not form.right.any()
    assert form.scales == (0, 0, 0)


def test_more_slices_than_rows_are_padded_with_zeros() -> None:
    left, right = factors(3, 40, 7, 5)
    form = balanced(left, right)
    assert form.left.shape == (3, 7)
    assert not form.left[:, 3:].any()
    b, a = restored(left, right)
    torch.testing.assert_close(b @ a, left @ right)


@pytest.mark.parametrize("side", SIDES)
def test_padding_is_undone(side: LowRankSide) -> None:
    values = factors(6, 6, 4, 6)[0 if side == "left" else 1]
    padded = pad(values, 9, side=side)
    assert padded.shape == ((6, 9) if side == "left" else (9, 6))
    assert torch.equal(unpad(padded, 4, side=side), values)
    assert float(padded.abs().sum()) == float(values.abs().sum())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_the_gauge_leads_back_to_the_source(side: LowRankSide, dtype: str) -> None:
    kind = DTYPES[dtype]
    left, right = factors(40, 30, 5, 7)
    source = (left if side == "left" else right).to(kind.torch)
    form = balanced(left, right)
    scales = torch.tensor(form.scales)
    compact = apply_scales(form.left if side == "left" else form.right, scales, kind, side=side)
    gauge = fit_gauge(source, compact, scales, side=side)
    assert is_exact_gauge(compact, scales, gauge, side=side)
    found = apply_gauge(compact, scales, gauge, kind, side=side)
    assert found.dtype == source.dtype
    error = (found.to(torch.float64) - source.to(torch.float64)).norm() / source.to(torch.float64).norm()
    assert float(error) < (2e-3 if dtype == "F32" else 1e-2)


def test_a_gauge_gives_the_same_bits_in_any_order_of_its_slices() -> None:
    left, right = factors(50, 40, 8, 8)
    form = balanced(left, right)
    scales = torch.tensor(form.scales)
    compact = apply_scales(form.right, scales, dtype_named("F32"), side="right")
    gauge = fit_gauge(right, compact, scales, side="right")
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    turned = Gauge(gauge.factor_grid, gauge.grid, gauge.integers[:, order])
    first = apply_gauge(compact, scales, gauge, dtype_named("F32"), side="right")
    second = apply_gauge(compact[order], scales[order], turned, dtype_named("F32"), side="right")
    assert torch.equal(first.view(torch.int32), second.view(torch.int32))


def test_zeros_behind_a_gauge_are_the_positive_zero() -> None:
    gauge = Gauge(0, 0, torch.tensor([[-3]], dtype=torch.int32))
    found = apply_gauge(torch.zeros(4, 1), None, gauge, dtype_named("F32"), side="left")
    assert not found.view(torch.int32).any()


def test_sums_of_a_gauge_that_could_round_are_noticed() -> None:
    factor = torch.ones(3, 2)
    fine = Gauge(40, 0, torch.tensor([[4096, 0], [0, 1]], dtype=torch.int32))
    assert is_exact_gauge(factor, None, fine, side="left")
    assert not is_exact_gauge(factor, None, Gauge(41, 0, fine.integers), side="left")
    assert not is_exact_gauge(factor, None, Gauge(54, 0, fine.integers * 0), side="left")


def test_errors_of_products_are_those_of_the_whole_matrices() -> None:
    left, right = factors(20, 15, 3, 9)
    other_left, other_right = factors(20, 15, 2, 10)
    error = product_error(left, right, other_left, other_right)
    assert error == pytest.approx(float((left @ right - other_left @ other_right).square().sum()))
    assert product_energy(left, right) == pytest.approx(float((left @ right).square().sum()))
    # Where products are nearly equal a difference of energies would be noise.
    near = product_error(left, right, left * (1 + 1e-9), right)
    assert near == pytest.approx(1e-18 * product_energy(left, right), rel=1e-3)
