"""Very low rates: changes keep most of their length, and what drops nearly everything is no coder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uws_store.entropy import decode_integers, encode_integers
from uws_store.pages import page_sizes
from uws_store.plan import Candidate, choose_sides, is_table, mean_grid, step_shift
from uws_store.plan.measure import HeldOut
from uws_store.quantize import quantise


def _heavy(models: int, size: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    spread = torch.exp2(-5.0 * torch.linspace(0, 1, size, dtype=torch.float64).sqrt())
    sides = [torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64)).Q for _ in "lr"]
    return [
        sides[0]
        @ (torch.randn(size, size, generator=source, dtype=torch.float64) * spread[:, None] * spread)
        @ sides[1].T
        for _ in range(models)
    ]


def test_a_step_that_drops_nearly_everything_does_not_speak_for_a_coder() -> None:
    values = _heavy(12, 96)
    mean = torch.stack(values).mean(0)
    changes = [value - mean for value in values]
    step = 14 * float(torch.stack(changes).square().mean().sqrt())
    measured = HeldOut(changes, mean=mean, step=step).measure(Candidate())
    assert measured.equal_bits > 2 * measured.bits, "at the step where most of the length is kept"
    by_error = HeldOut(changes, mean=mean, step=step, rounding="error").measure(Candidate())
    assert by_error.equal_bits == by_error.bits
    choice = choose_sides(changes, step=step, models=1000, mean=mean)
    assert choice.candidate.left or choice.candidate.right


@pytest.mark.parametrize("ratio", [3.0, 6.0, 12.0])
def test_coarse_steps_keep_most_of_a_change_and_fine_ones_all(ratio: float) -> None:
    values = torch.cat([value.reshape(-1) for value in _heavy(1, 96)])
    spread = values * torch.linspace(0, 1, len(values), dtype=torch.float64) ** 4
    for step, least, most in ((0.5, 0.98, 1.02), (ratio, 0.65, 1.02)):
        step *= float(spread.square().mean().sqrt())  # noqa: PLW2901 - in units of the change
        kept = quantise(spread, step) * step
        assert least < float((kept * spread).sum() / spread.square().sum()) < most


def test_steps_of_embeddings_are_an_octave_coarser() -> None:
    def shift(*, table: bool) -> int:
        return step_shift(own_energy=1.0, own_parameters=10**6, energy=2.0, parameters=2 * 10**6, table=table)

    assert is_table(30_522, 384)
    assert not is_table(1536, 384)
    assert shift(table=False) == 0
    assert shift(table=True) == -1


def test_the_mean_of_a_coarse_family_is_rounded_to_an_eighth_of_the_step() -> None:
    assert 2.0 ** -mean_grid(step=16.0, change_rms=1.0) == 2.0
    assert 2.0 ** -mean_grid(step=4.0, change_rms=1.0) == 0.5


def test_pages_are_no_longer_than_the_coder_takes() -> None:
    values = np.zeros((1 << 24) + (1 << 20), np.int16)
    assert max(page_sizes(values)) <= 1 << 24
    assert np.array_equal(decode_integers(encode_integers(values), dtype=np.int16, count=len(values)), values)
