"""The finished pieces of a build on this machine's disk, so that a build that was killed goes on where it was.

Owns the folder, and that a piece is there whole or not at all. Must not know what the pieces mean.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from uws_store.builder.packing import pack, unpack
from uws_store.executors import Workers

__all__ = ["WorkFolder", "resumed"]

T = TypeVar("T")
R = TypeVar("R")

_DIGEST_BYTES = 32
_KEY_LENGTH = 32


class WorkFolder:
    """Pieces by name.

    What cannot be read or is damaged was not done; where nothing can be written, nothing is kept, and the build goes
    on without.

    Parameters
    ----------
    parent : Path
        A folder for the work of all builds; made when it is needed.
    identity : sequence of str
        Everything that the pieces depend on: another zoo or other options have another folder.
    """

    def __init__(self, parent: Path, identity: Sequence[str]) -> None:
        key = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()[:_KEY_LENGTH]
        self.path = parent / key
        self.kept = 0
        self.reused = 0
        self._writable = True

    def get(self, name: str) -> bytes | None:
        """Give a piece that was kept, or None."""
        try:
            data = self._file(name).read_bytes()
        except OSError:
            return None
        digest, piece = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return piece if hashlib.sha256(piece).digest() == digest else None

    def put(self, name: str, piece: bytes) -> None:
        """Keep a piece."""
        if not self._writable:
            return
        target = self._file(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
                try:
                    file.write(hashlib.sha256(piece).digest())
                    file.write(piece)
                    file.close()
                    Path(file.name).replace(target)
                except BaseException:
                    with suppress(OSError):
                        Path(file.name).unlink()
                    raise
        except OSError:
            self._writable = False
        else:
            self.kept += 1

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self.path.joinpath(*name.split("/"))


def resumed(
    work: WorkFolder | None,
    pool: Workers,
    function: Callable[[T], R],
    jobs: Sequence[T],
    *,
    names: Sequence[str],
    kind: type[R],
    is_valid: Callable[[R], bool] = lambda _: True,
) -> Iterator[tuple[int, R]]:
    """Run a function over jobs as :meth:`Workers.map` does, but not over those that were done before.

    Parameters
    ----------
    work : WorkFolder or None
        Where finished pieces are; None keeps nothing.
    pool : Workers
        Who works.
    function, jobs
        As of :meth:`Workers.map`.
    names : sequence of str
        What each job's result is kept as.
    kind : type
        The results' type.
    is_valid : callable
        Whether a result that was kept still holds.
    """
    left: list[int] = []
    for index, name in enumerate(names):
        found = _kept(work, name, kind)
        if found is not None and is_valid(found):
            assert work is not None
            work.reused += 1
            yield index, found
        else:
            left.append(index)
    for position, result in pool.map(function, (jobs[index] for index in left)):
        if work is not None:
            work.put(names[left[position]], pack(result))
        yield left[position], result


def _kept(work: WorkFolder | None, name: str, kind: type[R]) -> R | None:
    data = work.get(name) if work is not None else None
    if data is None:
        return None
    try:
        return unpack(data, kind)
    except ValueError:
        return None
