"""The basis-free control: the same number of bits spent on the weights themselves, without mean, factors or order.

Owns what "basis-free" means in a verification. Pure: sees tensors and a number of bits, knows no models and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

__all__ = ["basis_free"]

_ROUNDS = 18
_FINEST_OCTAVE, _COARSEST_OCTAVE = -24.0, 8.0
# Beyond this many levels a histogram is not worth its memory: the entropy is that of a fine quantiser.
_MOST_LEVELS = 1 << 20


def basis_free(tensors: Mapping[str, torch.Tensor], *, bits: float) -> dict[str, torch.Tensor]:
    """Quantise tensors uniformly, each with a step in proportion to its own root mean square, at a number of bits.

    The rate is the empirical entropy of each tensor's integers, the bound of an order-0 entropy coder, so no plain
    coder of independent integers does better at this quantiser; its tables are not counted. The common factor of the
    steps is bisected.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        Finite floating-point weights of any shape.
    bits : float
        Mean bits per weight, above 0.

    Returns
    -------
    dict of str to torch.Tensor
        The same names, shapes and dtypes; the rate is within a hundredth of ``bits`` where that can be reached.
    """
    values = {name: tensor.to(torch.float64) for name, tensor in tensors.items() if tensor.numel()}
    scales = {name: float(value.square().mean().sqrt()) for name, value in values.items()}
    count = sum(value.numel() for value in values.values())
    if not count or not any(scales.values()):
        return {name: tensor.clone() for name, tensor in tensors.items()}
    low, high = _FINEST_OCTAVE, _COARSEST_OCTAVE  # the rate falls as the octave rises
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        rate = sum(_entropy(value, scales[name] * 2.0**middle) for name, value in values.items()) / count
        if abs(rate - bits) <= 0.005 * bits:
            low = high = middle
            break
        low, high = (middle, high) if rate > bits else (low, middle)
    factor = 2.0 ** ((low + high) / 2)
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        step = scales.get(name, 0.0) * factor
        quantised = torch.round(tensor.to(torch.float64) / step) * step if step else tensor
        made[name] = quantised.to(tensor.dtype)
    return made


def _entropy(values: torch.Tensor, step: float) -> float:
    """Total empirical entropy, in bits, of a tensor's integers at a step."""
    if step == 0.0:
        return 0.0
    whole = torch.round(values.reshape(-1) / step)
    span = float(whole.max() - whole.min())
    if span >= _MOST_LEVELS:
        # As a density on the integers: at least as many bits as the ratio of its spread to the step.
        return values.numel() * math.log2(span)
    counts = torch.bincount((whole - whole.min()).to(torch.int64)).to(torch.float64)
    counts = counts[counts > 0]
    return float((counts * (math.log2(values.numel()) - torch.log2(counts))).sum())
