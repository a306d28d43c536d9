"""From a storage to a state: the newest checkpoint and the commits after it, or the whole log.

Owns what is read in which order, and what is kept of it for the next checkpoint. Must not know how commits are made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, UwsError
from uws_store.layout import commit_path
from uws_store.metadata.log import Commit
from uws_store.names import collision_key
from uws_store.registry.fold import Draft
from uws_store.registry.log import has_grown, read_commit, read_recent
from uws_store.registry.slots import Families, FamilySlot
from uws_store.registry.snapshot import read_snapshot
from uws_store.registry.state import FamilyState, RegistryState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uws_store.metadata.log import HeadHint, IndexEntry
    from uws_store.registry.log import LogRecord
    from uws_store.storage import Storage

__all__ = ["View", "after", "fold_commit", "open_view", "read_on", "replay"]

TAIL_BYTES = 160 << 10
"""The head carries the commits since the checkpoint while they are no longer than this."""


@dataclass(frozen=True, slots=True)
class View:
    """What one reader knows of a registry.

    Attributes
    ----------
    state : RegistryState
        What the registry holds.
    checkpoint : int or None
        The newest commit that has an index.
    since, since_bytes : int
        Commits from the checkpoint on (or from the first), itself counted, and their length.
    tail : tuple of bytes
        These commits; empty when they are too long to be carried along.
    """

    state: RegistryState = RegistryState(families=Families({}))  # noqa: RUF009 - a value that never changes
    checkpoint: int | None = None
    since: int = 0
    since_bytes: int = 0
    tail: tuple[bytes, ...] = ()

    def followed_by(self, commit: Commit, data: bytes, state: RegistryState) -> View:
        """The view after one more commit."""
        if commit.index is not None:
            return View(state, commit.number, 1, len(data), (data,) if len(data) <= TAIL_BYTES else ())
        since_bytes = self.since_bytes + len(data)
        fits = since_bytes <= TAIL_BYTES and len(self.tail) == self.since
        tail = (*self.tail, data) if fits else ()
        return View(state, self.checkpoint, self.since + 1, since_bytes, tail)


def fold_commit(draft: Draft, commit: Commit, *, where: str) -> None:
    """Let a commit's actions take effect.

    Raises
    ------
    FormatError
        When one does not follow from the commits before (``format/log``).
    """
    for index, action in enumerate(commit.actions):
        try:
            draft.apply(action, commit=commit.number, time=commit.time)
        except UwsError as error:
            raise FormatError(
                f"{where}: action {index} does not follow from the commits before it: {error}",
                kind="format/log",
            ) from error


def open_view(storage: Storage, hint: HeadHint | None) -> View | None:
    """Read from the newest checkpoint on, having found it by the hint.

    Parameters
    ----------
    storage : Storage
        Where the log is.
    hint : HeadHint or None
        Where the newest commit may be.

    Returns
    -------
    View or None
        None when the log is to be read from its beginning: there is no hint that leads to a checkpoint.
    """
    records = read_recent(storage, hint) if hint is not None else None
    if not records:
        return None
    view = View()
    first = records[0].commit
    if first.index is not None:
        view = View(state=_state_before(storage, first, first.index))
    return _follow(storage, view, records)


def read_on(storage: Storage, view: View, *, look_beyond: bool, use_hint: bool = True) -> View:
    """Fold every commit after a view into it."""
    while True:
        record = read_commit(storage, view.state.number + 1, parent=view.state.sha256)
        if record is not None:
            records = [record]
            while record is not None:
                record = read_commit(storage, record.commit.number + 1, parent=record.sha256)
                if record is not None:
                    records.append(record)
            view = _follow(storage, view, records)
        if not look_beyond or not has_grown(storage, view.state.number + 1, use_hint=use_hint):
            return view


def after(view: View, commit: Commit, data: bytes, draft: Draft) -> View:
    """The view after a commit that this process made."""
    sha256 = hashlib.sha256(data).hexdigest()
    return view.followed_by(commit, data, draft.freeze(number=commit.number, sha256=sha256))


def replay(storage: Storage, until: int) -> RegistryState:
    """Read the log from its first commit to `until`, whatever snapshots there are.

    Raises
    ------
    FormatError
        When a commit is missing or wrong.
    """
    draft, sha256 = Draft(RegistryState(families=Families({}))), None
    for number in range(1, until + 1):
        record = read_commit(storage, number, parent=sha256)
        if record is None:
            raise FormatError(
                f"{storage.url}: commit {number} is missing and commit {until} exists; the log is damaged, restore "
                f"{commit_path(number)} from a copy of the registry",
                kind="format/log-gap",
            )
        sha256 = record.sha256
        fold_commit(draft, record.commit, where=f"{storage.url}/{commit_path(number)}")
    return draft.freeze(number=until, sha256=sha256)


def _follow(storage: Storage, view: View, records: Sequence[LogRecord]) -> View:
    draft = Draft(view.state, lazily=True)
    for record in records:
        fold_commit(draft, record.commit, where=f"{storage.url}/{commit_path(record.commit.number)}")
        # The states in between are nobody's: they are made only to be counted.
        view = view.followed_by(record.commit, record.data, view.state)
    last = records[-1]
    state = draft.freeze(number=last.commit.number, sha256=last.sha256)
    if any(record.commit.index is not None for record in records):
        state = _with_entries(state, records)
    return View(state, view.checkpoint, view.since, view.since_bytes, view.tail)


def _with_entries(state: RegistryState, records: Sequence[LogRecord]) -> RegistryState:
    """Name the snapshots of families that did not change since the newest checkpoint among the records."""
    newest = max(index for index, record in enumerate(records) if record.commit.index is not None)
    changed = {action.family for record in records[newest:] for action in record.commit.actions}
    assert isinstance(state.families, Families)
    for entry in records[newest].commit.index or ():
        if entry.family not in changed and entry.family in state.families.slots:
            state.families.slots[entry.family].entry = entry
    return state


def _state_before(storage: Storage, commit: Commit, index: Sequence[IndexEntry]) -> RegistryState:
    """The state that a checkpoint's index tells: that of the commit before it."""
    before = commit.number - 1
    rebuilt: list[RegistryState] = []

    def load(entry: IndexEntry) -> FamilyState:
        try:
            return read_snapshot(storage, entry)
        except FormatError as damage:
            # A snapshot only repeats what the log says: without it the log is read.
            if not rebuilt:
                rebuilt.append(replay(storage, before))
            found = rebuilt[0].families.get(entry.family)
            if found is None or found.architecture != entry.architecture:
                raise FormatError(
                    f"{storage.url}/{commit_path(commit.number)}: the index names the family {entry.family!r}, which "
                    "the commits before it have not; the log was tampered with",
                    kind="format/snapshot",
                ) from damage
            return found

    slots = {entry.family: FamilySlot(make=partial(load, entry), entry=entry) for entry in index}
    return RegistryState(
        number=before,
        sha256=commit.parent,
        families=Families(slots),
        taken={collision_key(name): name for name in slots},
    )
