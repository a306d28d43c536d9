"""Putting models into a registry: building a family from a zoo, adding a checkpoint to one.

Objects are stored first and one commit names them last, so that whatever ends the process early leaves the registry
as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from uws_store import layout
from uws_store.api.family import open_registry
from uws_store.architecture import compare
from uws_store.basis import Basis, step_of
from uws_store.builder import (
    DEFAULT_FIDELITY,
    AnalysisCache,
    EncodedModel,
    Fidelity,
    Members,
    Progress,
    build_basis,
    encode_model,
    encode_within,
)
from uws_store.canonical import Step
from uws_store.checkpoint import Checkpoint, open_checkpoint, scan_zoo
from uws_store.errors import AlreadyExistsError, IncompatibleError, InvalidInputError, NotFoundError
from uws_store.metadata.group import PLAIN_GROUP
from uws_store.metadata.log import Action, BasisAction, FamilyAction, ModelAction
from uws_store.names import check_family_name, check_task_name, collision_key
from uws_store.registry import Registry, RegistryState
from uws_store.storage import Storage
from uws_store.store import put_verified

__all__ = ["AddResult", "BuildResult", "ModelResult", "add", "build"]

Kind = Literal["bits", "rel-error", "change-error"]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model that was stored.

    Attributes
    ----------
    task : str
        Its name.
    version : int
        Its version.
    bits_per_parameter : float
        Bits of the compact tier per basis-coded parameter, metadata counted, private tensors not.
    compact_bytes, private_bytes, size_bytes, source_bytes : int
        Everything the compact tier needs; the private tensors in it; with the residual; the source checkpoint.
    rel_error : float
        ``||W - W'|| / ||W||`` over basis-coded weights.
    notices : tuple of str
        Tensors that were kept byte for byte against expectation, and why.
    """

    task: str
    version: int
    bits_per_parameter: float
    compact_bytes: int
    private_bytes: int
    size_bytes: int
    source_bytes: int
    rel_error: float
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A family that was built.

    Attributes
    ----------
    family, registry : str
        Names.
    basis_bytes : int
        All objects of the basis.
    coded_parameters : int
        Parameters per model that go through the basis.
    models : tuple of ModelResult
        By task.
    odd_tensors : dict of str to tuple of str
        Per task, tensors that differ in shape from the others' and are private.
    skipped : tuple of str
        Members of another architecture that were left out.
    commit : int
        The commit that published it.
    """

    family: str
    registry: str
    basis_bytes: int
    coded_parameters: int
    models: tuple[ModelResult, ...]
    odd_tensors: dict[str, tuple[str, ...]]
    skipped: tuple[str, ...]
    commit: int


@dataclass(frozen=True, slots=True)
class AddResult:
    """A model that was added.

    Attributes
    ----------
    family, registry : str
        Names.
    model : ModelResult
        What was stored.
    commit : int
        The commit that published it.
    """

    family: str
    registry: str
    model: ModelResult
    commit: int


def choose_fidelity(*, bits: float | None, rel_error: float | None, change_error: float | None) -> Fidelity:
    """Turn a caller's options into one fidelity; the default when there is none.

    Raises
    ------
    InvalidInputError
        When there are several, or one is out of range.
    """
    given: list[tuple[Kind, float]] = []
    if bits is not None:
        given.append(("bits", bits))
    if rel_error is not None:
        given.append(("rel-error", rel_error))
    if change_error is not None:
        given.append(("change-error", change_error))
    if len(given) > 1:
        words = " and ".join(f"--{kind}" for kind, _ in given)
        raise InvalidInputError(f"give one fidelity, not {words}", kind="invalid-input/fidelity")
    return Fidelity(*given[0]) if given else DEFAULT_FIDELITY


def build(
    zoo: str | Path,
    *,
    family: str,
    registry: str | Registry | None = None,
    bits: float | None = None,
    rel_error: float | None = None,
    change_error: float | None = None,
    exact: bool = False,
    expect_models: int | None = None,
    skip_mismatched: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Build a family from a zoo: derive the basis, encode every member, publish all in one commit.

    Parameters
    ----------
    zoo : str or Path
        A folder with one checkpoint file or folder per task, or a manifest.
    family : str
        The new family's name.
    registry : str or Registry, optional
        URL or path; made when it does not exist. By default ``UWS_STORE_REGISTRY``, else the user's data folder.
    bits, rel_error, change_error : float, optional
        At most one: bits per basis-coded parameter (mean over models, metadata counted); the largest
        ``||W - W'|| / ||W||``; the largest ``||W - W'|| / ||W - mean||``. By default ``change_error=0.05``.
    exact : bool
        Also store what makes every tensor bit-identical.
    expect_models : int, optional
        Plan the basis for a family of this size, when more models will be added.
    skip_mismatched : bool
        Leave out members of another architecture instead of refusing the zoo.
    progress : callable, optional
        Called with a phase's name, what is done and what there is to do.

    Raises
    ------
    AlreadyExistsError
        When the family exists (``already-exists/family``).
    InvalidInputError
        For an empty zoo, a single model, doubled tasks, bad names or options.
    IncompatibleError
        When members are of different architectures.
    FormatError
        When a checkpoint is damaged.
    StorageError
        When the storage fails. In every case the registry is as it was.
    """
    check_family_name(family)
    fidelity = choose_fidelity(bits=bits, rel_error=rel_error, change_error=change_error)
    if expect_models is not None and expect_models < 1:
        raise InvalidInputError(
            f"expect_models is at least 1, not {expect_models}", kind="invalid-input/expect-models"
        )
    zoo_members = scan_zoo(Path(zoo))
    opened = open_registry(registry, create=True)
    _require_new(opened.state(), family)
    with Members(zoo_members, skip_mismatched=skip_mismatched) as members:
        built = build_basis(members, fidelity=fidelity, expect_models=expect_models, progress=progress)
        _put_groups(opened.storage, family)
        _put_objects(opened.storage, layout.basis_prefix(family, built.basis.digest), built.objects)
        analyses = AnalysisCache(built.basis)
        actions: list[Action] = [
            FamilyAction(family=family, architecture=members.report.digest),
            BasisAction(family=family, revision=1, digest=built.basis.digest, size_bytes=built.size_bytes),
        ]
        results: list[ModelResult] = []
        for task, checkpoint in members.checkpoints.items():
            model = _encode(built.basis, checkpoint, fidelity=fidelity, exact=exact, analyses=analyses)
            _put_objects(opened.storage, layout.model_prefix(family, model.digest), model.objects)
            actions.append(_model_action(family, task, model, version=1, revision=1))
            results.append(_result(task, model, built.basis, version=1))
            if progress is not None:
                progress("encoding", len(results), len(members.checkpoints))

        def all_actions(state: RegistryState) -> Sequence[Action]:
            _require_new(state, family)
            return actions

        commit = opened.publish(all_actions)
        return BuildResult(
            family=family,
            registry=opened.url,
            basis_bytes=built.size_bytes,
            coded_parameters=built.basis.coded_parameters,
            models=tuple(results),
            odd_tensors=dict(members.odd),
            skipped=members.skipped,
            commit=commit.number,
        )


def add(
    checkpoint: str | Path,
    *,
    family: str,
    task: str | None = None,
    registry: str | Registry | None = None,
    exact: bool = False,
) -> AddResult:
    """Add a checkpoint to a family, onto its newest basis; no byte that is stored already changes.

    Parameters
    ----------
    checkpoint : str or Path
        A checkpoint file or folder.
    family : str
        The family.
    task : str, optional
        Its name; by default the file's or folder's. A task that exists gets its next version.
    registry : str or Registry, optional
        See :func:`build`.
    exact : bool
        Also store what makes every tensor bit-identical.

    Raises
    ------
    NotFoundError
        When there is no such family or checkpoint.
    IncompatibleError
        When the checkpoint is of another architecture (``incompatible/architecture``).
    UwsError
        As in :func:`build`.
    """
    opened = open_registry(registry)
    path = Path(checkpoint)
    name = check_task_name(task if task is not None else path.stem if path.is_file() else path.name)
    entry = opened.state().family(family).latest_basis
    if entry is None:
        raise NotFoundError(f"family {family!r} has no basis yet", kind="not-found/basis")
    basis = Basis.open(opened.storage, layout.basis_prefix(family, entry.digest), digest=entry.digest)
    with open_checkpoint(path) as source:
        _require_architecture(basis, source, family)
        basis.prefetch()
        model = _encode(
            basis, source, fidelity=_fidelity_of(basis), exact=exact, analyses=AnalysisCache(basis)
        )
    _put_objects(opened.storage, layout.model_prefix(family, model.digest), model.objects)

    def actions(state: RegistryState) -> Sequence[Action]:
        _require_spelling(state, family, name)
        version = state.next_version(family, name)
        return [_model_action(family, name, model, version=version, revision=entry.revision)]

    commit = opened.publish(actions)
    published = next(action for action in commit.actions if isinstance(action, ModelAction))
    return AddResult(
        family=family,
        registry=opened.url,
        model=_result(name, model, basis, version=published.version),
        commit=commit.number,
    )


def _encode(
    basis: Basis, checkpoint: Checkpoint, *, fidelity: Fidelity, exact: bool, analyses: AnalysisCache
) -> EncodedModel:
    def at(step: Step) -> EncodedModel:
        return encode_model(basis, checkpoint, step=step, exact=exact, analyses=analyses)

    return encode_within(basis, at, step=step_of(basis.document.step), fidelity=fidelity)


def _fidelity_of(basis: Basis) -> Fidelity:
    """What the basis was built for, so that models added later keep the same promise."""
    words = dict(basis.document.build.options).get("fidelity", "")
    kind, _, value = words.partition(" ")
    if kind not in ("bits", "rel-error", "change-error"):
        return DEFAULT_FIDELITY
    return Fidelity(cast("Kind", kind), float(value))


def _require_new(state: RegistryState, family: str) -> None:
    if family in state.families:
        raise AlreadyExistsError(
            f"family {family!r} exists; add models to it with: uws-store add CHECKPOINT --family {family} --task TASK, "
            "or choose another name",
            kind="already-exists/family",
        )


def _require_spelling(state: RegistryState, family: str, task: str) -> None:
    other = state.family(family).taken.get(collision_key(task))
    if other is not None and other != task:
        raise AlreadyExistsError(
            f"task {task!r} is too like the existing {other!r}: names must differ by more than case",
            kind="already-exists/name",
        )


def _require_architecture(basis: Basis, checkpoint: Checkpoint, family: str) -> None:
    own = {record.name: record.shape for record in basis.document.tensors}
    # The family counts twice, so that its signature is the majority whatever the newcomer looks like.
    report = compare({"a": own, "b": own, checkpoint.source: checkpoint.shapes()})
    newcomer = next(member for member in report.members if member.task == checkpoint.source)
    if not newcomer.fits:
        raise IncompatibleError(
            f"{checkpoint.source} does not belong to family {family!r}: {newcomer.problem.message}",
            kind=newcomer.problem.kind,
        )


def _put_groups(storage: Storage, family: str) -> None:
    for path in layout.family_groups(family):
        put_verified(storage, path, PLAIN_GROUP)


def _put_objects(storage: Storage, prefix: str, objects: dict[str, bytes]) -> None:
    for path, data in objects.items():
        put_verified(storage, f"{prefix}/{path}", data)


def _model_action(family: str, task: str, model: EncodedModel, *, version: int, revision: int) -> ModelAction:
    return ModelAction(
        family=family,
        task=task,
        version=version,
        basis_revision=revision,
        digest=model.digest,
        size_bytes=model.size_bytes,
        exact=model.document.exact is not None,
    )


def _result(task: str, model: EncodedModel, basis: Basis, *, version: int) -> ModelResult:
    return ModelResult(
        task=task,
        version=version,
        bits_per_parameter=model.bits_per_parameter(basis),
        compact_bytes=model.compact_bytes,
        private_bytes=model.private_bytes,
        size_bytes=model.size_bytes,
        source_bytes=model.document.source.size_bytes,
        rel_error=model.document.rel_error,
        notices=model.notices,
    )
