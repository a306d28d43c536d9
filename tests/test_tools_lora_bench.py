"""The adapter bench's baselines on data whose answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

from lora_coders import Adapter, AdapterMethod, baselines  # noqa: E402


def adapter(seed: int, rank: int = 4) -> Adapter:
    """A product within shared subspaces of 6 dimensions, of 20 x 16."""
    shared = torch.Generator().manual_seed(0)
    left = torch.randn(20, 6, generator=shared)
    right = torch.randn(6, 16, generator=shared)
    own = torch.Generator().manual_seed(seed)
    return {
        "q": (left @ torch.randn(6, rank, generator=own), torch.randn(rank, 6, generator=own) @ right),
    }


@pytest.fixture(scope="module")
def methods() -> dict[str, AdapterMethod]:
    fitted = baselines([adapter(seed, 4 if seed % 2 else 8) for seed in range(12)])
    return {f"{method.name}, {method.setting}": method for method in fitted}


def error(method: AdapterMethod, of: Adapter) -> float:
    b, a = of["q"]
    found, _ = method.code(of)
    return float((found["q"] - b @ a).norm() / (b @ a).norm())


def test_joint_diagonalisation_finds_the_shared_subspaces(methods: dict[str, AdapterMethod]) -> None:
    held = adapter(99)
    assert error(methods["joint diagonalisation, full, rank 8"], held) < 0.01
    assert error(methods["joint diagonalisation, full, rank 4"], held) > 0.05
    assert methods["joint diagonalisation, full, rank 8"].code(held)[1] == 2 * 8 * 8
    assert methods["joint diagonalisation, full, rank 8"].shared_bytes == 2 * (20 + 16) * 8


def test_rounding_gets_finer_with_bits_and_counts_them(methods: dict[str, AdapterMethod]) -> None:
    held = adapter(99)
    errors = [error(methods[f"round to nearest, {bits} bit"], held) for bits in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    assert methods["round to nearest, 4 bit"].code(held)[1] == 4 * 4 * 36 // 8 + 4 * 8


def test_directions_over_adapters_hold_what_they_were_made_of_and_no_other(
    methods: dict[str, AdapterMethod],
) -> None:
    method = methods["PCA over adapters, 16 directions"]
    assert error(method, adapter(3)) < 0.02
    assert error(method, adapter(99)) > 0.5


def test_zstd_loses_nothing(methods: dict[str, AdapterMethod]) -> None:
    held = adapter(99)
    assert error(methods["zstd 19, float32, lossless"], held) == 0
    assert methods["zstd 19, float32, lossless"].code(held)[1] > 4 * 4 * 36 // 2
