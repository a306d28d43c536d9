"""What a model's record says by itself, read without opening the model.

Must not know how a tensor is made.
"""

from __future__ import annotations

import hashlib

from uws_store import layout
from uws_store.basis import Basis
from uws_store.errors import FormatError
from uws_store.metadata.group import from_group_bytes, max_group_bytes
from uws_store.metadata.model import ModelDocument
from uws_store.storage import Storage, dropped_if_damaged

__all__ = ["coded_names", "exact_bytes", "read_document"]


def read_document(storage: Storage, prefix: str, *, digest: str) -> ModelDocument:
    """Read and check a model's document: one request.

    Raises
    ------
    FormatError
        When it is missing, too large, damaged or not the one that ``digest`` names.
    """
    path = f"{prefix}/{layout.GROUP_PATH}"
    where = f"{storage.url}/{path}"
    with dropped_if_damaged(storage, path):
        data = storage.read_at_most(path, max_group_bytes(ModelDocument))
        if data is None:
            raise FormatError(
                f"{where}: the model is missing though the log names it", kind="format/missing-object"
            )
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise FormatError(
                f"{where}: SHA-256 is {found}, the log says {digest}; the document is damaged",
                kind="format/digest",
            )
    return from_group_bytes(ModelDocument, data, where=where)


def coded_names(document: ModelDocument, basis: Basis) -> list[str]:
    """Names of the tensors that a model codes in its basis, in the order of the table: one for each error on record."""
    kept = {record.name for record in document.private} | set(document.absent)
    kept.update(name for index in document.private_groups for name in basis.groups[index].names)
    return [name for name in basis.table if name in basis.slots and name not in kept]


def exact_bytes(document: ModelDocument) -> int:
    """Bytes of the objects that only the exact tier needs: residuals and gauges."""
    arrays = (document.gauge, *(document.residual(width) for width in (16, 32, 64)))
    return sum(layout.stored_bytes(array) for array in arrays)
