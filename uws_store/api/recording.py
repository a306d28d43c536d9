"""Records of verifications: made from what was found, and told again.

Owns what a record keeps of a result. Must not know how anything is verified.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import cast

import pydantic

from uws_store.api.verdicts import ModelVerdict, VerifyResult
from uws_store.config import tool_version
from uws_store.errors import InvalidInputError, Problem
from uws_store.fidelity import Examined
from uws_store.metadata.document import problems_of
from uws_store.metadata.log import VerificationAction, utc_now
from uws_store.metadata.verification import (
    MAX_PROBLEMS,
    MAX_WHERE,
    ComparisonRecord,
    ExaminedRecord,
    ProblemRecord,
    SideName,
    SideRecord,
    VerificationDocument,
    VerifiedModel,
)
from uws_store.registry import (
    FamilyState,
    Registry,
    RegistryState,
    publish_verification,
    read_verification,
)
from uws_store.verifier import Comparison

__all__ = ["VerificationSummary", "publish_record", "signer", "summarise_verification"]

_LONGEST_NAME = 200
_LONGEST_KIND = 64


@dataclass(frozen=True, slots=True)
class VerificationSummary:
    """The newest record of a family's verification.

    Attributes
    ----------
    digest : str
        The record's name in the store.
    ok : bool
        Whether all was as recorded.
    time : str
        When it ended, by the clock of who did it (RFC 3339, UTC).
    signed_off_by : str or None
        Who stands for it; nobody is asked to prove it.
    tool : str
        What verified.
    commit : int
        The commit that was verified.
    elsewhere : bool
        Whether that is a commit of another registry, from which the record came with the family.
    compared : bool
        Whether originals were given.
    evaluation : str or None
        What scored the models.
    models : int
        How many were verified.
    wrong : tuple of str
        Tasks of which something was wrong.
    unverified : tuple of str
        Tasks whose newest version is not among them: published later, or left out.
    """

    digest: str
    ok: bool
    time: str
    signed_off_by: str | None
    tool: str
    commit: int
    elsewhere: bool
    compared: bool
    evaluation: str | None
    models: int
    wrong: tuple[str, ...]
    unverified: tuple[str, ...]


def signer(name: str | None, *, record: bool) -> str | None:
    """Check who signs off.

    Raises
    ------
    InvalidInputError
        When nothing is recorded, or the name cannot be written down (``invalid-input/signed-off-by``).
    """
    if name is None:
        return None
    name = unicodedata.normalize("NFC", name).strip()
    if not record:
        message = "a name signs a record off; ask for one: record=True (--record)"
    elif not name or len(name) > _LONGEST_NAME or re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        message = f"who signs off is named in 1 to {_LONGEST_NAME} characters without control characters"
    else:
        return name
    raise InvalidInputError(message, kind="invalid-input/signed-off-by")


def publish_record(
    registry: Registry,
    result: VerifyResult,
    *,
    as_of: RegistryState,
    compared: bool,
    signed_off_by: str | None,
) -> str:
    """Publish what a verification found; give the record's digest.

    Raises
    ------
    InvalidInputError
        When it cannot be written down (``invalid-input/record``).
    UwsError
        See :func:`uws_store.registry.publish_verification`.
    """
    try:
        document = VerificationDocument(
            registry=registry.document.id,
            family=result.family,
            commit=as_of.number,
            commit_sha256=as_of.sha256 or "",
            time=utc_now(),
            tool=tool_version(),
            signed_off_by=signed_off_by,
            compared=compared,
            evaluation=result.evaluation,
            ok=result.ok,
            problems=_problems(result.problems),
            more_problems=_more(result.problems),
            models=tuple(_model(verdict) for verdict in sorted(result.models, key=lambda one: one.task)),
        )
    except pydantic.ValidationError as error:
        raise InvalidInputError(
            "what was found cannot be written down as a record; nothing was published",
            kind="invalid-input/record",
            problems=problems_of(error),
        ) from error
    action = publish_verification(registry, document).actions[0]
    assert isinstance(action, VerificationAction)
    return action.digest


def summarise_verification(registry: Registry, family: FamilyState) -> VerificationSummary | None:
    """Tell the newest record of a family: one request, or none where there is no record.

    Raises
    ------
    FormatError
        When the record is damaged.
    """
    if not family.verifications:
        return None
    entry = family.verifications[-1]
    document = read_verification(registry.storage, family.name, entry)
    held = {model.digest for model in document.models}
    newest = family.newest()
    return VerificationSummary(
        digest=entry.digest,
        ok=document.ok,
        time=document.time,
        signed_off_by=document.signed_off_by,
        tool=document.tool,
        commit=document.commit,
        elsewhere=document.registry != registry.document.id,
        compared=document.compared,
        evaluation=document.evaluation,
        models=len(document.models),
        wrong=tuple(model.task for model in document.models if not model.ok),
        unverified=tuple(latest.task for latest in newest if latest.digest not in held),
    )


def _model(verdict: ModelVerdict) -> VerifiedModel:
    report = verdict.report
    return VerifiedModel(
        task=verdict.task,
        version=verdict.version,
        digest=verdict.digest,
        ok=report.ok,
        tiers=tuple(tier for tier in ("compact", "exact") if tier in report.tiers),
        comparison=_comparison(report.comparison) if report.comparison is not None else None,
        problems=_problems(report.problems),
        more_problems=_more(report.problems),
        scores=tuple(map(_examined, verdict.scores)),
    )


def _comparison(found: Comparison) -> ComparisonRecord | None:
    if not all(map(math.isfinite, (found.rel_error, found.mean_rel_error, found.worst_rel_error))):
        return None  # the original has no finite norm
    return ComparisonRecord(
        rel_error=found.rel_error,
        mean_rel_error=found.mean_rel_error,
        worst_rel_error=found.worst_rel_error,
        worst_tensor=found.worst_tensor,
        identical=found.identical,
    )


def _problems(problems: Sequence[Problem]) -> tuple[ProblemRecord, ...]:
    return tuple(
        ProblemRecord(kind=problem.kind[:_LONGEST_KIND], where=_where(problem.loc)[:MAX_WHERE])
        for problem in problems[:MAX_PROBLEMS]
    )


def _where(loc: str) -> str:
    """A place in the registry or a tensor's name; of a file of somebody's own, its name alone."""
    path = PurePath(loc)
    return path.name if path.is_absolute() else loc


def _more(problems: Sequence[Problem]) -> int | None:
    return max(0, len(problems) - MAX_PROBLEMS) or None


def _examined(one: Examined) -> ExaminedRecord:
    return ExaminedRecord(
        metric=one.metric,
        higher_is_better=one.higher_is_better,
        n=one.n,
        max_drop=one.max_drop,
        sides=tuple(
            SideRecord(
                side=cast("SideName", side.side),
                value=side.value,
                drop=_finite(side.drop),
                interval=side.interval if side.interval and all(map(math.isfinite, side.interval)) else None,
            )
            for side in one.sides
        ),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
