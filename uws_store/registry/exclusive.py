"""What this machine has seen a storage refuse: to replace an object that it was to create only if absent.

Owns how long that is remembered, and under which name. Must not ask the storage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uws_store.config import cache_folder
from uws_store.errors import UwsError
from uws_store.storage import LocalStorage, MemoryStorage, StorageUrl

if TYPE_CHECKING:
    from pathlib import Path

    from uws_store.storage import Storage

__all__ = ["SeenExclusive", "seen_exclusive"]

_REMEMBERED_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class SeenExclusive:
    """A note that a storage was seen to keep writers apart.

    Attributes
    ----------
    path : Path
        The note, an empty file whose time tells when.
    """

    path: Path

    def is_recent(self) -> bool:
        """Whether it was seen within the last seven days, by this machine's clock."""
        try:
            age_s = time.time() - self.path.stat().st_mtime
        except OSError:
            return False
        return 0 <= age_s < _REMEMBERED_S

    def note(self) -> None:
        """Remember that it was seen now; what cannot be kept is asked again."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()


def seen_exclusive(storage: Storage, registry_id: str) -> SeenExclusive | None:
    """Name the note of a registry; None where asking costs no request over a network.

    The address is part of the name: a copy of a registry elsewhere is another storage.

    Parameters
    ----------
    storage : Storage
        Where the registry is.
    registry_id : str
        Its id.
    """
    inner = getattr(storage, "inner", storage)
    if isinstance(inner, LocalStorage | MemoryStorage):
        return None
    url = storage.url
    options = url.options if isinstance(url, StorageUrl) else {}
    address = [url, registry_id, str(options.get("endpoint_url", "")), str(options.get("endpoint", ""))]
    name = hashlib.sha256(json.dumps(address).encode()).hexdigest()[:32]
    try:
        return SeenExclusive(cache_folder() / "exclusive" / name)
    except UwsError:  # a user without a home folder
        return None
