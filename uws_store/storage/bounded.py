"""Taking what a server sends, and no more of it than was asked for, whatever it announces.

Must not know how it is sent.
"""

from __future__ import annotations

__all__ = ["Wanted", "require_plain"]


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
