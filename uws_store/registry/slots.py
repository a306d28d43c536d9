"""Families that are read when they are first asked for, so that opening a registry does not read them all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from uws_store.metadata.log import IndexEntry

__all__ = ["Families", "FamilySlot"]

F = TypeVar("F")


class FamilySlot(Generic[F]):
    """A place for a family: the family itself, or what makes it. Threads may share it.

    Parameters
    ----------
    value : FamilyState, optional
        The family.
    make : callable, optional
        Makes it; it is called when there is no value, and what it raises leaves the slot as it was.
    entry : IndexEntry, optional
        The snapshot that holds exactly this family, where there is one.
    """

    __slots__ = ("_lock", "_make", "_value", "entry")

    def __init__(
        self,
        value: F | None = None,
        *,
        make: Callable[[], F] | None = None,
        entry: IndexEntry | None = None,
    ) -> None:
        assert (value is None) != (make is None)
        self._value = value
        self._make = make
        self._lock = threading.Lock()
        self.entry = entry

    @property
    def is_read(self) -> bool:
        """Whether asking for the family costs nothing."""
        return self._value is not None

    def get(self, *, keep: bool = True) -> F:
        """Give the family.

        Parameters
        ----------
        keep : bool
            Hold it, so that the next call costs nothing; without it a walk over all families holds one at a time.
        """
        if self._value is not None:
            return self._value
        with self._lock:
            if self._value is None:
                assert self._make is not None
                made = self._make()
                if not keep:
                    return made
                self._value, self._make = made, None
            return self._value


class Families(Mapping[str, F]):
    """Families by name; looking one up may read it.

    Parameters
    ----------
    slots : Mapping of str to FamilySlot
        Is not copied, and must not change any more.
    """

    __slots__ = ("slots",)

    def __init__(self, slots: Mapping[str, FamilySlot[F]]) -> None:
        self.slots = slots

    def __getitem__(self, name: str) -> F:
        return self.slots[name].get()

    def __contains__(self, name: object) -> bool:
        return name in self.slots

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __repr__(self) -> str:
        return f"Families({', '.join(sorted(self.slots))})"

    def walk(self) -> Iterator[F]:
        """All families by name, each held only as long as the caller holds it."""
        for name in sorted(self.slots):
            yield self.slots[name].get(keep=False)
