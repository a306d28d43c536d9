"""The uniform dead-zone quantiser of the core.

Owns the step from real coefficients to integers (encoder side; decoding is :mod:`uws_store.canonical`). Knows
nothing about bases or files.
"""

from __future__ import annotations

import torch

from uws_store.errors import InvalidInputError

__all__ = ["ROUNDING_OFFSET", "quantise"]

ROUNDING_OFFSET = 0.4
"""``floor(|t| / step + offset)``: 0.5 rounds to nearest; 0.25 to 0.5 lie on one rate-distortion curve."""

_LIMIT = float(2**31 - 2**20)


def quantise(coefficients: torch.Tensor, step: float) -> torch.Tensor:
    """Quantise coefficients with a dead zone around zero.

    Parameters
    ----------
    coefficients : torch.Tensor
        Real coefficients, any shape.
    step : float
        The tensor's step, positive.

    Returns
    -------
    torch.Tensor
        Whole numbers in the dtype of ``coefficients``.

    Raises
    ------
    InvalidInputError
        When an integer would not fit 32 bits (kind ``invalid-input/range``): the tensor should be private.
    """
    whole = torch.floor(coefficients.abs() / step + ROUNDING_OFFSET)
    if whole.numel() and not bool(whole.max() < _LIMIT):
        raise InvalidInputError(
            "a coefficient needs more than 32 bits at this step", kind="invalid-input/range"
        )
    # -0.0 would be kept apart from 0.0 by the sign; whole numbers have one zero.
    return torch.copysign(whole, coefficients) + 0.0
