"""The documents of a registry and its log: what was published, in which order, by whom.

Owns their fields and what each may hold on its own. Whether a commit fits the ones before it is not decided here,
nor where the documents are stored.
"""

from __future__ import annotations

import datetime as dt
import itertools
import secrets
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from uws_store.errors import InvalidInputError
from uws_store.metadata.document import Document, Part
from uws_store.names import check_family_name, check_task_name

__all__ = [
    "KEPT_VERIFICATIONS",
    "Action",
    "AliasAction",
    "AliasName",
    "BasisAction",
    "Commit",
    "DeleteAction",
    "FamilyAction",
    "FamilyName",
    "HeadHint",
    "IndexEntry",
    "ModelAction",
    "Nonce",
    "Number",
    "PackPlace",
    "RegistryDocument",
    "Sha256Hex",
    "SizeBytes",
    "TaskName",
    "ToolVersion",
    "UtcTime",
    "VerificationAction",
    "new_nonce",
    "utc_now",
]


KEPT_VERIFICATIONS = 16
"""A family has so many verifications, the newest; earlier ones are history."""


def _family_name(value: str) -> str:
    check_family_name(value)
    return value


def _task_name(value: str) -> str:
    # Written in the one spelling, so that a reader compares names byte by byte.
    if check_task_name(value) != value:
        raise InvalidInputError(
            f"the task name {value!r} is not in Unicode NFC", kind="invalid-input/task-name"
        )
    return value


def _utc_time(value: str) -> str:
    dt.datetime.fromisoformat(value)
    return value


FamilyName = Annotated[str, AfterValidator(_family_name)]
"""A family's name, checked."""

TaskName = Annotated[str, AfterValidator(_task_name)]
"""A task's name, checked and in Unicode NFC."""

AliasName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$", max_length=64), Field(examples=["prod"])
]
"""A movable name of a version; it begins with a letter, so that it cannot be taken for a version."""

Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in lower-case hex."""

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""128 random bits in lower-case hex."""

UtcTime = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$"),
    AfterValidator(_utc_time),
]
"""A time of RFC 3339 in UTC, written with ``Z``."""

Number = Annotated[int, Field(ge=1, le=2**53)]
"""A count that begins at one; up to 2^53 it is the same in every JSON library."""

SizeBytes = Annotated[int, Field(ge=0, le=2**53)]
"""A number of bytes."""

ToolVersion = Annotated[str, StringConstraints(max_length=200)]
"""Name and version of the program that wrote a document."""


def new_nonce() -> str:
    """Draw 128 random bits."""
    return secrets.token_hex(16)


def utc_now() -> str:
    """Tell the time to the second, as documents write it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class RegistryDocument(Document):
    """``uws.json``: what makes a folder a registry."""

    max_bytes: ClassVar[int] = 1 << 16

    id: Nonce = Field(description="Tells this registry from every other, whatever its URL.")
    created: UtcTime
    tool: ToolVersion
    writers: Literal["one"] | None = Field(
        default=None, description="``one`` where the storage cannot keep two writers apart."
    )


class HeadHint(Document):
    """``_log/head``: where the newest commit was when this was written; only ever a hint."""

    max_bytes: ClassVar[int] = 1 << 18

    number: Number
    tail: tuple[str, ...] | None = Field(
        default=None,
        description="The commits from the newest checkpoint (or the first commit) to that one, as they are stored.",
    )


class FamilyAction(Part):
    """A family begins."""

    op: Literal["family"] = "family"
    family: FamilyName
    architecture: Sha256Hex = Field(description="Digest of the architecture that all its models have.")


class BasisAction(Part):
    """A family gets a basis, or a further revision of it."""

    op: Literal["basis"] = "basis"
    family: FamilyName
    revision: Number
    digest: Sha256Hex
    size_bytes: SizeBytes = Field(description="All objects of the basis together.")


class PackPlace(Part):
    """Where a model lies that stands in a pack: bytes ``offset`` to ``offset + length`` of it."""

    digest: Sha256Hex = Field(description="SHA-256 of the pack.")
    offset: SizeBytes
    document: Annotated[int, Field(ge=1, le=(1 << 24) + 65)] = Field(
        description="Length of the model's group document, with which its bytes begin."
    )
    length: Annotated[int, Field(ge=1, le=2**53)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.document > self.length:
            raise ValueError("a model's document is longer than the model")
        return self


class ModelAction(Part):
    """A task gets its next version."""

    op: Literal["model"] = "model"
    family: FamilyName
    task: TaskName
    version: Number
    basis_revision: Number
    digest: Sha256Hex
    size_bytes: SizeBytes = Field(description="All objects of the model together.")
    exact: bool = Field(description="Whether the model can be loaded bit-identical to its source.")
    pack: PackPlace | None = Field(default=None, description="Where it lies; absent for a folder of its own.")


class AliasAction(Part):
    """An alias is set to a version, or removed when no version is given."""

    op: Literal["alias"] = "alias"
    family: FamilyName
    task: TaskName
    alias: AliasName
    version: Number | None = None


class DeleteAction(Part):
    """A version is withdrawn; its number is not used again."""

    op: Literal["delete"] = "delete"
    family: FamilyName
    task: TaskName
    version: Number


class VerificationAction(Part):
    """A family was verified; what was found stands in a record of its own."""

    op: Literal["verification"] = "verification"
    family: FamilyName
    digest: Sha256Hex = Field(description="SHA-256 of the record.")
    size_bytes: SizeBytes = Field(description="Length of the record.")
    ok: bool = Field(description="Whether all was as recorded.")


Action = FamilyAction | BasisAction | ModelAction | AliasAction | DeleteAction | VerificationAction
"""One change of a registry."""


class IndexEntry(Part):
    """Where a checkpoint finds one family."""

    family: FamilyName
    architecture: Sha256Hex
    digest: Sha256Hex = Field(description="SHA-256 of the family's snapshot.")
    size_bytes: SizeBytes = Field(description="Length of the snapshot.")


class Commit(Document):
    """``_log/<number>.json``: changes that take effect together, and the whole history before them by digest."""

    # Some fifteen thousand models in one commit.
    max_bytes: ClassVar[int] = 1 << 22

    number: Number
    parent: Sha256Hex | None = Field(
        default=None, description="SHA-256 of the bytes of the commit before; absent in the first."
    )
    nonce: Nonce = Field(description="Drawn by the writer, who knows its own commit by it.")
    time: UtcTime = Field(description="By the writer's clock, to be shown and not to be relied on.")
    tool: ToolVersion
    checkpoint: Number | None = Field(
        default=None, description="The newest commit before this one that has an index; absent when none has."
    )
    index: Annotated[tuple[IndexEntry, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Makes the commit a checkpoint: every family as of the commit before, sorted by name.",
    )
    actions: tuple[Annotated[Action, Field(discriminator="op")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.checkpoint is not None and self.checkpoint >= self.number:
            raise ValueError("a checkpoint is an earlier commit")
        if self.index is not None:
            names = [entry.family for entry in self.index]
            if any(b <= a for a, b in itertools.pairwise(names)):
                raise ValueError("the families of an index are sorted and differ")
        return self
