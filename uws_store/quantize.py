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
from collections.abc import Sequence
from typing import Literal

import torch

from uws_store.errors import InvalidInputError

__all__ = [
    "Rounding",
    "binned_in_any_order",
    "least_error_offset",
    "preserving_offset",
    "quantise",
    "quantised_integers",
]

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
_PART = 1 << 17


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
    if not coefficients.numel() or not _largest(coefficients) / step < _LIMIT:
        return 0.5
    # On the CPU a part at a time, which a core's own cache holds.
    on_cpu = coefficients.device.type == "cpu"
    binned = torch.zeros(_BINS, dtype=torch.float64)
    wanted, energy = 0.0, 0.0
    for part in _parts(coefficients) if on_cpu else (coefficients,):
        scaled = part.abs().div_(step).reshape(-1)
        fraction = scaled.frac()
        # Raising by one where the fraction is at least 1 - offset adds |t| there; what is missing is sum |t| fraction.
        # Below _BINS: a fraction is below one, and times a power of two is exact.
        bins = (fraction * _BINS).to(torch.int64)
        # A device adds in no order, and so in integers.
        binned += (
            torch.bincount(bins, weights=scaled, minlength=_BINS)
            if on_cpu
            else binned_in_any_order(bins, scaled.to(torch.float64)).cpu()
        )
        wanted += float(torch.dot(scaled, fraction))
        energy += float(torch.dot(scaled, scaled))
    raised = binned.flip(0).cumsum(0)
    offset = (int(torch.searchsorted(raised, wanted)) + 1) / _BINS
    if offset > _WHOLE:
        share = min(1.0, (offset - _WHOLE) / (_MOST - _WHOLE)) * (1.0 - _LEAST_KEPT)
        offset = max(_WHOLE, (int(torch.searchsorted(raised, wanted - share * energy)) + 1) / _BINS)
    return min(_MOST, max(_LEAST, offset))


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
    small = sum(int((part.abs() < _SMALL * step).count_nonzero()) for part in _parts(coefficients))
    return min(0.5, max(0.3, 0.575 - 0.3 * small / coefficients.numel()))


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
    offset = _offset(coefficients, step, offset, rounding)
    # In place: these are passes over whole models.
    return _rounded(coefficients.abs(), coefficients, step, offset)


def quantised_integers(
    coefficients: torch.Tensor, step: float, *, rounding: Rounding = "length"
) -> torch.Tensor:
    """Quantise coefficients as :func:`quantise` does, into the narrowest integers that hold them.

    Parameters
    ----------
    coefficients : torch.Tensor
        Real coefficients, any shape, on the CPU.
    step : float
        The tensor's step, positive.
    rounding : {"length", "error"}
        Which offset.

    Returns
    -------
    torch.Tensor
        int16 or int32, of the same shape; nothing else of its size is made.

    Raises
    ------
    InvalidInputError
        As :func:`quantise`.
    """
    offset = _offset(coefficients, step, None, rounding)
    # Two more than the largest can become, whichever way its division is rounded.
    narrow = not coefficients.numel() or _largest(coefficients) / step + 2.0 < 1 << 15
    out = torch.empty(coefficients.shape, dtype=torch.int16 if narrow else torch.int32)
    at = 0
    for part in _parts(coefficients):
        own = out.view(-1)[at : at + part.numel()]
        own.copy_(_rounded(part.abs(), part, step, offset).reshape(-1))
        at += part.numel()
    return out


def _parts(values: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows of a matrix, or other parts, that a core's own cache holds; views of what is given."""
    if values.is_contiguous():
        return torch.split(values.view(-1), _PART)
    return torch.split(values, max(1, _PART // max(1, values[0].numel())))


def _largest(values: torch.Tensor) -> float:
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def _offset(coefficients: torch.Tensor, step: float, offset: float | None, rounding: Rounding) -> float:
    if offset is not None:
        return offset
    return (preserving_offset if rounding == "length" else least_error_offset)(coefficients, step)


def _rounded(sizes: torch.Tensor, signed: torch.Tensor, step: float, offset: float) -> torch.Tensor:
    """Round sizes, in place, and give them the signs of others."""
    whole = sizes.div_(step).add_(offset).floor_()
    if whole.numel() and not bool(whole.max() < _LIMIT):
        raise InvalidInputError(
            "a coefficient needs more than 32 bits at this step", kind="invalid-input/range"
        )
    # -0.0 would be kept apart from 0.0 by the sign; whole numbers have one zero.
    return whole.copysign_(signed).add_(0.0)
