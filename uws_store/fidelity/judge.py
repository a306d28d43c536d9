"""The judge of one build or addition: runs the evaluations, settles each model's step, writes its scores.

Joins the parts of this folder for the API, which need not know when a score is measured and when a step is searched.
"""

from __future__ import annotations

from collections.abc import Mapping

from uws_store.basis import Basis
from uws_store.builder import BasisBuilder, BuiltBasis, EncodedModel, Progress, silent
from uws_store.canonical import Step
from uws_store.checkpoint import Checkpoint
from uws_store.errors import FidelityError
from uws_store.fidelity.promise import Promised, Settled
from uws_store.fidelity.request import ScoringRequest
from uws_store.fidelity.scoring import Scorer, with_scores
from uws_store.metadata.model import ScoreRecord

__all__ = ["Judge"]


class Judge:
    """Scores, and the promise made by them, for the models of one call.

    The originals are scored when it is made, so that an evaluation that does not work is known before hours of other
    work.

    Parameters
    ----------
    request : ScoringRequest
        What was asked for.
    checkpoints : mapping of str to Checkpoint
        The models, by task.
    progress : callable, optional
        Called with phase, done, to do.
    """

    def __init__(
        self,
        request: ScoringRequest,
        checkpoints: Mapping[str, Checkpoint],
        *,
        progress: Progress | None = None,
    ) -> None:
        self.request = request
        report: Progress = progress or silent
        self._checkpoints = checkpoints
        self._report = Scorer(request.report)
        self._search = self._report if request.search is request.report else Scorer(request.search)
        self._promised = Promised(request.promise, self._search, report) if request.promise else None
        self._settled: dict[str, Settled] = {}
        scorers = [self._report, *([] if self._search is self._report else [self._search])]
        for done, (task, checkpoint) in enumerate(checkpoints.items(), start=1):
            for scorer in scorers:
                scorer.original(task, checkpoint)
            report("scoring", done, len(checkpoints))

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """What a basis remembers of the promise, beside the promise itself."""
        promise = self.request.promise
        if promise is None:
            return ()
        named = (("search-evaluation", self.request.search.identity),)
        return (*named, ("per-model", "yes")) if promise.per_model else named

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the caller should know about all scores together."""
        if not self.request.shares_examples:
            return ()
        remark = (
            f"the examples of {self.request.report.name} also chose the steps, so its scores flatter; give others to the "
            "search: search_evaluate= (--search-eval)"
        )
        return (remark,)

    def family_basis(self, builder: BasisBuilder) -> BuiltBasis:
        """Make the basis at the step that keeps the promise, or as the builder was told where none was made."""
        if self._promised is None:
            return builder.build()
        return self._promised.family_basis(builder, self._checkpoints)

    def settle(self, basis: Basis) -> None:
        """Settle each model's step, where a drop was promised.

        Raises
        ------
        FidelityError
            When models cannot keep the promise and are to be refused (``fidelity/max-drop``).
        """
        if self._promised is not None:
            self._settled = self._promised.settle_all(self._checkpoints, basis)

    def step_of(self, task: str) -> Step | None:
        """The step settled for a task; None where no promise was made."""
        settled = self._settled.get(task)
        return settled.step if settled else None

    def demands_exact(self, task: str) -> bool:
        """Whether a task misses the promise and is kept bit-identical instead."""
        settled = self._settled.get(task)
        return settled is not None and settled.kept is False

    def scored(self, task: str, basis: Basis, model: EncodedModel) -> EncodedModel:
        """Put a model's scores into its record.

        Raises
        ------
        FidelityError
            When the weights are not those that were settled on and miss the promise (``fidelity/max-drop``), or a
            score is no number.
        """
        settled = self._settled.get(task)
        # Normally the very weights that were settled on, whose score is known.
        if (
            self._promised is not None
            and settled is not None
            and settled.kept
            and not self._promised.is_kept(task, self._checkpoints[task], basis, model)
        ):
            raise FidelityError(
                f"encoding {task!r} twice gave different weights, and the second miss the promise; run again with one "
                "thread (OMP_NUM_THREADS=1)",
                kind="fidelity/max-drop",
            )
        records: list[ScoreRecord] = []
        promise = self.request.promise
        searched = promise is not None and self._search.can_score(task)
        if self._report.can_score(task):
            shared = searched and self._search is self._report
            records.append(
                self._report.record(
                    task,
                    basis,
                    model,
                    purpose="both" if shared else "report",
                    max_drop=promise.max_drop if promise and shared else None,
                )
            )
        if promise is not None and searched and self._search is not self._report:
            records.append(
                self._search.record(task, basis, model, purpose="search", max_drop=promise.max_drop)
            )
        for scorer in (self._report, self._search):
            scorer.forget(task)
        return with_scores(model, tuple(records))

    def remarks_on(self, task: str, model: EncodedModel) -> tuple[str, ...]:
        """What the caller should know about one model's scores."""
        remarks: list[str] = []
        promise = self.request.promise
        settled = self._settled.get(task)
        if promise is not None and settled is not None and settled.kept is None:
            remarks.append(
                f"{self.request.search.name} cannot score it: stored at the family's step, outside the promise"
            )
        elif not self._report.can_score(task):
            remarks.append(f"{self.request.report.name} cannot score it")
        if promise is not None and settled is not None and settled.kept is False:
            record = next(record for record in model.document.scores if record.purpose != "report")
            remarks.append(
                f"{record.metric} is {record.original:.4g} before and {record.reconstruction:.4g} after even at the finest "
                f"step, a drop beyond {promise.max_drop:g}: stored bit-identical, load it with tier='exact'"
            )
        return tuple(remarks)
