"""The record of a verification: what was checked at which commit, by whom, and what was found.

Must not know how anything is verified, nor where the record is stored. It says what somebody found; it proves nothing.
"""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from uws_store.metadata.basis import MAX_TENSORS, TensorName
from uws_store.metadata.document import Document, Part
from uws_store.metadata.log import FamilyName, Nonce, Number, Sha256Hex, TaskName, ToolVersion, UtcTime

__all__ = [
    "MAX_PROBLEMS",
    "MAX_WHERE",
    "ComparisonRecord",
    "ExaminedRecord",
    "ProblemRecord",
    "SideName",
    "SideRecord",
    "TierName",
    "VerificationDocument",
    "VerifiedModel",
]

MAX_PROBLEMS = 16
"""Most problems that are written down of one model, and of all that is no model's."""

MAX_WHERE = 1024
"""Longest place of a problem, in characters."""

SideName = Literal["original", "compact", "exact", "mean", "basis-free"]
"""Whose score it is."""

TierName = Literal["compact", "exact"]
"""A tier that has digests."""

Signer = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", min_length=1, max_length=200)]
Error = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class ProblemRecord(Part):
    """One thing that was wrong."""

    kind: Annotated[str, StringConstraints(max_length=64)]
    where: Annotated[str, StringConstraints(max_length=MAX_WHERE)]


class ComparisonRecord(Part):
    """A model beside its original, as it was measured."""

    rel_error: Error = Field(description="Of the compact tier.")
    mean_rel_error: Error = Field(description="Of the zoo's mean alone: the control.")
    worst_rel_error: Error
    worst_tensor: TensorName | None = None
    identical: Count | None = Field(
        default=None,
        description="Tensors that are bit-identical at the exact tier; absent without that tier.",
    )


class SideRecord(Part):
    """The score of one set of weights."""

    side: SideName
    value: float | None = Field(default=None, description="Absent when it was no finite number.")
    drop: float | None = Field(
        default=None, description="How much worse than the original; positive is worse."
    )
    interval: tuple[float, float] | None = Field(
        default=None, description="95 % confidence interval of the drop."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError("the ends of the interval are swapped")
        return self


class ExaminedRecord(Part):
    """One metric of one model, side by side."""

    metric: Annotated[str, StringConstraints(max_length=200)]
    higher_is_better: bool
    n: Number | None = Field(default=None, description="Examples.")
    max_drop: Error | None = Field(default=None, description="The drop that the model's record promises.")
    sides: Annotated[tuple[SideRecord, ...], Field(min_length=1, max_length=5)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({side.side for side in self.sides}) < len(self.sides):
            raise ValueError(f"{self.metric}: a side stands twice")
        return self


class VerifiedModel(Part):
    """What was found of one model."""

    task: TaskName
    version: Number
    digest: Sha256Hex = Field(
        description="SHA-256 of its group document: what was verified, wherever it lies."
    )
    ok: bool
    tiers: Annotated[tuple[TierName, ...], Field(max_length=2)] = Field(
        description="Tiers of which every tensor was reconstructed; empty when it did not come to that."
    )
    comparison: ComparisonRecord | None = None
    problems: Annotated[tuple[ProblemRecord, ...], Field(max_length=MAX_PROBLEMS)] = ()
    more_problems: Number | None = Field(default=None, description="Further problems, not written down.")
    scores: Annotated[tuple[ExaminedRecord, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ok == bool(self.problems):
            raise ValueError(f"{self.task}: ok just when there are no problems")
        if self.more_problems is not None and len(self.problems) < MAX_PROBLEMS:
            raise ValueError(f"{self.task}: problems are left out before there are {MAX_PROBLEMS}")
        return self


class VerificationDocument(Document):
    """``families/<family>/verifications/<sha256>.json``: a verification, as it was done."""

    # Some hundred thousand models.
    max_bytes: ClassVar[int] = 1 << 26

    kind: Literal["verification"] = "verification"
    registry: Nonce = Field(description="The id of the registry that was verified.")
    family: FamilyName
    commit: Number = Field(description="The newest commit of that registry when the verification began.")
    commit_sha256: Sha256Hex
    time: UtcTime = Field(description="When it ended, by the clock of who did it.")
    tool: ToolVersion
    signed_off_by: Signer | None = Field(default=None, description="Who stands for it, in their own words.")
    compared: bool = Field(description="Whether originals were given.")
    evaluation: Annotated[str, StringConstraints(max_length=400)] | None = Field(
        default=None, description="What scored the models: name and hash."
    )
    ok: bool
    problems: Annotated[tuple[ProblemRecord, ...], Field(max_length=MAX_PROBLEMS)] = Field(
        default=(), description="What was wrong outside any one model."
    )
    more_problems: Number | None = None
    models: Annotated[tuple[VerifiedModel, ...], Field(min_length=1, max_length=MAX_TENSORS)] = Field(
        description="Sorted by task."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(b.task <= a.task for a, b in itertools.pairwise(self.models)):
            raise ValueError("models are sorted by task and differ")
        if self.ok == bool(self.problems or not all(model.ok for model in self.models)):
            raise ValueError("ok just when nothing is wrong")
        if self.more_problems is not None and len(self.problems) < MAX_PROBLEMS:
            raise ValueError(f"problems are left out before there are {MAX_PROBLEMS}")
        return self
