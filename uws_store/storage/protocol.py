"""What a storage promises, and the two rules every backend shares: what a path is and what a range means.

Must not know any backend, nor what is stored.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Protocol

from uws_store.errors import FormatError, InvalidInputError, NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "TEMPORARY_PREFIX",
    "Storage",
    "check_path",
    "missing",
    "resolve_range",
    "too_large",
    "write_hints",
]

TEMPORARY_PREFIX = ".tmp"
"""Names that begin so belong to writers at work (or killed): never listed, and refused as paths."""

# The bounds of the object stores: S3 takes keys of 1024 bytes, most file systems names of 255.
_MAX_PATH_BYTES = 1024
_MAX_NAME_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Storage(Protocol):
    """A place that keeps bytes under paths. Safe to use from many threads and many processes at once.

    Paths are relative, separated by ``/`` and checked by :func:`check_path`. An object is seen whole or not at
    all, never in part, whatever happens to its writer.

    Attributes
    ----------
    url : str
        What :func:`open_storage` opens this storage by; it holds no credentials.
    """

    @property
    def url(self) -> str:
        """What :func:`open_storage` opens this storage by."""
        ...

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Read an object, or a range of it.

        Parameters
        ----------
        path : str
            The object.
        start : int, optional
            First byte; when negative, the last ``-start`` bytes are read and `end` must be absent.
        end : int, optional
            One past the last byte; the end of the object when absent. Storages behind a network then read at most
            256 MiB.

        Returns
        -------
        bytes
            Exactly the range asked for.

        Raises
        ------
        NotFoundError
            When there is no such object (``not-found/object``).
        FormatError
            When the object ends before the range does (``format/truncated``), or goes on where no end was given
            (``format/size``).
        InvalidInputError
            For a bad path or range (``invalid-input/path``, ``invalid-input/range``).
        StorageError
            When the storage fails (``storage/permission``, ``storage/io``).
        """
        ...

    def size(self, path: str) -> int | None:
        """Length of an object in bytes, or None when there is no such object."""
        ...

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """Read a whole object that may be no longer than a limit: one request, whatever the object holds.

        Parameters
        ----------
        path : str
            The object.
        limit_bytes : int
            The longest object that is read. Of a longer one at most ``limit_bytes + 1`` bytes are fetched.

        Returns
        -------
        bytes or None
            The object; None when there is none.

        Raises
        ------
        FormatError
            When the object is longer (``format/size``).
        StorageError
            When the storage fails.
        """
        ...

    def modified(self, path: str) -> float | None:
        """When an object was last written, by the storage's own clock.

        Returns
        -------
        float or None
            Seconds since 1970 (UTC); None when there is no such object. Two objects of one storage can be compared;
            the caller's clock cannot be compared with either.

        Raises
        ------
        StorageError
            When the storage fails, or does not tell (``storage/no-clock``).
        """
        ...

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """Create an object, unless it exists: of any number of writers exactly one is told True.

        Whatever was staged through this storage before is durable no later than the object.

        Parameters
        ----------
        path : str
            The object.
        data : bytes
            All of it.
        hints : Mapping of str to bytes, optional
            Objects to create or replace once `path` was created, in the same step where the storage can: nothing
            depends on them, and a failure to write them is of no account.

        Returns
        -------
        bool
            True when this call created the object, which is then durable; False when it existed.

        Raises
        ------
        StorageError
            ``storage/no-space``, ``storage/permission`` or ``storage/io``. The object may or may not exist
            then, but never in part: a caller who must know reads it back.
        """
        ...

    def stage(self, path: str, data: bytes) -> bool:
        """Create an object that its path names the bytes of, unless it exists; the next `put_if_absent` needs it.

        A storage that changes many objects in one step may wait with it until then, and shows it to its own
        readers meanwhile. The others create it at once, as `put_if_absent` does.

        Returns
        -------
        bool
            False when an object stood there before, of which only the path says what its bytes are.
        """
        ...

    def put(self, path: str, data: bytes) -> None:
        """Create or replace an object; readers see the old bytes or the new ones."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Paths of all objects below the folder `prefix` (``""`` for all), sorted by code point.

        A folder that is not there is empty. Objects that are created meanwhile may be left out.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove an object; it is no error when there is none."""
        ...


def check_path(path: str) -> str:
    """Check that a path can name an object in every backend and cannot leave the storage.

    Returns
    -------
    str
        The path itself.

    Raises
    ------
    InvalidInputError
        Kind ``invalid-input/path``.
    """
    reason = _why_refused(path)
    if reason is not None:
        shown = path if len(path) <= 80 else f"{path[:80]}..."
        raise InvalidInputError(f"the storage path {shown!r} {reason}", kind="invalid-input/path")
    return path


def _why_refused(path: str) -> str | None:
    if not path:
        return "is empty"
    if path.startswith("/"):
        return "is absolute, and paths are relative to the storage"
    if "\\" in path or _CONTROL.search(path):
        return "holds a backslash or a control character"
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if length > _MAX_PATH_BYTES:
        return f"is {length} bytes long, and at most {_MAX_PATH_BYTES} are allowed"
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            return f"has the part {part!r}, which is not a name"
        if part.startswith(TEMPORARY_PREFIX):
            return f"has a part that begins with {TEMPORARY_PREFIX!r}, which is kept for writers at work"
        if len(part.encode()) > _MAX_NAME_BYTES:
            return f"has a part longer than {_MAX_NAME_BYTES} bytes"
    return None


def write_hints(storage: Storage, hints: Mapping[str, bytes] | None) -> None:
    """Write what nothing depends on; a failure is of no account."""
    for path, data in (hints or {}).items():
        with contextlib.suppress(StorageError):
            storage.put(path, data)


def missing(path: str, *, url: str) -> NotFoundError:
    """Make the error for an object that is not there."""
    return NotFoundError(f"there is no object {path!r} in {url}", kind="not-found/object")


def too_large(path: str, limit_bytes: int, *, url: str) -> FormatError:
    """Make the error for an object that is longer than it may be."""
    return FormatError(
        f"{url}/{path}: longer than {limit_bytes} bytes, and such an object is not; it was not read",
        kind="format/size",
    )


def resolve_range(size_bytes: int, start: int | None, end: int | None, *, where: str) -> tuple[int, int]:
    """Turn a range of :meth:`Storage.read` into an offset and a length, both in bytes, within the object.

    Raises
    ------
    InvalidInputError
        When the range means nothing (``invalid-input/range``).
    FormatError
        When it ends beyond the object (``format/truncated``).
    """
    first = 0 if start is None else start
    if first < 0:
        if end is not None:
            raise InvalidInputError(
                f"{where}: a range that counts from the end (start={first}) takes no end",
                kind="invalid-input/range",
            )
        wanted, first, last = -first, size_bytes + first, size_bytes
    else:
        last = max(first, size_bytes) if end is None else end
        wanted = last - first
    if wanted < 0:
        raise InvalidInputError(f"{where}: the range {first}:{last} is reversed", kind="invalid-input/range")
    if first < 0 or first > size_bytes or last > size_bytes:
        raise FormatError(
            f"{where}: {wanted} bytes were expected at {max(first, 0)}, and the object has only {size_bytes} bytes; "
            "it is damaged or incomplete",
            kind="format/truncated",
        )
    return first, wanted
