"""``alias``, ``delete``, ``log`` and ``diff``: names, versions and what lies between them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from uws_store.api import DiffResult, delete, diff, history, remove_alias, set_alias
from uws_store.cli.output import Output, columns, counted, facts, number, size

__all__ = ["run_alias", "run_delete", "run_diff", "run_log"]

_SHOWN_CHANGES = 6


def run_alias(
    family: str, task: str, alias: str, *, remove: bool, output: Output, registry: str | None
) -> None:
    """Set, move or remove an alias."""
    change = remove_alias if remove else set_alias
    result = change(family, task, alias, registry=registry)
    name = f"{family}/{result.task}"
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names([f"{name}@{alias}"])
    elif result.version is None:
        output.show(f"{name}@{alias} is no more; it stood for version {result.before}")
    else:
        before = "" if result.before in {None, result.version} else f"; it was {result.before}"
        output.show(f"{name}@{alias} is version {result.version}{before}")


def run_delete(family: str, task: str, *, with_aliases: bool, output: Output, registry: str | None) -> None:
    """Withdraw versions."""
    result = delete(family, task, with_aliases=with_aliases, registry=registry)
    names = [f"{family}/{result.task}@{version}" for version in result.versions]
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names(names)
    else:
        output.show(
            f"withdrew {counted(len(names), 'version')} of {family}/{result.task}: "
            f"{', '.join(map(str, result.versions))}",
            *([f"and the aliases {', '.join(result.aliases)}"] if result.aliases else []),
        )


def run_log(
    family: str | None,
    task: str | None,
    *,
    limit: int | None,
    output: Output,
    registry: str | None,
) -> None:
    """Show commits."""
    entries = tuple(history(family, task, limit=limit, registry=registry))
    if output.as_json:
        output.document({"commits": entries})
    elif output.quiet:
        output.names(str(entry.number) for entry in entries)
    elif not entries:
        output.notice("no commits yet")
    else:
        output.show(
            columns(
                {"commit": "number", "time (UTC)": "word", "change": "name", "by": "word"},
                chain.from_iterable(
                    (
                        (str(entry.number), entry.time[:16].replace("T", " "), change, entry.tool)
                        if index == 0
                        else ("", "", change, "")
                        for index, change in enumerate(_shortened(entry.changes))
                    )
                    for entry in entries
                ),
            )
        )


def run_diff(
    first: tuple[str, str],
    second: tuple[str, str],
    *,
    tier: Any,  # noqa: ANN401 - click has checked it
    output: Output,
    registry: str | None,
) -> None:
    """Compare two models."""
    result = diff(first, second, tier=tier, registry=registry)
    changed = [tensor for tensor in result.tensors if tensor.state != "same"]
    if output.as_json:
        output.document(result)
    elif output.quiet:
        output.names(tensor.name for tensor in changed)
    else:
        output.show(facts(_diff_facts(result)))
        if changed:
            changed.sort(key=lambda tensor: -(tensor.distance or 0))
            output.show(
                "",
                columns(
                    {"tensor": "name", "state": "word", "distance": "number"},
                    (
                        (
                            tensor.name,
                            tensor.state,
                            "-" if tensor.distance is None else number(tensor.distance),
                        )
                        for tensor in changed
                    ),
                ),
            )


def _diff_facts(result: DiffResult) -> Iterator[tuple[str, str, str]]:
    for side, entry in (("A", result.first), ("B", result.second)):
        yield (
            side,
            f"{entry.family}/{entry.task}@{entry.version}",
            f"{size(entry.size_bytes)}, {entry.digest}",
        )
    shared = "both are the same stored model" if result.same_objects else "no object is shared"
    yield "bytes", size(result.second.size_bytes - result.first.size_bytes), f"B less A; {shared}"
    yield "distance", number(result.distance), f"||A - B|| / ||A|| over all tensors, tier {result.tier}"
    same = sum(tensor.state == "same" for tensor in result.tensors)
    yield "tensors", str(len(result.tensors)), f"{same} with the same bits"
    for score in result.scores:
        shown = ["-" if value is None else number(value) for value in (score.first, score.second)]
        yield score.metric, " -> ".join(shown), ""


def _shortened(changes: tuple[str, ...]) -> tuple[str, ...]:
    if len(changes) <= _SHOWN_CHANGES:
        return changes
    return (*changes[: _SHOWN_CHANGES - 1], f"and {len(changes) - _SHOWN_CHANGES + 1} more")
