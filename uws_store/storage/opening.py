"""From a URL or a plain path to a storage. Must not know what is stored."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from uws_store.errors import InvalidInputError, NotFoundError
from uws_store.storage.local import LocalStorage
from uws_store.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from uws_store.storage.protocol import Storage

__all__ = ["open_storage"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|((?i:file)):")
_MEMORY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")

_memory_lock = threading.Lock()
_memory_storages: dict[str, MemoryStorage] = {}


def open_storage(url: str, *, create: bool = False) -> Storage:
    """Open the storage a URL names.

    Parameters
    ----------
    url : str
        A folder's path (``~`` is the home folder), a ``file://`` URL (percent-encoded), or ``memory://name``
        (shared within the process).
    create : bool, optional
        Make the storage when it does not exist.

    Raises
    ------
    NotFoundError
        When it does not exist and is not to be made (``not-found/storage``).
    InvalidInputError
        ``invalid-input/storage-scheme`` for a storage that is not supported, ``invalid-input/storage-url`` for a
        URL that cannot be read, ``invalid-input/storage-folder`` when the path is not a folder.
    StorageError
        When the folder cannot be made or reached.
    """
    matched = _SCHEME.match(url)
    if matched is None:
        return _open_folder(url, url, create=create)
    scheme = (matched[1] or matched[2]).lower()
    if scheme == "file":
        return _open_folder(_path_of(url), url, create=create)
    if scheme == "memory":
        return _open_memory(url[matched.end() :], create=create)
    # Only the scheme is shown: the rest of a URL may hold credentials.
    raise InvalidInputError(
        f"storage at {scheme}:// is not supported; give the path of a folder, a file:// URL or memory://name",
        kind="invalid-input/storage-scheme",
    )


def _open_folder(path: str, url: str, *, create: bool) -> LocalStorage:
    if not path or "\0" in path:
        raise InvalidInputError(
            f"{url!r} does not name a storage; give the path of a folder", kind="invalid-input/storage-url"
        )
    if path == "~" or path.startswith("~/"):
        path = os.path.expanduser(path)  # noqa: PTH111 - Path() would drop what the rest may mean
    return LocalStorage(Path(path), create=create)


def _path_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInputError(
            f"{url!r} cannot be read as a URL: {error}", kind="invalid-input/storage-url"
        ) from error
    if (
        parts.netloc.lower() not in {"", "localhost"}
        or parts.query
        or parts.fragment
        or url.endswith(("?", "#"))
    ):
        raise InvalidInputError(
            f"{url!r} cannot be read as a file URL: it is file:///absolute/path on this machine, with special "
            "characters percent-encoded (? is %3F, # is %23)",
            kind="invalid-input/storage-url",
        )
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path.startswith("/"):
        raise InvalidInputError(
            f"{url!r} is not absolute; write file:///absolute/path or a plain path",
            kind="invalid-input/storage-url",
        )
    return path


def _open_memory(name: str, *, create: bool) -> MemoryStorage:
    if not _MEMORY_NAME.fullmatch(name):
        raise InvalidInputError(
            f"memory://{name} cannot be used; name it memory://name, with letters, digits, dots and dashes",
            kind="invalid-input/storage-url",
        )
    with _memory_lock:
        found = _memory_storages.get(name)
        if found is None:
            if not create:
                raise NotFoundError(
                    f"there is no memory://{name} in this process; it must be created first",
                    kind="not-found/storage",
                )
            found = _memory_storages[name] = MemoryStorage(name)
        return found
