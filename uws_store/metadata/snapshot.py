"""A family's snapshot: what the log says of one family, in one document, so that opening need not read the log.

A snapshot follows from the log and adds nothing to it. It is named by its SHA-256 in a commit that came after. Must
not know how it is made, nor where it is stored.
"""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from uws_store.metadata.document import Document, Part
from uws_store.metadata.log import (
    KEPT_VERIFICATIONS,
    AliasName,
    FamilyName,
    Number,
    PackPlace,
    Sha256Hex,
    SizeBytes,
    TaskName,
    UtcTime,
)

__all__ = ["FamilySnapshot", "SnapshotBasis", "SnapshotTask", "SnapshotVerification", "SnapshotVersion"]


class SnapshotBasis(Part):
    """One basis revision; revisions are 1, 2, ... in their order."""

    digest: Sha256Hex
    size_bytes: SizeBytes
    commit: Number


class SnapshotVerification(Part):
    """One verification."""

    digest: Sha256Hex
    size_bytes: SizeBytes
    ok: bool
    commit: Number
    time: UtcTime


class SnapshotVersion(Part):
    """One version that was not withdrawn."""

    version: Number
    basis_revision: Number
    digest: Sha256Hex
    size_bytes: SizeBytes
    exact: bool
    commit: Number
    time: UtcTime
    pack: PackPlace | None = None


class SnapshotTask(Part):
    """One task that ever had a version."""

    task: TaskName
    last_version: Number
    versions: tuple[SnapshotVersion, ...]
    aliases: tuple[tuple[AliasName, Number], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = [version.version for version in self.versions]
        if any(b <= a for a, b in itertools.pairwise(numbers)):
            raise ValueError(f"{self.task}: versions are ascending")
        if numbers and numbers[-1] > self.last_version:
            raise ValueError(f"{self.task}: a version above the last one")
        names = [alias for alias, _ in self.aliases]
        if any(b <= a for a, b in itertools.pairwise(names)):
            raise ValueError(f"{self.task}: aliases are sorted and differ")
        if not {version for _, version in self.aliases} <= set(numbers):
            raise ValueError(f"{self.task}: an alias of a version that is not there")
        return self


class FamilySnapshot(Document):
    """``_log/snapshots/<sha256>.json``: everything the log says of one family up to a commit."""

    # Some three hundred thousand versions.
    max_bytes: ClassVar[int] = 1 << 26

    kind: Literal["family"] = "family"
    family: FamilyName
    architecture: Sha256Hex
    bases: tuple[SnapshotBasis, ...]
    tasks: Annotated[tuple[SnapshotTask, ...], Field(description="Sorted by code point.")]
    verifications: (
        Annotated[tuple[SnapshotVerification, ...], Field(min_length=1, max_length=KEPT_VERIFICATIONS)] | None
    ) = Field(default=None, description="The newest, in their order; absent when there is none.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [task.task for task in self.tasks]
        if any(b <= a for a, b in itertools.pairwise(names)):
            raise ValueError("tasks are sorted and differ")
        digests = [held.digest for held in self.verifications or ()]
        if len(set(digests)) < len(digests):
            raise ValueError("a verification stands twice")
        revisions = len(self.bases)
        for task in self.tasks:
            if any(version.basis_revision > revisions for version in task.versions):
                raise ValueError(f"{task.task}: a basis revision that the family has not")
        return self
