"""Opening registries: by name or as they are, through the cache where they lie behind a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uws_store.api.cache import open_cached, without_network
from uws_store.config import default_registry_url
from uws_store.errors import InvalidInputError
from uws_store.registry import Registry
from uws_store.storage import StorageUrl

__all__ = ["open_registry"]


def open_registry(
    registry: str | Registry | None,
    *,
    create: bool = False,
    storage_options: Mapping[str, object] | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Registry:
    """Open a registry, to be given to the other functions in place of its URL.

    What is read from a registry behind a network is kept in a folder (``UWS_STORE_CACHE``, at most
    ``UWS_STORE_CACHE_SIZE``) under its digest, and not fetched again.

    Parameters
    ----------
    registry : str, Registry or None
        A URL, an open registry, or None for the default.
    create : bool, optional
        Make it when it does not exist.
    storage_options : Mapping of str to object, optional
        See :func:`uws_store.storage.open_storage`. They may hold credentials and are shown nowhere.
    local_files_only : bool, optional
        Ask nothing of a storage behind a network: names are those of the last time it was asked, objects those that
        are kept. ``UWS_STORE_OFFLINE`` does the same.
    cache_dir : str or Path, optional
        The folder in which is kept, in place of ``UWS_STORE_CACHE``. Nothing is kept of a registry on this machine.
    token : str or bool, optional
        For ``hf://`` alone: the token to sign in with; False signs in with none, and True demands the one that the
        Hub's client was logged in with. It is the storage option ``token``.

    Raises
    ------
    InvalidInputError
        A token for another storage than ``hf://`` (``invalid-input/token``); a token, options or a folder for a
        registry that is open already (``invalid-input/open-registry``).
    UwsError
        See :meth:`Registry.open`; ``storage/offline`` when what is needed was not kept.
    """
    if isinstance(registry, Registry):
        if storage_options or cache_dir is not None or token is not None:
            raise InvalidInputError(
                f"{registry.url} is open already; give storage_options, cache_dir and token to open_registry",
                kind="invalid-input/open-registry",
            )
        return without_network(registry) if local_files_only else registry
    url = StorageUrl(registry or default_registry_url(), storage_options)
    if token is not None:
        if not url.lower().startswith("hf://"):
            raise InvalidInputError(
                "token is for registries on a Hub (hf://); give the credentials of other storages as storage_options "
                "to open_registry",
                kind="invalid-input/token",
            )
        url = StorageUrl(url, {"token": token})
    return open_cached(url, create=create, local_files_only=local_files_only, cache_dir=cache_dir)
