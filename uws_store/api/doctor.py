"""Examining a storage: what it keeps of what a registry needs, and what may be done there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from uws_store.config import default_registry_url
from uws_store.errors import NotFoundError, StorageError
from uws_store.layout import REGISTRY_DOCUMENT
from uws_store.registry import Registry
from uws_store.storage import Storage, StorageUrl, open_storage
from uws_store.storage.probing import Check, probe, probe_reading

__all__ = ["Diagnosis", "doctor"]

_ATOMIC_USE = ("reading", "publishing", "many writers")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found about a storage.

    Attributes
    ----------
    url : str
        The storage.
    registry : str or None
        Id of the registry that is there.
    single_writer : bool
        Whether that registry was made for one writer.
    writable : bool
        Whether anything can be written; where not, only reading was tried.
    checks : tuple of Check
        Each promise and what came of it.
    """

    url: str
    registry: str | None
    single_writer: bool
    writable: bool
    checks: tuple[Check, ...]

    def allows(self, use: str) -> bool:
        """Whether all that a use needs was kept: ``reading``, ``publishing``, ``many writers``."""
        if use != "reading" and not self.writable:
            return False
        needed = _ATOMIC_USE[: _ATOMIC_USE.index(use) + 1]
        return all(check.kept for check in self.checks if check.needed_for in needed)

    @property
    def safe(self) -> bool:
        """Whether the storage keeps what its registry relies on; many writers, where there is none yet."""
        if not self.writable:
            return self.allows("reading")
        return self.allows("publishing" if self.single_writer else "many writers")


def doctor(url: str | None = None, *, storage_options: Mapping[str, object] | None = None) -> Diagnosis:
    """Try what a storage does, on objects of its own that are removed afterwards.

    About a hundred requests and 32 MiB of traffic.

    Parameters
    ----------
    url : str, optional
        The storage; by default the default registry's.
    storage_options : Mapping of str to object, optional
        See :func:`uws_store.storage.open_storage`.

    Raises
    ------
    NotFoundError
        When there is no storage; or nothing on it to read, where nothing can be written.
    StorageError
        When it can neither be written nor read.
    """
    storage = open_storage(StorageUrl(url or default_registry_url(), storage_options))
    registry = _registry_in(storage)
    writable = True
    try:
        checks = probe(storage)
    except StorageError as error:
        if error.kind not in {"storage/read-only", "storage/permission"} or registry is None:
            raise
        writable, checks = False, probe_reading(storage, REGISTRY_DOCUMENT)
    return Diagnosis(
        url=storage.url,
        registry=registry.document.id if registry else None,
        single_writer=registry is not None and registry.document.writers == "one",
        writable=writable,
        checks=checks,
    )


def _registry_in(storage: Storage) -> Registry | None:
    with contextlib.suppress(NotFoundError):
        return Registry.over(storage)
    return None
