"""Keeping the text that a Hub shows of a repository up to date with the family that lies there.

Owns when a README.md is written: where there is none, or one of ours for the same family. Must not know its text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from uws_store.api.cache import at_source
from uws_store.api.card import card, is_ours
from uws_store.api.opening import open_registry
from uws_store.errors import AlreadyExistsError, InvalidInputError, UwsError
from uws_store.registry import ModelEntry, Registry, RegistryState
from uws_store.storage import CachedStorage, Storage
from uws_store.storage.hugging import HubStorage
from uws_store.storage.probing import LookFirstStorage

__all__ = ["card_beside", "publish_card"]

_LONGEST_BYTES = 1 << 22


def publish_card(family: str, *, registry: str | Registry | None = None, overwrite: bool = False) -> str:
    """Write a family's model card into the repository of the Hub that it lies in: one commit, or none.

    Parameters
    ----------
    family : str
        The family.
    registry : str or Registry, optional
        A registry at the root of a repository: ``hf://org/name``.
    overwrite : bool
        Replace a README.md that was written by hand or for another family.

    Returns
    -------
    str
        The card.

    Raises
    ------
    InvalidInputError
        When the registry is not at the root of a repository (``invalid-input/no-card``).
    AlreadyExistsError
        When there is a README.md that is not ours to replace (``already-exists/file``).
    NotFoundError
        When there is no such registry or family.
    """
    opened = at_source(open_registry(registry))
    path = _card_path(opened.storage)
    if path is None:
        raise InvalidInputError(
            f"{opened.url} shows no model card: only a registry at the root of a repository of the Hub does "
            "(hf://org/name)",
            kind="invalid-input/no-card",
        )
    text = card(family, registry=opened, repository=opened.url)
    present = opened.storage.read_at_most(path, _LONGEST_BYTES)
    if present is not None and not (overwrite or is_ours(present, family)):
        raise AlreadyExistsError(
            f"{opened.url} has a {path} that was written by hand or for another family; give --overwrite to replace it",
            kind="already-exists/file",
        )
    if present != text.encode():
        opened.storage.put(path, text.encode())
    return text


def card_beside(
    family: str, source: Registry, target: Registry
) -> Callable[[RegistryState], Mapping[str, bytes]] | None:
    """Tell what to store along with a commit so that the target shows what it holds then.

    Parameters
    ----------
    family : str
        The family that is brought.
    source, target : Registry
        Records are read from the source, and from the target where the source has none.

    Returns
    -------
    callable or None
        See :meth:`Registry.publish`; None where nothing is shown.
    """
    path = _card_path(target.storage)
    if path is None:
        return None
    source, target = at_source(source), at_source(target)

    def beside(state: RegistryState) -> Mapping[str, bytes]:
        try:
            present = target.storage.read_at_most(path, _LONGEST_BYTES)
            if present is not None and not is_ours(present, family):
                return {}
            text = card(family, registry=_Ahead(source, target, state), repository=target.url)
        except UwsError:
            return {}  # the commit is as good without
        return {path: text.encode()}

    return beside


def _card_path(storage: Storage) -> str | None:
    beneath = storage.inner if isinstance(storage, CachedStorage) else storage
    return beneath.card_path if isinstance(beneath, HubStorage) else None


class _Ahead(Registry):
    """A registry as a commit will leave it."""

    def __init__(self, source: Registry, target: Registry, state: RegistryState) -> None:
        super().__init__(_Nearer(source.storage, target.storage), target.document)
        self._ahead = state
        self._source = source
        self._near: dict[str, ModelEntry] | None = None

    def state(self, *, refresh: bool = True) -> RegistryState:
        """See :meth:`Registry.state`."""
        del refresh
        return self._ahead

    def storage_of(self, entry: ModelEntry) -> Storage:
        """See :meth:`Registry.storage_of`; of the source where it has the model too."""
        if self._near is None:
            family = self._source.state(refresh=False).families.get(entry.family)
            self._near = {held.digest: held for held in family.models()} if family else {}
        held = self._near.get(entry.digest)
        return super().storage_of(entry) if held is None else self._source.storage_of(held)


class _Nearer(LookFirstStorage):
    """Reads objects that their digest names where they are near, and else where they are asked for."""

    def __init__(self, near: Storage, far: Storage) -> None:
        super().__init__(far)

        def read(path: str, *, start: int | None = None, end: int | None = None) -> bytes:
            there = far if near.size(path) is None else near
            return there.read(path, start=start, end=end)

        def read_at_most(path: str, limit_bytes: int) -> bytes | None:
            found = near.read_at_most(path, limit_bytes)
            return far.read_at_most(path, limit_bytes) if found is None else found

        self.read = read
        self.read_at_most = read_at_most
