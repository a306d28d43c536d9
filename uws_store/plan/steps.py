"""Grids that follow from energies: a tensor's own step, and the grid of its mean. Pure arithmetic."""

from __future__ import annotations

import math

__all__ = ["is_table", "mean_grid", "step_shift"]

_FREE_SHARE = 0.0005
_TABLE_ROWS = 2048
_TABLE_RATIO = 8


def is_table(rows: int, columns: int) -> bool:
    """Whether a matrix has the shape of an embedding: an input meets a few of its many rows."""
    return rows >= _TABLE_ROWS and rows >= _TABLE_RATIO * columns


def step_shift(
    *, own_energy: float, own_parameters: int, energy: float, parameters: int, table: bool = False
) -> int:
    """Choose how much finer than the family's a tensor's step is, in octaves.

    Steps in proportion to a tensor's own change keep every layer's relative error alike. One step for all minimises
    the squared error of the whole and may spend all of it on a small layer that matters: at equal bits the digits
    ViTs score alike either way, and the ANI potentials come several times nearer to the original energies. Tensors of
    next to no elements are made finer still, since they cost nothing. Embeddings are made an octave coarser: an input
    meets few of their rows, and on MiniLM fine-tunes that halves the bits of all and changes nothing else.

    Parameters
    ----------
    own_energy, energy : float
        Mean sum of squared changes, of the tensor and of all coded tensors.
    own_parameters, parameters : int
        Elements of the tensor and of all coded tensors.
    table : bool
        As :func:`is_table` has it.

    Returns
    -------
    int
        In [-2, 12].
    """
    rare = math.log2(max(1.0, _FREE_SHARE * parameters / own_parameters))
    if own_energy <= 0.0 or energy <= 0.0:
        return round(rare)
    octaves = 0.5 * math.log2((energy / parameters) / (own_energy / own_parameters)) - table
    return max(-2, min(12, round(octaves + rare)))


def mean_grid(*, step: float, change_rms: float) -> int:
    """Exponent of the mean's grid: a power of two below half the step and half the change, or an eighth of a coarse step.

    What is rounded off the mean is noise in every model: coarse steps do not code it away. But beyond four times the
    change a step leaves noise as large as the change, and an eighth of it adds less than a third to that.

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
    finest = max(min(step, change_rms or math.inf) / 2, step / 8 if change_rms else 0.0)
    return -math.floor(math.log2(finest))
