"""The options of commands that make models, as they are handed on from the command line to the API.

Each is declared to click beside its command, and named here once with its type. Must not know what they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast

if TYPE_CHECKING:
    from uws_store.fidelity import OnMiss

__all__ = ["AddOptions", "BuildOptions", "EvaluationOptions", "PlanOptions", "plan_options"]


class EvaluationOptions(TypedDict):
    """What names an evaluation: see :func:`uws_store.cli.evaluation.evaluation_options`."""

    evaluate: str | None
    search_evaluate: str | None
    metric: str | None
    higher_is_better: bool | None
    on_miss: OnMiss


class AddOptions(EvaluationOptions):
    """Options of ``add`` that the API takes by the same names."""

    task: str | None
    exact: bool
    exact_overhead: float | None
    rename: str | None
    device: str


class PlanOptions(TypedDict):
    """Options of ``build`` that planning takes too, by the same names."""

    bits: float | None
    rel_error: float | None
    change_error: float | None
    max_drop: float | None
    expect_models: int | None
    max_decode_flops_per_weight: float | None
    skip_mismatched: bool
    rename: str | None
    device: str
    executor: str | None
    workers: int | None
    memory: str | None


class BuildOptions(PlanOptions, EvaluationOptions):
    """Options of ``build`` that the API takes by the same names."""

    per_model: bool
    exact: bool
    exact_overhead: float | None
    base: str | None
    restart: bool


def plan_options(options: BuildOptions) -> PlanOptions:
    """Keep what planning takes."""
    return cast(
        "PlanOptions", {name: value for name, value in options.items() if name in PlanOptions.__annotations__}
    )
