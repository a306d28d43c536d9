"""Which checkpoints a zoo holds: a folder with one file or folder for each task, or a manifest.

Owns the rule by which a path becomes a task. Opens no weights. Must not know about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from uws_store.checkpoint.folder import (
    INDEX_SUFFIX,
    WEIGHT_SUFFIXES,
    checkpoints_among,
    holds_checkpoint,
    is_weight_name,
    shard_of,
    task_stem,
)
from uws_store.checkpoint.manifest import MANIFEST_NAME, read_manifest
from uws_store.checkpoint.remote import is_url, list_remote
from uws_store.checkpoint.weight_file import file_errors
from uws_store.errors import InvalidInputError, NotFoundError, Problem
from uws_store.names import check_task_name, collision_key
from uws_store.storage import StorageUrl

if TYPE_CHECKING:
    import os

__all__ = ["ZooMember", "scan_zoo", "task_of"]


@dataclass(frozen=True, slots=True)
class ZooMember:
    """One checkpoint of a zoo.

    Attributes
    ----------
    task : str
        Its name, in Unicode NFC.
    path : Path
        What :func:`~uws_store.checkpoint.opening.open_checkpoint` opens.
    metadata : Mapping of str to str
        What a manifest says of it: its licence, its source.
    url : str or None
        In place of `path`, for a checkpoint that is not on this machine's disks.
    """

    task: str
    path: Path
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    url: str | None = None

    @property
    def place(self) -> str | Path:
        """What opens it."""
        return self.path if self.url is None else self.url


def task_of(path: str | os.PathLike[str]) -> str:
    """Name the task of one checkpoint: the file's stem without a shard's number, or the folder's name.

    Of a URL, the stem of its last part; a repository's revision, as in ``hf://org/name@revision``, is no part of a name.

    Raises
    ------
    InvalidInputError
        When that cannot be a task's name (kind ``invalid-input/task-name``).
    """
    if is_url(path):
        name = str(path).rstrip("/").rpartition("/")[2]
        is_object = is_weight_name(name)
        return check_task_name(task_stem(name) if is_object else name.partition("@")[0])
    where = Path(path)
    # A folder may be given as "." or "..", which is no name of its own.
    name = where.name if where.name not in {"", ".."} else where.resolve().name
    with file_errors(where):
        is_folder = where.is_dir()
    return check_task_name(name if is_folder else task_stem(name))


def scan_zoo(
    path: str | os.PathLike[str], *, storage_options: Mapping[str, object] | None = None
) -> tuple[ZooMember, ...]:
    """Find the members of a zoo.

    A folder's members are its weight files and the folders in it that hold weights; hidden entries and files of
    other kinds are passed over. The task is the file's stem or the folder's name, without a shard's number. A
    folder with a ``zoo.json``, or any other ``.json`` file, is a manifest: a list of objects with ``task``, ``path``
    (absolute, or from the manifest's folder) and, if wanted, ``metadata`` (text by text). Of a URL that a storage
    opens (``s3://``, ``https://``, ``hf://org/name@revision``), the members are the safetensors objects that stand in
    it directly. A manifest's object may have a ``url`` in place of its path: of a safetensors object, or of a folder or
    a repository of the Hub that holds one.

    Parameters
    ----------
    path : path
        A folder, a manifest or a URL.
    storage_options : Mapping of str to object, optional
        For the storages of URLs: see :func:`uws_store.storage.open_storage`.

    Returns
    -------
    tuple of ZooMember
        Sorted by task; at least one.

    Raises
    ------
    NotFoundError
        When nothing is there (kind ``not-found/zoo``).
    InvalidInputError
        When there is no member (kind ``invalid-input/empty-zoo``), the path is one model
        (``invalid-input/one-model``), a name cannot be a task's (``invalid-input/task-name``), two members have one
        name or names that differ in case alone (``invalid-input/duplicate-task``), or the manifest has problems
        (``invalid-input/zoo-manifest``). All problems are reported.
    FormatError
        When an index is damaged (kind ``format/checkpoint``).
    StorageError
        When the disk fails (kinds ``storage/...``).
    """
    if is_url(path):
        assert isinstance(path, str)
        return _members_at(StorageUrl(path, storage_options))
    root = Path(path)
    with file_errors(root):
        is_there, is_folder = root.exists(), root.is_dir()
    if not is_there:
        raise NotFoundError(f"there is no zoo {root}; check the path", kind="not-found/zoo")
    if not is_folder:
        if root.suffix.casefold() == ".json" and not root.name.endswith(INDEX_SUFFIX):
            return _members_of_manifest(root, storage_options)
        raise InvalidInputError(
            f"{root} is one file, and a zoo is a folder with a checkpoint for each task, or a manifest (.json); "
            "give its folder, or add the one checkpoint to a family",
            kind="invalid-input/one-model",
        )
    if (root / MANIFEST_NAME).is_file():
        return _members_of_manifest(root / MANIFEST_NAME, storage_options)
    return _members_of_folder(root)


def _members_at(url: str) -> tuple[ZooMember, ...]:
    places = list_remote(url)
    if not places:
        raise InvalidInputError(
            f"the zoo {url} is empty: expected a .safetensors object for each task",
            kind="invalid-input/empty-zoo",
        )
    members = []
    for place in places:
        name = place.rsplit("/", 1)[1]
        members.append(ZooMember(check_task_name(task_stem(name)), Path(name), url=place))
    _refuse(Path(url), _duplicates(members), otherwise="invalid-input/zoo")
    return tuple(sorted(members, key=lambda member: member.task))


def _members_of_folder(root: Path) -> tuple[ZooMember, ...]:
    with file_errors(root):
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        folders = [entry for entry in entries if entry.is_dir()]
    files = checkpoints_among([entry.name for entry in entries if entry not in set(folders)])
    full = [folder for folder in folders if holds_checkpoint(folder)]
    found = [(task_stem(name), root / name) for name in files] + [(folder.name, folder) for folder in full]
    if not found:
        holds = ", ".join(f"{folder.name}/" for folder in folders[:5]) or "no folders"
        raise InvalidInputError(
            f"the zoo {root} is empty: expected a folder, or a file that ends in {', '.join(WEIGHT_SUFFIXES)}, for "
            f"each task (none of its folders holds one directly: {holds})",
            kind="invalid-input/empty-zoo",
        )
    if len(found) == 1 and files and not _is_whole(files[0]):
        raise InvalidInputError(
            f"{root} is one model in several files ({files[0]}), and a zoo is a folder with a checkpoint for each "
            "task; give the folder that holds this one, or add the one checkpoint to a family",
            kind="invalid-input/one-model",
        )
    problems: list[Problem] = []
    members = []
    for name, member_path in found:
        try:
            members.append(ZooMember(check_task_name(name), member_path))
        except InvalidInputError as error:
            problems.append(Problem(_shown(member_path), error.kind, error.message))
    problems += _duplicates(members)
    _refuse(root, problems, otherwise="invalid-input/zoo")
    return tuple(sorted(members, key=lambda member: member.task))


def _is_whole(name: str) -> bool:
    """Whether a checkpoint's name is that of one file, not of an index or a shard of several."""
    shard = shard_of(name)
    return is_weight_name(name) and (shard is None or shard.count == 1)


def _members_of_manifest(path: Path, storage_options: Mapping[str, object] | None) -> tuple[ZooMember, ...]:
    entries, problems = read_manifest(path)
    if not entries and not problems:
        raise InvalidInputError(f"the manifest {path} lists no checkpoint", kind="invalid-input/empty-zoo")
    members = [
        ZooMember(
            entry.task,
            entry.path,
            entry.metadata,
            url=StorageUrl(entry.url, storage_options) if entry.url is not None else None,
        )
        for entry in entries
    ]
    problems += _duplicates(members)
    _refuse(path, problems, otherwise="invalid-input/zoo-manifest")
    return tuple(sorted(members, key=lambda member: member.task))


def _duplicates(members: list[ZooMember]) -> list[Problem]:
    by_key: dict[str, list[ZooMember]] = {}
    for member in members:
        by_key.setdefault(collision_key(member.task), []).append(member)
    return [
        Problem(
            same[0].task,
            "invalid-input/duplicate-task",
            f"{' and '.join(_shown(member.path) for member in same)} have one name; rename all but one",
        )
        for same in by_key.values()
        if len(same) > 1
    ]


def _shown(path: Path) -> str:
    """Give a path as text that can be printed, also where the disk's name is no UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()


def _refuse(source: Path, problems: list[Problem], *, otherwise: str) -> None:
    """Raise with all problems, under their kind when they have one between them."""
    if problems:
        kinds = {problem.kind for problem in problems}
        raise InvalidInputError(
            f"the zoo {source} cannot be used",
            kind=kinds.pop() if len(kinds) == 1 else otherwise,
            problems=tuple(problems),
        )
