"""Baselines that keep few bits of each change: BitDelta, a ternary switch, DARE.

Owns three methods and their settings; see :mod:`coding`. All of them code the change about the training models' mean,
which is nearer to a model than the base is, and is counted as float16. Nothing is trained: BitDelta's distillation of
its scales and GPU calibration are left out for every method alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from coding import (
    FLOAT16_BYTES,
    Coded,
    Coder,
    Method,
    Training,
    Weights,
    as_matrix,
    packed_bits,
    smallest_stream,
    through_float16,
)
from torch import Tensor

__all__ = ["bitdelta", "code_vectors", "dare", "switch"]

_VECTOR_LEVELS = 127
_DARE_LEVELS = 127

TensorCoder = Callable[[Tensor], tuple[Tensor, int]]
"""From a change to what the decoder makes of it and the bytes that took."""


def bitdelta() -> list[Method]:
    """BitDelta (Liu et al. 2024, arXiv:2402.10193): a sign per weight, the mean magnitude per matrix."""

    def one(change: Tensor) -> tuple[Tensor, int]:
        if len(as_matrix(change)) == 1:
            return code_vectors(change)
        positive = change >= 0
        scale = through_float16(change.abs().mean())
        return torch.where(positive, scale, -scale), len(packed_bits(positive)) + FLOAT16_BYTES

    return [Method("BitDelta", "", "arXiv:2402.10193", _about_mean(one))]


def switch(kept: Sequence[float]) -> list[Method]:
    """T-Switch (Qi et al. 2024, arXiv:2412.00054): signs of the largest changes, one magnitude, the rest dropped.

    The magnitude keeps the change's norm, as in the paper: on the digits this loses half as much accuracy as the mean
    magnitude of what is kept, though its squared error is larger.
    """
    return [
        Method("ternary (T-Switch)", f"keep {share:.0%}", "arXiv:2412.00054", _switch(share))
        for share in kept
    ]


def _switch(share: float) -> Callable[[Training], Coder]:
    def fit(training: Training) -> Coder:
        mean = {name: through_float16(value) for name, value in training.mean.items()}

        def code(weights: Weights) -> Coded:
            restored: dict[str, Tensor] = {}
            trits: list[Tensor] = []
            for name in training.names:
                change = weights[name].to(torch.float32) - mean[name]
                count = max(1, round(share * change.numel()))
                threshold = change.abs().reshape(-1).kthvalue(change.numel() - count + 1).values
                kept = change.abs() >= threshold
                scale = through_float16(change.norm() / kept.sum().sqrt())
                signs = torch.sign(change) * kept
                trits.append(signs)
                restored[name] = mean[name] + signs * scale
            return Coded(restored, len(smallest_stream(trits)) + FLOAT16_BYTES * len(trits))

        return Coder(training.reference_bytes, code)

    return fit


def dare(drops: Sequence[float]) -> list[Method]:
    """DARE (Yu et al. 2024, arXiv:2311.03099): drop changes at random, scale up the rest.

    Favourable to it: which weights are dropped follows from a seed and costs nothing, and the kept changes are rounded
    to 8 bits and entropy coded, where the paper keeps 16.
    """
    return [Method("DARE", f"drop {share:.0%}", "arXiv:2311.03099", _dare(share)) for share in drops]


def _dare(share: float) -> Callable[[Training], Coder]:
    def fit(training: Training) -> Coder:
        mean = {name: through_float16(value) for name, value in training.mean.items()}

        def code(weights: Weights) -> Coded:
            random = torch.Generator().manual_seed(0)
            restored: dict[str, Tensor] = {}
            streams: list[Tensor] = []
            for name in training.names:
                change = weights[name].to(torch.float32) - mean[name]
                kept = torch.rand(change.shape, generator=random) >= share
                scale = _scale(change, _DARE_LEVELS)
                whole = torch.round(change / scale)[kept]
                streams.append(whole)
                restored[name] = mean[name].clone()
                restored[name][kept] += whole * scale / (1 - share)
            return Coded(restored, len(smallest_stream(streams)) + FLOAT16_BYTES * len(streams))

        return Coder(training.reference_bytes, code)

    return fit


def code_vectors(change: Tensor) -> tuple[Tensor, int]:
    """Code a vector's change at 8 bits: methods for matrices have nothing to say about norms and biases."""
    scale = _scale(change, _VECTOR_LEVELS)
    whole = torch.round(change / scale)
    return whole * scale, change.numel() + FLOAT16_BYTES


def _scale(change: Tensor, levels: int) -> Tensor:
    """The float16 that maps the largest change to the highest level."""
    return through_float16(change.abs().max() / levels).clamp(min=2.0**-24)


def _about_mean(one: TensorCoder) -> Callable[[Training], Coder]:
    """Apply a coder of single changes to every tensor."""

    def fit(training: Training) -> Coder:
        mean = {name: through_float16(value) for name, value in training.mean.items()}

        def code(weights: Weights) -> Coded:
            restored: dict[str, Tensor] = {}
            size = 0
            for name in training.names:
                change, taken = one(weights[name].to(torch.float32) - mean[name])
                restored[name] = mean[name] + change
                size += taken
            return Coded(restored, size)

        return Coder(training.reference_bytes, code)

    return fit
