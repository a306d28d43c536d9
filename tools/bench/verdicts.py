"""Who is smallest at an allowed loss: the comparison that the goals speak of.

Owns interpolation between a method's settings and the ratios. Prints nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from codec import BY_ERROR, OURS, Point, ZooResult
from plain_coders import CONTROL

__all__ = ["PLAIN", "Verdict", "bytes_at_tolerance", "equal_error_ratios", "verdict_of"]

PLAIN = ("plain coder", "plain, dead zone", CONTROL)
"""The coders that a family must never be larger than at equal error of the weights."""

Size = Callable[[Point], float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Ours beside the best baseline at the tolerated loss, interpolated between settings.

    Attributes
    ----------
    measure : str
        Which bytes are compared.
    ours_bytes : float or None
        The store's bytes per model; None when it never keeps the score.
    best : str or None
        The best baseline; None when no baseline keeps the score.
    best_bytes : float or None
        Its bytes per model.
    control_bytes : float or None
        Bytes of the control, the store's rounding without its factors.
    times_smaller : float or None
        Float32 bytes of a model over the store's.
    steady : bool
        Whether every setting of the two that is larger than the smallest kept one is kept too; otherwise chance
        decides, and the ratio is good to no more than the distance between settings.
    """

    measure: str
    ours_bytes: float | None
    best: str | None
    best_bytes: float | None
    control_bytes: float | None
    times_smaller: float | None
    steady: bool

    @property
    def ratio(self) -> float | None:
        """How many times smaller the store is than the best baseline."""
        if self.ours_bytes is None or self.best_bytes is None:
            return None
        return self.best_bytes / self.ours_bytes


def verdict_of(result: ZooResult) -> tuple[Verdict, ...]:
    """Compare by everything a model takes, by its coefficients alone, and with the shared bytes counted."""
    models = result.zoo.counted_models
    sizes: dict[str, Size] = {
        "per model, all bytes": lambda point: point.model_bytes,
        "per model, coefficients alone": lambda point: point.payload_bytes,
        f"with shared bytes, {models} models": lambda point: point.model_bytes + point.shared_bytes / models,
    }
    found = []
    for name, size in sizes.items():
        methods = dict.fromkeys(point.method for point in result.points)
        reached = {
            method: value
            for method in methods
            if (value := bytes_at_tolerance(result, method, size)) is not None
        }
        ours = reached.pop(OURS, None)
        reached.pop(BY_ERROR, None)
        control = reached.pop(CONTROL, None)
        best = min(reached, key=reached.__getitem__, default=None)
        found.append(
            Verdict(
                measure=name,
                ours_bytes=ours,
                best=best,
                best_bytes=reached[best] if best else None,
                control_bytes=control,
                times_smaller=4 * result.parameters / ours if ours else None,
                steady=all(_steady(result, method, size) for method in (OURS, best) if method),
            )
        )
    return tuple(found)


def _steady(result: ZooResult, method: str, size: Size) -> bool:
    points = sorted((point for point in result.points if point.method == method), key=size)
    kept = [result.keeps(point) for point in points]
    return kept == sorted(kept)


def equal_error_ratios(result: ZooResult, size: Size) -> list[float]:
    """How many times the store's bytes the best plain coder takes at the same error of the weights.

    Parameters
    ----------
    result : ZooResult
        The points.
    size : callable
        Which bytes.

    Returns
    -------
    list of float
        One for each error asked of the store that lies between two settings of a plain coder.
    """
    ratios: list[float] = []
    for point in result.points:
        if point.method != BY_ERROR:
            continue
        rivals = [
            found
            for method in PLAIN
            if (found := _bytes_at_error(result, method, point.weight_error, size)) is not None
        ]
        if rivals:
            ratios.append(min(rivals) / size(point))
    return ratios


def _bytes_at_error(result: ZooResult, method: str, error: float, size: Size) -> float | None:
    """Bytes of a method at an error, on a straight line between the logarithms of both."""
    points = sorted(
        (point for point in result.points if point.method == method), key=lambda point: point.weight_error
    )
    for low, high in itertools.pairwise(points):
        if 0 < low.weight_error <= error <= high.weight_error and size(high) > 0:
            part = math.log(error / low.weight_error) / math.log(high.weight_error / low.weight_error)
            return math.exp((1 - part) * math.log(size(low)) + part * math.log(size(high)))
    return None


def bytes_at_tolerance(result: ZooResult, method: str, size: Size) -> float | None:
    """The bytes at which a method's loss is just the tolerated one.

    The smallest setting that keeps the score, and the largest below it that does not, are joined by a straight line
    of the loss over the logarithm of the bytes. A method whose smallest setting keeps the score gets that setting.

    Parameters
    ----------
    result : ZooResult
        The points.
    method : str
        Whose.
    size : callable
        Which bytes.
    """
    points = sorted((point for point in result.points if point.method == method), key=size)
    kept = next((index for index, point in enumerate(points) if result.keeps(point)), None)
    if kept is None:
        return None
    high = points[kept]
    if kept == 0:
        return size(high)
    low = points[kept - 1]
    worse, better = result.loss(low), result.loss(high)
    if size(low) <= 0 or not math.isfinite(worse):
        return size(high)
    part = (result.zoo.metric.tolerance - better) / (worse - better)
    return math.exp(math.log(size(high)) + part * (math.log(size(low)) - math.log(size(high))))
