"""Checkpoints whose tensors go by other names: the map a user gives, and the view of a checkpoint under it.

Owns the map's form and what makes it fit a checkpoint. No tensor is changed, only what it is called. Must not know where
the names come from.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from uws_store.checkpoint.base import Checkpoint, TensorInfo, listed
from uws_store.checkpoint.weight_file import read_json
from uws_store.errors import IncompatibleError, InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["RENAME_KEY", "Names", "RenamedCheckpoint", "Renaming", "renamed"]

RENAME_KEY = "uws_store.rename"
"""Under this key a model's record says by which map its tensors were renamed."""

_KIND = "invalid-input/rename"

Names = tuple[tuple[str, str], ...]
"""Pairs of a checkpoint's name and the family's, sorted."""


@dataclass(frozen=True, slots=True)
class Renaming:
    """What a user says of names.

    Attributes
    ----------
    common : tuple of (str, str)
        For every checkpoint that has these names; others are read as they are.
    tasks : Mapping of str to tuple of (str, str)
        For the checkpoints of these tasks, and no others.
    """

    common: Names = ()
    tasks: Mapping[str, Names] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, value: object, *, where: str) -> Renaming:
        """Read a map from what JSON gave.

        Parameters
        ----------
        value : object
            From a checkpoint's names to the family's; or from tasks to such maps.
        where : str
            For messages.

        Raises
        ------
        InvalidInputError
            When it is no such map, or two names become one (``invalid-input/rename``).
        """
        if not isinstance(value, Mapping) or not value:
            raise _wrong(where, 'expected {"name there": "name in the family"}, or {"task": {...}}')
        if all(isinstance(held, str) for held in value.values()):
            return cls(common=_names(value, where=where))
        if not all(isinstance(held, Mapping) and held for held in value.values()):
            raise _wrong(where, "expected names for names throughout, or a map for each task")
        tasks = {task: _names(held, where=f"{where}, task {task!r}") for task, held in value.items()}
        return cls(tasks=MappingProxyType(tasks))

    @classmethod
    def of(cls, given: str | Path | Mapping[str, object] | None) -> Renaming | None:
        """Take a map as it is, or read it from a JSON file.

        Raises
        ------
        InvalidInputError
            See :meth:`parse`; also when the file cannot be read as JSON.
        NotFoundError
            When there is no such file.
        """
        if given is None or isinstance(given, Mapping):
            return None if given is None else cls.parse(given, where="the map of names")
        path = Path(given)
        try:
            return cls.parse(read_json(path, object_pairs_hook=_unique), where=str(path))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path} is no map of names: {error}", kind=_KIND) from error

    def apply(self, task: str, checkpoint: Checkpoint) -> Checkpoint:
        """Give a checkpoint under the family's names.

        Raises
        ------
        IncompatibleError
            When it has some of the names and not the others, or has a name already that another is to get
            (``incompatible/rename``).
        """
        own = self.tasks.get(task)
        names = self.common if own is None else own
        if own is None and not any(name in checkpoint.tensors for name, _ in names):
            return checkpoint
        return renamed(checkpoint, names)

    def require_used(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        """Refuse a map that says nothing of these checkpoints.

        Raises
        ------
        InvalidInputError
            ``invalid-input/rename``.
        """
        strangers = [task for task in self.tasks if task not in checkpoints]
        if strangers:
            raise InvalidInputError(
                f"the map of names is for {listed(strangers)}, and there is no such task; there are "
                f"{listed(list(checkpoints))}",
                kind=_KIND,
            )
        if not any(isinstance(checkpoint, RenamedCheckpoint) for checkpoint in checkpoints.values()):
            raise InvalidInputError(
                f"no checkpoint has the names of the map, such as {self.common[0][0]!r}; it goes from a checkpoint's "
                "names to the family's",
                kind=_KIND,
            )


def renamed(checkpoint: Checkpoint, names: Names) -> Checkpoint:
    """Give a checkpoint under other names; without any it is given as it is.

    Raises
    ------
    IncompatibleError
        See :meth:`Renaming.apply`.
    """
    if not names:
        return checkpoint
    missing = [name for name, _ in names if name not in checkpoint.tensors]
    if missing:
        raise IncompatibleError(
            f"{checkpoint.source} has no tensor {listed(missing)}, which the map of names begins from; it has "
            f"{listed(checkpoint.tensors)}",
            kind="incompatible/rename",
        )
    leaving = {name for name, _ in names}
    taken = [name for _, name in names if name in checkpoint.tensors and name not in leaving]
    if taken:
        raise IncompatibleError(
            f"{checkpoint.source} has the tensor {listed(taken)} already, to which the map of names leads; map that one "
            "too, or leave this one out",
            kind="incompatible/rename",
        )
    return RenamedCheckpoint(checkpoint, names)


class RenamedCheckpoint(Checkpoint):
    """A checkpoint under other names; the files, and so their digest, are what they are.

    Parameters
    ----------
    inner : Checkpoint
        The checkpoint; closed with this one.
    names : tuple of (str, str)
        Pairs of its name and the new one; they fit.
    """

    def __init__(self, inner: Checkpoint, names: Names) -> None:
        new = dict(names)
        self._inner = inner
        self._old = {new.get(name, name): name for name in inner.tensors}
        self.names = names
        self.source = inner.source
        self.tensors = MappingProxyType(
            {
                name: TensorInfo(name, inner.tensors[old].dtype, inner.tensors[old].shape)
                for name, old in self._old.items()
            }
        )
        self.tied = tuple(tuple(new.get(name, name) for name in group) for group in inner.tied)
        text = json.dumps(names, ensure_ascii=False, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        said = f"{len(names)} tensors, map {digest}"
        self.notices = (*inner.notices, f"renamed {len(names)} tensors")
        self.metadata = MappingProxyType({**inner.metadata, RENAME_KEY: said})
        self.file_size_bytes = inner.file_size_bytes
        self.side_files = inner.side_files
        self.adapter = inner.adapter

    def read_side_file(self, name: str) -> bytes:
        """Read one of :attr:`side_files`."""
        return self._inner.read_side_file(name)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor by its new name; see :meth:`Checkpoint.read`."""
        return self._inner.read(self._old.get(name, ""))

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of a tensor by its new name; see :meth:`Checkpoint.read_rows`."""
        return self._inner.read_rows(self._old.get(name, ""), start, stop)

    def sha256(self) -> str:
        """Compute the SHA-256 of the files, which know nothing of the new names."""
        return self._inner.sha256()

    def identity(self) -> str:
        """Tell one state of the files, under these names, from another."""
        return f"{self._inner.identity()} {self.metadata[RENAME_KEY]}"

    def note_sha256(self, digest: str) -> None:
        """Take the digest of the files."""
        self._inner.note_sha256(digest)

    def close(self) -> None:
        """Let go of the files."""
        self._inner.close()


def _names(value: Mapping[object, object], *, where: str) -> Names:
    pairs = [(old, new) for old, new in value.items() if isinstance(old, str) and isinstance(new, str)]
    if len(pairs) < len(value) or not all(old and new for old, new in pairs):
        raise _wrong(where, "a name of a tensor is text, and not empty")
    doubled = [new for new, count in Counter(new for _, new in pairs).items() if count > 1]
    if doubled:
        raise _wrong(where, f"two tensors become {listed(doubled)}")
    changed = tuple(sorted((old, new) for old, new in pairs if old != new))
    if not changed:
        raise _wrong(where, "it changes no name")
    return changed


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _wrong(where: str, what: str) -> InvalidInputError:
    return InvalidInputError(f"{where} is no map of names: {what}", kind=_KIND)
