"""What is kept of registries behind a network: opening them through the cache, around it, and looking at it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uws_store.config import cache_folder, cache_limit_bytes, is_offline
from uws_store.errors import InvalidInputError, NotFoundError, StorageError
from uws_store.registry import Registry
from uws_store.storage import (
    CachedFile,
    CachedStorage,
    CacheFolder,
    LocalStorage,
    MemoryStorage,
    StorageUrl,
    open_storage,
)

__all__ = [
    "CacheContents",
    "at_source",
    "cache_contents",
    "clear_cache",
    "open_cached",
    "reader_of",
    "without_network",
]


@dataclass(frozen=True, slots=True)
class CacheContents:
    """What is kept.

    Attributes
    ----------
    folder : str
        Where.
    size_bytes, limit_bytes : int
        How much it is, and may become.
    files : tuple of CachedFile
        What was used longest ago first.
    """

    folder: str
    size_bytes: int
    limit_bytes: int
    files: tuple[CachedFile, ...]


def open_cached(
    url: str, *, create: bool = False, local_files_only: bool = False, cache_dir: str | Path | None = None
) -> Registry:
    """Open a registry; one behind a network through the cache.

    Parameters
    ----------
    url : str
        See :func:`uws_store.storage.open_storage`.
    create : bool, optional
        Make it when it does not exist; never without the network.
    local_files_only : bool, optional
        Ask nothing of a storage behind a network.
    cache_dir : str or Path, optional
        The folder of the cache, in place of ``UWS_STORE_CACHE``.

    Raises
    ------
    UwsError
        See :meth:`uws_store.registry.Registry.open`; ``storage/offline`` when the network is not to be used and what
        is needed was not kept.
    """
    try:
        storage = open_storage(url, create=create)
    except NotFoundError:
        return Registry.open(url, create=create)  # says what to do
    if isinstance(storage, LocalStorage | MemoryStorage):
        return Registry.over(storage, create=create)
    offline = local_files_only or is_offline()
    cached = CachedStorage(storage, _folder(cache_dir), offline=offline)
    try:
        return Registry.over(cached, create=create and not offline)
    except NotFoundError as error:
        if not offline:
            raise
        raise StorageError(
            f"{storage.url} was never opened with the network, so nothing is known of it; open it once without "
            "--offline (local_files_only)",
            kind="storage/offline",
        ) from error


def at_source(registry: Registry) -> Registry:
    """Open a registry around the cache, for who asks what really stands there."""
    storage = registry.storage
    if not isinstance(storage, CachedStorage):
        return registry
    if storage.offline:
        raise StorageError(
            f"what stands at {storage.url} cannot be looked at without the network", kind="storage/offline"
        )
    return Registry.over(storage.inner)


def cache_contents() -> CacheContents:
    """Tell what is kept, and where."""
    folder = _folder()
    files = tuple(folder.files())
    return CacheContents(
        folder=str(folder.root),
        size_bytes=sum(file.size_bytes for file in files),
        limit_bytes=folder.limit_bytes,
        files=files,
    )


def clear_cache() -> int:
    """Remove all that is kept; give the bytes removed."""
    return _folder().trim(-1)


def without_network(registry: Registry) -> Registry:
    """Open a registry that is open again, so that its storage behind a network is not asked.

    Raises
    ------
    InvalidInputError
        When it was not opened through the cache (``invalid-input/open-registry``).
    StorageError
        When nothing was kept of it (``storage/offline``).
    """
    storage = registry.storage
    if isinstance(storage, CachedStorage):
        return (
            registry
            if storage.offline
            else Registry.over(CachedStorage(storage.inner, storage.folder, offline=True))
        )
    if isinstance(storage, LocalStorage | MemoryStorage):
        return registry
    raise InvalidInputError(
        f"{registry.url} was opened without the cache, so it cannot be read without the network; open it with "
        "open_registry(url, local_files_only=True)",
        kind="invalid-input/open-registry",
    )


def reader_of(registry: Registry) -> tuple[object, ...]:
    """Tell by which way a registry is read: its address with the options, its cache, whether the network is left alone."""
    storage, url = registry.storage, registry.url
    options = repr(sorted(url.options.items())) if isinstance(url, StorageUrl) else ""
    if isinstance(storage, CachedStorage):
        return url, options, str(storage.folder.root), storage.offline
    # Two storages in memory may have one name.
    return url, options, id(storage) if isinstance(storage, MemoryStorage) else None


def _folder(cache_dir: str | Path | None = None) -> CacheFolder:
    root = cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
    return CacheFolder(root / "objects", limit_bytes=cache_limit_bytes())
