"""The checkpoints of a zoo as one mapping that can be sent to other processes, and slices of one tensor over it.

Owns which slices stay in memory between the passes, and reading the next slice while the last one is at work. Must
not know what is computed from them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from uws_store.builder.products import FactorPlace, Products
from uws_store.checkpoint import Checkpoint, Names, is_url, open_checkpoint, renamed
from uws_store.errors import InvalidInputError, UwsError

__all__ = ["Place", "ZooFiles", "naming"]

_OPEN_AT_ONCE = 256
_WORTH_AHEAD_BYTES = 1 << 20
_MOST_AHEAD = 8
_AHEAD_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is, and in which state its files were when the zoo was opened.

    Attributes
    ----------
    task : str
        Its name.
    path : str
        What opens it.
    identity : str
        As of :meth:`uws_store.checkpoint.Checkpoint.identity`.
    names : tuple of (str, str)
        Names of its own and what they are to be called.
    """

    task: str
    path: str
    identity: str
    names: Names = ()


class ZooFiles(Mapping[str, Checkpoint]):
    """Checkpoints by task.

    Sent to another process it carries the places alone; each checkpoint is opened there when it is first read, and
    must be in the state it was in here.

    Parameters
    ----------
    places : sequence of Place
        In the order of the tasks.
    opened : mapping of str to Checkpoint, optional
        Those that are open here. Whoever opened them closes them.
    products : Products, optional
        Which tensors are factors of products; their slices are given as they are coded.
    """

    def __init__(
        self,
        places: Sequence[Place],
        opened: Mapping[str, Checkpoint] | None = None,
        products: Products | None = None,
    ) -> None:
        self.products = products
        self.places = {place.task: place for place in places}
        self._opened = dict(opened or {})
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._room_bytes = 0
        self._pinned: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def __getitem__(self, task: str) -> Checkpoint:
        found = self._opened.get(task)
        return found if found is not None else _opened_here(self.places[task])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __reduce__(self) -> tuple[type[ZooFiles], tuple[tuple[Place, ...], None, Products | None]]:
        return ZooFiles, (tuple(self.places.values()), None, self.products)

    def part(self, tasks: Collection[str]) -> ZooFiles:
        """Some of the checkpoints, in the same order, as a mapping of their own; they stay open here."""
        places = [place for place in self.places.values() if place.task in tasks]
        opened = {place.task: self._opened[place.task] for place in places if place.task in self._opened}
        return ZooFiles(places, opened, self.products)

    def place(self, name: str) -> FactorPlace | None:
        """What a tensor is to a product; None when it is no factor."""
        return self.products.places.get(name) if self.products else None

    def note_sha256(self, task: str, digest: str) -> None:
        """Tell an open checkpoint its digest, which was computed elsewhere or before, of files in the same state."""
        opened = self._opened.get(task)
        if opened is not None:
            opened.note_sha256(digest)

    def keep(self, size_bytes: int, *, always: Iterable[str] = ()) -> None:
        """Keep slices in memory as they are read: those of some tensors always, of the others up to a size."""
        with self._lock:
            self._pinned = frozenset(always)
            self._room_bytes = max(0, size_bytes)

    def drop(self) -> None:
        """Let go of the slices that are kept, and keep no more."""
        with self._lock:
            self._kept.clear()
            self._pinned = frozenset()
            self._room_bytes = 0

    def holds(self, task: str, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a member has a tensor of this shape, or, for a factor, the product at any rank."""
        if self.place(name) is not None and self.products is not None:
            return self.products.has(task, name)
        return self[task].tensors[name].shape == shape

    def slices(self, name: str, tasks: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Read a tensor of several members, in the order of the tasks, each while the one before is at work; over a network up to eight.

        Yields
        ------
        task : str
            The member.
        tensor : torch.Tensor
            As it is stored, a factor as it is coded; nobody may write into it.
        """
        tasks = list(tasks)
        ahead = self._ahead(name, tasks[0]) if tasks else 0
        yield from self._in_order(tasks, lambda task: self._read(task, name), ahead=ahead)

    def tiles(
        self, name: str, tasks: Iterable[str], start: int, stop: int
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Read rows ``start`` to ``stop`` of a tensor of several members, and only these; as :meth:`slices`."""
        tasks = list(tasks)
        ahead = self._ahead(name, tasks[0]) if tasks else 0
        yield from self._in_order(tasks, lambda task: self.rows(name, task, start, stop), ahead=ahead)

    def rows(self, name: str, task: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of a member's tensor, which is no factor; nobody may write into them."""
        kept = self._kept.get((task, name))
        if kept is not None:
            return kept[start:stop]
        with naming(f"reading rows {start} to {stop} of tensor {name!r} of task {task!r}"):
            return self[task].read_rows(name, start, stop)

    @staticmethod
    def _in_order(
        tasks: Sequence[str], read: Callable[[str], torch.Tensor], *, ahead: int
    ) -> Iterator[tuple[str, torch.Tensor]]:
        if not ahead:
            for task in tasks:
                yield task, read(task)
            return
        with ThreadPoolExecutor(ahead) as reader:
            coming = deque(reader.submit(read, task) for task in tasks[:ahead])
            try:
                for index, task in enumerate(tasks):
                    tensor = coming.popleft().result()
                    if index + ahead < len(tasks):
                        coming.append(reader.submit(read, tasks[index + ahead]))
                    yield task, tensor
                    del tensor
            finally:
                for future in coming:
                    future.cancel()

    def _ahead(self, name: str, task: str) -> int:
        """How many slices are read while one is at work: of a disk the next large one, of a network several at once."""
        size_bytes = self[task].tensors[name].size_bytes
        if (task, name) in self._kept:
            return 0
        if is_url(self.places[task].path):
            return max(1, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, size_bytes)))
        return int(size_bytes >= _WORTH_AHEAD_BYTES)

    def _read(self, task: str, name: str) -> torch.Tensor:
        kept = self._kept.get((task, name))
        if kept is not None:
            return kept
        with naming(f"reading tensor {name!r} of task {task!r}"):
            if self.products is not None and self.products.has(task, name):
                read = self.products.read(task, name, self[task])
            else:
                read = {name: self[task].read(name)}
        with self._lock:
            for own, tensor in read.items():
                if own in self._pinned:
                    self._kept[task, own] = tensor
                elif tensor.nbytes <= self._room_bytes and (task, own) not in self._kept:
                    self._room_bytes -= tensor.nbytes
                    self._kept[task, own] = tensor
        return read[name]


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Add to an error what was done: readers name the file, and whoever reads on wants to know how far it was good."""
    try:
        yield
    except UwsError as error:
        error.message += f" ({what})"
        raise


_HERE: OrderedDict[Place, Checkpoint] = OrderedDict()
_HERE_LOCK = threading.Lock()


def _opened_here(place: Place) -> Checkpoint:
    """Open a checkpoint in a worker's process and keep it open, with the last few hundred others."""
    with _HERE_LOCK:
        found = _HERE.get(place)
        if found is not None:
            _HERE.move_to_end(place)
            return found
    found = renamed(open_checkpoint(place.path), place.names)
    if found.identity() != place.identity:
        found.close()
        raise InvalidInputError(
            f"{place.path} was changed since the build began; do not write to a zoo that is being read, and try again",
            kind="invalid-input/checkpoint-changed",
        )
    with _HERE_LOCK:
        _HERE[place] = found
        while len(_HERE) > _OPEN_AT_ONCE:
            _HERE.popitem(last=False)[1].close()
    return found
