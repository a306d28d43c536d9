"""The planner: what each kind of zoo gets, and that nothing is stored that does not pay."""

from __future__ import annotations

import math

import pytest
import torch

from uws_store.plan import Candidate, SideChoice, choose_sides, decode_budget, fit_side, mean_grid
from uws_store.plan.candidates import side_options
from uws_store.plan.measure import HeldOut


def _source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(source: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def _centred(values: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    mean = torch.stack(values).mean(0)
    return [value - mean for value in values], mean


def _subspace_zoo(models: int = 12, size: int = 48) -> list[torch.Tensor]:
    source = _source()
    left, right, base = _normal(source, size, 3), _normal(source, 3, size), _normal(source, size, size)
    return [
        base + left @ torch.diag(_normal(source, 3)) @ right + 0.02 * _normal(source, size, size)
        for _ in range(models)
    ]


def test_a_shared_subspace_gets_factors_and_says_why() -> None:
    changes, mean = _centred(_subspace_zoo())
    choice = choose_sides(changes, step=0.05, models=1000, mean=mean)
    assert choice.candidate.left or choice.candidate.right
    assert choice.candidate.centred
    assert choice.bits_per_model < 0.8 * choice.plain_bits_per_model
    assert "save" in choice.reason
    assert choice.flops_per_weight > 0


def test_independent_models_get_no_basis_at_all() -> None:
    source = _source(1)
    changes, mean = _centred([_normal(source, 40, 40) for _ in range(24)])
    choice = choose_sides(changes, step=0.05, models=24, mean=mean)
    assert choice.candidate.left is None
    assert choice.candidate.right is None
    assert not choice.candidate.centred, "a mean of independent models costs a model and explains none"
    assert choice.basis_bits <= 6.0 * 80
    assert choice.bits_per_model <= 1.001 * choice.plain_bits_per_model
    assert "mean costs" in choice.reason


def test_a_shared_mean_is_kept_though_no_subspace_is() -> None:
    source = _source(2)
    base = 10 * _normal(source, 40, 40)
    changes, mean = _centred([base + 0.1 * _normal(source, 40, 40) for _ in range(16)])
    choice = choose_sides(changes, step=0.1, models=100, mean=mean)
    assert choice.candidate.centred
    assert choice.candidate.left is None
    assert choice.candidate.right is None


def test_weights_on_a_lattice_of_their_own_stay_as_they_are() -> None:
    # Rounded to 16 levels: every transform smears them, and a Laplace bound does not see the lattice.
    source = _source(3)
    changes, mean = _centred([torch.round(_normal(source, 64, 64) * 2) / 2 for _ in range(12)])
    choice = choose_sides(changes, step=0.05, models=10_000, mean=mean)
    assert str(choice.candidate) == "plain"
    assert choice.bits_per_model < 3.2 * 64 * 64


def test_a_zoo_that_mixes_two_bases_is_told_by_its_factors() -> None:
    # Two clusters far apart: the mean lies between them, and the way from one to the other is a shared direction.
    source = _source(4)
    bases = [_normal(source, 48, 48) for _ in range(2)]
    values = [bases[index % 2] + 0.02 * _normal(source, 48, 48) for index in range(24)]
    changes, mean = _centred(values)
    choice = choose_sides(changes, step=0.02, models=24, mean=mean)
    assert choice.bits_per_model <= choice.plain_bits_per_model


@pytest.mark.parametrize("models", [2, 3])
def test_too_few_models_get_the_mean_and_a_reason(models: int) -> None:
    changes, mean = _centred([_normal(_source(index), 16, 16) for index in range(models)])
    choice = choose_sides(changes, step=0.1, models=100, mean=mean)
    assert choice.candidate == Candidate()
    assert "too few" in choice.reason


def test_constant_tensors_cost_nothing() -> None:
    choice = choose_sides([torch.zeros(8, 8, dtype=torch.float64)] * 6, step=0.1, models=6)
    assert choice.bits_per_model == 0.0
    assert choice.candidate == Candidate()


def test_decoding_takes_no_more_than_allowed() -> None:
    changes, mean = _centred(_subspace_zoo(size=160))
    free = choose_sides(changes, step=0.05, models=10_000, mean=mean)
    capped = choose_sides(changes, step=0.05, models=10_000, mean=mean, max_flops_per_weight=140)
    none = choose_sides(changes, step=0.05, models=10_000, mean=mean, max_flops_per_weight=1)
    assert capped.flops_per_weight <= 140 < free.flops_per_weight or free.flops_per_weight <= 140
    assert capped.flops_per_weight > 0
    assert none.flops_per_weight == 0


def test_flops_are_those_of_the_two_products() -> None:
    full = Candidate(left=SideChoice(96, 96), right=SideChoice(64, 64))
    assert full.flops_per_weight(96, 64) == 2 * 64 + 2 * 96
    # A truncated left side has fewer rows for the first product too.
    half = Candidate(left=SideChoice(96, 48), right=SideChoice(64, 64))
    assert half.flops_per_weight(96, 64) == 64 + 2 * 48
    assert Candidate().flops_per_weight(96, 64) == 0


def test_the_default_budget_decodes_a_vision_transformer_in_about_a_second() -> None:
    assert decode_budget(86_000_000) * 86e6 <= 7e10
    assert decode_budget(135_000) > 2 * 2 * 1024, "small models may have any factor"
    assert decode_budget(10**10) == 512


def test_blocks_of_a_convolution_hold_whole_kernels() -> None:
    options = list(side_options(256 * 9, unit=9))
    assert options
    assert all(side.block % 9 == 0 for side in options)
    assert [side.block for side in side_options(300)] == [300, 64, 256][: len(list(side_options(300)))]


def test_truncation_drops_only_what_is_coded_as_zeros() -> None:
    changes, mean = _centred(_subspace_zoo(models=16))
    whole = choose_sides(changes, step=0.3, models=16, mean=mean)
    cut = choose_sides(changes, step=0.3, models=16, mean=mean, truncate=True)
    ranks = [side.rank < side.block for side in (cut.candidate.left, cut.candidate.right) if side]
    assert any(ranks)
    assert cut.basis_bits < whole.basis_bits
    assert cut.distortion <= whole.distortion + 0.041


def test_a_small_zoo_is_measured_on_every_model() -> None:
    # One model of eight is ten times the others: a single split would see it or not, by chance.
    source = _source(5)
    values = [_normal(source, 24, 24) * (10 if index == 3 else 1) for index in range(8)]
    changes, mean = _centred(values)
    seeds = [
        HeldOut(changes, mean=mean, step=0.1, seed=seed).measure(Candidate(centred=False, ordered=False)).bits
        for seed in range(3)
    ]
    assert max(seeds) < 1.02 * min(seeds)


def test_measured_bits_are_those_of_models_outside_the_fit() -> None:
    changes, mean = _centred(_subspace_zoo(models=30, size=64))
    step = 0.05
    found = HeldOut(changes, mean=mean, step=step).measure(Candidate(right=SideChoice(64, 64)))
    stored = fit_side(changes, SideChoice(64, 64), side="right")
    assert stored is not None
    assert stored.size == 64
    assert 0.0 < found.bits < 64 * 64 * 4
    assert 0.02 < found.distortion < 0.5
    assert 64 * 64 * 3 < found.side_bits < 64 * 64 * 7.5


@pytest.mark.parametrize(("step", "rms"), [(0.5, 2.0), (4.0, 1.0), (1e-6, 1.0)])
def test_the_mean_is_rounded_finer_than_step_and_change(step: float, rms: float) -> None:
    grid = math.ldexp(1.0, -mean_grid(step=step, change_rms=rms))
    assert min(step, rms) / 4 < grid <= min(step, rms) / 2


def test_who_asks_for_an_error_gets_fewer_bits_at_that_error() -> None:
    source = _source(6)
    # The product of two Gaussians has about the tail of a Laplace variable.
    changes, mean = _centred([_normal(source, 64, 64) * _normal(source, 64, 64) for _ in range(16)])
    length = HeldOut(changes, mean=mean, step=2.4).measure(Candidate(ordered=False))
    error = HeldOut(changes, mean=mean, step=2.0, rounding="error").measure(Candidate(ordered=False))
    assert error.distortion * 2.0**2 < length.distortion * 2.4**2
    assert error.bits < length.bits
