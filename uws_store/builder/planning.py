"""Between decisions and documents: a plan made of fitted tensors, and decisions read back from a plan.

Owns what makes a saved plan fit a zoo. Measures nothing and stores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from uws_store.builder.fit import TensorFit
from uws_store.builder.survey import TensorSurvey
from uws_store.canonical import Step
from uws_store.config import tool_version
from uws_store.dtypes import DTYPES
from uws_store.errors import InvalidInputError
from uws_store.metadata.basis import BasisDocument, SideRecord, StepRecord
from uws_store.metadata.plan import PlanDocument, PlannedTensor, SharingRecord
from uws_store.nulls import Sharing
from uws_store.plan import Candidate, Choice, SideChoice

__all__ = ["PLAN_KIND", "decisions", "factors_in_vain", "plan_document"]

PLAN_KIND = "invalid-input/plan"
"""Kind of the error for a plan that does not fit."""

_ARRAY_BYTES = 640.0
"""What an array of a basis takes besides its numbers: metadata, index, record."""


def factors_in_vain(fits: Sequence[TensorFit], *, models: int) -> Mapping[str, Choice]:
    """Find factors that together do not save what their arrays take besides their numbers.

    Returns
    -------
    mapping of str to Choice
        Per such tensor, its choice without factors. All of them or none: one array holds the factors of all tensors.
    """
    factored = [fit for fit in fits if fit.choice.simple is not None]
    saved = models * sum(fit.choice.saved_bits_per_model for fit in factored) / 8
    if saved >= _factor_records([fit.choice for fit in factored]):
        return {}
    return {fit.survey.name: fit.choice.simple for fit in factored if fit.choice.simple is not None}


def _factor_records(choices: Sequence[Choice]) -> float:
    sides = any(c.candidate.left for c in choices) + any(c.candidate.right for c in choices)
    return _ARRAY_BYTES * (sides + 1) if sides else 0.0


def plan_document(
    fits: Sequence[TensorFit],
    *,
    sharing: Sharing | None,
    document: BasisDocument,
    step: Step,
    models: int,
    fidelity: str,
    max_flops_per_weight: float,
    basis_bytes: float,
    overhead_bytes: float,
) -> PlanDocument:
    """Put decisions and their sums into a document.

    Parameters
    ----------
    fits : sequence of TensorFit
        Every coded tensor.
    sharing : Sharing or None
        What the zoo shares.
    document : BasisDocument
        The basis that was made by the plan.
    step : Step
        The members' step.
    models, fidelity, max_flops_per_weight, basis_bytes
        As in the plan's document.
    overhead_bytes : float
        A model's records.
    """
    choices = [fit.choice for fit in fits]
    return PlanDocument(
        architecture=document.architecture,
        sources=document.build.sources,
        members=document.build.models,
        models=models,
        fidelity=fidelity,
        step=StepRecord(mantissa=step.mantissa, exponent=step.exponent),
        max_flops_per_weight=min(max_flops_per_weight, 1e12),
        basis_bytes=basis_bytes,
        model_bytes=overhead_bytes + sum(choice.bits_per_model for choice in choices) / 8,
        source_bytes=float(
            sum(math.prod(fit.survey.shape) * DTYPES[fit.survey.dtype].size_bytes for fit in fits)
        ),
        # Counted in the same container: the table is needed by any coder.
        plain_basis_bytes=max(
            0.0,
            basis_bytes
            - _factor_records(choices)
            + sum(choice.plain_basis_bits - choice.basis_bits for choice in choices) / 8,
        ),
        plain_model_bytes=overhead_bytes + sum(max(0.0, c.plain_bits_per_model) for c in choices) / 8,
        tensors=tuple(_row(fit) for fit in fits),
        sharing=_sharing_record(sharing) if sharing is not None else None,
        tool=tool_version(),
    )


def _row(fit: TensorFit) -> PlannedTensor:
    choice = fit.choice
    return PlannedTensor(
        name=fit.survey.name,
        elements=math.prod(fit.survey.shape),
        left=_side_record(choice.candidate.left),
        right=_side_record(choice.candidate.right),
        centred=choice.candidate.centred,
        ordered=choice.candidate.ordered,
        bits_per_model=choice.bits_per_model,
        distortion=choice.distortion,
        basis_bits=choice.basis_bits,
        plain_bits_per_model=max(0.0, choice.plain_bits_per_model),
        plain_basis_bits=choice.plain_basis_bits,
        flops_per_weight=choice.flops_per_weight,
        reason=choice.reason,
    )


def _side_record(side: SideChoice | None) -> SideRecord | None:
    return SideRecord(block=side.block, rank=side.rank) if side is not None else None


def _sharing_record(sharing: Sharing) -> SharingRecord:
    return SharingRecord(
        shares=sharing.shares,
        elements=sharing.elements,
        mean_share=sharing.mean_share,
        gain_bits=sharing.gain_bits,
        gaussian_bits=sharing.gaussian_bits,
        shuffled_bits=sharing.shuffled_bits,
    )


def decisions(
    plan: PlanDocument, surveys: Sequence[TensorSurvey], *, architecture: str
) -> Mapping[str, Choice]:
    """Read a plan's decisions for a zoo.

    Raises
    ------
    InvalidInputError
        When the plan is of another architecture, lacks a coded tensor, has one too many, or gives a tensor a factor
        that its shape has no room for (kind ``invalid-input/plan``).
    """
    if plan.architecture != architecture:
        raise InvalidInputError(
            f"the plan is for the architecture {plan.architecture[:12]}, this zoo is of {architecture[:12]}; plan this zoo "
            "with: uws-store build ZOO --family NAME --plan-only",
            kind=PLAN_KIND,
        )
    rows = {row.name: row for row in plan.tensors}
    coded = {survey.name: survey for survey in surveys if survey.mode == "coded"}
    odd = sorted(rows.keys() ^ coded.keys())
    if odd:
        raise InvalidInputError(
            f"the plan and the zoo differ in which tensors are coded: {', '.join(map(repr, odd[:3]))}"
            + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
            + "; plan this zoo anew",
            kind=PLAN_KIND,
        )
    for name, row in rows.items():
        for side, extent in ((row.left, coded[name].matrix[0]), (row.right, coded[name].matrix[1])):
            if side is not None and side.block > extent:
                raise InvalidInputError(
                    f"the plan gives {name!r} a block of {side.block} on a side of {extent}", kind=PLAN_KIND
                )
    return {name: _choice(row) for name, row in rows.items()}


def _choice(row: PlannedTensor) -> Choice:
    left, right = (
        SideChoice(side.block, side.rank) if side is not None else None for side in (row.left, row.right)
    )
    return Choice(
        candidate=Candidate(left, right, centred=row.centred, ordered=row.ordered),
        bits_per_model=row.bits_per_model,
        distortion=row.distortion,
        basis_bits=row.basis_bits,
        plain_bits_per_model=row.plain_bits_per_model,
        plain_basis_bits=row.plain_basis_bits,
        flops_per_weight=row.flops_per_weight,
        reason=row.reason,
    )
