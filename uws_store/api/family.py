"""Opening families and loading models from them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TypeVar, overload

import torch

from uws_store import layout
from uws_store.basis import Basis
from uws_store.config import default_registry_url
from uws_store.errors import InvalidInputError, MemoryLimitError
from uws_store.loader import LazyStateDict, fill_module
from uws_store.model import Model, Tier
from uws_store.registry import ModelEntry, Registry, RegistryState, split_task
from uws_store.storage import StorageUrl

__all__ = ["Family", "load_model", "open_family", "open_registry"]

M = TypeVar("M", bound=torch.nn.Module)

_KEPT_BASES = 4
_TIERS = ("compact", "exact", "mean")


def open_registry(
    registry: str | Registry | None,
    *,
    create: bool = False,
    storage_options: Mapping[str, object] | None = None,
) -> Registry:
    """Open a registry, to be given to the other functions in place of its URL.

    Parameters
    ----------
    registry : str, Registry or None
        A URL, an open registry, or None for the default.
    create : bool, optional
        Make it when it does not exist.
    storage_options : Mapping of str to object, optional
        See :func:`uws_store.storage.open_storage`. They may hold credentials and are shown nowhere.

    Raises
    ------
    UwsError
        See :meth:`Registry.open`.
    """
    if isinstance(registry, Registry):
        return registry
    return Registry.open(StorageUrl(registry or default_registry_url(), storage_options), create=create)


class _BasisCache:
    """The bases that were used last, so that loading model after model reads each basis once."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, str, str], Basis] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, registry: Registry, family: str, digest: str) -> Basis:
        # The registry's own id is part of the key: another one may since have been made at the same URL.
        key = (registry.url, registry.document.id, digest)
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
                return found
        found = Basis.open(registry.storage, layout.basis_prefix(family, digest), digest=digest)
        with self._lock:
            self._held[key] = found
            while len(self._held) > _KEPT_BASES:
                self._held.popitem(last=False)
        return found


_BASES = _BasisCache()


class Family:
    """An open family: its tasks by name, any of them one call away.

    Made by :func:`open_family`.

    Parameters
    ----------
    registry : Registry
        Where it lies.
    name : str
        The family.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry = registry
        self.name = name
        registry.state().family(name)

    def __repr__(self) -> str:
        return f"Family({self.name!r}, registry={self.registry.url!r})"

    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have a version, sorted."""
        family = self.registry.state().family(self.name)
        return tuple(name for name in sorted(family.tasks) if family.tasks[name].versions)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks())

    def basis(self, digest: str | None = None) -> Basis:
        """The family's basis: the newest revision, or the one with a digest."""
        if digest is None:
            latest = self.registry.state(refresh=False).family(self.name).latest_basis
            assert latest is not None
            digest = latest.digest
        return _BASES.get(self.registry, self.name, digest)

    def resolve(self, task: str, *, revision: int | str | None = None) -> ModelEntry:
        """Find the version that a task and a revision name; the task may carry ``@revision`` itself."""
        return resolve_in(self.registry.state(), self.name, task, revision=revision)

    def model(self, entry: ModelEntry) -> Model:
        """Open one version."""
        prefix = layout.model_prefix(self.name, entry.digest)
        basis = self.basis(entry.basis_digest)
        return Model.open(self.registry.storage, prefix, digest=entry.digest, basis=basis)

    def load(
        self,
        task: str,
        *,
        revision: int | str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        tier: Tier = "compact",
        verify: bool = True,
    ) -> LazyStateDict:
        """Load a model; see :func:`load_model`."""
        if tier not in _TIERS:
            raise InvalidInputError(
                f"tier is one of {', '.join(_TIERS)}, not {tier!r}", kind="invalid-input/tier"
            )
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidInputError(f"weights cannot be loaded as {dtype}", kind="invalid-input/dtype")
        place = _device(device)
        entry = self.resolve(task, revision=revision)
        return LazyStateDict(
            self.model(entry),
            family=self.name,
            task=entry.task,
            version=entry.version,
            tier=tier,
            device=place,
            dtype=dtype,
            verify=verify,
        )


def resolve_in(state: RegistryState, family: str, task: str, *, revision: int | str | None) -> ModelEntry:
    """Resolve a task that may carry ``@revision``; a revision given twice is refused."""
    name, at = split_task(task)
    if at is not None and revision is not None:
        raise InvalidInputError(
            f"{task!r} names a revision, and revision={revision!r} another; give one",
            kind="invalid-input/revision",
        )
    return state.resolve(family, name, revision=at if revision is None else revision)


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        # Also refuses a device that this build or machine has not.
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(
            f"device {device!r} cannot be used: {error}", kind="invalid-input/device"
        ) from error
    if place.type == "meta":
        raise InvalidInputError(
            "device 'meta' holds no weights; pass a module on it as into=, with the device the weights shall be on",
            kind="invalid-input/device",
        )
    return place


def open_family(family: str, *, registry: str | Registry | None = None) -> Family:
    """Open a family, to load many of its models.

    Parameters
    ----------
    family : str
        Its name.
    registry : str or Registry, optional
        URL or path of the registry; by default ``UWS_STORE_REGISTRY``, else the user's data folder.

    Raises
    ------
    NotFoundError
        When there is no such registry or family.
    """
    return Family(open_registry(registry), family)


@overload
def load_model(
    family: str,
    task: str,
    *,
    registry: str | Registry | None = None,
    revision: int | str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    tier: Tier = "compact",
    into: None = None,
    strict: bool = True,
    verify: bool = True,
) -> LazyStateDict: ...


@overload
def load_model(
    family: str,
    task: str,
    *,
    registry: str | Registry | None = None,
    revision: int | str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    tier: Tier = "compact",
    into: M,
    strict: bool = True,
    verify: bool = True,
) -> M: ...


def load_model(
    family: str,
    task: str,
    *,
    registry: str | Registry | None = None,
    revision: int | str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    tier: Tier = "compact",
    into: torch.nn.Module | None = None,
    strict: bool = True,
    verify: bool = True,
) -> LazyStateDict | torch.nn.Module:
    """Load one model of a family.

    Parameters
    ----------
    family, task : str
        Names; the task may be ``task@3`` or ``task@prod``.
    registry : str or Registry, optional
        URL or path; by default ``UWS_STORE_REGISTRY``, else the user's data folder.
    revision : int or str, optional
        A version or an alias; the newest version when absent.
    device : str or torch.device
        Where tensors are reconstructed.
    dtype : torch.dtype, optional
        Convert floating-point tensors to this; each tensor's own type when absent.
    tier : {"compact", "exact", "mean"}
        ``compact`` is what every model has; ``exact`` is bit-identical to the source, where it was stored so;
        ``mean`` is the zoo's mean, for comparison.
    into : torch.nn.Module, optional
        Fill this module and return it; it may be on the meta device. On failure it is left as it was.
    strict : bool
        With ``into``: as in :meth:`torch.nn.Module.load_state_dict`.
    verify : bool
        Check each tensor against its SHA-256 on record.

    Returns
    -------
    LazyStateDict or torch.nn.Module
        A mapping of names to tensors, each reconstructed when it is first touched; or the filled module.

    Raises
    ------
    NotFoundError
        No such registry, family, task or version.
    FidelityError
        The tier was not stored (``fidelity/no-exact-tier``).
    FormatError
        Stored bytes are damaged, or were written by a newer version.
    IncompatibleError
        The weights do not fit ``into`` or ``dtype``.
    """
    weights = open_family(family, registry=registry).load(
        task, revision=revision, device=device, dtype=dtype, tier=tier, verify=verify
    )
    if into is None:
        return weights
    try:
        tensors = weights.materialize()
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"{family}/{weights.task} does not fit on {weights.device}: {error}", kind="memory-limit/device"
        ) from error
    return fill_module(into, tensors, strict=strict, name=f"{family}/{weights.task}")
