"""Making all tensors of a model at once: side by side, each checked against its digest before anything is given out.

Knows nothing about names of families, nor where tensors go.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import torch

from uws_store.basis import Decoder
from uws_store.loader.workers import place_for, run_tasks
from uws_store.model import Fetch, Model, Tier
from uws_store.tensor_bytes import digest_of

__all__ = ["Checks", "gathered", "make_tensors"]

Made = dict[str, torch.Tensor]

_CHECKED_BYTES = 256 << 20
"""Tensors on a device are checked when so many bytes of them are made."""


class Checks:
    """Digests of a model's tensors as they are made; threads may share it.

    Parameters
    ----------
    model : Model
        Whose record they are compared with.
    tier : {"compact", "exact", "mean"}
        The fidelity.
    coded : bool
        Whether coded tensors have digests too: those that were decoded fast have none.
    """

    def __init__(self, model: Model, *, tier: Tier, coded: bool) -> None:
        self._model = model
        self._tier = tier
        self._coded = coded
        self._digests: dict[str, bytes] = {}

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Compare a tensor's digest with the record.

        Raises
        ------
        FormatError
            Kind ``format/tensor-digest``.
        """
        if self._tier == "mean" or (not self._coded and self._model.sources[name].kind == "coded"):
            return
        digest = digest_of(tensor)
        self._model.require_digest(name, digest, tier=self._tier)
        self._digests[name] = digest

    def finish(self) -> None:
        """Compare all digests together with the root on record; to be called when every tensor was checked.

        Raises
        ------
        FormatError
            Kind ``format/tensor-digest``.
        """
        if self._tier != "mean" and self._coded:
            self._model.require_root(self._digests, tier=self._tier)


def make_tensors(
    model: Model,
    names: Collection[str],
    *,
    decoder: Decoder,
    tier: Tier,
    done: Callable[[str, torch.Tensor], torch.Tensor],
    stopped: threading.Event | None = None,
) -> Made:
    """Make tensors of a model, with one request per stored object.

    Parameters
    ----------
    model : Model
        The open model.
    names : collection of str
        Which tensors; none of them tied. What is made together with them is dropped.
    decoder : Decoder
        The model's basis on the device.
    tier : {"compact", "exact", "mean"}
        The fidelity.
    done : callable
        Called with each tensor, from any thread; what it returns is kept.
    stopped : threading.Event, optional
        When it is set, no further tensors are made.

    Returns
    -------
    dict of str to torch.Tensor
        Nothing when it was stopped: what came was not compared with the digests on record.

    Raises
    ------
    FormatError
        When a stored byte is damaged; nothing is given out before all objects were compared with their digests.
    """
    wanted = frozenset(names)
    decoded = {name for name in wanted if model.is_decoded(name, tier=tier)}
    jobs = sorted({decoder.job_of[name] for name in decoded})

    def decode(index: int) -> Made:
        made = model.decode_job(decoder, index, tier=tier)
        return {name: done(name, tensor) for name, tensor in made.items() if name in wanted}

    def read(name: str) -> Made:
        return {name: done(name, model.stored_tensor(name).to(decoder.device))}

    coefficients = sum(decoder.jobs[index].coefficients for index in jobs)
    found: Made = {}
    # The model comes while its basis is read, and is decoded while the rest of it comes.
    with model.fetch(tier, stopped=stopped) as fetch:
        model.basis.prefetch()

        def tasks() -> Iterator[Callable[[], Made]]:
            if is_elsewhere(decoder.device):
                cores = {} if tier == "mean" else gathered(fetch, model, decoder, jobs)
                yield lambda: _made_elsewhere(model, decoder, jobs, cores, wanted, tier=tier, done=done)
            else:
                for index in as_they_come(fetch, decoder, jobs):
                    yield functools.partial(decode, index)
            if fetch.wait_for_private():
                for name in wanted - decoded:
                    yield functools.partial(read, name)

        for made in run_tasks(tasks(), where=place_for(decoder.device, coefficients), stopped=stopped):
            found |= made
        if stopped is not None and stopped.is_set():
            return {}
        fetch.finish()
    return found


def is_elsewhere(device: torch.device) -> bool:
    """Whether products are made on a device of their own, and this machine's cores are free for the rest."""
    return device.type != "cpu"


def gathered(fetch: Fetch, model: Model, decoder: Decoder, jobs: Collection[int]) -> dict[int, torch.Tensor]:
    """Decode a model's integers for some jobs, on the CPU, in bytes where they fit: those of a large one by all cores."""
    cores: dict[int, torch.Tensor] = {}

    def gather(index: int) -> None:
        cores[index] = _narrowed(decoder.gather(index, model.stored_core))

    coefficients = sum(decoder.jobs[index].coefficients for index in jobs)
    where = place_for(torch.device("cpu"), coefficients)
    tasks = (functools.partial(gather, index) for index in as_they_come(fetch, decoder, jobs))
    # Nothing here is split over torch's threads, so that one worker would gain nothing over this thread.
    run_tasks(tasks, where="workers" if where == "workers" else "here")
    return cores


def _made_elsewhere(
    model: Model,
    decoder: Decoder,
    jobs: Collection[int],
    cores: dict[int, torch.Tensor],
    wanted: Collection[str],
    *,
    tier: Tier,
    done: Callable[[str, torch.Tensor], torch.Tensor],
) -> Made:
    """Make tensors on a device job by job, in this thread and its stream, and check them by all cores."""
    found: Made = {}
    waiting: Made = {}

    def check() -> None:
        # Threads have streams of their own, and what they begin must be over before this one goes on.
        _settle(decoder.device)
        names = list(waiting)
        tasks = [functools.partial(done, name, waiting.pop(name)) for name in names]
        found.update(zip(names, run_tasks(tasks, where="workers"), strict=True))
        _settle(decoder.device)

    for index in jobs:
        if tier != "mean" and index not in cores:  # it was stopped
            break
        core = cores.pop(index).to(decoder.device) if index in cores else None
        made = model.decode_job(decoder, index, tier=tier, core=core)
        waiting |= {name: tensor for name, tensor in made.items() if name in wanted}
        if sum(tensor.nbytes for tensor in waiting.values()) >= _CHECKED_BYTES:
            check()
    check()
    return found


def _settle(device: torch.device) -> None:
    """Wait until a device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _narrowed(integers: torch.Tensor) -> torch.Tensor:
    """Hold integers in bytes where they fit: nearly all cores do."""
    if integers.numel() == 0 or integers.dtype == torch.int8:
        return integers
    held = integers.numpy()
    fits = int(held.min()) >= -128 and int(held.max()) < 128
    return torch.from_numpy(held.astype(np.int8)) if fits else integers


def as_they_come(fetch: Fetch, decoder: Decoder, jobs: Iterable[int]) -> Iterator[int]:
    """Give jobs of a decoder when their integers came, of those that come together the longest first.

    So no thread is left with a long one at the end. Ends early when the fetch was stopped.
    """
    groups = {index: decoder.jobs[index].groups for index in jobs}
    order = sorted(groups, key=lambda index: (fetch.turn(groups[index]), -decoder.jobs[index].coefficients))
    return itertools.takewhile(lambda index: fetch.wait(groups[index]), order)
