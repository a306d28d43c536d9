"""The whole log read again, and everything derived from it held to it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from uws_store.errors import FormatError, Problem, UwsError
from uws_store.layout import commit_path, snapshot_path
from uws_store.metadata.snapshot import FamilySnapshot
from uws_store.registry.fold import Draft
from uws_store.registry.log import read_commit
from uws_store.registry.reading import fold_commit
from uws_store.registry.slots import Families
from uws_store.registry.snapshot import snapshot_of
from uws_store.registry.state import RegistryState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uws_store.metadata.log import Commit
    from uws_store.storage import Storage

__all__ = ["audit"]


def audit(storage: Storage, *, until: int, repair: bool = False) -> tuple[Problem, ...]:
    """Read every commit up to `until` and compare every checkpoint with what they say.

    Parameters
    ----------
    storage : Storage
        Where the registry is.
    until : int
        The newest commit.
    repair : bool
        Store snapshots anew that are missing or damaged.

    Returns
    -------
    tuple of Problem
        In the order of the log; a log that cannot be followed ends it.
    """
    problems: list[Problem] = []
    state = RegistryState(families=Families({}))
    checkpoint: int | None = None
    checked: set[str] = set()
    for number in range(1, until + 1):
        where = commit_path(number)
        try:
            record = read_commit(storage, number, parent=state.sha256)
            if record is None:
                raise FormatError(f"{storage.url}/{where}: is missing", kind="format/log-gap")
            commit = record.commit
            if commit.checkpoint != checkpoint:
                problems.append(
                    Problem(
                        where,
                        "format/checkpoint",
                        f"names the checkpoint {commit.checkpoint}, and the newest before it is {checkpoint}",
                    )
                )
            if commit.index is not None:
                checkpoint = number
                problems += _check_index(storage, commit, state, checked=checked, repair=repair)
            draft = Draft(state)
            fold_commit(draft, commit, where=f"{storage.url}/{where}")
            state = draft.freeze(number=number, sha256=record.sha256)
        except UwsError as error:
            problems.append(Problem(where, error.kind, error.message))
            break
    return tuple(problems)


def _check_index(
    storage: Storage, commit: Commit, state: RegistryState, *, checked: set[str], repair: bool
) -> Iterator[Problem]:
    where = commit_path(commit.number)
    index = commit.index or ()
    if {entry.family for entry in index} != set(state.families):
        yield Problem(where, "format/snapshot", "its index does not name the families that there were")
    for entry in index:
        family = state.families.get(entry.family)
        if family is None:
            continue
        data = snapshot_of(family).to_bytes()
        if (hashlib.sha256(data).hexdigest(), len(data)) != (entry.digest, entry.size_bytes):
            message = f"its snapshot of {entry.family!r} is not what the commits before it say"
            yield Problem(where, "format/snapshot", message)
            continue
        if entry.digest in checked:
            continue
        checked.add(entry.digest)
        path = snapshot_path(entry.digest)
        try:
            stored = storage.read_at_most(path, FamilySnapshot.max_bytes)
        except FormatError:
            stored = b""
        if stored != data:
            kind = "format/missing-object" if stored is None else "format/digest"
            yield Problem(path, kind, "the snapshot is missing or damaged; the log is read in its place")
            if repair:
                storage.put(path, data)
