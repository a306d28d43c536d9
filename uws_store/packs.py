"""Packs: one object that holds many models end to end, so that a family of many small models is few objects.

Owns how models lie in a pack, and gives a model that lies in one as the objects it would be alone: who reads models
need not know. Must not know names, nor which models are worth packing.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from uws_store import layout
from uws_store.errors import FormatError, NotFoundError, StorageError
from uws_store.metadata.group import from_group_bytes
from uws_store.metadata.log import PackPlace
from uws_store.metadata.model import ModelDocument
from uws_store.storage import CachedStorage, Storage
from uws_store.storage.protocol import missing, resolve_range, too_large

__all__ = ["Pack", "PackedModel", "make_pack", "model_objects", "model_storage"]

_READ_AT_ONCE_BYTES = 1 << 16
"""A model in a pack that is no longer is read with one request."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack ready to be stored.

    Attributes
    ----------
    digest : str
        SHA-256 of its bytes: :func:`uws_store.layout.pack_path`.
    data : bytes
        The models, end to end.
    places : Mapping of str to PackPlace
        Where each of them lies, by its digest.
    """

    digest: str
    data: bytes
    places: Mapping[str, PackPlace]


def make_pack(models: Iterable[tuple[str, Sequence[bytes]]]) -> Pack:
    """Put models into a pack.

    Parameters
    ----------
    models : iterable of (str, sequence of bytes)
        Digests, all different, and objects: the group document, then shards in the order of :func:`model_objects`.
    """
    parts: list[bytes] = []
    spans: dict[str, tuple[int, int, int]] = {}
    at = 0
    for digest, objects in models:
        length = sum(map(len, objects))
        spans[digest] = (at, len(objects[0]), length)
        parts += objects
        at += length
    data = b"".join(parts)
    name = hashlib.sha256(data).hexdigest()
    places = {
        digest: PackPlace(digest=name, offset=offset, document=document, length=length)
        for digest, (offset, document, length) in spans.items()
    }
    return Pack(name, data, places)


def model_objects(document: ModelDocument) -> Iterator[tuple[str, int]]:
    """Give the shards of a model as they follow its group document in a pack: path below its folder, and bytes."""
    for name, record in document.arrays.items():
        for index, shard in enumerate(record.shards):
            yield layout.shard_path("", name, index).lstrip("/"), shard.size


def model_storage(
    storage: Storage, prefix: str, place: PackPlace | None, *, span: bytes | None = None
) -> Storage:
    """Give the storage in which a model's objects stand under its folder, wherever they lie.

    Parameters
    ----------
    storage : Storage
        The registry's.
    prefix : str
        The model's folder.
    place : PackPlace or None
        Where the log says that it lies; None for a folder of its own.
    span : bytes, optional
        The model's bytes in the pack, where they were read already.
    """
    if place is None:
        return storage
    if isinstance(storage, CachedStorage):
        # Kept under the model's own digest, as if it lay alone.
        inner = PackedModel(storage.inner, prefix, place, span=span)
        return CachedStorage(inner, storage.folder, offline=storage.offline)
    return PackedModel(storage, prefix, place, span=span)


class PackedModel:
    """A model in a pack, as a storage that holds the objects it would be alone; it cannot be written to.

    Array metadata is not in a pack, since it follows from the record. Threads may share it.

    Parameters
    ----------
    storage : Storage
        Where the pack is.
    prefix : str
        The model's folder, which ends with its digest.
    place : PackPlace
        Where it lies in the pack.
    span : bytes, optional
        Its bytes there, where they were read already.
    """

    def __init__(self, storage: Storage, prefix: str, place: PackPlace, *, span: bytes | None = None) -> None:
        self._storage = storage
        self._prefix = prefix
        self._place = place
        self._path = layout.pack_path(prefix.split("/")[1], place.digest)
        self._span = span
        self._document: bytes | None = None
        self._objects: dict[str, tuple[int, int] | bytes] | None = None
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        """See :class:`Storage`."""
        return self._storage.url

    def __repr__(self) -> str:
        return f"PackedModel({self._storage!r}, {self._prefix!r})"

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """See :meth:`Storage.read`; one request at most, and one for the record where that was not read before."""
        found = self._find(path)
        if found is None:
            raise missing(path, url=self.url)
        where = f"{self.url}/{path}"
        if isinstance(found, bytes):
            first, count = resolve_range(len(found), start, end, where=where)
            return found[first : first + count]
        offset, size_bytes = found
        first, count = resolve_range(size_bytes, start, end, where=where)
        return self._fetch(offset + first, count)

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """See :meth:`Storage.read_at_most`."""
        size_bytes = self.size(path)
        if size_bytes is None:
            return None
        if size_bytes > limit_bytes:
            raise too_large(path, limit_bytes, url=self.url)
        return self.read(path)

    def size(self, path: str) -> int | None:
        """See :meth:`Storage.size`; what the record says."""
        found = self._find(path)
        if found is None:
            return None
        return len(found) if isinstance(found, bytes) else found[1]

    def modified(self, path: str) -> float | None:
        """See :meth:`Storage.modified`; that of the pack."""
        return None if self._find(path) is None else self._storage.modified(self._path)

    def list(self, prefix: str) -> Iterator[str]:
        """See :meth:`Storage.list`."""
        self._find(f"{self._prefix}/")
        assert self._objects is not None
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        paths = (f"{self._prefix}/{name}" for name in (layout.GROUP_PATH, *self._objects))
        return iter(sorted(path for path in paths if path.startswith(folder)))

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """Refuse: a pack is immutable."""
        del data, hints
        self._refuse(path)

    def stage(self, path: str, data: bytes) -> bool:
        """Refuse: a pack is immutable."""
        del data
        self._refuse(path)

    def put(self, path: str, data: bytes) -> None:
        """Refuse: a pack is immutable."""
        del data
        self._refuse(path)

    def delete(self, path: str) -> None:
        """Refuse: a pack is immutable."""
        self._refuse(path)

    def _refuse(self, path: str) -> NoReturn:
        raise StorageError(
            f"{self.url}/{path} lies in the pack {self._path}, which never changes; publish another version",
            kind="storage/permission",
        )

    def _find(self, path: str) -> tuple[int, int] | bytes | None:
        """Where an object lies, (offset in the span, bytes), or its bytes where they follow from the record."""
        name = path.removeprefix(f"{self._prefix}/")
        if name == path:
            return None
        if name == layout.GROUP_PATH:
            return 0, self._place.document
        with self._lock:
            if self._objects is None:
                self._objects = self._lay_out()
            return self._objects.get(name)

    def _lay_out(self) -> dict[str, tuple[int, int] | bytes]:
        where = f"{self.url}/{self._prefix}/{layout.GROUP_PATH}"
        data = self._document or self._fetch(0, self._place.document)
        self._document = None
        digest = self._prefix.rpartition("/")[2]
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise FormatError(
                f"{where}: SHA-256 is {found} in {self._path}; the pack is damaged", kind="format/digest"
            )
        document = from_group_bytes(ModelDocument, data, where=where)
        objects: dict[str, tuple[int, int] | bytes] = {}
        at = self._place.document
        for name, size_bytes in model_objects(document):
            objects[name] = at, size_bytes
            at += size_bytes
        if at != self._place.length:
            raise FormatError(
                f"{where}: takes {at} bytes, and the log says that {self._place.length} of {self._path} are its own",
                kind="format/pack",
            )
        for name, record in document.arrays.items():
            objects[layout.array_path("", name).lstrip("/")] = layout.array_metadata(record)
        return objects

    def _fetch(self, offset: int, count: int) -> bytes:
        """Read bytes of the span; of a short one all."""
        place = self._place
        with self._lock:
            if self._span is None and place.length <= _READ_AT_ONCE_BYTES:
                self._span = self._range(0, place.length)
            if self._span is not None:
                return self._span[offset : offset + count]
        data = self._range(offset, count)
        if offset == 0 and count == place.document:
            with self._lock:
                if self._objects is None:
                    self._document = data
        return data

    def _range(self, offset: int, count: int) -> bytes:
        if offset + count > self._place.length:
            raise FormatError(
                f"{self.url}/{self._path}: the range ends beyond the model's own bytes", kind="format/pack"
            )
        if not count:
            return b""
        first = self._place.offset + offset
        try:
            return self._storage.read(self._path, start=first, end=first + count)
        except NotFoundError as error:
            raise FormatError(
                f"{self.url}/{self._path}: the pack is missing though the log names it",
                kind="format/missing-object",
            ) from error
