"""``report``: one page by which a family is judged."""

from __future__ import annotations

from pathlib import Path

from uws_store.api import open_registry
from uws_store.cli.output import Output, problem_lines, size
from uws_store.errors import AlreadyExistsError, InvalidInputError, NotFoundError, StorageError

__all__ = ["run_report"]


def run_report(family: str, path: str, *, overwrite: bool, output: Output, registry: str | None) -> bool:
    """Write the report on a family; tell whether every record could be read."""
    try:
        from uws_store.report import gather, render  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"a report needs the package {error.name!r}; install the extra: pip install 'uws-store[report]'",
            kind="invalid-input/extra",
        ) from error
    place = Path(path)
    if place.exists() and not overwrite:
        raise AlreadyExistsError(
            f"{place} is there already; name another file, or give --overwrite", kind="already-exists/file"
        )
    if not place.parent.is_dir():
        raise NotFoundError(f"{place.parent} is no folder; make it first", kind="not-found/folder")
    opened = open_registry(registry)
    view = gather(opened, family)
    page = render(view).encode("utf-8", "replace")
    try:
        place.write_bytes(page)
    except OSError as error:
        raise StorageError(f"{place} cannot be written: {error}", kind="storage/io") from error
    if output.as_json:
        output.document(
            {
                "registry": opened.url,
                "family": family,
                "path": str(place),
                "size_bytes": len(page),
                "problems": view.problems,
            }
        )
    elif output.quiet:
        output.names([str(place)])
    else:
        output.show(f"wrote {place}: {size(len(page))}; open it in a browser")
        output.show(*problem_lines([("", problem) for problem in view.problems], what=", named on the page"))
    return not view.problems
