"""``build --plan-only``: how a plan is told.

Owns the table and the sums. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Unpack

from uws_store.api import plan as api_plan
from uws_store.api import save_plan
from uws_store.cli.output import Output, columns, counted, facts, number, ratio, size
from uws_store.cli.progress import progress
from uws_store.metadata.plan import PlanDocument, PlannedTensor
from uws_store.nulls import Sharing
from uws_store.storage import parse_options

if TYPE_CHECKING:
    from uws_store.cli.options import PlanOptions

__all__ = ["plan_facts", "plan_totals", "run_plan"]


def run_plan(
    zoo: str,
    *,
    save: str | None,
    zoo_option: tuple[str, ...],
    output: Output,
    **options: Unpack[PlanOptions],
) -> None:
    """Plan a family, print the plan, and save it where that is asked for."""
    with progress(output) as report:
        plan = api_plan(zoo, zoo_options=parse_options(zoo_option), progress=report, **options)
    if save is not None:
        save_plan(plan, save)
    if plan.bases > 1:
        output.notice(
            f"these models were tuned from {plan.bases} base models: a build that follows no plan gives each a basis of its "
            "own, and is smaller than this plan for one"
        )
    if output.as_json:
        output.document(plan.model_dump(mode="json", exclude_none=True) | {"totals": plan_totals(plan)})
    elif output.quiet:
        output.names(row.name for row in plan.tensors)
    else:
        output.show(
            columns(
                {
                    "tensor": "word",
                    "gets": "word",
                    "bits": "number",
                    "plain": "number",
                    "error": "number",
                    "basis": "number",
                    "flops": "number",
                    "why": "word",
                },
                [_row(row) for row in plan.tensors],
            ),
            "",
            facts(plan_facts(plan)),
            *([f"\nsaved to {save}"] if save is not None else []),
        )


def _row(row: PlannedTensor) -> list[str]:
    return [
        row.name,
        _decision(row),
        number(row.bits_per_model / row.elements),
        number(row.plain_bits_per_model / row.elements),
        number(row.distortion),
        number(row.basis_bits / row.elements),
        number(row.flops_per_weight),
        row.reason,
    ]


def _decision(row: PlannedTensor) -> str:
    words = [
        f"{name} {side.block}" + (f" rank {side.rank}" if side.rank < side.block else "")
        for name, side in (("left", row.left), ("right", row.right))
        if side is not None
    ]
    start = "mean" if row.centred else "nothing"
    return " + ".join([start, *words]) + ("" if row.ordered else ", in its own order")


def plan_totals(plan: PlanDocument) -> dict[str, float | None]:
    """From how many models on a family pays; None for never."""
    return {
        "break_even_with_plain": plan.break_even(plan.plain_basis_bytes, plan.plain_model_bytes),
        "break_even_with_safetensors": plan.break_even(0.0, plan.source_bytes),
    }


def plan_facts(plan: PlanDocument) -> Iterator[tuple[str, str, str]]:
    """What a plan predicts, in sums."""
    bits = sum(row.elements for row in plan.tensors)
    yield (
        "a model",
        size(plan.model_bytes),
        (
            f"predicted, its records counted; the plain coder's {size(plan.plain_model_bytes)}, "
            f"safetensors {size(plan.source_bytes)} ({ratio(plan.source_bytes, plan.model_bytes)})"
        ),
    )
    yield "basis", size(plan.basis_bytes), f"stored once, planned for {counted(plan.models, 'model')}"
    yield "parameters", f"{bits:,}", "of each model, coded"
    for name, models in (
        ("the plain coder", plan_totals(plan)["break_even_with_plain"]),
        ("safetensors", plan_totals(plan)["break_even_with_safetensors"]),
    ):
        yield (
            f"pays against {name}",
            ("never" if models is None else "at once" if models < 1 else f"from {models:,.0f} models"),
            "",
        )
    if plan.sharing is not None:
        yield "shares", plan.sharing.shares, sharing_words(plan)


def sharing_words(plan: PlanDocument) -> str:
    """The verdict on a zoo in a sentence; nothing where there is none."""
    found = plan.sharing
    if found is None:
        return ""
    return str(
        Sharing(found.elements, found.mean_share, found.gain_bits, found.gaussian_bits, found.shuffled_bits)
    )
