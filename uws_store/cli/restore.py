"""``export``: models back as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from uws_store.api import ExportResult, export_name, open_family, open_registry
from uws_store.api import export as api_export
from uws_store.cli.output import Output, size
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
    from uws_store.api import Family
    from uws_store.model import Tier
    from uws_store.registry import Registry

__all__ = ["run_export", "run_export_all"]


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
    if path.endswith("/") and not Path(path).is_dir() and not _has_folder(opened, family, task, revision):
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


def _has_folder(registry: Registry, family: str, task: str, revision: str | None) -> bool:
    """Whether a model is exported as a folder."""
    name = export_name(open_family(family, registry=registry), task, revision=revision)
    return not name.endswith(".safetensors")


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
    """Name a file or a folder for every task.

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
    files = {task: root / export_name(family, task) for task in tasks}
    there = [path for path in files.values() if path.exists()]
    if there and not overwrite:
        raise AlreadyExistsError(
            f"{len(there)} of {len(files)} exports are there already, {there[0]} among them; nothing was written. Name "
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
            f"{size(one.size_bytes)}" + (f" with {', '.join(one.side_files)}" if one.side_files else "")
        )
    elif results:
        output.show(
            f"wrote {len(results)} models to {Path(results[0].path).parent}: {results[0].tier} tier, "
            f"{size(sum(result.size_bytes for result in results))}"
        )
    else:
        output.notice("the family has no models; nothing was written")
