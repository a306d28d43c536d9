"""A storage behind a network, with what was read from it kept in a folder.

What a digest names is kept under that digest, whatever registry it came from, and is served without asking; what may
change (the registry's document, the hint, the log) is asked for every time and kept only for work without a network.
Every kept file ends with the SHA-256 of what comes before: a damaged one is as good as none. Many processes may share
a folder: files appear by renaming, readers take no lock, and whoever finds the folder too full removes what was used
longest ago. Must not know what is stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, StorageError
from uws_store.storage.protocol import TEMPORARY_PREFIX, check_path, resolve_range, too_large

if TYPE_CHECKING:
    from uws_store.storage.protocol import Storage

__all__ = ["CacheFolder", "CachedFile", "CachedStorage", "dropped_if_damaged"]

# What a digest names: all below it follows from the group document that has the digest.
_NAMED = re.compile(
    r"^(?:families/[^/]+/(?:basis|models)/([0-9a-f]{64})/(.+)"
    r"|(?:_log/snapshots|families/[^/]+/verifications)/([0-9a-f]{64})\.json)$"
)
_DIGEST_BYTES = 32
_TRIM_AFTER = 0.05  # of the limit, added by this process
_TRIM_TO = 0.9


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A kept object.

    Attributes
    ----------
    name : str
        Its path in the cache.
    size_bytes : int
        Length of the file.
    used : float
        When it was read or written last, in seconds since 1970.
    """

    name: str
    size_bytes: int
    used: float


class CacheFolder:
    """A folder of kept objects, bounded in size. Threads and processes may share it.

    A failure of the disk is never an error here: what cannot be kept is read again.

    Parameters
    ----------
    root : Path
        The folder; made when the first object is kept.
    limit_bytes : int
        The size it is trimmed to.
    """

    def __init__(self, root: Path, *, limit_bytes: int) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self._added = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes | None:
        """Give what is kept under a name, whole and undamaged, or None."""
        path = self.root / name
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        data, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def has(self, name: str) -> bool:
        """Whether something is kept under a name; it may be damaged."""
        return (self.root / name).is_file()

    def remove(self, name: str) -> None:
        """Keep nothing under a name any longer, if the disk lets us."""
        with contextlib.suppress(OSError):
            (self.root / name).unlink()

    def put(self, name: str, *parts: bytes) -> None:
        """Keep bytes, which may come in parts, under a name, if the disk lets us."""
        path = self.root / name
        size_bytes = sum(map(len, parts)) + _DIGEST_BYTES
        if size_bytes > self.limit_bytes:
            return
        temporary = path.with_name(f"{TEMPORARY_PREFIX}-{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                digest = hashlib.sha256()
                for part in parts:
                    file.write(part)
                    digest.update(part)
                file.write(digest.digest())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        with self._lock:
            self._added += size_bytes
            due = self._added > _TRIM_AFTER * self.limit_bytes
            if due:
                self._added = 0
        if due:
            self.trim()

    def files(self) -> list[CachedFile]:
        """List what is kept, what was used longest ago first."""
        found: list[CachedFile] = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    seen = path.stat()
                    relative = path.relative_to(self.root).as_posix()
                    found.append(CachedFile(relative, seen.st_size, seen.st_mtime))
        return sorted(found, key=lambda file: (file.used, file.name))

    def trim(self, limit_bytes: int | None = None) -> int:
        """Remove what was used longest ago until the folder is well below its limit; give the bytes removed."""
        files = self.files()
        total = sum(file.size_bytes for file in files)
        limit = self.limit_bytes if limit_bytes is None else limit_bytes
        if total <= limit:
            return 0
        removed = 0
        for file in files:
            if total - removed <= _TRIM_TO * limit:
                break
            with contextlib.suppress(OSError):
                (self.root / file.name).unlink()
                removed += file.size_bytes
        return removed


class CachedStorage:
    """A storage whose reads are kept in a folder.

    Parameters
    ----------
    inner : Storage
        The storage.
    folder : CacheFolder
        Where to keep.
    offline : bool
        Never ask the storage: what is not kept is an error, and nothing can be written.
    """

    def __init__(self, inner: Storage, folder: CacheFolder, *, offline: bool = False) -> None:
        self.inner = inner
        self.folder = folder
        self.offline = offline
        self._place = f"places/{hashlib.sha256(inner.url.encode()).hexdigest()[:32]}"

    @property
    def url(self) -> str:
        """See :class:`Storage`."""
        return self.inner.url

    def __repr__(self) -> str:
        return f"CachedStorage({self.inner!r})"

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """See :meth:`Storage.read`; a part of what is not kept is fetched as such and not kept."""
        name = self._named(path)
        kept = self.folder.get(name) if name is not None else None
        if kept is not None:
            offset, count = resolve_range(len(kept), start, end, where=f"{self.url}/{path}")
            return kept[offset : offset + count]
        if self.offline:
            other = self.folder.get(self._other(path)) if name is None else None
            if other is None:
                raise self._not_kept(path)
            offset, count = resolve_range(len(other), start, end, where=f"{self.url}/{path}")
            return other[offset : offset + count]
        return self.inner.read(path, start=start, end=end)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """See :meth:`Storage.read_at_most`; kept, whatever it is."""
        check_path(path)
        name = self._named(path)
        if name is not None or self.offline:
            kept = self.folder.get(name or self._other(path))
            if kept is not None:
                if len(kept) > limit_bytes:
                    raise too_large(path, limit_bytes, url=self.url)
                return kept
            if self.offline:
                if name is None:  # the log ends where what is kept of it ends
                    return None
                raise self._not_kept(path)
        data = self.inner.read_at_most(path, limit_bytes)
        if data is not None:
            self.folder.put(name or self._other(path), data)
        return data

    def kept(self, path: str) -> bytes | None:
        """Give what is kept of an object that a digest names, without asking for it."""
        name = self._named(path)
        return None if name is None else self.folder.get(name)

    def keep(self, path: str, parts: Sequence[bytes]) -> None:
        """Keep an object that a digest names and that was read in parts."""
        name = self._named(path)
        if name is not None:
            self.folder.put(name, *parts)

    def drop(self, path: str) -> None:
        """Remove what is kept of an object that a digest names: the next read asks for it again."""
        name = self._named(path)
        if name is not None:
            self.folder.remove(name)

    def size(self, path: str) -> int | None:
        """See :meth:`Storage.size`."""
        if not self.offline:
            return self.inner.size(path)
        kept = self.folder.get(self._named(path) or self._other(path))
        return None if kept is None else len(kept)

    def modified(self, path: str) -> float | None:
        """See :meth:`Storage.modified`."""
        self._require_network("ask when an object was written")
        return self.inner.modified(path)

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """See :meth:`Storage.put_if_absent`."""
        self._require_network("write")
        return self.inner.put_if_absent(path, data, hints=hints)

    def stage(self, path: str, data: bytes) -> bool:
        """See :meth:`Storage.stage`."""
        self._require_network("write")
        return self.inner.stage(path, data)

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Storage.put`."""
        self._require_network("write")
        self.inner.put(path, data)

    def list(self, prefix: str) -> Iterator[str]:
        """See :meth:`Storage.list`."""
        self._require_network("list")
        return self.inner.list(prefix)

    def delete(self, path: str) -> None:
        """See :meth:`Storage.delete`."""
        self._require_network("delete")
        self.inner.delete(path)

    def _named(self, path: str) -> str | None:
        matched = _NAMED.match(path)
        if matched is None:
            return None
        digest = matched[1] or matched[3]
        return f"objects/{digest[:2]}/{digest}/{check_path(path).rpartition(digest)[2].strip('/')}"

    def _other(self, path: str) -> str:
        return f"{self._place}/{check_path(path)}"

    def _require_network(self, what: str) -> None:
        if self.offline:
            raise StorageError(
                f"cannot {what} at {self.url} without the network; leave out --offline (local_files_only)",
                kind="storage/offline",
            )

    def _not_kept(self, path: str) -> StorageError:
        return StorageError(
            f"{self.url}/{path} is not in the cache, and the network is not to be used; load it once without "
            "--offline (local_files_only)",
            kind="storage/offline",
        )


@contextlib.contextmanager
def dropped_if_damaged(storage: Storage, path: str) -> Iterator[None]:
    """Keep no object that is found damaged: what a server or a network spoiled once is asked for again."""
    try:
        yield
    except FormatError:
        if isinstance(storage, CachedStorage):
            storage.drop(path)
        raise
