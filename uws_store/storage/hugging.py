"""A storage in a repository of the Hugging Face Hub: what is staged goes into the commit that makes it count.

Every change there is a commit, so a publication is one: its objects, its log entry and its hint. Owns the staging,
and the creation if absent that a commit on a known parent makes possible.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import tenacity

from uws_store.storage.bounded import Wanted, require_plain
from uws_store.storage.faults import fault_of
from uws_store.storage.remote import Backend, ObjectInfo, RemoteStorage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uws_store.hub import HubRepo
    from uws_store.storage.url import StorageUrl

__all__ = ["HubBackend", "HubStorage"]

# What the Hub itself keeps at the root of a repository.
_HUBS_OWN = frozenset({".gitattributes", ".gitignore", "README.md"})

_OVERTAKEN = frozenset({409, 412})


def _is_overtaken(error: BaseException) -> bool:
    """Tell whether a commit was refused because another was made on the same parent."""
    return not isinstance(error, FileExistsError) and fault_of(error).status in _OVERTAKEN


_AFTER_OTHERS = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_overtaken),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
    stop=tenacity.stop_after_attempt(30),
    reraise=True,
)


class HubBackend(Backend):
    """The requests of a repository, with what is staged laid over them. Keys are paths in the repository.

    Parameters
    ----------
    repo : HubRepo
        The repository.
    """

    def __init__(self, repo: HubRepo) -> None:
        self._repo = repo
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._staged: dict[str, Path] = {}
        self._absent: set[str] = set()
        self.guards: list[Callable[[], None]] = []

    def make(self, *, private: bool) -> None:
        """Make the repository, if there is none."""
        self._repo.make(private=private)

    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`."""
        path = _path(key)
        staged = self._staged.get(path)
        if staged is not None:
            data = staged.read_bytes()
            return data if start is None else data[start:end]

        def sink(is_part: bool, encoding: str | None) -> Wanted:  # noqa: FBT001 - told, not chosen
            require_plain(encoding)
            return Wanted(start, end, is_part=is_part)

        return self._repo.fetch(path, start, end, sink=sink)

    def info(self, key: str) -> ObjectInfo:
        """See :meth:`Backend.info`; the time is that of the commit that last changed the file."""
        path = _path(key)
        staged = self._staged.get(path)
        if staged is not None:
            return ObjectInfo(staged.stat().st_size, None)
        found = self._repo.info([path], times=True).get(path)
        if found is None:
            raise FileNotFoundError(path)
        return ObjectInfo(found.size, found.modified)

    def create(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.create`; what is staged goes along."""
        self.publish(key, data, {})

    @_AFTER_OTHERS
    def publish(self, key: str, data: bytes, hints: Mapping[str, bytes]) -> None:
        """Create a file, with all that is staged, on the newest commit; `FileExistsError` when it exists there.

        When another's commit comes in between, the Hub refuses this one, and all is looked at again.
        """
        path = _path(key)
        parent = self._repo.head()
        for guard in list(self.guards):
            guard()
        if self._repo.info([path]).get(path) is not None:
            raise FileExistsError(path)
        with self._lock:
            staged = dict(self._staged)
        changes: dict[str, bytes | Path | None] = {
            **staged,
            path: data,
            **{_path(hint): held for hint, held in hints.items()},
        }
        self._repo.commit(changes, message=f"Create {path}", parent=parent)
        with self._lock:
            for name in staged:
                self._staged.pop(name, None)
            self._absent.clear()
            done = set(staged.values()) - set(self._staged.values())
        for kept in done:
            kept.unlink(missing_ok=True)

    def stage(self, key: str, data: bytes) -> None:
        """Keep a file for the next publication; `FileExistsError` when the repository or the stage has it."""
        path = _path(key)
        with self._lock:
            known = path in self._staged
        if known or self._is_in_repository(path):
            raise FileExistsError(path)
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="uws-store-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            kept = self._folder / hashlib.sha256(data).hexdigest()
            kept.write_bytes(data)
            self._staged[path] = kept

    def replace(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.replace`; a commit of its own."""
        path = _path(key)
        self._change(path, data, f"Write {path}")

    def remove(self, key: str) -> None:
        """See :meth:`Backend.remove`; a commit of its own."""
        path = _path(key)
        with self._lock:
            staged = self._staged.pop(path, None)
        if staged is None and path in self._repo.info([path]):
            self._change(path, None, f"Remove {path}")

    def keys(self, prefix: str) -> Iterable[str]:
        """See :meth:`Backend.keys`."""
        root = prefix.partition("/")[0]
        folder = _path(prefix)
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            found.update(path for path in self._repo.files(folder) if path not in _HUBS_OWN)
        with self._lock:
            found.update(self._staged)
        return [f"{root}/{path}" for path in found]

    @_AFTER_OTHERS
    def _change(self, path: str, data: bytes | None, message: str) -> None:
        self._repo.commit({path: data}, message=message)

    def _is_in_repository(self, path: str) -> bool:
        """Look for a path and the folders above it: below one that is not there nothing need be asked again."""
        folders = [str(folder) for folder in PurePosixPath(path).parents if str(folder) != "."]
        with self._lock:
            if any(folder in self._absent for folder in folders):
                return False
        found = self._repo.info([path, *folders])
        with self._lock:
            self._absent.update(folder for folder in folders if folder not in found)
        return path in found


class HubStorage(RemoteStorage):
    """A repository of the Hub.

    Parameters
    ----------
    backend : HubBackend
        Makes the requests.
    root : str
        One word that stands for the repository, and the prefix within it.
    url : StorageUrl
        What opens this storage again.

    Attributes
    ----------
    card_path : str or None
        Where the text stands that the Hub shows; None for a storage below a folder of the repository.
    """

    def __init__(self, backend: HubBackend, root: str, *, url: StorageUrl) -> None:
        super().__init__(backend, root, url=url)
        self._hub = backend
        self.card_path = None if "/" in root else "README.md"

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """See :meth:`Storage.put_if_absent`; one commit for the object, its hints and all that was staged."""
        key, beside = self._key(path), {self._key(hint): held for hint, held in (hints or {}).items()}
        try:
            with self._errors("create", path, creates=True):
                self._hub.publish(key, data, beside)
        except FileExistsError:
            return False
        return True

    def stage(self, path: str, data: bytes) -> bool:
        """See :meth:`Storage.stage`; kept on this machine until the next `put_if_absent`."""
        key = self._key(path)
        try:
            with self._errors("create", path, creates=True):
                self._hub.stage(key, data)
        except FileExistsError:
            return False
        return True

    @contextlib.contextmanager
    def guarded(self, check: Callable[[], None]) -> Iterator[None]:
        """Make a check part of every commit: it looks at no older state than the commit's parent, and may raise.

        A commit that comes in between makes the Hub refuse ours; it is then checked again.
        """
        self._hub.guards.append(check)
        try:
            yield
        finally:
            self._hub.guards.remove(check)

    def make(self, *, private: bool) -> None:
        """Make the repository, if there is none."""
        with self._errors("make", ""):
            self._hub.make(private=private)


def _path(key: str) -> str:
    """Give the path in the repository: a key without the word that stands for it."""
    return key.partition("/")[2]
