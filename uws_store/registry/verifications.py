"""Records of verifications: stored under their digest, named by the log, read back.

Must not know how anything is verified.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from uws_store.errors import FormatError
from uws_store.layout import verification_path
from uws_store.metadata.log import VerificationAction
from uws_store.metadata.verification import VerificationDocument
from uws_store.registry.pending import Publication

if TYPE_CHECKING:
    from uws_store.metadata.log import Commit
    from uws_store.registry.registry import Registry
    from uws_store.registry.state import VerificationEntry
    from uws_store.storage import Storage

__all__ = ["publish_verification", "read_verification"]


def publish_verification(registry: Registry, document: VerificationDocument) -> Commit:
    """Store a record and let the log name it: one request beyond a publication's.

    Raises
    ------
    NotFoundError
        When there is no such family (``not-found/family``).
    FormatError
        When the record is too long (``format/size``).
    StorageError
        When the storage fails; the log is as it was.
    """
    data = document.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    action = VerificationAction(family=document.family, digest=digest, size_bytes=len(data), ok=document.ok)
    path = verification_path(document.family, digest)
    with Publication(registry.storage) as publication:
        created = registry.storage.stage(path, data)
        publication.stored(path, {"": len(data)}, reused=not created)
        publication.settle()
        return registry.publish(lambda _: [action])


def read_verification(storage: Storage, family: str, entry: VerificationEntry) -> VerificationDocument:
    """Read a record that the log names: one request.

    Raises
    ------
    FormatError
        When it is missing (``format/missing-object``), has another digest (``format/digest``), is malformed, or is not
        what the log says of it (``format/verification``).
    """
    path = verification_path(family, entry.digest)
    where = f"{storage.url}/{path}"
    data = storage.read_at_most(path, min(entry.size_bytes, VerificationDocument.max_bytes))
    if data is None:
        raise FormatError(
            f"{where}: the record is missing though the log names it", kind="format/missing-object"
        )
    found = hashlib.sha256(data).hexdigest()
    if found != entry.digest:
        raise FormatError(
            f"{where}: SHA-256 is {found}, the log says {entry.digest}; the record is damaged",
            kind="format/digest",
        )
    document = VerificationDocument.parse(data, where=where)
    if (document.family, document.ok, len(data)) != (family, entry.ok, entry.size_bytes):
        raise FormatError(
            f"{where}: the log says another family, length or outcome than the record; the log was tampered with",
            kind="format/verification",
        )
    return document
