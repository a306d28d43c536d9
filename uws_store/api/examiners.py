"""What scores models in a verification: a user's evaluation, or one that is built in with its data and modules."""

from __future__ import annotations

from pathlib import Path

import torch

from uws_store.api.family import Family
from uws_store.errors import IncompatibleError, InvalidInputError
from uws_store.fidelity import (
    BUILT_IN,
    Assembler,
    EvaluationFunction,
    Examiner,
    ModuleFactory,
    UserExaminer,
    built_in,
    filled,
    load_evaluation,
    load_function,
)
from uws_store.loader import build_module

__all__ = ["find_examiner"]


def find_examiner(
    family: Family,
    evaluate: str | EvaluationFunction | None,
    *,
    data: str | Path | None,
    module: str | ModuleFactory | None,
    metric: str | None,
    higher_is_better: bool | None,
) -> Examiner | None:
    """Find what scores the models, and refuse options that would be ignored.

    Raises
    ------
    InvalidInputError
        When they do not go together (``invalid-input/evaluation``).
    """
    named = {"data (--data)": data, "module (--module)": module}
    plain = {"metric (--metric)": metric, "higher_is_better (--higher-is-better)": higher_is_better}
    is_built_in = isinstance(evaluate, str) and evaluate in BUILT_IN
    useless = plain if is_built_in else named if evaluate is not None else named | plain
    given = [name for name, value in useless.items() if value is not None]
    if given:
        needed = (
            "says itself what it measures"
            if is_built_in
            else "are for the built-in evaluations, " + " and ".join(BUILT_IN)
        )
        raise InvalidInputError(
            f"{' and '.join(given)} cannot be used here: {evaluate if is_built_in else 'they'} {needed}"
            if evaluate is not None
            else f"{' and '.join(given)} describe an evaluation; name one: evaluate= (--eval)",
            kind="invalid-input/evaluation",
        )
    if evaluate is None:
        return None
    if not is_built_in:
        return UserExaminer(load_evaluation(evaluate, metric=metric, higher_is_better=higher_is_better))
    assert isinstance(evaluate, str)
    return built_in(
        evaluate,
        data=Path(data) if data is not None else None,
        assemble=_assembler(family, module),
    )


def _assembler(family: Family, module: str | ModuleFactory | None) -> Assembler:
    """Make modules by the caller's function, or from the configuration stored with each model."""
    if module is not None:
        return filled(load_function(module, what="module") if isinstance(module, str) else module)

    def assemble(weights: dict[str, torch.Tensor], task: str) -> torch.nn.Module:
        stored = family.load(task, tier="mean")
        try:
            return build_module(
                stored.side_files(), lambda: weights, name=f"{family.name}/{task}", dtype=None
            )
        except IncompatibleError as error:
            if error.kind != "incompatible/no-config":
                raise
            raise IncompatibleError(
                f"{family.name}/{task} has no configuration to make a module from; name a function that makes it: "
                "module= (--module package.module:function)",
                kind=error.kind,
            ) from error

    return assemble
