"""Keeping a promised score: the family's step, and a finer one for each model that needs it.

Owns the order of the search and what happens to a model that cannot meet the promise. Every step it settles on was
scored, on the search's examples, with the weights that a reader will load. Stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from uws_store.basis import Basis, step_of
from uws_store.builder import AnalysisCache, BasisBuilder, BuiltBasis, EncodedModel, Progress, encode_model
from uws_store.canonical import Step
from uws_store.checkpoint import Checkpoint
from uws_store.errors import FidelityError, InvalidInputError, Problem
from uws_store.fidelity.bracket import TRIALS, largest_passing
from uws_store.fidelity.evaluation import KIND
from uws_store.fidelity.scoring import Scorer

__all__ = ["OnMiss", "Promise", "Promised", "Settled"]

OnMiss = Literal["refuse", "exact"]

_SAMPLED_MODELS = 8
_FINEST = 2.0**-10
_COARSEST = 2.0**6
_ROUNDS = 3
_TRIALS_NEARBY = 6


@dataclass(frozen=True, slots=True)
class Promise:
    """What was promised of every model that can be scored.

    Attributes
    ----------
    max_drop : float
        The most that the score may get worse, absolute.
    per_model : bool
        Give each model its own largest step, where the family's passes too.
    on_miss : {"refuse", "exact"}
        What to do with a model that misses it at the finest step.
    """

    max_drop: float
    per_model: bool = False
    on_miss: OnMiss = "refuse"

    def is_kept_by(self, drop: float, *, original: float) -> bool:
        """Whether a drop is within the promise; differences of decimal fractions are not held to their last bit."""
        return drop <= self.max_drop * (1 + 1e-9) + 1e-12 * abs(original)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a model is to be encoded with.

    Attributes
    ----------
    step : Step
        Its step.
    kept : bool or None
        Whether the promise holds at it; None when the evaluation cannot score the task.
    """

    step: Step
    kept: bool | None


class Promised:
    """A promise being kept over a zoo.

    Parameters
    ----------
    promise : Promise
        What was promised.
    scorer : Scorer
        The evaluation on the search's examples; the originals were scored.
    progress : callable
        Called with phase, done, to do.
    """

    def __init__(self, promise: Promise, scorer: Scorer, progress: Progress) -> None:
        self.promise = promise
        self.scorer = scorer
        self._report = progress

    def is_kept(self, task: str, checkpoint: Checkpoint, basis: Basis, model: EncodedModel) -> bool:
        """Score an encoded model and hold it against the promise."""
        original = self.scorer.original(task, checkpoint)
        assert original is not None
        return self.promise.is_kept_by(self.scorer.drop(task, basis, model), original=original.value)

    def family_basis(self, builder: BasisBuilder, checkpoints: Mapping[str, Checkpoint]) -> BuiltBasis:
        """Find the family's step: the largest that up to eight models, spread over the zoo, all pass.

        Raises
        ------
        InvalidInputError
            When the evaluation can score none of the tasks.
        """
        scored = [task for task in checkpoints if self.scorer.can_score(task)]
        if not scored:
            raise InvalidInputError(
                f"evaluation {self.scorer.evaluation.name} can score none of the {len(checkpoints)} tasks, so nothing can "
                "be promised; does it know them by these names?",
                kind=KIND,
            )
        picked = np.linspace(0, len(scored) - 1, min(_SAMPLED_MODELS, len(scored))).round().astype(int)
        sample = {scored[index]: checkpoints[scored[index]] for index in picked}
        built = builder.build()
        if not builder.step_matters:
            return built
        start = step_of(built.basis.document.step)
        step = self._largest(built.basis, sample, start=start)
        if step is None:
            # Some miss it at any step, which is dealt with later; the others decide.
            finest = Step.nearest(start.value * _FINEST)
            analyses = AnalysisCache.shared(built.basis)
            sample = {
                task: checkpoint
                for task, checkpoint in sample.items()
                if self._passes(task, checkpoint, built.basis, finest, analyses)
            }
            step = self._largest(built.basis, sample, start=start) if sample else None
            if step is None:
                return built
        for _ in range(_ROUNDS):
            built, refitted = builder.at_step(step)
            near = self._largest(
                built.basis,
                sample,
                start=step,
                finest=0.25,
                coarsest=2.0 if refitted else 1.0,
                trials=_TRIALS_NEARBY,
            )
            if near is None or near == step:
                return built
            step = near
        return builder.at_step(step)[0]

    def settle(
        self, task: str, checkpoint: Checkpoint, basis: Basis, analyses: AnalysisCache | None = None
    ) -> Settled:
        """Find one model's step: the family's where it passes, else the largest finer one that does."""
        step = step_of(basis.document.step)
        if self.scorer.original(task, checkpoint) is None:
            return Settled(step, None)
        held = analyses or AnalysisCache.shared(basis)
        roots: dict[Step, str] = {}

        def passes(at: Step) -> bool:
            model = encode_model(basis, checkpoint, step=at, analyses=held)
            roots[at] = model.document.compact.root
            return self.is_kept(task, checkpoint, basis, model)

        found = largest_passing(
            passes,
            start=step,
            finest=step.value * _FINEST,
            coarsest=step.value * (_COARSEST if self.promise.per_model else 1.0),
        )
        settled = Settled(found or Step.nearest(step.value * _FINEST), kept=found is not None)
        self.scorer.forget(task, but=roots.get(settled.step))
        return settled

    def settle_all(self, checkpoints: Mapping[str, Checkpoint], basis: Basis) -> dict[str, Settled]:
        """Find every model's step.

        Raises
        ------
        FidelityError
            When models miss the promise and are to be refused (``fidelity/max-drop``); all of them are named.
        """
        analyses = AnalysisCache.shared(basis)
        settled: dict[str, Settled] = {}
        for task, checkpoint in checkpoints.items():
            settled[task] = self.settle(task, checkpoint, basis, analyses)
            self._report("checking", len(settled), len(checkpoints))
        missing = [task for task, found in settled.items() if found.kept is False]
        if missing and self.promise.on_miss == "refuse":
            problems = []
            for task in missing:
                finest = encode_model(basis, checkpoints[task], step=settled[task].step, analyses=analyses)
                drop = self.scorer.drop(task, basis, finest)
                problems.append(Problem(task, "fidelity/max-drop", f"drops by {drop:.4g} at the finest step"))
            raise FidelityError(
                f"{len(missing)} of {len(settled)} models cannot keep a drop of at most {self.promise.max_drop:g} by "
                f"evaluation {self.scorer.evaluation.name}; nothing was stored. Promise less, or keep such models "
                "bit-identical with on_miss='exact' (--on-miss exact)",
                kind="fidelity/max-drop",
                problems=tuple(problems),
            )
        return settled

    def _passes(
        self, task: str, checkpoint: Checkpoint, basis: Basis, step: Step, analyses: AnalysisCache
    ) -> bool:
        model = encode_model(basis, checkpoint, step=step, analyses=analyses)
        return self.is_kept(task, checkpoint, basis, model)

    def _largest(
        self,
        basis: Basis,
        sample: Mapping[str, Checkpoint],
        *,
        start: Step,
        finest: float = _FINEST,
        coarsest: float = _COARSEST,
        trials: int = TRIALS,
    ) -> Step | None:
        """Search the largest step that all of a sample pass; bounds are relative to the start."""
        analyses = AnalysisCache.shared(basis)
        order = list(sample)
        done = 0

        def all_pass(step: Step) -> bool:
            nonlocal done
            done += 1
            self._report("searching", done, trials)
            failed = next(
                (task for task in order if not self._passes(task, sample[task], basis, step, analyses)), None
            )
            if failed is not None:
                # Whoever fails one step is the likeliest to fail the next: asked first, it spares the others.
                order.remove(failed)
                order.insert(0, failed)
            return failed is None

        found = largest_passing(
            all_pass,
            start=start,
            finest=start.value * finest,
            coarsest=start.value * coarsest,
            trials=trials,
        )
        if done < trials:
            self._report("searching", trials, trials)
        return found
