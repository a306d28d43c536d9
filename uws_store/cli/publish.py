"""``init``, ``build`` and ``add``: what they call and how their results are told.

Owns the arithmetic of the summary: what a model, a family and its basis take beside the checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Unpack

from rich.table import Table

from uws_store.api import BuildResult, ModelResult
from uws_store.api import add as api_add
from uws_store.api import build as api_build
from uws_store.cli.evaluation import build_score_facts, model_score_facts, tell_remarks, user_code
from uws_store.cli.hints import next_command
from uws_store.cli.output import Output, columns, counted, facts, number, ratio, size
from uws_store.cli.progress import progress
from uws_store.config import default_registry_url
from uws_store.registry import Registry
from uws_store.storage import parse_options

if TYPE_CHECKING:
    from uws_store.cli.options import AddOptions, BuildOptions

__all__ = ["run_add", "run_build", "run_init"]


def run_init(url: str | None, *, single_writer: bool, output: Output) -> None:
    """Make a registry and say where it is."""
    registry = Registry.init(url or default_registry_url(), single_writer=single_writer)
    if output.as_json:
        output.document(
            {
                "registry": registry.url,
                "id": registry.document.id,
                "single_writer": registry.document.writers == "one",
            }
        )
    elif output.quiet:
        output.names([registry.url])
    else:
        whose = ", for a single writer" if single_writer else ""
        output.show(f"made an empty registry at {registry.url}{whose}")


def run_build(
    zoo: str,
    *,
    family: str,
    plan: str | None,
    zoo_option: tuple[str, ...],
    output: Output,
    registry: str | None,
    **options: Unpack[BuildOptions],
) -> None:
    """Build a family and summarise it."""
    with progress(output) as report, user_code(runs=options["evaluate"] is not None):
        result = api_build(
            zoo,
            family=family,
            registry=registry,
            plan=plan,
            zoo_options=parse_options(zoo_option),
            progress=report,
            **options,
        )
    rename = options.get("rename")
    renamed = ["--rename", str(rename)] if isinstance(rename, str | Path) else []
    check = next_command(
        "verify",
        family,
        "--against",
        zoo,
        *renamed,
        registry=registry,
        zoo_options=parse_options(zoo_option),
    )
    _tell_left_out(result, output)
    if result.shares in {"mean", "nothing"}:
        output.notice(result.sharing)
    tell_remarks(result.remarks, result.models, output=output)
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names(_name(family, model) for model in result.models)
    else:
        output.show(
            f"built family {family} in {result.registry}\n",
            _sizes(result.models, basis_bytes=result.basis_bytes),
            "",
            facts(_build_facts(result)),
            f"\nsee its models:  {next_command('show', family, registry=registry)}",
            f"check it:        {check}",
        )


def run_add(
    checkpoint: str,
    *,
    family: str,
    zoo_option: tuple[str, ...],
    output: Output,
    registry: str | None,
    **options: Unpack[AddOptions],
) -> None:
    """Add a checkpoint and summarise it."""
    with user_code(runs=options["evaluate"] is not None):
        result = api_add(
            checkpoint, family=family, registry=registry, zoo_options=parse_options(zoo_option), **options
        )
    model = result.model
    output.notices("of the checkpoint", model.notices)
    tell_remarks((), [model], output=output)
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names([_name(family, model)])
    else:
        output.show(
            f"added {_name(family, model)} to {result.registry}\n",
            _sizes([model], basis_bytes=None),
            "",
            facts([*_model_facts([model]), *model_score_facts(model.scores)]),
        )


def _name(family: str, model: ModelResult) -> str:
    return f"{family}/{model.task}@{model.version}"


def _sizes(models: Sequence[ModelResult], *, basis_bytes: int | None) -> Table:
    """Bytes beside those of the checkpoints, at each tier that is stored."""
    tiers = {"compact": [model.compact_bytes for model in models]}
    weights = [model.size_bytes - model.file_bytes for model in models]
    if weights != tiers["compact"]:
        tiers["exact"] = weights
    source = [model.source_bytes for model in models]
    rows = [
        [
            "  a model" if len(models) == 1 else "  a model, mean",
            *(size(fmean(held)) for held in tiers.values()),
            size(fmean(source)),
        ],
        ["    ratio", *(ratio(sum(source), sum(held)) for held in tiers.values()), ""],
    ]
    if basis_bytes is not None:
        stored = [basis_bytes + sum(held) for held in tiers.values()]
        rows += [
            [f"  basis and {len(models)} models", *(size(held) for held in stored), size(sum(source))],
            ["    ratio", *(ratio(sum(source), held) for held in stored), ""],
        ]
    return columns({"": "word", **dict.fromkeys(tiers, "number"), "checkpoints": "number"}, rows)


def _model_facts(models: Sequence[ModelResult]) -> Iterator[tuple[str, str, str]]:
    rates = [model.bits_per_parameter for model in models]
    worst = max(models, key=lambda model: model.rel_error)
    several = len(models) > 1
    spread = f"mean of {number(min(rates))} to {number(max(rates))}, " if several else ""
    yield "bits per parameter", number(fmean(rates)), f"{spread}metadata counted, private tensors not"
    private = fmean(model.private_bytes for model in models)
    if private:
        yield "private tensors", size(private), "of each model, mean" if several else "of the model"
    files = fmean(model.file_bytes for model in models)
    if files:
        yield (
            "side files",
            size(files),
            "of each model, mean, its own" if several else "of the model, its own",
        )
    yield (
        "relative error",
        number(worst.rel_error),
        f"the worst, {worst.task}; mean {number(fmean(model.rel_error for model in models))}"
        if several
        else "",
    )


def _build_facts(result: BuildResult) -> Iterator[tuple[str, str, str]]:
    yield "basis", size(result.basis_bytes), "stored once"
    yield "parameters", f"{result.coded_parameters:,}", "of each model, coded in the basis"
    if result.shares is not None:
        yield "shares", result.shares, "beyond what the nulls share"
    yield from _model_facts(result.models)
    yield from build_score_facts(result)
    if result.odd_tensors:
        odd = sum(map(len, result.odd_tensors.values()))
        yield (
            "odd tensors",
            str(odd),
            f"in {len(result.odd_tensors)} of {counted(len(result.models), 'model')}, kept private",
        )
    if result.skipped:
        yield "skipped members", str(len(result.skipped)), "of another architecture"


def _tell_left_out(result: BuildResult, output: Output) -> None:
    odd = [(task, tensor) for task, tensors in result.odd_tensors.items() for tensor in tensors]
    known = {(task, _tensor_of(text)) for task, text in odd}
    kept = [(model.task, text) for model in result.models for text in model.notices]
    output.notices("odd tensors, kept private", _grouped(odd))
    output.notices(
        "of the checkpoints", _grouped([pair for pair in kept if (pair[0], _tensor_of(pair[1])) not in known])
    )
    output.notices("skipped, of another architecture", result.skipped)
    output.notices(
        "of a norm far beyond the others', kept out of the fit",
        _grouped([(task, tensor) for task, tensors in result.outliers.items() for tensor in tensors]),
    )
    source = sum(model.source_bytes for model in result.models)
    stored = result.basis_bytes + sum(model.compact_bytes for model in result.models)
    if stored >= source:
        output.notice(
            f"this family takes {size(stored)} and its checkpoints {size(source)}: at this fidelity "
            f"{len(result.models)} models share too little to pay for a basis"
        )


def _tensor_of(text: str) -> str:
    return text.partition(" is ")[0]


def _grouped(remarks: Iterable[tuple[str, str]]) -> list[str]:
    """Say once what holds for several tasks."""
    tasks: defaultdict[str, list[str]] = defaultdict(list)
    for task, text in remarks:
        tasks[text].append(task)
    return [f"{text} ({_several(held)})" for text, held in tasks.items()]


def _several(tasks: Sequence[str]) -> str:
    return ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
