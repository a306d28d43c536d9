"""The objects of a basis or a model that are too many bytes for memory, as files of a folder of their own.

Owns the folder, which is removed with the last who uses it. Must not know what the objects hold.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

from uws_store.errors import StorageError
from uws_store.storage import LocalStorage, Storage

__all__ = ["ObjectFolder", "object_sizes"]

_PREFIX = "objects"


class ObjectFolder(Mapping[str, bytes]):
    """Objects by path, each read when it is asked for.

    Parameters
    ----------
    parent : Path or None
        For a folder that is made below; None is the system's folder for temporary files.

    Raises
    ------
    StorageError
        When no folder can be made (kind ``storage/scratch``), or an object cannot be written.
    """

    def __init__(self, parent: Path | None = None) -> None:
        try:
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix="objects-", dir=parent)
        except OSError as error:
            raise StorageError(
                f"{parent or tempfile.gettempdir()} cannot be written, where a build keeps what its memory does not hold: "
                f"{error.strerror}; name another place with UWS_STORE_CACHE",
                kind="storage/scratch",
            ) from error
        # When it is collected, and at the latest when the interpreter ends.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.storage: Storage = LocalStorage(Path(folder))
        self.prefix = _PREFIX
        self.sizes: dict[str, int] = {}

    def add(self, path: str, data: bytes) -> None:
        """Take an object."""
        self.storage.put(f"{_PREFIX}/{path}", data)
        self.sizes[path] = len(data)

    def __getitem__(self, path: str) -> bytes:
        if path not in self.sizes:
            raise KeyError(path)
        return self.storage.read(f"{_PREFIX}/{path}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def object_sizes(objects: Mapping[str, bytes]) -> dict[str, int]:
    """Bytes of each object by its path; those in a folder are not read for it."""
    if isinstance(objects, ObjectFolder):
        return dict(objects.sizes)
    return {path: len(data) for path, data in objects.items()}
