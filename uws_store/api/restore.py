"""Getting models back out as checkpoints: a file, or the folder that the model came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uws_store.api.family import Family, open_family
from uws_store.checkpoint import SAFETENSORS_SUFFIX, write_folder, write_safetensors
from uws_store.errors import NotFoundError
from uws_store.model import Tier
from uws_store.registry import Registry

__all__ = ["ExportResult", "export", "export_name", "file_name_of"]

_WEIGHTS = "model.safetensors"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A checkpoint that was written.

    Attributes
    ----------
    family, task, tier, path : str
        What, and where to: a file, or the folder of the weights and their side files.
    version, tensors, size_bytes : int
        Numbers; the bytes are those of all files.
    side_files : tuple of str
        Files that were written beside the weights; none for a bare file.
    """

    family: str
    task: str
    version: int
    tier: str
    path: str
    tensors: int
    size_bytes: int
    side_files: tuple[str, ...] = ()


def file_name_of(task: str) -> str:
    """Name a file after a task, another for every task: a slash is written as ``%2F``, a percent sign as ``%25``."""
    return _quoted(task) + SAFETENSORS_SUFFIX


def export_name(family: Family, task: str, *, revision: int | str | None = None) -> str:
    """Name what a task is exported as: a folder where side files travel with it, else a file.

    Costs the requests for its record.
    """
    document = family.model(family.resolve(task, revision=revision)).document
    return _quoted(task) if document.files or document.shared_files else file_name_of(task)


def _quoted(task: str) -> str:
    return task.replace("%", "%25").replace("/", "%2F")


def _weights_name(side_files: Iterable[str]) -> str:
    """Name the weights of a folder as the library that wrote its side files does."""
    names = frozenset(side_files)
    return _ADAPTER_WEIGHTS if "adapter_config.json" in names and "config.json" not in names else _WEIGHTS


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
    """Write a model as it came: as a safetensors file, or as a folder with its configuration and tokenizer.

    Parameters
    ----------
    family, task : str
        Which model.
    output : str or Path
        For a model with side files: the folder to make, which ``from_pretrained`` opens; a path that ends in
        ``.safetensors`` gets the weights alone. For a model without: the file to write, or an existing folder, in
        which it is named after the task.
    registry, revision, tier
        As in :func:`uws_store.load_model`; every tensor and file is checked against its digest.
    overwrite : bool
        Replace files that are there.

    Raises
    ------
    AlreadyExistsError
        When the file exists, or the folder holds something, and ``overwrite`` is false.
    UwsError
        As in :func:`uws_store.load_model`; nothing is left at ``output`` then.
    """
    weights = open_family(family, registry=registry).load(task, revision=revision, tier=tier)
    path = Path(output)
    is_file = path.suffix.casefold() == SAFETENSORS_SUFFIX and not path.is_dir()
    files = {} if is_file else weights.side_files()
    if not files and path.is_dir():
        path = path / file_name_of(weights.task)
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent} is no folder; make it first", kind="not-found/folder")
    tensors = weights.materialize()
    # transformers asks for the framework; everything else is the original's own.
    metadata = {"format": "pt"} | dict(weights.model.document.source.metadata)
    if files:
        size = write_folder(
            path,
            tensors,
            metadata,
            weights_name=_weights_name(files),
            side_files=files,
            overwrite=overwrite,
        )
    else:
        size = write_safetensors(path, tensors, metadata, overwrite=overwrite)
    return ExportResult(
        family=family,
        task=weights.task,
        version=weights.version,
        tier=tier,
        path=str(path),
        tensors=len(tensors),
        size_bytes=size,
        side_files=tuple(files),
    )
