"""Notes that writers leave for each other under ``_pending/``: leases, tombstones, marks of a sweep at work.

Readers of models never look at them. Must not know who waits for whom.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from uws_store.metadata.document import Document

__all__ = ["PendingNote", "PendingPrefix"]

PendingPrefix = Annotated[
    str,
    StringConstraints(
        pattern=r"^(families/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/((basis|models|packs)/[0-9a-f]{64}|verifications/[0-9a-f]{64}\.json)|_log/snapshots/[0-9a-f]{64}\.json)$"
    ),
]
"""A basis, a model, a pack, a record of a verification or a snapshot, by its path."""


class PendingNote(Document):
    """``_pending/<kind>-<nonce>.json``."""

    # Some hundred thousand prefixes.
    max_bytes: ClassVar[int] = 1 << 24

    kind: Literal["lease", "tombstone", "sweep"]
    prefixes: tuple[PendingPrefix, ...] = Field(
        default=(), description="What is being published, what is to be removed; empty for a sweep."
    )
