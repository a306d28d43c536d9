"""``extend`` and ``rebase``: what they call and how their results are told."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from uws_store.api import Growth
from uws_store.api import extend as api_extend
from uws_store.api import rebase as api_rebase
from uws_store.cli.evaluation import tell_remarks
from uws_store.cli.hints import next_command
from uws_store.cli.output import Output, counted, facts, number, size
from uws_store.cli.progress import progress
from uws_store.storage import parse_options

__all__ = ["growth_facts", "run_extend", "run_rebase"]


def run_extend(
    family: str,
    zoos: Sequence[str],
    *,
    exact: bool,
    expect_models: int | None,
    zoo_option: tuple[str, ...],
    device: str,
    workers: int | None,
    memory: str | None,
    output: Output,
    registry: str | None,
) -> None:
    """Make a basis revision and say what it covers."""
    with progress(output) as report:
        result = api_extend(
            family,
            zoos,
            registry=registry,
            exact=exact,
            expect_models=expect_models,
            zoo_options=parse_options(zoo_option),
            device=device,
            workers=workers,
            memory=memory,
            progress=report,
        )
    if result.from_compact:
        output.notice(
            f"{counted(result.from_compact, 'stored model')} had no exact tier and entered the basis as the compact tier "
            "gives them back"
        )
    for remark in result.remarks:
        output.notice(remark)
    output.notices("kept private", [notice for model in result.models for notice in model.notices])
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names([f"{family}/{model.task}@{model.version}" for model in result.models])
    else:
        rows = [
            ("basis", size(result.basis_bytes), f"revision {result.revision}"),
            ("covers", str(result.from_registry), "stored models, read from the registry"),
        ]
        if result.models:
            mean = fmean(model.bits_per_parameter for model in result.models)
            rows.append(
                ("new models", str(len(result.models)), f"at {number(mean)} bits per parameter, mean")
            )
        output.show(f"extended {family} in {result.registry}\n", facts(rows))


def run_rebase(
    family: str,
    task: str,
    *,
    source: str | None,
    zoo_option: tuple[str, ...],
    device: str,
    output: Output,
    registry: str | None,
) -> None:
    """Move a model and say what it takes now."""
    result = api_rebase(
        family,
        task,
        source=source,
        zoo_options=parse_options(zoo_option),
        device=device,
        registry=registry,
    )
    model = result.model
    output.notices("kept private", model.notices)
    tell_remarks((), [model], output=output)
    name = f"{family}/{model.task}@{model.version}"
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names([name])
    else:
        output.show(
            f"moved to {name} in {result.registry}\n",
            facts(
                (
                    ("compact", size(model.compact_bytes), f"{number(model.bits_per_parameter)} bits/param"),
                    ("relative error", number(model.rel_error), ""),
                )
            ),
        )


def growth_facts(growth: Growth, *, family: str, registry: str | None) -> list[tuple[str, str, str]]:
    """Tell how the newest basis serves newer models; nothing where there are none."""
    rows: list[tuple[str, str, str]] = []
    if growth.newer_models:
        told = ""
        if growth.drift is not None:
            told = f"bits per parameter {abs(growth.drift):.0%} {'above' if growth.drift > 0 else 'below'} those it was made with"
        rows.append(("added since", str(growth.newer_models), told))
    if growth.older_models:
        rebase = next_command("rebase", f"{family}/TASK", registry=registry)
        rows.append(
            ("on older bases", str(growth.older_models), f"tasks; this moves one to the newest: {rebase}")
        )
    if growth.should_extend:
        extend = next_command("extend", family, registry=registry)
        rows.append(("advice", "extend", f"a new basis may serve the newer models better: {extend}"))
    return rows
