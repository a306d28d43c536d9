"""Baselines that keep few directions of each change: Delta-CoMe, TSV-C, directions along the model axis.

Owns three methods and their settings; see :mod:`coding`. Changes are about the training models' mean, counted as
float16; vectors are coded at 8 bits where a method only speaks of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from coding import FLOAT16_BYTES, Coded, Coder, Method, Training, Weights, as_matrix, through_float16
from sign_coders import code_vectors
from torch import Tensor

__all__ = ["delta_come", "model_axis", "task_singular_vectors"]

_FINE_SHARE = 2 / 2048
_MIDDLE_SHARE = 32 / 2048
_NO_VARIANCE = 1e-9
# Steps, in standard deviations, that are best for a normal distribution at 4 and 8 uniform levels (Max 1960).
_NORMAL_STEPS = {2: 0.9957, 3: 0.5860}


def delta_come(budgets: Sequence[float]) -> list[Method]:
    """Delta-CoMe (Ping et al. 2024, arXiv:2406.08903): singular vectors at 8, 3 and 2 bits by falling value.

    The first thousandth of the ranks gets 8 bits and the next sixtieth 3, as in the paper (2 and 32 of 2,048), the
    rest 2 bits until the budget is spent. Vectors are rounded with the step that is best for a normal distribution,
    where the paper calibrates with GPTQ.
    """
    return [
        Method("Delta-CoMe", f"{bits:g} bit budget", "arXiv:2406.08903", _matrices(_mixed_precision(bits)))
        for bits in budgets
    ]


def task_singular_vectors(shares: Sequence[float]) -> list[Method]:
    """TSV-Compress (Gargiulo et al. 2025, arXiv:2412.00081): the leading share of singular triplets, in float16."""
    return [
        Method("TSV-C", f"rank {share:.3g} of full", "arXiv:2412.00081", _matrices(_leading(share)))
        for share in shares
    ]


def model_axis(directions: int) -> list[Method]:
    """Project onto principal directions along the model axis, per tensor (arXiv:2512.05117), float16 throughout."""

    def fit(training: Training) -> Coder:
        mean = {name: through_float16(value) for name, value in training.mean.items()}
        bases: dict[str, Tensor] = {}
        shared = training.reference_bytes
        for name in training.names:
            changes = (training.stack(name) - mean[name]).reshape(len(training.members), -1)
            # The small side's eigenvectors: n models against any number of weights.
            values, vectors = torch.linalg.eigh((changes @ changes.T).to(torch.float64))
            # A tensor of few elements, or one that is alike in all models, has fewer directions than asked for.
            count = min(directions, int((values > _NO_VARIANCE * values[-1]).sum()))
            leading = vectors.flip(1)[:, :count].to(torch.float32)
            scale = values.flip(0)[:count].sqrt().to(torch.float32)
            bases[name] = through_float16((leading.T @ changes) / scale[:, None])
            shared += FLOAT16_BYTES * bases[name].numel()

        def code(weights: Weights) -> Coded:
            restored: dict[str, Tensor] = {}
            size = 0
            for name, basis in bases.items():
                change = (weights[name].to(torch.float32) - mean[name]).reshape(-1)
                coefficients = through_float16(basis @ change)
                size += FLOAT16_BYTES * len(coefficients)
                restored[name] = mean[name] + (coefficients @ basis).reshape(mean[name].shape)
            return Coded(restored, size)

        return Coder(shared, code)

    return [Method("model-axis PCA", f"{directions} directions", "arXiv:2512.05117", fit)]


def _matrices(one: Callable[[Tensor], tuple[Tensor, int]]) -> Callable[[Training], Coder]:
    def fit(training: Training) -> Coder:
        mean = {name: through_float16(value) for name, value in training.mean.items()}

        def code(weights: Weights) -> Coded:
            restored: dict[str, Tensor] = {}
            size = 0
            for name in training.names:
                change = as_matrix(weights[name].to(torch.float32) - mean[name])
                found, taken = one(change) if len(change) > 1 else code_vectors(change)
                restored[name] = mean[name] + found.reshape(mean[name].shape)
                size += taken
            return Coded(restored, size)

        return Coder(training.reference_bytes, code)

    return fit


def _leading(share: float) -> Callable[[Tensor], tuple[Tensor, int]]:
    def one(change: Tensor) -> tuple[Tensor, int]:
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        rank = max(1, round(share * len(values)))
        scaled = through_float16(left[:, :rank] * values[:rank])
        size = FLOAT16_BYTES * rank * sum(change.shape)
        return scaled @ through_float16(right[:rank]), size

    return one


def _mixed_precision(budget_bits: float) -> Callable[[Tensor], tuple[Tensor, int]]:
    def one(change: Tensor) -> tuple[Tensor, int]:
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        rows, columns = change.shape
        fine = max(1, round(_FINE_SHARE * len(values)))
        middle = max(1, round(_MIDDLE_SHARE * len(values)))
        left_bits = budget_bits * rows * columns
        restored = torch.zeros_like(change)
        size_bits = 0
        for index, value in enumerate(values):
            bits = 8 if index < fine else 3 if index < fine + middle else 2
            taken = bits * (rows + columns) + 2 * 8 * FLOAT16_BYTES
            if index and size_bits + taken > left_bits:
                break
            root = value.sqrt()
            restored += torch.outer(
                _rounded(left[:, index] * root, bits), _rounded(right[index] * root, bits)
            )
            size_bits += taken
        return restored, -(-size_bits // 8)

    return one


def _rounded(vector: Tensor, bits: int) -> Tensor:
    """Round a vector to ``2**bits`` uniform levels without a zero (8 bits: with one), one float16 scale."""
    if bits == 8:
        scale = through_float16(vector.abs().max() / 127).clamp(min=2.0**-24)
        return torch.round(vector / scale) * scale
    step = through_float16(vector.square().mean().sqrt() * _NORMAL_STEPS[bits]).clamp(min=2.0**-24)
    half = 2 ** (bits - 1)
    levels = torch.floor(vector / step).clamp(-half, half - 1)
    return (levels + 0.5) * step
