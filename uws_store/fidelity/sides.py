"""One model's scores side by side: original, each tier, the mean alone, and the same bits without a basis.

Owns the comparison and what it says about a promise on record. Weights come from callables, one side at a time, so that
a single set is held beside the original. Knows neither registries nor how weights are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from uws_store.errors import InvalidInputError, Problem
from uws_store.fidelity.evaluation import KIND, Evaluation, Score
from uws_store.fidelity.paired import mean_interval, paired_drop
from uws_store.metadata.model import ScoreRecord

__all__ = [
    "ORIGINAL",
    "Examined",
    "Examiner",
    "FamilySide",
    "SideScore",
    "UserExaminer",
    "examine",
    "summarise_sides",
]

Weights = dict[str, torch.Tensor]

ORIGINAL = "original"
"""Name of the side that all others are compared with."""

_ROUNDING = 1e-9


class Examiner(Protocol):
    """Something that scores weights; one evaluation may give several numbers."""

    @property
    def identity(self) -> str:
        """Name and hash, as records keep them."""

    def begin(self, task: str, original: Weights | None) -> None:
        """Get ready for a task, given the original's weights where there are any."""

    def scores(self, weights: Weights, task: str) -> tuple[Score, ...]:
        """Score weights; empty when this task cannot be scored."""


@dataclass(frozen=True, slots=True)
class UserExaminer:
    """A user's evaluation as an examiner."""

    evaluation: Evaluation

    @property
    def identity(self) -> str:
        """Name and hash, as records keep them."""
        return self.evaluation.identity

    def begin(self, task: str, original: Weights | None) -> None:
        """Nothing: the function is given weights and task each time."""

    def scores(self, weights: Weights, task: str) -> tuple[Score, ...]:
        """Run the function."""
        score = self.evaluation.score(weights, task)
        return () if score is None else (score,)


@dataclass(frozen=True, slots=True)
class SideScore:
    """The score of one set of weights.

    Attributes
    ----------
    side : str
        ``original``, ``compact``, ``exact``, ``mean`` or ``basis-free``.
    value : float or None
        The score; None when it is no finite number.
    drop : float or None
        How much worse than the original, positive is worse; None for the original, or where nothing can be said.
    interval : tuple of float or None
        95 % confidence interval of the mean drop over examples, where there were results per example.
    significant : bool or None
        Whether that interval lies above zero.
    """

    side: str
    value: float | None
    drop: float | None = None
    interval: tuple[float, float] | None = None
    significant: bool | None = None


@dataclass(frozen=True, slots=True)
class Examined:
    """One metric of one model, side by side.

    Attributes
    ----------
    metric : str
        What was measured.
    evaluation : str
        By what: name and hash.
    higher_is_better : bool
        Its direction.
    n : int or None
        Examples.
    sides : tuple of SideScore
        The original first, where there is one.
    max_drop : float or None
        The drop promised on record by the same evaluation.
    """

    metric: str
    evaluation: str
    higher_is_better: bool
    n: int | None
    sides: tuple[SideScore, ...]
    max_drop: float | None = None

    def side(self, name: str) -> SideScore | None:
        """The score of one side, or None."""
        return next((side for side in self.sides if side.side == name), None)


def examine(
    examiner: Examiner,
    task: str,
    *,
    sides: Mapping[str, Callable[[], Weights]],
    recorded: Sequence[ScoreRecord] = (),
) -> tuple[tuple[Examined, ...], tuple[Problem, ...]]:
    """Score every side of one model, and hold the result against the promises on record.

    Parameters
    ----------
    examiner : Examiner
        What is run.
    task : str
        The model's task.
    sides : mapping of str to callable
        Makes each side's weights when they are needed.
    recorded : sequence of ScoreRecord
        The scores on record, whose promises are checked where the same evaluation made them.

    Returns
    -------
    examined : tuple of Examined
        One per metric; empty when the evaluation cannot score this task.
    problems : tuple of Problem
        Broken promises (``fidelity/max-drop``).

    Raises
    ------
    InvalidInputError
        When the evaluation raises, or gives another metric, direction or count for one side than for another.
    """
    original = sides[ORIGINAL]() if ORIGINAL in sides else None
    examiner.begin(task, original)
    scores: dict[str, tuple[Score, ...]] = {}
    if original is not None:
        scores[ORIGINAL] = examiner.scores(original, task)
        del original
    for name, make in sides.items():
        if name != ORIGINAL and (ORIGINAL not in scores or scores[ORIGINAL]):
            scores[name] = examiner.scores(make(), task)
    first = next(iter(scores.values()), ())
    for name, found in scores.items():
        if [_shape(score) for score in found] != [_shape(score) for score in first]:
            raise InvalidInputError(
                f"{examiner.identity} scores the sides of task {task!r} differently: "
                f"{[_shape(score) for score in first]} first, then {[_shape(score) for score in found]} for {name}; metric, "
                "direction and n depend on the task alone",
                kind=KIND,
            )
    examined: list[Examined] = []
    problems: list[Problem] = []
    for index in range(len(first)):
        one = _side_by_side(
            {name: found[index] for name, found in scores.items()},
            identity=examiner.identity,
            recorded=recorded,
        )
        examined.append(one)
        problems += _broken(one, task, recorded)
    return tuple(examined), tuple(problems)


def _shape(score: Score) -> tuple[str, bool, int | None]:
    return score.metric, score.higher_is_better, score.n


def _mine(records: Iterable[ScoreRecord], metric: str, identity: str) -> list[ScoreRecord]:
    return [record for record in records if (record.metric, record.evaluation) == (metric, identity)]


def _side_by_side(scores: Mapping[str, Score], *, identity: str, recorded: Sequence[ScoreRecord]) -> Examined:
    any_score = next(iter(scores.values()))
    mine = _mine(recorded, any_score.metric, identity)
    original = scores.get(ORIGINAL)
    before = original.value if original is not None else next((record.original for record in mine), None)
    found: list[SideScore] = []
    for name, score in scores.items():
        value = score.value if math.isfinite(score.value) else None
        drop = interval = None
        if name != ORIGINAL and before is not None and value is not None:
            drop = before - value if score.higher_is_better else value - before
            if (
                original is not None
                and original.goodness is not None
                and score.goodness is not None
                and len(original.goodness) == len(score.goodness)
            ):
                interval = paired_drop(original.goodness, score.goodness)
        found.append(
            SideScore(
                name,
                value,
                drop,
                (interval.low, interval.high) if interval else None,
                interval.low > 0 if interval else None,
            )
        )
    promised = [record.max_drop for record in mine if record.max_drop is not None]
    return Examined(
        metric=any_score.metric,
        evaluation=identity,
        higher_is_better=any_score.higher_is_better,
        n=any_score.n,
        sides=tuple(found),
        max_drop=min(promised, default=None),
    )


def _broken(examined: Examined, task: str, recorded: Sequence[ScoreRecord]) -> list[Problem]:
    """Tell whether the promised drop was exceeded; a model that missed it and was kept exact answers with that tier."""
    if examined.max_drop is None:
        return []
    missed = any(
        record.max_drop is not None
        and (record.original - record.reconstruction) * (1 if record.higher_is_better else -1)
        > record.max_drop + _ROUNDING
        for record in _mine(recorded, examined.metric, examined.evaluation)
    )
    side = examined.side("exact" if missed else "compact")
    if side is None or (side.value is not None and side.drop is None):
        return []
    if side.drop is not None and side.drop <= examined.max_drop + _ROUNDING:
        return []
    what = "no number" if side.drop is None else f"a drop of {side.drop:.4g}"
    return [
        Problem(
            task,
            "fidelity/max-drop",
            f"{examined.metric} of the {side.side} tier shows {what}; the record promises at most {examined.max_drop:g} by "
            f"{examined.evaluation}",
        )
    ]


@dataclass(frozen=True, slots=True)
class FamilySide:
    """One metric of one side, averaged over models.

    Attributes
    ----------
    metric, side : str
        Which.
    higher_is_better : bool
        The metric's direction.
    models : int
        Models with a score on this side.
    value : float
        Mean score.
    drop : float or None
        Mean drop against the original.
    interval : tuple of float or None
        95 % confidence interval of it, paired over models (Student).
    significant : bool or None
        Whether that interval lies above zero.
    worst_drop : float or None
        The largest drop.
    worst_task : str or None
        Whose it is.
    """

    metric: str
    side: str
    higher_is_better: bool
    models: int
    value: float
    drop: float | None
    interval: tuple[float, float] | None
    significant: bool | None
    worst_drop: float | None
    worst_task: str | None


def summarise_sides(examined: Iterable[tuple[str, Examined]]) -> tuple[FamilySide, ...]:
    """Average over models: one result per metric and side, in order of first sight."""
    held: dict[tuple[str, bool, str], list[tuple[str, SideScore]]] = {}
    for task, one in examined:
        for side in one.sides:
            if side.value is not None:
                held.setdefault((one.metric, one.higher_is_better, side.side), []).append((task, side))
    found: list[FamilySide] = []
    for (metric, higher, name), sides in held.items():
        drops = [(side.drop, task) for task, side in sides if side.drop is not None]
        interval = mean_interval(np.array([drop for drop, _ in drops]))
        worst = max(drops, default=(None, None))
        found.append(
            FamilySide(
                metric=metric,
                side=name,
                higher_is_better=higher,
                models=len(sides),
                value=float(np.mean([side.value for _, side in sides])),
                drop=float(np.mean([drop for drop, _ in drops])) if drops else None,
                interval=(interval.low, interval.high) if interval else None,
                significant=interval.low > 0 if interval else None,
                worst_drop=worst[0],
                worst_task=worst[1],
            )
        )
    return tuple(found)
