"""How much of the models' change a basis captures along a mode, beside what chance alone would give.

The variance profile of a basis holds, per tensor, the mean squared coefficient along each row and column of its core.
Where that side has a factor, these are the eigenvalues of the zoo's second moment along the mode. The null is the law of
Marchenko and Pastur (1967): the eigenvalues of changes of the same shape and number whose entries are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from uws_store.basis import Basis
from uws_store.subspace import PROFILE_UNITS_PER_OCTAVE

__all__ = ["ModeSpectrum", "chance_shares", "mode_spectrum"]

POINTS = 65
"""Points of a curve, from no coordinate to all of them."""

_LAW_POINTS = 4001


@dataclass(frozen=True, slots=True)
class ModeSpectrum:
    """Captured share of the change against the share of coordinates kept, along one mode.

    Attributes
    ----------
    tensors : int
        Tensors that have a factor on this side.
    kept : numpy.ndarray
        float64, (65,): share of coordinates, 0 to 1.
    captured, chance : numpy.ndarray
        float64, (65,): share of the variance in them, of the basis models and of independent changes; means over the
        tensors, weighted by their variance.
    """

    tensors: int
    kept: npt.NDArray[np.float64]
    captured: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]

    def share_at(self, kept: float) -> tuple[float, float]:
        """Captured and chance shares at a share of coordinates."""
        return (
            float(np.interp(kept, self.kept, self.captured)),
            float(np.interp(kept, self.kept, self.chance)),
        )


def mode_spectrum(basis: Basis, mode: Literal["left", "right"]) -> ModeSpectrum | None:
    """Average the spectra of a basis's factors along one mode; None when no tensor has a factor there."""
    kept = np.linspace(0.0, 1.0, POINTS)
    captured, chance = np.zeros(POINTS), np.zeros(POINTS)
    weight = 0.0
    tensors = 0
    for name, slot in basis.slots.items():
        side = slot.record.left if mode == "left" else slot.record.right
        if side is None:
            continue
        rows, columns = basis.profile(name)
        own, other = (rows, columns) if mode == "left" else (columns, rows)
        variances = np.sort(_variances(own))[::-1]
        energy = float(variances.sum()) * float(_variances(other).sum())
        extent = slot.record.matrix[1 if mode == "left" else 0]
        samples = max(1, basis.document.build.models - 1) * extent
        captured += energy * _curve(variances, kept)
        chance += energy * _curve(chance_shares(len(variances), side.block / samples), kept)
        weight += energy
        tensors += 1
    if not tensors or not weight:
        return None
    return ModeSpectrum(tensors, kept, captured / weight, chance / weight)


def chance_shares(count: int, ratio: float) -> npt.NDArray[np.float64]:
    """Eigenvalues that independent changes are expected to have, largest first, up to a common factor.

    Parameters
    ----------
    count : int
        How many.
    ratio : float
        Extent of the side over the number of samples, positive: quantiles of the Marchenko-Pastur law of this ratio.
        Beyond 1, all but a share ``1 / ratio`` of them are zero.
    """
    support = min(1.0, 1.0 / ratio)
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # Points crowd at both edges, where the density is steep.
    at = low + (high - low) * (1 - np.cos(np.linspace(0.0, np.pi, _LAW_POINTS))) / 2
    at = np.maximum(at, 1e-12)
    density = np.sqrt(np.maximum((high - at) * (at - low), 0.0)) / (2 * np.pi * ratio * at)
    steps = np.diff(at) * (density[1:] + density[:-1]) / 2
    cumulated = np.concatenate([[0.0], np.cumsum(steps)])
    cumulated *= support / cumulated[-1]
    places = (np.arange(count) + 0.5) / count
    values = np.asarray(np.interp(places - (1 - support), cumulated, at), np.float64)
    values[:-1][places[:-1] < 1 - support] = 0.0  # the largest is that of some change, however few there are
    return np.ascontiguousarray(values[::-1])


def _variances(classes: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp2(classes.astype(np.float64) * 2 / PROFILE_UNITS_PER_OCTAVE), np.float64)


def _curve(variances: npt.NDArray[np.float64], kept: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = np.concatenate([[0.0], np.cumsum(variances)])
    return np.asarray(np.interp(kept * len(variances), np.arange(len(total)), total / total[-1]), np.float64)
