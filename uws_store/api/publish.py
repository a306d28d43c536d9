"""Building a family from a zoo: the basis, every member on it, and the one commit that publishes them.

Objects are stored first and one commit names them last, so that whatever ends the process early leaves the registry
as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from uws_store import layout
from uws_store.analysis import bases_of
from uws_store.api.adapters import remarks_on_adapters
from uws_store.api.building import BuildRequest, MadeBasis, StoredPart, make_basis, store_part
from uws_store.api.encoding import StoredModel
from uws_store.api.generation import basis_options, remarks_on_groups, share_of
from uws_store.api.opening import open_registry
from uws_store.api.options import choose_fidelity, expected, read_overhead
from uws_store.api.packing import is_packed, pack_staged
from uws_store.api.planning import read_plan
from uws_store.api.results import BuildResult
from uws_store.api.showing import card_beside
from uws_store.basis import step_of
from uws_store.builder import Members, Progress, available_bytes, parse_bytes
from uws_store.checkpoint import Renaming, scan_zoo
from uws_store.config import cache_folder
from uws_store.device import usable_device
from uws_store.errors import AlreadyExistsError, InvalidInputError
from uws_store.executors import ExecutorSpec, Workers
from uws_store.fidelity import EvaluationFunction, OnMiss, read_request, summarise
from uws_store.metadata.group import PLAIN_GROUP
from uws_store.metadata.log import Action, BasisAction, FamilyAction, PackPlace
from uws_store.metadata.plan import PlanDocument
from uws_store.names import check_family_name
from uws_store.nulls import pooled
from uws_store.registry import Publication, Registry, RegistryState
from uws_store.storage import Storage
from uws_store.store import put_verified

__all__ = ["build"]


def build(
    zoo: str | Path,
    *,
    family: str,
    registry: str | Registry | None = None,
    bits: float | None = None,
    rel_error: float | None = None,
    change_error: float | None = None,
    max_drop: float | None = None,
    evaluate: str | EvaluationFunction | None = None,
    search_evaluate: str | EvaluationFunction | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    per_model: bool = False,
    on_miss: OnMiss = "refuse",
    exact: bool = False,
    exact_overhead: float | None = None,
    expect_models: int | None = None,
    plan: PlanDocument | str | Path | None = None,
    max_decode_flops_per_weight: float | None = None,
    skip_mismatched: bool = False,
    base: str | Path | None = None,
    rename: str | Path | Mapping[str, object] | None = None,
    zoo_options: Mapping[str, object] | None = None,
    executor: str | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    restart: bool = False,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> BuildResult:
    """Build a family from a zoo: derive the basis, encode every member, publish all in one commit.

    Parameters
    ----------
    zoo : str or Path
        A folder with one checkpoint file or folder per task, a manifest, or a URL with safetensors objects, such as
        ``s3://bucket/zoo`` or ``hf://org/name@revision``. A manifest may name URLs, too.
    family : str
        The new family's name.
    registry : str or Registry, optional
        URL or path; made when it does not exist. By default ``UWS_STORE_REGISTRY``, else the user's data folder.
    bits, rel_error, change_error, max_drop : float, optional
        At most one: bits per basis-coded parameter (mean over models, metadata counted; models that are added later get a
        coarser step by which they take as many); the largest
        ``||W - W'|| / ||W||``; the largest ``||W - W'|| / ||W - mean||``; the most that any model's score may get
        worse, absolute, on the examples of the search. By default ``change_error=0.05``.
    evaluate : str or callable, optional
        Scores every model before and after, for its record: ``"package.module:function"``,
        ``"path/file.py:function"`` or the function; see :class:`uws_store.fidelity.Evaluation`. With ``max_drop`` it
        is needed.
    search_evaluate : str or callable, optional
        The same on other examples, by which ``max_drop`` is held; ``evaluate`` when absent, and its scores then
        flatter.
    metric, higher_is_better : optional
        Which number counts, and its direction, for evaluations that return a plain mapping of numbers.
    per_model : bool
        With ``max_drop``: give each model its own largest step, not only a finer one where the family's is too coarse.
    on_miss : {"refuse", "exact"}
        With ``max_drop``: refuse the zoo when a model misses it at the finest step, or keep that model bit-identical.
    exact : bool
        Also store what makes every tensor bit-identical.
    exact_overhead : float, optional
        With ``exact``: the share by which compact tier and residual of tensors that are read together may be larger than
        their bits alone. Beyond it they are stored alone, exact at every tier and smaller in all, and their compact tier
        is no smaller. 0 is the smallest in all; 0.05 keeps a small compact tier at up to 5 % more. No matter with ``bits``.
        0.005 when absent; a share that is given holds for models that are added later, too.
    expect_models : int, optional
        Plan the basis for a family of this size, when more models will be added.
    plan : PlanDocument, str or Path, optional
        Follow a plan that was made before, or the file it was saved to, instead of planning.
    max_decode_flops_per_weight : float, optional
        The most multiplications and additions that decoding a tensor may take per weight. By default as many as let a
        model be decoded in about a second on two cores, and at least 512.
    skip_mismatched : bool
        Leave out members of another architecture instead of refusing the zoo.
    base : str or Path, optional
        For adapters: the checkpoint of the model they were trained on. Its digest stands in the family's record; the
        path that adapters name is never opened.
    rename : str, Path or Mapping, optional
        Tensors of checkpoints that go by other names than the family's: a map from the one to the other, or one such map
        per task, or a JSON file with it. A map that is for no one task is for the checkpoints that have its names. The
        family's names are stored and given back; the record says by which map.
    zoo_options : Mapping of str to object, optional
        For the storages that the zoo's URLs name: see :func:`uws_store.storage.open_storage`.
    executor : str, optional
        Where the work runs: ``"threads"`` (the default), ``"serial"``, ``"processes"``, ``"dask"`` for a Dask cluster on
        this machine or ``"dask://host:port"``. The stored bytes do not depend on it.
    workers : int, optional
        How many pieces of work run at once; by default the cores this process may use. Fewer run where memory bears
        fewer.
    memory : int or str, optional
        The most memory this build may take, in bytes or as ``"8GiB"``; by default four fifths of what is free.
    restart : bool
        Begin anew, instead of going on where a build of the same zoo and options that was killed had come to. What such
        a build has finished is kept in the cache folder until one ends well.
    device : str or torch.device
        Where tensors are fitted and models encoded, such as ``"cuda"`` (every GPU, each with tensors and models of its own)
        or ``"cuda:1"``. A tensor for which there is no room is worked on in pieces there, or on the CPU, and the result says
        so. Models are decoded alike everywhere, whatever encoded them; which integers they get may differ between kinds of
        devices, and the basis's record names the kind. What an evaluation scores is encoded on the CPU.
    progress : callable, optional
        Called with a phase's name, what is done, what there is to do, and the bytes of checkpoints that were taken in
        (0 where that is not counted): see :class:`uws_store.builder.Progress`.

    Raises
    ------
    AlreadyExistsError
        When the family exists (``already-exists/family``).
    InvalidInputError
        For an empty zoo, a single model, doubled tasks, bad names or options, or an evaluation that fails.
    FidelityError
        When a model misses ``max_drop`` (``fidelity/max-drop``).
    IncompatibleError
        When members are of different architectures, or adapters of different base models
        (``incompatible/base-model``).
    FormatError
        When a checkpoint is damaged.
    MemoryLimitError
        When the build would need more memory than it may take; nothing was read then (``memory-limit/build``).
    WorkerError
        When workers die again and again.
    StorageError
        When the storage fails. In every case the registry is as it was.
    """
    check_family_name(family)
    limit = parse_bytes(memory) if memory is not None else available_bytes()
    fidelity = choose_fidelity(bits=bits, rel_error=rel_error, change_error=change_error, max_drop=max_drop)
    expect_models = expected(expect_models)
    decided = read_plan(plan) if isinstance(plan, str | Path) else plan
    scoring = read_request(
        evaluate=evaluate,
        search_evaluate=search_evaluate,
        metric=metric,
        higher_is_better=higher_is_better,
        max_drop=max_drop,
        per_model=per_model,
        on_miss=on_miss,
    )
    spec = ExecutorSpec.parse(executor, workers=workers)
    asked = read_overhead(exact_overhead)
    place = usable_device(device)
    with (
        Members(
            scan_zoo(zoo, storage_options=zoo_options),
            skip_mismatched=skip_mismatched,
            base=Path(base) if base is not None else None,
            rename=Renaming.of(rename),
        ) as members,
        Workers(spec) as pool,
        contextlib.ExitStack() as held,
    ):
        # Made only now: a zoo that is refused leaves no empty registry behind.
        opened = open_registry(registry, create=True)
        _require_reachable(opened, spec)
        _require_new(opened.state(), family)
        projection = members.projected_memory(
            fidelity=fidelity, exact=exact, shares_memory=spec.shares_memory
        )
        pool.bound(projection.fitting_workers(spec.workers, limit))
        groups = bases_of(members, fidelity=fidelity) if decided is None else (tuple(members.checkpoints),)
        request = BuildRequest(
            family=family,
            fidelity=fidelity,
            scoring=scoring,
            exact=exact,
            exact_overhead=asked,
            expect_models=expect_models,
            max_decode_flops_per_weight=max_decode_flops_per_weight,
            plan=decided,
            work_folder=cache_folder() / "builds",
            restart=restart,
            progress=progress,
            device=place,
        )
        # All are made before one is stored: who misses a promise on its basis leaves nothing of the others behind.
        made: list[MadeBasis] = []
        for number, tasks in enumerate(groups, 1):
            models = share_of(expect_models, len(tasks), len(members.checkpoints))
            made.append(
                make_basis(
                    members if len(groups) == 1 else members.part(tasks),
                    replace(request, expect_models=models),
                    pool=pool,
                    kept_bytes=projection.room_bytes(pool.width, limit),
                    options=basis_options(number, len(groups)),
                )
            )
        _put_groups(opened.storage, family)
        publication = held.enter_context(Publication(opened.storage))
        parts = [store_part(basis, request, publication=publication, pool=pool) for basis in made]
        stored = {task: model for part in parts for task, model in part.models.items()}
        ordered = [stored[task] for task in members.checkpoints]
        packs = pack_staged(opened.storage, family, ordered, publication)
        actions = _actions(family, members, parts, ordered, packs)

        def all_actions(state: RegistryState) -> Sequence[Action]:
            _require_new(state, family)
            return actions

        publication.settle()
        commit = opened.publish(all_actions, beside=card_beside(family, opened, opened))
        for basis in made:
            basis.work.clear()
        results = [stored[task].at_version(1) for task in members.checkpoints]
        found = [basis.sharing for basis in made if basis.sharing is not None]
        sharing = found[0] if len(found) == 1 else pooled(found)
        return BuildResult(
            family=family,
            registry=opened.url,
            basis_bytes=sum(part.basis_bytes for part in parts),
            coded_parameters=parts[0].target.basis.coded_parameters,
            models=tuple(results),
            odd_tensors=dict(members.odd),
            skipped=members.skipped,
            outliers={task: odd for basis in made for task, odd in basis.members.outliers.items()},
            shares=sharing.shares if sharing else None,
            sharing=str(sharing) if sharing else "",
            groups=groups,
            commit=commit.number,
            step=step_of(parts[0].target.basis.document.step).value,
            scores=summarise((model.task, score) for model in results for score in model.scores),
            remarks=(
                *remarks_on_adapters(members),
                *remarks_on_groups(groups),
                *dict.fromkeys(remark for basis in made for remark in basis.remarks),
            ),
            projected_memory_bytes=projection.with_room_bytes(pool.width, limit),
        )


def _actions(
    family: str,
    members: Members,
    parts: Sequence[StoredPart],
    models: Sequence[StoredModel],
    packs: Mapping[str, PackPlace],
) -> list[Action]:
    """What one commit says of a new family: its bases by number, and every model on its own."""
    revision = {task: number for number, part in enumerate(parts, 1) for task in part.models}
    return [
        FamilyAction(family=family, architecture=members.report.digest),
        *(
            BasisAction(
                family=family, revision=number, digest=part.target.basis.digest, size_bytes=part.basis_bytes
            )
            for number, part in enumerate(parts, 1)
        ),
        *(
            model.action(
                family, version=1, revision=revision[model.result.task], pack=packs.get(model.digest)
            )
            for model in models
        ),
    ]


def _require_new(state: RegistryState, family: str) -> None:
    if family in state.families:
        raise AlreadyExistsError(
            f"family {family!r} exists; add models to it with: uws-store add CHECKPOINT --family {family} --task TASK, "
            "or choose another name",
            kind="already-exists/family",
        )


def _put_groups(storage: Storage, family: str) -> None:
    for path in layout.family_groups(family):
        put_verified(storage, path, PLAIN_GROUP)


def _require_reachable(registry: Registry, spec: ExecutorSpec) -> None:
    """Refuse other processes where only this one sees what it stores."""
    if not spec.shares_memory and is_packed(registry.storage):
        raise InvalidInputError(
            f"what is built for {registry.url} waits on this machine for its one commit, which other processes cannot "
            "add to; use the executor threads or serial, or build on disk and push",
            kind="invalid-input/executor",
        )
    if not spec.shares_memory and registry.url.startswith("memory://"):
        raise InvalidInputError(
            f"a registry in memory ({registry.url}) is seen by this process alone; use the executor threads or serial, "
            "or a registry on disk",
            kind="invalid-input/executor",
        )
