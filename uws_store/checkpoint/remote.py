"""Checkpoints in a bucket or on a web server: the header of a safetensors object first, then ranges of it.

Owns the reading of that header. Reads through :mod:`uws_store.storage`; nothing is copied to a disk. Must not know
what a zoo is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from uws_store.checkpoint.base import Checkpoint, TensorInfo, check_rows, tensor_info
from uws_store.dtypes import DTYPES
from uws_store.errors import FormatError, InvalidInputError, NotFoundError, StorageError
from uws_store.storage import StorageUrl, open_storage
from uws_store.tensor_bytes import tensor_from_bytes

if TYPE_CHECKING:
    import torch

    from uws_store.storage import Storage

__all__ = ["RemoteCheckpoint", "is_url", "list_remote", "object_at"]

_SUFFIX = ".safetensors"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_BLOCK_BYTES = 1 << 24
_HUB = "hf://"


def is_url(place: object) -> bool:
    """Whether a place is a URL that a storage opens, and no path."""
    return isinstance(place, str) and "://" in place and not place.lower().startswith("file:")


def list_remote(url: str) -> tuple[str, ...]:
    """Give the URLs of the safetensors objects that stand directly in a folder, sorted.

    Raises
    ------
    UwsError
        As of the storage; a web server that lists nothing has none.
    """
    storage = open_storage(url)
    names = (path for path in storage.list("") if path.endswith(_SUFFIX) and "/" not in path)
    return tuple(StorageUrl(f"{url.rstrip('/')}/{name}", _options(url)) for name in names)


def object_at(url: str) -> str:
    """Give the URL of the checkpoint's one object: itself, or the safetensors object of a folder or a repository.

    Raises
    ------
    InvalidInputError
        When there are several, as of a sharded model (kind ``invalid-input/ambiguous-checkpoint``).
    NotFoundError
        When there is none (kind ``not-found/checkpoint``).
    """
    name = url.rstrip("/").rpartition("/")[2]
    # A repository's name may hold a dot; another object that has an extension is a file of another kind.
    if url.endswith(_SUFFIX) or ("." in name and not url.startswith(_HUB)):
        return url
    found = list_remote(url)
    if len(found) > 1:
        names = ", ".join(one.rpartition("/")[2] for one in found[:3])
        raise InvalidInputError(
            f"{url} holds {len(found)} safetensors objects ({names}...), and a checkpoint that is read from afar is one; "
            "give the URL of one, or copy a sharded model to a disk first",
            kind="invalid-input/ambiguous-checkpoint",
        )
    if not found:
        raise NotFoundError(f"{url} holds no {_SUFFIX} object; check the URL", kind="not-found/checkpoint")
    return found[0]


def _options(url: str) -> dict[str, Any]:
    return dict(url.options) if isinstance(url, StorageUrl) else {}


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    stop: int


class RemoteCheckpoint(Checkpoint):
    """One safetensors object of a storage.

    Opening costs its size and two ranges, each tensor one range.

    Parameters
    ----------
    url : str
        Of the object; a :class:`~uws_store.storage.StorageUrl` carries options.

    Raises
    ------
    NotFoundError
        When nothing is there (kind ``not-found/checkpoint``).
    FormatError
        When it is no whole safetensors object (kind ``format/checkpoint``).
    InvalidInputError
        When it is of another kind of file, or has a dtype that is not supported.
    """

    def __init__(self, url: str) -> None:
        folder, _, self._name = url.rpartition("/")
        self.source = str(url)
        if not self._name.endswith(_SUFFIX):
            raise InvalidInputError(
                f"{self.source} cannot be read from afar: only {_SUFFIX} objects can; copy it to a disk first",
                kind="invalid-input/not-a-checkpoint",
            )
        self._storage: Storage = open_storage(StorageUrl(folder, _options(url)))
        size = self._storage.size(self._name)
        if size is None:
            raise NotFoundError(
                f"there is no checkpoint {self.source}; check the URL", kind="not-found/checkpoint"
            )
        self.file_size_bytes = size
        self._stamp = self._modified()
        self._sha256: str | None = None
        header, data_start = self._header()
        metadata = header.pop("__metadata__", {})
        self.metadata = MappingProxyType({str(key): str(value) for key, value in metadata.items()})
        self._ranges: dict[str, _Range] = {}
        found: dict[str, TensorInfo] = {}
        for name, entry in sorted(header.items(), key=lambda pair: (pair[1]["data_offsets"], pair[0])):
            found[name] = self._info(name, entry, data_start)
        if not found:
            raise InvalidInputError(f"{self.source} holds no tensors", kind="invalid-input/no-tensors")
        self.tensors = MappingProxyType(found)
        self.tied = ()
        self.notices = ()

    def _modified(self) -> float | None:
        try:
            return self._storage.modified(self._name)
        except StorageError as error:
            if error.kind != "storage/no-clock":
                raise
            return None

    def _damaged(self, reason: str) -> FormatError:
        return FormatError(
            f"{self.source} cannot be read as a checkpoint: {reason}; upload it again",
            kind="format/checkpoint",
        )

    def _header(self) -> tuple[dict[str, Any], int]:
        if self.file_size_bytes < _LENGTH_BYTES:
            raise self._damaged(f"it has {self.file_size_bytes} bytes")
        length = int.from_bytes(self._storage.read(self._name, start=0, end=_LENGTH_BYTES), "little")
        end = _LENGTH_BYTES + length
        if length > _MAX_HEADER_BYTES or end > self.file_size_bytes:
            raise self._damaged(f"its header would end at {end}, and it has {self.file_size_bytes} bytes")
        try:
            header = json.loads(self._storage.read(self._name, start=_LENGTH_BYTES, end=end))
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is no JSON ({error})") from error
        entries = isinstance(header, dict) and all(isinstance(entry, dict) for entry in header.values())
        if not entries or not all(
            _is_pair(entry.get("data_offsets")) for name, entry in header.items() if name != "__metadata__"
        ):
            raise self._damaged("its header is no table of tensors")
        return header, end

    def _info(self, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
        dtype, shape = str(entry.get("dtype")), entry.get("shape")
        if dtype not in DTYPES:
            raise InvalidInputError(
                f"tensor {name!r} of {self.source} has dtype {dtype!r}, which is not supported",
                kind="invalid-input/dtype",
            )
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise self._damaged(f"tensor {name!r} has the shape {shape!r}")
        start, stop = (data_start + offset for offset in entry["data_offsets"])
        info = TensorInfo(name, DTYPES[dtype], tuple(shape))
        if stop - start != info.size_bytes or stop > self.file_size_bytes:
            raise self._damaged(
                f"tensor {name!r} needs {info.size_bytes} bytes, and {stop - start} of {self.file_size_bytes} are given"
            )
        self._ranges[name] = _Range(start, stop)
        return info

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor with one range request."""
        info = tensor_info(self.tensors, name, source=self.source)
        place = self._ranges[name]
        data = (
            self._storage.read(self._name, start=place.start, end=place.stop)
            if place.stop > place.start
            else b""
        )
        return tensor_from_bytes(data, dtype=info.dtype, shape=info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows with one range request of just their bytes."""
        info = tensor_info(self.tensors, name, source=self.source)
        check_rows(info, start, stop, source=self.source)
        row = info.size_bytes // max(1, info.shape[0])
        first = self._ranges[name].start
        low, high = first + start * row, first + stop * row
        data = self._storage.read(self._name, start=low, end=high) if high > low else b""
        return tensor_from_bytes(data, dtype=info.dtype, shape=(stop - start, *info.shape[1:]))

    def sha256(self) -> str:
        """Digest of the object's bytes, read in ranges of 16 MiB."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            for start in range(0, self.file_size_bytes, _BLOCK_BYTES):
                end = min(start + _BLOCK_BYTES, self.file_size_bytes)
                digest.update(self._storage.read(self._name, start=start, end=end))
            self._require_unchanged()
            self._sha256 = digest.hexdigest()
        return self._sha256

    def _require_unchanged(self) -> None:
        now = self._storage.size(self._name), self._modified()
        if now != (self.file_size_bytes, self._stamp):
            raise InvalidInputError(
                f"{self.source} was changed since it was opened; do not write to a zoo that is being read, and try again",
                kind="invalid-input/checkpoint-changed",
            )

    def note_sha256(self, digest: str) -> None:
        """Take the digest that another reader computed."""
        self._sha256 = digest

    def identity(self) -> str:
        """Name, size and time of the last change, where the storage tells it."""
        return f"{self._name} {self.file_size_bytes} {self._stamp}"

    def close(self) -> None:
        """Let go of nothing: the storage keeps what it needs."""


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(offset) is int for offset in value)
        and 0 <= value[0] <= value[1]
    )
