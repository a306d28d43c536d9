"""A storage in a bucket of the Hugging Face Hub, for one writer at a time.

A bucket knows no condition: who creates a file replaces what stood there, so a registry in one is for a single writer
(``uws-store init --single-writer``). A change of many files is not one step either: staged files are uploaded first, and
what names them when they have arrived. Owns that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uws_store.storage.remote import ObjectInfo
from uws_store.storage.staging import StagingBackend, StagingStorage, path_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from uws_store.hub.bucket import HubBucket

__all__ = ["BucketBackend", "BucketStorage"]


class BucketBackend(StagingBackend):
    """The requests of a bucket. Keys are a word that stands for it, and paths in it.

    Parameters
    ----------
    bucket : HubBucket
        The bucket.
    """

    def __init__(self, bucket: HubBucket) -> None:
        super().__init__(bucket)
        self._bucket = bucket

    def publish(self, key: str, data: bytes, hints: Mapping[str, bytes]) -> None:
        """Upload what is staged, then a file, then its hints; what stood under its name is replaced."""
        staged = self._waiting()
        if staged:
            waiting: dict[str, bytes | Path | None] = {**staged}
            self._bucket.change(waiting)
            self._arrived(staged)
        self._bucket.change({path_of(key): data})
        if hints:
            self._bucket.change({path_of(hint): held for hint, held in hints.items()})

    def stage(self, key: str, data: bytes) -> None:
        """Keep a file for the next publication; the bucket is not asked whether it has it."""
        path = path_of(key)
        if path in self._waiting():
            raise FileExistsError(path)
        self._keep(path, data)

    def replace(self, key: str, data: bytes) -> None:
        """See :meth:`Backend.replace`."""
        self._bucket.change({path_of(key): data})

    def remove(self, key: str) -> None:
        """See :meth:`Backend.remove`."""
        path = path_of(key)
        if not self._drop(path) and path in self._bucket.info([path]):
            self._bucket.change({path: None})

    def keys(self, prefix: str) -> Iterable[str]:
        """See :meth:`Backend.keys`."""
        return [key for key, _ in self.entries(prefix)]

    def entries(self, prefix: str) -> Iterable[tuple[str, ObjectInfo | None]]:
        """See :meth:`Backend.entries`."""
        root = prefix.partition("/")[0]
        found: dict[str, ObjectInfo | None] = {
            path: ObjectInfo(info.size, info.modified) for path, info in self._bucket.files(path_of(prefix))
        }
        found |= {path: ObjectInfo(kept.stat().st_size, None) for path, kept in self._waiting().items()}
        return [(f"{root}/{path}", info) for path, info in found.items()]


class BucketStorage(StagingStorage):
    """A bucket of the Hub; ``put_if_absent`` creates whatever is there, which a registry for one writer allows for."""
