"""The environment: every variable the package reads, read here and nowhere else, when it is asked for.

Owns the variables named below, the platform's default places and the tool's own name and version.
Must not know what is kept in those places.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from uws_store.errors import InvalidInputError

__all__ = [
    "CACHE_SIZE_VARIABLE",
    "CACHE_VARIABLE",
    "OFFLINE_VARIABLE",
    "REGISTRY_VARIABLE",
    "cache_folder",
    "cache_limit_bytes",
    "default_registry_url",
    "is_offline",
    "tool_version",
    "working_offline",
]

REGISTRY_VARIABLE = "UWS_STORE_REGISTRY"
"""Names the registry that is used when a command or call names none."""

CACHE_VARIABLE = "UWS_STORE_CACHE"
"""Names the folder that downloaded objects are cached in."""

CACHE_SIZE_VARIABLE = "UWS_STORE_CACHE_SIZE"
"""How large that folder may become."""

OFFLINE_VARIABLE = "UWS_STORE_OFFLINE"
"""Set to anything but 0, it keeps the package from asking storages behind a network."""

_OFFLINE: ContextVar[bool] = ContextVar("uws_store_offline", default=False)


def default_registry_url() -> str:
    """Where families live when nobody says otherwise.

    Returns
    -------
    str
        The value of ``UWS_STORE_REGISTRY``, else ``registry`` in the platform's folder for a user's data
        (``$XDG_DATA_HOME/uws-store``, by default ``~/.local/share/uws-store``).

    Raises
    ------
    InvalidInputError
        When the user has no home folder and names no place (kind ``invalid-input/no-home``).
    """
    named = os.environ.get(REGISTRY_VARIABLE, "")
    return named or str(_user_folder("XDG_DATA_HOME", ".local/share", REGISTRY_VARIABLE) / "registry")


def cache_folder() -> Path:
    """Where downloaded objects may be cached.

    Returns
    -------
    Path
        The value of ``UWS_STORE_CACHE``, else the platform's folder for a user's cache
        (``$XDG_CACHE_HOME/uws-store``, by default ``~/.cache/uws-store``). It need not exist.

    Raises
    ------
    InvalidInputError
        When the user has no home folder and names no place (kind ``invalid-input/no-home``).
    """
    named = os.environ.get(CACHE_VARIABLE, "")
    return Path(named).expanduser() if named else _user_folder("XDG_CACHE_HOME", ".cache", CACHE_VARIABLE)


def cache_limit_bytes() -> int:
    """How large the folder of cached objects may become.

    Returns
    -------
    int
        The value of ``UWS_STORE_CACHE_SIZE`` (bytes, or such as ``20GB``), else 10 GB; 0 keeps nothing.

    Raises
    ------
    InvalidInputError
        When it is no size (kind ``invalid-input/cache-size``).
    """
    text = os.environ.get(CACHE_SIZE_VARIABLE, "") or "10GB"
    matched = re.fullmatch(r"([0-9]{1,18})\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if matched is None:
        raise InvalidInputError(
            f"{CACHE_SIZE_VARIABLE} is {text!r}, which is no size; write 20GB or a number of bytes",
            kind="invalid-input/cache-size",
        )
    unit: int = 1000 ** " KMGT".index(matched[2].upper() or " ")
    return int(matched[1]) * unit


def is_offline() -> bool:
    """Whether storages behind a network are not to be asked: ``UWS_STORE_OFFLINE``, or :func:`working_offline`."""
    return _OFFLINE.get() or os.environ.get(OFFLINE_VARIABLE, "0") not in {"", "0"}


@contextlib.contextmanager
def working_offline(*, offline: bool = True) -> Iterator[None]:
    """Let nothing in a block ask a storage behind a network; with False, leave it as it is."""
    token = _OFFLINE.set(offline or _OFFLINE.get())
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def tool_version() -> str:
    """Name and version of this tool, as records of what it wrote carry them, such as ``uws-store 0.1.0``."""
    try:
        version = importlib.metadata.version("uws-store")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        version = "unknown"
    return f"uws-store {version}"


def _user_folder(variable: str, below_home: str, own_variable: str) -> Path:
    named = os.environ.get(variable, "")
    if os.path.isabs(named):  # noqa: PTH117 - the XDG rule: a relative value is to be ignored
        return Path(named) / "uws-store"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InvalidInputError(
            f"this user has no home folder; set {own_variable} to the place to use",
            kind="invalid-input/no-home",
        ) from error
    if sys.platform == "darwin":
        library = {".local/share": "Library/Application Support", ".cache": "Library/Caches"}
        return home / library[below_home] / "uws-store"
    return home / below_home / "uws-store"
