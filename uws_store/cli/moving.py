"""``push``, ``pull`` and ``mirror``: what went from one registry to the other."""

from __future__ import annotations

from collections.abc import Sequence

from uws_store.api import MoveResult, mirror, pull, push
from uws_store.cli.output import Output, counted, facts, size
from uws_store.cli.progress import progress

__all__ = ["run_mirror", "run_pull", "run_push"]


def run_push(
    family: str,
    task: str | None,
    url: str,
    *,
    output: Output,
    registry: str | None,
    pack: bool | None,
    check: bool,
) -> None:
    """Bring a family to another registry."""
    with progress(output) as report:
        result = push(family, url, task, registry=registry, pack=pack, check=check, progress=report)
    _tell([result], output=output)


def run_pull(
    url: str,
    family: str,
    task: str | None,
    *,
    output: Output,
    registry: str | None,
    pack: bool | None,
    check: bool,
) -> None:
    """Bring a family from another registry."""
    with progress(output) as report:
        result = pull(url, family, task, registry=registry, pack=pack, check=check, progress=report)
    _tell([result], output=output)


def run_mirror(url: str, *, output: Output, registry: str | None, pack: bool | None, check: bool) -> None:
    """Bring every family to another registry."""
    with progress(output) as report:
        results = mirror(url, registry=registry, pack=pack, check=check, progress=report)
    _tell(results, output=output)


def _tell(results: Sequence[MoveResult], *, output: Output) -> None:
    if output.as_json:
        output.document({"families": results})
    elif output.quiet:
        output.names(
            f"{result.family}/{task}@{version}" for result in results for task, _, version in result.versions
        )
    else:
        for result in results:
            renumbered = sum(here != there for _, here, there in result.versions)
            output.show(
                f"family {result.family}",
                facts(
                    (
                        ("from", result.source, ""),
                        ("to", result.target, ""),
                        (
                            "versions",
                            str(len(result.versions)),
                            f"{result.published} new there"
                            + (f", {renumbered} under another number" if renumbered else ""),
                        ),
                        ("transferred", size(result.size_bytes), counted(result.objects, "object")),
                    )
                ),
            )
            output.notices("was gone or damaged there, and is as it was", result.mended)
            output.notices("aliases that stand for another version there", result.kept_aliases)
