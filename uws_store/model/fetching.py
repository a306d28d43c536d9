"""A model's objects on their way: which of its read groups came, and in how many requests all of them do.

Knows nothing about how a tensor is made of its bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from uws_store.basis import Basis
from uws_store.store import ArrayReader, Arriving

__all__ = ["Fetch"]

_REQUESTS = 4
"""Of a compact model: with its document, the log and its basis's it stays below the promised six."""

_EXACT_REQUESTS = 8
"""Of an exact one, of which ten are promised."""


class Fetch:
    """A context in which a model's objects come while its tensors are made.

    Parameters
    ----------
    readers : mapping of str to ArrayReader
        The arrays that are needed.
    basis : Basis
        The model's basis.
    residual_starts : mapping
        First element of each read group in the residual array of each width; empty where no residuals are needed.
    stopped : threading.Event, optional
        When it is set, nothing more is asked for.
    """

    def __init__(
        self,
        readers: Mapping[str, ArrayReader],
        *,
        basis: Basis,
        residual_starts: Mapping[tuple[int, str], int],
        stopped: threading.Event | None,
    ) -> None:
        self._readers = readers
        self._basis = basis
        self._starts = residual_starts
        requests = _EXACT_REQUESTS if residual_starts else _REQUESTS
        self._arriving = Arriving(tuple(readers.values()), requests=requests, stopped=stopped)

    def __enter__(self) -> Self:
        self._arriving.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._arriving.__exit__(kind, error, traceback)

    def turn(self, groups: Iterable[int]) -> int:
        """Which piece of the core brings the last of some read groups."""
        core = self._readers.get("core")
        if core is None:
            return 0
        held = (self._basis.groups[index] for index in groups)
        return max((core.piece_of(group.start, group.stop) for group in held), default=0)

    def wait(self, groups: Iterable[int]) -> bool:
        """Wait until all of some read groups came; tell whether they did, for the fetch may have been stopped.

        Raises
        ------
        UwsError
            What fetching them failed with.
        """
        return all(
            reader.wait(start, stop) for index in groups for reader, start, stop in self._ranges(index)
        )

    def wait_for_private(self) -> bool:
        """Wait until all private tensors came; as :meth:`wait`."""
        private = [reader for name, reader in self._readers.items() if name.startswith("private")]
        return all(reader.wait(0, reader.record.length) for reader in private)

    def finish(self) -> None:
        """Wait until everything came and was compared with the digests on record.

        Raises
        ------
        FormatError
            Damaged or missing objects (kinds ``format/...``).
        """
        self._arriving.finish()

    def _ranges(self, index: int) -> Iterable[tuple[ArrayReader, int, int]]:
        group = self._basis.groups[index]
        if "core" in self._readers:
            yield self._readers["core"], group.start, group.stop
        for (held, width), start in self._starts.items():
            reader = self._readers.get("residual" + width.removeprefix("uint"))
            if held == index and reader is not None:
                yield reader, start, self._starts.get((index + 1, width), reader.record.length)
