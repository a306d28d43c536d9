"""How the work tells how far it is.

Owns the form of that report. Must not know who listens.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called each time a piece of a phase is done, by the thread that began the work."""

    def __call__(self, phase: str, done: int, total: int, size_bytes: int = 0, /) -> None:
        """Hear of it.

        Parameters
        ----------
        phase : str
            Its name, such as ``reading`` or ``encoding``.
        done, total : int
            Pieces.
        size_bytes : int
            What the pieces that are done take in the checkpoints, summed over the phase; 0 where that is not counted.
        """


def silent(_phase: str, _done: int, _total: int, _size_bytes: int = 0, /) -> None:
    """Listen to nothing."""
