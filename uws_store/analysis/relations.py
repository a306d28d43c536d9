"""Which models of a zoo are akin: copies, near copies, one base, one initialisation, or nothing at all.

Models are compared by the cosine between their weights, over matrices alone (norms and biases look alike in all networks),
at coordinates drawn once for all of them. Weights that were fine-tuned from one base point almost the same way; those trained
far from one initialisation still lean the same way; independent ones are orthogonal up to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Relations", "relate"]

SAME_BASE = 0.5
"""Cosine from which two models count as tuned from one base: their difference is smaller than either."""

_CHANCE_DEVIATIONS = 6.0
_LEAST_COSINE = 0.03
_NEAR = 1e-3
_OUTLIER = 100.0


@dataclass(frozen=True, slots=True)
class Relations:
    """How the models of a zoo are akin.

    Attributes
    ----------
    bases : tuple of tuple of str
        Groups of models tuned from one base, largest first; a model by itself is a group.
    initialisations : tuple of tuple of str
        Groups that lean the same way beyond chance, though they are no one base; those of more than one base group.
    duplicates : tuple of tuple of str
        Models with the same weights.
    near_duplicates : tuple of tuple of str
        Models nearer to each other than a thousandth of the usual distance within their base.
    outliers : tuple of str
        Models whose norm is a hundred times the usual one or more.
    cosine : numpy.ndarray
        float64, (n, n): the cosines, in the order of the models.
    """

    bases: tuple[tuple[str, ...], ...]
    initialisations: tuple[tuple[str, ...], ...]
    duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    outliers: tuple[str, ...]
    cosine: npt.NDArray[np.float64]


def relate(tasks: Sequence[str], samples_nd: npt.NDArray[np.float64], sha256: Sequence[str]) -> Relations:
    """Group models by how akin their weights are.

    Parameters
    ----------
    tasks : sequence of str
        The models.
    samples_nd : numpy.ndarray
        float64, (n, d): weights at the same coordinates of all models, each tensor in units of its usual deviation.
    sha256 : sequence of str
        Digest of each model's weights.

    Returns
    -------
    Relations
        Costs n squared times d.
    """
    norms = np.linalg.norm(samples_nd, axis=1)
    usual = float(np.median(norms))
    outliers = tuple(
        task for task, norm in zip(tasks, norms, strict=True) if usual and norm >= _OUTLIER * usual
    )
    units = samples_nd / np.maximum(norms, np.finfo(np.float64).tiny)[:, None]
    cosine = np.clip(units @ units.T, -1.0, 1.0)
    beyond_chance = max(_LEAST_COSINE, _CHANCE_DEVIATIONS / np.sqrt(max(1, samples_nd.shape[1])))
    same_base = _components(cosine >= SAME_BASE)
    leaning = _components(cosine >= beyond_chance)
    copies = _components(np.array([[one == other for other in sha256] for one in sha256]))
    near: list[tuple[int, ...]] = []
    for group in same_base:
        held = np.array(group)
        squares = (samples_nd[held] ** 2).sum(1)
        between = squares[:, None] + squares[None, :] - 2 * samples_nd[held] @ samples_nd[held].T
        distance = np.sqrt(np.maximum(between, 0.0))
        apart = distance[~np.eye(len(held), dtype=bool)]
        if apart.size and (middle := float(np.median(apart))) > 0:
            near += [
                tuple(held[list(part)].tolist())
                for part in _components(distance <= _NEAR * middle)
                if len(part) > 1 and len({sha256[held[index]] for index in part}) > 1
            ]

    def named(groups: Sequence[tuple[int, ...]], *, least: int = 1) -> tuple[tuple[str, ...], ...]:
        kept = [tuple(sorted(tasks[index] for index in group)) for group in groups if len(group) >= least]
        return tuple(sorted(kept, key=lambda group: (-len(group), group)))

    base_of = {index: number for number, group in enumerate(same_base) for index in group}
    return Relations(
        bases=named(same_base),
        initialisations=named([g for g in leaning if len({base_of[index] for index in g}) > 1]),
        duplicates=named(copies, least=2),
        near_duplicates=named(near),
        outliers=outliers,
        cosine=cosine,
    )


def _components(joined: npt.NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Connected components of a symmetric relation."""
    left = set(range(len(joined)))
    groups: list[tuple[int, ...]] = []
    while left:
        frontier = [min(left)]
        group: set[int] = set()
        while frontier:
            index = frontier.pop()
            if index in group:
                continue
            group.add(index)
            frontier += [int(other) for other in np.flatnonzero(joined[index]) if other not in group]
        left -= group
        groups.append(tuple(sorted(group)))
    return groups
