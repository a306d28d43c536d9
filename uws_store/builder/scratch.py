"""Large arrays of a build on this machine's disk instead of in its memory.

Owns the files behind them, which have no name: they are gone with the last array that uses them, or with the process,
however it ends. Must not know what the arrays hold.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from uws_store.errors import StorageError

__all__ = ["Scratch"]

T = TypeVar("T", bound=np.generic)

_LEAST_BYTES = 1 << 20


class Scratch:
    """A folder on whose disk arrays are kept.

    What is read or written of them is in memory until :meth:`forget`. In another process it is the same folder, or,
    where there is none, the system's for temporary files.

    Parameters
    ----------
    folder : Path or None
        Made when it is needed; None is the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._maps: weakref.WeakKeyDictionary[mmap.mmap, range] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Scratch], tuple[Path | None]]:
        return Scratch, (self.folder,)

    def zeros(self, shape: tuple[int, ...], dtype: type[T]) -> npt.NDArray[T]:
        """Make an array of zeros; a small one in memory.

        Raises
        ------
        StorageError
            When the disk has no room for it (kind ``storage/scratch``).
        """
        count = int(np.prod(shape, dtype=np.int64))
        size_bytes = count * np.dtype(dtype).itemsize
        if size_bytes < _LEAST_BYTES:
            return np.zeros(shape, dtype)
        try:
            with self._file() as file:
                _reserve(file, size_bytes)
                mapping = mmap.mmap(file.fileno(), size_bytes)
        except OSError as error:
            raise StorageError(
                f"{self.folder or tempfile.gettempdir()} has no room for {size_bytes / 2**30:.2f} GiB that a build keeps "
                f"there while it runs ({error.strerror}); make room, or name another place with UWS_STORE_CACHE",
                kind="storage/scratch",
            ) from error
        array = np.frombuffer(mapping, dtype, count)
        with self._lock:
            self._maps[mapping] = range(array.ctypes.data, array.ctypes.data + size_bytes)
        return array.reshape(shape)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor of the CPU to the disk; a small one, or one that lies there, is given back as it is.

        Raises
        ------
        StorageError
            As :meth:`zeros`.
        """
        if tensor.nbytes < _LEAST_BYTES or self._has(tensor):
            return tensor
        kept = torch.from_numpy(self.zeros((tensor.nbytes,), np.uint8)).view(tensor.dtype)
        kept.copy_(tensor.reshape(-1))
        self.forget()
        return kept.reshape(tensor.shape)

    def forget(self) -> None:
        """Let go of the memory of all arrays; what they hold stays on the disk, and is read when it is touched."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is None:
            return
        with self._lock:
            maps = list(self._maps)
        for mapping in maps:
            # Of a file that others could map too: no written byte is lost.
            mapping.madvise(advice)

    def _has(self, tensor: torch.Tensor) -> bool:
        with self._lock:
            return any(tensor.data_ptr() in places for places in self._maps.values())

    def _file(self) -> IO[bytes]:
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return tempfile.TemporaryFile(dir=self.folder)
            except OSError:
                # Read-only, or a folder of another machine.
                pass
        return tempfile.TemporaryFile()


def _reserve(file: IO[bytes], size_bytes: int) -> None:
    """Take the room at once: a write into a mapping that finds none ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    else:
        file.truncate(size_bytes)
