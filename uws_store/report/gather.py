"""What a report says, gathered from a registry's records; drawn and written elsewhere.

Owns the numbers of the page. Reads the log, the documents of bases and models, and the bases' variance profiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uws_store import layout
from uws_store.basis import Basis
from uws_store.errors import FormatError, Problem, UwsError
from uws_store.fidelity import (
    Examined,
    FamilyScore,
    FamilySide,
    ModelScore,
    SideScore,
    summarise,
    summarise_sides,
)
from uws_store.metadata.basis import BasisDocument
from uws_store.metadata.model import ModelDocument
from uws_store.metadata.verification import ExaminedRecord, VerificationDocument
from uws_store.model import coded_names, exact_bytes, read_document
from uws_store.registry import FamilyState, ModelEntry, Registry, read_verification
from uws_store.report.spectrum import ModeSpectrum, mode_spectrum

__all__ = ["BasisView", "ByteShares", "FamilyView", "ModelView", "VerificationView", "gather"]


@dataclass(frozen=True, slots=True)
class ByteShares:
    """Where bytes go.

    Attributes
    ----------
    basis, core, private, residual, records : int
        Bytes of the bases, of the models' arrays by role, and of their documents.
    source : int
        Bytes of the checkpoints that the models were made from.
    """

    basis: int
    core: int
    private: int
    residual: int
    records: int
    source: int

    @property
    def compact(self) -> int:
        """Everything that the compact tier needs."""
        return self.basis + self.core + self.private + self.records

    @property
    def total(self) -> int:
        """Everything."""
        return self.compact + self.residual


@dataclass(frozen=True, slots=True)
class BasisView:
    """One basis revision.

    Attributes
    ----------
    revision, models, size_bytes : int
        Its number, the models it was made from, its bytes.
    digest, tool, sources : str
        Its name, what built it, the digest over its sources.
    options : tuple of (str, str)
        The build's options.
    left, right : ModeSpectrum or None
        Variance captured along each mode, beside the null.
    """

    revision: int
    models: int
    size_bytes: int
    digest: str
    tool: str
    sources: str
    options: tuple[tuple[str, str], ...]
    left: ModeSpectrum | None
    right: ModeSpectrum | None


@dataclass(frozen=True, slots=True)
class ModelView:
    """The newest version of one task.

    Attributes
    ----------
    task : str
        Its name.
    version, basis_revision, commit, compact_bytes, size_bytes, source_bytes : int
        Numbers.
    exact : bool
        Whether it can be loaded bit-identical.
    bits : float
        Bits per basis-coded parameter of the compact tier, metadata counted, private tensors not.
    rel_error : float
        Of the compact tier.
    errors : tuple of (str, float)
        Relative error of each coded tensor.
    scores : tuple of ModelScore
        On record.
    published, digest, source_sha256 : str
        When, its name, and its checkpoint's.
    """

    task: str
    version: int
    basis_revision: int
    commit: int
    compact_bytes: int
    size_bytes: int
    source_bytes: int
    exact: bool
    bits: float
    rel_error: float
    errors: tuple[tuple[str, float], ...]
    scores: tuple[ModelScore, ...]
    published: str
    digest: str
    source_sha256: str


@dataclass(frozen=True, slots=True)
class VerificationView:
    """The newest record of a verification.

    Attributes
    ----------
    digest : str
        Its name.
    commit : int
        The commit that published it here.
    document : VerificationDocument
        What it says.
    elsewhere : bool
        Whether it tells of another registry, from which it came.
    scores : tuple of FamilySide
        Means over its models, per metric and side.
    unverified : tuple of str
        Tasks whose newest version is not in it.
    """

    digest: str
    commit: int
    document: VerificationDocument
    elsewhere: bool
    scores: tuple[FamilySide, ...]
    unverified: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FamilyView:
    """A family as a report shows it.

    Attributes
    ----------
    name, registry, architecture : str
        The family, where it lies, the digest of its architecture.
    commit : int
        The registry's newest commit when this was read.
    commit_sha256 : str
        Its digest.
    tensors, parameters, coded_parameters : int
        Of the architecture; of the newest basis.
    bytes : ByteShares
        Of the newest versions and all bases they need.
    bases : tuple of BasisView
        By revision.
    models : tuple of ModelView
        By task.
    scores : tuple of FamilyScore
        Means over the models.
    verification : VerificationView or None
        The newest record of a verification.
    problems : tuple of Problem
        What is missing or damaged, and so left out of all the others: records of models, of bases, of that verification.
    """

    name: str
    registry: str
    architecture: str
    commit: int
    commit_sha256: str
    tensors: int
    parameters: int
    coded_parameters: int
    bytes: ByteShares
    bases: tuple[BasisView, ...]
    models: tuple[ModelView, ...]
    scores: tuple[FamilyScore, ...]
    verification: VerificationView | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def bits(self) -> npt.NDArray[np.float64]:
        """float64, (n,): every model's bits per parameter."""
        return np.array([model.bits for model in self.models])


def gather(registry: Registry, family: str) -> FamilyView:
    """Read what a report on a family needs.

    Parameters
    ----------
    registry : Registry
        Where it lies.
    family : str
        The family.

    Raises
    ------
    NotFoundError
        When there is no such family.
    FormatError
        When the log is damaged. What else is damaged or missing is told in the view's problems.
    """
    whole = registry.state()
    state = whole.family(family)
    entries = state.newest()
    bases: dict[str, Basis] = {}
    shown: list[BasisView] = []
    problems: list[Problem] = []
    for number, basis in sorted(state.bases.items()):
        prefix = layout.basis_prefix(family, basis.digest)
        try:
            opened = Basis.open(registry.storage, prefix, digest=basis.digest)
            shown.append(_basis_view(number, basis.size_bytes, opened))
            bases[basis.digest] = opened
        except UwsError as error:
            problems.append(Problem(f"basis r{number}", error.kind, error.message))
    models: list[ModelView] = []
    shares = {"core": 0, "private": 0, "residual": 0, "records": 0, "source": 0}
    for entry in entries:
        try:
            if entry.basis_digest not in bases:
                raise FormatError(f"its basis r{entry.basis_revision} cannot be read", kind="format/basis")
            document = read_document(registry.storage_of(entry), entry.prefix, digest=entry.digest)
            own = _bytes_of(entry, document)
            models.append(_model_view(entry, document, bases[entry.basis_digest], own))
        except UwsError as error:
            problems.append(Problem(f"{entry.task}@{entry.version}", error.kind, error.message))
            continue
        for role, count in own.items():
            shares[role] += count
    verification: VerificationView | None = None
    try:
        verification = _verification(registry, state, entries)
    except UwsError as error:
        path = layout.verification_path(family, state.verifications[-1].digest)
        problems.append(Problem(path, error.kind, error.message))
    newest = next(
        (
            bases[basis.digest]
            for _, basis in sorted(state.bases.items(), reverse=True)
            if basis.digest in bases
        ),
        None,
    )
    table = newest.document.tensors if newest else ()
    return FamilyView(
        name=family,
        registry=registry.url,
        architecture=state.architecture,
        commit=whole.number,
        commit_sha256=whole.sha256 or "",
        tensors=len(table),
        parameters=sum(tensor.numel for tensor in table if tensor.mode != "tied"),
        coded_parameters=newest.coded_parameters if newest else 0,
        bytes=ByteShares(basis=sum(basis.size_bytes for basis in state.bases.values()), **shares),
        bases=tuple(shown),
        models=tuple(models),
        scores=summarise((model.task, score) for model in models for score in model.scores),
        verification=verification,
        problems=tuple(problems),
    )


def _verification(
    registry: Registry, state: FamilyState, entries: list[ModelEntry]
) -> VerificationView | None:
    if not state.verifications:
        return None
    entry = state.verifications[-1]
    document = read_verification(registry.storage, state.name, entry)
    held = {model.digest for model in document.models}
    return VerificationView(
        digest=entry.digest,
        commit=entry.commit,
        document=document,
        elsewhere=document.registry != registry.document.id,
        scores=summarise_sides(
            (model.task, _examined(score, document.evaluation or ""))
            for model in document.models
            for score in model.scores
        ),
        unverified=tuple(entry.task for entry in entries if entry.digest not in held),
    )


def _examined(record: ExaminedRecord, evaluation: str) -> Examined:
    return Examined(
        metric=record.metric,
        evaluation=evaluation,
        higher_is_better=record.higher_is_better,
        n=record.n,
        sides=tuple(SideScore(side.side, side.value, side.drop, side.interval) for side in record.sides),
        max_drop=record.max_drop,
    )


def _bytes_of(entry: ModelEntry, document: ModelDocument) -> dict[str, int]:
    arrays = document.arrays
    residual = exact_bytes(document)
    core = document.core.size_bytes if document.core else 0
    # What is kept byte for byte: private tensors, and the files that lay beside the weights.
    private = sum(
        array.size_bytes for name, array in arrays.items() if name == "files" or name.startswith("private")
    )
    return {
        "core": core,
        "private": private,
        "residual": residual,
        "records": entry.size_bytes - core - private - residual,
        "source": document.source.size_bytes,
    }


def _model_view(entry: ModelEntry, document: ModelDocument, basis: Basis, own: dict[str, int]) -> ModelView:
    coded = coded_names(document, basis)
    return ModelView(
        task=entry.task,
        version=entry.version,
        basis_revision=entry.basis_revision,
        commit=entry.commit,
        compact_bytes=entry.size_bytes - own["residual"],
        size_bytes=entry.size_bytes,
        source_bytes=own["source"],
        exact=entry.exact,
        bits=8 * (own["core"] + own["records"]) / max(1, basis.coded_parameters),
        rel_error=document.rel_error,
        errors=tuple(zip(coded, document.error_list(), strict=True)),
        scores=tuple(ModelScore.of(record) for record in document.scores),
        published=entry.time,
        digest=entry.digest,
        source_sha256=document.source.sha256,
    )


def _basis_view(revision: int, size_bytes: int, basis: Basis) -> BasisView:
    document: BasisDocument = basis.document
    return BasisView(
        revision=revision,
        models=document.build.models,
        size_bytes=size_bytes,
        digest=basis.digest,
        tool=document.build.tool,
        sources=document.build.sources,
        options=document.build.options,
        left=mode_spectrum(basis, "left"),
        right=mode_spectrum(basis, "right"),
    )
