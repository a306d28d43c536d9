"""One weight file: the interface of its readers, and the guard against files that change while they are read.

Owns the stamp of a file, its digest, and the translation of the operating system's errors. Must not know about
formats or folders.
"""

from __future__ import annotations

import errno
import hashlib
import json
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uws_store.errors import FormatError, InvalidInputError, MemoryLimitError, NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch

    from uws_store.checkpoint.base import TensorInfo

__all__ = ["FileStamp", "WeightFile", "damaged", "file_errors", "first_bytes", "read_json"]

_BLOCK_BYTES = 1 << 20
# Some three hundred thousand entries of an index, a manifest or a map.
_MOST_JSON_BYTES = 1 << 26
_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells one state of a file from another.

    Attributes
    ----------
    device, inode : int
        Which file it is.
    size_bytes : int
        Its size.
    changed_ns : int
        When it was last written, in nanoseconds.
    """

    device: int
    inode: int
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Take the stamp of a file that exists; errors as of :func:`file_errors`."""
        with file_errors(path):
            status = path.stat()
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class WeightFile(ABC):
    """One file of tensors under the names it gives them.

    Parameters
    ----------
    path : Path
        The file; it must exist.

    Attributes
    ----------
    tensors, tied, notices, metadata
        As of :class:`~uws_store.checkpoint.base.Checkpoint`.
    """

    tensors: Mapping[str, TensorInfo]
    tied: tuple[tuple[str, ...], ...]
    notices: tuple[str, ...]
    metadata: Mapping[str, str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp = FileStamp.of(path)
        self._is_open = True

    @abstractmethod
    def _read(self, info: TensorInfo) -> torch.Tensor:
        """Read a whole tensor into memory of its own."""

    @abstractmethod
    def _read_rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Read some rows, checked before, of a tensor that is not empty."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the file."""

    def read(self, info: TensorInfo) -> torch.Tensor:
        """Read a tensor of this file; ``info`` is one of ``tensors``."""
        self._check_ready()
        with file_errors(self.path):
            return self._read(info)

    def read_rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Read rows of a tensor of this file, checked before; ``info`` is one of ``tensors``."""
        self._check_ready()
        with file_errors(self.path):
            return self._read_rows(info, start, stop)

    def update_digest(self, digest: hashlib._Hash) -> None:
        """Feed the file's bytes to a digest, in blocks of 1 MiB."""
        self._check_ready()
        block = bytearray(_BLOCK_BYTES)
        with file_errors(self.path), self.path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(memoryview(block)[:count])
        self.check_unchanged()

    def close(self) -> None:
        """Let go of the file; closing twice is fine."""
        if self._is_open:
            self._is_open = False
            self._close()

    def _check_ready(self) -> None:
        if not self._is_open:
            raise InvalidInputError(f"{self.path} was closed and cannot be read", kind="invalid-input/closed")
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Refuse a file that is not as it was when it was opened (kind ``invalid-input/checkpoint-changed``)."""
        # Weights of one file and the digest of another must never stand in one record.
        if FileStamp.of(self.path) != self.stamp:
            raise InvalidInputError(
                f"{self.path} was changed since it was opened; do not write to a zoo that is being read, and try again",
                kind="invalid-input/checkpoint-changed",
            )


def damaged(path: Path, reason: str) -> FormatError:
    """Make the error for a file that is not the checkpoint its name says it is."""
    return FormatError(
        f"{path} cannot be read as a checkpoint: {reason}; copy or download it again",
        kind="format/checkpoint",
    )


def first_bytes(path: Path, count: int) -> bytes:
    """Read the first bytes of a weight file.

    Raises
    ------
    FormatError
        When the file is empty, or is the pointer that git leaves in the place of a large file.
    UwsError
        As of :func:`file_errors`.
    """
    with file_errors(path), path.open("rb") as file:
        head = file.read(max(count, len(_GIT_LFS)))
    if not head:
        raise damaged(path, "the file is empty")
    if head.startswith(_GIT_LFS):
        raise damaged(path, "it is a pointer of Git LFS and not the file itself (run 'git lfs pull')")
    return head[:count]


def read_json(
    path: Path, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> object:
    """Read a JSON file of at most 64 MiB that stands beside weights.

    Raises
    ------
    ValueError, RecursionError
        When it is longer, or no JSON.
    UwsError
        As of :func:`file_errors`.
    """
    with file_errors(path), path.open("rb") as file:
        data = file.read(_MOST_JSON_BYTES + 1)
    if len(data) > _MOST_JSON_BYTES:
        raise ValueError(f"it is longer than {_MOST_JSON_BYTES} bytes")
    return json.loads(data, object_pairs_hook=object_pairs_hook)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about a checkpoint into ours.

    Raises
    ------
    NotFoundError
        When the file does not exist (kind ``not-found/checkpoint``).
    StorageError
        For its other errors (kind ``storage/permission``, ``storage/open-files`` or ``storage/io``).
    MemoryLimitError
        When there is no memory for what is read (kind ``memory-limit/checkpoint``).
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"there is no checkpoint {path}; check the path", kind="not-found/checkpoint"
        ) from error
    except PermissionError as error:
        raise StorageError(f"{path} may not be read: {error}", kind="storage/permission") from error
    except StorageError:
        raise
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise StorageError(
                f"{path} cannot be opened, since too many files are open; close checkpoints or raise 'ulimit -n'",
                kind="storage/open-files",
            ) from error
        raise StorageError(f"{path} cannot be read: {error}", kind="storage/io") from error
    except MemoryError as error:
        raise MemoryLimitError(
            f"there is no memory to read from {path}; read it on a larger machine",
            kind="memory-limit/checkpoint",
        ) from error
