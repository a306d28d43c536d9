"""Grids that follow from energies: a tensor's own step, and the grid of its mean. Pure arithmetic."""

from __future__ import annotations

import math

__all__ = ["mean_grid", "step_shift"]

_FREE_SHARE = 0.0005


def step_shift(*, own_energy: float, own_parameters: int, energy: float, parameters: int) -> int:
    """Choose how much finer than the family's a tensor's step is, in octaves.

    Steps in proportion to a tensor's own change keep every layer's relative error alike. One step for all minimises
    the squared error of the whole and may spend all of it on a small layer that matters: at equal bits the digits
    ViTs score alike either way, and the ANI potentials come several times nearer to the original energies. Tensors of
    next to no elements are made finer still, since they cost nothing.

    Parameters
    ----------
    own_energy, energy : float
        Mean sum of squared changes, of the tensor and of all coded tensors.
    own_parameters, parameters : int
        Elements of the tensor and of all coded tensors.

    Returns
    -------
    int
        In [-2, 12].
    """
    rare = math.log2(max(1.0, _FREE_SHARE * parameters / own_parameters))
    if own_energy <= 0.0 or energy <= 0.0:
        return round(rare)
    octaves = 0.5 * math.log2((energy / parameters) / (own_energy / own_parameters))
    return max(-2, min(12, round(octaves + rare)))


def mean_grid(*, step: float, change_rms: float) -> int:
    """Exponent of the mean's grid: a power of two below half the step and half the change.

    What is rounded off the mean is noise in every model: coarse steps do not code it away.

    Parameters
    ----------
    step : float
        The tensor's step.
    change_rms : float
        Root mean square of the tensor's change.

    Returns
    -------
    int
        The mean is whole multiples of ``2**-mean_grid``.
    """
    finest = min(step, change_rms or math.inf) / 2
    return -math.floor(math.log2(finest))
