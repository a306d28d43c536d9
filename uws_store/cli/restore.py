"""``verify`` and ``export``: what was kept, and models back as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from uws_store.api import ExportResult, VerifyResult, file_name_of, open_family, open_registry
from uws_store.api import export as api_export
from uws_store.api import verify as api_verify
from uws_store.cli.output import Output, as_plain, columns, counted, number, printable, size
from uws_store.cli.progress import progress
from uws_store.errors import (
    AlreadyExistsError,
    FidelityError,
    InvalidInputError,
    NotFoundError,
    Problem,
    StorageError,
)

if TYPE_CHECKING:
    from uws_store.api import Family, ModelVerdict
    from uws_store.model import Tier

__all__ = ["run_export", "run_export_all", "run_verify"]


def run_verify(
    family: str, task: str | None, *, against: str | None, output: Output, registry: str | None
) -> bool:
    """Verify a family or a task; tell whether all is well."""
    opened = open_registry(registry)
    with progress(output) as report:
        result = api_verify(family, task, registry=opened, against=against, progress=report)
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


def run_export(
    family: str,
    task: str,
    path: str,
    *,
    tier: str,
    revision: str | None,
    overwrite: bool,
    output: Output,
    registry: str | None,
) -> None:
    """Write one model."""
    opened = open_registry(registry)
    if path.endswith("/") and not Path(path).is_dir():
        raise NotFoundError(f"{path} is no folder; make it first", kind="not-found/folder")
    result = api_export(
        family,
        task,
        path,
        registry=opened,
        revision=revision,
        tier=cast("Tier", tier),
        overwrite=overwrite,
    )
    _tell_exports(opened.url, [result], output)


def run_export_all(
    family: str, folder: str, *, tier: str, overwrite: bool, output: Output, registry: str | None
) -> None:
    """Write every task of a family; what can be refused is refused before the first file is written."""
    opened = open_family(family, registry=open_registry(registry))
    root = Path(folder)
    files = _plan_files(opened, root, tier=tier, overwrite=overwrite)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InvalidInputError(
            f"{root} is not a folder; name another", kind="invalid-input/folder"
        ) from error
    except OSError as error:
        raise StorageError(f"{root} cannot be made: {error}", kind="storage/io") from error
    results: list[ExportResult] = []
    with progress(output) as report:
        for task, path in files.items():
            results.append(
                api_export(
                    family, task, path, registry=opened.registry, tier=cast("Tier", tier), overwrite=overwrite
                )
            )
            if report is not None:
                report("exporting", len(results), len(files))
    _tell_exports(opened.registry.url, results, output)


def _plan_files(family: Family, root: Path, *, tier: str, overwrite: bool) -> dict[str, Path]:
    """Name a file for every task.

    Raises
    ------
    FidelityError
        When a model has not the tier.
    AlreadyExistsError
        When a file is there.
    """
    tasks = family.tasks()
    if tier == "exact":
        lacking = [task for task in tasks if not family.resolve(task).exact]
        if lacking:
            raise FidelityError(
                f"{len(lacking)} of {len(tasks)} models of family {family.name!r} have no exact tier; nothing was "
                "written. Export them one by one, or all with --tier compact",
                kind="fidelity/no-exact-tier",
                problems=tuple(
                    Problem(task, "fidelity/no-exact-tier", "stored without --exact") for task in lacking
                ),
            )
    files = {task: root / file_name_of(task) for task in tasks}
    there = [path for path in files.values() if path.exists()]
    if there and not overwrite:
        raise AlreadyExistsError(
            f"{len(there)} of {len(files)} files are there already, {there[0]} among them; nothing was written. Name "
            "another folder, or give --overwrite",
            kind="already-exists/file",
        )
    return files


def _tell_exports(registry: str, results: Sequence[ExportResult], output: Output) -> None:
    if output.as_json:
        output.document({"registry": registry, "exports": results})
    elif output.quiet:
        output.names(result.path for result in results)
    elif len(results) == 1:
        (one,) = results
        output.show(
            f"wrote {one.path}: {one.family}/{one.task}@{one.version}, {one.tier} tier, {one.tensors} tensors, "
            f"{size(one.size_bytes)}"
        )
    elif results:
        output.show(
            f"wrote {len(results)} files to {Path(results[0].path).parent}: {results[0].tier} tier, "
            f"{size(sum(result.size_bytes for result in results))}"
        )
    else:
        output.notice("the family has no models; nothing was written")


def _verify_parts(result: VerifyResult, *, compared: bool, safe: Sequence[str]) -> Iterator[RenderableType]:
    yield _comparisons(result.models) if compared else _checks(result.models)
    yield ""
    problems = [
        *result.problems,
        *(problem for verdict in result.models for problem in verdict.report.problems),
    ]
    objects = result.basis_objects + sum(verdict.report.objects for verdict in result.models)
    tensors = sum(verdict.report.tensors for verdict in result.models)
    what = f"{counted(objects, 'object')} and {counted(tensors, 'tensor')} of {counted(len(result.models), 'model')}"
    if problems:
        yield Text.assemble((counted(len(problems), "problem"), "bold red"), f" in {what}:")
        yield "\n".join(f"  {problem} [{problem.kind}]" for problem in problems)
    else:
        yield f"checked {what}: all as recorded"
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
