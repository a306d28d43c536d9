"""Garbage collection by the names and durations a user gives."""

from __future__ import annotations

import re

from uws_store.api.opening import open_registry
from uws_store.errors import InvalidInputError
from uws_store.registry import Collection, Registry, collect

__all__ = ["gc", "parse_duration"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def parse_duration(text: str) -> float:
    """Read a duration such as ``30d``, ``12h``, ``90m`` or ``45s`` as seconds.

    Raises
    ------
    InvalidInputError
        Kind ``invalid-input/duration``.
    """
    matched = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhdw])", text.strip())
    if matched is None:
        raise InvalidInputError(
            f"{text!r} is no duration; write 30d, 12h, 90m or 45s", kind="invalid-input/duration"
        )
    return float(matched[1]) * _SECONDS[matched[2]]


def gc(
    *,
    registry: str | Registry | None = None,
    dry_run: bool = False,
    keep_last: int | None = None,
    older_than: str | None = None,
    grace: str = "1d",
) -> Collection:
    """Remove what no version of any task reaches any more.

    What a version or an alias reaches is never removed, nor what a publication has uploaded. It takes two calls, a
    grace period apart: the first marks, the second removes. On a disk temporary files that killed writers left go at
    once when they are older than the grace period.

    Parameters
    ----------
    registry : str or Registry, optional
        URL or path; by default ``UWS_STORE_REGISTRY``, else the user's data folder.
    dry_run : bool
        Change nothing, and tell what would be.
    keep_last : int, optional
        Also withdraw the versions of each task but the last so many; never one that an alias stands for.
    older_than : str, optional
        With ``keep_last``: of these only what was published so long ago, such as ``"30d"``.
    grace : str
        How long something must have been unreachable, at least an hour, by the storage's clock.

    Raises
    ------
    InvalidInputError
        For bad options (``invalid-input/gc``, ``invalid-input/duration``).
    NotFoundError
        When there is no such registry.
    UwsError
        When something is damaged or the storage fails; nothing that is reached is removed then.
    """
    return collect(
        open_registry(registry),
        dry_run=dry_run,
        keep_last=keep_last,
        older_than_s=parse_duration(older_than) if older_than is not None else 0.0,
        grace_s=parse_duration(grace),
    )
