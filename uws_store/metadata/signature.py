"""A signature: somebody's word that a registry was at a commit, and so all its history, with a family in it.

Must not know keys, nor where signatures are stored.
"""

from __future__ import annotations

import json
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from uws_store.metadata.document import Document, Part
from uws_store.metadata.log import FamilyName, Nonce, Number, Sha256Hex

__all__ = ["SignatureDocument", "Statement"]


class Statement(Part):
    """What is signed."""

    registry: Nonce = Field(description="The registry's id.")
    number: Number
    sha256: Sha256Hex = Field(description="SHA-256 of that commit's bytes.")
    family: FamilyName | None = Field(default=None, description="The family it is about; absent for all.")

    def signed_bytes(self) -> bytes:
        """What is signed: a line that says what it is, and the fields in the canonical form of documents."""
        value = self.model_dump(mode="json", exclude_none=True)
        return b"uws-1 signature\n" + json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class SignatureDocument(Document):
    """``_signatures/<key>/registry.json``, or ``_signatures/<key>/families/<family>.json``."""

    max_bytes: ClassVar[int] = 1 << 12

    kind: Literal["signature"] = "signature"
    statement: Statement
    key: Sha256Hex = Field(description="SHA-256 of the 32 bytes of the Ed25519 public key.")
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
