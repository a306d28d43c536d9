"""Encoding the models of one call: at which step, with which tiers, scores and remarks.

Joins what a basis was built for with what its scores demand. Publishes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from uws_store.api.results import ModelResult
from uws_store.basis import Basis, step_of
from uws_store.builder import (
    DEFAULT_FIDELITY,
    AnalysisCache,
    EncodedModel,
    Fidelity,
    encode_model,
    encode_within,
)
from uws_store.canonical import Step
from uws_store.checkpoint import Checkpoint
from uws_store.fidelity import Judge, ModelScore, ScoringRequest

__all__ = ["ModelEncoding", "fidelity_of", "option_of", "remarks_on_promise"]


@dataclass(frozen=True, slots=True)
class ModelEncoding:
    """How the models of one call are encoded."""

    basis: Basis
    fidelity: Fidelity
    analyses: AnalysisCache
    judge: Judge | None

    def encode(self, task: str, checkpoint: Checkpoint, *, exact: bool) -> EncodedModel:
        """Encode a model at the step that its fidelity or its scores demand, scores on record."""
        judge = self.judge
        demanded = exact or (judge is not None and judge.demands_exact(task))

        def at(step: Step) -> EncodedModel:
            return encode_model(self.basis, checkpoint, step=step, exact=demanded, analyses=self.analyses)

        settled = judge.step_of(task) if judge else None
        start = settled or step_of(self.basis.document.step)
        model = encode_within(self.basis, at, step=start, fidelity=self.fidelity)
        return judge.scored(task, self.basis, model) if judge else model

    def result(
        self,
        task: str,
        model: EncodedModel,
        *,
        version: int,
        read: tuple[str, ...] = (),
        remarks: tuple[str, ...] = (),
    ) -> ModelResult:
        """Tell what was stored; ``read`` is what its reader noticed, ``remarks`` come after those on its scores."""
        own = self.judge.remarks_on(task, model) if self.judge else ()
        return ModelResult(
            task=task,
            version=version,
            bits_per_parameter=model.bits_per_parameter(self.basis),
            compact_bytes=model.compact_bytes,
            private_bytes=model.private_bytes,
            size_bytes=model.size_bytes,
            source_bytes=model.document.source.size_bytes,
            rel_error=model.document.rel_error,
            notices=(*read, *model.notices),
            step=step_of(model.document.step).value,
            scores=tuple(ModelScore.of(record) for record in model.document.scores),
            remarks=(*own, *remarks),
        )


def fidelity_of(basis: Basis) -> Fidelity:
    """What the basis was built for, so that models added later keep the same promise."""
    return Fidelity.parse(option_of(basis, "fidelity")) or DEFAULT_FIDELITY


def option_of(basis: Basis, name: str) -> str:
    """What a basis was told when it was built; empty when it was not."""
    return dict(basis.document.build.options).get(name, "")


def remarks_on_promise(basis: Basis, fidelity: Fidelity, request: ScoringRequest | None) -> tuple[str, ...]:
    """What an added model has to do with the promise its family was built with."""
    if fidelity.kind != "max-drop":
        return ()
    if request is None:
        remark = (
            f"the family promises a drop of at most {fidelity.value:g}: this model has the family's step, and its score "
            "was not measured; give evaluate= (--eval) to measure it"
        )
        return (remark,)
    asked, used = option_of(basis, "search-evaluation"), request.search.identity
    if asked and asked != used:
        return (f"its step was chosen by {used}, the family's by {asked}",)
    return ()
