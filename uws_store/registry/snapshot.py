"""Snapshots: a family as a document and back, and the checkpoint that names them all.

Must not know the log's commits, nor when a checkpoint is due.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from uws_store.errors import FormatError
from uws_store.layout import snapshot_path
from uws_store.metadata.log import IndexEntry
from uws_store.metadata.snapshot import (
    FamilySnapshot,
    SnapshotBasis,
    SnapshotTask,
    SnapshotVerification,
    SnapshotVersion,
)
from uws_store.names import collision_key
from uws_store.registry.slots import Families
from uws_store.registry.state import (
    BasisEntry,
    FamilyState,
    ModelEntry,
    RegistryState,
    TaskState,
    VerificationEntry,
)

if TYPE_CHECKING:
    from uws_store.storage import Storage

__all__ = ["read_snapshot", "snapshot_of", "write_snapshots"]


def snapshot_of(family: FamilyState) -> FamilySnapshot:
    """Write a family down; equal families give equal bytes."""
    return FamilySnapshot(
        family=family.name,
        architecture=family.architecture,
        bases=tuple(
            SnapshotBasis(digest=basis.digest, size_bytes=basis.size_bytes, commit=basis.commit)
            for _, basis in sorted(family.bases.items())
        ),
        tasks=tuple(
            SnapshotTask(
                task=name,
                last_version=task.last_version,
                versions=tuple(
                    SnapshotVersion(
                        version=entry.version,
                        basis_revision=entry.basis_revision,
                        digest=entry.digest,
                        size_bytes=entry.size_bytes,
                        exact=entry.exact,
                        commit=entry.commit,
                        time=entry.time,
                        pack=entry.pack,
                    )
                    for _, entry in sorted(task.versions.items())
                ),
                aliases=tuple(sorted(task.aliases.items())),
            )
            for name, task in sorted(family.tasks.items())
        ),
        verifications=tuple(
            SnapshotVerification(
                digest=held.digest,
                size_bytes=held.size_bytes,
                ok=held.ok,
                commit=held.commit,
                time=held.time,
            )
            for held in family.verifications
        )
        or None,
    )


def family_of(snapshot: FamilySnapshot) -> FamilyState:
    """Read a family from its snapshot."""
    bases = {
        revision: BasisEntry(revision, basis.digest, basis.size_bytes, basis.commit)
        for revision, basis in enumerate(snapshot.bases, 1)
    }
    tasks = {
        task.task: TaskState(
            name=task.task,
            versions=MappingProxyType(
                {
                    held.version: ModelEntry(
                        family=snapshot.family,
                        task=task.task,
                        version=held.version,
                        basis_revision=held.basis_revision,
                        basis_digest=bases[held.basis_revision].digest,
                        digest=held.digest,
                        size_bytes=held.size_bytes,
                        exact=held.exact,
                        commit=held.commit,
                        time=held.time,
                        pack=held.pack,
                    )
                    for held in task.versions
                }
            ),
            aliases=MappingProxyType(dict(task.aliases)),
            last_version=task.last_version,
        )
        for task in snapshot.tasks
    }
    return FamilyState(
        name=snapshot.family,
        architecture=snapshot.architecture,
        bases=MappingProxyType(bases),
        tasks=MappingProxyType(tasks),
        taken=MappingProxyType({collision_key(name): name for name in tasks}),
        verifications=tuple(
            VerificationEntry(held.digest, held.size_bytes, held.ok, held.commit, held.time)
            for held in snapshot.verifications or ()
        ),
    )


def read_snapshot(storage: Storage, entry: IndexEntry) -> FamilyState:
    """Read the snapshot that a checkpoint names: one request.

    Raises
    ------
    FormatError
        When it is missing (``format/missing-object``), has another digest (``format/digest``), is malformed, or is
        another family's (``format/snapshot``).
    """
    path = snapshot_path(entry.digest)
    where = f"{storage.url}/{path}"
    data = storage.read_at_most(path, min(entry.size_bytes, FamilySnapshot.max_bytes))
    if data is None:
        raise FormatError(f"{where}: the snapshot is missing", kind="format/missing-object")
    found = hashlib.sha256(data).hexdigest()
    if found != entry.digest:
        raise FormatError(f"{where}: SHA-256 is {found}; the snapshot is damaged", kind="format/digest")
    snapshot = FamilySnapshot.parse(data, where=where)
    if (snapshot.family, snapshot.architecture) != (entry.family, entry.architecture):
        raise FormatError(
            f"{where}: is of family {snapshot.family!r}, and the checkpoint names it for {entry.family!r}",
            kind="format/snapshot",
        )
    return family_of(snapshot)


def write_snapshots(storage: Storage, state: RegistryState) -> tuple[IndexEntry, ...]:
    """Store a snapshot of each family that has none, and list those of all: what a checkpoint holds.

    Costs one request for each family that changed since the last checkpoint, and one more for each of these that
    was not read.
    """
    assert isinstance(state.families, Families)
    index: list[IndexEntry] = []
    for name in sorted(state.families):
        slot = state.families.slots[name]
        entry = slot.entry
        if entry is None:
            family = slot.get()
            data = snapshot_of(family).to_bytes()
            digest = hashlib.sha256(data).hexdigest()
            # Whether it was there is no matter: who reads it compares its digest, and reads the log when it differs.
            storage.stage(snapshot_path(digest), data)
            entry = IndexEntry(
                family=name, architecture=family.architecture, digest=digest, size_bytes=len(data)
            )
            slot.entry = entry
        index.append(entry)
    return tuple(index)
