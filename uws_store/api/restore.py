"""Getting models back out: verification and export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from uws_store import layout
from uws_store.api.family import open_family
from uws_store.checkpoint import Checkpoint, open_checkpoint, scan_zoo, write_safetensors
from uws_store.errors import NotFoundError, Problem, UwsError
from uws_store.model import Tier
from uws_store.registry import ModelEntry, Registry
from uws_store.verifier import ModelReport, verify_basis, verify_model

__all__ = ["ExportResult", "ModelVerdict", "VerifyResult", "export", "verify"]


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """What verification found of one model.

    Attributes
    ----------
    task : str
        Its name.
    version : int
        Its version.
    report : ModelReport
        The findings.
    safe_to_delete : bool
        Whether the original was given and the exact tier was found bit-identical to all of it.
    """

    task: str
    version: int
    report: ModelReport
    safe_to_delete: bool


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What verification found of a family.

    Attributes
    ----------
    family : str
        Its name.
    basis_objects : int
        Objects of its bases that were digested.
    models : tuple of ModelVerdict
        By task.
    problems : tuple of Problem
        What is wrong outside any one model.
    not_compared : tuple of str
        With originals given: tasks that have none there, such as models that were added later.
    """

    family: str
    basis_objects: int
    models: tuple[ModelVerdict, ...]
    problems: tuple[Problem, ...]
    not_compared: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems and all(model.report.ok for model in self.models)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A checkpoint that was written.

    Attributes
    ----------
    family, task, tier, path : str
        What, and where to.
    version, tensors, size_bytes : int
        Numbers.
    """

    family: str
    task: str
    version: int
    tier: str
    path: str
    tensors: int
    size_bytes: int


def verify(
    family: str,
    task: str | None = None,
    *,
    registry: str | Registry | None = None,
    against: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> VerifyResult:
    """Check a family, or one task: every object, every reconstructed tensor, and the originals where given.

    Parameters
    ----------
    family : str
        The family.
    task : str, optional
        One task (``task@version`` too); the newest version of every task when absent.
    registry : str or Registry, optional
        Where it lies.
    against : str or Path, optional
        The zoo of originals, or for one task its checkpoint.
    progress : callable, optional
        See :func:`uws_store.build`.

    Returns
    -------
    VerifyResult
        Damage is reported in it, not raised.

    Raises
    ------
    NotFoundError
        When there is no such registry, family or task.
    """
    opened = open_family(family, registry=registry)
    state = opened.registry.state().family(family)
    storage = opened.registry.storage
    entries = (
        [opened.resolve(task)]
        if task is not None
        else [latest for name in opened.tasks() if (latest := state.tasks[name].latest) is not None]
    )
    problems: list[Problem] = []
    verdicts: list[ModelVerdict] = []
    basis_objects = 0
    damaged: set[str] = set()
    for digest in sorted({entry.basis_digest for entry in entries}):
        prefix = layout.basis_prefix(family, digest)
        try:
            count, found = verify_basis(opened.basis(digest), storage=storage, prefix=prefix)
        except UwsError as error:
            count, found = 0, (Problem(prefix, error.kind, error.message),)
        basis_objects += count
        problems += found
        if found:
            damaged.add(digest)
    with ExitStack() as stack:
        originals = _originals(against, entries, stack)
        for index, entry in enumerate(entries):
            prefix = layout.model_prefix(family, entry.digest)
            if entry.basis_digest in damaged:
                report = _failed(Problem(prefix, "format/basis", "its basis is damaged"))
            else:
                try:
                    model = opened.model(entry)
                    report = verify_model(
                        model, storage=storage, prefix=prefix, against=originals.get(entry.task)
                    )
                except UwsError as error:
                    report = _failed(Problem(prefix, error.kind, error.message))
            comparison = report.comparison
            safe = report.ok and comparison is not None and comparison.identical is not None
            verdicts.append(ModelVerdict(entry.task, entry.version, report, safe))
            if progress is not None:
                progress("verifying", index + 1, len(entries))
    uncompared = (
        [entry.task for entry in entries if entry.task not in originals] if against is not None else []
    )
    return VerifyResult(family, basis_objects, tuple(verdicts), tuple(problems), tuple(uncompared))


def _failed(problem: Problem) -> ModelReport:
    return ModelReport(0, 0, (), 0.0, None, (problem,))


def _originals(
    against: str | Path | None, entries: list[ModelEntry], stack: ExitStack
) -> Mapping[str, Checkpoint]:
    """Open the originals of the tasks that have one.

    Raises
    ------
    NotFoundError
        When none of the tasks has one: these are not the originals (``not-found/original``).
    """
    if against is None:
        return {}
    path = Path(against)
    if len(entries) == 1 and path.is_file() and path.suffix != ".json":
        return {entries[0].task: stack.enter_context(open_checkpoint(path))}
    members = {member.task: member for member in scan_zoo(path)}
    found = {
        entry.task: stack.enter_context(open_checkpoint(members[entry.task].path))
        for entry in entries
        if entry.task in members
    }
    if not found:
        raise NotFoundError(
            f"{path} has no checkpoint of any of the {len(entries)} tasks, such as {entries[0].task!r}; name the zoo "
            "that the family was built from",
            kind="not-found/original",
        )
    return found


def file_name_of(task: str) -> str:
    """Name a file after a task, another for every task: a slash is written as ``%2F``, a percent sign as ``%25``."""
    return task.replace("%", "%25").replace("/", "%2F") + ".safetensors"


def export(
    family: str,
    task: str,
    output: str | Path,
    *,
    registry: str | Registry | None = None,
    revision: int | str | None = None,
    tier: Tier = "compact",
    overwrite: bool = False,
) -> ExportResult:
    """Write a model as a safetensors file.

    Parameters
    ----------
    family, task : str
        Which model.
    output : str or Path
        The file to write, or an existing folder, in which it is named after the task.
    registry, revision, tier
        As in :func:`uws_store.load_model`; every tensor is checked against its digest.
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    AlreadyExistsError
        When the file exists and ``overwrite`` is false.
    UwsError
        As in :func:`uws_store.load_model`; nothing is left at ``output`` then.
    """
    weights = open_family(family, registry=registry).load(task, revision=revision, tier=tier)
    path = Path(output)
    if path.is_dir():
        path = path / file_name_of(weights.task)
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent} is no folder; make it first", kind="not-found/folder")
    tensors = weights.materialize()
    # transformers asks for the framework; everything else is the original's own.
    metadata = {"format": "pt"} | dict(weights.model.document.source.metadata)
    write_safetensors(path, tensors, metadata, overwrite=overwrite)
    return ExportResult(
        family=family,
        task=weights.task,
        version=weights.version,
        tier=tier,
        path=str(path),
        tensors=len(tensors),
        size_bytes=path.stat().st_size,
    )
