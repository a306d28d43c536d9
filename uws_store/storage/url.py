"""A storage's URL with the options it is opened by, which never show.

Owns how options are written on a command line and which of them may be seen. Must not know any backend.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Self

from uws_store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["StorageUrl", "options_of", "parse_options", "public_options"]

# Every other option may be a credential, and is treated as one.
_PUBLIC = frozenset(
    {
        "account_host",
        "account_name",
        "anon",
        "client_kwargs",
        "config_kwargs",
        "default_location",
        "endpoint",
        "endpoint_url",
        "location_mode",
        "max_concurrency",
        "private",
        "profile",
        "project",
        "region_name",
        "repo_type",
        "requester_pays",
        "requests_timeout",
        "retries",
        "revision",
        "s3_additional_kwargs",
        "signature_version",
        "timeout",
        "use_ssl",
        "verify",
    }
)
_LITERALS = {"true": True, "false": False, "null": None}
_SHORTEST_SECRET = 4
_USER_OF_URL = re.compile(r"://[^/]*@")


class StorageUrl(str):
    """A URL that carries the options its storage is opened with.

    It is the URL wherever text is wanted: printed, compared, written to JSON. The options are in none of these.

    Parameters
    ----------
    url : str
        The URL; the options of another `StorageUrl` are kept where `options` does not name them.
    options : Mapping of str to object, optional
        What the backend's fsspec file system takes, such as ``endpoint_url``.
    """

    __slots__ = ("options",)

    options: dict[str, Any]

    def __new__(cls, url: str, options: Mapping[str, object] | None = None) -> Self:
        """Make one; text cannot be changed later."""
        made = super().__new__(cls, url)
        made.options = {**options_of(url), **(options or {})}
        return made

    def secrets(self) -> frozenset[str]:
        """What must not be seen: every text among the options whose name is not known to be harmless."""
        return frozenset(_texts(self.options, hidden=False))


def options_of(url: str) -> dict[str, Any]:
    """Give the options that a URL carries; plain text carries none."""
    return dict(url.options) if isinstance(url, StorageUrl) else {}


def public_options(source: str | Mapping[str, object]) -> dict[str, Any]:
    """Give the options, of a URL or by themselves, that may be seen: those that are known to be no credentials.

    An object's fields are held to the same list; one of which none is left is left out.
    """
    options = options_of(source) if isinstance(source, str) else source
    shown: dict[str, Any] = {}
    for name, value in options.items():
        # A user and a password may stand in a URL, too.
        if name not in _PUBLIC or (isinstance(value, str) and _USER_OF_URL.search(value)):
            continue
        kept = public_options(value) if isinstance(value, dict) else value
        if kept or not isinstance(value, dict):
            shown[name] = kept
    return shown


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read options as they are typed: ``key=value`` each.

    ``true``, ``false`` and ``null`` are what they say, a value in braces is a JSON object, and all others are text.

    Raises
    ------
    InvalidInputError
        Kind ``invalid-input/storage-option``; the value is not shown.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidInputError(
                "a storage option is key=value, such as endpoint_url=https://minio.example:9000",
                kind="invalid-input/storage-option",
            )
        if name in options:
            raise InvalidInputError(
                f"the storage option {name} is given twice", kind="invalid-input/storage-option"
            )
        options[name] = _value(name, value)
    return options


def _value(name: str, text: str) -> object:
    if not text.startswith("{"):
        return _LITERALS.get(text, text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # The cause would show the value.
        raise InvalidInputError(
            f"the storage option {name} begins with a brace and is not a JSON object",
            kind="invalid-input/storage-option",
        ) from None


def _texts(value: object, *, hidden: bool) -> Iterator[str]:
    if isinstance(value, str):
        if hidden and len(value) >= _SHORTEST_SECRET:
            yield value
    elif isinstance(value, dict):
        for name, held in value.items():
            yield from _texts(held, hidden=name not in _PUBLIC)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _texts(held, hidden=hidden)
