"""What a registry holds at one commit, as frozen values, and how names are looked up in it.

Must not know how the state came about (``fold.py``) nor where the log is stored (``log.py``).
"""

from __future__ import annotations

import difflib
import unicodedata
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from uws_store.errors import InvalidInputError, NotFoundError
from uws_store.layout import model_prefix
from uws_store.registry.slots import Families

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from uws_store.metadata.log import PackPlace

__all__ = [
    "BasisEntry",
    "FamilyState",
    "ModelEntry",
    "RegistryState",
    "TaskState",
    "VerificationEntry",
    "split_task",
]

_LONGEST_VERSION = 16  # digits of 2^53
_SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True)
class BasisEntry:
    """One basis revision of a family.

    Attributes
    ----------
    revision : int
        1, 2, ...
    digest : str
        Where it stands: :func:`uws_store.layout.basis_prefix`.
    size_bytes : int
        All its objects together.
    commit : int
        The commit that published it.
    """

    revision: int
    digest: str
    size_bytes: int
    commit: int


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One version of a task.

    Attributes
    ----------
    family, task : str
        Its names.
    version : int
        1, 2, ...; never used again.
    basis_revision : int
        The basis revision that its coefficients are in.
    basis_digest : str
        That basis' digest.
    digest : str
        What it is, and where it stands unless in a pack: :func:`uws_store.layout.model_prefix`.
    size_bytes : int
        All its objects together.
    exact : bool
        Whether it has the exact tier.
    commit : int
        The commit that published it.
    time : str
        When, by the publisher's clock (RFC 3339, UTC).
    pack : PackPlace or None
        Where it lies in a pack; None for a folder of its own.
    """

    family: str
    task: str
    version: int
    basis_revision: int
    basis_digest: str
    digest: str
    size_bytes: int
    exact: bool
    commit: int
    time: str
    pack: PackPlace | None = None

    @property
    def prefix(self) -> str:
        """The folder under which its objects have their paths, wherever they lie."""
        return model_prefix(self.family, self.digest)


@dataclass(frozen=True, slots=True)
class VerificationEntry:
    """One verification of a family.

    Attributes
    ----------
    digest : str
        Where its record stands: :func:`uws_store.layout.verification_path`.
    size_bytes : int
        The record's length.
    ok : bool
        Whether all was as recorded.
    commit : int
        The commit that published it.
    time : str
        When, by the publisher's clock (RFC 3339, UTC).
    """

    digest: str
    size_bytes: int
    ok: bool
    commit: int
    time: str


@dataclass(frozen=True, slots=True)
class TaskState:
    """One task of a family.

    Attributes
    ----------
    name : str
        The task.
    versions : Mapping[int, ModelEntry]
        The versions that were not deleted, ascending.
    aliases : Mapping[str, int]
        The version each alias stands for.
    last_version : int
        The highest version ever published, deleted or not.
    """

    name: str
    versions: Mapping[int, ModelEntry] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    last_version: int = 0

    @property
    def latest(self) -> ModelEntry | None:
        """The newest version that was not deleted."""
        return self.versions[max(self.versions)] if self.versions else None


@dataclass(frozen=True, slots=True)
class FamilyState:
    """One family.

    Attributes
    ----------
    name : str
        The family.
    architecture : str
        Digest of the architecture of all its models.
    bases : Mapping[int, BasisEntry]
        Its basis revisions, ascending.
    tasks : Mapping[str, TaskState]
        Every task that ever had a version.
    taken : Mapping[str, str]
        The task that holds each collision key.
    verifications : tuple of VerificationEntry
        The newest, in the order they were published.
    """

    name: str
    architecture: str
    bases: Mapping[int, BasisEntry]
    tasks: Mapping[str, TaskState]
    taken: Mapping[str, str]
    verifications: tuple[VerificationEntry, ...] = ()

    @property
    def latest_basis(self) -> BasisEntry | None:
        """The newest basis revision."""
        return self.bases[max(self.bases)] if self.bases else None

    def models(self) -> Iterator[ModelEntry]:
        """All versions that were not deleted, by task name, then version."""
        for name in sorted(self.tasks):
            yield from self.tasks[name].versions.values()

    def newest(self) -> list[ModelEntry]:
        """The newest version of each task that has one, by task name."""
        return [latest for name in sorted(self.tasks) if (latest := self.tasks[name].latest) is not None]


@dataclass(frozen=True, slots=True)
class RegistryState:
    """Everything a registry holds at one commit.

    Attributes
    ----------
    number : int
        The newest commit, 0 when there is none.
    sha256 : str or None
        Hex digest of that commit's bytes, None when there is none.
    families : Mapping[str, FamilyState]
        All families; looking one up may read it, which costs one request.
    taken : Mapping[str, str]
        The family that holds each collision key.
    """

    number: int = 0
    sha256: str | None = None
    families: Mapping[str, FamilyState] = field(default_factory=lambda: MappingProxyType({}))
    taken: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def family(self, name: str) -> FamilyState:
        """Look a family up.

        Raises
        ------
        NotFoundError
            With names that are near (``not-found/family``).
        """
        found = self.families.get(name)
        if found is None:
            raise NotFoundError(
                f"there is no family {name!r} in the registry; {_near(name, self.families, 'families')}",
                kind="not-found/family",
            )
        return found

    def resolve(self, family: str, task: str, *, revision: int | str | None = None) -> ModelEntry:
        """Find the one version that names stand for.

        Parameters
        ----------
        family, task : str
            The names.
        revision : int or str, optional
            A version, in figures or digits, or an alias; the newest version when absent.

        Raises
        ------
        NotFoundError
            ``not-found/family``, ``not-found/task`` or ``not-found/version``, with names that are near.
        InvalidInputError
            When the revision is neither a version nor an alias (``invalid-input/revision``).
        """
        holder = self.family(family)
        task = unicodedata.normalize("NFC", task)
        state = holder.tasks.get(task)
        if state is None:
            tasks = [name for name, other in holder.tasks.items() if other.versions]
            raise NotFoundError(
                f"family {family!r} has no task {task!r}; {_near(task, tasks, 'tasks')}",
                kind="not-found/task",
            )
        version = _version_of(state, revision)
        found = state.latest if revision is None else state.versions.get(version)
        if found is None:
            asked = (
                "no version that was not deleted" if revision is None else f"no version or alias {revision!r}"
            )
            raise NotFoundError(
                f"task {task!r} of family {family!r} has {asked}; {_offer(state)}", kind="not-found/version"
            )
        return found

    def next_version(self, family: str, task: str) -> int:
        """Tell the version that the next model of a task gets: never one that was used, 1 for a new task."""
        holder = self.families.get(family)
        state = holder.tasks.get(unicodedata.normalize("NFC", task)) if holder else None
        return state.last_version + 1 if state else 1

    def next_revision(self, family: str) -> int:
        """Tell the revision that the next basis of a family gets, 1 for a new family."""
        holder = self.families.get(family)
        return max(holder.bases, default=0) + 1 if holder else 1

    def models(self) -> Iterator[ModelEntry]:
        """All versions that were not deleted, by family name, task name, then version.

        One family is held at a time.
        """
        for family in self.walk():
            yield from family.models()

    def walk(self) -> Iterator[FamilyState]:
        """All families by name; one that was not read is read, and held only by the caller."""
        if isinstance(self.families, Families):
            yield from self.families.walk()
        else:
            yield from (self.families[name] for name in sorted(self.families))


def split_task(text: str) -> tuple[str, int | str | None]:
    """Take what a user typed for a task apart: ``task``, ``task@3`` or ``task@prod``.

    Returns
    -------
    tuple of str and (int, str or None)
        The task, and the version, alias or None after the ``@``.

    Raises
    ------
    InvalidInputError
        When a part is empty or there are several ``@`` (``invalid-input/revision``).
    """
    task, at, revision = text.partition("@")
    if not at:
        return text, None
    if not task or not revision or "@" in revision:
        raise InvalidInputError(
            f"{text!r} cannot be read; write task, task@3 for a version or task@prod for an alias",
            kind="invalid-input/revision",
        )
    return task, int(revision) if _is_version(revision) else revision


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _LONGEST_VERSION


def _version_of(state: TaskState, revision: int | str | None) -> int:
    """Find the number a revision stands for, 0 when it is the name of nothing."""
    if revision is None:
        return 0
    if isinstance(revision, bool) or not isinstance(revision, int | str):
        raise InvalidInputError(
            f"a revision is a version such as 3 or an alias such as 'prod', not {revision!r}",
            kind="invalid-input/revision",
        )
    if isinstance(revision, str):
        return int(revision) if _is_version(revision) else state.aliases.get(revision, 0)
    return revision


def _offer(state: TaskState) -> str:
    versions = [str(version) for version in sorted(state.versions)]
    if not versions:
        return "all its versions were deleted; publish it again"
    shown = ", ".join(versions[-_SHOWN_NAMES:])
    aliases = ", ".join(f"{alias} ({version})" for alias, version in sorted(state.aliases.items()))
    return f"it has {'..., ' if len(versions) > _SHOWN_NAMES else ''}{shown}" + (
        f"; aliases {aliases}" if aliases else ""
    )


def _near(name: str, known: Iterable[str], what: str) -> str:
    names = sorted(known)
    if not names:
        return f"it has no {what} yet"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(other) for other in near)}?"
    if len(names) <= _SHOWN_NAMES:
        return f"its {what} are {', '.join(names)}"
    return f"it has {len(names)} {what}, among them {', '.join(names[:_SHOWN_NAMES])}"
