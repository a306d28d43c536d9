"""Plans: what a build of a zoo would store for each tensor, without storing anything; read from and written to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from uws_store.analysis import bases_of
from uws_store.api.encoding import scratch
from uws_store.api.options import choose_fidelity, expected
from uws_store.builder import BasisBuilder, Members, Progress, available_bytes, parse_bytes
from uws_store.builder.planning import PLAN_KIND
from uws_store.checkpoint import Renaming, scan_zoo
from uws_store.device import usable_device
from uws_store.errors import InvalidInputError, StorageError
from uws_store.executors import ExecutorSpec, Workers
from uws_store.metadata.plan import PlanDocument

__all__ = ["plan", "read_plan", "save_plan"]


def plan(
    zoo: str | Path,
    *,
    bits: float | None = None,
    rel_error: float | None = None,
    change_error: float | None = None,
    max_drop: float | None = None,
    expect_models: int | None = None,
    max_decode_flops_per_weight: float | None = None,
    skip_mismatched: bool = False,
    rename: str | Path | Mapping[str, object] | None = None,
    zoo_options: Mapping[str, object] | None = None,
    executor: str | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> PlanDocument:
    """Plan a family without storing it.

    Parameters
    ----------
    zoo, bits, rel_error, change_error, max_drop, expect_models, max_decode_flops_per_weight, skip_mismatched, rename
        See :func:`uws_store.build`. With ``max_drop`` nothing is evaluated: the plan is for the step where the search
        would begin.
    zoo_options, executor, workers, memory, device, progress
        See :func:`uws_store.build`.

    Returns
    -------
    PlanDocument
        Per tensor the decision, predicted bits beside those of the plain coder, and why; the sums; what the zoo
        shares. Costs what the basis of a build costs.

    Raises
    ------
    UwsError
        As :func:`uws_store.build`.
    """
    limit = parse_bytes(memory) if memory is not None else available_bytes()
    fidelity = choose_fidelity(bits=bits, rel_error=rel_error, change_error=change_error, max_drop=max_drop)
    spec = ExecutorSpec.parse(executor, workers=workers)
    with (
        Members(
            scan_zoo(zoo, storage_options=zoo_options),
            skip_mismatched=skip_mismatched,
            rename=Renaming.of(rename),
        ) as members,
        Workers(spec) as pool,
    ):
        members.scratch = scratch()
        projection = members.projected_memory(
            fidelity=fidelity, exact=False, shares_memory=spec.shares_memory
        )
        pool.bound(projection.fitting_workers(spec.workers, limit))
        builder = BasisBuilder(
            members,
            fidelity=fidelity,
            expect_models=expected(expect_models),
            max_decode_flops_per_weight=max_decode_flops_per_weight,
            progress=progress,
            workers=pool,
            kept_bytes=projection.room_bytes(pool.width, limit),
            device=usable_device(device),
        )
        groups = bases_of(members, fidelity=fidelity)
        return builder.plan(builder.build()).model_copy(update={"bases": len(groups)})


def read_plan(path: str | Path) -> PlanDocument:
    """Read a saved plan.

    Raises
    ------
    InvalidInputError
        When there is no such file (``invalid-input/plan``).
    FormatError
        When it holds no plan.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= PlanDocument.max_bytes else b" " * (PlanDocument.max_bytes + 1)
    except OSError as error:
        raise InvalidInputError(
            f"{file}: no plan can be read here: {error.strerror}", kind=PLAN_KIND
        ) from error
    return PlanDocument.parse(data, where=str(file))


def save_plan(document: PlanDocument, path: str | Path) -> None:
    """Write a plan to a file, over what is there.

    Raises
    ------
    StorageError
        When it cannot be written (``storage/plan``).
    """
    try:
        Path(path).write_bytes(document.to_bytes() + b"\n")
    except OSError as error:
        raise StorageError(
            f"{path}: the plan cannot be written: {error.strerror}", kind="storage/plan"
        ) from error
