"""Encoding the models of one call: at which step, with which tiers, scores and remarks.

Joins what a basis was built for with what its scores demand, and does one model's encoding wherever there is a worker
for it. Stores objects; publishes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from uws_store import layout
from uws_store.api.results import ModelResult
from uws_store.basis import Basis, step_of
from uws_store.builder import (
    DEFAULT_FIDELITY,
    EXACT_OVERHEAD,
    AnalysisCache,
    EncodedModel,
    Fidelity,
    Scratch,
    ZooFiles,
    encode_model,
    encode_within,
    member_step,
    object_sizes,
)
from uws_store.canonical import Step
from uws_store.checkpoint import Checkpoint
from uws_store.config import cache_folder
from uws_store.device import CPU
from uws_store.errors import FormatError
from uws_store.fidelity import Judge, ModelScore, ScoringRequest
from uws_store.metadata.log import ModelAction, PackPlace
from uws_store.storage import Storage, open_storage
from uws_store.store import put_verified

__all__ = [
    "OVERHEAD_OPTION",
    "EncodeJob",
    "FamilyTarget",
    "ModelEncoding",
    "StoredModel",
    "analyses_of",
    "encode_and_store",
    "fidelity_of",
    "option_of",
    "overhead_of",
    "put_objects",
    "remarks_on_promise",
    "scratch",
]


OVERHEAD_OPTION = "exact-overhead"
"""Name of the option by which a basis remembers ``exact_overhead``."""


@dataclass(frozen=True, slots=True)
class ModelEncoding:
    """How the models of one call are encoded."""

    basis: Basis
    fidelity: Fidelity
    analyses: AnalysisCache
    judge: Judge | None
    exact_overhead: float = EXACT_OVERHEAD
    is_member: bool = False
    """Whether the basis was made from these models, which may then have a finer step than others."""

    def encode(self, task: str, checkpoint: Checkpoint, *, exact: bool) -> EncodedModel:
        """Encode a model at the step that its fidelity or its scores demand, scores on record."""
        judge = self.judge
        demanded = exact or (judge is not None and judge.demands_exact(task))

        def at(step: Step) -> EncodedModel:
            return encode_model(
                self.basis,
                checkpoint,
                step=step,
                exact=demanded,
                # Who asks for bits asks them of the compact tier.
                exact_overhead=None if self.fidelity.kind == "bits" else self.exact_overhead,
                analyses=self.analyses,
                rounding=self.fidelity.rounding,
            )

        settled = judge.step_of(task) if judge else None
        usual = member_step(self.basis) if self.is_member else step_of(self.basis.document.step)
        start = settled or usual
        model = encode_within(self.basis, at, step=start, fidelity=self.fidelity)
        return judge.scored(task, self.basis, model) if judge else model

    def result(
        self,
        task: str,
        model: EncodedModel,
        *,
        version: int,
        read: tuple[str, ...] = (),
        remarks: tuple[str, ...] = (),
    ) -> ModelResult:
        """Tell what was stored; ``read`` is what its reader noticed, ``remarks`` come after those on its scores."""
        own = self.judge.remarks_on(task, model) if self.judge else ()
        return ModelResult(
            task=task,
            version=version,
            bits_per_parameter=model.bits_per_parameter(self.basis),
            compact_bytes=model.compact_bytes,
            private_bytes=model.private_bytes,
            file_bytes=model.file_bytes,
            size_bytes=model.size_bytes,
            source_bytes=model.document.source.size_bytes,
            rel_error=model.document.rel_error,
            notices=(*read, *model.notices),
            step=step_of(model.document.step).value,
            scores=tuple(ModelScore.of(record) for record in model.document.scores),
            remarks=(*own, *remarks),
        )


def scratch() -> Scratch:
    """Where what a large model needs beside memory lies while it is worked on."""
    return Scratch(cache_folder() / "builds" / "scratch")


def analyses_of(basis: Basis, device: torch.device) -> AnalysisCache:
    """A basis's analyses for models that are encoded on a device."""
    return AnalysisCache.shared(basis, device=device, scratch=scratch() if basis.is_large else None)


class FamilyTarget:
    """Where models of one basis are stored, as something that can be sent to another process.

    There it opens the storage by its URL and reads the basis, once for all models of that process.

    Parameters
    ----------
    storage : Storage
        The registry's.
    family : str
        The family.
    basis : Basis
        Open and prefetched; its objects are in the storage.
    """

    def __init__(self, storage: Storage, family: str, basis: Basis) -> None:
        self.storage = storage
        self.family = family
        self.basis = basis
        self._analyses: dict[torch.device, AnalysisCache] = {}

    def __reduce__(self) -> tuple[Callable[[str, str, str], FamilyTarget], tuple[str, str, str]]:
        return _target_here, (self.storage.url, self.family, self.basis.digest)

    def analyses(self, device: torch.device = CPU) -> AnalysisCache:
        """The basis's analyses for a device, made once for all models that are encoded there."""
        return self._analyses.setdefault(device, analyses_of(self.basis, device))

    def put(self, model: EncodedModel) -> bool:
        """Store a model's objects, its group document last; tell whether all are new."""
        return put_objects(self.storage, layout.model_prefix(self.family, model.digest), model.objects)

    def holds(self, stored: StoredModel) -> bool:
        """Whether every object of a model that was stored before is still there."""
        prefix = layout.model_prefix(self.family, stored.digest)
        return all(self.storage.size(f"{prefix}/{path}") == size for path, size in stored.objects)


@functools.lru_cache(maxsize=2)
def _target_here(url: str, family: str, digest: str) -> FamilyTarget:
    storage = open_storage(url)
    basis = Basis.open(storage, layout.basis_prefix(family, digest), digest=digest)
    basis.prefetch()
    return FamilyTarget(storage, family, basis)


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One model that the basis was made from, to encode and store wherever there is a worker."""

    files: ZooFiles
    task: str
    target: FamilyTarget
    fidelity: Fidelity
    exact: bool
    exact_overhead: float = EXACT_OVERHEAD
    device: torch.device = CPU


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model whose objects are stored, ready for its commit.

    Attributes
    ----------
    result : ModelResult
        What the caller is told; its version is settled by the commit.
    digest : str
        Its name in the store.
    exact : bool
        Whether it has the exact tier.
    objects : tuple of (str, int)
        Path below the model's folder and size in bytes of each object.
    is_new : bool
        Whether none of them was there before.
    """

    result: ModelResult
    digest: str
    exact: bool
    objects: tuple[tuple[str, int], ...]
    is_new: bool

    @classmethod
    def of(cls, result: ModelResult, model: EncodedModel, *, is_new: bool) -> StoredModel:
        """Keep of an encoded model what a commit needs."""
        sizes = tuple(object_sizes(model.objects).items())
        return cls(result, model.digest, model.document.exact_digests is not None, sizes, is_new)

    def action(
        self, family: str, *, version: int, revision: int, pack: PackPlace | None = None
    ) -> ModelAction:
        """Write the model's line of a commit."""
        return ModelAction(
            family=family,
            task=self.result.task,
            version=version,
            basis_revision=revision,
            digest=self.digest,
            size_bytes=self.result.size_bytes,
            exact=self.exact,
            pack=pack,
        )

    def at_version(self, version: int) -> ModelResult:
        """Tell the caller with the version that the commit gave it."""
        return replace(self.result, version=version)


def encode_and_store(job: EncodeJob) -> StoredModel:
    """Encode one member that no evaluation scores, and store its objects."""
    target = job.target
    encoding = ModelEncoding(
        target.basis,
        job.fidelity,
        target.analyses(job.device),
        None,
        job.exact_overhead,
        is_member=True,
    )
    checkpoint = job.files[job.task]
    model = encoding.encode(job.task, checkpoint, exact=job.exact)
    is_new = target.put(model)
    result = encoding.result(job.task, model, version=1, read=checkpoint.notices)
    return StoredModel.of(result, model, is_new=is_new)


def put_objects(storage: Storage, prefix: str, objects: Mapping[str, bytes]) -> bool:
    """Store objects in their order, each read back where it existed; tell whether all are new."""
    new = [put_verified(storage, f"{prefix}/{path}", data) for path, data in objects.items()]
    return all(new)


def fidelity_of(basis: Basis) -> Fidelity:
    """What the basis was built for, so that models added later keep the same promise."""
    return Fidelity.parse(option_of(basis, "fidelity")) or DEFAULT_FIDELITY


def option_of(basis: Basis, name: str) -> str:
    """What a basis was told when it was built; empty when it was not."""
    return dict(basis.document.build.options).get(name, "")


def overhead_of(basis: Basis, asked: float | None = None) -> float:
    """By what share an exact model may be larger for a compact tier: as asked, else as the family was built.

    Raises
    ------
    FormatError
        When the basis says something else than a share (``format/document``).
    """
    if asked is not None:
        return asked
    text = option_of(basis, OVERHEAD_OPTION)
    if not text:
        return EXACT_OVERHEAD
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share < math.inf:
        raise FormatError(
            f"basis {basis.digest[:12]} was built with {OVERHEAD_OPTION} {text!r}, which is no share of at least 0; name one: "
            "exact_overhead= (--exact-overhead)",
            kind="format/document",
        )
    return share


def remarks_on_promise(basis: Basis, fidelity: Fidelity, request: ScoringRequest | None) -> tuple[str, ...]:
    """What an added model has to do with the promise its family was built with."""
    if fidelity.kind != "max-drop":
        return ()
    if request is None:
        remark = (
            f"the family promises a drop of at most {fidelity.value:g}: this model has the family's step, and its score "
            "was not measured; give evaluate= (--eval) to measure it"
        )
        return (remark,)
    asked, used = option_of(basis, "search-evaluation"), request.search.identity
    if asked and asked != used:
        return (f"its step was chosen by {used}, the family's by {asked}",)
    return ()
