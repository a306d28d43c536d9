"""Scores as results: of a model, read from its record, and of a family, averaged over its models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from uws_store.fidelity.paired import mean_interval
from uws_store.metadata.model import ScoreRecord

__all__ = ["FamilyScore", "ModelScore", "summarise"]


@dataclass(frozen=True, slots=True)
class ModelScore:
    """A model's score before and after.

    Attributes
    ----------
    metric, tier, original, reconstruction, higher_is_better, n, evaluation, purpose, max_drop
        As in :class:`uws_store.metadata.model.ScoreRecord`.
    drop : float
        How much worse the reconstruction is; positive is worse.
    interval : tuple of float or None
        The 95 % confidence interval of the mean drop over examples, where there were results per example.
    significant : bool or None
        Whether that interval lies above zero: the model did get worse. None without one.
    """

    metric: str
    tier: str
    original: float
    reconstruction: float
    higher_is_better: bool
    n: int | None
    evaluation: str
    purpose: str
    max_drop: float | None
    drop: float
    interval: tuple[float, float] | None
    significant: bool | None

    @classmethod
    def of(cls, record: ScoreRecord) -> ModelScore:
        """Read a record."""
        paired = record.paired
        change = record.original - record.reconstruction
        return cls(
            metric=record.metric,
            tier=record.tier,
            original=record.original,
            reconstruction=record.reconstruction,
            higher_is_better=record.higher_is_better,
            n=record.n,
            evaluation=record.evaluation,
            purpose=record.purpose,
            max_drop=record.max_drop,
            drop=change if record.higher_is_better else -change,
            interval=(paired.low, paired.high) if paired else None,
            significant=paired.low > 0 if paired else None,
        )


@dataclass(frozen=True, slots=True)
class FamilyScore:
    """One metric over the models of a family.

    Attributes
    ----------
    metric, purpose : str
        Which scores.
    higher_is_better : bool
        Their direction.
    models : int
        Models that were scored.
    original, reconstruction, drop : float
        Means over them; a positive drop is worse.
    interval : tuple of float or None
        95 % confidence interval of the mean drop, paired over models (Student); None for a single one.
    significant : bool or None
        Whether that interval lies above zero.
    worst_drop : float
        The largest drop.
    worst_task : str
        Whose it is.
    """

    metric: str
    purpose: str
    higher_is_better: bool
    models: int
    original: float
    reconstruction: float
    drop: float
    interval: tuple[float, float] | None
    significant: bool | None
    worst_drop: float
    worst_task: str


def summarise(scores: Iterable[tuple[str, ModelScore]]) -> tuple[FamilyScore, ...]:
    """Average scores over models, one result per metric, direction and purpose.

    Parameters
    ----------
    scores : iterable of (str, ModelScore)
        Task and score.
    """
    kinds: dict[tuple[str, str, bool], list[tuple[str, ModelScore]]] = {}
    for task, score in scores:
        key = (score.metric, score.purpose, score.higher_is_better)
        kinds.setdefault(key, []).append((task, score))
    found: list[FamilyScore] = []
    for (metric, purpose, higher), held in kinds.items():
        drops = np.array([score.drop for _, score in held])
        interval = mean_interval(drops)
        worst_task, worst = max(held, key=lambda pair: pair[1].drop)
        found.append(
            FamilyScore(
                metric=metric,
                purpose=purpose,
                higher_is_better=higher,
                models=len(held),
                original=float(np.mean([score.original for _, score in held])),
                reconstruction=float(np.mean([score.reconstruction for _, score in held])),
                drop=float(drops.mean()),
                interval=(interval.low, interval.high) if interval else None,
                significant=interval.low > 0 if interval else None,
                worst_drop=worst.drop,
                worst_task=worst_task,
            )
        )
    return tuple(found)
