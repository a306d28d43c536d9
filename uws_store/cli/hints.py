"""The command that comes next, written so that it can be pasted: with the registry and the options that this one was given.

Owns what of a storage's options is written; credentials never are. Must not know what the commands do.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping

from uws_store.storage import public_options

__all__ = ["next_command", "storage_command"]


def next_command(
    *words: str,
    registry: str | None,
    zoo_options: Mapping[str, object] | None = None,
) -> str:
    """Write a command.

    Parameters
    ----------
    *words : str
        The command and what it is given.
    registry : str or None
        As it was given: a :class:`~uws_store.storage.StorageUrl` has options.
    zoo_options : Mapping of str to object, optional
        What the zoo's storage was opened with.

    Returns
    -------
    str
        Without options that may be credentials: these are to be given as before.
    """
    line = ["uws-store", *words]
    if registry is not None:
        line += ["--registry", registry, *_flags("--storage-option", public_options(registry))]
    if zoo_options:
        line += _flags("--zoo-option", public_options(zoo_options))
    return shlex.join(line)


def storage_command(command: str, url: str, *words: str) -> str:
    """Write a command about a storage, whose URL is its argument, with the options that the URL has."""
    return shlex.join(["uws-store", command, url, *words, *_flags("--storage-option", public_options(url))])


def _flags(flag: str, options: Mapping[str, object]) -> Iterator[str]:
    for name, value in options.items():
        yield flag
        # Text goes as it is; true, false, null and objects as JSON has them.
        yield f"{name}={value if isinstance(value, str) else json.dumps(value)}"
