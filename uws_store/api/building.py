"""Making one basis of a family, then encoding the models that it is for: objects are stored, and nothing is published.

Owns the order for one basis; which models it is for, and that all bases are made before an object is stored, is the
caller's.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from uws_store import layout
from uws_store.api.encoding import (
    OVERHEAD_OPTION,
    EncodeJob,
    FamilyTarget,
    ModelEncoding,
    StoredModel,
    encode_and_store,
    overhead_of,
    put_objects,
)
from uws_store.builder import (
    BasisBuilder,
    BuiltBasis,
    Fidelity,
    Members,
    Progress,
    WorkFolder,
    object_sizes,
    piece_name,
    resumed,
)
from uws_store.device import each_device
from uws_store.executors import Workers
from uws_store.fidelity import Judge, ScoringRequest
from uws_store.metadata.plan import PlanDocument
from uws_store.nulls import Sharing
from uws_store.registry import Publication

__all__ = ["BuildRequest", "MadeBasis", "StoredPart", "make_basis", "store_basis", "store_part"]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a build was asked for, in checked values.

    Attributes
    ----------
    family : str
        The family.
    fidelity : Fidelity
        How near models are to be.
    scoring : ScoringRequest or None
        What scores them.
    exact : bool
        Whether every tensor is to be bit-identical too.
    exact_overhead : float or None
        What was asked for.
    expect_models : int or None
        Models the basis is planned for.
    max_decode_flops_per_weight : float or None
        The most that decoding may take.
    plan : PlanDocument or None
        Decisions to follow.
    work_folder : Path
        Where finished pieces are kept.
    restart : bool
        Whether to begin anew.
    progress : callable or None
        See :data:`uws_store.builder.Progress`.
    device : torch.device
        Where tensors are fitted and models encoded.
    """

    family: str
    fidelity: Fidelity
    scoring: ScoringRequest | None
    exact: bool
    exact_overhead: float | None
    expect_models: int | None
    max_decode_flops_per_weight: float | None
    plan: PlanDocument | None
    work_folder: Path
    restart: bool
    progress: Progress | None
    device: torch.device


@dataclass(frozen=True, slots=True)
class MadeBasis:
    """A basis on which every model keeps what was promised; nothing of it is stored.

    Attributes
    ----------
    members : Members
        The models it is for.
    built : BuiltBasis
        The basis, without its fits: means and samples are of no more use.
    judge : Judge or None
        What knows its models' steps and scores.
    work : WorkFolder
        Where finished pieces are kept.
    sharing : Sharing or None
        What its models share.
    remarks : tuple of str
        On the device, and on all scores together.
    """

    members: Members
    built: BuiltBasis
    judge: Judge | None
    work: WorkFolder
    sharing: Sharing | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A basis and its models, stored and not yet published.

    Attributes
    ----------
    target : FamilyTarget
        The basis, open.
    basis_bytes : int
        Bytes of its objects.
    models : dict of str to StoredModel
        By task.
    """

    target: FamilyTarget
    basis_bytes: int
    models: dict[str, StoredModel]


def make_basis(
    members: Members,
    request: BuildRequest,
    *,
    pool: Workers,
    kept_bytes: int,
    options: tuple[tuple[str, str], ...] = (),
) -> MadeBasis:
    """Make a basis for models, at the steps that keep what was promised.

    Parameters
    ----------
    members : Members
        The models.
    request : BuildRequest
        What was asked for.
    pool : Workers
        Who works.
    kept_bytes : int
        Slices that may stay in memory.
    options : tuple of (str, str)
        More for the basis to remember.

    Raises
    ------
    UwsError
        As of :func:`uws_store.api.publish.build`.
    """
    asked, progress = request.exact_overhead, request.progress
    judge = Judge(request.scoring, members.checkpoints, progress=progress) if request.scoring else None
    judged = judge.options if judge else ()
    work = members.keep_work(
        request.work_folder,
        options=[
            str(request.fidelity),
            str(request.expect_models),
            str(request.exact),
            str(asked),
            str(request.max_decode_flops_per_weight),
            request.device.type,
            hashlib.sha256(request.plan.to_bytes()).hexdigest() if request.plan else "",
            *map(str, judged),
        ],
        restart=request.restart,
    )
    builder = BasisBuilder(
        members,
        fidelity=request.fidelity,
        expect_models=request.expect_models,
        options=(*(() if asked is None else ((OVERHEAD_OPTION, str(asked)),)), *judged, *options),
        max_decode_flops_per_weight=request.max_decode_flops_per_weight,
        plan=request.plan,
        progress=progress,
        workers=pool,
        kept_bytes=kept_bytes,
        device=request.device,
    )
    built = judge.family_basis(builder) if judge else builder.build()
    if judge is not None:
        judge.settle(built.basis)
    members.checkpoints.drop()
    remarks = (*builder.remarks, *(judge.remarks if judge else ()))
    return MadeBasis(members, replace(built, fits=()), judge, work, builder.sharing, remarks)


def store_part(
    made: MadeBasis, request: BuildRequest, *, publication: Publication, pool: Workers
) -> StoredPart:
    """Store a basis, and its models as they are encoded.

    Parameters
    ----------
    made : MadeBasis
        The basis.
    request : BuildRequest
        What was asked for.
    publication : Publication
        Where objects go, and who protects them until they are published.
    pool : Workers
        Who works.

    Raises
    ------
    UwsError
        As of :func:`uws_store.api.publish.build`. What was stored by then is named by nothing.
    """
    members, progress = made.members, request.progress
    target = store_basis(made.built, family=request.family, publication=publication)
    stored: dict[str, StoredModel] = {}
    for model in _encode_all(members, target, request, made.judge, pool=pool):
        stored[model.result.task] = model
        prefix = layout.model_prefix(request.family, model.digest)
        # What an earlier run stored may be as old as garbage is.
        publication.stored(prefix, dict(model.objects), reused=made.work.reused > 0 or not model.is_new)
        if progress is not None:
            taken = sum(one.result.source_bytes for one in stored.values())
            progress("encoding", len(stored), len(members.checkpoints), taken)
    return StoredPart(target, made.built.size_bytes, stored)


def store_basis(built: BuiltBasis, *, family: str, publication: Publication) -> FamilyTarget:
    """Store a basis's objects, and tell where its models go."""
    storage = publication.storage
    prefix = layout.basis_prefix(family, built.basis.digest)
    is_new = put_objects(storage, prefix, built.objects)
    publication.stored(prefix, object_sizes(built.objects), reused=not is_new)
    return FamilyTarget(storage, family, built.basis)


def _encode_all(
    members: Members, target: FamilyTarget, request: BuildRequest, judge: Judge | None, *, pool: Workers
) -> Iterator[StoredModel]:
    """Encode and store every member, in any order; here and one by one where an evaluation scores them."""
    fidelity, exact, overhead = request.fidelity, request.exact, overhead_of(target.basis)
    if judge is None:
        devices = itertools.cycle(each_device(request.device))
        jobs = [
            EncodeJob(members.checkpoints, task, target, fidelity, exact, overhead, next(devices))
            for task in members.checkpoints
        ]
        names = [f"model/{target.basis.digest[:16]}/{piece_name(task)}" for task in members.checkpoints]
        for _, stored in resumed(
            members.work,
            pool,
            encode_and_store,
            jobs,
            names=names,
            kind=StoredModel,
            is_valid=target.holds,
        ):
            yield stored
        return
    encoding = ModelEncoding(target.basis, fidelity, target.analyses(), judge, overhead, is_member=True)
    for task, checkpoint in members.checkpoints.items():
        model = encoding.encode(task, checkpoint, exact=exact)
        is_new = target.put(model)
        result = encoding.result(task, model, version=1, read=checkpoint.notices)
        yield StoredModel.of(result, model, is_new=is_new)
