"""The names people give: tasks and families, what they may hold, and when two of them collide.

Owns the rules for a name and nothing else. Must not know about files, registries or checkpoints. A task's name is
never used as a path, so it may hold spaces, emoji and slashes; a family's name is one segment of a path on every
file system and every object store, so it may not.
"""

from __future__ import annotations

import re
import unicodedata

from uws_store.errors import InvalidInputError

__all__ = [
    "MAX_FAMILY_LENGTH",
    "MAX_TASK_BYTES",
    "MAX_TASK_LENGTH",
    "check_family_name",
    "check_task_name",
    "collision_key",
]

MAX_TASK_LENGTH = 200
MAX_TASK_BYTES = 255
MAX_FAMILY_LENGTH = 100

_FAMILY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Windows keeps these for devices, with any extension and in any case.
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)
# Marks that change the direction of the text around them: a name must be what it looks like.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_task_name(name: str) -> str:
    """Check the name of a task and give it in its one spelling.

    Parameters
    ----------
    name : str
        At most 200 characters and 255 bytes of UTF-8. May hold spaces, emoji and ``/`` (``org/name``).

    Returns
    -------
    str
        The name in Unicode NFC.

    Raises
    ------
    InvalidInputError
        When the name cannot be used (kind ``invalid-input/task-name``).
    """
    reason = _type_problem(name) or _task_problem(unicodedata.normalize("NFC", name))
    if reason:
        raise InvalidInputError(
            f"{_shown(name)} cannot be a task's name: {reason}; rename the task",
            kind="invalid-input/task-name",
        )
    return unicodedata.normalize("NFC", name)


def check_family_name(name: str) -> str:
    """Check the name of a family, which is also the name of its folder.

    Parameters
    ----------
    name : str
        1 to 100 ASCII letters, digits, ``-``, ``_`` and ``.``.

    Returns
    -------
    str
        The same name.

    Raises
    ------
    InvalidInputError
        When the name cannot be used (kind ``invalid-input/family-name``).
    """
    reason = _type_problem(name) or _family_problem(name)
    if reason:
        raise InvalidInputError(
            f"{_shown(name)} cannot be a family's name: {reason}; choose another, for example 'vit-digits'",
            kind="invalid-input/family-name",
        )
    return name


def collision_key(name: str) -> str:
    """Give the key that two names share when some file system or reader would take one for the other.

    This is Unicode's canonical caseless matching (The Unicode Standard, section 3.13, D145), in NFC.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _type_problem(name: object) -> str | None:
    if not isinstance(name, str):
        return f"it is a {type(name).__name__}, not text"
    if not name:
        return "it is empty"
    if any(unicodedata.category(character) == "Cs" for character in name):
        return "it holds half of a surrogate pair, which no UTF-8 can express"
    return None


def _task_problem(name: str) -> str | None:
    """Say why a task cannot have this name (NFC, not empty), or None."""
    forbidden = {
        "\\": "it holds a backslash",
        "@": "it holds '@', which separates a task from its version",
    }
    reasons = [reason for character, reason in forbidden.items() if character in name]
    if name != name.strip():
        reasons.append("it begins or ends with white space")
    parts = name.split("/")
    if "" in parts:
        reasons.append("it begins or ends with '/', or holds '//'")
    if "." in parts or ".." in parts:
        reasons.append("it holds '.' or '..' as a part of a path")
    if any(_is_control(character) for character in name):
        reasons.append("it holds a control character, a line break or a mark of text direction")
    if len(name) > MAX_TASK_LENGTH:
        reasons.append(f"it has {len(name)} characters and may have {MAX_TASK_LENGTH}")
    if len(name.encode()) > MAX_TASK_BYTES:
        reasons.append(f"it has {len(name.encode())} bytes of UTF-8 and may have {MAX_TASK_BYTES}")
    return "; ".join(reasons) or None


def _family_problem(name: str) -> str | None:
    """Say why a family cannot have this name (not empty), or None."""
    if len(name) > MAX_FAMILY_LENGTH:
        return f"it has {len(name)} characters and may have {MAX_FAMILY_LENGTH}"
    if not _FAMILY.fullmatch(name):
        return "it may hold the letters A-Z and a-z, digits, '-', '_' and '.', and begins with neither '-' nor '.'"
    if name.endswith("."):
        return "it ends with '.', which Windows drops from the names of folders"
    if name.split(".", maxsplit=1)[0].casefold() in _RESERVED:
        return "Windows keeps it for a device"
    return None


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Zl", "Zp"} or character in _DIRECTION_MARKS


def _shown(name: object) -> str:
    text = ascii(name) if isinstance(name, str) and _type_problem(name) else repr(name)
    return text if len(text) <= 80 else f"{text[:60]}... "
