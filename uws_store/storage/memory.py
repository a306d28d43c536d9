"""Objects in the memory of this process, for tests and for families that are not to be kept."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from uws_store.storage.protocol import check_path, missing, resolve_range, too_large, write_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["MemoryStorage"]


class MemoryStorage:
    """Objects in a dict behind a lock.

    Parameters
    ----------
    name : str, optional
        The name in ``memory://name``. A storage made here is private all the same: only
        :func:`~uws_store.storage.open_storage` shares storages by name.
    clock : callable, optional
        Tells the seconds since 1970.
    """

    def __init__(self, name: str = "", *, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._written: dict[str, float] = {}

    @property
    def url(self) -> str:
        """``memory://`` and the name."""
        return f"memory://{self.name}"

    def __repr__(self) -> str:
        return f"MemoryStorage({self.name!r})"

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """See :meth:`Storage.read`."""
        data = self._objects.get(check_path(path))
        if data is None:
            raise missing(path, url=self.url)
        offset, count = resolve_range(len(data), start, end, where=f"{self.url}/{path}")
        return data[offset : offset + count]

    def size(self, path: str) -> int | None:
        """See :meth:`Storage.size`."""
        data = self._objects.get(check_path(path))
        return None if data is None else len(data)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """See :meth:`Storage.read_at_most`."""
        data = self._objects.get(check_path(path))
        if data is not None and len(data) > limit_bytes:
            raise too_large(path, limit_bytes, url=self.url)
        return data

    def modified(self, path: str) -> float | None:
        """See :meth:`Storage.modified`."""
        return self._written.get(check_path(path))

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """See :meth:`Storage.put_if_absent`; durable for as long as the process lives."""
        check_path(path)
        with self._lock:
            if path in self._objects:
                return False
            self._objects[path] = bytes(data)
            self._written[path] = self._clock()
        write_hints(self, hints)
        return True

    def stage(self, path: str, data: bytes) -> bool:
        """See :meth:`Storage.stage`."""
        return self.put_if_absent(path, data)

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Storage.put`."""
        check_path(path)
        with self._lock:
            self._objects[path] = bytes(data)
            self._written[path] = self._clock()

    def list(self, prefix: str) -> Iterator[str]:
        """See :meth:`Storage.list`."""
        below = f"{check_path(prefix)}/" if prefix else ""
        with self._lock:
            found = sorted(path for path in self._objects if path.startswith(below))
        return iter(found)

    def delete(self, path: str) -> None:
        """See :meth:`Storage.delete`."""
        check_path(path)
        with self._lock:
            self._objects.pop(path, None)
            self._written.pop(path, None)
