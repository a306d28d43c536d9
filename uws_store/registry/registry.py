"""An open registry: its state now, and publishing into it.

Owns the protocol by which many writers publish at once: a commit is one small object, created only if it is
absent. Must not know what families and models are made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from typing import TYPE_CHECKING, Self

from uws_store.errors import (
    AlreadyExistsError,
    FormatError,
    NotFoundError,
    Problem,
    StorageError,
)
from uws_store.layout import REGISTRY_DOCUMENT, commit_path
from uws_store.metadata.log import Action, Commit, RegistryDocument, new_nonce
from uws_store.packs import model_storage
from uws_store.registry.audit import audit
from uws_store.registry.committing import create_commit, prepare_commit, second_writer
from uws_store.registry.creation import create_registry
from uws_store.registry.exclusive import seen_exclusive
from uws_store.registry.log import head_hint, read_head, read_limited, read_newest
from uws_store.registry.reading import View, after, open_view, read_on
from uws_store.registry.state import ModelEntry, RegistryState
from uws_store.storage import open_storage
from uws_store.storage.probing import LookFirstStorage, require_exclusive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from uws_store.storage import Storage

__all__ = ["Registry"]

_MAX_ATTEMPTS = 50
_FRESH_S = 600.0
_FIRST_WAIT_S = 0.005
_LONGEST_WAIT_S = 1.0
# Not the module's generator: forked writers would share its state and wait equally long.
_RANDOM = random.SystemRandom()


class Registry:
    """An open registry. Safe to use from many threads.

    Made by :meth:`open`, :meth:`init` or :meth:`over`.

    Parameters
    ----------
    storage : Storage
        Where it is.
    document : RegistryDocument, optional
        What says that it is a registry; read when it is needed where a commit said so already.
    view : View, optional
        What the newest commit that the head led to says; without one all is read when it is first asked for.

    Attributes
    ----------
    storage : Storage
        Where it is.
    """

    def __init__(
        self, storage: Storage, document: RegistryDocument | None = None, *, view: View | None = None
    ) -> None:
        self.storage = storage
        self._document: RegistryDocument | None = None
        if document is not None:
            self._take(document)
        self._lock = threading.Lock()
        self._led_to = view
        self._view = View()
        self._was_read = False
        self._is_exclusive = False
        self._opened_at: float | None = None

    def __repr__(self) -> str:
        return f"Registry({self.url!r})"

    @property
    def url(self) -> str:
        """What :meth:`open` opens it by."""
        return self.storage.url

    @property
    def document(self) -> RegistryDocument:
        """What says that it is a registry, and who may write there; the first call may cost a request.

        Raises
        ------
        NotFoundError
            When it is gone, or never was there (``not-found/registry``).
        FormatError
            When it is malformed or was written in a newer format.
        StorageError
            When the storage fails.
        """
        if self._document is None:
            found = _read_document(self.storage)
            if found is None:
                with contextlib.suppress(NotFoundError):
                    self.storage.read(
                        REGISTRY_DOCUMENT
                    )  # says so where it cannot be known without the network
                raise _no_registry(self.url)
            self._take(found)
        assert self._document is not None
        return self._document

    def _take(self, document: RegistryDocument) -> None:
        if document.writers == "one" and not isinstance(self.storage, LookFirstStorage):
            self.storage = LookFirstStorage(self.storage)
        self._document = document

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Self:
        """Open the registry at a URL.

        Parameters
        ----------
        url : str
            See :func:`uws_store.storage.open_storage`.
        create : bool, optional
            Make it first when it does not exist.

        Raises
        ------
        NotFoundError
            When there is no registry (``not-found/registry``).
        FormatError
            When its document is malformed or was written in a newer format (``format/newer-version``).
        InvalidInputError
            When the URL cannot be used, or a registry is to be made among other files
            (``invalid-input/not-empty``).
        StorageError
            When the storage fails.
        """
        try:
            storage = open_storage(url, create=create)
        except NotFoundError as error:
            raise _no_registry(url) from error
        return cls.over(storage, create=create)

    @classmethod
    def init(cls, url: str, *, single_writer: bool = False) -> Self:
        """Make a new registry at a URL.

        Parameters
        ----------
        url : str
            See :func:`uws_store.storage.open_storage`.
        single_writer : bool, optional
            Make it also where the storage cannot keep two writers apart; that only one is at work at a time is then
            up to those who run them.

        Raises
        ------
        AlreadyExistsError
            When there is one (``already-exists/registry``).
        InvalidInputError
            When the URL cannot be used or other files are there (``invalid-input/not-empty``).
        StorageError
            When the storage fails, or ignores conditions (``storage/not-exclusive``).
        """
        storage = open_storage(url, create=True)
        if not create_registry(storage, single_writer=single_writer):
            raise AlreadyExistsError(
                f"there is a registry at {storage.url}; use it as it is, or choose another place",
                kind="already-exists/registry",
            )
        return cls.over(storage)

    @classmethod
    def over(cls, storage: Storage, *, create: bool = False) -> Self:
        """Open the registry in a storage that is open; see :meth:`open`.

        Where the head leads to a commit, that commit tells the version of the format, and ``uws.json`` is not read
        until it is needed.
        """
        head = read_head(storage, may_be_unreachable=False)
        view = None
        if head is not None:
            with contextlib.suppress(
                FormatError
            ):  # said when the state is asked for, if it is a registry at all
                view = open_view(storage, head)
        if view is not None:
            return cls(storage, view=view)
        document = _read_document(storage)
        if document is None and create:
            create_registry(storage)
            document = _read_document(storage)
        if document is None:
            raise _no_registry(storage.url)
        return cls(storage, document)

    def state(self, *, refresh: bool = True) -> RegistryState:
        """Tell what the registry holds.

        Parameters
        ----------
        refresh : bool, optional
            Look for commits since the last call first, which costs one request and one for each there is. Without it
            nothing is read, except by the first call.

        Returns
        -------
        RegistryState
            A value that later commits do not change.

        Raises
        ------
        FormatError
            When a commit is malformed, missing or does not follow from the ones before (``format/log``,
            ``format/log-gap``, ``format/log-chain``, ``format/log-number`` and the kinds of
            :meth:`Document.parse <uws_store.metadata.document.Document.parse>`).
        StorageError
            When the storage fails.
        """
        with self._lock:
            if not self._was_read:
                self._view = self._first_view()
                self._was_read = True
            elif refresh:
                self._view = read_on(self.storage, self._view, look_beyond=False)
            return self._view.state

    def resolve(self, family: str, task: str, *, revision: int | str | None = None) -> ModelEntry:
        """Find the version that names stand for now; see :meth:`RegistryState.resolve`."""
        return self.state().resolve(family, task, revision=revision)

    def storage_of(self, entry: ModelEntry) -> Storage:
        """Give the storage in which a version's objects stand below its :attr:`ModelEntry.prefix`, packed or not."""
        return model_storage(self.storage, entry.prefix, entry.pack)

    def publish(
        self,
        actions_for: Callable[[RegistryState], Sequence[Action]],
        *,
        beside: Callable[[RegistryState], Mapping[str, bytes]] | None = None,
    ) -> Commit:
        """Append one commit to the log; all its actions take effect, or none does.

        Whatever the actions refer to must be staged before. Uncontended it costs five requests; two where the registry
        was read for the first time just before, and one more where this machine has not yet seen the storage refuse to
        replace an object.

        Parameters
        ----------
        actions_for : callable
            Makes the actions from the state they will follow. It is called again, with the newer state, whenever
            another writer was first; what it raises ends the publication with nothing written.
        beside : callable, optional
            Tells, from the state that will follow, objects to store along with the commit. Nothing depends on them.

        Returns
        -------
        Commit
            The commit as it stands in the log.

        Raises
        ------
        AlreadyExistsError, NotFoundError, InvalidInputError
            When the actions do not follow from the state; see :meth:`uws_store.registry.fold.Draft.apply`.
        StorageError
            When the storage fails; ``storage/contention`` when other writers were first every time. Except for
            ``storage/unknown-outcome``, nothing was published.
        FormatError
            When the log cannot be read.
        """
        self.require_exclusive(may_remember=True)
        nonce = new_nonce()
        for attempt in range(_MAX_ATTEMPTS):
            if attempt:
                longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(attempt, 10))
                time.sleep(_RANDOM.uniform(0, longest_s))
            view = self._view_to_follow()
            commit, draft = prepare_commit(self.storage, actions_for, view, nonce=nonce)
            data = commit.to_bytes()
            followed = after(view, commit, data, draft)
            hints = head_hint(commit.number, tail=followed.tail)
            if beside is not None:
                hints |= beside(followed.state)
            alone = self.document.writers == "one"
            if not create_commit(self.storage, commit, data, hints=hints, alone=alone):
                continue
            with self._lock:
                if self._view is view:  # else another thread has read further already
                    self._view = followed
            return commit
        raise StorageError(
            f"{self.url}: other writers published first {_MAX_ATTEMPTS} times in a row; nothing was published, try "
            "again when fewer are at work",
            kind="storage/contention",
        )

    def history(self) -> Iterator[tuple[Commit, str]]:
        """Read the log backwards from its end, as far as the caller goes on: one request for each commit.

        Yields
        ------
        tuple of Commit and str
            A commit and the SHA-256 of its bytes, each held to the digest that the one after it names.

        Raises
        ------
        FormatError
            When a commit is missing (``format/log-gap``) or not the one that was followed (``format/log-chain``).
        """
        state = self.state()
        number, expected = state.number, state.sha256
        while number:
            where = f"{self.url}/{commit_path(number)}"
            data = read_limited(self.storage, commit_path(number), Commit)
            if data is None:
                raise FormatError(
                    f"{where}: the commit is missing; the log is damaged", kind="format/log-gap"
                )
            found = hashlib.sha256(data).hexdigest()
            if found != expected:
                raise FormatError(
                    f"{where}: SHA-256 is {found}, and the commit after it names {expected}; the log was tampered with",
                    kind="format/log-chain",
                )
            commit = Commit.parse(data, where=where)
            yield commit, found
            number, expected = number - 1, commit.parent

    def reachable(self) -> tuple[RegistryState, frozenset[str]]:
        """Tell the state now, and the digests of the snapshots that the newest checkpoints name.

        Snapshots of the checkpoint before the newest count too: a reader may be at it.
        """
        with self._lock:
            view = self._view = read_on(
                self.storage, self._view if self._was_read else self._first_view(), look_beyond=True
            )
            self._was_read = True
        digests: set[str] = set()
        number = view.checkpoint
        for _ in range(2):
            if number is None:
                break
            data = read_limited(self.storage, commit_path(number), Commit)
            if data is None:
                raise FormatError(f"{self.url}: commit {number} is missing", kind="format/log-gap")
            commit = Commit.parse(data, where=f"{self.url}/{commit_path(number)}")
            digests |= {entry.digest for entry in commit.index or ()}
            number = commit.checkpoint
        return view.state, frozenset(digests)

    def audit(self, *, repair: bool = False) -> tuple[Problem, ...]:
        """Read the whole log, and hold every checkpoint and its snapshots to it: one request for each of these.

        Parameters
        ----------
        repair : bool
            Store snapshots anew that are missing or damaged; their bytes follow from the log.

        Returns
        -------
        tuple of Problem
            Everything that is wrong; empty when all is well.
        """
        return audit(self.storage, until=self.state().number, repair=repair)

    def _first_view(self) -> View:
        """Read the registry for the first time."""
        found, self._led_to = self._led_to, None
        if found is None:
            found = open_view(self.storage, read_newest(self.storage))
        if found is not None:
            # The hint was right; who wrote on since did so behind it.
            self._opened_at = time.monotonic()
            return read_on(self.storage, found, look_beyond=False)
        return read_on(self.storage, View(), look_beyond=True)

    def require_exclusive(self, *, may_remember: bool = False) -> None:
        """Refuse to publish where another's commit could be overwritten; asked once, with one request.

        Parameters
        ----------
        may_remember : bool
            Do not ask when this machine has seen the answer within a week.

        Raises
        ------
        StorageError
            When the storage ignores conditions (``storage/not-exclusive``), cannot be written to, or fails.
        """
        if not self._is_exclusive and self.document.writers != "one":
            seen = seen_exclusive(self.storage, self.document.id)
            if not (may_remember and seen is not None and seen.is_recent()):
                require_exclusive(self.storage, REGISTRY_DOCUMENT, self.document.to_bytes())
                if seen is not None:
                    seen.note()
        self._is_exclusive = True

    def _view_to_follow(self) -> View:
        """Read on to the end of the log and make sure that it is the end, for what is written there stays."""
        with self._lock:
            if not self._was_read:
                self._view, self._was_read = self._first_view(), True
            opened_at, self._opened_at = self._opened_at, None
            if opened_at is not None and time.monotonic() - opened_at < _FRESH_S:
                # Its end was looked at just now; who wrote since makes the creation fail, and then all is looked at.
                return self._view
            view = read_on(self.storage, self._view, look_beyond=True, use_hint=False)
            number = view.state.number
            if number and self.document.writers == "one":
                stored = read_limited(self.storage, commit_path(number), Commit)
                if stored is not None and hashlib.sha256(stored).hexdigest() != view.state.sha256:
                    raise second_writer(self.storage, number)
            if view is self._view and number and self.storage.size(commit_path(number)) is None:
                raise FormatError(
                    f"{self.url}: commit {number} was read before and is gone; the log was damaged or put back "
                    "to an older state, open the registry anew to go on from what is there",
                    kind="format/log-gap",
                )
            self._view = view
            return view


def _read_document(storage: Storage) -> RegistryDocument | None:
    data = read_limited(storage, REGISTRY_DOCUMENT, RegistryDocument)
    if data is None:
        return None
    return RegistryDocument.parse(data, where=f"{storage.url}/{REGISTRY_DOCUMENT}")


def _no_registry(url: str) -> NotFoundError:
    return NotFoundError(
        f"there is no registry at {url}; make one with: uws-store init {url}, or name another: --registry URL",
        kind="not-found/registry",
    )
