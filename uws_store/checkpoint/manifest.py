"""The manifest of a zoo: a JSON list of checkpoints that lie anywhere.

Owns the manifest's form. It is the user's own file and may point where the user likes. Must not know what makes a
zoo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from uws_store.checkpoint.remote import is_url
from uws_store.checkpoint.weight_file import read_json
from uws_store.errors import InvalidInputError, Problem
from uws_store.names import check_task_name

__all__ = ["MANIFEST_NAME", "ManifestEntry", "read_manifest"]

MANIFEST_NAME = "zoo.json"
_KIND = "invalid-input/zoo-manifest"
_KEYS = ("task", "path", "url", "metadata")


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One checkpoint of a manifest.

    Attributes
    ----------
    task : str
        Its name, in Unicode NFC.
    path : Path
        Where it is; it exists, unless there is a URL.
    url : str or None
        Where it is otherwise: an object, a folder or a repository with one safetensors object.
    metadata : Mapping of str to str
        What the manifest says of it.
    """

    task: str
    path: Path
    metadata: Mapping[str, str]
    url: str | None = None


def read_manifest(path: Path) -> tuple[list[ManifestEntry], list[Problem]]:
    """Read a manifest.

    Returns
    -------
    entries : list of ManifestEntry
        Those without a problem, in the order of the file.
    problems : list of Problem
        Everything wrong with the others, each with a JSON pointer.

    Raises
    ------
    InvalidInputError
        When the file is not a JSON list (kind ``invalid-input/zoo-manifest``).
    """
    try:
        content = read_json(path)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the manifest {path} is not JSON: {error}", kind=_KIND) from error
    if not isinstance(content, list):
        raise InvalidInputError(
            f"the manifest {path} is not a list: expected "
            '[{"task": "name", "path": "file or folder", "metadata": {"licence": "..."}}, ...], with "url" in place of '
            '"path" where a storage holds it',
            kind=_KIND,
        )
    entries: list[ManifestEntry] = []
    problems: list[Problem] = []
    for number, row in enumerate(content):
        found = _row_problems(row, path.parent, f"/{number}")
        problems += found
        if not found:
            url = row.get("url")
            entries.append(
                ManifestEntry(
                    check_task_name(row["task"]),
                    path.parent / row["path"] if url is None else Path(url.rstrip("/").rpartition("/")[2]),
                    MappingProxyType(dict(row.get("metadata", {}))),
                    url,
                )
            )
    return entries, problems


def _row_problems(row: object, folder: Path, loc: str) -> list[Problem]:
    if not isinstance(row, dict):
        return [Problem(loc, _KIND, f"expected an object with 'task' and 'path', found {type(row).__name__}")]
    problems = [
        Problem(f"{loc}/{key}", _KIND, f"unknown; expected only {', '.join(_KEYS)}")
        for key in row
        if key not in _KEYS
    ]
    problems += [Problem(f"{loc}/{key}", _KIND, "is missing") for key in ("task",) if key not in row]
    if "path" in row and "url" in row:
        problems.append(Problem(f"{loc}/url", _KIND, "stands beside a path; give one"))
    elif "path" not in row and "url" not in row:
        problems.append(Problem(f"{loc}/path", _KIND, "is missing"))
    if "task" in row:
        try:
            check_task_name(row["task"])
        except InvalidInputError as error:
            problems.append(Problem(f"{loc}/task", error.kind, error.message))
    if "path" in row:
        problems += _path_problems(row["path"], folder, f"{loc}/path")
    if "url" in row and not (_is_text(row["url"]) and is_url(row["url"])):
        # Not shown: it may hold credentials.
        problems.append(
            Problem(f"{loc}/url", _KIND, "expected a URL such as hf://org/name or s3://bucket/a.safetensors")
        )
    metadata = row.get("metadata", {})
    if not isinstance(metadata, dict) or not all(
        _is_text(key) and _is_text(value) for key, value in metadata.items()
    ):
        problems.append(Problem(f"{loc}/metadata", _KIND, "expected an object whose values are text"))
    return problems


def _path_problems(value: object, folder: Path, loc: str) -> list[Problem]:
    if not isinstance(value, str) or not value:
        return [Problem(loc, _KIND, f"expected a path as text, found {value!r}")]
    try:
        is_there = (folder / value).exists()
    except OSError as error:
        return [Problem(loc, _KIND, f"{value!r} cannot be looked up ({error})")]
    return [] if is_there else [Problem(loc, _KIND, f"there is no file or folder {value!r} (from {folder})")]


def _is_text(value: object) -> bool:
    """Whether it is a str that UTF-8 can express; JSON can hold others."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()
