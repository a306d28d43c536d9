"""A storage in a repository of the Hugging Face Hub: what is staged goes into the commit that makes it count.

Every change there is a commit, so a publication is one: its objects, its log entry and its hint. Owns the creation if
absent that a commit on a known parent makes possible.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import tenacity

from uws_store.storage.faults import fault_of
from uws_store.storage.staging import StagingBackend, StagingStorage, path_of

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


class HubBackend(StagingBackend):
    """The requests of a repository, with what is staged laid over them. Keys are paths in the repository.

    Parameters
    ----------
    repo : HubRepo
        The repository.
    """

    def __init__(self, repo: HubRepo) -> None:
        super().__init__(repo)
        self._repo = repo
        self._absent: set[str] = set()
        self.guards: list[Callable[[], None]] = []

    @_AFTER_OTHERS
    def publish(self, key: str, data: bytes, hints: Mapping[str, bytes]) -> None:
        """Create a file, with all that is staged, on the newest commit; `FileExistsError` when it exists there.

        When another's commit comes in between, the Hub refuses this one, and all is looked at again.
        """
        path = path_of(key)
        parent = self._repo.head()
        for guard in list(self.guards):
            guard()
        if self._repo.info([path]).get(path) is not None:
            raise FileExistsError(path)
        staged = self._waiting()
        changes: dict[str, bytes | Path | None] = {
            **staged,
            path: data,
            **{path_of(hint): held for hint, held in hints.items()},
        }
        self._repo.commit(changes, message=f"Create {path}", parent=parent)
        self._arrived(staged)
        with self._lock:
            self._absent.clear()

    def stage(self, key: str, data: bytes) -> None:
        """Keep a file for the next publication; `FileExistsError` when the repository or the stage has it."""
        path = path_of(key)
        if path in self._waiting() or self._is_in_repository(path):
            raise FileExistsError(path)
        self._keep(path, data)

    def replace(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.replace`; a commit of its own."""
        path = path_of(key)
        self._change(path, data, f"Write {path}")

    def remove(self, key: str) -> None:
        """See :meth:`Backend.remove`; a commit of its own."""
        path = path_of(key)
        if not self._drop(path) and path in self._repo.info([path]):
            self._change(path, None, f"Remove {path}")

    def keys(self, prefix: str) -> Iterable[str]:
        """See :meth:`Backend.keys`."""
        root = prefix.partition("/")[0]
        folder = path_of(prefix)
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            found.update(path for path in self._repo.files(folder) if path not in _HUBS_OWN)
        found.update(self._waiting())
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


class HubStorage(StagingStorage):
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
