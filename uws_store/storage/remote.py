"""Objects behind a network, through an fsspec file system. Must not know what is stored.

Owns what all such storages have in common: exact ranges out of what a server sends, errors without credentials,
one request per call wherever the server allows it. What is particular to a backend stands in ``clouds.py``, ``web.py``
and ``hugging.py``.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, NotFoundError, StorageError, UwsError
from uws_store.storage.bounded import LARGEST_WHOLE_BYTES
from uws_store.storage.faults import as_error, fault_of
from uws_store.storage.listing import Listed
from uws_store.storage.protocol import check_path, missing, resolve_range, too_large, write_hints

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from uws_store.storage.url import StorageUrl

__all__ = ["Backend", "ObjectInfo", "RemoteStorage"]

_NOT_FOUND = 404
_RANGE_NOT_SATISFIABLE = 416
_ANY_SIZE = 1 << 63


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a server says of an object without sending it.

    Attributes
    ----------
    size : int
        Bytes.
    modified : float or None
        Seconds since 1970 by the server's clock, None when it does not say.
    """

    size: int
    modified: float | None


class Backend(ABC):
    """The requests that backends make differently. Keys are whole: bucket, prefix and path.

    An object that is not there is told by `FileNotFoundError`, whatever else goes wrong by the library's own errors.
    """

    @abstractmethod
    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """Ask for an object (both None), a range (`end` None: to the end), or the last ``-start`` bytes."""

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """Ask for size and time."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Create an object, checked by the server on arrival; `FileExistsError` when there is one."""

    @abstractmethod
    def replace(self, key: str, data: bytes) -> None:
        """Create or replace an object, checked likewise."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object."""

    @abstractmethod
    def keys(self, prefix: str) -> Iterable[str]:
        """Give all keys below a folder, and perhaps others."""

    def entries(self, prefix: str) -> Iterable[tuple[str, ObjectInfo | None]]:
        """Give the same keys with what the listing tells of each, None where it tells nothing."""
        return ((key, None) for key in self.keys(prefix))


class RemoteStorage:
    """The objects below a prefix of a bucket, or of a web server.

    Parameters
    ----------
    backend : Backend
        Makes the requests.
    root : str
        Bucket and prefix, or the web server's folder; without a slash at its end.
    url : StorageUrl
        What opens this storage again.
    """

    def __init__(self, backend: Backend, root: str, *, url: StorageUrl) -> None:
        self._backend = backend
        self._root = root
        self._url = url
        self._secrets = url.secrets()

    @property
    def url(self) -> str:
        """What opens this storage again; the text is the URL alone."""
        return self._url

    def __repr__(self) -> str:
        return f"RemoteStorage({str(self._url)!r})"

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """See :meth:`Storage.read`; an empty range costs a request for the size, all others one request.

        Without an end at most 256 MiB are read; an object that goes on is refused (``format/size``).
        """
        key, where = self._key(path), self._where(path)
        first = 0 if start is None else start
        resolve_range(_ANY_SIZE, start, end, where=where)
        if first == end:
            resolve_range(self._known_size(path), start, end, where=where)
            return b""
        most = first + LARGEST_WHOLE_BYTES
        asked = most + 1 if end is None and first >= 0 else end
        try:
            with self._errors("read", path, ranged=True):
                data = self._backend.fetch(key, first, asked)
        except _OutOfRangeError as error:
            # Right at the end of the object nothing is what was asked for.
            _, count = resolve_range(self._known_size(path), start, end, where=where)
            if count:
                raise StorageError(
                    f"cannot read {where}: the storage refuses a range that exists", kind="storage/io"
                ) from error
            return b""
        if end is None and first >= 0:
            if len(data) > LARGEST_WHOLE_BYTES:
                raise too_large(path, most, url=self.url)
            return data
        return _cut(data, first, end, where=where)

    def size(self, path: str) -> int | None:
        """See :meth:`Storage.size`."""
        found = self._info(path)
        return None if found is None else found.size

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """See :meth:`Storage.read_at_most`."""
        key = self._key(path)
        try:
            with self._errors("read", path, ranged=True):
                data = self._backend.fetch(key, 0, limit_bytes + 1)
        except _OutOfRangeError:  # the first byte does not exist
            return b""
        except NotFoundError:
            return None
        if len(data) > limit_bytes:
            raise too_large(path, limit_bytes, url=self.url)
        return data

    def modified(self, path: str) -> float | None:
        """See :meth:`Storage.modified`."""
        found = self._info(path)
        if found is not None and found.modified is None:
            raise StorageError(
                f"{self._where(path)}: the storage does not tell its time", kind="storage/no-clock"
            )
        return None if found is None else found.modified

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """See :meth:`Storage.put_if_absent`."""
        key = self._key(path)
        try:
            with self._errors("create", path, creates=True):
                self._backend.create(key, data)
        except FileExistsError:
            return False
        write_hints(self, hints)
        return True

    def stage(self, path: str, data: bytes) -> bool:
        """See :meth:`Storage.stage`."""
        return self.put_if_absent(path, data)

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Storage.put`."""
        key = self._key(path)
        with self._errors("write", path):
            self._backend.replace(key, data)

    def list(self, prefix: str) -> Iterator[str]:
        """See :meth:`Storage.list`; the paths, though not the objects, are held in memory."""
        return (found.path for found in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Listed]:
        """List as :meth:`list` does, with what the pages tell of each object."""
        below = self._key(prefix) if prefix else self._root
        with self._errors("list", prefix), contextlib.suppress(FileNotFoundError):
            found = {
                key[len(self._root) + 1 :]: info
                for key, info in self._backend.entries(below)
                if key.startswith(f"{below}/")
            }
            return iter(
                [
                    Listed(path, *((info.size, info.modified) if info is not None else ()))
                    for path, info in sorted(found.items(), key=lambda pair: pair[0])
                    if _is_path(path)
                ]
            )
        return iter(())

    def delete(self, path: str) -> None:
        """See :meth:`Storage.delete`."""
        key = self._key(path)
        with contextlib.suppress(NotFoundError), self._errors("delete", path):
            self._backend.remove(key)

    def _key(self, path: str) -> str:
        return f"{self._root}/{check_path(path)}"

    def _where(self, path: str) -> str:
        return f"{self._url}/{path}" if path else str(self._url)

    def _info(self, path: str) -> ObjectInfo | None:
        key = self._key(path)
        with contextlib.suppress(NotFoundError), self._errors("look at", path):
            return self._backend.info(key)
        return None

    def _known_size(self, path: str) -> int:
        found = self._info(path)
        if found is None:
            raise missing(path, url=self.url)
        return found.size

    @contextlib.contextmanager
    def _errors(
        self, action: str, path: str, *, ranged: bool = False, creates: bool = False
    ) -> Iterator[None]:
        """Turn what a library raises into errors of ours, but for two that are answers to the request itself."""
        try:
            yield
        except UwsError:
            raise
        except Exception as error:
            if creates and isinstance(error, FileExistsError):
                raise
            fault = fault_of(error)
            if fault.kind != "storage/no-bucket":
                if isinstance(error, FileNotFoundError) or fault.status == _NOT_FOUND:
                    raise missing(path, url=self.url) from None
                if ranged and fault.status == _RANGE_NOT_SATISFIABLE:
                    raise _OutOfRangeError from None
            made, cause = as_error(error, action=action, where=self._where(path), secrets=self._secrets)
            raise made from cause


class _OutOfRangeError(Exception):
    """The server says that a range begins behind the object. Never leaves this module."""


def _cut(data: bytes, first: int, end: int | None, *, where: str) -> bytes:
    """Take the range out of what came: a server that knows no ranges sends the whole object."""
    if first < 0:
        wanted, part = -first, data[first:]
    elif end is None:
        return data
    else:
        wanted = end - first
        part = data if len(data) <= wanted else data[first:end]
    if len(part) < wanted:
        raise FormatError(
            f"{where}: {wanted} bytes were expected at {first}, and {len(part)} came; it is damaged or incomplete",
            kind="format/truncated",
        )
    return part


def _is_path(path: str) -> bool:
    # A stranger's object may stand under a name that no object of ours can have.
    try:
        check_path(path)
    except UwsError:
        return False
    return True
