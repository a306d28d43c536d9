"""Reading a file of a Hub, or a range of it, and telling one that is not there as Python does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, http_stream_backoff

__all__ = ["LIBRARY", "TIMEOUT_S", "HubFileInfo", "Sink", "fetch_file", "files_as_python_tells"]

LIBRARY = "uws-store"
TIMEOUT_S = 60
_PARTIAL_CONTENT = 206


@dataclass(frozen=True, slots=True)
class HubFileInfo:
    """What the Hub says of a file.

    Attributes
    ----------
    size : int
        Bytes.
    modified : float or None
        Seconds since 1970 by the Hub's clock: when the file was last changed; None when that was not asked for.
    """

    size: int
    modified: float | None


class Sink(Protocol):
    """What takes an answer in pieces."""

    def take(self, piece: bytes) -> bool:
        """Take a piece; False when nothing further is wanted."""
        ...

    def data(self) -> bytes:
        """All that was taken."""
        ...


def fetch_file(
    url: str,
    start: int | None,
    end: int | None,
    *,
    token: str | bool | None,
    sink: Callable[[bool, str | None], Sink],
) -> bytes:
    """Read a file or a range of it.

    Parameters
    ----------
    url : str
        Where the Hub resolves it.
    start, end : int or None
        The range.
    token : str or bool, optional
        By default that of the library's own login; False for none.
    sink : callable
        Told whether the answer is the range alone, and how it is compressed, gives what takes its pieces.

    Raises
    ------
    FileNotFoundError
        When there is none.
    """
    headers = {**build_hf_headers(token=token, library_name=LIBRARY), "Accept-Encoding": "identity"}
    if start is not None:
        last = "" if end is None else str(end - 1)
        headers["Range"] = f"bytes={start}" if start < 0 else f"bytes={start}-{last}"
    with files_as_python_tells():
        answer = http_stream_backoff(
            "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S, max_retries=3
        )
        with answer as response:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            taking = sink(response.status_code == _PARTIAL_CONTENT, response.headers.get("Content-Encoding"))
            for piece in response.iter_raw():
                if not taking.take(piece):
                    break
            return taking.data()
    raise AssertionError("an answer or an error")


class files_as_python_tells:  # noqa: N801 - used like a function
    """Tell a file that is not there by `FileNotFoundError`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, EntryNotFoundError):
            raise FileNotFoundError(str(error)) from error
