"""Growth of a family: a new basis revision that also covers new models, and old models moved onto it.

No byte that is stored changes: a revision is another basis, and a model that is moved gets another version.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from uws_store import layout
from uws_store.analysis import bases_of
from uws_store.api.adding import publish_model, require_architecture
from uws_store.api.building import store_basis
from uws_store.api.encoding import (
    OVERHEAD_OPTION,
    EncodeJob,
    FamilyTarget,
    ModelEncoding,
    StoredModel,
    analyses_of,
    encode_and_store,
    fidelity_of,
    option_of,
    overhead_of,
    remarks_on_promise,
    scratch,
)
from uws_store.api.family import Family
from uws_store.api.generation import (
    CurrentBasis,
    basis_options,
    current_bases,
    nearest_basis,
    remarks_on_groups,
    share_of,
)
from uws_store.api.opening import open_registry
from uws_store.api.packing import pack_staged
from uws_store.api.results import AddResult, ExtendResult
from uws_store.api.showing import card_beside
from uws_store.api.stored import StoredCheckpoint
from uws_store.basis import step_of
from uws_store.builder import (
    BasisBuilder,
    Fidelity,
    Members,
    Progress,
    available_bytes,
    parse_bytes,
)
from uws_store.checkpoint import Checkpoint, open_checkpoint, scan_zoo
from uws_store.device import each_device, usable_device
from uws_store.errors import IncompatibleError, InvalidInputError
from uws_store.executors import ExecutorSpec, Workers
from uws_store.metadata.log import Action, BasisAction, ModelAction, PackPlace
from uws_store.registry import FamilyState, Publication, Registry, RegistryState

__all__ = ["extend", "rebase"]


def extend(
    family: str,
    zoos: Sequence[str | Path] = (),
    *,
    registry: str | Registry | None = None,
    exact: bool = False,
    expect_models: int | None = None,
    zoo_options: Mapping[str, object] | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> ExtendResult:
    """Make a family's next basis revision, from its stored models and new ones, and store the new ones on it.

    The old checkpoints are not read: the newest version of each task comes out of the registry, bit-identical where it
    has the exact tier, else as the compact tier gives it back, whose error then stands for the original's. Old models
    keep their basis; :func:`rebase` moves one. Where the family's models were tuned from several base models, a group that
    nothing was added to keeps its basis in use, byte for byte.

    Parameters
    ----------
    family : str
        The family.
    zoos : sequence of str or Path
        Folders, manifests or URLs with new checkpoints, as of :func:`uws_store.api.publish.build`; a task that exists gets its next version. None: the revision covers
        what was added since the last.
    registry, exact, expect_models, zoo_options, workers, memory, device, progress
        As of :func:`uws_store.api.publish.build`. Threads do the work, since other processes have no open registry.

    Raises
    ------
    NotFoundError
        When there is no such family.
    InvalidInputError
        When there is nothing new (``invalid-input/nothing-new``).
    IncompatibleError
        When new checkpoints are of another architecture.
    UwsError
        As of :func:`uws_store.api.publish.build`. In every case the registry is as it was.
    """
    spec = ExecutorSpec.parse("threads", workers=workers)
    limit = parse_bytes(memory) if memory is not None else available_bytes()
    place = usable_device(device)
    opened = open_registry(registry)
    state = opened.state().family(family)
    old = current_bases(opened, state)
    latest, old_basis = old[-1].entry, old[-1].basis
    new = [member for zoo in zoos for member in scan_zoo(zoo, storage_options=zoo_options)]
    stored = _stored_checkpoints(opened, family, state, without={member.task for member in new})
    if not new and all(entry.commit == latest.commit for entry in state.newest()):
        raise _nothing_new(family, latest.revision)
    fidelity = fidelity_of(old_basis)
    kept = tuple(
        (name, option_of(old_basis, name)) for name in ("search-evaluation", "per-model", OVERHEAD_OPTION)
    )
    with (
        Members(new, also=stored) as members,
        Workers(spec) as pool,
        Publication(opened.storage) as publication,
    ):
        if members.report.digest != state.architecture:
            raise IncompatibleError(
                f"with these checkpoints the architecture of family {family!r} would be another; build a family of "
                "their own",
                kind="incompatible/architecture",
            )
        members.scratch = scratch()
        projection = members.projected_memory(fidelity=fidelity, exact=exact, shares_memory=True)
        pool.bound(projection.fitting_workers(spec.workers, limit))
        planned = max(
            expect_models or 0, sum(int(option_of(held.basis, "expect-models") or 0) for held in old)
        )
        # A promise on scores was kept at a step that was searched for: without the evaluation, that step stays.
        steps = [step_of(held.basis.document.step) for held in old]
        step = min(steps, key=lambda each: each.value) if fidelity.kind == "max-drop" else None
        groups = bases_of(members, fidelity=fidelity)
        kept_bases = _unchanged(members, groups, stored, old) if len(groups) > 1 else {}
        changed = [tasks for tasks in groups if tasks not in kept_bases]
        if not changed:
            raise _nothing_new(family, latest.revision)
        parts: list[_Part] = []
        for number, tasks in enumerate(changed, 1):
            builder = BasisBuilder(
                members if len(groups) == 1 else members.part(tasks),
                fidelity=fidelity,
                expect_models=share_of(planned, len(tasks), len(members.checkpoints)),
                options=(
                    *((name, value) for name, value in kept if value),
                    *basis_options(number, len(changed), tuple(kept_bases.values())),
                ),
                progress=progress,
                workers=pool,
                kept_bytes=projection.room_bytes(pool.width, limit),
                device=place,
            )
            built = builder.at_step(step)[0] if step is not None else builder.build()
            target = store_basis(built, family=family, publication=publication)
            parts.append(_Part(target, built.size_bytes, frozenset(tasks), builder.remarks))
            del builder, built
        members.checkpoints.drop()
        models = _encode_new(
            members,
            [member.task for member in new],
            parts,
            fidelity=fidelity,
            exact=exact,
            pool=pool,
            publication=publication,
            progress=progress,
            device=place,
        )

        packs = pack_staged(opened.storage, family, models, publication)

        def actions(now: RegistryState) -> Sequence[Action]:
            return _actions(now, family, parts, models, packs)

        publication.settle()
        commit = opened.publish(actions, beside=card_beside(family, opened, opened))
    versions = {action.task: action.version for action in commit.actions if isinstance(action, ModelAction)}
    revision = max(action.revision for action in commit.actions if isinstance(action, BasisAction))
    return ExtendResult(
        family=family,
        registry=opened.url,
        revision=revision,
        basis_bytes=sum(part.basis_bytes for part in parts),
        models=tuple(model.at_version(versions[model.result.task]) for model in models),
        from_registry=len(stored),
        from_compact=sum(not checkpoint.is_exact for checkpoint in stored.values()),
        commit=commit.number,
        remarks=(
            *remarks_on_groups(groups),
            *dict.fromkeys(remark for part in parts for remark in part.remarks),
        ),
    )


def _nothing_new(family: str, revision: int) -> InvalidInputError:
    return InvalidInputError(
        f"nothing was added to family {family!r} since its basis revision {revision}; give a zoo of new checkpoints",
        kind="invalid-input/nothing-new",
    )


def _unchanged(
    members: Members,
    groups: Sequence[tuple[str, ...]],
    stored: Mapping[str, StoredCheckpoint],
    bases: Sequence[CurrentBasis],
) -> dict[tuple[str, ...], CurrentBasis]:
    """The groups whose models are those that a basis in use was made from: it is theirs still, byte for byte."""
    by_sources = {held.basis.document.build.sources: held for held in bases}
    return {
        tasks: by_sources[sources]
        for tasks in groups
        if all(task in stored for task in tasks)
        and (sources := members.part(tasks).sources_digest()) in by_sources
    }


def rebase(
    family: str,
    task: str,
    *,
    source: str | Path | None = None,
    zoo_options: Mapping[str, object] | None = None,
    device: str | torch.device = "cpu",
    registry: str | Registry | None = None,
) -> AddResult:
    """Move a model onto the newest basis revision: it becomes the task's next version.

    Parameters
    ----------
    family, task : str
        The model; the task may carry ``@revision``.
    source : str or Path, optional
        The checkpoint it was made from, a path or a URL; needed where the model has no exact tier.
    zoo_options : Mapping of str to object, optional
        For the storage that the source's URL names.
    device : str or torch.device
        Where the model is encoded.
    registry : str or Registry, optional
        As of :func:`uws_store.api.publish.build`.

    Raises
    ------
    IncompatibleError
        Without an exact tier and without a source (``incompatible/no-exact-tier``): its error would grow unseen. With
        another checkpoint than the model's own (``incompatible/source``).
    InvalidInputError
        When it is on the newest revision already (``invalid-input/newest-basis``).
    UwsError
        As of :func:`uws_store.api.adding.add`.
    """
    place = each_device(usable_device(device))[0]
    opened = open_registry(registry)
    entry = Family(opened, family).resolve(task)
    current = current_bases(opened, opened.state().family(family))
    model = Family(opened, family).model(entry)
    if entry.basis_revision in {held.entry.revision for held in current}:
        # It may have been added before there was a basis for its own base model.
        there = nearest_basis(
            current, StoredCheckpoint(model, source=f"{family}/{entry.task}@{entry.version}")
        )
        if there.entry.revision == entry.basis_revision:
            raise InvalidInputError(
                f"{family}/{entry.task}@{entry.version} is on the newest basis for it, r{entry.basis_revision}; see: uws-store "
                "extend",
                kind="invalid-input/newest-basis",
            )
    with ExitStack() as stack:
        checkpoint: Checkpoint
        if source is not None:
            checkpoint = stack.enter_context(open_checkpoint(source, storage_options=zoo_options))
            if checkpoint.sha256() != model.document.source.sha256:
                raise IncompatibleError(
                    f"{source} is not the checkpoint that {family}/{entry.task}@{entry.version} was made from (SHA-256 "
                    "differs)",
                    kind="incompatible/source",
                )
        elif model.has_exact:
            checkpoint = StoredCheckpoint(model, source=f"{family}/{entry.task}@{entry.version}")
        else:
            raise IncompatibleError(
                f"{family}/{entry.task}@{entry.version} has no exact tier, and encoding its compact tier anew would add "
                "to its error; give the checkpoint it was made from (--source)",
                kind="incompatible/no-exact-tier",
            )
        require_architecture(current[-1].basis, checkpoint, family)
        chosen = nearest_basis(current, checkpoint)
        basis = chosen.basis
        basis.prefetch()
        fidelity = fidelity_of(basis)
        # A basis is made from the newest version of every task that there is.
        encoding = ModelEncoding(
            basis, fidelity, analyses_of(basis, place), None, overhead_of(basis), is_member=True
        )
        encoded = encoding.encode(entry.task, checkpoint, exact=entry.exact)
        result = encoding.result(
            entry.task, encoded, version=1, remarks=remarks_on_promise(basis, fidelity, None)
        )
    target = FamilyTarget(opened.storage, family, basis)
    return publish_model(opened, target, encoded, result, revision=chosen.entry.revision)


@dataclass(frozen=True, slots=True)
class _Part:
    """A basis that was made, and the tasks it is for."""

    target: FamilyTarget
    basis_bytes: int
    tasks: frozenset[str]
    remarks: tuple[str, ...]


def _encode_new(
    members: Members,
    tasks: Sequence[str],
    parts: Sequence[_Part],
    *,
    fidelity: Fidelity,
    exact: bool,
    pool: Workers,
    publication: Publication,
    progress: Progress | None,
    device: torch.device,
) -> list[StoredModel]:
    """Encode and store the new models, each on the basis that it is for; in the order of the zoos."""
    devices = itertools.cycle(each_device(device))
    jobs = [
        EncodeJob(
            members.checkpoints,
            task,
            part.target,
            fidelity,
            exact,
            overhead_of(part.target.basis),
            next(devices),
        )
        for task in tasks
        for part in parts
        if task in part.tasks
    ]
    done: dict[int, StoredModel] = {}
    for index, model in pool.map(encode_and_store, jobs):
        done[index] = model
        prefix = layout.model_prefix(jobs[index].target.family, model.digest)
        publication.stored(prefix, dict(model.objects), reused=not model.is_new)
        if progress is not None:
            taken = sum(one.result.source_bytes for one in done.values())
            progress("encoding", len(done), len(jobs), taken)
    return [done[index] for index in range(len(jobs))]


def _actions(
    now: RegistryState,
    family: str,
    parts: Sequence[_Part],
    models: Sequence[StoredModel],
    packs: Mapping[str, PackPlace],
) -> list[Action]:
    """What one commit says of a family's next bases, and of the models on them."""
    first = now.next_revision(family)
    revision = {task: first + place for place, part in enumerate(parts) for task in part.tasks}
    return [
        *(
            BasisAction(
                family=family,
                revision=first + place,
                digest=part.target.basis.digest,
                size_bytes=part.basis_bytes,
            )
            for place, part in enumerate(parts)
        ),
        *(
            model.action(
                family,
                version=now.next_version(family, model.result.task),
                revision=revision[model.result.task],
                pack=packs.get(model.digest),
            )
            for model in models
        ),
    ]


def _stored_checkpoints(
    registry: Registry, family: str, state: FamilyState, *, without: set[str]
) -> dict[str, StoredCheckpoint]:
    opened = Family(registry, family)
    return {
        entry.task: StoredCheckpoint(
            opened.model(entry), source=f"{registry.url}/{family}/{entry.task}@{entry.version}"
        )
        for entry in state.newest()
        if entry.task not in without
    }
