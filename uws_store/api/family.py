"""Opening families and loading models from them."""

from __future__ import annotations

import functools
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from uws_store import layout
from uws_store.api.cache import reader_of
from uws_store.api.load_options import check_dtype, check_tier, checked_decode
from uws_store.api.opening import open_registry
from uws_store.basis import Basis, Decode
from uws_store.device import one_device
from uws_store.errors import IncompatibleError, InvalidInputError
from uws_store.loader import LazyStateDict, Resident, memory_errors
from uws_store.model import Model, Tier
from uws_store.registry import ModelEntry, Registry, RegistryState, split_task

__all__ = [
    "CACHE_BYTES",
    "Family",
    "kept_basis",
    "open_family",
    "resolve_in",
]

M = TypeVar("M", bound=torch.nn.Module)

CACHE_BYTES = 1 << 30
"""Bytes of decoded integers that an open family keeps, unless it is told otherwise."""

_KEPT_BASES = 4


class _BasisCache:
    """The bases that were used last, so that loading or adding model after model reads each basis once."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[object, ...], Basis] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, registry: Registry, family: str, digest: str) -> Basis:
        # The way it is read by is part of the key: a basis reads on by the way it was opened by.
        key = (digest, *reader_of(registry))
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


def kept_basis(registry: Registry, family: str, digest: str) -> Basis:
    """Open a basis, or take the one that was opened before from the same registry."""
    return _BASES.get(registry, family, digest)


class Family:
    """An open family: its tasks by name, any of them one call away.

    Made by :func:`open_family`. Threads may share it.

    Parameters
    ----------
    registry : Registry
        Where it lies.
    name : str
        The family.
    device : str or torch.device
        Where models are made, unless a call says otherwise.
    decode : {"canonical", "fast"}
        The arithmetic, unless a call says otherwise.
    cache_bytes : int
        How many bytes of decoded integers to keep on the device for :meth:`switch` and :meth:`stack`.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        *,
        device: str | torch.device = "cpu",
        decode: Decode = "canonical",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.registry = registry
        self.name = name
        self.device = one_device(device)
        self.decode = checked_decode(decode, tier="compact")
        self._cache_bytes = cache_bytes
        self._residents: dict[str, Resident] = {}
        self._lock = threading.Lock()
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

    def resolve(self, task: str, *, revision: int | str | None = None, refresh: bool = True) -> ModelEntry:
        """Find the version that a task and a revision name; the task may carry ``@revision`` itself.

        Parameters
        ----------
        task : str
            The task.
        revision : int or str, optional
            A version or an alias; the newest version when absent.
        refresh : bool
            Look for newer commits first, which costs a request. A version by its number is not looked for when it is
            known: what it stands for never changes, and one that was withdrawn since is still found.
        """
        known = self.registry.state(refresh=False)
        name, at = split_task(task)
        version = at if revision is None else revision
        if refresh and not (isinstance(version, int) and _has_version(known, self.name, name, version)):
            known = self.registry.state()
        return resolve_in(known, self.name, task, revision=revision)

    def model(self, entry: ModelEntry) -> Model:
        """Open one version."""
        basis = self.basis(entry.basis_digest)
        return Model.open(self.registry.storage_of(entry), entry.prefix, digest=entry.digest, basis=basis)

    def load(
        self,
        task: str,
        *,
        revision: int | str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        tier: Tier = "compact",
        decode: Decode | None = None,
        verify: bool = True,
        refresh: bool = True,
    ) -> LazyStateDict:
        """Load a model; see :func:`load_model`, and :meth:`resolve` for ``refresh``.

        Device and arithmetic are the family's own when absent.
        """
        check_tier(tier)
        check_dtype(dtype)
        place = self.device if device is None else one_device(device)
        arithmetic = checked_decode(self.decode if decode is None else decode, tier=tier)
        entry = self.resolve(task, revision=revision, refresh=refresh)
        # On the CPU every model of a basis shares what is made ready from it anyway.
        own = place.type != "cpu" and (place, arithmetic) == (self.device, self.decode)
        return LazyStateDict(
            self.model(entry),
            family=self.name,
            task=entry.task,
            version=entry.version,
            tier=tier,
            device=place,
            dtype=dtype,
            verify=verify,
            decode=arithmetic,
            decoder=self.resident(entry.basis_digest).decoder if own else None,
        )

    def resident(self, digest: str | None = None) -> Resident:
        """The family's basis on its device, the newest revision's or the one with a digest; kept from the first call."""
        basis = self.basis(digest)
        with self._lock:
            found = self._residents.get(basis.digest)
            if found is None:
                found = self._residents[basis.digest] = Resident(
                    basis, device=self.device, decode=self.decode, cache_bytes=self._cache_bytes
                )
            return found

    def switch(
        self,
        module: M,
        task: str,
        *,
        revision: int | str | None = None,
        strict: bool = True,
        verify: bool = True,
        refresh: bool = True,
    ) -> M:
        """Overwrite a module's weights with those of another task, in place, at tier ``compact``.

        The basis stays on the family's device, and so do the integers of the models that were used last: switching
        to one of them moves nothing from the host. Parameters, optimizers and captured graphs that refer to the
        module's tensors stay valid. Switches of one module wait for each other; those of several run side by side.

        Parameters
        ----------
        module : torch.nn.Module
            A module that the weights fit. On the meta device it is filled by assignment.
        task : str
            The task; it may carry ``@revision``.
        revision : int or str, optional
            A version or an alias; the newest version when absent.
        strict : bool
            As in :meth:`torch.nn.Module.load_state_dict`.
        verify : bool
            Check each tensor against its SHA-256 on record, the first time that a model is made here.
        refresh : bool
            See :meth:`resolve`.

        Returns
        -------
        torch.nn.Module
            The same module.

        Raises
        ------
        UwsError
            As :func:`load_model` with ``into``; the module is as it was.
        """
        entry = self.resolve(task, revision=revision, refresh=refresh)
        resident = self.resident(entry.basis_digest)
        hot = resident.hot(entry.digest, functools.partial(self.model, entry))
        resident.switch(module, hot, strict=strict, verify=verify, name=f"{self.name}/{entry.task}")
        return module

    def stack(self, tasks: Sequence[str], *, verify: bool = True) -> dict[str, torch.Tensor]:
        """Make several models and stack each of their tensors, at tier ``compact``.

        What comes back is what :func:`torch.func.functional_call` takes under :func:`torch.func.vmap`, to run all of
        them on the same input at once.

        Parameters
        ----------
        tasks : sequence of str
            At least one; each may carry ``@revision``.
        verify : bool
            Check each tensor against its SHA-256 on record, the first time that a model is made here.

        Returns
        -------
        dict of str to torch.Tensor
            Each (tasks, ...), on the family's device.

        Raises
        ------
        IncompatibleError
            When a tensor is missing in one of the models, or its shape or dtype differs (kind
            ``incompatible/stack``), as heads of several sizes do.
        """
        if not tasks:
            raise InvalidInputError("name at least one task to stack", kind="invalid-input/task")
        stacked: dict[str, torch.Tensor] = {}
        for place, task in enumerate(tasks):
            entry = self.resolve(task)
            resident = self.resident(entry.basis_digest)
            hot = resident.hot(entry.digest, functools.partial(self.model, entry))
            made = resident.with_ties(hot, resident.make(hot, tier="compact", verify=verify))
            with memory_errors(f"{len(tasks)} models of {self.name}", self.device):
                if not stacked:
                    stacked = {
                        name: torch.empty(
                            (len(tasks), *tensor.shape), dtype=tensor.dtype, device=tensor.device
                        )
                        for name, tensor in made.items()
                    }
                _require_alike(stacked, made, first=tasks[0], other=task)
                for name, tensor in made.items():
                    stacked[name][place] = tensor
        return stacked


def _require_alike(
    stacked: Mapping[str, torch.Tensor], made: Mapping[str, torch.Tensor], *, first: str, other: str
) -> None:
    problems = [
        f"{name} is {_described(stacked, name, 1)} in {first} and {_described(made, name, 0)} in {other}"
        for name in {**stacked, **made}
        if _described(stacked, name, 1) != _described(made, name, 0)
    ]
    if problems:
        raise IncompatibleError(
            f"{other} cannot be stacked on {first}: " + "; ".join(problems[:5]), kind="incompatible/stack"
        )


def _described(tensors: Mapping[str, torch.Tensor], name: str, skipped: int) -> str:
    found = tensors.get(name)
    return "missing" if found is None else f"{tuple(found.shape[skipped:])} {found.dtype}"


def _has_version(state: RegistryState, family: str, task: str, version: int) -> bool:
    held = state.families.get(family)
    found = held.tasks.get(unicodedata.normalize("NFC", task)) if held else None
    return found is not None and version in found.versions


def resolve_in(state: RegistryState, family: str, task: str, *, revision: int | str | None) -> ModelEntry:
    """Resolve a task that may carry ``@revision``; a revision given twice is refused."""
    name, at = split_task(task)
    if at is not None and revision is not None:
        raise InvalidInputError(
            f"{task!r} names a revision, and revision={revision!r} another; give one",
            kind="invalid-input/revision",
        )
    return state.resolve(family, name, revision=at if revision is None else revision)


def open_family(
    family: str,
    *,
    registry: str | Registry | None = None,
    device: str | torch.device = "cpu",
    decode: Decode = "canonical",
    cache_bytes: int = CACHE_BYTES,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Family:
    """Open a family, to load many of its models, or to switch a module between them.

    Parameters
    ----------
    family : str
        Its name.
    registry : str or Registry, optional
        URL or path of the registry; by default ``UWS_STORE_REGISTRY``, else the user's data folder.
    device : str or torch.device
        Where models are made. :meth:`Family.switch` keeps the basis there.
    decode : {"canonical", "fast"}
        ``canonical`` gives the bits on record, on every machine; ``fast`` makes products in float32, within a bound
        of them that :func:`uws_store.canonical.fast_bound` derives.
    cache_bytes : int
        How many bytes of decoded integers :meth:`Family.switch` and :meth:`Family.stack` keep on the device.
    local_files_only, cache_dir, token
        See :func:`open_registry`.

    Raises
    ------
    NotFoundError
        When there is no such registry or family.
    """
    opened = open_registry(registry, local_files_only=local_files_only, cache_dir=cache_dir, token=token)
    return Family(opened, family, device=device, decode=decode, cache_bytes=cache_bytes)
