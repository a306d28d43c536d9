"""What a storage really does: each promise of :class:`Storage` tried on objects made for it and removed again.

Owns the checks and what they decide. Must not know registries.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from uws_store.errors import FormatError, NotFoundError, StorageError, UwsError
from uws_store.storage.hugging import HubStorage
from uws_store.storage.local import LocalStorage
from uws_store.storage.protocol import Storage

__all__ = ["Check", "LookFirstStorage", "probe", "probe_reading", "require_exclusive"]

Use = Literal["reading", "publishing", "many writers"]

_LARGE_BYTES = 16 << 20
_RACES = 5
_RACERS = 8
_DIGITS = b"0123456789"


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what came of it.

    Attributes
    ----------
    name : str
        The promise.
    needed_for : str
        What is unsafe without it: ``reading``, ``publishing`` or ``many writers``.
    kept : bool
        Whether it was kept.
    found : str
        What was seen.
    """

    name: str
    needed_for: Use
    kept: bool
    found: str


class _BrokenError(Exception):
    """A promise was not kept. Never leaves this module."""


class LookFirstStorage:
    """A storage that cannot create if absent, for the one writer that works there: it looks before it writes.

    Parameters
    ----------
    inner : Storage
        Where the objects are.
    """

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.read = inner.read
        self.size = inner.size
        self.read_at_most = inner.read_at_most
        self.modified = inner.modified
        self.put = inner.put
        self.list = inner.list
        self.delete = inner.delete

    @property
    def url(self) -> str:
        """See :class:`Storage`."""
        return self.inner.url

    def __repr__(self) -> str:
        return f"LookFirstStorage({self.inner!r})"

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        """Create an object unless one is seen; between the look and the creation another writer may come."""
        return self.inner.size(path) is None and self.inner.put_if_absent(path, data, hints=hints)

    def stage(self, path: str, data: bytes) -> bool:
        """See :meth:`Storage.stage`."""
        return self.inner.size(path) is None and self.inner.stage(path, data)


def require_exclusive(storage: Storage, path: str, data: bytes) -> None:
    """Make sure that a storage refuses to create an object that exists, at the cost of one request.

    Parameters
    ----------
    storage : Storage
        What is asked.
    path, data : str and bytes
        An object that exists, and what it holds: a storage that replaces it does no harm.

    Raises
    ------
    StorageError
        When the storage says that it created it (``storage/not-exclusive``).
    """
    if storage.put_if_absent(path, data):
        raise StorageError(
            f"{storage.url} replaces objects that it is asked to create only where there are none, so two writers could "
            "overwrite each other's commits; nothing was published. Use another storage, or one writer alone: "
            "uws-store init --single-writer",
            kind="storage/not-exclusive",
        )


def probe(storage: Storage) -> tuple[Check, ...]:
    """Try every promise on objects below a folder of their own, which is emptied afterwards.

    Where every change is a commit in a history, few are made: only what a registry cannot do without is tried.

    Returns
    -------
    tuple of Check
        In the order they were tried.

    Raises
    ------
    StorageError
        When not even a first object can be written: with what the storage says.
    """
    folder = f"uws-probe-{secrets.token_hex(8)}"
    try:
        storage.put(f"{folder}/first", _DIGITS)
        few = isinstance(storage, HubStorage)
        return tuple(
            _try(name, use, check, storage, folder) for name, use, check in _CHECKS if name in _FEW or not few
        )
    finally:
        _clean(storage, folder)


def probe_reading(storage: Storage, path: str) -> tuple[Check, ...]:
    """Try reading alone, on an object that exists and has at least four bytes."""
    return tuple(
        _try(name, "reading", check, storage, path)
        for name, check in (
            ("ranges", _ranges_of),
            ("last bytes", _suffix_of),
            ("several ranges at once", _many_of),
        )
    )


def _try(name: str, use: Use, check: Callable[[Storage, str], str], storage: Storage, place: str) -> Check:
    try:
        return Check(name, use, kept=True, found=check(storage, place))
    except _BrokenError as broken:
        return Check(name, use, kept=False, found=str(broken))
    except UwsError as error:
        return Check(name, use, kept=False, found=f"[{error.kind}] {error.message}")


def _clean(storage: Storage, folder: str) -> None:
    # What cannot be removed is told by the check that removes; a storage that lists nothing is cleaned by name.
    known = [] if isinstance(storage, HubStorage) else [f"{folder}/{name}" for name in _NAMES]
    with contextlib.suppress(UwsError):
        known += list(storage.list(folder))
    for path in dict.fromkeys(known):
        with contextlib.suppress(UwsError):
            storage.delete(path)
    if isinstance(storage, LocalStorage):
        for left in (storage.root / folder / "list", storage.root / folder):
            with contextlib.suppress(OSError):
                left.rmdir()


def _require(condition: bool, found: str) -> None:  # noqa: FBT001 - reads like assert
    if not condition:
        raise _BrokenError(found)


def _read_after_write(storage: Storage, folder: str) -> str:
    for number in range(5):
        path, data = f"{folder}/written", f"{number}".encode() * 100
        storage.put(path, data)
        _require(storage.read(path) == data, f"write {number + 1} was not seen by the read that followed")
        _require(storage.size(path) == len(data), "the size told was not that of the bytes written")
    return "five writes, each seen by the next read"


def _exclusive(storage: Storage, folder: str) -> str:
    path = f"{folder}/exclusive"
    _require(storage.put_if_absent(path, b"first"), "a new object was said to exist")
    for time in ("second", "third"):
        _require(
            not storage.put_if_absent(path, time.encode()),
            f"the {time} creation of one object succeeded: the condition is ignored",
        )
    _require(storage.read(path) == b"first", "the object was replaced although the creation was refused")
    return "refused twice, the first content stayed"


def _races(storage: Storage, folder: str) -> str:
    def create(path: str, racer: int, barrier: threading.Barrier) -> bytes | None:
        barrier.wait(60)
        data = f"{racer}".encode()
        return data if storage.put_if_absent(path, data) else None

    with ThreadPoolExecutor(_RACERS) as pool:
        for race in range(_RACES):
            path, barrier = f"{folder}/race-{race}", threading.Barrier(_RACERS)
            answers = [pool.submit(create, path, racer, barrier) for racer in range(_RACERS)]
            winners = [answer.result() for answer in answers if answer.result() is not None]
            _require(len(winners) == 1, f"{len(winners)} of {_RACERS} concurrent creations succeeded")
            _require(storage.read(path) == winners[0], "the object does not hold what the winner wrote")
    return f"one winner in each of {_RACES} races of {_RACERS}"


def _ranges(storage: Storage, folder: str) -> str:
    return _ranges_of(storage, f"{folder}/first")


def _ranges_of(storage: Storage, path: str) -> str:
    whole = storage.read(path)
    _require(storage.read(path, start=1, end=3) == whole[1:3], "bytes 1 to 3 are others")
    _require(storage.read(path, start=2) == whole[2:], "the bytes from 2 on are others")
    _require(storage.size(path) == len(whole), "the size told is another")
    try:
        storage.read(path, start=0, end=len(whole) + 1)
    except FormatError:
        return "exact, and too long a range is told"
    raise _BrokenError("a range longer than the object was answered as if it were not")


def _suffix(storage: Storage, folder: str) -> str:
    return _suffix_of(storage, f"{folder}/first")


def _suffix_of(storage: Storage, path: str) -> str:
    _require(storage.read(path, start=-3) == storage.read(path)[-3:], "the last three bytes are others")
    return "exact"


def _many(storage: Storage, folder: str) -> str:
    return _many_of(storage, f"{folder}/first")


def _many_of(storage: Storage, path: str) -> str:
    whole = storage.read(path)
    starts = [number % (len(whole) - 1) for number in range(32)]
    with ThreadPoolExecutor(_RACERS) as pool:
        parts = list(pool.map(lambda start: storage.read(path, start=start, end=start + 2), starts))
    wrong = sum(part != whole[start : start + 2] for start, part in zip(starts, parts, strict=True))
    _require(not wrong, f"{wrong} of {len(parts)} concurrent ranges are others")
    return f"{len(parts)} concurrent ranges, all exact"


def _empty(storage: Storage, folder: str) -> str:
    path = f"{folder}/empty"
    _require(storage.put_if_absent(path, b""), "an empty object cannot be created")
    _require(storage.size(path) == 0 and storage.read(path) == b"", "an empty object does not come back")
    return "comes back"


def _large(storage: Storage, folder: str) -> str:
    data = secrets.token_bytes(1 << 16) * (_LARGE_BYTES >> 16)
    storage.put_if_absent(f"{folder}/large", data)
    found = storage.read(f"{folder}/large")
    _require(
        hashlib.sha256(found).digest() == hashlib.sha256(data).digest(),
        "other bytes came back than were written",
    )
    return f"{_LARGE_BYTES >> 20} MiB come back, by SHA-256"


def _gone(storage: Storage, folder: str) -> str:
    path = f"{folder}/gone"
    storage.put(path, b"1")
    storage.delete(path)
    _require(storage.size(path) is None, "a deleted object is still told to exist")
    with contextlib.suppress(NotFoundError):
        storage.read(path)
        raise _BrokenError("a deleted object can still be read")
    _require(storage.put_if_absent(path, b"2"), "what was deleted cannot be created again")
    return "gone at once, and can be created again"


def _listing(storage: Storage, folder: str) -> str:
    paths = [f"{folder}/list/{name}" for name in _LISTED]
    for path in paths:
        storage.put(path, b"")
    found = list(storage.list(f"{folder}/list"))
    _require(
        found == sorted(paths), f"{len(set(paths) & set(found))} of {len(paths)} new objects were listed"
    )
    return f"{len(paths)} new objects, all listed"


def _clock(storage: Storage, folder: str) -> str:
    storage.put(f"{folder}/clock", b"")
    _require(storage.modified(f"{folder}/clock") is not None, "the storage tells no time")
    return "told"


_LISTED = ("a", "b", "ü")
_NAMES = (
    "first",
    "written",
    "exclusive",
    "empty",
    "large",
    "gone",
    "clock",
    *(f"race-{race}" for race in range(_RACES)),
    *(f"list/{name}" for name in _LISTED),
)
_FEW = frozenset({"create only if absent", "ranges", "last bytes", "several ranges at once"})
_CHECKS: tuple[tuple[str, Use, Callable[[Storage, str], str]], ...] = (
    ("read after write", "publishing", _read_after_write),
    ("create only if absent", "many writers", _exclusive),
    ("one winner of concurrent creations", "many writers", _races),
    ("ranges", "reading", _ranges),
    ("last bytes", "reading", _suffix),
    ("several ranges at once", "reading", _many),
    ("empty objects", "publishing", _empty),
    ("large objects", "publishing", _large),
    ("deletion", "publishing", _gone),
    ("listing", "publishing", _listing),
    ("the storage's clock", "publishing", _clock),
)
