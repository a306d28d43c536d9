"""Bytes under paths: the one small interface that everything above reads and writes through."""

from __future__ import annotations

from uws_store.storage.cached import CachedFile, CachedStorage, CacheFolder, dropped_if_damaged
from uws_store.storage.leftovers import find_leftovers, remove_leftovers
from uws_store.storage.listing import Listed, list_entries
from uws_store.storage.local import LocalStorage
from uws_store.storage.memory import MemoryStorage
from uws_store.storage.opening import open_storage
from uws_store.storage.protocol import Storage, check_path
from uws_store.storage.url import StorageUrl, parse_options, public_options

__all__ = [
    "CacheFolder",
    "CachedFile",
    "CachedStorage",
    "Listed",
    "LocalStorage",
    "MemoryStorage",
    "Storage",
    "StorageUrl",
    "check_path",
    "dropped_if_damaged",
    "find_leftovers",
    "list_entries",
    "open_storage",
    "parse_options",
    "public_options",
    "remove_leftovers",
]
