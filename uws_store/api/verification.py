"""Verification: what is stored is checked, compared with the originals, and scored where an evaluation is named.

Joins the verifier, which looks at bytes and weights, with the evaluations. Changes nothing, but for the record of what was
found where one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from uws_store import layout
from uws_store.api.cache import at_source
from uws_store.api.examiners import find_examiner
from uws_store.api.family import Family, open_family
from uws_store.api.judging import Judging, all_verdicts
from uws_store.api.opening import open_registry
from uws_store.api.originals import open_originals
from uws_store.api.recording import publish_record, signer
from uws_store.api.verdicts import ModelVerdict, VerifyResult
from uws_store.checkpoint import Checkpoint, Renaming
from uws_store.errors import InvalidInputError, Problem, UwsError
from uws_store.fidelity import (
    EvaluationFunction,
    ModuleFactory,
    summarise_sides,
)
from uws_store.registry import FamilyState, Registry, read_verification
from uws_store.verifier import verify_basis

__all__ = ["ModelVerdict", "VerifyResult", "verify"]

_MOST_WORKERS = 256


def verify(
    family: str,
    task: str | None = None,
    *,
    registry: str | Registry | None = None,
    against: str | Path | None = None,
    rename: str | Path | Mapping[str, object] | None = None,
    zoo_options: Mapping[str, object] | None = None,
    evaluate: str | EvaluationFunction | None = None,
    data: str | Path | None = None,
    module: str | ModuleFactory | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    workers: int = 1,
    record: bool = False,
    signed_off_by: str | None = None,
    log: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> VerifyResult:
    """Check a family, or one task: every object, every reconstructed tensor, the originals and scores where asked.

    Parameters
    ----------
    family : str
        The family.
    task : str, optional
        One task (``task@version`` too); the newest version of every task when absent.
    registry : str or Registry, optional
        Where it lies.
    against : str or Path, optional
        The zoo of originals: a folder, a manifest or a URL; or for one task its checkpoint.
    rename : str, Path or Mapping, optional
        With ``against``: the map of names that the family was built with, or the model added; see :func:`uws_store.build`.
    zoo_options : Mapping of str to object, optional
        With ``against``: what the storages of its URLs are opened with, as :func:`uws_store.build` takes it.
    evaluate : str or callable, optional
        Score every model: ``package.module:function`` or ``file.py:function`` as in :func:`uws_store.build`, or a
        built-in evaluation, ``accuracy`` or ``logits``. Compared are the original (from ``against``, else from the exact
        tier), the compact tier, the zoo's mean alone, and the weights quantised without a basis to as many bits.
    data : str or Path, optional
        Examples for a built-in evaluation: a ``.safetensors`` or ``.npz`` file, or a folder with one per task.
        ``logits`` draws random inputs where there are none.
    module : str or callable, optional
        For a built-in evaluation: a function from a task to its ``torch.nn.Module``, or its name; by default the module
        is made from the configuration that was stored with the model.
    metric, higher_is_better
        For evaluations that return a plain mapping of numbers.
    workers : int
        Models that are checked at a time, in threads. Evaluations run one at a time.
    record : bool
        Publish what was found as a record of the family, whatever it is: see :func:`uws_store.api.show`.
    signed_off_by : str, optional
        With ``record``: who stands for it, such as a name and an address.
    log : bool
        Also read the registry's log from its first commit, and hold every snapshot to what the commits say: one request
        for each of these.
    progress : callable, optional
        See :func:`uws_store.build`.

    Returns
    -------
    VerifyResult
        Damage and broken promises are reported in it, not raised.

    Raises
    ------
    NotFoundError
        When there is no such registry, family, task, original, evaluation or data.
    InvalidInputError
        When the options do not go together, or the evaluation fails.
    StorageError
        With ``record``, when the registry cannot be published to; found out before anything is verified where it can be.
    """
    signed_off_by = signer(signed_off_by, record=record)
    renaming = Renaming.of(rename)
    if renaming is not None and against is None:
        raise InvalidInputError(
            "a map of names is for originals; name them: against= (--against)", kind="invalid-input/rename"
        )
    if zoo_options and against is None:
        raise InvalidInputError(
            "options of a zoo's storage are for originals; name them: against= (--against)",
            kind="invalid-input/storage-option",
        )
    if not 1 <= workers <= _MOST_WORKERS:
        raise InvalidInputError(
            f"workers is from 1 to {_MOST_WORKERS}, not {workers}", kind="invalid-input/workers"
        )
    opened = open_family(family, registry=at_source(open_registry(registry)))
    if record:
        opened.registry.require_exclusive()
    examiner = find_examiner(
        opened, evaluate, data=data, module=module, metric=metric, higher_is_better=higher_is_better
    )
    as_of = opened.registry.state()
    state = as_of.family(family)
    damage = opened.registry.audit() if log else ()
    entries = [opened.resolve(task)] if task is not None else state.newest()
    basis_objects, problems, damaged = _check_bases(opened, {entry.basis_digest for entry in entries})
    with ExitStack() as stack:
        originals: Mapping[str, Checkpoint] = {}
        if against is not None:
            originals = open_originals(
                against,
                [entry.task for entry in entries],
                stack,
                storage_options=zoo_options,
                renaming=renaming,
            )
        work = Judging(opened, originals, examiner, damaged)
        verdicts = all_verdicts(work, entries, workers=workers, progress=progress)
    uncompared = (
        [entry.task for entry in entries if entry.task not in originals] if against is not None else []
    )
    result = VerifyResult(
        family=family,
        basis_objects=basis_objects,
        models=tuple(verdicts),
        problems=damage + problems + _check_records(opened.registry, state),
        not_compared=tuple(uncompared),
        evaluation=examiner.identity if examiner else None,
        scores=summarise_sides((verdict.task, one) for verdict in verdicts for one in verdict.scores),
        commits=as_of.number if log else None,
    )
    if not record:
        return result
    digest = publish_record(
        opened.registry, result, as_of=as_of, compared=against is not None, signed_off_by=signed_off_by
    )
    return replace(result, record=digest)


def _check_records(registry: Registry, family: FamilyState) -> tuple[Problem, ...]:
    """Read the records of earlier verifications."""
    problems: list[Problem] = []
    for entry in family.verifications:
        try:
            read_verification(registry.storage, family.name, entry)
        except UwsError as error:
            path = layout.verification_path(family.name, entry.digest)
            problems.append(Problem(path, error.kind, error.message))
    return tuple(problems)


def _check_bases(opened: Family, digests: Iterable[str]) -> tuple[int, tuple[Problem, ...], frozenset[str]]:
    """Check every basis once: objects read, problems, and the digests of the damaged ones."""
    objects = 0
    problems: list[Problem] = []
    damaged: set[str] = set()
    for digest in sorted(digests):
        prefix = layout.basis_prefix(opened.name, digest)
        try:
            count, found = verify_basis(opened.basis(digest), storage=opened.registry.storage, prefix=prefix)
        except UwsError as error:
            count, found = 0, (Problem(prefix, error.kind, error.message),)
        objects += count
        problems += found
        if found:
            damaged.add(digest)
    return objects, tuple(problems), frozenset(damaged)
