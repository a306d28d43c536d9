"""Moving families between registries: only what is missing, checked at the far end, one commit at the end.

Owns which objects and names a family is made of, and how names of one registry become names of another. Knows
storages only as such: any two registries will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from uws_store import layout
from uws_store.api.cache import at_source
from uws_store.api.family import open_registry
from uws_store.api.showing import card_beside
from uws_store.basis import ARRAYS, Basis, array_record
from uws_store.builder import Progress
from uws_store.errors import FormatError, IncompatibleError, InvalidInputError
from uws_store.metadata.arrays import ArrayRecord
from uws_store.metadata.group import PLAIN_GROUP, to_group_bytes
from uws_store.metadata.log import (
    Action,
    AliasAction,
    BasisAction,
    DeleteAction,
    FamilyAction,
    ModelAction,
    VerificationAction,
)
from uws_store.model import read_document
from uws_store.registry import (
    FamilyState,
    ModelEntry,
    Publication,
    Registry,
    RegistryState,
    TaskState,
    VerificationEntry,
    split_task,
)
from uws_store.storage import Storage
from uws_store.store import put_verified

__all__ = ["MoveResult", "mirror", "pull", "push"]

_THREADS = 8
_MOST_ACTIONS = 4000


@dataclass(frozen=True, slots=True)
class MoveResult:
    """A family that was brought to another registry.

    Attributes
    ----------
    family, source, target : str
        Names.
    versions : tuple of (str, int, int)
        Task, version in the source, version in the target: all that were asked for, new there or not.
    published : int
        How many of them are new there.
    objects, size_bytes : int
        Objects that were transferred, and their length; what was there already is not counted.
    kept_aliases : tuple of str
        Aliases of the target (``task@alias``) that stand for another version than in the source, and were left.
    commits : tuple of int
        The commits of the target; none when there was nothing to do.
    """

    family: str
    source: str
    target: str
    versions: tuple[tuple[str, int, int], ...]
    published: int
    objects: int
    size_bytes: int
    kept_aliases: tuple[str, ...]
    commits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Object:
    """An object to transfer: its path, what it must be, and its bytes where they are known already."""

    path: str
    size_bytes: int
    sha256: str
    data: bytes | None = None


@dataclass(slots=True)
class _Names:
    """What the names of the source become in the target."""

    actions: list[Action] = field(default_factory=list)
    versions: list[tuple[str, int, int]] = field(default_factory=list)
    published: int = 0
    kept_aliases: list[str] = field(default_factory=list)


def push(
    family: str,
    url: str | Registry,
    task: str | None = None,
    *,
    registry: str | Registry | None = None,
    progress: Progress | None = None,
) -> MoveResult:
    """Bring a family, or one task or version of it, to another registry.

    Only objects that are not there are transferred, so a transfer that was cut off goes on where it was; each is held
    to its digest before it is sent and again as the far end gives it back. Then names follow: in a registry that has
    no such task, versions keep their integers; in one that has, what is new gets its next versions. Aliases that are
    not there are set, others are left and told. What a model's record says of its origin goes with it, and with a whole
    family the records of its verifications. At the root of a repository of the Hub the family's model card goes into the
    same commit, unless another README.md is there.

    Parameters
    ----------
    family : str
        The family.
    url : str or Registry
        Where to; a registry is made there when there is none.
    task : str, optional
        One task, or one version of it as ``task@3`` or ``task@prod``; the whole family when absent.
    registry : str or Registry, optional
        Where from: URL or path; by default ``UWS_STORE_REGISTRY``, else the user's data folder.
    progress : callable, optional
        Called with a phase's name, what is done and what there is to do, in objects.

    Raises
    ------
    NotFoundError
        No such registry, family, task or version.
    IncompatibleError
        The target has a family of this name and another architecture (``incompatible/architecture``).
    FormatError
        An object is damaged, here or at the far end.
    StorageError
        A storage fails. The target's names are as they were.
    """
    return _move(
        open_registry(registry), at_source(open_registry(url, create=True)), family, task, progress=progress
    )


def pull(
    url: str | Registry,
    family: str,
    task: str | None = None,
    *,
    registry: str | Registry | None = None,
    progress: Progress | None = None,
) -> MoveResult:
    """Bring a family, or one task or version of it, from another registry; see :func:`push`.

    Parameters
    ----------
    url : str or Registry
        Where from.
    family, task
        See :func:`push`.
    registry : str or Registry, optional
        Where to; made when it does not exist.
    progress : callable, optional
        See :func:`push`.
    """
    return _move(
        open_registry(url), at_source(open_registry(registry, create=True)), family, task, progress=progress
    )


def mirror(
    url: str | Registry, *, registry: str | Registry | None = None, progress: Progress | None = None
) -> tuple[MoveResult, ...]:
    """Bring every family to another registry, and let aliases stand there for what they stand for here.

    What the other registry has beside is left as it is; nothing is withdrawn there.

    Parameters
    ----------
    url : str or Registry
        Where to; made when it does not exist.
    registry, progress
        See :func:`push`.
    """
    source, target = open_registry(registry), at_source(open_registry(url, create=True))
    return tuple(
        _move(source, target, name, None, move_aliases=True, progress=progress)
        for name in sorted(source.state().families)
    )


def _move(
    source: Registry,
    target: Registry,
    family: str,
    task: str | None,
    *,
    move_aliases: bool = False,
    progress: Progress | None,
) -> MoveResult:
    if source.document.id == target.document.id:
        raise InvalidInputError(
            f"{source.url} and {target.url} are one registry; name another",
            kind="invalid-input/same-registry",
        )
    state = source.state()
    here = state.family(family)
    entries = _wanted(state, here, task)
    _require_architecture(here, target.state(), family)
    with Publication(target.storage) as publication:
        reached = _reached(target.state(), family)
        transfer = _Transfer(source.storage, target.storage, publication, reached=reached)
        transfer.family(here, entries, whole=family not in target.state().families, progress=progress)
        if task is None:
            transfer.verifications(family, _newer_records(here, target.state()))
        publication.settle()
        names, commits = _publish(
            target,
            here,
            entries,
            whole=task is None,
            move_aliases=move_aliases,
            beside=card_beside(family, source, target),
        )
    return MoveResult(
        family=family,
        source=source.url,
        target=target.url,
        versions=tuple(names.versions),
        published=names.published,
        objects=transfer.objects,
        size_bytes=transfer.size_bytes,
        kept_aliases=tuple(names.kept_aliases),
        commits=commits,
    )


def _wanted(state: RegistryState, family: FamilyState, task: str | None) -> list[ModelEntry]:
    if task is None:
        return list(family.models())
    name, revision = split_task(task)
    resolved = state.resolve(family.name, name, revision=revision)
    if revision is not None:
        return [resolved]
    return list(family.tasks[resolved.task].versions.values())


def _require_architecture(here: FamilyState, there: RegistryState, family: str) -> None:
    other = there.families.get(family)
    if other is not None and other.architecture != here.architecture:
        raise IncompatibleError(
            f"the target has a family {family!r} of another architecture; names of families are not changed in moving",
            kind="incompatible/architecture",
        )


def _reached(state: RegistryState, family: str) -> frozenset[str]:
    """Folders of the bases and models that names of a family stand for."""
    there = state.families.get(family)
    if there is None:
        return frozenset()
    bases = (layout.basis_prefix(family, basis.digest) for basis in there.bases.values())
    return frozenset((*bases, *(layout.model_prefix(family, entry.digest) for entry in there.models())))


class _Transfer:
    """Objects on their way, several at once."""

    def __init__(
        self, source: Storage, target: Storage, publication: Publication, *, reached: Collection[str]
    ) -> None:
        self._reached = reached
        self.source = source
        self.target = target
        self.publication = publication
        self.objects = 0
        self.size_bytes = 0

    def family(
        self,
        family: FamilyState,
        entries: Sequence[ModelEntry],
        *,
        whole: bool,
        progress: Progress | None,
    ) -> None:
        """Transfer the bases and the models; of a new family all bases, so that their numbers stay."""
        for path in layout.family_groups(family.name):
            put_verified(self.target, path, PLAIN_GROUP)
        used = {entry.basis_digest for entry in entries}
        bases = [basis.digest for basis in family.bases.values() if whole or basis.digest in used]
        groups = [layout.basis_prefix(family.name, digest) for digest in dict.fromkeys(bases)]
        models = dict.fromkeys(entry.digest for entry in entries)
        groups += [layout.model_prefix(family.name, digest) for digest in models]
        done = 0
        with ThreadPoolExecutor(_THREADS) as pool:
            # Records first, a few at a time: a family of thousands of models is not held in memory.
            for first in range(0, len(groups), _THREADS):
                part = groups[first : first + _THREADS]
                plans = dict(zip(part, pool.map(self._objects, part), strict=True))
                for prefix, objects in plans.items():
                    jobs = [pool.submit(self._bring, entry) for entry in objects[:-1]]
                    fresh = [job.result() for job in as_completed(jobs)]
                    # The group document last: what has one is whole.
                    fresh.append(self._bring(objects[-1]))
                    sizes = {entry.path.removeprefix(f"{prefix}/"): entry.size_bytes for entry in objects}
                    # What a name reaches now no collector removes within its grace period: it is no garbage yet.
                    self.publication.stored(
                        prefix, sizes, reused=prefix not in self._reached and not all(fresh)
                    )
                    done += 1
                    if progress is not None:
                        progress("transferring", done, len(groups))

    def verifications(self, family: str, entries: Sequence[VerificationEntry]) -> None:
        """Transfer the records of verifications."""
        for entry in entries:
            path = layout.verification_path(family, entry.digest)
            fresh = self._bring(_Object(path, entry.size_bytes, entry.digest))
            self.publication.stored(path, {"": entry.size_bytes}, reused=not fresh)

    def _objects(self, prefix: str) -> list[_Object]:
        """List a basis's or a model's objects by its record, which is checked; the group document last."""
        digest = prefix.rpartition("/")[2]
        records: Mapping[str, ArrayRecord | None]
        if prefix.split("/")[2] == "basis":
            basis = Basis.open(self.source, prefix, digest=digest).document
            records = {name: array_record(basis, name) for name in ARRAYS}
            group = to_group_bytes(basis)
        else:
            model = read_document(self.source, prefix, digest=digest)
            records = model.arrays
            group = to_group_bytes(model)
        if hashlib.sha256(group).hexdigest() != digest:  # another writer's spelling
            group = self.source.read(f"{prefix}/{layout.GROUP_PATH}")
        return [*_array_objects(prefix, records), _known(f"{prefix}/{layout.GROUP_PATH}", group)]

    def _bring(self, entry: _Object) -> bool:
        """Transfer an object unless it is there; tell whether it was not."""
        if self.target.size(entry.path) == entry.size_bytes:
            return False
        data = entry.data if entry.data is not None else self.source.read(entry.path)
        _check(data, entry, url=self.source.url)
        created = put_verified(self.target, entry.path, data)
        if created:
            _check(self.target.read(entry.path), entry, url=self.target.url)
            self.objects += 1
            self.size_bytes += len(data)
        return created


def _newer_records(here: FamilyState, state: RegistryState) -> tuple[VerificationEntry, ...]:
    """The verifications that came after the newest one that both registries have."""
    there = state.families.get(here.name)
    held = {entry.digest for entry in there.verifications} if there else set()
    shared = [index for index, entry in enumerate(here.verifications) if entry.digest in held]
    return here.verifications[shared[-1] + 1 :] if shared else here.verifications


def _array_objects(prefix: str, records: Mapping[str, ArrayRecord | None]) -> Iterator[_Object]:
    for name, record in records.items():
        if record is None:
            continue
        for index, shard in enumerate(record.shards):
            yield _Object(layout.shard_path(prefix, name, index), shard.size, shard.sha256)
        yield _known(layout.array_path(prefix, name), layout.array_metadata(record))


def _known(path: str, data: bytes) -> _Object:
    return _Object(path, len(data), hashlib.sha256(data).hexdigest(), data)


def _check(data: bytes, entry: _Object, *, url: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise FormatError(
            f"{url}/{entry.path}: SHA-256 is {found}, the record says {entry.sha256}; the object is damaged",
            kind="format/digest",
        )


def _publish(
    target: Registry,
    here: FamilyState,
    entries: Sequence[ModelEntry],
    *,
    whole: bool,
    move_aliases: bool,
    beside: Callable[[RegistryState], Mapping[str, bytes]] | None,
) -> tuple[_Names, tuple[int, ...]]:
    """Let the names follow, in as few commits as they fit into."""
    commits: list[int] = []
    first: _Names | None = None
    while True:
        made: list[_Names] = []

        def actions(state: RegistryState, made: list[_Names] = made) -> Sequence[Action]:
            _require_architecture(here, state, here.name)
            made.append(_translate(here, entries, state, aliases=whole, move_aliases=move_aliases))
            if whole:
                made[-1].actions += [
                    VerificationAction(
                        family=here.name, digest=entry.digest, size_bytes=entry.size_bytes, ok=entry.ok
                    )
                    for entry in _newer_records(here, state)
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
    here: FamilyState,
    entries: Sequence[ModelEntry],
    state: RegistryState,
    *,
    aliases: bool,
    move_aliases: bool,
) -> _Names:
    """Say in the target's numbers what the source's names say."""
    names = _Names()
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
    return names


def _added(names: _Names) -> int:
    return sum(isinstance(action, BasisAction) for action in names.actions)


def _versions(
    names: _Names, wanted: Sequence[ModelEntry], held: TaskState | None, revisions: Mapping[str, int]
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
    names: _Names, here: TaskState, held: TaskState | None, numbers: Mapping[int, int], *, move: bool
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
