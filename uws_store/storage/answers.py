"""The answers of a cloud, taken through its own client: never more of one than was asked for.

Clients read an answer whole before they look at it. Their sessions are given a class of answers that ends a range where
the range ends, and refuses all others (listings, receipts, refusals, what is compressed) above a length. Must not know
what is stored, nor which cloud answers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from uws_store.errors import StorageError
from uws_store.storage.bounded import LARGEST_ANSWER_BYTES, require_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BoundedAnswer", "session_options"]

_RANGE = re.compile(r"bytes=(?:(\d+)-(\d+)|-(\d+))")
_OK = 200
_PARTIAL_CONTENT = 206
_PIECE_BYTES = 1 << 16


class _Cut:
    """What an answer is read from, up to a number of bytes.

    Stands where aiohttp's `StreamReader` stood; whatever does not read is that reader's.
    """

    def __init__(
        self, inner: aiohttp.StreamReader, answer: BoundedAnswer, skip: int, most: int, *, ends: bool
    ) -> None:
        self._inner = inner
        self._answer = answer
        self._skip = skip
        self._left = most
        self._most = most
        self._ends = ends
        self._over = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the reader's own
        return getattr(self._inner, name)

    def at_eof(self) -> bool:
        """Whether all was read."""
        return self._over or self._inner.at_eof()

    async def read(self, n: int = -1) -> bytes:
        """Read what is left, or a piece of at most `n` bytes; nothing behind the end."""
        if n >= 0:
            return await self._piece(n)
        held = bytearray()
        while piece := await self._piece(_PIECE_BYTES):
            held += piece
        return bytes(held)

    async def readany(self) -> bytes:
        """Read a piece."""
        return await self._piece(_PIECE_BYTES)

    async def _piece(self, most: int) -> bytes:
        if self._over or not most:
            return b""
        self._answer.require_plain()
        while self._skip:
            skipped = await self._inner.read(min(self._skip, _PIECE_BYTES))
            if not skipped:
                return b""
            self._skip -= len(skipped)
        # One byte more tells an end from a cut.
        piece = await self._inner.read(min(most, max(self._left, 1)))
        if len(piece) > self._left:
            self._over = True
            self._answer.close()
            if self._ends:
                return b""
            raise StorageError(
                f"the storage answers with more than {self._most} bytes where so many are never needed; it was cut off",
                kind="storage/io",
            )
        self._left -= len(piece)
        return piece


class BoundedAnswer(aiohttp.ClientResponse):
    """An answer of which no more is taken than was asked for."""

    cuts_ranges = True
    """Whether ranges end here; else they are left to who reads them piece by piece."""

    async def start(self, connection: Any) -> BoundedAnswer:  # noqa: ANN401 - of no public type
        """Begin to read it, once its head is there."""
        await super().start(connection)
        if self.method.upper() == "HEAD":
            return self
        first, last, suffix = _asked(self.request_info.headers)
        if (first, last, suffix) == (0, 0, 0) or self.status not in {_OK, _PARTIAL_CONTENT}:
            self._cut(0, LARGEST_ANSWER_BYTES, ends=False)
        elif not self.cuts_ranges:
            pass
        elif self.status == _PARTIAL_CONTENT:
            self._cut(0, suffix or last - first, ends=True)
        elif suffix:  # a server that knows no ranges: the whole object
            self._cut(0, LARGEST_ANSWER_BYTES, ends=False)
        else:
            self._cut(first, last - first, ends=True)
        return self

    def require_plain(self) -> None:
        """Refuse it when it is compressed; see :func:`uws_store.storage.bounded.require_plain`."""
        try:
            require_plain(self.headers.get("Content-Encoding"))
        except OSError as error:
            self.close()
            raise StorageError(str(error), kind="storage/io") from error

    def _cut(self, skip: int, most: int, *, ends: bool) -> None:
        self.content = cast("aiohttp.StreamReader", _Cut(self.content, self, skip, most, ends=ends))


def session_options(*, connect_s: float, read_s: float) -> dict[str, Any]:
    """Give what a session of aiohttp is made with.

    Parameters
    ----------
    connect_s, read_s : float
        Seconds that making a connection, and any silence of the server, may take. A transfer as a whole may take
        longer than any number that could be set.
    """
    return {
        "response_class": BoundedAnswer,
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
        "timeout": aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=read_s),
    }


def _asked(headers: Mapping[str, str]) -> tuple[int, int, int]:
    """Read the range of a request: first byte, one past the last, and how many where it counts from the end."""
    matched = _RANGE.fullmatch(headers.get("x-ms-range", headers.get("Range", "")))
    if matched is None:
        return 0, 0, 0
    first, last, suffix = matched.groups(default="")
    return (0, 0, int(suffix)) if suffix else (int(first), int(last) + 1, 0)
