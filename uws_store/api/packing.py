"""Models on their way that lie, or shall lie, in packs.

Owns when a pack of the source is read whole, which models are put into packs, and how large these grow. Must not know
what names stand for them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from uws_store import layout
from uws_store.api.encoding import StoredModel
from uws_store.errors import FormatError, NotFoundError
from uws_store.metadata.document import Document
from uws_store.metadata.group import to_group_bytes
from uws_store.metadata.log import PackPlace
from uws_store.model import read_document
from uws_store.packs import Pack, make_pack, model_objects, model_storage
from uws_store.registry import ModelEntry, Publication, Registry
from uws_store.storage import CachedStorage, Storage
from uws_store.storage.hugging import HubStorage
from uws_store.store import verify_object

__all__ = [
    "MOST_MODEL_BYTES",
    "MOST_PACK_BYTES",
    "SourceModels",
    "group_bytes",
    "is_packed",
    "pack_staged",
    "packs_of",
]

MOST_PACK_BYTES = 64 << 20
"""A pack is closed before it would be longer: it is held in memory, and lives as long as one of its models."""

MOST_MODEL_BYTES = 16 << 20
"""A longer model gets a folder of its own."""

_KEPT_PACKS = 2


class SourceModels:
    """Models of a registry, to be read one after the other; threads may share it.

    A pack of which half is wanted or more is read with one request.

    Parameters
    ----------
    registry : Registry
        Where they are.
    entries : iterable of ModelEntry
        Which will be read.
    """

    def __init__(self, registry: Registry, entries: Iterable[ModelEntry]) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._read: OrderedDict[str, bytes] = OrderedDict()
        spans: dict[str, dict[str, tuple[int, int]]] = {}
        for entry in entries:
            if entry.pack is not None:
                place = entry.pack
                spans.setdefault(place.digest, {})[entry.digest] = place.offset, place.offset + place.length
        self._extents: dict[str, tuple[int, int]] = {}
        for pack, held in spans.items():
            first, last = min(start for start, _ in held.values()), max(end for _, end in held.values())
            wanted = sum(end - start for start, end in held.values())
            if len(held) > 1 and last - first <= MOST_PACK_BYTES and 2 * wanted >= last - first:
                self._extents[pack] = first, last

    def storage_of(self, entry: ModelEntry) -> Storage:
        """See :meth:`Registry.storage_of`."""
        place = entry.pack
        if place is None or place.digest not in self._extents:
            return self._registry.storage_of(entry)
        first, last = self._extents[place.digest]
        with self._lock:
            data = self._read.get(place.digest)
            if data is None:
                path = layout.pack_path(entry.family, place.digest)
                data = _read(self._registry.storage, path, first, last)
                self._read[place.digest] = data
                while len(self._read) > _KEPT_PACKS:
                    self._read.popitem(last=False)
            self._read.move_to_end(place.digest)
        span = data[place.offset - first : place.offset - first + place.length]
        return model_storage(self._registry.storage, entry.prefix, place, span=span)

    def whole(self, entry: ModelEntry, *, any_length: bool = False) -> list[bytes] | None:
        """Read a model's objects as they follow each other in a pack, each held to its digest.

        Parameters
        ----------
        entry : ModelEntry
            The model.
        any_length : bool
            Read it however long it is.

        Returns
        -------
        list of bytes or None
            None for a model that is too long to be packed; only its record was read then.
        """
        storage = self.storage_of(entry)
        document = read_document(storage, entry.prefix, digest=entry.digest)
        group = group_bytes(document, storage, entry.prefix)
        shards = [
            (layout.shard_path(entry.prefix, name, index), shard)
            for name, record in document.arrays.items()
            for index, shard in enumerate(record.shards)
        ]
        if not any_length and len(group) + sum(shard.size for _, shard in shards) > MOST_MODEL_BYTES:
            return None
        objects = [group]
        for path, shard in shards:
            where = f"{storage.url}/{path}"
            data = storage.read_at_most(path, shard.size)
            if data is None:
                raise FormatError(
                    f"{where}: the object is missing though the record names it", kind="format/missing-object"
                )
            objects.append(verify_object(data, shard, where=where))
        return objects


def is_packed(storage: Storage) -> bool:
    """Tell whether models go into packs there unless one asks otherwise: where objects are what is counted."""
    return isinstance(storage.inner if isinstance(storage, CachedStorage) else storage, HubStorage)


def pack_staged(
    storage: Storage, family: str, models: Iterable[StoredModel], publication: Publication
) -> dict[str, PackPlace]:
    """Put models that wait for their commit into packs in place of their folders; where each lies, by its digest.

    Nothing is done unless :func:`is_packed`: there what is staged has not left this machine yet. What stood there
    before stays in its folder.
    """
    if not is_packed(storage):
        return {}
    staged = {model.digest: model for model in models if model.is_new}
    inner = storage.inner if isinstance(storage, CachedStorage) else storage

    def objects() -> Iterator[tuple[str, list[bytes]]]:
        for digest, model in staged.items():
            if sum(size_bytes for _, size_bytes in model.objects) > MOST_MODEL_BYTES:
                continue
            prefix = layout.model_prefix(family, digest)
            document = read_document(inner, prefix, digest=digest)
            paths = [layout.GROUP_PATH, *(path for path, _ in model_objects(document))]
            yield digest, [inner.read(f"{prefix}/{path}") for path in paths]

    places: dict[str, PackPlace] = {}
    for pack in packs_of(objects()):
        path = layout.pack_path(family, pack.digest)
        is_new = inner.stage(path, pack.data)
        publication.stored(path, {"": len(pack.data)}, reused=not is_new)
        places |= pack.places
        for digest in pack.places:
            prefix = layout.model_prefix(family, digest)
            for name, _ in staged[digest].objects:
                inner.delete(f"{prefix}/{name}")
            publication.dropped(prefix)
    return places


def _read(storage: Storage, path: str, first: int, last: int) -> bytes:
    try:
        return storage.read(path, start=first, end=last)
    except NotFoundError as error:
        raise FormatError(
            f"{storage.url}/{path}: the pack is missing though the log names it", kind="format/missing-object"
        ) from error


def group_bytes(document: Document, storage: Storage, prefix: str) -> bytes:
    """Give the group document of a basis or a model as it is stored."""
    group = to_group_bytes(document)
    if hashlib.sha256(group).hexdigest() == prefix.rpartition("/")[2]:
        return group
    return storage.read(f"{prefix}/{layout.GROUP_PATH}")  # another writer's spelling


def packs_of(models: Iterable[tuple[str, list[bytes]]]) -> Iterator[Pack]:
    """Put models into packs, in their order; the same models give the same packs."""
    held: list[tuple[str, list[bytes]]] = []
    size_bytes = 0
    for digest, objects in models:
        length = sum(map(len, objects))
        if held and size_bytes + length > MOST_PACK_BYTES:
            yield make_pack(held)
            held, size_bytes = [], 0
        held.append((digest, objects))
        size_bytes += length
    if held:
        yield make_pack(held)
