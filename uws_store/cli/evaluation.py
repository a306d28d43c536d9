"""Options that name an evaluation, and how its scores are told.

Must not know how a score is measured.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from uws_store.cli.output import Output, printable

if TYPE_CHECKING:
    from uws_store.api import BuildResult, ModelResult
    from uws_store.fidelity import FamilyScore, ModelScore

__all__ = [
    "build_score_facts",
    "evaluation_options",
    "model_score_facts",
    "score_text",
    "shown_scores",
    "tell_remarks",
    "user_code",
]

F = TypeVar("F", bound=Callable[..., None])

_OPTIONS = (
    click.option(
        "--eval",
        "evaluate",
        metavar="FUNCTION",
        help="Score each model before and after, for its record: package.module:function or file.py:function, called "
        "with (weights, task). It is imported and run.",
    ),
    click.option(
        "--search-eval",
        "search_evaluate",
        metavar="FUNCTION",
        help="The same on other examples, by which a promised drop is held. Default: that of --eval, whose scores then "
        "flatter.",
    ),
    click.option(
        "--metric",
        metavar="NAME",
        help="Which number counts, where FUNCTION returns a plain dict of numbers.",
    ),
    click.option(
        "--higher-is-better/--lower-is-better",
        default=None,
        help="The direction of --metric, where FUNCTION does not say it.",
    ),
    click.option(
        "--on-miss",
        type=click.Choice(("refuse", "exact")),
        default="refuse",
        show_default=True,
        help="What to do when a model misses the promised drop at any step: store nothing, or keep it bit-identical.",
    ),
)


def evaluation_options(body: F) -> F:
    """Give a command the options of an evaluation: evaluate, search_evaluate, metric, higher_is_better, on_miss."""
    for option in reversed(_OPTIONS):
        body = option(body)
    return body


@contextlib.contextmanager
def user_code(*, runs: bool) -> Iterator[None]:
    """Send what a user's evaluation prints to stderr: stdout is for results."""
    if not runs:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def tell_remarks(result_remarks: Sequence[str], models: Sequence[ModelResult], *, output: Output) -> None:
    """Print what should be known about the scores."""
    for remark in result_remarks:
        output.notice(remark)
    output.notices("scores", [f"{model.task}: {remark}" for model in models for remark in model.remarks])


def build_score_facts(result: BuildResult) -> Iterator[tuple[str, str, str]]:
    """Lay out a family's scores."""
    if any(score.max_drop is not None for model in result.models for score in model.scores):
        finer = sum(model.step < result.step for model in result.models)
        coarser = sum(model.step > result.step for model in result.models)
        yield (
            "steps of their own",
            str(finer + coarser),
            f"of {len(result.models)} models: {finer} finer than the family's, {coarser} coarser",
        )
    for score in result.scores:
        yield (
            printable(score.metric),
            score_text(score.reconstruction),
            f"mean of {score.models} models{_examples(score.purpose)}; originals {score_text(score.original)}",
        )
        yield "  drop", score_text(score.drop), _certainty(score)
        yield "  worst drop", score_text(score.worst_drop), score.worst_task


def model_score_facts(scores: Sequence[ModelScore]) -> Iterator[tuple[str, str, str]]:
    """Lay out a model's scores."""
    for score in scores:
        n = f", n {score.n}" if score.n is not None else ""
        yield (
            printable(score.metric),
            score_text(score.reconstruction),
            f"{score.evaluation}{_examples(score.purpose)}{n}; original {score_text(score.original)}",
        )
        promised = f"; promised: at most {score.max_drop:g}" if score.max_drop is not None else ""
        yield "  drop", score_text(score.drop), f"{_certainty(score)}{promised}".removeprefix("; ")


def shown_scores(scores: Sequence[ModelScore]) -> tuple[str, str]:
    """Write a model's reported score and its drop for a table."""
    reported = [score for score in scores if score.purpose != "search"] or list(scores)
    return (score_text(reported[0].reconstruction), score_text(reported[0].drop)) if reported else ("-", "-")


def _examples(purpose: str) -> str:
    words = {"search": " on the search's examples", "both": " on the examples that chose the steps"}
    return words.get(purpose, "")


def _certainty(score: FamilyScore | ModelScore) -> str:
    if score.interval is None:
        return ""
    low, high = score.interval
    verdict = "a significant drop" if score.significant else "no significant drop"
    return f"95 % interval {score_text(low)} to {score_text(high)}: {verdict}"


def score_text(value: float) -> str:
    """Write a score to the digits that mean something."""
    if 5e-4 <= abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:.4g}" if abs(value) >= 10 else f"{value:.2g}"
