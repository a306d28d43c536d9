"""Scoring models before and after: the original once, each distinct reconstruction once, and what goes on record.

A reconstruction is scored as a reader will load it: decoded from its own objects. Knows open bases and checkpoints, not
registries.
"""

from __future__ import annotations

import hashlib
import math

import torch

from uws_store import layout
from uws_store.basis import Basis
from uws_store.builder import EncodedModel
from uws_store.checkpoint import Checkpoint
from uws_store.errors import FidelityError, InvalidInputError
from uws_store.fidelity.evaluation import KIND, Evaluation, Score
from uws_store.fidelity.paired import PairedDrop, paired_drop
from uws_store.loader import LazyStateDict
from uws_store.metadata.group import to_group_bytes
from uws_store.metadata.model import PairedRecord, ScoreRecord
from uws_store.model import Model
from uws_store.storage import MemoryStorage

__all__ = ["Purpose", "Scorer", "with_scores"]

Purpose = str
"""``report``, ``search`` or ``both``, as :class:`uws_store.metadata.model.ScoreRecord` has it."""

_CPU = torch.device("cpu")


class Scorer:
    """One evaluation at work on the models of a zoo.

    Parameters
    ----------
    evaluation : Evaluation
        What is run.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self._originals: dict[str, Score | None] = {}
        self._made: dict[str, dict[str, Score]] = {}

    def original(self, task: str, checkpoint: Checkpoint) -> Score | None:
        """Score a task's checkpoint, the first time it is asked for; None when the evaluation cannot.

        Raises
        ------
        InvalidInputError
            As :meth:`Evaluation.score`; or the score is no finite number.
        """
        if task not in self._originals:
            score = self.evaluation.score({name: checkpoint.read(name) for name in checkpoint.tensors}, task)
            if score is not None and not math.isfinite(score.value):
                raise InvalidInputError(
                    f"evaluation {self.evaluation.name} gives {score.metric} {score.value} for the original of task "
                    f"{task!r}: nothing can be compared with that",
                    kind=KIND,
                )
            self._originals[task] = score
        return self._originals[task]

    def can_score(self, task: str) -> bool:
        """Whether a task's original was scored."""
        return self._originals.get(task) is not None

    def reconstruction(self, task: str, basis: Basis, model: EncodedModel) -> Score:
        """Score an encoded model at its compact tier; the same weights are not scored twice.

        Parameters
        ----------
        task : str
            A task whose original was scored.
        basis : Basis
            What it was encoded against.
        model : EncodedModel
            The model.
        """
        original = self._originals[task]
        assert original is not None
        made = self._made.setdefault(task, {})
        root = model.document.compact.root
        if root not in made:
            score = self.evaluation.score(_weights(task, basis, model), task)
            if score is None or (score.metric, score.higher_is_better, score.n) != (
                original.metric,
                original.higher_is_better,
                original.n,
            ):
                raise InvalidInputError(
                    f"evaluation {self.evaluation.name} scores the original of task {task!r} and its reconstruction "
                    f"differently: {_words(original)}, then {_words(score)}; metric, direction and n depend on the task "
                    "alone",
                    kind=KIND,
                )
            made[root] = score
        return made[root]

    def drop(self, task: str, basis: Basis, model: EncodedModel) -> float:
        """How much worse a reconstruction scores than its original; positive is worse."""
        original = self._originals[task]
        assert original is not None
        return original.drop_to(self.reconstruction(task, basis, model))

    def record(
        self, task: str, basis: Basis, model: EncodedModel, *, purpose: Purpose, max_drop: float | None
    ) -> ScoreRecord:
        """Put a model's score into the form of its record.

        Raises
        ------
        FidelityError
            When the reconstruction's score is no number (``fidelity/not-a-number``).
        """
        original, score = self._originals[task], self.reconstruction(task, basis, model)
        assert original is not None
        if not math.isfinite(score.value):
            raise FidelityError(
                f"evaluation {self.evaluation.name} gives {score.metric} {score.value} for the reconstruction of task "
                f"{task!r}, and {original.value:g} for its original; ask for a higher fidelity",
                kind="fidelity/not-a-number",
            )
        paired = None
        # A search keeps no interval: its examples chose the step, so it would say less than it seems to.
        if purpose != "search" and original.goodness is not None and score.goodness is not None:
            if len(original.goodness) != len(score.goodness):
                raise InvalidInputError(
                    f"evaluation {self.evaluation.name} gives {len(original.goodness)} results per example for the "
                    f"original of task {task!r} and {len(score.goodness)} for its reconstruction",
                    kind=KIND,
                )
            paired = paired_drop(original.goodness, score.goodness)
        return ScoreRecord(
            metric=score.metric,
            tier="compact",
            original=original.value,
            reconstruction=score.value,
            higher_is_better=score.higher_is_better,
            n=score.n,
            evaluation=self.evaluation.identity,
            purpose=purpose,  # type: ignore[arg-type]
            max_drop=max_drop,
            paired=_paired_record(paired) if paired else None,
        )

    def forget(self, task: str, *, but: str | None = None) -> None:
        """Drop the scores of a task's reconstructions, but for the one with these weights."""
        made = self._made.pop(task, {})
        if but in made:
            self._made[task] = {but: made[but]}


def with_scores(model: EncodedModel, scores: tuple[ScoreRecord, ...]) -> EncodedModel:
    """Put scores into an encoded model's record, which gives it another digest."""
    if not scores:
        return model
    document = model.document.model_copy(update={"scores": scores})
    group = to_group_bytes(document)
    objects = {**model.objects, layout.GROUP_PATH: group}
    return EncodedModel(document, hashlib.sha256(group).hexdigest(), objects, model.notices)


def _weights(task: str, basis: Basis, model: EncodedModel) -> dict[str, torch.Tensor]:
    """Decode a model from its objects, by the loader's own path."""
    storage = MemoryStorage("scoring")
    prefix = layout.model_prefix("scoring", model.digest)
    for path, data in model.objects.items():
        storage.put_if_absent(f"{prefix}/{path}", data)
    return LazyStateDict(
        Model.open(storage, prefix, digest=model.digest, basis=basis),
        family="scoring",
        task=task,
        version=1,
        tier="compact",
        device=_CPU,
        dtype=None,
        verify=True,
    ).materialize()


def _paired_record(paired: PairedDrop) -> PairedRecord:
    """Keep four digits: an interval means no more, and records are counted in a model's bits."""
    mean, low, high = (float(f"{value:.4g}") for value in (paired.mean, paired.low, paired.high))
    return PairedRecord(mean=mean, low=low, high=high)


def _words(score: Score | None) -> str:
    if score is None:
        return "not at all"
    direction = "higher" if score.higher_is_better else "lower"
    return f"{score.metric}, {direction} is better, n {score.n}"
