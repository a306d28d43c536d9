"""Adding a checkpoint to a family, onto a basis that is there.

Objects are stored first and one commit names them last, so that whatever ends the process early leaves the registry
as it was. Must not know how a basis is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from uws_store import layout
from uws_store.api.adapters import require_base, shapes_within
from uws_store.api.encoding import (
    FamilyTarget,
    ModelEncoding,
    StoredModel,
    analyses_of,
    fidelity_of,
    option_of,
    overhead_of,
    remarks_on_promise,
)
from uws_store.api.generation import current_bases, nearest_basis
from uws_store.api.opening import open_registry
from uws_store.api.options import read_overhead
from uws_store.api.packing import pack_staged
from uws_store.api.results import AddResult, ModelResult
from uws_store.api.showing import card_beside
from uws_store.architecture import compare
from uws_store.basis import Basis
from uws_store.builder import EncodedModel, Progress
from uws_store.checkpoint import Checkpoint, Renaming, open_checkpoint, task_of
from uws_store.device import CPU, each_device, usable_device
from uws_store.errors import AlreadyExistsError, IncompatibleError
from uws_store.fidelity import EvaluationFunction, Judge, OnMiss, read_request
from uws_store.metadata.log import Action, ModelAction
from uws_store.names import check_task_name, collision_key
from uws_store.registry import Publication, Registry, RegistryState

__all__ = ["add", "publish_model", "require_architecture"]


def add(
    checkpoint: str | Path,
    *,
    family: str,
    task: str | None = None,
    registry: str | Registry | None = None,
    evaluate: str | EvaluationFunction | None = None,
    search_evaluate: str | EvaluationFunction | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    on_miss: OnMiss = "refuse",
    exact: bool = False,
    exact_overhead: float | None = None,
    rename: str | Path | Mapping[str, object] | None = None,
    zoo_options: Mapping[str, object] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> AddResult:
    """Add a checkpoint to a family, onto its newest basis; no byte that is stored already changes.

    A family that was built with ``max_drop`` keeps that promise for the new model when ``evaluate`` is given;
    otherwise the model gets the family's step, and the result says that its score was not measured.

    Parameters
    ----------
    checkpoint : str or Path
        A checkpoint file or folder, or the URL of a safetensors object, or of a folder or a repository of the Hub
        (``hf://org/name@revision``) that holds one.
    family : str
        The family.
    task : str, optional
        Its name; by default the file's stem without a shard's number, or the folder's or the repository's name. A task that exists gets its next version.
    registry : str or Registry, optional
        See :func:`uws_store.api.publish.build`.
    evaluate, search_evaluate, metric, higher_is_better, on_miss
        See :func:`uws_store.api.publish.build`; ``search_evaluate`` and ``on_miss`` are for families that were built with ``max_drop``.
    exact : bool
        Also store what makes every tensor bit-identical.
    exact_overhead : float, optional
        See :func:`uws_store.api.publish.build`; by default what the family was built with.
    rename : str, Path or Mapping, optional
        See :func:`uws_store.api.publish.build`.
    zoo_options : Mapping of str to object, optional
        For the storage that the checkpoint's URL names: see :func:`uws_store.storage.open_storage`.
    device : str or torch.device
        See :func:`uws_store.api.publish.build`.
    progress : callable, optional
        See :func:`uws_store.api.publish.build`.

    Raises
    ------
    NotFoundError
        When there is no such family or checkpoint.
    IncompatibleError
        When the checkpoint is of another architecture (``incompatible/architecture``), or an adapter for another base
        model (``incompatible/base-model``).
    FidelityError
        When the model misses the family's promise (``fidelity/max-drop``).
    UwsError
        As in :func:`uws_store.api.publish.build`.
    """
    overhead = read_overhead(exact_overhead)
    place = usable_device(device)
    opened = open_registry(registry)
    name = check_task_name(task) if task is not None else task_of(checkpoint)
    current = current_bases(opened, opened.state().family(family))
    # Bases that were made together were asked for the same.
    basis = current[-1].basis
    fidelity = fidelity_of(basis)
    request = read_request(
        evaluate=evaluate,
        search_evaluate=search_evaluate,
        metric=metric,
        higher_is_better=higher_is_better,
        max_drop=fidelity.value if fidelity.kind == "max-drop" and evaluate is not None else None,
        per_model=evaluate is not None and option_of(basis, "per-model") == "yes",
        on_miss=on_miss,
    )
    with open_checkpoint(checkpoint, storage_options=zoo_options) as found:
        source = _under_names(found, Renaming.of(rename), task=name)
        require_architecture(basis, source, family)
        require_base(basis, source, family)
        chosen = nearest_basis(current, source)
        basis = chosen.basis
        basis.prefetch()
        judge = Judge(request, {name: source}, progress=progress) if request else None
        if judge is not None:
            judge.settle(basis)
        analyses = analyses_of(basis, CPU if judge is not None else each_device(place)[0])
        encoding = ModelEncoding(basis, fidelity, analyses, judge, overhead_of(basis, overhead))
        model = encoding.encode(name, source, exact=exact)
    remarks = remarks_on_promise(basis, fidelity, request)
    result = encoding.result(name, model, version=1, read=source.notices, remarks=remarks)
    target = FamilyTarget(opened.storage, family, basis)
    return publish_model(opened, target, model, result, revision=chosen.entry.revision)


def publish_model(
    registry: Registry, target: FamilyTarget, model: EncodedModel, result: ModelResult, *, revision: int
) -> AddResult:
    """Store a model, and publish it as the next version of its task.

    Parameters
    ----------
    registry : Registry
        Where.
    target : FamilyTarget
        The family, with the basis that the model is encoded against.
    model : EncodedModel
        Its objects.
    result : ModelResult
        What the caller is told; its version is settled here.
    revision : int
        The basis's.

    Raises
    ------
    AlreadyExistsError
        When the task's name is too like another's (``already-exists/name``).
    StorageError
        When the storage fails; nothing is published then.
    """
    family, task = target.family, result.task

    def actions(state: RegistryState) -> Sequence[Action]:
        _require_spelling(state, family, task)
        version = state.next_version(family, task)
        return [stored.action(family, version=version, revision=revision, pack=packs.get(stored.digest))]

    with Publication(registry.storage) as publication:
        stored = StoredModel.of(result, model, is_new=target.put(model))
        publication.stored(
            layout.model_prefix(family, stored.digest), dict(stored.objects), reused=not stored.is_new
        )
        packs = pack_staged(registry.storage, family, [stored], publication)
        publication.settle()
        commit = registry.publish(actions, beside=card_beside(family, registry, registry))
    version = next(action.version for action in commit.actions if isinstance(action, ModelAction))
    return AddResult(
        family=family, registry=registry.url, model=stored.at_version(version), commit=commit.number
    )


def _under_names(checkpoint: Checkpoint, rename: Renaming | None, *, task: str) -> Checkpoint:
    if rename is None:
        return checkpoint
    found = rename.apply(task, checkpoint)
    rename.require_used({task: found})
    return found


def _require_spelling(state: RegistryState, family: str, task: str) -> None:
    other = state.family(family).taken.get(collision_key(task))
    if other is not None and other != task:
        raise AlreadyExistsError(
            f"task {task!r} is too like the existing {other!r}: names must differ by more than case",
            kind="already-exists/name",
        )


def require_architecture(basis: Basis, checkpoint: Checkpoint, family: str) -> None:
    """Refuse a checkpoint of another architecture than the basis's, with the kind of the problem."""
    own = {record.name: record.shape for record in basis.document.tensors}
    # The family counts twice, so that its signature is the majority whatever the newcomer looks like.
    report = compare({"a": own, "b": own, checkpoint.source: shapes_within(basis, checkpoint)})
    newcomer = next(member for member in report.members if member.task == checkpoint.source)
    if not newcomer.fits:
        raise IncompatibleError(
            f"{checkpoint.source} does not belong to family {family!r}: {newcomer.problem.message}",
            kind=newcomer.problem.kind,
        )
