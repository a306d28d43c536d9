"""What a caller asked for in terms of scores: options read and checked together, before any work is done."""

from __future__ import annotations

from dataclasses import dataclass

from uws_store.errors import InvalidInputError
from uws_store.fidelity.evaluation import KIND, Evaluation, EvaluationFunction
from uws_store.fidelity.naming import load_evaluation
from uws_store.fidelity.promise import OnMiss, Promise

__all__ = ["ScoringRequest", "read_request"]

_KIND_PROMISE = "invalid-input/max-drop"


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """Evaluations to run, and what is promised by them.

    Attributes
    ----------
    report : Evaluation
        Its scores are reported.
    search : Evaluation
        Its scores choose the step; the same as ``report`` when the caller has no other examples.
    promise : Promise or None
        None when scores are only measured.
    """

    report: Evaluation
    search: Evaluation
    promise: Promise | None

    @property
    def shares_examples(self) -> bool:
        """Whether the reported examples also chose the step."""
        return self.promise is not None and self.search is self.report


def read_request(
    *,
    evaluate: str | EvaluationFunction | None,
    search_evaluate: str | EvaluationFunction | None,
    metric: str | None,
    higher_is_better: bool | None,
    max_drop: float | None,
    per_model: bool = False,
    on_miss: OnMiss = "refuse",
) -> ScoringRequest | None:
    """Read a caller's options; None when no score is asked for.

    Raises
    ------
    InvalidInputError
        When they do not go together (``invalid-input/max-drop``, ``invalid-input/evaluation``), or the evaluation
        cannot be loaded.
    NotFoundError
        When there is no such evaluation.
    """
    if on_miss not in ("refuse", "exact"):
        raise InvalidInputError(f"on_miss is refuse or exact, not {on_miss!r}", kind=_KIND_PROMISE)
    if max_drop is not None and evaluate is None:
        raise InvalidInputError(
            f"a drop of at most {max_drop:g} needs an evaluation to measure it by: evaluate= (--eval)",
            kind=_KIND_PROMISE,
        )
    if search_evaluate is not None and evaluate is None:
        raise InvalidInputError(
            "search_evaluate (--search-eval) chooses the step; name what is to be reported too: evaluate= (--eval)",
            kind=KIND,
        )
    if max_drop is None:
        extra = {
            "search_evaluate (--search-eval)": search_evaluate is not None,
            "per_model (--per-model)": per_model,
            "on_miss='exact' (--on-miss exact)": on_miss != "refuse",
        }
        given = [name for name, is_given in extra.items() if is_given]
        if given:
            raise InvalidInputError(
                f"{' and '.join(given)} need{'s' if len(given) == 1 else ''} a promised max_drop (--max-drop)",
                kind=_KIND_PROMISE,
            )
    if evaluate is None:
        if metric is not None or higher_is_better is not None:
            raise InvalidInputError(
                "metric and higher_is_better describe an evaluation; name one: evaluate= (--eval)", kind=KIND
            )
        return None
    report = load_evaluation(evaluate, metric=metric, higher_is_better=higher_is_better)
    search = report
    if search_evaluate is not None:
        search = load_evaluation(search_evaluate, metric=metric, higher_is_better=higher_is_better)
        if search.function is report.function:
            search = report
    promise = Promise(max_drop, per_model=per_model, on_miss=on_miss) if max_drop is not None else None
    return ScoringRequest(report, search, promise)
