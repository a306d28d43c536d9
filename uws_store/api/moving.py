"""Moving families between registries: only what is missing, checked at the far end, one commit at the end.

Owns the order: objects, then names. Knows storages only as such: any two registries will do.
"""

from __future__ import annotations

from dataclasses import dataclass

from uws_store import layout
from uws_store.api.cache import at_source
from uws_store.api.mending import damaged_packs, make_again
from uws_store.api.moved_names import newer_records, publish_names, require_same_architecture
from uws_store.api.opening import open_registry
from uws_store.api.packing import is_packed
from uws_store.api.showing import card_beside
from uws_store.api.transfer import Held, Transfer
from uws_store.builder import Progress
from uws_store.errors import InvalidInputError
from uws_store.registry import (
    FamilyState,
    ModelEntry,
    Publication,
    Registry,
    RegistryState,
    split_task,
)

__all__ = ["MoveResult", "mirror", "pull", "push"]


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
    mended : tuple of str
        Paths of objects that names of the target stood for and that were gone or damaged there; they are as they were.
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
    mended: tuple[str, ...]
    kept_aliases: tuple[str, ...]
    commits: tuple[int, ...]


def push(
    family: str,
    url: str | Registry,
    task: str | None = None,
    *,
    registry: str | Registry | None = None,
    pack: bool | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> MoveResult:
    """Bring a family, or one task or version of it, to another registry.

    Only objects that are not there are transferred, so a transfer that was cut off goes on where it was; each is held
    to its digest before it is sent and again as the far end gives it back. What names stand for there already and is gone
    or damaged is put back, packs whole. Then names follow: in a registry that has
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
    pack : bool, optional
        Put models that are new there and small into packs: many in one object, which is how a family of small models
        takes few files and few requests. Zarr libraries do not open models in packs. By default only on the Hub.
    check : bool
        Read what is there already, too, and hold it to its digest. Without it the lengths of what is there are looked at.
    progress : callable, optional
        Called with a phase's name, what is done and what there is to do, in objects.

    Raises
    ------
    NotFoundError
        No such registry, family, task or version.
    IncompatibleError
        The target has a family of this name and another architecture (``incompatible/architecture``).
    FormatError
        An object is damaged, here or at the far end; a pack is gone there and cannot be made again from what is here.
    StorageError
        A storage fails. The target's names are as they were.
    """
    source, target = open_registry(registry), at_source(open_registry(url, create=True))
    return _move(source, target, family, task, pack=pack, check=check, progress=progress)


def pull(
    url: str | Registry,
    family: str,
    task: str | None = None,
    *,
    registry: str | Registry | None = None,
    pack: bool | None = None,
    check: bool = False,
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
    pack, check, progress
        See :func:`push`.
    """
    source, target = open_registry(url), at_source(open_registry(registry, create=True))
    return _move(source, target, family, task, pack=pack, check=check, progress=progress)


def mirror(
    url: str | Registry,
    *,
    registry: str | Registry | None = None,
    pack: bool | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> tuple[MoveResult, ...]:
    """Bring every family to another registry, and let aliases stand there for what they stand for here.

    What the other registry has beside is left as it is; nothing is withdrawn there.

    Parameters
    ----------
    url : str or Registry
        Where to; made when it does not exist.
    registry, pack, check, progress
        See :func:`push`.
    """
    source, target = open_registry(registry), at_source(open_registry(url, create=True))
    return tuple(
        _move(source, target, name, None, pack=pack, check=check, move_aliases=True, progress=progress)
        for name in sorted(source.state().families)
    )


def _move(
    source: Registry,
    target: Registry,
    family: str,
    task: str | None,
    *,
    pack: bool | None,
    check: bool,
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
    require_same_architecture(here, target.state(), family)
    with Publication(target.storage) as publication:
        there = target.state()
        transfer = Transfer(source, target.storage, publication, held=Held.of(there, family), check=check)
        transfer.family(
            here,
            entries,
            whole=family not in there.families,
            packed=is_packed(target.storage) if pack is None else pack,
            progress=progress,
        )
        if family in there.families:
            for digest in damaged_packs(target.storage, there.families[family], entries, check=check):
                data = make_again(digest, source, target, family)
                transfer.mend(layout.pack_path(family, digest), data)
        if task is None:
            transfer.verifications(family, newer_records(here, target.state()))
        publication.settle()
        names, commits = publish_names(
            target,
            here,
            entries,
            places=transfer.places,
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
        mended=tuple(sorted(transfer.mended)),
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
