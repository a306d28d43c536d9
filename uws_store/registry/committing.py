"""Making a commit, and writing it if nobody was first.

Owns when a checkpoint is due, and how the outcome of a write is found out when the storage does not tell. Must not
know how often a publication is tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from uws_store.config import tool_version
from uws_store.errors import InvalidInputError, StorageError
from uws_store.layout import commit_path
from uws_store.metadata.document import problems_of
from uws_store.metadata.log import Action, Commit, IndexEntry, utc_now
from uws_store.registry.fold import Draft
from uws_store.registry.log import read_limited
from uws_store.registry.reading import TAIL_BYTES, View
from uws_store.registry.snapshot import write_snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from uws_store.registry.state import RegistryState
    from uws_store.storage import Storage

__all__ = ["create_commit", "prepare_commit", "second_writer"]

_CHECKPOINT_COMMITS = 64
_CHECKPOINT_BYTES = 128 << 10
_ENTRY_BYTES = 250
_MOST_ACTIONS = 4096
_SECOND_WRITER = "storage/second-writer"


def prepare_commit(
    storage: Storage, actions_for: Callable[[RegistryState], Sequence[Action]], view: View, *, nonce: str
) -> tuple[Commit, Draft]:
    """Make the commit that follows a view, and what the registry holds after it.

    Parameters
    ----------
    storage : Storage
        Where the snapshots of a checkpoint go, when one is due.
    actions_for : callable
        See :meth:`uws_store.registry.registry.Registry.publish`.
    view : View
        The end of the log.
    nonce : str
        What tells this commit from another's.

    Raises
    ------
    UwsError
        When the actions do not follow from the state.
    """
    state = view.state
    number, now = state.number + 1, utc_now()
    try:
        actions = tuple(actions_for(state))
    except pydantic.ValidationError as error:
        raise InvalidInputError(
            "what is to be published cannot be written down",
            kind="invalid-input/action",
            problems=problems_of(error),
        ) from error
    if not actions:
        raise InvalidInputError("there is nothing to publish", kind="invalid-input/no-actions")
    draft = Draft(state)
    for action in actions:
        draft.apply(action, commit=number, time=now)

    def make(index: tuple[IndexEntry, ...] | None) -> Commit:
        return Commit(
            number=number,
            parent=state.sha256,
            nonce=nonce,
            time=now,
            tool=tool_version(),
            checkpoint=view.checkpoint,
            index=index,
            actions=actions,
        )

    commit = make(None)
    index = _checkpoint(storage, view, len(commit.to_bytes())) if len(actions) <= _MOST_ACTIONS else None
    return (commit if index is None else make(index)), draft


def _checkpoint(storage: Storage, view: View, commit_bytes: int) -> tuple[IndexEntry, ...] | None:
    """Write the snapshots of a checkpoint when one is due; None when it is not, or cannot be made.

    It is due when the commits since the last one are many or long, or the head could not carry them and the new one
    along, and when they are long enough beside the index that all indexes together stay a few times the log.
    """
    index_bytes = _ENTRY_BYTES * len(view.state.families)
    long_bytes = view.since_bytes + commit_bytes
    due = (
        view.since >= _CHECKPOINT_COMMITS or view.since_bytes >= _CHECKPOINT_BYTES or long_bytes > TAIL_BYTES
    )
    pays = 4 * long_bytes >= index_bytes or view.since >= 4 * _CHECKPOINT_COMMITS
    if not (due and pays and 0 < index_bytes < Commit.max_bytes // 2):
        return None
    try:
        return write_snapshots(storage, view.state)
    except StorageError:
        return None  # the commit is as good without


def create_commit(
    storage: Storage, commit: Commit, data: bytes, *, hints: Mapping[str, bytes], alone: bool = False
) -> bool:
    """Write a commit if nobody was first; when in doubt, what stands there decides.

    A storage may create the object and fail to say so: the answer is lost, the client repeats the request by
    itself and is told that the object exists, or the folder cannot be flushed afterwards. The nonce tells our
    commit from another's; taking ours for another's would publish it twice.

    With ``alone`` the storage cannot keep writers apart, and only one should be at work: it is read back whether one
    was, which shows a second writer that wrote right after.
    """
    path = commit_path(commit.number)
    failure: StorageError | None = None
    try:
        if storage.put_if_absent(path, data, hints=hints):
            if alone and storage.read(path) != data:
                raise second_writer(storage, commit.number)
            return True
    except StorageError as error:
        if error.kind == _SECOND_WRITER:
            raise
        failure = error
    try:
        stored = read_limited(storage, path, Commit)
    except StorageError as error:
        raise StorageError(
            f"{storage.url}: commit {commit.number} was sent, and whether it arrived cannot be found out ({error}); "
            "look at the registry's list before you publish again",
            kind="storage/unknown-outcome",
        ) from (failure or error)
    if stored is None:
        if failure is not None:
            raise failure
        return False
    return Commit.parse(stored, where=f"{storage.url}/{path}").nonce == commit.nonce


def second_writer(storage: Storage, number: int) -> StorageError:
    """Make the error for a commit that another writer replaced where there should be one writer."""
    return StorageError(
        f"{storage.url}: commit {number} was replaced by another's: this registry is for one writer at a time, and a second "
        "one is at work. Stop it, look at what the log says now (uws-store log), and publish again what is missing",
        kind=_SECOND_WRITER,
    )
