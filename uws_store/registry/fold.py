"""From commits to a state: the rules by which each action follows from the ones before it.

Publishing and reading apply the same rules, here: what a publisher may write is what a reader accepts. Must not
know where the log is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, assert_never

from uws_store.errors import AlreadyExistsError, FormatError, InvalidInputError, NotFoundError, UwsError
from uws_store.metadata.log import (
    KEPT_VERIFICATIONS,
    Action,
    AliasAction,
    BasisAction,
    DeleteAction,
    FamilyAction,
    ModelAction,
    VerificationAction,
)
from uws_store.names import collision_key
from uws_store.registry.slots import Families, FamilySlot
from uws_store.registry.state import (
    BasisEntry,
    FamilyState,
    ModelEntry,
    RegistryState,
    TaskState,
    VerificationEntry,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Draft"]

_Waiting = tuple[Action, int, str]


@dataclass(slots=True)
class _FamilyDraft:
    """A family that is being changed: its own copies, made once however many actions follow."""

    name: str
    architecture: str
    bases: dict[int, BasisEntry]
    tasks: dict[str, TaskState]
    taken: dict[str, str]
    verifications: tuple[VerificationEntry, ...] = ()

    def freeze(self) -> FamilyState:
        return FamilyState(
            name=self.name,
            architecture=self.architecture,
            bases=_frozen(self.bases),
            tasks=_frozen(self.tasks),
            taken=_frozen(self.taken),
            verifications=self.verifications,
        )


class Draft:
    """A state in the making.

    Folding costs time in proportion to the actions and to the families they touch, not to the registry.

    Parameters
    ----------
    base : RegistryState
        The state to start from; it stays as it is.
    lazily : bool
        Let what concerns a family that was not read wait until it is: a broken rule is then found when that family is
        asked for.
    """

    def __init__(self, base: RegistryState, *, lazily: bool = False) -> None:
        self._base = base
        self._taken = dict(base.taken)
        self._changed: dict[str, _FamilyDraft] = {}
        self._lazily = lazily
        self._waiting: dict[str, list[_Waiting]] = {}

    def apply(self, action: Action, *, commit: int, time: str) -> None:
        """Let one action take effect, or raise and leave the draft as it was.

        Parameters
        ----------
        action : Action
            What is done.
        commit : int
            The number of its commit.
        time : str
            The time of its commit.

        Raises
        ------
        AlreadyExistsError
            ``already-exists/family``; ``already-exists/verification``; ``already-exists/name`` when names differ only as some disks do not tell.
        NotFoundError
            ``not-found/family``, ``not-found/task``, ``not-found/version``, ``not-found/basis``.
        InvalidInputError
            ``invalid-input/version`` and ``invalid-input/revision`` when a number is not the next one;
            ``invalid-input/aliased`` when a version to be deleted has an alias.
        """
        if self._lazily and self._is_unread(action.family):
            self._waiting.setdefault(action.family, []).append((action, commit, time))
            return
        match action:
            case FamilyAction():
                self._add_family(action)
            case BasisAction():
                self._add_basis(action, commit=commit)
            case ModelAction():
                self._add_model(action, commit=commit, time=time)
            case AliasAction():
                self._set_alias(action)
            case DeleteAction():
                self._delete(action)
            case VerificationAction():
                self._add_verification(action, commit=commit, time=time)
            case _:
                assert_never(action)

    def freeze(self, *, number: int, sha256: str | None) -> RegistryState:
        """Make the state as of commit `number`, whose bytes have this digest."""
        slots = dict(_slots_of(self._base))
        slots.update({name: FamilySlot(draft.freeze()) for name, draft in self._changed.items()})
        for name, waiting in self._waiting.items():
            slots[name] = FamilySlot(make=partial(_fold_waiting, slots[name], tuple(waiting)))
        return RegistryState(
            number=number, sha256=sha256, families=Families(slots), taken=_frozen(self._taken)
        )

    def _is_unread(self, name: str) -> bool:
        families = self._base.families
        if name in self._changed or not isinstance(families, Families):
            return False
        slot = families.slots.get(name)
        return slot is not None and not slot.is_read

    def _family(self, name: str) -> _FamilyDraft:
        draft = self._changed.get(name)
        if draft is None:
            state = self._base.family(name)
            draft = self._changed[name] = _FamilyDraft(
                name=name,
                architecture=state.architecture,
                bases=dict(state.bases),
                tasks=dict(state.tasks),
                taken=dict(state.taken),
                verifications=state.verifications,
            )
        return draft

    def _add_family(self, action: FamilyAction) -> None:
        name = action.family
        if name in self._changed or name in self._base.families:
            raise AlreadyExistsError(
                f"the family {name!r} exists; add models to it, or choose another name",
                kind="already-exists/family",
            )
        _claim(self._taken, name, "family")
        self._changed[name] = _FamilyDraft(name, action.architecture, bases={}, tasks={}, taken={})

    def _add_basis(self, action: BasisAction, *, commit: int) -> None:
        family = self._family(action.family)
        expected = max(family.bases, default=0) + 1
        if action.revision != expected:
            raise InvalidInputError(
                f"basis revision {action.revision} of family {family.name!r} is not the next one, {expected}",
                kind="invalid-input/revision",
            )
        family.bases[action.revision] = BasisEntry(action.revision, action.digest, action.size_bytes, commit)

    def _add_model(self, action: ModelAction, *, commit: int, time: str) -> None:
        family = self._family(action.family)
        basis = family.bases.get(action.basis_revision)
        if basis is None:
            raise NotFoundError(
                f"family {family.name!r} has no basis revision {action.basis_revision}",
                kind="not-found/basis",
            )
        task = family.tasks.get(action.task) or TaskState(action.task)
        expected = task.last_version + 1
        if action.version != expected:
            raise InvalidInputError(
                f"version {action.version} of task {task.name!r} in family {family.name!r} is not the next one, "
                f"{expected}",
                kind="invalid-input/version",
            )
        if not task.last_version:
            _claim(family.taken, task.name, "task")
        entry = ModelEntry(
            family=family.name,
            task=task.name,
            version=action.version,
            basis_revision=basis.revision,
            basis_digest=basis.digest,
            digest=action.digest,
            size_bytes=action.size_bytes,
            exact=action.exact,
            commit=commit,
            time=time,
            pack=action.pack,
        )
        versions = _frozen({**task.versions, action.version: entry})
        family.tasks[task.name] = replace(task, versions=versions, last_version=action.version)

    def _set_alias(self, action: AliasAction) -> None:
        family, task = self._task(action.family, action.task)
        aliases = dict(task.aliases)
        if action.version is None:
            if aliases.pop(action.alias, None) is None:
                raise NotFoundError(
                    f"task {task.name!r} in family {family.name!r} has no alias {action.alias!r}",
                    kind="not-found/version",
                )
        else:
            _check_live(task, action.version, family=family.name)
            aliases[action.alias] = action.version
        family.tasks[task.name] = replace(task, aliases=_frozen(aliases))

    def _delete(self, action: DeleteAction) -> None:
        family, task = self._task(action.family, action.task)
        _check_live(task, action.version, family=family.name)
        holding = sorted(alias for alias, version in task.aliases.items() if version == action.version)
        if holding:
            raise InvalidInputError(
                f"version {action.version} of task {task.name!r} in family {family.name!r} has the alias "
                f"{', '.join(holding)}; move or remove the alias first",
                kind="invalid-input/aliased",
            )
        versions = {version: entry for version, entry in task.versions.items() if version != action.version}
        family.tasks[task.name] = replace(task, versions=_frozen(versions))

    def _add_verification(self, action: VerificationAction, *, commit: int, time: str) -> None:
        family = self._family(action.family)
        if any(held.digest == action.digest for held in family.verifications):
            raise AlreadyExistsError(
                f"family {family.name!r} has the verification {action.digest} already",
                kind="already-exists/verification",
            )
        entry = VerificationEntry(action.digest, action.size_bytes, action.ok, commit, time)
        family.verifications = (*family.verifications, entry)[-KEPT_VERIFICATIONS:]

    def _task(self, family_name: str, name: str) -> tuple[_FamilyDraft, TaskState]:
        family = self._family(family_name)
        task = family.tasks.get(name)
        if task is None:
            raise NotFoundError(f"family {family_name!r} has no task {name!r}", kind="not-found/task")
        return family, task


def _slots_of(state: RegistryState) -> Mapping[str, FamilySlot[FamilyState]]:
    if isinstance(state.families, Families):
        return state.families.slots
    return {name: FamilySlot(family) for name, family in state.families.items()}


def _fold_waiting(slot: FamilySlot[FamilyState], waiting: tuple[_Waiting, ...]) -> FamilyState:
    """Let what waited for a family take effect."""
    family = slot.get()
    draft = Draft(RegistryState(families=Families({family.name: FamilySlot(family)})))
    for action, commit, time in waiting:
        try:
            draft.apply(action, commit=commit, time=time)
        except UwsError as error:
            raise FormatError(
                f"commit {commit} does not follow from the commits before it: {error}", kind="format/log"
            ) from error
    return draft.freeze(number=0, sha256=None).families[family.name]


def _check_live(task: TaskState, version: int, *, family: str) -> None:
    if version not in task.versions:
        was = "was deleted" if version <= task.last_version else "was never published"
        raise NotFoundError(
            f"version {version} of task {task.name!r} in family {family!r} {was}", kind="not-found/version"
        )


def _claim(taken: dict[str, str], name: str, what: str) -> None:
    """Refuse a name that some disk or person could take for another one."""
    holder = taken.setdefault(collision_key(name), name)
    if holder != name:
        raise AlreadyExistsError(
            f"the {what} name {name!r} differs from {holder!r} only in ways that some file systems do not tell; "
            "choose another name",
            kind="already-exists/name",
        )


def _frozen(values: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(values)
