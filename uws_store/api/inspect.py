"""Looking at what a registry holds, without reconstructing anything."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

from uws_store import layout
from uws_store.api.adapters import AdapterSummary, summarise_adapter
from uws_store.api.drift import Growth, growth_of
from uws_store.api.family import Family, open_family
from uws_store.api.generation import revisions_in_use
from uws_store.api.opening import open_registry
from uws_store.api.recording import VerificationSummary, summarise_verification
from uws_store.api.where import parse_condition, select
from uws_store.basis import Basis
from uws_store.errors import NotFoundError, Problem, UwsError
from uws_store.fidelity import ModelScore
from uws_store.metadata.model import ModelDocument
from uws_store.model import coded_names, exact_bytes, read_document
from uws_store.registry import FamilyState, ModelEntry, Registry, TaskState

__all__ = ["FamilySummary", "Lineage", "ModelSummary", "is_model", "list_families", "list_models", "show"]


@dataclass(frozen=True, slots=True)
class FamilySummary:
    """A family in numbers.

    Attributes
    ----------
    name : str
        The family.
    tasks : int
        Tasks that have a version.
    versions : int
        Versions in all.
    basis_revision : int
        The newest.
    basis_bytes, models_bytes : int
        Everything stored: all basis revisions; all versions of all models.
    growth : Growth or None
        How well the newest basis serves newer models; told by :func:`show` alone.
    verification : VerificationSummary or None
        The newest record of a verification; told by :func:`show` alone.
    problems : tuple of Problem
        Records that are missing or damaged, of models and of that verification; told by :func:`show` alone.
    """

    name: str
    tasks: int
    versions: int
    basis_revision: int
    basis_bytes: int
    models_bytes: int
    growth: Growth | None = None
    verification: VerificationSummary | None = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a model comes from.

    Attributes
    ----------
    source_sha256 : str
        Digest of the checkpoint.
    source_metadata : tuple of (str, str)
        What the checkpoint said of itself: licence, base model and the like.
    basis_digest : str
        The basis its numbers are in.
    basis_sources : str
        One digest over all checkpoints that the basis was built from.
    basis_models : int
        How many these are.
    basis_tool, basis_pcodec : str
        What built the basis.
    basis_options : tuple of (str, str)
        The options of that build.
    commit : int
        The commit that published the model.
    aliases : tuple of str
        The aliases that stand for it now.
    """

    source_sha256: str
    source_metadata: tuple[tuple[str, str], ...]
    basis_digest: str
    basis_sources: str
    basis_models: int
    basis_tool: str
    basis_pcodec: str
    basis_options: tuple[tuple[str, str], ...]
    commit: int
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One version of a task.

    Attributes
    ----------
    family, task : str
        Names.
    version, basis_revision : int
        Numbers.
    exact : bool
        Whether it can be loaded bit-identical.
    size_bytes, compact_bytes, private_bytes, file_bytes, source_bytes : int
        All its objects; those of the weights of the compact tier; the private tensors among these; its own side files;
        the weights of the source checkpoint.
    bits_per_parameter : float
        Of the compact tier, metadata counted, private tensors not, over basis-coded parameters.
    rel_error : float
        ``||W - W'|| / ||W||`` over basis-coded weights, from the record.
    worst_tensors : tuple of (str, float)
        The coded tensors with the largest relative errors.
    private_tensors : tuple of str
        Names of what is kept byte for byte.
    side_files : tuple of str
        Names of the files that travel with the weights, such as ``config.json``.
    scores : tuple of ModelScore
        Measured when it was published.
    published : str
        When, by the publisher's clock.
    digest : str
        Its name in the store.
    lineage : Lineage
        Where it comes from.
    adapter : AdapterSummary or None
        For adapters: their base model and ranks.
    """

    family: str
    task: str
    version: int
    basis_revision: int
    exact: bool
    size_bytes: int
    compact_bytes: int
    private_bytes: int
    file_bytes: int
    source_bytes: int
    bits_per_parameter: float
    rel_error: float
    worst_tensors: tuple[tuple[str, float], ...]
    private_tensors: tuple[str, ...]
    side_files: tuple[str, ...]
    scores: tuple[ModelScore, ...]
    published: str
    digest: str
    lineage: Lineage
    adapter: AdapterSummary | None = None


def list_families(*, registry: str | Registry | None = None) -> tuple[FamilySummary, ...]:
    """Summarise every family of a registry, by name."""
    state = open_registry(registry).state()
    return tuple(_summary(state.families[name]) for name in sorted(state.families))


def list_models(
    pattern: str = "*", *, where: Sequence[str] = (), registry: str | Registry | None = None
) -> tuple[ModelEntry, ...]:
    """List the newest version of every task whose ``family/task`` or family matches a shell pattern.

    Parameters
    ----------
    pattern : str
        For example ``"vit*"`` or ``"vit-digits/task-0?"``.
    where : sequence of str
        Conditions on what is recorded, all of which must hold: ``"dtype=F32"``, ``"licence=mit"`` (the source's
        metadata), ``"rel_error<=0.05"``, ``"score.accuracy>=0.9"``; see :class:`uws_store.api.where.Condition`.
        Costs one request per model, or none where the log alone decides.

    Raises
    ------
    InvalidInputError
        A condition cannot be read (``invalid-input/where``).
    """
    conditions = [parse_condition(text) for text in where]
    opened = open_registry(registry)
    state = opened.state()
    found: list[ModelEntry] = []
    for family in sorted(state.families):
        for task in sorted(state.families[family].tasks):
            entry = state.families[family].tasks[task].latest
            if entry is not None and (
                fnmatch.fnmatchcase(family, pattern) or fnmatch.fnmatchcase(f"{family}/{task}", pattern)
            ):
                found.append(entry)
    return tuple(select(opened, found, conditions))


def is_model(family: str, task: str, *, registry: str | Registry | None = None) -> bool:
    """Whether a family has a task (which may be ``task@version``)."""
    try:
        open_family(family, registry=registry).resolve(task)
    except NotFoundError:
        return False
    return True


def show(
    family: str, task: str | None = None, *, registry: str | Registry | None = None
) -> tuple[FamilySummary, tuple[ModelSummary, ...]]:
    """Describe a family and its models, or one of them.

    Parameters
    ----------
    family : str
        The family.
    task : str, optional
        One task, which may be ``task@version``; all tasks' newest versions when absent.

    Returns
    -------
    FamilySummary, tuple of ModelSummary
        Costs one request per model. Of a family, models whose records are missing or damaged are left out and named
        in the summary's problems.

    Raises
    ------
    NotFoundError
        No such registry, family, task or version.
    FormatError
        The record of the one task that was asked for is missing or damaged.
    """
    opened = open_family(family, registry=registry)
    state = opened.registry.state(refresh=False).family(family)
    summary = _summary(state)
    if task is not None:
        entry = opened.resolve(task)
        return summary, (_describe(opened, entry, state.tasks[entry.task]),)
    models: list[tuple[ModelEntry, ModelSummary]] = []
    problems: list[Problem] = []
    for entry in state.newest():
        try:
            models.append((entry, _describe(opened, entry, state.tasks[entry.task])))
        except UwsError as error:
            problems.append(Problem(f"{entry.task}@{entry.version}", error.kind, error.message))
    newest = [entry for entry, _ in models if entry.basis_revision == summary.basis_revision][:1]
    current = [
        revision
        for entry in newest
        for revision in revisions_in_use(state, entry.basis_revision, opened.basis(entry.basis_digest))
    ]
    growth = growth_of(state, [(entry, model.bits_per_parameter) for entry, model in models], current=current)
    verification: VerificationSummary | None = None
    try:
        verification = summarise_verification(opened.registry, state)
    except UwsError as error:
        path = layout.verification_path(family, state.verifications[-1].digest)
        problems.append(Problem(path, error.kind, error.message))
    summary = replace(summary, growth=growth, verification=verification, problems=tuple(problems))
    return summary, tuple(model for _, model in models)


def _describe(family: Family, entry: ModelEntry, task: TaskState) -> ModelSummary:
    """Read a model's record and tell what it says: one request."""
    basis = family.basis(entry.basis_digest)
    document = read_document(family.registry.storage_of(entry), entry.prefix, digest=entry.digest)
    files = layout.stored_bytes(document.file_bytes)
    private = document.private_size_bytes
    compact = entry.size_bytes - exact_bytes(document) - files
    coded = coded_names(document, basis)
    errors = sorted(zip(coded, document.error_list(), strict=True), key=lambda pair: -pair[1])
    return ModelSummary(
        family=family.name,
        task=entry.task,
        version=entry.version,
        basis_revision=entry.basis_revision,
        exact=entry.exact,
        size_bytes=entry.size_bytes,
        compact_bytes=compact,
        private_bytes=private,
        file_bytes=files,
        source_bytes=document.source.size_bytes,
        bits_per_parameter=8 * (compact - private) / max(1, basis.coded_parameters),
        rel_error=document.rel_error,
        worst_tensors=tuple(errors[:3]),
        private_tensors=tuple(record.name for record in document.private),
        side_files=tuple(sorted((*document.shared_files, *(record.name for record in document.files)))),
        scores=tuple(ModelScore.of(record) for record in document.scores),
        published=entry.time,
        digest=entry.digest,
        lineage=_lineage(entry, document, basis, task),
        adapter=summarise_adapter(document, basis),
    )


def _lineage(entry: ModelEntry, document: ModelDocument, basis: Basis, task: TaskState) -> Lineage:
    build = basis.document.build
    return Lineage(
        source_sha256=document.source.sha256,
        source_metadata=document.source.metadata,
        basis_digest=entry.basis_digest,
        basis_sources=build.sources,
        basis_models=build.models,
        basis_tool=build.tool,
        basis_pcodec=build.pcodec,
        basis_options=build.options,
        commit=entry.commit,
        aliases=tuple(sorted(alias for alias, version in task.aliases.items() if version == entry.version)),
    )


def _summary(state: FamilyState) -> FamilySummary:
    latest = state.latest_basis
    entries = list(state.models())
    # Versions with the same content share their objects.
    distinct = {entry.digest: entry.size_bytes for entry in entries}
    return FamilySummary(
        name=state.name,
        tasks=sum(bool(task.versions) for task in state.tasks.values()),
        versions=len(entries),
        basis_revision=latest.revision if latest else 0,
        basis_bytes=sum(basis.size_bytes for basis in state.bases.values()),
        models_bytes=sum(distinct.values()),
    )
