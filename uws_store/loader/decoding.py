"""Making all tensors of a model at once: side by side, each checked against its digest before anything is given out.

Knows nothing about names of families, nor where tensors go.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator

import torch

from uws_store.basis import Decoder
from uws_store.loader.workers import place_for, run_tasks
from uws_store.model import Fetch, Model, Tier
from uws_store.tensor_bytes import digest_of

__all__ = ["Checks", "as_they_come", "make_tensors"]

Made = dict[str, torch.Tensor]


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
    where = place_for(decoder.device, coefficients)
    found: Made = {}
    # The model comes while its basis is read, and is decoded while the rest of it comes.
    with model.fetch(tier, stopped=stopped) as fetch:
        model.basis.prefetch()

        def tasks() -> Iterator[Callable[[], Made]]:
            for index in as_they_come(fetch, decoder, jobs):
                yield functools.partial(decode, index)
            if fetch.wait_for_private():
                for name in wanted - decoded:
                    yield functools.partial(read, name)

        for made in run_tasks(tasks(), where=where, stopped=stopped):
            found |= made
        if stopped is not None and stopped.is_set():
            return {}
        fetch.finish()
    return found


def as_they_come(fetch: Fetch, decoder: Decoder, jobs: Iterable[int]) -> Iterator[int]:
    """Give jobs of a decoder when their integers came, of those that come together the longest first.

    So no thread is left with a long one at the end. Ends early when the fetch was stopped.
    """
    groups = {index: decoder.jobs[index].groups for index in jobs}
    order = sorted(groups, key=lambda index: (fetch.turn(groups[index]), -decoder.jobs[index].coefficients))
    return itertools.takewhile(lambda index: fetch.wait(groups[index]), order)
