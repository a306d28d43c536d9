"""Taking what a server sends, and no more of it than was asked for, whatever it announces.

Must not know how it is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uws_store.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LARGEST_ANSWER_BYTES",
    "LARGEST_WHOLE_BYTES",
    "MOST_IDLE_PAGES",
    "MOST_LISTED",
    "PAGE_KEYS",
    "Listing",
    "Wanted",
    "range_header",
    "require_plain",
]

LARGEST_ANSWER_BYTES = 8 << 20
"""The longest answer that is no object: a page of :data:`PAGE_KEYS` keys of 1024 bytes has half of it at most."""

LARGEST_WHOLE_BYTES = 256 << 20
"""The longest object that is read without saying how much of it is wanted. Shards and documents are read by ranges."""

PAGE_KEYS = 1000
MOST_LISTED = 4_000_000
MOST_IDLE_PAGES = 100


class Wanted:
    """The bytes that were asked for, out of an answer that comes in pieces.

    Parameters
    ----------
    start, end : int or None
        The range that was asked for: a negative start counts from the end; no start asks for everything.
    is_part : bool
        Whether the answer is that range; else it is the whole object.
    """

    def __init__(self, start: int | None, end: int | None, *, is_part: bool) -> None:
        self._last = -start if start is not None and start < 0 else None
        first = 0 if start is None or start < 0 else start
        self._skip = 0 if is_part else first
        self._most = None if end is None else end - first
        self._held = bytearray()

    def take(self, piece: bytes) -> bool:
        """Take the next piece; False when nothing further is wanted."""
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        self._held += memoryview(piece)[skipped:]
        if self._last is not None:
            # A suffix: the end of what comes. Cut now and then, so that it costs time in proportion.
            if len(self._held) > 2 * self._last + len(piece):
                del self._held[: len(self._held) - self._last]
            return True
        return self._most is None or len(self._held) < self._most

    def data(self) -> bytes:
        """What was asked for, as far as it came."""
        if self._last is not None:
            return bytes(self._held[max(0, len(self._held) - self._last) :])
        return bytes(self._held if self._most is None else memoryview(self._held)[: self._most])


def range_header(start: int, end: int | None) -> str:
    """Give the value of a ``Range`` header; a negative start counts from the end."""
    return f"bytes={start}" if start < 0 else f"bytes={start}-{'' if end is None else end - 1}"


def require_plain(encoding: str | None) -> None:
    """Refuse an answer that is compressed, though it was asked for as it is stored.

    Its length says nothing of what it unpacks to, and ranges are of stored bytes.

    Raises
    ------
    OSError
        When it is.
    """
    if encoding is not None and encoding.strip().lower() not in {"", "identity"}:
        raise OSError(f"the server sends its objects as {encoding[:20]}; let it send them as they are stored")


class Listing:
    """The pages of a listing, which ends: what it may hold, and how often a page may bring nothing new, is bounded.

    Attributes
    ----------
    found : dict of str to object
        What the pages told of each key.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._idle = 0

    def take(self, page: Mapping[str, object]) -> None:
        """Take the next page.

        Raises
        ------
        StorageError
            Kind ``storage/io``, when there are more objects than any registry has, or the pages go on without any.
        """
        before = len(self.found)
        self.found.update(page)
        self._idle = 0 if len(self.found) > before else self._idle + 1
        if len(self.found) > MOST_LISTED or self._idle > MOST_IDLE_PAGES:
            said = (
                f"{MOST_IDLE_PAGES} pages without an object that was not listed before"
                if self._idle
                else f"more than {MOST_LISTED} objects"
            )
            raise StorageError(
                f"the storage lists {said}; use a prefix of its own for the registry, and see what the storage does "
                "with uws-store doctor",
                kind="storage/io",
            )
