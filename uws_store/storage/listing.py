"""What a listing tells besides names: sizes and times, where the storage's pages hold them, without a request for each object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from uws_store.storage.protocol import Storage

__all__ = ["Listed", "list_entries"]


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing tells of it.

    Attributes
    ----------
    path : str
        Its path.
    size_bytes : int or None
        Its length; None where the listing does not tell.
    modified : float or None
        When it was last written, by the storage's clock; None where the listing does not tell.
    """

    path: str
    size_bytes: int | None = None
    modified: float | None = None


@runtime_checkable
class _Telling(Protocol):
    def entries(self, prefix: str) -> Iterator[Listed]: ...


def list_entries(storage: Storage, prefix: str) -> Iterator[Listed]:
    """List the objects below a folder, with what the pages of the listing tell of each; in the order of their paths."""
    if isinstance(storage, _Telling):
        return storage.entries(prefix)
    return map(Listed, storage.list(prefix))
