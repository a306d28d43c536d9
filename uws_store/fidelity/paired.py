"""Paired statistics: how sure a measured drop is, computed from the examples themselves.

Pure numbers. Original and reconstruction answer the same examples, so it is their differences that vary, which are
far fewer than their errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PairedDrop", "mean_interval", "paired_drop", "student_quantile"]

_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True, slots=True)
class PairedDrop:
    """A mean difference over examples with its 95 % confidence interval; positive is worse.

    Attributes
    ----------
    mean : float
        Mean of original less reconstruction, in goodness.
    low, high : float
        The interval.
    """

    mean: float
    low: float
    high: float


def paired_drop(
    original: npt.NDArray[np.float64], reconstruction: npt.NDArray[np.float64]
) -> PairedDrop | None:
    """Compare two sets of results on the same examples.

    Results that are all 0 or 1 get the interval of Agresti and Min (2005): half a pair is added to each cell of the
    2 x 2 table, so that a model which changed none of its few answers is not called certain. Others get Student's t.

    Parameters
    ----------
    original, reconstruction : numpy.ndarray
        float64, (n,): each example's result, higher is better.

    Returns
    -------
    PairedDrop or None
        None when there is too little to say anything: a single example that is no 0 or 1, or results that are no
        numbers.
    """
    both = np.stack([original, reconstruction])
    if not both.size or not bool(np.isfinite(both).all()):
        return None
    differences = original - reconstruction
    if bool(((both == 0) | (both == 1)).all()):
        n = len(differences) + 2
        lost, won = float((differences > 0).sum()) + 0.5, float((differences < 0).sum()) + 0.5
        centre = (lost - won) / n
        half = _NORMAL_QUANTILE * math.sqrt(lost + won - (lost - won) ** 2 / n) / n
        return PairedDrop(float(differences.mean()), max(-1.0, centre - half), min(1.0, centre + half))
    return mean_interval(differences)


def mean_interval(values: npt.NDArray[np.float64]) -> PairedDrop | None:
    """Mean of independent values and its Student interval; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = float(values.mean())
    half = student_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return PairedDrop(mean, mean - half, mean + half)


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t.

    Solved from the distribution function, whose integrand is ``cos(a)**(freedom - 1)`` after ``t = sqrt(freedom) *
    tan(a)``; within 1e-8.

    Parameters
    ----------
    freedom : int
        Degrees of freedom, at least 1.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)

    def beyond_half(angle: float) -> float:
        at = np.cos(angle * (nodes + 1) / 2) ** (freedom - 1)
        return float(scale * angle / 2 * (weights * at).sum())

    low, high = 0.0, math.atan(13.0 / math.sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        if beyond_half(middle) < 0.475:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)
