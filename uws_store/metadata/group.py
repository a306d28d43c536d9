"""A document as the attributes of a Zarr v3 group.

Owns the one spelling of a group document, so that its bytes, and with them its digest, follow from the document
alone. Must not know what the document says.
"""

from __future__ import annotations

from typing import TypeVar

from uws_store.errors import FormatError
from uws_store.metadata.document import Document

__all__ = ["ATTRIBUTE", "PLAIN_GROUP", "from_group_bytes", "max_group_bytes", "to_group_bytes"]

ATTRIBUTE = "uws_store"
"""The attribute of a group that holds our document."""

PLAIN_GROUP = b'{"attributes":{},"node_type":"group","zarr_format":3}'
"""A group without a document: a folder of the registry, made readable as Zarr."""

_HEAD = b'{"attributes":{"' + ATTRIBUTE.encode() + b'":'
_TAIL = b'},"node_type":"group","zarr_format":3}'

D = TypeVar("D", bound=Document)


def max_group_bytes(cls: type[Document]) -> int:
    """Longest group document of a class, in bytes; a reader looks at the size before it reads."""
    return len(_HEAD) + cls.max_bytes + len(_TAIL)


def to_group_bytes(document: Document) -> bytes:
    """Write a document as the ``zarr.json`` of its group."""
    return _HEAD + document.to_bytes() + _TAIL


def from_group_bytes(cls: type[D], data: bytes, *, where: str) -> D:
    """Read a document from the ``zarr.json`` of its group.

    Raises
    ------
    FormatError
        When the bytes are not in the canonical form (kind ``format/group``), or the document is wrong (kinds of
        :meth:`uws_store.metadata.document.Document.parse`).
    """
    if not (data.startswith(_HEAD) and data.endswith(_TAIL)):
        raise FormatError(
            f"{where}: not the group document of a {cls.__name__}; the file is damaged or from another tool",
            kind="format/group",
        )
    return cls.parse(data[len(_HEAD) : -len(_TAIL)], where=where)
