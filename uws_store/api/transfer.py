"""Bringing the objects of a family from one storage to another: only what is missing, checked at both ends.

Owns which objects a basis, a model and a verification are made of. Must not know what names stand for them in the
registry they go to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

from uws_store import layout
from uws_store.api.packing import SourceModels, group_bytes, packs_of
from uws_store.basis import ARRAYS, Basis, array_record
from uws_store.builder import Progress
from uws_store.errors import FormatError, StorageError
from uws_store.metadata.arrays import ArrayRecord
from uws_store.metadata.group import PLAIN_GROUP
from uws_store.metadata.log import PackPlace
from uws_store.model import read_document
from uws_store.registry import (
    FamilyState,
    ModelEntry,
    Publication,
    Registry,
    RegistryState,
    VerificationEntry,
)
from uws_store.storage import Storage
from uws_store.store import put_verified

__all__ = ["Held", "Transfer"]

T = TypeVar("T")

_THREADS = 8


@dataclass(frozen=True, slots=True)
class _Object:
    """An object to transfer: its path, what it must be, and its bytes or where to read them."""

    path: str
    size_bytes: int
    sha256: str
    data: bytes | Storage


@dataclass(frozen=True, slots=True)
class Held:
    """What names of a family stand for in the registry that it is brought to.

    Attributes
    ----------
    folders : frozenset of str
        Those of its bases, and of the models that lie in one.
    places : Mapping of str to PackPlace or None
        Where each model lies, by its digest; None for a folder.
    """

    folders: frozenset[str]
    places: Mapping[str, PackPlace | None]

    @classmethod
    def of(cls, state: RegistryState, family: str) -> Self:
        """Look it up."""
        there = state.families.get(family)
        if there is None:
            return cls(frozenset(), {})
        bases = [layout.basis_prefix(family, basis.digest) for basis in there.bases.values()]
        entries = list(there.models())
        models = [entry.prefix for entry in entries if entry.pack is None]
        return cls(frozenset((*bases, *models)), {entry.digest: entry.pack for entry in entries})


class Transfer:
    """Objects on their way, several at once.

    Parameters
    ----------
    source : Registry
        From where.
    target : Storage
        To where.
    publication : Publication
        Is told of everything that is stored.
    held : Held
        What names of the target stand for already.
    check : bool
        Read what is there already, too, and hold it to its digest.

    Attributes
    ----------
    mended : list of str
        Paths of objects that the target's names stood for and that were gone or damaged there.
    objects, size_bytes : int
        What was transferred so far; what was there already is not counted.
    places : dict of str to PackPlace or None
        Where each model that was asked for lies in the target, by its digest; None for a folder.
    """

    def __init__(
        self, source: Registry, target: Storage, publication: Publication, *, held: Held, check: bool = False
    ) -> None:
        self._held = held
        self._check = check
        self.source = source
        self.target = target
        self.publication = publication
        self.mended: list[str] = []
        self.objects = 0
        self.size_bytes = 0
        self.places: dict[str, PackPlace | None] = dict(held.places)

    def family(
        self,
        family: FamilyState,
        entries: Sequence[ModelEntry],
        *,
        whole: bool,
        packed: bool,
        progress: Progress | None,
    ) -> None:
        """Transfer the bases and the models; of a new family all bases, so that their numbers stay.

        With ``packed``, models that are new there and not too long are put into packs, by the order in which they were
        published: so a transfer that was cut off makes the same packs again, also when more was published since.
        """
        for path in layout.family_groups(family.name):
            put_verified(self.target, path, PLAIN_GROUP)
        used = {entry.basis_digest for entry in entries}
        bases = [basis.digest for basis in family.bases.values() if whole or basis.digest in used]
        models = {entry.digest: entry for entry in entries}
        new = [entry for digest, entry in models.items() if digest not in self._held.places]
        models = {digest: entry for digest, entry in models.items() if not self._held.places.get(digest)}
        read = SourceModels(self.source, models.values())
        steps = _Steps(len(dict.fromkeys(bases)) + len(models), progress)
        with ThreadPoolExecutor(_THREADS) as pool:
            if packed:
                for digest in self._pack(read, sorted(new, key=_published), family.name, pool, steps):
                    del models[digest]
            groups = [
                partial(self._basis_objects, layout.basis_prefix(family.name, digest))
                for digest in dict.fromkeys(bases)
            ]
            groups += [partial(self._model_objects, entry, read) for entry in models.values()]
            # Records first, a few at a time: a family of thousands of models is not held in memory.
            for first in range(0, len(groups), _THREADS):
                part = groups[first : first + _THREADS]
                for prefix, objects in pool.map(_call, part):
                    bring = partial(self._bring, is_named=prefix in self._held.folders)
                    jobs = [pool.submit(bring, entry) for entry in objects[:-1]]
                    fresh = [job.result() for job in as_completed(jobs)]
                    # The group document last: what has one is whole.
                    fresh.append(bring(objects[-1]))
                    sizes = {entry.path.removeprefix(f"{prefix}/"): entry.size_bytes for entry in objects}
                    # What a name reaches now no collector removes within its grace period: it is no garbage yet.
                    self.publication.stored(
                        prefix, sizes, reused=prefix not in self._held.folders and not all(fresh)
                    )
                    steps.done(1)
            self.places |= dict.fromkeys(models)

    def _pack(
        self,
        read: SourceModels,
        entries: Sequence[ModelEntry],
        family: str,
        pool: ThreadPoolExecutor,
        steps: _Steps,
    ) -> Iterator[str]:
        """Transfer models in packs; give the digests of those that are not too long for that."""

        def models() -> Iterator[tuple[str, list[bytes]]]:
            for first in range(0, len(entries), _THREADS):
                part = entries[first : first + _THREADS]
                for entry, objects in zip(part, pool.map(read.whole, part), strict=True):
                    if objects is not None:
                        yield entry.digest, objects

        for pack in packs_of(models()):
            path = layout.pack_path(family, pack.digest)
            fresh = self._bring(_Object(path, len(pack.data), pack.digest, pack.data))
            self.publication.stored(path, {"": len(pack.data)}, reused=not fresh)
            self.places |= pack.places
            steps.done(len(pack.places))
            yield from pack.places

    def verifications(self, family: str, entries: Sequence[VerificationEntry]) -> None:
        """Transfer the records of verifications."""
        for entry in entries:
            path = layout.verification_path(family, entry.digest)
            fresh = self._bring(_Object(path, entry.size_bytes, entry.digest, self.source.storage))
            self.publication.stored(path, {"": entry.size_bytes}, reused=not fresh)

    def _basis_objects(self, prefix: str) -> tuple[str, list[_Object]]:
        """List a basis's objects by its record, which is checked; the group document last."""
        storage = self.source.storage
        basis = Basis.open(storage, prefix, digest=prefix.rpartition("/")[2]).document
        records = {name: array_record(basis, name) for name in ARRAYS}
        return prefix, _objects(storage, prefix, records, group_bytes(basis, storage, prefix))

    def _model_objects(self, entry: ModelEntry, read: SourceModels) -> tuple[str, list[_Object]]:
        """List a model's objects, as a basis's."""
        storage, prefix = read.storage_of(entry), entry.prefix
        model = read_document(storage, prefix, digest=entry.digest)
        return prefix, _objects(storage, prefix, model.arrays, group_bytes(model, storage, prefix))

    def mend(self, path: str, data: bytes) -> None:
        """Put an object back that the target names and has not, or has damaged; nobody's bytes are lost by that."""
        self.target.put(path, data)
        if self.target.read(path) != data:
            raise StorageError(
                f"{self.target.url}/{path} was written and comes back with other bytes",
                kind="storage/conflict",
            )
        self.mended.append(path)
        self.objects += 1
        self.size_bytes += len(data)

    def _bring(self, entry: _Object, *, is_named: bool = False) -> bool:
        """Transfer an object unless it is there; tell whether it was not.

        What names stand for already has no commit to come that a storage could wait for: it is put back at once.
        """
        if self._is_there(entry):
            return False
        data = entry.data if isinstance(entry.data, bytes) else _read(entry.data, entry)
        _check(data, entry, url=self.source.url)
        if is_named:
            self.mend(entry.path, data)
            return True
        created = put_verified(self.target, entry.path, data)
        if created:
            _check(_read(self.target, entry), entry, url=self.target.url)
            self.objects += 1
            self.size_bytes += len(data)
        return created

    def _is_there(self, entry: _Object) -> bool:
        if self.target.size(entry.path) != entry.size_bytes:
            return False
        return not self._check or hashlib.sha256(self.target.read(entry.path)).hexdigest() == entry.sha256


class _Steps:
    """How far a transfer is."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress

    def done(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress("transferring", self._done, self._total)


def _call(job: Callable[[], T]) -> T:
    return job()


def _published(entry: ModelEntry) -> tuple[int, str, int]:
    return entry.commit, entry.task, entry.version


def _objects(
    source: Storage, prefix: str, records: Mapping[str, ArrayRecord | None], group: bytes
) -> list[_Object]:
    found: list[_Object] = []
    for name, record in records.items():
        if record is None:
            continue
        for index, shard in enumerate(record.shards):
            found.append(_Object(layout.shard_path(prefix, name, index), shard.size, shard.sha256, source))
        found.append(_known(layout.array_path(prefix, name), layout.array_metadata(record)))
    return [*found, _known(f"{prefix}/{layout.GROUP_PATH}", group)]


def _known(path: str, data: bytes) -> _Object:
    return _Object(path, len(data), hashlib.sha256(data).hexdigest(), data)


def _read(storage: Storage, entry: _Object) -> bytes:
    return storage.read(entry.path, start=0, end=entry.size_bytes)


def _check(data: bytes, entry: _Object, *, url: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise FormatError(
            f"{url}/{entry.path}: SHA-256 is {found}, the record says {entry.sha256}; the object is damaged",
            kind="format/digest",
        )
