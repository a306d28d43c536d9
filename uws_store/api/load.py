"""Loading one model by its name: now, or in a thread while a server goes on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack, overload

import torch

from uws_store.api.family import open_family
from uws_store.basis import Decode
from uws_store.loader import LazyStateDict, fill_module, fit_module
from uws_store.model import Tier
from uws_store.registry import Registry

__all__ = ["aload_model", "load_model"]

M = TypeVar("M", bound=torch.nn.Module)


class LoadOptions(TypedDict, total=False):
    """How a model is loaded, in the signatures that :func:`load_model` does not spell out; its defaults hold."""

    registry: str | Registry | None
    revision: int | str | None
    device: str | torch.device
    dtype: torch.dtype | None
    tier: Tier
    decode: Decode
    verify: bool
    local_files_only: bool
    cache_dir: str | Path | None
    token: str | bool | None


@overload
def load_model(
    family: str, task: str, *, into: None = None, strict: bool = True, **options: Unpack[LoadOptions]
) -> LazyStateDict: ...


@overload
def load_model(
    family: str, task: str, *, into: M, strict: bool = True, **options: Unpack[LoadOptions]
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
    decode: Decode = "canonical",
    into: torch.nn.Module | None = None,
    strict: bool = True,
    verify: bool = True,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
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
    decode : {"canonical", "fast"}
        ``canonical`` gives the bits on record, on every machine; ``fast`` makes products in float32, within a bound
        of them that :func:`uws_store.canonical.fast_bound` derives, and has no digests to be checked against.
    into : torch.nn.Module, optional
        Fill this module and return it; it may be on the meta device. On failure it is left as it was.
    strict : bool
        With ``into``: as in :meth:`torch.nn.Module.load_state_dict`.
    verify : bool
        Check each tensor against its SHA-256 on record.
    local_files_only : bool
        Ask nothing of a registry behind a network: what was not kept of it is an error (``storage/offline``).
    cache_dir : str or Path, optional
        The folder in which is kept what is read from behind a network, in place of ``UWS_STORE_CACHE``.
    token : str or bool, optional
        The token for a registry on a Hub, ``hf://``; see :func:`uws_store.api.open_registry`.

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
    MemoryLimitError
        They do not fit on the device (``memory-limit/device``).
    """
    opened = open_family(
        family, registry=registry, local_files_only=local_files_only, cache_dir=cache_dir, token=token
    )
    # Opening it looked for new commits.
    weights = opened.load(
        task,
        revision=revision,
        device=device,
        dtype=dtype,
        tier=tier,
        decode=decode,
        verify=verify,
        refresh=False,
    )
    if into is None:
        return weights
    name = f"{family}/{weights.task}"
    # What does not fit is found before it is fetched.
    fit_module(into, weights.model.sources, strict=strict, name=name, shape_of=weights.shape)
    return fill_module(into, weights.materialize(), strict=strict, name=name)


@overload
async def aload_model(
    family: str, task: str, *, into: None = None, strict: bool = True, **options: Unpack[LoadOptions]
) -> LazyStateDict: ...


@overload
async def aload_model(
    family: str, task: str, *, into: M, strict: bool = True, **options: Unpack[LoadOptions]
) -> M: ...


async def aload_model(
    family: str,
    task: str,
    *,
    into: torch.nn.Module | None = None,
    strict: bool = True,
    **options: Unpack[LoadOptions],
) -> LazyStateDict | torch.nn.Module:
    """Load one model in a thread, for servers: as :func:`load_model`, but every tensor is made before it returns.

    When the task that awaits it is cancelled, no further tensor is begun, ``into`` is left as it was, and the
    cancellation goes on once the thread has stopped.

    Parameters
    ----------
    family, task, into, strict, **options
        As of :func:`load_model`.

    Returns
    -------
    LazyStateDict or torch.nn.Module
        A mapping whose tensors are all made; or the filled module.

    Raises
    ------
    UwsError
        As :func:`load_model`.
    """
    stopped = threading.Event()
    filling = threading.Lock()

    def load() -> LazyStateDict | torch.nn.Module | None:
        weights = load_model(family, task, **options)
        name = f"{family}/{weights.task}"
        if into is not None:
            fit_module(into, weights.model.sources, strict=strict, name=name, shape_of=weights.shape)
        tensors = weights.materialize(stopped=stopped)
        with filling:
            if stopped.is_set():
                return None
            if into is None:
                return weights
            return fill_module(into, tensors, strict=strict, name=name)

    running = asyncio.get_running_loop().run_in_executor(None, load)
    try:
        found = await asyncio.shield(running)
    except asyncio.CancelledError:
        with filling:
            stopped.set()
        await asyncio.wait({running})
        running.exception()  # what it met no longer matters
        raise
    assert found is not None
    return found
