"""Getting models back out as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uws_store.api.family import open_family
from uws_store.checkpoint import write_safetensors
from uws_store.errors import NotFoundError
from uws_store.model import Tier
from uws_store.registry import Registry

__all__ = ["ExportResult", "export", "file_name_of"]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A checkpoint that was written.

    Attributes
    ----------
    family, task, tier, path : str
        What, and where to.
    version, tensors, size_bytes : int
        Numbers.
    """

    family: str
    task: str
    version: int
    tier: str
    path: str
    tensors: int
    size_bytes: int


def file_name_of(task: str) -> str:
    """Name a file after a task, another for every task: a slash is written as ``%2F``, a percent sign as ``%25``."""
    return task.replace("%", "%25").replace("/", "%2F") + ".safetensors"


def export(
    family: str,
    task: str,
    output: str | Path,
    *,
    registry: str | Registry | None = None,
    revision: int | str | None = None,
    tier: Tier = "compact",
    overwrite: bool = False,
) -> ExportResult:
    """Write a model as a safetensors file.

    Parameters
    ----------
    family, task : str
        Which model.
    output : str or Path
        The file to write, or an existing folder, in which it is named after the task.
    registry, revision, tier
        As in :func:`uws_store.load_model`; every tensor is checked against its digest.
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    AlreadyExistsError
        When the file exists and ``overwrite`` is false.
    UwsError
        As in :func:`uws_store.load_model`; nothing is left at ``output`` then.
    """
    weights = open_family(family, registry=registry).load(task, revision=revision, tier=tier)
    path = Path(output)
    if path.is_dir():
        path = path / file_name_of(weights.task)
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent} is no folder; make it first", kind="not-found/folder")
    tensors = weights.materialize()
    # transformers asks for the framework; everything else is the original's own.
    metadata = {"format": "pt"} | dict(weights.model.document.source.metadata)
    write_safetensors(path, tensors, metadata, overwrite=overwrite)
    return ExportResult(
        family=family,
        task=weights.task,
        version=weights.version,
        tier=tier,
        path=str(path),
        tensors=len(tensors),
        size_bytes=path.stat().st_size,
    )
