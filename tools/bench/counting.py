"""A storage that counts what is asked of it. Must not know what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from uws_store.storage import Storage

__all__ = ["Counting"]


@dataclass(slots=True)
class Counting:
    """A storage that counts requests and the bytes they fetch.

    Attributes
    ----------
    inner : Storage
        The storage.
    requests : int
        Calls so far.
    size_bytes : int
        Bytes that they fetched.
    """

    inner: Storage
    requests: int = 0
    size_bytes: int = 0

    @property
    def url(self) -> str:
        """See :class:`Storage`."""
        return self.inner.url

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """See :class:`Storage`."""
        data = self.inner.read(path, start=start, end=end)
        return self._counted(data)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """See :class:`Storage`."""
        data = self.inner.read_at_most(path, limit_bytes)
        self._counted(data or b"")
        return data

    def size(self, path: str) -> int | None:
        """See :class:`Storage`."""
        self.requests += 1
        return self.inner.size(path)

    def modified(self, path: str) -> float | None:
        """See :class:`Storage`."""
        self.requests += 1
        return self.inner.modified(path)

    def put(self, path: str, data: bytes) -> None:
        """See :class:`Storage`."""
        self.requests += 1
        self.inner.put(path, data)

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """See :class:`Storage`."""
        self.requests += 1 + len(hints or {})
        return self.inner.put_if_absent(path, data, hints=hints)

    def stage(self, path: str, data: bytes) -> bool:
        """See :class:`Storage`."""
        self.requests += 1
        return self.inner.stage(path, data)

    def list(self, prefix: str) -> Iterator[str]:
        """See :class:`Storage`."""
        self.requests += 1
        return self.inner.list(prefix)

    def delete(self, path: str) -> None:
        """See :class:`Storage`."""
        self.requests += 1
        self.inner.delete(path)

    def _counted(self, data: bytes) -> bytes:
        self.requests += 1
        self.size_bytes += len(data)
        return data
