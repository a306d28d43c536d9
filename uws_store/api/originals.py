"""Finding the originals of stored models: in a zoo on a disk or behind a URL, or the one checkpoint of a task.

Must not know what they are compared for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from uws_store.checkpoint import (
    SAFETENSORS_SUFFIX,
    Checkpoint,
    Renaming,
    is_url,
    open_checkpoint,
    scan_zoo,
)
from uws_store.errors import InvalidInputError, NotFoundError

__all__ = ["open_originals"]

# What libraries call the weights of the one model of a folder or a repository.
_NO_TASKS = frozenset({"model", "adapter_model", "pytorch_model"})


def open_originals(
    against: str | Path,
    tasks: Sequence[str],
    stack: ExitStack,
    *,
    storage_options: Mapping[str, object] | None = None,
    renaming: Renaming | None = None,
) -> Mapping[str, Checkpoint]:
    """Open the originals of the tasks that have one.

    Parameters
    ----------
    against : str or Path
        A zoo, as a folder, a manifest or a URL; for one task also its checkpoint: a file, a folder, an object or a
        repository of the Hub.
    tasks : sequence of str
        Of whom; at least one.
    stack : ExitStack
        Closes them.
    storage_options : Mapping of str to object, optional
        For the storages of URLs.
    renaming : Renaming, optional
        The names that the family knows their tensors by.

    Raises
    ------
    NotFoundError
        When none of the tasks has one: these are not the originals (``not-found/original``).
    UwsError
        As of :func:`uws_store.checkpoint.scan_zoo` and :func:`uws_store.checkpoint.open_checkpoint`.
    """
    found = {
        task: stack.enter_context(open_checkpoint(place, storage_options=storage_options))
        for task, place in _places(against, tasks, storage_options).items()
    }
    if not found:
        raise NotFoundError(
            f"{against} has no checkpoint of any of the {len(tasks)} tasks, such as {tasks[0]!r}; name the zoo that the "
            "family was built from",
            kind="not-found/original",
        )
    if renaming is None:
        return found
    known = {task: renaming.apply(task, checkpoint) for task, checkpoint in found.items()}
    renaming.require_used(known)
    return known


def _places(
    against: str | Path, tasks: Sequence[str], storage_options: Mapping[str, object] | None
) -> dict[str, str | Path]:
    alone = tasks[0] if len(tasks) == 1 else None
    if alone is not None and _is_one_file(against):
        return {alone: against}
    try:
        members = {member.task: member.place for member in scan_zoo(against, storage_options=storage_options)}
    except InvalidInputError as error:
        if alone is None or error.kind != "invalid-input/one-model":
            raise
        return {alone: against}
    if alone is not None and alone not in members and len(members) == 1 and set(members) <= _NO_TASKS:
        return {alone: against}
    return {task: members[task] for task in tasks if task in members}


def _is_one_file(place: str | Path) -> bool:
    if is_url(place):
        return str(place).endswith(SAFETENSORS_SUFFIX)
    path = Path(place)
    return path.is_file() and path.suffix != ".json"
