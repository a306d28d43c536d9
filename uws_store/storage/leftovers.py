"""Temporary files that killed writers left on a disk: told by their names, and removed when they are old.

Owns which files these are. What a writer holds open, the lock that stands in for hard links, and every file of
another name are never among them. Must not know what is stored.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING

from uws_store.errors import StorageError
from uws_store.storage.cached import CachedStorage
from uws_store.storage.listing import Listed
from uws_store.storage.local import LocalStorage
from uws_store.storage.probing import LookFirstStorage
from uws_store.storage.protocol import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uws_store.storage.protocol import Storage

__all__ = ["find_leftovers", "remove_leftovers"]

# As LocalStorage names them; its lock is `.tmp-lock`.
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}-[0-9a-f]{{24}}")


def find_leftovers(storage: Storage, *, before: float) -> list[Listed]:
    """Find the temporary files that were last written at or before a time; storages of other kinds leave none.

    Parameters
    ----------
    storage : Storage
        Where to look.
    before : float
        Seconds since 1970, by the storage's clock.

    Returns
    -------
    list of Listed
        By path, with size and time.

    Raises
    ------
    StorageError
        When a folder cannot be read.
    """
    local = _local(storage)
    if local is None:
        return []
    found: list[Listed] = []
    try:
        for folder, _, names in os.walk(local.root, onerror=_refuse):
            for name in names:
                if not _TEMPORARY.fullmatch(name):
                    continue
                full = os.path.join(folder, name)  # noqa: PTH118 - a walk gives texts
                with contextlib.suppress(FileNotFoundError):  # its writer has just given it a name
                    told = os.lstat(full)
                    if stat.S_ISREG(told.st_mode) and told.st_mtime <= before:
                        path = os.path.relpath(full, local.root).replace(os.sep, "/")
                        found.append(Listed(path, told.st_size, told.st_mtime))
    except OSError as error:
        raise StorageError(
            f"cannot list {error.filename or local.root}: {error.strerror or error}", kind="storage/io"
        ) from error
    return sorted(found, key=lambda entry: entry.path)


def remove_leftovers(storage: Storage, leftovers: Iterable[Listed]) -> list[Listed]:
    """Remove what :func:`find_leftovers` found; give what is gone. What cannot be removed stays, and does no harm."""
    local = _local(storage)
    gone: list[Listed] = []
    for entry in leftovers if local is not None else ():
        assert local is not None
        with contextlib.suppress(OSError):
            local.root.joinpath(*entry.path.split("/")).unlink(missing_ok=True)
            gone.append(entry)
    return gone


def _local(storage: Storage) -> LocalStorage | None:
    while isinstance(storage, CachedStorage | LookFirstStorage):
        storage = storage.inner
    return storage if isinstance(storage, LocalStorage) else None


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
