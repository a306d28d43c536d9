"""Publishing beside garbage collection: what a publisher holds, and what it checks before it commits.

Objects that were written lately are safe by their age: a collector removes nothing that is younger than its grace
period. Two things are not: an object that was there already and is named again, and a publication that takes as long
as that period. For these a publisher leaves a *lease*, waits for a sweep at work, and looks again at every object
just before it commits. A collector marks its *sweep* before it reads the leases, and a publisher leaves its lease
before it reads the marks, so at least one of the two sees the other. Must not know what is stored.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from uws_store.errors import StorageError, UwsError
from uws_store.layout import GROUP_PATH, PENDING_PREFIX, pending_path
from uws_store.metadata.log import new_nonce
from uws_store.metadata.pending import PendingNote
from uws_store.storage import CachedStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    from uws_store.storage import Storage

__all__ = ["LEASE_LIFE_S", "SWEEP_LIFE_S", "Note", "Publication", "read_notes"]

LEASE_LIFE_S = 7 * 86400.0
"""A lease that was not renewed for so long, by the storage's clock, is its holder's no more."""

SWEEP_LIFE_S = 3600.0
"""A sweep ends within half of this, or is dead."""

_LEASE_AFTER_S = 600.0
_WAIT_FOR_SWEEP_S = 120.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Note:
    """A note as it stands in the storage.

    Attributes
    ----------
    path : str
        Where.
    note : PendingNote
        What it says.
    written : float
        When it was written, in seconds by the storage's clock.
    """

    path: str
    note: PendingNote
    written: float


def read_notes(storage: Storage, kind: str) -> list[Note]:
    """Read all notes of a kind; one that goes away meanwhile is none.

    Raises
    ------
    FormatError
        When one is malformed: what it may protect is not known then.
    StorageError
        When the storage fails, or does not tell when an object was written.
    """
    found: list[Note] = []
    for path in storage.list(PENDING_PREFIX):
        if not path.startswith(f"{PENDING_PREFIX}/{kind}-"):
            continue
        written = storage.modified(path)
        data = storage.read_at_most(path, PendingNote.max_bytes)
        if data is not None and written is not None:
            found.append(Note(path, PendingNote.parse(data, where=f"{storage.url}/{path}"), written))
    return found


class Publication:
    """The uploads of one publication, safe from a collector that runs meanwhile.

    A context manager: on leaving, its lease is given back.

    Parameters
    ----------
    storage : Storage
        Where objects are stored.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._began = time.monotonic()
        self._sizes: dict[str, dict[str, int]] = {}
        self._reused: set[str] = set()
        self._lease: str | None = None
        self._renewed = 0.0
        # Where all is one commit on a known parent, what it relies on is looked at with the parent; nothing is announced.
        self._guarded: Callable[[Callable[[], None]], AbstractContextManager[None]] | None = getattr(
            storage.inner if isinstance(storage, CachedStorage) else storage, "guarded", None
        )
        self._guard = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._guard.close()
        if self._lease is not None:
            # Left behind it expires by itself.
            with contextlib.suppress(UwsError):
                self.storage.delete(self._lease)

    def stored(self, prefix: str, sizes: Mapping[str, int], *, reused: bool) -> None:
        """Tell that the objects of a basis or a model are stored, or a single object.

        Parameters
        ----------
        prefix : str
            Their folder; of a single object its path.
        sizes : Mapping of str to int
            Path below it to bytes; of a single object the path is empty.
        reused : bool
            Whether one of them was there already.
        """
        self._sizes[prefix] = dict(sizes)
        if reused:
            self._reused.add(prefix)
        if self._guarded is None and (
            reused or (self._is_slow() and time.monotonic() - self._renewed > _LEASE_AFTER_S)
        ):
            self._hold()

    def dropped(self, prefix: str) -> None:
        """Tell that what was stored there is no part of this publication."""
        self._sizes.pop(prefix, None)
        self._reused.discard(prefix)

    def settle(self) -> None:
        """Make sure that everything stored is still there; to be called just before the commit.

        Costs nothing for a publication that was quick and reused nothing.

        Raises
        ------
        StorageError
            ``storage/collected`` when an object is gone; ``storage/collecting`` when a collector does not come to an
            end. Nothing is published then.
        """
        if self._guarded is not None:
            if self._reused:
                self._guard.enter_context(self._guarded(self._check_reused))
            return
        if not self._reused and not self._is_slow():
            return
        self._hold()
        assert self._lease is not None
        lease = self._lease
        self._await_sweeps(lambda: self.storage.modified(lease))
        self._require_present(self._sizes)
        for prefix in sorted(self._reused):
            # Written again as it is: so a collector that had found it unreachable begins anew to wait.
            sizes = self._sizes[prefix]
            path = prefix if "" in sizes else f"{prefix}/{GROUP_PATH}"
            self.storage.put(path, self.storage.read(path, start=0, end=sizes.get("", sizes.get(GROUP_PATH))))

    def _check_reused(self) -> None:
        """Look whether what was there already still is, and nobody is removing it."""
        # No object was written just now whose time would be the storage's.
        self._await_sweeps(time.time)
        self._require_present({prefix: self._sizes[prefix] for prefix in self._reused})

    def _require_present(self, held: Mapping[str, Mapping[str, int]]) -> None:
        for prefix, sizes in held.items():
            for path, size_bytes in sizes.items():
                where = f"{prefix}/{path}" if path else prefix
                if self.storage.size(where) != size_bytes:
                    raise StorageError(
                        f"{self.storage.url}/{where} was there and is gone: a garbage collection ran "
                        "meanwhile; publish again",
                        kind="storage/collected",
                    )

    def _is_slow(self) -> bool:
        return time.monotonic() - self._began > _LEASE_AFTER_S

    def _hold(self) -> None:
        """Leave a lease for everything stored so far, or renew it."""
        if self._lease is None:
            self._lease = pending_path("lease", new_nonce())
        note = PendingNote(kind="lease", prefixes=tuple(self._sizes))
        self.storage.put(self._lease, note.to_bytes())
        self._renewed = time.monotonic()

    def _await_sweeps(self, clock: Callable[[], float | None]) -> None:
        deadline = time.monotonic() + _WAIT_FOR_SWEEP_S
        while True:
            now = clock()
            alive = [
                note
                for note in read_notes(self.storage, "sweep")
                if now is None or note.written > now - SWEEP_LIFE_S
            ]
            if not alive:
                return
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self.storage.url}: a garbage collection is at work ({alive[0].path}); publish again when it "
                    "has ended",
                    kind="storage/collecting",
                )
            time.sleep(_POLL_S)
