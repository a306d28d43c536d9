"""Making a registry: its one document, in a place that is empty and keeps writers apart.

Must not know the log.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from uws_store.config import tool_version
from uws_store.errors import InvalidInputError, UwsError
from uws_store.layout import REGISTRY_DOCUMENT
from uws_store.metadata.log import RegistryDocument, new_nonce, utc_now
from uws_store.storage.probing import require_exclusive

if TYPE_CHECKING:
    from uws_store.storage import Storage

__all__ = ["create_registry"]


def create_registry(storage: Storage, *, single_writer: bool = False) -> bool:
    """Write the document of a new registry.

    Parameters
    ----------
    storage : Storage
        An empty place.
    single_writer : bool, optional
        Do not ask whether the storage keeps writers apart, and say in the document that it need not.

    Returns
    -------
    bool
        False when there was a registry.

    Raises
    ------
    InvalidInputError
        When other files are there (``invalid-input/not-empty``).
    StorageError
        When the storage fails, or ignores conditions (``storage/not-exclusive``); nothing is left then.
    """
    if storage.size(REGISTRY_DOCUMENT) is not None:
        return False
    stranger = next(iter(storage.list("")), None)
    # Looked at again: another may have made the registry meanwhile, and then its own objects are no strangers.
    if stranger is not None and storage.size(REGISTRY_DOCUMENT) is None:
        raise InvalidInputError(
            f"{storage.url} holds other files, such as {stranger!r}; a registry is made in an empty folder or a new one",
            kind="invalid-input/not-empty",
        )
    document = RegistryDocument(
        id=new_nonce(), created=utc_now(), tool=tool_version(), writers="one" if single_writer else None
    )
    if not storage.put_if_absent(REGISTRY_DOCUMENT, document.to_bytes()):
        return False
    if not single_writer:
        try:
            require_exclusive(storage, REGISTRY_DOCUMENT, document.to_bytes())
        except UwsError:
            with contextlib.suppress(UwsError):
                storage.delete(REGISTRY_DOCUMENT)
            raise
    return True
