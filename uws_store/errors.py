"""The errors of the package: one root, grouped by what a handler would do, with stable kinds.

Every error that leaves the package is a :class:`UwsError`. Its ``kind`` is a stable, append-only word that
programs may match on; its message says what failed, where, what was expected and found, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AlreadyExistsError",
    "FidelityError",
    "FormatError",
    "IncompatibleError",
    "InvalidInputError",
    "MemoryLimitError",
    "NotFoundError",
    "Problem",
    "StorageError",
    "UwsError",
    "WorkerError",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document or a zoo.

    Attributes
    ----------
    loc : str
        Where: a JSON pointer, a tensor name or a file.
    kind : str
        What, as a stable word.
    message : str
        What was expected and found.
    """

    loc: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.loc}: {self.message}"


class UwsError(Exception):
    """Root of all errors of the package.

    Parameters
    ----------
    message : str
        What failed, where, expected and found, what to do next.
    kind : str, optional
        A more precise stable word than the class's own.
    problems : tuple of Problem, optional
        Every problem found, when there can be several.
    """

    default_kind = "error"

    def __init__(self, message: str, *, kind: str | None = None, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind or self.default_kind
        self.problems = problems

    def __str__(self) -> str:
        if not self.problems:
            return self.message
        shown = "".join(f"\n  - {problem}" for problem in self.problems[:20])
        more = f"\n  - and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
        return f"{self.message}{shown}{more}"


class FormatError(UwsError):
    """Stored bytes break the format: damaged, incomplete, hostile, or from a newer version."""

    default_kind = "format"


class NotFoundError(UwsError, KeyError):
    """A name, version or object that does not exist."""

    default_kind = "not-found"


class AlreadyExistsError(UwsError):
    """A name that is taken."""

    default_kind = "already-exists"


class IncompatibleError(UwsError):
    """Things that are each valid and do not fit together: another architecture, another shape."""

    default_kind = "incompatible"


class InvalidInputError(UwsError, ValueError):
    """An argument, an option or a file given by the user that cannot be used."""

    default_kind = "invalid-input"


class FidelityError(UwsError):
    """A promised fidelity that cannot be met."""

    default_kind = "fidelity"


class MemoryLimitError(UwsError):
    """Work that would need more memory than it was allowed."""

    default_kind = "memory-limit"


class StorageError(UwsError, OSError):
    """The storage failed: no space, no permission, no connection."""

    default_kind = "storage"


class WorkerError(UwsError):
    """A worker that was to do a part of the work died or could not be reached."""

    default_kind = "worker"
