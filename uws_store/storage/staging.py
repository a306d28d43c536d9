"""Files for a Hub that wait on this machine until something names them, laid over those that are there.

Owns where they wait and how they are read meanwhile. Must not know in which way a Hub is written to.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import weakref
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from uws_store.storage.bounded import Wanted, require_plain
from uws_store.storage.remote import Backend, ObjectInfo, RemoteStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from uws_store.hub import HubFileInfo, Sink
    from uws_store.storage.url import StorageUrl

__all__ = ["StagingBackend", "StagingStorage", "path_of"]


class HubFiles(Protocol):
    """What a repository and a bucket have in common."""

    def make(self, *, private: bool) -> None:
        """Make it, if there is none."""
        ...

    def fetch(
        self, path: str, start: int | None, end: int | None, *, sink: Callable[[bool, str | None], Sink]
    ) -> bytes:
        """Read a file or a range of it."""
        ...

    def info(self, paths: Collection[str], *, times: bool = False) -> Mapping[str, HubFileInfo | None]:
        """Ask for files by their paths."""
        ...


class StagingBackend(Backend):
    """The requests that read, with what is staged laid over what is there. Keys begin with a word for the place.

    Parameters
    ----------
    files : HubFiles
        The repository or bucket.
    """

    def __init__(self, files: HubFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._staged: dict[str, Path] = {}

    def make(self, *, private: bool) -> None:
        """Make the repository or bucket, if there is none."""
        self._files.make(private=private)

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`."""
        path = path_of(key)
        staged = self._staged.get(path)
        if staged is not None:
            data = staged.read_bytes()
            return data if start is None else data[start:end]

        def sink(is_part: bool, encoding: str | None) -> Wanted:  # noqa: FBT001 - told, not chosen
            require_plain(encoding)
            return Wanted(start, end, is_part=is_part)

        return self._files.fetch(path, start, end, sink=sink)

    def info(self, key: str) -> ObjectInfo:
        """See :meth:`Backend.info`; the time is that at which the Hub says the file was last changed."""
        path = path_of(key)
        staged = self._staged.get(path)
        if staged is not None:
            return ObjectInfo(staged.stat().st_size, None)
        found = self._files.info([path], times=True).get(path)
        if found is None:
            raise FileNotFoundError(path)
        return ObjectInfo(found.size, found.modified)

    def create(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.create`; what is staged goes along."""
        self.publish(key, data, {})

    @abstractmethod
    def publish(self, key: str, data: bytes, hints: Mapping[str, bytes]) -> None:
        """Create a file once all that is staged is there, and then the hints."""

    @abstractmethod
    def stage(self, key: str, data: bytes) -> None:
        """Keep a file for the next publication; `FileExistsError` where one is known to be there."""

    def _keep(self, path: str, data: bytes) -> None:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="uws-store-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            kept = self._folder / hashlib.sha256(data).hexdigest()
            kept.write_bytes(data)
            self._staged[path] = kept

    def _waiting(self) -> dict[str, Path]:
        with self._lock:
            return dict(self._staged)

    def _arrived(self, staged: Mapping[str, Path]) -> None:
        """Forget what has been published."""
        with self._lock:
            for name in staged:
                self._staged.pop(name, None)
            done = set(staged.values()) - set(self._staged.values())
        for kept in done:
            kept.unlink(missing_ok=True)

    def _drop(self, path: str) -> bool:
        """Forget a staged file; tell whether there was one."""
        with self._lock:
            return self._staged.pop(path, None) is not None


class StagingStorage(RemoteStorage):
    """A place on a Hub to which staged files go with the object that names them.

    Parameters
    ----------
    backend : StagingBackend
        Makes the requests.
    root : str
        One word that stands for the place, and the prefix within it.
    url : StorageUrl
        What opens this storage again.
    """

    def __init__(self, backend: StagingBackend, root: str, *, url: StorageUrl) -> None:
        super().__init__(backend, root, url=url)
        self._staging = backend

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """See :meth:`Storage.put_if_absent`; all that was staged goes along."""
        key, beside = self._key(path), {self._key(hint): held for hint, held in (hints or {}).items()}
        try:
            with self._errors("create", path, creates=True):
                self._staging.publish(key, data, beside)
        except FileExistsError:
            return False
        return True

    def stage(self, path: str, data: bytes) -> bool:
        """See :meth:`Storage.stage`; kept on this machine until the next `put_if_absent`."""
        key = self._key(path)
        try:
            with self._errors("create", path, creates=True):
                self._staging.stage(key, data)
        except FileExistsError:
            return False
        return True

    def make(self, *, private: bool) -> None:
        """Make the repository or bucket, if there is none."""
        with self._errors("make", ""):
            self._staging.make(private=private)


def path_of(key: str) -> str:
    """Give the path in the repository or bucket: a key without the word that stands for it."""
    return key.partition("/")[2]
