"""The uniform quantiser of the core, and the offset that keeps a change at its full length.

Owns the step from real coefficients to integers (encoder side; decoding is :mod:`uws_store.canonical`). Knows
nothing about bases or files.

Rounding with a dead zone minimises squared error per bit and shrinks every change towards the mean, because the many
small coefficients fall to zero. Networks bear noise better than shrinkage: on the digits ViTs an offset that preserves
the projection ``<t, q step> = <t, t>`` with a larger step needs 1.5 times fewer bits at the same accuracy than the
dead zone (``tools/bench codec``). It is near 0.6 at half a bit and tends to 0.5, plain rounding, at fine steps. Who asks for an
error and not for a score gets the dead zone: at one bit it takes a fifth fewer bits at equal squared error.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from uws_store.errors import InvalidInputError

__all__ = ["Rounding", "binned_in_any_order", "least_error_offset", "preserving_offset", "quantise"]

Rounding = Literal["length", "error"]
"""What rounding keeps: a change's length, or its squared error at the fewest bits."""

_LIMIT = float(2**31 - 2**20)
_BINS = 256
_LEAST, _MOST = 0.4, 0.75
_WHOLE = 0.62
"""Up to this offset all of a change's length is kept."""
_LEAST_KEPT = 0.7
"""What is kept of it where the offset would have to be the largest."""
_SMALL = 0.6


def preserving_offset(coefficients: torch.Tensor, step: float) -> float:
    """Find the rounding offset at which quantised coefficients have the projection of the real ones, or most of it.

    With ``q = floor(|t| / step + offset)``, the sum of ``|t| q step`` grows with the offset; the one wanted is where
    it equals the sum of ``t**2``. Coarse steps would need many coefficients far below half a step to be raised. There
    0.7 of the sum is kept: on MiniLM fine-tunes that takes a quarter to a third of the bits off, and changes what they
    answer no more (``spec/rfcs/0008-low-rates.md``).

    Parameters
    ----------
    coefficients : torch.Tensor
        Real coefficients, any shape.
    step : float
        The tensor's step, positive.

    Returns
    -------
    float
        In [0.4, 0.75], in units of 1/256. Costs one pass.
    """
    scaled = coefficients.abs().reshape(-1) / step
    if not scaled.numel() or not bool(scaled.max() < _LIMIT):
        return 0.5
    fraction = scaled - torch.floor(scaled)
    # Raising by one where the fraction is at least 1 - offset adds |t| there; what is missing is sum |t| fraction.
    # Below _BINS: a fraction is below one, and times a power of two is exact.
    bins = (fraction * _BINS).to(torch.int64)
    raised = _binned(bins, scaled.to(torch.float64)).flip(0).cumsum(0)
    wanted = torch.dot(scaled.to(torch.float64), fraction.to(torch.float64)).cpu()
    offset = (int(torch.searchsorted(raised, wanted)) + 1) / _BINS
    if offset > _WHOLE:
        share = min(1.0, (offset - _WHOLE) / (_MOST - _WHOLE)) * (1.0 - _LEAST_KEPT)
        energy = torch.dot(scaled.to(torch.float64), scaled.to(torch.float64)).cpu()
        offset = max(_WHOLE, (int(torch.searchsorted(raised, wanted - share * energy)) + 1) / _BINS)
    return min(_MOST, max(_LEAST, offset))


def _binned(bins: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum weights by bin: on the CPU in their order, on a device, which keeps to none, in no order."""
    if bins.device.type == "cpu":
        return torch.bincount(bins, weights=weights, minlength=_BINS)
    return binned_in_any_order(bins, weights).cpu()


def binned_in_any_order(bins: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum weights by bin as integers, so that the sums are the same in every order.

    Parameters
    ----------
    bins : torch.Tensor
        int64, 1-D, each in [0, 255].
    weights : torch.Tensor
        float64, of the same shape, at least 0; rounded to a unit of which all together make at most 2**62.

    Returns
    -------
    torch.Tensor
        float64, (256,), on the device of the bins.
    """
    unit = 62 - math.frexp(float(weights.max()) * weights.numel())[1]
    whole = torch.round(weights * math.ldexp(1.0, unit)).to(torch.int64)
    sums = torch.zeros(_BINS, dtype=torch.int64, device=bins.device).scatter_add_(0, bins, whole)
    return sums.to(torch.float64) * math.ldexp(1.0, -unit)


def least_error_offset(coefficients: torch.Tensor, step: float) -> float:
    """Find the rounding offset with about the fewest bits at equal squared error.

    Parameters
    ----------
    coefficients : torch.Tensor
        Real coefficients, any shape.
    step : float
        The tensor's step, positive.

    Returns
    -------
    float
        In [0.3, 0.5]: 0.5 where few coefficients are small, less the more there are. Measured on wake-word and digits
        networks, where 0.3 to 0.5 are each best at some step, by 1 to 5 % of the bits.
    """
    if not coefficients.numel():
        return 0.5
    small = int((coefficients.abs() < _SMALL * step).count_nonzero()) / coefficients.numel()
    return min(0.5, max(0.3, 0.575 - 0.3 * small))


def quantise(
    coefficients: torch.Tensor, step: float, *, offset: float | None = None, rounding: Rounding = "length"
) -> torch.Tensor:
    """Quantise coefficients to whole numbers of steps.

    Parameters
    ----------
    coefficients : torch.Tensor
        Real coefficients, any shape.
    step : float
        The tensor's step, positive.
    offset : float, optional
        ``floor(|t| / step + offset)``; by default the one that ``rounding`` finds.
    rounding : {"length", "error"}
        :func:`preserving_offset` or :func:`least_error_offset`.

    Returns
    -------
    torch.Tensor
        Whole numbers in the dtype of ``coefficients``.

    Raises
    ------
    InvalidInputError
        When an integer would not fit 32 bits (kind ``invalid-input/range``): the tensor should be private.
    """
    if offset is None:
        find = preserving_offset if rounding == "length" else least_error_offset
        offset = find(coefficients, step)
    # In place: these are passes over whole models.
    whole = coefficients.abs().div_(step).add_(offset).floor_()
    if whole.numel() and not bool(whole.max() < _LIMIT):
        raise InvalidInputError(
            "a coefficient needs more than 32 bits at this step", kind="invalid-input/range"
        )
    # -0.0 would be kept apart from 0.0 by the sign; whole numbers have one zero.
    return whole.copysign_(coefficients).add_(0.0)
