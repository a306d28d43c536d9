"""Baselines without structure: rounding the weights, entropy-coded rounding about the mean, the mean alone.

Owns three methods and their settings; see :mod:`coding` for what a method is.
"""

from __future__ import annotations

import math
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
    smallest_stream,
    through_float16,
)
from torch import Tensor

from uws_store.quantize import quantise

__all__ = ["CONTROL", "mean_only", "plain_coder", "rounding"]

CONTROL = "plain, our rounding"
"""No baseline that anyone published, but the store without its factors."""

_VECTOR_BITS = 8
_MEAN_FRACTION = 0.5


def rounding(bits: Sequence[int]) -> list[Method]:
    """Round to nearest: uniform levels between a row's smallest and largest weight, two float16 per row."""
    return [
        Method("round to nearest", f"{count} bit", "uniform, per row, no calibration", _rounding(count))
        for count in bits
    ]


def _rounding(bits: int) -> Callable[[Training], Coder]:
    def fit(training: Training) -> Coder:
        def code(weights: Weights) -> Coded:
            restored: dict[str, Tensor] = {}
            size_bits = 0
            for name in training.names:
                matrix = as_matrix(weights[name].to(torch.float32))
                # Norms and biases are next to nothing and matter: nobody rounds them to two bits.
                used = max(bits, _VECTOR_BITS) if len(matrix) == 1 else bits
                low = through_float16(matrix.amin(1, keepdim=True))
                step = through_float16((matrix.amax(1, keepdim=True) - low) / (2**used - 1))
                step = step.clamp(min=torch.finfo(torch.float16).smallest_normal)
                levels = torch.round((matrix - low) / step).clamp(0, 2**used - 1)
                restored[name] = (low + levels * step).reshape(weights[name].shape)
                size_bits += used * matrix.numel() + 2 * 8 * FLOAT16_BYTES * len(matrix)
            return Coded(restored, math.ceil(size_bits / 8))

        return Coder(0, code)

    return fit


def plain_coder(steps: Sequence[float]) -> list[Method]:
    """Uniform quantisation of the change about the mean, entropy coded; no factors, no transform.

    Twice: rounded to nearest, and with the dead zone of image coders, which has the smaller squared error per bit. A
    third time as a control with the store's own rounding, so that what the factors and the order by significance are
    worth stands apart from what the rounding is worth. The mean has the store's precision, and each tensor's step is
    in proportion to its change.
    """
    return [
        Method(name, f"step {step:g} rms", "uniform quantiser about the mean", _plain(step, offset))
        for name, offset in (("plain coder", 0.5), ("plain, dead zone", 0.4), (CONTROL, None))
        for step in steps
    ]


def _plain(relative_step: float, offset: float | None) -> Callable[[Training], Coder]:
    def fit(training: Training) -> Coder:
        steps = {name: relative_step * rms for name, rms in training.change_rms.items() if rms > 0}
        mean: dict[str, Tensor] = {}
        integers: list[Tensor] = []
        constant = 0
        for name in training.names:
            if name in steps:
                grid = _MEAN_FRACTION * steps[name]
                whole = torch.round(training.mean[name] / grid)
                integers.append(whole)
                mean[name] = whole * grid
            else:
                mean[name] = training.mean[name]
                constant += 4 * mean[name].numel()
        scales = 4 * len(training.names)
        shared = len(smallest_stream(integers)) + constant + scales

        def code(weights: Weights) -> Coded:
            restored = dict(mean)
            streams: list[Tensor] = []
            for name, step in steps.items():
                whole = quantise(weights[name].to(torch.float32) - mean[name], step, offset=offset)
                streams.append(whole)
                restored[name] = mean[name] + whole * step
            return Coded(restored, len(smallest_stream(streams)))

        return Coder(shared, code)

    return fit


def mean_only() -> list[Method]:
    """The zoo's mean for every model: the control that any method must beat."""

    def fit(training: Training) -> Coder:
        mean = {name: through_float16(value) for name, value in training.mean.items()}
        return Coder(training.reference_bytes, lambda _: Coded(dict(mean), 0))

    return [Method("mean only", "", "control", fit)]
