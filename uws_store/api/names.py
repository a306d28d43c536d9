"""Names and versions: aliases, withdrawals, and the history that says who did what.

Each change is one commit of the registry; no object is removed here (that is the work of garbage collection).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uws_store.api.family import resolve_in
from uws_store.api.opening import open_registry
from uws_store.errors import InvalidInputError, NotFoundError
from uws_store.metadata.log import (
    Action,
    AliasAction,
    BasisAction,
    DeleteAction,
    FamilyAction,
    ModelAction,
    VerificationAction,
)
from uws_store.registry import Registry, RegistryState, TaskState, split_task

__all__ = ["AliasResult", "DeleteResult", "LogEntry", "delete", "history", "remove_alias", "set_alias"]


@dataclass(frozen=True, slots=True)
class AliasResult:
    """An alias that was set, moved or removed.

    Attributes
    ----------
    family, task, alias : str
        Names.
    version : int or None
        What it stands for now; None when it was removed.
    before : int or None
        What it stood for; None when it is new.
    commit : int or None
        The commit that did it; None when it stood for that version already.
    """

    family: str
    task: str
    alias: str
    version: int | None
    before: int | None
    commit: int | None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """Versions that were withdrawn.

    Attributes
    ----------
    family, task : str
        Names.
    versions : tuple of int
        The versions, ascending.
    aliases : tuple of str
        The aliases that were removed with them.
    commit : int
        The commit that did it.
    """

    family: str
    task: str
    versions: tuple[int, ...]
    aliases: tuple[str, ...]
    commit: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One commit.

    Attributes
    ----------
    number : int
        Its number.
    sha256 : str
        Digest of its bytes.
    time, tool : str
        When, by the writer's clock, and with what.
    changes : tuple of str
        What it did, in words.
    """

    number: int
    sha256: str
    time: str
    tool: str
    changes: tuple[str, ...]


def set_alias(family: str, task: str, alias: str, *, registry: str | Registry | None = None) -> AliasResult:
    """Let an alias stand for a version, whatever it stood for before.

    Parameters
    ----------
    family : str
        The family.
    task : str
        The task, which may be ``task@3`` or ``task@other-alias``; the newest version when it is bare.
    alias : str
        A letter, then letters, digits and ``._-``, 64 at most.
    registry : str or Registry, optional
        URL or path; by default ``UWS_STORE_REGISTRY``, else the user's data folder.

    Raises
    ------
    NotFoundError
        No such registry, family, task or version.
    InvalidInputError
        The alias cannot be a name (``invalid-input/action``).
    """
    opened = open_registry(registry)
    seen: dict[str, int | None] = {}

    def actions(state: RegistryState) -> Sequence[Action]:
        entry = resolve_in(state, family, task, revision=None)
        seen["before"] = state.family(family).tasks[entry.task].aliases.get(alias)
        return [AliasAction(family=family, task=entry.task, alias=alias, version=entry.version)]

    now = resolve_in(opened.state(), family, task, revision=None)
    held = opened.state(refresh=False).family(family).tasks[now.task].aliases.get(alias)
    if held == now.version:
        return AliasResult(family, now.task, alias, version=now.version, before=held, commit=None)
    commit = opened.publish(actions)
    done = commit.actions[0]
    assert isinstance(done, AliasAction)
    return AliasResult(
        family, done.task, alias, version=done.version, before=seen["before"], commit=commit.number
    )


def remove_alias(
    family: str, task: str, alias: str, *, registry: str | Registry | None = None
) -> AliasResult:
    """Remove an alias; the version it stood for stays.

    Raises
    ------
    NotFoundError
        No such registry, family, task or alias.
    """
    opened = open_registry(registry)
    seen: dict[str, int] = {}

    def actions(state: RegistryState) -> Sequence[Action]:
        held = _task(state, family, task)
        if alias not in held.aliases:
            raise NotFoundError(
                f"task {task!r} of family {family!r} has no alias {alias!r}; it has "
                f"{', '.join(sorted(held.aliases)) or 'none'}",
                kind="not-found/version",
            )
        seen["before"] = held.aliases[alias]
        return [AliasAction(family=family, task=held.name, alias=alias)]

    commit = opened.publish(actions)
    return AliasResult(family, task, alias, version=None, before=seen["before"], commit=commit.number)


def delete(
    family: str, task: str, *, with_aliases: bool = False, registry: str | Registry | None = None
) -> DeleteResult:
    """Withdraw a version, or all versions of a task, by an entry in the log.

    Their numbers are never used again. Their objects stay until garbage collection, so a reader that has resolved
    a version finishes its work.

    Parameters
    ----------
    family : str
        The family.
    task : str
        ``task@3`` (or ``task@alias``) for one version, ``task`` for all of them.
    with_aliases : bool
        Remove aliases that stand for them; without it they are refused.
    registry : str or Registry, optional
        See :func:`set_alias`.

    Raises
    ------
    NotFoundError
        No such registry, family, task or version.
    InvalidInputError
        An alias stands for a version (``invalid-input/aliased``).
    """
    opened = open_registry(registry)
    name, revision = split_task(task)

    def actions(state: RegistryState) -> Sequence[Action]:
        if revision is None:
            held = _task(state, family, name)
            versions = sorted(held.versions)
            if not versions:
                raise NotFoundError(
                    f"all versions of task {name!r} of family {family!r} are withdrawn already",
                    kind="not-found/version",
                )
        else:
            entry = state.resolve(family, name, revision=revision)
            held, versions = _task(state, family, name), [entry.version]
        holding = sorted(alias for alias, version in held.aliases.items() if version in versions)
        if holding and not with_aliases:
            shown = ", ".join(f"{alias} ({held.aliases[alias]})" for alias in holding)
            raise InvalidInputError(
                f"aliases stand for what is to be withdrawn of {family}/{name}: {shown}; move them, or remove them with "
                "it by --with-aliases",
                kind="invalid-input/aliased",
            )
        return [
            *(AliasAction(family=family, task=held.name, alias=alias) for alias in holding),
            *(DeleteAction(family=family, task=held.name, version=version) for version in versions),
        ]

    commit = opened.publish(actions)
    done = [action for action in commit.actions if isinstance(action, DeleteAction)]
    return DeleteResult(
        family=family,
        task=done[0].task,
        versions=tuple(action.version for action in done),
        aliases=tuple(action.alias for action in commit.actions if isinstance(action, AliasAction)),
        commit=commit.number,
    )


def history(
    family: str | None = None,
    task: str | None = None,
    *,
    limit: int | None = None,
    registry: str | Registry | None = None,
) -> Iterator[LogEntry]:
    """Tell the commits, newest first; one request for each.

    Parameters
    ----------
    family, task : str, optional
        Only commits that concern them, and of these only what concerns them.
    limit : int, optional
        At most so many entries.
    registry : str or Registry, optional
        See :func:`set_alias`.

    Raises
    ------
    NotFoundError
        No such registry, family or task.
    FormatError
        A commit is damaged or does not fit the one after it.
    """
    opened = open_registry(registry)
    if family is not None:
        held = opened.state().family(family)
        if task is not None:
            _task(opened.state(refresh=False), held.name, task)
    given = 0
    for commit, sha256 in opened.history():
        if limit is not None and given >= limit:
            return
        concerned = [
            action
            for action in commit.actions
            if (family is None or action.family == family)
            and (task is None or getattr(action, "task", None) == task)
        ]
        if concerned:
            given += 1
            yield LogEntry(
                number=commit.number,
                sha256=sha256,
                time=commit.time,
                tool=commit.tool,
                changes=tuple(_in_words(action) for action in concerned),
            )


def _task(state: RegistryState, family: str, task: str) -> TaskState:
    held = state.family(family).tasks.get(task)
    if held is None:
        state.resolve(family, task)  # says so, with the names that are near
        raise AssertionError("unreachable")
    return held


def _in_words(action: Action) -> str:
    match action:
        case FamilyAction():
            return f"{action.family}: family begins"
        case BasisAction():
            return f"{action.family}: basis revision {action.revision}"
        case ModelAction():
            return f"{action.family}/{action.task}@{action.version} published"
        case AliasAction(version=None):
            return f"{action.family}/{action.task}: alias {action.alias} removed"
        case AliasAction():
            return f"{action.family}/{action.task}: alias {action.alias} is {action.version}"
        case DeleteAction():
            return f"{action.family}/{action.task}@{action.version} withdrawn"
        case VerificationAction():
            return f"{action.family}: verified, {'all as recorded' if action.ok else 'PROBLEMS FOUND'}"
