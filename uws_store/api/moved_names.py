"""What the names of a family in one registry become in another, and the commits that say so.

Owns versions, revisions and aliases on their way. Must not know how objects are brought over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from uws_store.errors import IncompatibleError
from uws_store.metadata.log import (
    Action,
    AliasAction,
    BasisAction,
    DeleteAction,
    FamilyAction,
    ModelAction,
    PackPlace,
    VerificationAction,
)
from uws_store.registry import (
    FamilyState,
    ModelEntry,
    Registry,
    RegistryState,
    TaskState,
    VerificationEntry,
)

__all__ = ["MovedNames", "newer_records", "publish_names", "require_same_architecture"]

_MOST_ACTIONS = 4000


@dataclass(slots=True)
class MovedNames:
    """What the names of the source become in the target.

    Attributes
    ----------
    actions : list of Action
        What is to be committed.
    versions : list of (str, int, int)
        Task, version in the source, version in the target.
    published : int
        How many of them are new there.
    kept_aliases : list of str
        Aliases (``task@alias``) that were left as they are.
    places : Mapping of str to PackPlace or None
        Where each model lies in the target, by its digest.
    """

    actions: list[Action] = field(default_factory=list)
    versions: list[tuple[str, int, int]] = field(default_factory=list)
    published: int = 0
    kept_aliases: list[str] = field(default_factory=list)
    places: Mapping[str, PackPlace | None] = field(default_factory=dict)


def require_same_architecture(here: FamilyState, there: RegistryState, family: str) -> None:
    """Refuse a target that has a family of this name and another architecture."""
    other = there.families.get(family)
    if other is not None and other.architecture != here.architecture:
        raise IncompatibleError(
            f"the target has a family {family!r} of another architecture; names of families are not changed in moving",
            kind="incompatible/architecture",
        )


def newer_records(here: FamilyState, state: RegistryState) -> tuple[VerificationEntry, ...]:
    """The verifications that came after the newest one that both registries have."""
    there = state.families.get(here.name)
    held = {entry.digest for entry in there.verifications} if there else set()
    shared = [index for index, entry in enumerate(here.verifications) if entry.digest in held]
    return here.verifications[shared[-1] + 1 :] if shared else here.verifications


def publish_names(
    target: Registry,
    here: FamilyState,
    entries: Sequence[ModelEntry],
    *,
    places: Mapping[str, PackPlace | None],
    whole: bool,
    move_aliases: bool,
    beside: Callable[[RegistryState], Mapping[str, bytes]] | None,
) -> tuple[MovedNames, tuple[int, ...]]:
    """Let the names follow the objects, in as few commits as they fit into.

    Parameters
    ----------
    target : Registry
        Where the objects are by now.
    here : FamilyState
        The family in the source.
    entries : sequence of ModelEntry
        The versions that were moved.
    places : Mapping of str to PackPlace or None
        Where each model lies in the target, by its digest; None for a folder.
    whole : bool
        Whether these are all: aliases and records of verifications go along.
    move_aliases : bool
        Let aliases that are there stand for what they stand for in the source.
    beside : callable or None
        Other objects of the commit; see :meth:`Registry.publish`.

    Returns
    -------
    names : MovedNames
        What the names have become.
    commits : tuple of int
        The commits that were made; none when there was nothing to say.
    """
    commits: list[int] = []
    first: MovedNames | None = None
    while True:
        made: list[MovedNames] = []

        def actions(state: RegistryState, made: list[MovedNames] = made) -> Sequence[Action]:
            require_same_architecture(here, state, here.name)
            made.append(MovedNames(places=places))
            _translate(made[-1], here, entries, state, aliases=whole, move_aliases=move_aliases)
            if whole:
                made[-1].actions += [
                    VerificationAction(
                        family=here.name, digest=entry.digest, size_bytes=entry.size_bytes, ok=entry.ok
                    )
                    for entry in newer_records(here, state)
                ]
            return made[-1].actions[: _cut(made[-1].actions)]

        if actions(target.state()):
            commits.append(target.publish(actions, beside=beside).number)
        first = first or made[-1]
        if _cut(made[-1].actions) == len(made[-1].actions):
            return first, tuple(commits)


def _cut(actions: Sequence[Action]) -> int:
    """How many actions go into the next commit: whole tasks, about as many as fit."""
    cut = min(_MOST_ACTIONS, len(actions))
    while 0 < cut < len(actions) and _task_of(actions[cut]) == _task_of(actions[cut - 1]):
        cut += 1
    return cut


def _task_of(action: Action) -> str | None:
    return None if isinstance(action, FamilyAction | BasisAction | VerificationAction) else action.task


def _translate(
    names: MovedNames,
    here: FamilyState,
    entries: Sequence[ModelEntry],
    state: RegistryState,
    *,
    aliases: bool,
    move_aliases: bool,
) -> None:
    """Say in the target's numbers what the source's names say."""
    there = state.families.get(here.name)
    revisions = {basis.digest: revision for revision, basis in there.bases.items()} if there else {}
    if there is None:
        names.actions.append(FamilyAction(family=here.name, architecture=here.architecture))
    used = {entry.basis_digest for entry in entries}
    for basis in here.bases.values():
        if basis.digest not in revisions and (there is None or basis.digest in used):
            # Also a digest that stands twice in the source: each number keeps its place.
            number = (max(there.bases, default=0) if there else 0) + 1 + _added(names)
            revisions[basis.digest] = number
            names.actions.append(
                BasisAction(
                    family=here.name, revision=number, digest=basis.digest, size_bytes=basis.size_bytes
                )
            )
    by_task: dict[str, list[ModelEntry]] = {}
    for entry in entries:
        by_task.setdefault(entry.task, []).append(entry)
    for task, wanted in by_task.items():
        held = there.tasks.get(task) if there else None
        numbers = _versions(names, wanted, held, revisions)
        if aliases:
            _aliases(names, here.tasks[task], held, numbers, move=move_aliases)


def _added(names: MovedNames) -> int:
    return sum(isinstance(action, BasisAction) for action in names.actions)


def _versions(
    names: MovedNames, wanted: Sequence[ModelEntry], held: TaskState | None, revisions: Mapping[str, int]
) -> dict[int, int]:
    """Give each version of a task its number in the target, and publish those that are not there."""
    live = {entry.digest: version for version, entry in sorted(held.versions.items())} if held else {}
    last = held.last_version if held else 0
    numbers: dict[int, int] = {}
    for entry in wanted:
        number = live.get(entry.digest)
        if number is None or (held is None and number != entry.version):
            # In a new task numbers stay: those between are used up, published and withdrawn at once.
            skipped = range(last + 1, entry.version) if held is None else ()
            number = entry.version if held is None else last + 1
            for version in (*skipped, number):
                names.actions.append(
                    ModelAction(
                        family=entry.family,
                        task=entry.task,
                        version=version,
                        basis_revision=revisions[entry.basis_digest],
                        digest=entry.digest,
                        size_bytes=entry.size_bytes,
                        exact=entry.exact,
                        pack=names.places[entry.digest],
                    )
                )
            names.actions += [
                DeleteAction(family=entry.family, task=entry.task, version=version) for version in skipped
            ]
            last = number
            live[entry.digest] = number
            names.published += 1
        numbers[entry.version] = number
        names.versions.append((entry.task, entry.version, number))
    return numbers


def _aliases(
    names: MovedNames, here: TaskState, held: TaskState | None, numbers: Mapping[int, int], *, move: bool
) -> None:
    present = held.aliases if held else {}
    for alias, version in sorted(here.aliases.items()):
        number = numbers.get(version)
        if number is None or present.get(alias) == number:
            continue
        if alias in present and not move:
            names.kept_aliases.append(f"{here.name}@{alias}")
            continue
        family = next(iter(here.versions.values())).family
        names.actions.append(AliasAction(family=family, task=here.name, alias=alias, version=number))
