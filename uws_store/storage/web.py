"""A registry on a web server that serves files: reading only.

Owns the two requests that reading needs. Must not know paths or errors of ours, but for what cannot be done here.
"""

from __future__ import annotations

import datetime as dt
import email.utils
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import tenacity
from fsspec.asyn import sync

from uws_store.errors import StorageError
from uws_store.storage.bounded import Wanted, range_header, require_plain
from uws_store.storage.faults import fault_of
from uws_store.storage.remote import Backend, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WebBackend"]

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_PARTIAL_CONTENT = 206


def _is_transient(error: BaseException) -> bool:
    return fault_of(error).kind in {"storage/unreachable", "storage/throttled"}


_REPEATED = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_transient),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    stop=tenacity.stop_after_attempt(4),
    reraise=True,
)


class WebBackend(Backend):
    """Files of a web server, by their URLs.

    Parameters
    ----------
    headers : dict of str to str, optional
        Sent with every request.
    **options
        What :class:`fsspec.implementations.http.HTTPFileSystem` takes.
    """

    def __init__(self, *, headers: dict[str, str] | None = None, **options: Any) -> None:  # noqa: ANN401 - the library's own
        import aiohttp  # noqa: PLC0415 - an optional package
        from fsspec.implementations.http import HTTPFileSystem  # noqa: PLC0415 - needs aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S)
        # What a server compresses all the same is refused, and not unpacked to see how long it is.
        client = {"timeout": timeout, "auto_decompress": False, **options.pop("client_kwargs", {})}
        self._files = HTTPFileSystem(client_kwargs=client, **options)
        # Ranges are of the bytes as stored, so nothing is to be compressed on the way.
        self._headers = {**(headers or {}), "Accept-Encoding": "identity"}

    @_REPEATED
    def fetch(self, key: str, start: int | None, end: int | None) -> bytes:
        """See :meth:`Backend.fetch`; a server that knows no ranges sends the whole object every time."""
        data: bytes = sync(self._files.loop, self._get, key, start, end)
        return data

    @_REPEATED
    def info(self, key: str) -> ObjectInfo:
        """See :meth:`Backend.info`."""
        found: ObjectInfo = sync(self._files.loop, self._head, key)
        return found

    def create(self, key: str, data: bytes) -> NoReturn:
        """Refuse: nothing can be written."""
        del key, data
        _refuse("written", "storage/read-only")

    def replace(self, key: str, data: bytes) -> NoReturn:
        """Refuse: nothing can be written."""
        del key, data
        _refuse("written", "storage/read-only")

    def remove(self, key: str) -> NoReturn:
        """Refuse: nothing can be deleted."""
        del key
        _refuse("deleted", "storage/read-only")

    def keys(self, prefix: str) -> Iterable[str]:
        """Refuse: a web server tells no names."""
        del prefix
        _refuse("listed", "storage/no-listing")

    async def _get(self, key: str, start: int | None, end: int | None) -> bytes:
        session = await self._files.set_session()
        headers = dict(self._headers)
        if start is not None:
            headers["Range"] = range_header(start, end)
        async with session.get(_address(key), headers=headers) as answer:
            answer.raise_for_status()
            require_plain(answer.headers.get("Content-Encoding"))
            wanted = Wanted(start, end, is_part=answer.status == _PARTIAL_CONTENT)
            async for piece in answer.content.iter_any():
                if not wanted.take(piece):
                    break
            return wanted.data()

    async def _head(self, key: str) -> ObjectInfo:
        session = await self._files.set_session()
        async with session.head(_address(key), headers=self._headers, allow_redirects=True) as answer:
            answer.raise_for_status()
            size = answer.headers.get("Content-Length", "")
            if not size.isdecimal():
                raise OSError("the server does not tell the size")
            return ObjectInfo(int(size), _moment(answer.headers.get("Last-Modified")))


def _address(key: str) -> Any:  # noqa: ANN401 - of an optional package
    from yarl import URL  # noqa: PLC0415 - comes with aiohttp

    scheme, _, rest = key.partition("://")
    host, _, path = rest.partition("/")
    return URL(f"{scheme}://{host}/{quote(path)}", encoded=True)


def _moment(text: str | None) -> float | None:
    try:
        return (
            None if text is None else email.utils.parsedate_to_datetime(text).astimezone(dt.UTC).timestamp()
        )
    except ValueError:
        return None


def _refuse(what: str, kind: str) -> NoReturn:
    raise StorageError(
        f"a registry on a web server can be read, and not be {what}; use the URL of the storage behind it",
        kind=kind,
    )
