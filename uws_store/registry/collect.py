"""Garbage collection: removing what no version reaches, in two visits that are a grace period apart.

The first visit leaves a *tombstone* that names what nothing reaches; a later one, when the tombstone is as old as the
grace period by the storage's own clock, looks again and removes what still nothing reaches, nobody holds a lease on
and nobody has written to since. So a reader that had just resolved a name finishes, and a publisher that had just
uploaded, or found an object that was there, keeps it (``pending.py``).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uws_store.errors import InvalidInputError, StorageError, UwsError
from uws_store.layout import (
    FAMILIES_PREFIX,
    GROUP_PATH,
    LOG_PREFIX,
    basis_prefix,
    commit_path,
    pack_path,
    pending_path,
    snapshot_path,
    verification_path,
)
from uws_store.metadata.log import Action, DeleteAction, new_nonce
from uws_store.metadata.pending import PendingNote
from uws_store.registry.pending import LEASE_LIFE_S, SWEEP_LIFE_S, read_notes
from uws_store.storage import Listed, find_leftovers, list_entries, remove_leftovers

if TYPE_CHECKING:
    from uws_store.registry.pending import Note
    from uws_store.registry.registry import Registry
    from uws_store.registry.state import RegistryState
    from uws_store.storage import Storage

__all__ = ["LEAST_GRACE_S", "Collection", "Removal", "collect"]

LEAST_GRACE_S = 3600.0
"""The shortest grace period: a publication holds a lease well before."""

_COLLECTED = re.compile(
    r"^(families/[^/]+/(?:basis|models)/[0-9a-f]{64})/"
    r"|^(_log/snapshots/[0-9a-f]{64}\.json|families/[^/]+/(?:verifications/[0-9a-f]{64}\.json|packs/[0-9a-f]{64}))$"
)
_DELETES_PER_COMMIT = 2000


@dataclass(frozen=True, slots=True)
class Removal:
    """A basis, a model, a pack, a record of a verification or a snapshot that nothing reaches, or a temporary file.

    Attributes
    ----------
    prefix : str
        Its path.
    objects : int
        How many objects it has.
    size_bytes : int
        Their length.
    """

    prefix: str
    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Collection:
    """What a visit did, or with a dry run what it would do.

    Attributes
    ----------
    withdrawn : tuple of (str, str, int)
        Versions that were withdrawn: family, task, version.
    removed : tuple of Removal
        What was removed.
    marked : tuple of Removal
        What nothing reaches and a later visit removes.
    young : tuple of Removal
        What nothing reaches and is younger than the grace period: a publication at work may have uploaded it.
    held : tuple of str
        What nothing reaches and a publisher has a lease on.
    leftovers : tuple of Removal
        Temporary files of killed writers that were removed, on a disk alone: older than the grace period.
    dry_run : bool
        Whether nothing was changed.
    """

    withdrawn: tuple[tuple[str, str, int], ...]
    removed: tuple[Removal, ...]
    marked: tuple[Removal, ...]
    young: tuple[Removal, ...]
    held: tuple[str, ...]
    leftovers: tuple[Removal, ...]
    dry_run: bool


@dataclass(slots=True)
class _Found:
    """The objects below one prefix."""

    objects: list[Listed] = field(default_factory=list)


def collect(
    registry: Registry,
    *,
    dry_run: bool = False,
    keep_last: int | None = None,
    older_than_s: float = 0.0,
    grace_s: float = 86400.0,
) -> Collection:
    """Withdraw old versions where asked, and remove what no version reaches.

    Parameters
    ----------
    registry : Registry
        The registry.
    dry_run : bool
        Change nothing.
    keep_last : int, optional
        Withdraw versions but the last so many of each task; never one that an alias stands for.
    older_than_s : float
        Of these only what was published so long ago, by the storage's clock, in seconds.
    grace_s : float
        How long something must have been unreachable before it is removed, in seconds by the storage's clock; at
        least :data:`LEAST_GRACE_S`.

    Raises
    ------
    InvalidInputError
        For a bad number (``invalid-input/gc``).
    StorageError
        When the storage fails, or does not tell when objects were written (``storage/no-clock``).
    FormatError
        When the log or a note is damaged: what is reachable is not known then, and nothing is removed.

    Notes
    -----
    Over S3 a visit costs a page of listing for every thousand objects, one deletion for each object that is removed, what
    opening the registry costs, two requests for each note of a writer at work, and about ten more. Storages whose
    listing tells neither sizes nor times are asked for both, of unreachable objects alone.
    """
    _check_options(keep_last, older_than_s, grace_s)
    storage = registry.storage
    with _clock(storage, dry_run=dry_run) as now:
        withdrawn = _old_versions(registry, keep_last, older_than_s, now) if keep_last else []
        if withdrawn and not dry_run:
            withdrawn = _withdraw(registry, withdrawn)
        gone = set(withdrawn) if dry_run else set()
        found = _objects_of(storage)
        reached = _reached(registry, without=gone)
        garbage = {prefix: held for prefix, held in found.items() if prefix not in reached}
        tombstones = read_notes(storage, "tombstone")
        leased = _leased(storage, now)
        # Who names an old object anew writes to it: the tombstone is then no more than a stone.
        waiting = {
            prefix: note.written
            for note in sorted(tombstones, key=lambda note: -note.written)
            for prefix in note.note.prefixes
            if prefix in garbage and _untouched(storage, garbage[prefix], since=note.written)
        }
        due = {prefix for prefix, written in waiting.items() if written <= now - grace_s}
        held = sorted(prefix for prefix in garbage if prefix in leased)
        due -= set(held)
        sizes = {prefix: _measured(storage, prefix, entry) for prefix, entry in garbage.items()}
        removed = sorted(due)
        # No writer holds one so long: what it writes is in memory before the file is made.
        leftovers = find_leftovers(storage, before=now - grace_s)
        if not dry_run:
            leftovers = remove_leftovers(storage, leftovers)
            removed = _sweep(registry, due, garbage, now=now)
            _bury(storage, tombstones, garbage=set(garbage) - set(removed))
        fresh = [
            prefix
            for prefix, entry in sorted(garbage.items())
            if prefix not in waiting
            and prefix not in leased
            and _untouched(storage, entry, since=now - grace_s)
        ]
        if fresh and not dry_run:
            note = PendingNote(kind="tombstone", prefixes=tuple(fresh))
            storage.put(pending_path("tombstone", new_nonce()), note.to_bytes())
    return Collection(
        withdrawn=tuple(withdrawn),
        removed=tuple(sizes[prefix] for prefix in removed),
        marked=tuple(
            sizes[prefix]
            for prefix in sorted(garbage)
            if prefix not in set(removed) and (prefix in waiting or prefix in fresh)
        ),
        young=tuple(
            sizes[prefix]
            for prefix in sorted(garbage)
            if prefix not in {*removed, *waiting, *fresh} and prefix not in leased
        ),
        held=tuple(held),
        leftovers=tuple(Removal(entry.path, 1, entry.size_bytes or 0) for entry in leftovers),
        dry_run=dry_run,
    )


def _check_options(keep_last: int | None, older_than_s: float, grace_s: float) -> None:
    if keep_last is not None and keep_last < 1:
        raise InvalidInputError(
            f"keep_last is at least 1, not {keep_last}; a task's newest version is never withdrawn by age",
            kind="invalid-input/gc",
        )
    if older_than_s < 0 or (older_than_s and keep_last is None):
        raise InvalidInputError(
            "older_than is not negative and goes with keep_last: it says which of the other versions are withdrawn",
            kind="invalid-input/gc",
        )
    if not grace_s >= LEAST_GRACE_S:
        raise InvalidInputError(
            f"the grace period is at least {LEAST_GRACE_S:g} seconds, not {grace_s:g}",
            kind="invalid-input/gc",
        )


@contextlib.contextmanager
def _clock(storage: Storage, *, dry_run: bool) -> Iterator[float]:
    """Tell the storage's time in seconds: that of an object written just now."""
    if dry_run:
        yield time.time()  # nothing is removed, so this machine's clock will do
        return
    path = pending_path("clock", new_nonce())
    storage.put(path, b"")
    try:
        now = storage.modified(path)
        if now is None:
            raise StorageError(
                f"{storage.url} does not show an object that was written just now; nothing was removed",
                kind="storage/no-clock",
            )
        yield now
    finally:
        with contextlib.suppress(UwsError):
            storage.delete(path)


def _old_versions(
    registry: Registry, keep_last: int, older_than_s: float, now: float
) -> list[tuple[str, str, int]]:
    published: dict[int, float] = {}
    found: list[tuple[str, str, int]] = []
    for family in registry.state().walk():
        for name in sorted(family.tasks):
            task = family.tasks[name]
            aliased = set(task.aliases.values())
            for version in sorted(task.versions)[:-keep_last]:
                commit = task.versions[version].commit
                if version in aliased:
                    continue
                if commit not in published:
                    # By the time of the commit's object: the time in it is the publisher's word.
                    published[commit] = registry.storage.modified(commit_path(commit)) or now
                if published[commit] <= now - older_than_s:
                    found.append((family.name, name, version))
    return found


def _withdraw(registry: Registry, versions: Sequence[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    done: list[tuple[str, str, int]] = []
    for first in range(0, len(versions), _DELETES_PER_COMMIT):
        part = versions[first : first + _DELETES_PER_COMMIT]

        def actions(state: RegistryState, part: Sequence[tuple[str, str, int]] = part) -> Sequence[Action]:
            # Another may have withdrawn one meanwhile, or given it an alias.
            return [
                DeleteAction(family=family, task=name, version=version)
                for family, name, version in part
                if version in (task := state.family(family).tasks[name]).versions
                and version not in task.aliases.values()
            ]

        if not actions(registry.state()):
            continue
        commit = registry.publish(actions)
        done += [(a.family, a.task, a.version) for a in commit.actions if isinstance(a, DeleteAction)]
    return done


def _objects_of(storage: Storage) -> dict[str, _Found]:
    """Group the registry's objects by the basis, model, pack, verification or snapshot they belong to; others are nobody's business."""
    found: dict[str, _Found] = {}
    for folder in (FAMILIES_PREFIX, f"{LOG_PREFIX}/snapshots"):
        for held in list_entries(storage, folder):
            matched = _COLLECTED.match(held.path)
            if matched is not None:
                found.setdefault(matched[1] or matched[2], _Found()).objects.append(held)
    return found


def _reached(registry: Registry, *, without: set[tuple[str, str, int]]) -> set[str]:
    """Everything that a basis revision, a version, a verification or the newest checkpoint names."""
    state, snapshots = registry.reachable()
    reached = {snapshot_path(digest) for digest in snapshots}
    for family in state.walk():
        reached |= {basis_prefix(family.name, basis.digest) for basis in family.bases.values()}
        reached |= {verification_path(family.name, held.digest) for held in family.verifications}
        reached |= {
            pack_path(family.name, entry.pack.digest) if entry.pack else entry.prefix
            for entry in family.models()
            if (entry.family, entry.task, entry.version) not in without
        }
    return reached


def _leased(storage: Storage, now: float) -> set[str]:
    return {
        prefix
        for note in read_notes(storage, "lease")
        if note.written > now - LEASE_LIFE_S
        for prefix in note.note.prefixes
    }


def _untouched(storage: Storage, found: _Found, *, since: float) -> bool:
    """Whether every object was last written at or before a time."""
    written = [
        storage.modified(held.path) if held.modified is None else held.modified for held in found.objects
    ]
    return all(time_s is None or time_s <= since for time_s in written)


def _measured(storage: Storage, prefix: str, found: _Found) -> Removal:
    sizes = [
        storage.size(held.path) if held.size_bytes is None else held.size_bytes for held in found.objects
    ]
    return Removal(prefix, len(sizes), sum(size or 0 for size in sizes))


def _sweep(registry: Registry, due: set[str], garbage: dict[str, _Found], *, now: float) -> list[str]:
    """Remove what is due and still unreachable, having told publishers first."""
    if not due:
        return []
    storage = registry.storage
    mark = pending_path("sweep", new_nonce())
    storage.put(mark, PendingNote(kind="sweep").to_bytes())
    removed: list[str] = []
    deadline = time.monotonic() + SWEEP_LIFE_S / 2
    try:
        # From here on, who names an old object anew sees the mark; who did so before is seen here.
        kept = _leased(storage, now) | _reached(registry, without=set())
        for prefix in sorted(due - kept):
            if time.monotonic() > deadline:
                break  # publishers wait for us no longer; the next visit goes on
            # The group document first: what is left of a model that is half gone is no model.
            paths = [held.path for held in garbage[prefix].objects]
            for path in sorted(paths, key=lambda path: path != f"{prefix}/{GROUP_PATH}"):
                storage.delete(path)
            removed.append(prefix)
    finally:
        with contextlib.suppress(UwsError):
            storage.delete(mark)
    return removed


def _bury(storage: Storage, tombstones: Sequence[Note], *, garbage: set[str]) -> None:
    """Remove tombstones of which nothing is left: all was removed, or is reached again."""
    for note in tombstones:
        if not garbage & set(note.note.prefixes):
            storage.delete(note.path)
