"""Bringing the objects of a family from one storage to another: only what is missing, checked at both ends.

Owns which objects a basis, a model and a verification are made of. Must not know what names stand for them in the
registry they go to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from uws_store import layout
from uws_store.basis import ARRAYS, Basis, array_record
from uws_store.builder import Progress
from uws_store.errors import FormatError
from uws_store.metadata.arrays import ArrayRecord
from uws_store.metadata.group import PLAIN_GROUP, to_group_bytes
from uws_store.model import read_document
from uws_store.registry import FamilyState, ModelEntry, Publication, RegistryState, VerificationEntry
from uws_store.storage import Storage
from uws_store.store import put_verified

__all__ = ["Transfer", "reached_folders"]

_THREADS = 8


@dataclass(frozen=True, slots=True)
class _Object:
    """An object to transfer: its path, what it must be, and its bytes where they are known already."""

    path: str
    size_bytes: int
    sha256: str
    data: bytes | None = None


def reached_folders(state: RegistryState, family: str) -> frozenset[str]:
    """Folders of the bases and models that names of a family stand for."""
    there = state.families.get(family)
    if there is None:
        return frozenset()
    bases = (layout.basis_prefix(family, basis.digest) for basis in there.bases.values())
    return frozenset((*bases, *(layout.model_prefix(family, entry.digest) for entry in there.models())))


class Transfer:
    """Objects on their way, several at once.

    Parameters
    ----------
    source, target : Storage
        From where, to where.
    publication : Publication
        Is told of everything that is stored.
    reached : collection of str
        Folders that names of the target stand for already: see :func:`reached_folders`.

    Attributes
    ----------
    objects, size_bytes : int
        What was transferred so far; what was there already is not counted.
    """

    def __init__(
        self, source: Storage, target: Storage, publication: Publication, *, reached: Collection[str]
    ) -> None:
        self._reached = reached
        self.source = source
        self.target = target
        self.publication = publication
        self.objects = 0
        self.size_bytes = 0

    def family(
        self,
        family: FamilyState,
        entries: Sequence[ModelEntry],
        *,
        whole: bool,
        progress: Progress | None,
    ) -> None:
        """Transfer the bases and the models; of a new family all bases, so that their numbers stay."""
        for path in layout.family_groups(family.name):
            put_verified(self.target, path, PLAIN_GROUP)
        used = {entry.basis_digest for entry in entries}
        bases = [basis.digest for basis in family.bases.values() if whole or basis.digest in used]
        groups = [layout.basis_prefix(family.name, digest) for digest in dict.fromkeys(bases)]
        models = dict.fromkeys(entry.digest for entry in entries)
        groups += [layout.model_prefix(family.name, digest) for digest in models]
        done = 0
        with ThreadPoolExecutor(_THREADS) as pool:
            # Records first, a few at a time: a family of thousands of models is not held in memory.
            for first in range(0, len(groups), _THREADS):
                part = groups[first : first + _THREADS]
                plans = dict(zip(part, pool.map(self._objects, part), strict=True))
                for prefix, objects in plans.items():
                    jobs = [pool.submit(self._bring, entry) for entry in objects[:-1]]
                    fresh = [job.result() for job in as_completed(jobs)]
                    # The group document last: what has one is whole.
                    fresh.append(self._bring(objects[-1]))
                    sizes = {entry.path.removeprefix(f"{prefix}/"): entry.size_bytes for entry in objects}
                    # What a name reaches now no collector removes within its grace period: it is no garbage yet.
                    self.publication.stored(
                        prefix, sizes, reused=prefix not in self._reached and not all(fresh)
                    )
                    done += 1
                    if progress is not None:
                        progress("transferring", done, len(groups))

    def verifications(self, family: str, entries: Sequence[VerificationEntry]) -> None:
        """Transfer the records of verifications."""
        for entry in entries:
            path = layout.verification_path(family, entry.digest)
            fresh = self._bring(_Object(path, entry.size_bytes, entry.digest))
            self.publication.stored(path, {"": entry.size_bytes}, reused=not fresh)

    def _objects(self, prefix: str) -> list[_Object]:
        """List a basis's or a model's objects by its record, which is checked; the group document last."""
        digest = prefix.rpartition("/")[2]
        records: Mapping[str, ArrayRecord | None]
        if prefix.split("/")[2] == "basis":
            basis = Basis.open(self.source, prefix, digest=digest).document
            records = {name: array_record(basis, name) for name in ARRAYS}
            group = to_group_bytes(basis)
        else:
            model = read_document(self.source, prefix, digest=digest)
            records = model.arrays
            group = to_group_bytes(model)
        if hashlib.sha256(group).hexdigest() != digest:  # another writer's spelling
            group = self.source.read(f"{prefix}/{layout.GROUP_PATH}")
        return [*_array_objects(prefix, records), _known(f"{prefix}/{layout.GROUP_PATH}", group)]

    def _bring(self, entry: _Object) -> bool:
        """Transfer an object unless it is there; tell whether it was not."""
        if self.target.size(entry.path) == entry.size_bytes:
            return False
        data = entry.data if entry.data is not None else self.source.read(entry.path)
        _check(data, entry, url=self.source.url)
        created = put_verified(self.target, entry.path, data)
        if created:
            _check(self.target.read(entry.path), entry, url=self.target.url)
            self.objects += 1
            self.size_bytes += len(data)
        return created


def _array_objects(prefix: str, records: Mapping[str, ArrayRecord | None]) -> Iterator[_Object]:
    for name, record in records.items():
        if record is None:
            continue
        for index, shard in enumerate(record.shards):
            yield _Object(layout.shard_path(prefix, name, index), shard.size, shard.sha256)
        yield _known(layout.array_path(prefix, name), layout.array_metadata(record))


def _known(path: str, data: bytes) -> _Object:
    return _Object(path, len(data), hashlib.sha256(data).hexdigest(), data)


def _check(data: bytes, entry: _Object, *, url: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise FormatError(
            f"{url}/{entry.path}: SHA-256 is {found}, the record says {entry.sha256}; the object is damaged",
            kind="format/digest",
        )
