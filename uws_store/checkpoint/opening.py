"""Opening a checkpoint: its files joined under one set of names.

Owns the choice of a reader, the check of shards against their index, and the ``module.`` that all names begin with.
Must not know about zoos.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from uws_store.adapter import CONFIG_NAME, MAX_CONFIG_BYTES, AdapterConfig, parse_config
from uws_store.checkpoint.base import Checkpoint, TensorInfo, check_rows, listed, tensor_info
from uws_store.checkpoint.folder import SAFETENSORS_SUFFIX, Parts, parts_of
from uws_store.checkpoint.remote import RemoteCheckpoint, is_url, object_at
from uws_store.checkpoint.safetensors_file import SafetensorsFile
from uws_store.checkpoint.side_files import find_side_files, read_side_file
from uws_store.checkpoint.torch_file import TorchFile
from uws_store.checkpoint.weight_file import file_errors
from uws_store.errors import FormatError, InvalidInputError, Problem
from uws_store.storage import StorageUrl

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import torch

    from uws_store.checkpoint.weight_file import WeightFile

__all__ = ["open_checkpoint"]

# What torch.nn.DataParallel and DistributedDataParallel put before every name.
_PREFIX = "module."
# The one name that safetensors keeps for itself.
_RESERVED_NAME = "__metadata__"
# What PEFT calls the weights of an adapter.
_ADAPTER_STEM = "adapter_model"


def open_checkpoint(
    path: str | os.PathLike[str], *, storage_options: Mapping[str, object] | None = None
) -> Checkpoint:
    """Open a checkpoint for lazy reading.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file, a file of ``torch.save`` (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), one of a set of
        shards or their index, or a folder of these; or the URL of a ``.safetensors`` object in a storage, or of a folder
        or a repository of the Hub (``hf://org/name@revision``) that holds one.
    storage_options : Mapping of str to object, optional
        For the storage that a URL names: see :func:`uws_store.storage.open_storage`.

    Returns
    -------
    Checkpoint
        Close it, or use it as a context manager. A safetensors file costs one read of its header. A file of
        ``torch.save`` is mapped, unless it is of the kind torch wrote before 1.6: that is read whole.

    Raises
    ------
    NotFoundError
        When nothing is there (kind ``not-found/checkpoint``).
    FormatError
        When a file is damaged, cut short or missing from its set (kind ``format/checkpoint``).
    InvalidInputError
        When it is not a checkpoint (kind ``invalid-input/not-a-checkpoint``), more than one
        (``invalid-input/ambiguous-checkpoint``), its adapter configuration cannot be used
        (``invalid-input/adapter-config``), one without tensors (``invalid-input/no-tensors``), or one that
        holds what cannot be kept (``invalid-input/pickle``, ``invalid-input/dtype``, ``invalid-input/tensor-kind``,
        ``invalid-input/tensor-name``).
    StorageError
        When the disk fails (kinds ``storage/...``).
    """
    if isinstance(path, str) and is_url(path):
        return RemoteCheckpoint(object_at(StorageUrl(path, storage_options)))
    where = Path(path)
    parts = parts_of(where)
    with ExitStack() as stack:
        files: list[WeightFile] = []
        for file in parts.files:
            is_safe = file.suffix.casefold() == SAFETENSORS_SUFFIX
            files.append(SafetensorsFile(file) if is_safe else TorchFile(file))
            stack.callback(files[-1].close)
        checkpoint = _FileCheckpoint(where, files, parts)
        checkpoint.adapter = _adapter_beside(where, parts)
        stack.pop_all()
    return checkpoint


def _adapter_beside(where: Path, parts: Parts) -> AdapterConfig | None:
    """Read the configuration that makes weights an adapter: in their folder, or beside a file of PEFT's name."""
    if not where.is_dir() and where.stem != _ADAPTER_STEM:
        return None
    path = parts.files[0].parent / CONFIG_NAME
    if not path.is_file():
        return None
    with file_errors(path), path.open("rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    return parse_config(data, where=str(path))


class _FileCheckpoint(Checkpoint):
    """One or more weight files as a checkpoint."""

    def __init__(self, where: Path, files: list[WeightFile], parts: Parts) -> None:
        self.source = source = str(where)
        self._files = files
        self._side_files, left_out = find_side_files(where) if where.is_dir() else ({}, ())
        self.side_files = tuple(self._side_files)
        self._sha256: str | None = None
        places = _places(files, source=source)
        _check_index(places, parts, source=source)
        _check_names(places, source=source)
        drop = len(_PREFIX) if all(name.startswith(_PREFIX) and name != _PREFIX for name in places) else 0
        self._places = {name[drop:]: place for name, place in places.items()}
        self.tensors = MappingProxyType(
            {name: TensorInfo(name, info.dtype, info.shape) for name, (_, info) in self._places.items()}
        )
        self.tied = tuple(tuple(name[drop:] for name in names) for file in files for names in file.tied)
        self.notices = (
            *parts.notices,
            *left_out,
            *(notice for file in files for notice in file.notices),
            *_unlisted(places, parts),
            *((f"taken off: {_PREFIX!r}, which all names began with",) if drop else ()),
        )
        self.metadata = MappingProxyType(_common_metadata(files))
        self.file_size_bytes = sum(file.stamp.size_bytes for file in files)

    def read(self, name: str) -> torch.Tensor:
        tensor_info(self.tensors, name, source=self.source)
        file, info = self._places[name]
        return file.read(info)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        check_rows(tensor_info(self.tensors, name, source=self.source), start, stop, source=self.source)
        file, info = self._places[name]
        return file.read_rows(info, start, stop)

    def read_side_file(self, name: str) -> bytes:
        path = self._side_files.get(name)
        return super().read_side_file(name) if path is None else read_side_file(path)

    def sha256(self) -> str:
        if self._sha256 is None:
            digest = hashlib.sha256()
            for file in self._files:
                file.update_digest(digest)
            self._sha256 = digest.hexdigest()
        else:
            for file in self._files:
                file.check_unchanged()
        return self._sha256

    def note_sha256(self, digest: str) -> None:
        self._sha256 = digest

    def identity(self) -> str:
        return " ".join(
            f"{file.path.name} {file.stamp.size_bytes} {file.stamp.changed_ns}" for file in self._files
        )

    def close(self) -> None:
        for file in self._files:
            file.close()


def _places(files: list[WeightFile], *, source: str) -> dict[str, tuple[WeightFile, TensorInfo]]:
    """Map each tensor's name in the files to its file."""
    places: dict[str, tuple[WeightFile, TensorInfo]] = {}
    problems = []
    for file in files:
        for name, info in file.tensors.items():
            if name in places:
                other = places[name][0].path.name
                problems.append(
                    Problem(
                        name, "format/doubled-tensor", f"it stands both in {other} and in {file.path.name}"
                    )
                )
            places[name] = (file, info)
    if problems:
        raise FormatError(
            f"{source} holds tensors twice; keep one set of shards",
            kind="format/checkpoint",
            problems=tuple(problems),
        )
    if not places:
        raise InvalidInputError(
            f"{source} holds no tensors; save model.state_dict()", kind="invalid-input/no-tensors"
        )
    return places


def _check_index(places: Mapping[str, tuple[WeightFile, TensorInfo]], parts: Parts, *, source: str) -> None:
    problems = tuple(
        Problem(name, "format/index", f"the index places it in {path.name}, and it is not there")
        for name, path in parts.listed_in.items()
        if name not in places or places[name][0].path != path
    )
    if problems:
        raise FormatError(
            f"the shards of {source} are not those of its index; download them again",
            kind="format/checkpoint",
            problems=problems,
        )


def _check_names(places: Mapping[str, object], *, source: str) -> None:
    for name in places:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"the name {name!a} of a tensor in {source} is not text; rename it",
                kind="invalid-input/tensor-name",
            ) from error
        if name.removeprefix(_PREFIX) == _RESERVED_NAME:
            raise InvalidInputError(
                f"{source} has a tensor named {name!r}, which safetensors keeps for itself; rename it",
                kind="invalid-input/tensor-name",
            )


def _unlisted(places: Mapping[str, object], parts: Parts) -> tuple[str, ...]:
    extra = [name for name in places if parts.listed_in and name not in parts.listed_in]
    return (f"kept: {listed(extra)} (in the shards, though not in their index)",) if extra else ()


def _common_metadata(files: list[WeightFile]) -> dict[str, str]:
    """Give the header texts that no two shards contradict."""
    found: dict[str, set[str]] = {}
    for file in files:
        for key, value in file.metadata.items():
            found.setdefault(key, set()).add(value)
    return {key: values.pop() for key, values in sorted(found.items()) if len(values) == 1}
