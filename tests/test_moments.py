"""Second moments and eigenvectors: their errors, and the randomised range finder beside exact eigenvectors."""

from __future__ import annotations

import pytest
import torch

from uws_store.moments import SideMoment, block_extents, block_moments, eigenvectors, range_finder


def _changes(*shape: int, count: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype) for _ in range(count)]


def _exact(changes: list[torch.Tensor], side: str) -> torch.Tensor:
    rows = [change.to(torch.float64) if side == "left" else change.to(torch.float64).T for change in changes]
    return torch.stack([each @ each.T for each in rows]).sum(0)


def _planted(size: int, values: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix of given leading eigenvalues, zeros below, and its eigenvectors."""
    source = torch.Generator().manual_seed(seed)
    vectors, _ = torch.linalg.qr(torch.randn(size, len(values), generator=source, dtype=torch.float64))
    return (vectors * values) @ vectors.T, vectors


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 2.0**-46), (torch.float32, 2.0**-18)])
def test_moments_of_strips_are_the_whole_product(side: str, dtype: torch.dtype, error: float) -> None:
    changes = _changes(150, 301, count=20, dtype=dtype)
    exact = _exact(changes, side)
    (moment,) = block_moments(changes, size=len(exact), block=len(exact), side=side)
    # How float32 is summed is the CPU's own: 2^-22 with wide vectors, 2^-19.4 and not symmetric without them.
    scale = exact.diag().sqrt()
    for off in (moment - exact, moment - moment.T):
        assert float((off.abs() / (scale[:, None] * scale[None, :])).max()) < error


def test_moments_of_blocks_are_cut_from_the_whole_one() -> None:
    changes = _changes(40, 150, count=3, dtype=torch.float64)
    exact = _exact(changes, "right")
    found = block_moments(changes, size=150, block=64, side="right")
    assert [len(block) for block in found] == [64, 64, 22]
    for index, block in enumerate(found):
        part = slice(64 * index, 64 * index + len(block))
        torch.testing.assert_close(block, exact[part, part])


def test_a_moment_is_moved_to_another_mean() -> None:
    changes = _changes(30, 140, count=6, dtype=torch.float32)
    mean = torch.stack(changes).to(torch.float64).mean(0)
    moment = SideMoment(size=140, block=140, side="right")
    for change in changes:
        moment.add(change)
    first = moment.blocks()[0].clone()
    moment.add(mean, times=-len(changes))
    centred = _exact([change - mean for change in changes], "right")
    assert not torch.allclose(first, centred, atol=1e-3)
    torch.testing.assert_close(moment.blocks()[0], centred, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_range_finder_finds_planted_eigenvectors(decay: float) -> None:
    values = 10.0 * decay ** torch.arange(8, dtype=torch.float64)
    moment, planted = _planted(600, values)
    found = range_finder(lambda block: moment @ block, size=600, rank=8)
    assert found.residual < 1e-9
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(8, dtype=torch.float64))
    # The planted space, whichever basis of it: where eigenvalues are equal there is no other answer.
    torch.testing.assert_close(
        (planted.T @ found.vectors).square().sum(0), torch.ones(8, dtype=torch.float64)
    )


def test_the_range_finder_needs_products_alone_for_a_side_over_4096() -> None:
    source = torch.Generator().manual_seed(1)
    strengths = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5], dtype=torch.float64)
    thin = torch.randn(5000, 5, generator=source, dtype=torch.float64) * strengths
    exact = torch.linalg.eigvalsh(thin.T @ thin).flip(0)
    found = range_finder(lambda block: thin @ (thin.T @ block), size=5000, rank=4, tolerance=1e-8)
    torch.testing.assert_close(found.values, exact[:4])
    assert found.residual <= 1e-8
    assert found.passes < 12


def test_the_residual_tells_when_the_range_finder_did_not_settle() -> None:
    values = torch.linspace(1.0, 0.9, 300, dtype=torch.float64)
    moment, _ = _planted(400, values)
    found = range_finder(lambda block: moment @ block, size=400, rank=4, passes=3)
    assert found.residual > 1e-3
    nearest = (values[:, None] - found.values[None, :]).abs().amin(0)
    assert bool((nearest <= found.residual * found.values[0]).all())


def test_the_range_finder_repeats_itself() -> None:
    moment, _ = _planted(300, torch.linspace(2.0, 1.0, 20, dtype=torch.float64))
    first, second = (range_finder(lambda block: moment @ block, size=300, rank=4, passes=4) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)
    assert first.residual == second.residual


@pytest.mark.parametrize("values", [(9.0, 4.0, 1.0, 0.25), tuple(1.0 - 0.001 * i for i in range(256))])
def test_few_eigenvectors_of_many_are_the_exact_ones(values: tuple[float, ...]) -> None:
    """Of a spectrum that the range finder settles on, and of one so flat that the whole problem is solved."""
    moment, _ = _planted(256, torch.tensor(values, dtype=torch.float64))
    found = eigenvectors(moment, 4)
    exact = torch.linalg.eigh(moment)[1].flip(1)[:, :4]
    torch.testing.assert_close((exact * found).sum(0).abs(), torch.ones(4, dtype=torch.float64))
    peak = found.abs().argmax(0)
    assert bool((found[peak, torch.arange(4)] > 0).all())


def test_eigenvectors_of_nothing_are_orthonormal() -> None:
    found = eigenvectors(torch.zeros(256, 256, dtype=torch.float64), 8)
    torch.testing.assert_close(found.T @ found, torch.eye(8, dtype=torch.float64))


def test_leading_vectors_need_no_whole_matrix_and_more_may_follow() -> None:
    source = torch.Generator().manual_seed(5)
    planted = torch.linalg.qr(torch.randn(400, 6, generator=source, dtype=torch.float64))[0]
    changes = [
        (torch.randn(20, 6, generator=source, dtype=torch.float64) @ planted.T).to(torch.float32)
        for _ in range(4)
    ]
    moment = SideMoment(size=400, block=300, side="right")
    for change in changes[:3]:
        moment.add(change)
    first = [whole.clone() for whole in moment.blocks()]
    assert all(torch.equal(whole, whole.T) for whole in first)
    moment.add(changes[3])
    found = moment.leading(5)
    for vectors, (start, stop) in zip(found, block_extents(400, 300), strict=True):
        rows = torch.cat(changes)[:, start:stop].double()
        whole = eigenvectors(rows.T @ rows, 5)
        assert float((vectors @ vectors.T - whole @ whole.T).abs().max()) < 1e-4
    again = moment.blocks()
    assert [whole.shape for whole in again] == [whole.shape for whole in first]
    assert all(
        bool((later.diagonal() >= before.diagonal()).all())
        for later, before in zip(again, first, strict=True)
    )
