"""``verify``: what is stored, how near it is to the originals, and what it scores beside its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from uws_store.api import VerifyResult, open_registry
from uws_store.api import verify as api_verify
from uws_store.api.cache import at_source
from uws_store.cli.evaluation import score_text, user_code
from uws_store.cli.output import Output, as_plain, columns, counted, number, printable, problem_lines
from uws_store.cli.progress import progress

if TYPE_CHECKING:
    from uws_store.api import ModelVerdict
    from uws_store.fidelity import FamilySide
    from uws_store.registry import Registry

__all__ = ["open_source", "run_verify"]

_SIDES = {
    "original": "original",
    "compact": "compact",
    "exact": "exact",
    "mean": "mean only",
    "basis-free": "basis-free, same bits",
}


def open_source(registry: str | None) -> Registry:
    """Open a registry around the cache, once for all that is asked of it."""
    return at_source(open_registry(registry))


def run_verify(
    family: str,
    task: str | None,
    *,
    against: str | None,
    evaluate: str | None,
    output: Output,
    opened: Registry,
    **options: Any,  # noqa: ANN401 - those of the API, by their names
) -> bool:
    """Verify a family or a task; tell whether all is well."""
    with progress(output) as report, user_code(runs=evaluate is not None):
        result = api_verify(
            family,
            task,
            registry=opened,
            against=against,
            evaluate=evaluate,
            progress=report,
            **options,
        )
    safe = [verdict.task for verdict in result.models if verdict.safe_to_delete]
    if output.as_json:
        output.document(
            {
                "registry": opened.url,
                "ok": result.ok,
                "safe_to_delete": safe,
                **cast("dict[str, object]", as_plain(result)),
            }
        )
    elif output.quiet:
        output.names(
            f"{family}/{verdict.task}@{verdict.version}" for verdict in result.models if not verdict.report.ok
        )
    else:
        output.show(*_verify_parts(result, compared=against is not None, safe=safe))
    return result.ok


def _verify_parts(result: VerifyResult, *, compared: bool, safe: Sequence[str]) -> Iterator[RenderableType]:
    yield _comparisons(result.models) if compared else _checks(result.models)
    yield ""
    if result.evaluation is not None:
        yield from _scores(result)
    problems = [
        *(("", problem) for problem in result.problems),
        *(
            (f"{verdict.task}@{verdict.version}: ", problem)
            for verdict in result.models
            for problem in verdict.report.problems
        ),
    ]
    objects = result.basis_objects + sum(verdict.report.objects for verdict in result.models)
    tensors = sum(verdict.report.tensors for verdict in result.models)
    what = f"{counted(objects, 'object')} and {counted(tensors, 'tensor')} of {counted(len(result.models), 'model')}"
    if problems:
        yield from problem_lines(problems, what=f" in {what}")
    else:
        yield f"checked {what}: all as recorded"
    if result.commits is not None:
        broken = sum(problem.loc.startswith("_log/") for problem in result.problems)
        found = (
            f"{counted(broken, 'problem')}, listed above" if broken else "each follows from the one before"
        )
        yield f"read the log from its first commit ({counted(result.commits, 'commit')}): {found}"
    if result.record is not None:
        yield f"\nrecorded as {result.record}"
    if result.not_compared:
        yield (
            f"\nwithout an original there, and so not compared ({len(result.not_compared)}): "
            + printable(", ".join(result.not_compared))
        )
    if compared and safe:
        yield (
            f"\nsafe to delete, the exact tier gives back every bit ({len(safe)} of "
            f"{counted(len(result.models), 'original')}):"
        )
        yield Padding(Text(printable(", ".join(safe))), (0, 0, 0, 2), expand=False)
    elif compared:
        yield "\nno original is safe to delete: that takes an exact tier (--exact when a model is built or added)"


def _checks(verdicts: Sequence[ModelVerdict]) -> RenderableType:
    return columns(
        {"model": "name", "tiers": "word", "tensors": "number", "rel. error": "number", "": "word"},
        (
            (
                f"{verdict.task}@{verdict.version}",
                ", ".join(verdict.report.tiers) or "-",
                str(verdict.report.tensors),
                number(verdict.report.rel_error),
                _mark(verdict),
            )
            for verdict in verdicts
        ),
    )


def _comparisons(verdicts: Sequence[ModelVerdict]) -> RenderableType:
    headings = ("model", "rel. error", "mean only", "worst", "tensor", "identical", "")
    kinds = ("name", "number", "number", "number", "name", "number", "word")
    return columns(dict(zip(headings, kinds, strict=True)), map(_comparison, verdicts))


def _comparison(verdict: ModelVerdict) -> list[str | Text]:
    name, found = f"{verdict.task}@{verdict.version}", verdict.report.comparison
    if found is None:
        return [name, "-", "-", "-", "", "-", _mark(verdict)]
    return [
        name,
        number(found.rel_error),
        number(found.mean_rel_error),
        number(found.worst_rel_error),
        found.worst_tensor or "",
        "-" if found.identical is None else f"{'all ' if verdict.safe_to_delete else ''}{found.identical}",
        _mark(verdict),
    ]


def _mark(verdict: ModelVerdict) -> Text:
    return Text("ok", "green") if verdict.report.ok else Text("WRONG", "bold red")


def _scores(result: VerifyResult) -> Iterator[RenderableType]:
    """Means over the models, and each model's own scores."""
    if not result.scores:
        yield f"{printable(result.evaluation or '')} could not score any of the models\n"
        return
    yield f"scores by {printable(result.evaluation or '')}, means over the models:"
    yield columns(
        {
            "metric": "name",
            "of": "word",
            "models": "number",
            "value": "number",
            "drop": "number",
            "95 % interval": "number",
            "": "word",
            "worst drop": "number",
            "model": "name",
        },
        map(_side_row, result.scores),
    )
    yield ""
    scored = [(verdict, one) for verdict in result.models for one in verdict.scores]
    names = list(dict.fromkeys(side.side for _, one in scored for side in one.sides))
    yield columns(
        {"model": "name", "metric": "name", "n": "number"} | {_SIDES[name]: "number" for name in names},
        (
            [
                f"{verdict.task}@{verdict.version}",
                one.metric,
                "-" if one.n is None else str(one.n),
                *(_value(side.value) if (side := one.side(name)) else "-" for name in names),
            ]
            for verdict, one in scored
        ),
    )
    silent = [verdict.task for verdict in result.models if verdict.report.ok and not verdict.scores]
    if silent:
        yield f"\ncould not be scored ({len(silent)}): " + printable(", ".join(silent))
    yield ""


def _side_row(side: FamilySide) -> list[str | Text]:
    verdict = Text("")
    if side.significant is not None:
        verdict = Text("significant", "yellow") if side.significant else Text("not significant")
    return [
        side.metric,
        _SIDES[side.side],
        str(side.models),
        score_text(side.value),
        "-" if side.drop is None else score_text(side.drop),
        "-" if side.interval is None else f"{score_text(side.interval[0])} to {score_text(side.interval[1])}",
        verdict,
        "-" if side.worst_drop is None else score_text(side.worst_drop),
        side.worst_task or "",
    ]


def _value(value: float | None) -> str:
    return "no number" if value is None else score_text(value)
