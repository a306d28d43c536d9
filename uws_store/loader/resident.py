"""A basis kept on a device, and models that are switched there: only a model's integers travel.

Owns the bounded cache of hot models and the order in which a module is overwritten. A model's integers are decoded
and its tensors compared with the record once; after that, making it again is arithmetic on numbers that are already
on the device. Knows nothing about names of families.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch

from uws_store.basis import Basis, Decode, Decoder, shared_decoder
from uws_store.errors import InvalidInputError, WorkerError
from uws_store.loader.ambient import plain_arithmetic
from uws_store.loader.conversion import largest_weight, memory_errors, require_range
from uws_store.loader.correspond import inner_module
from uws_store.loader.decoding import Checks, gathered
from uws_store.loader.module import Fit, fill_module, fit_module
from uws_store.loader.workers import place_for, run_tasks
from uws_store.model import Model, Tier

__all__ = ["HotModel", "Resident"]

Made = dict[str, torch.Tensor]

_BESIDE_BYTES = 64 << 20
"""A model of at most so many bytes is always made beside the module first: the copy costs nothing that counts."""


@dataclass(slots=True)
class HotModel:
    """A model whose integers are on the device.

    Attributes
    ----------
    model : Model
        Its record.
    cores : list of torch.Tensor
        Integers of each job of the decoder, int8 where they fit.
    others : dict of str to torch.Tensor
        Private and shared tensors.
    largest : dict of str to float
        Largest absolute weight of the tensors that some module keeps in another dtype.
    verified : bool
        Whether its tensors were compared with the record.
    stream : torch.cuda.Stream or None
        On which its memory was taken.
    """

    model: Model
    cores: list[torch.Tensor]
    others: Made
    largest: dict[str, float] = field(default_factory=dict)
    verified: bool = False
    stream: torch.cuda.Stream | None = None

    def lend(self, stream: torch.cuda.Stream | None) -> None:
        """Keep the memory, when the model is dropped, until another stream has done with it."""
        if stream is not None and stream != self.stream:
            for part in (*self.cores, *self.others.values()):
                part.record_stream(stream)

    @property
    def size_bytes(self) -> int:
        """Bytes on the device."""
        return sum(part.numel() * part.element_size() for part in (*self.cores, *self.others.values()))


class Resident:
    """A basis on a device; threads may share it.

    Parameters
    ----------
    basis : Basis
        The basis. Its numbers are copied to the device when they are first needed.
    device : torch.device
        Where.
    decode : {"canonical", "fast"}
        The arithmetic.
    cache_bytes : int
        How many bytes of hot models to keep; at least one model is kept.
    """

    def __init__(self, basis: Basis, *, device: torch.device, decode: Decode, cache_bytes: int) -> None:
        self.basis = basis
        self.device = device
        self.decode = decode
        self.decoder = (
            shared_decoder(basis, decode)
            if device.type == "cpu"
            else Decoder(basis, device=device, decode=decode, across=True)
        )
        self._cache_bytes = cache_bytes
        self._hot: OrderedDict[str, HotModel] = OrderedDict()
        self._lock = threading.Lock()
        self._modules: weakref.WeakKeyDictionary[torch.nn.Module, threading.Lock] = (
            weakref.WeakKeyDictionary()
        )
        # The longest first: when memory is short, the first allocation shows it, before a module was touched.
        self._jobs = sorted(
            range(len(self.decoder.jobs)), key=lambda index: -self.decoder.jobs[index].coefficients
        )
        self._where = place_for(device, sum(job.coefficients for job in self.decoder.jobs))

    @property
    def size_bytes(self) -> int:
        """Bytes of hot models."""
        with self._lock:
            return sum(hot.size_bytes for hot in self._hot.values())

    def hot_models(self) -> tuple[str, ...]:
        """Digests of the models whose integers are on the device, the one used last at the end."""
        with self._lock:
            return tuple(self._hot)

    def hot(self, digest: str, open_model: Callable[[], Model]) -> HotModel:
        """Give a model whose integers are on the device: from the cache, or read and decoded now.

        Parameters
        ----------
        digest : str
            The model's digest, its key in the cache.
        open_model : callable
            Opens it.
        """
        with self._lock:
            found = self._hot.get(digest)
            if found is not None:
                self._hot.move_to_end(digest)
                return found
        with plain_arithmetic(self.device):
            made = self._read(open_model())
        with self._lock:
            found = self._hot.setdefault(digest, made)
            self._hot.move_to_end(digest)
            held = sum(hot.size_bytes for hot in self._hot.values())
            while held > self._cache_bytes and len(self._hot) > 1:
                held -= self._hot.popitem(last=False)[1].size_bytes
        return found

    def make(self, hot: HotModel, *, tier: Tier, verify: bool, ranges: Collection[str] = frozenset()) -> Made:
        """Make all tensors of a model, in memory of their own, without the tied names.

        Parameters
        ----------
        hot : HotModel
            The model.
        tier : {"compact", "exact", "mean"}
            The fidelity.
        verify : bool
            Compare the digests, unless they were compared before.
        ranges : collection of str
            Tensors whose largest weight shall be known after.

        Raises
        ------
        FormatError
            When a digest differs (kind ``format/tensor-digest``).
        MemoryLimitError
            When they do not fit on the device (kind ``memory-limit/device``).
        """
        hot.lend(_stream_of(self.device))
        # Integers that gave the right digests once give them again.
        check = verify and not (hot.verified and tier == "compact")
        checks = Checks(hot.model, tier=tier, coded=self.decode == "canonical")

        def finish(made: Made) -> Made:
            for name, tensor in made.items():
                if check:
                    checks.check(name, tensor)
                if name in ranges:
                    hot.largest[name] = largest_weight(tensor)
            return made

        with memory_errors(hot.model.where, self.device), plain_arithmetic(self.device):
            tensors = finish({name: tensor.clone() for name, tensor in hot.others.items()})
            tasks = [lambda index=index: finish(self._job(hot, index, tier=tier)) for index in self._jobs]
            for made in run_tasks(tasks, where=self._where):
                tensors |= made
        if check:
            checks.finish()
            hot.verified = hot.verified or tier == "compact"
        return tensors

    def switch(
        self, module: torch.nn.Module, hot: HotModel, *, strict: bool, verify: bool, name: str
    ) -> None:
        """Overwrite a module's parameters and persistent buffers with a model's tensors, in place.

        A model that was not made here before is made beside the module first, and so is every small one. After that
        the tensors of a large one go straight into the module, job by job.

        Raises
        ------
        IncompatibleError
            When names, shapes or dtypes do not fit; the module is as it was.
        FormatError
            When a digest differs; the module is as it was.
        MemoryLimitError
            When the device has no room for the work; the module is as it was.
        WorkerError
            When something unforeseen fails while a large model is written (kind ``worker/half-switched``): the module
            holds parts of two models until it is switched again.
        """
        inner = inner_module(module)
        with self._lock:
            lock = self._modules.setdefault(inner, threading.Lock())
        with lock, plain_arithmetic(self.device):
            sources = hot.model.sources
            fit = fit_module(
                module, sources, strict=strict, name=name, shape_of=lambda key: sources[key].shape
            )
            if fit.on_meta:
                made = self.make(hot, tier="compact", verify=verify)
                fill_module(module, self.with_ties(hot, made), strict=strict, name=name)
                return
            targets = self._targets(hot, fit)
            converted = self._converted(hot, targets)
            if not converted <= hot.largest.keys() or (verify and not hot.verified):
                made = self.make(hot, tier="compact", verify=verify, ranges=converted)
                self._require_ranges(hot, targets)
                _copy(targets, made)
                return
            self._require_ranges(hot, targets)
            hot.lend(_stream_of(self.device))
            if _size_of(targets) <= _BESIDE_BYTES:
                _copy(targets, self.make(hot, tier="compact", verify=False))
                return
            tasks = [lambda index=index: self._switch_job(hot, index, targets) for index in self._jobs]
            with memory_errors(name, self.device):
                # The largest is made alone first: if that succeeds, memory is no longer short.
                (first,) = run_tasks(
                    [lambda: self._job(hot, self._jobs[0], tier="compact")],
                    where="worker" if self._where == "workers" else self._where,
                )
            try:
                _copy(targets, first)
                del first
                run_tasks(tasks[1:], where=self._where)
                _copy(targets, hot.others)
            except Exception as error:
                raise WorkerError(
                    f"{name} was not written whole: {error}; the module holds parts of two models now, switch it again "
                    "before it is used",
                    kind="worker/half-switched",
                ) from error

    def with_ties(self, hot: HotModel, tensors: Mapping[str, torch.Tensor]) -> Made:
        """A model's whole state dict: tied names give the same tensor."""
        return {name: tensors[source.tied_to or name] for name, source in hot.model.sources.items()}

    def _job(self, hot: HotModel, index: int, *, tier: Tier) -> Made:
        return hot.model.decode_job(self.decoder, index, tier=tier, core=hot.cores[index])

    def _switch_job(self, hot: HotModel, index: int, targets: Mapping[str, list[torch.Tensor]]) -> None:
        with torch.no_grad():
            _copy(targets, self._job(hot, index, tier="compact"))

    def _read(self, model: Model) -> HotModel:
        with memory_errors(model.where, self.device), model.fetch("compact") as fetch:
            self.basis.prefetch()
            jobs = range(len(self.decoder.jobs))
            cores = gathered(fetch, model, self.decoder, jobs)
            fetch.finish()
            held = [cores.pop(index).to(self.device) for index in jobs]
            others = {
                name: model.stored_tensor(name).to(self.device)
                for name, source in model.sources.items()
                if source.kind in {"private", "shared"}
            }
        model.forget()
        return HotModel(model, held, others, stream=_stream_of(self.device))

    def _targets(self, hot: HotModel, fit: Fit) -> dict[str, list[torch.Tensor]]:
        """What of a module each tensor goes into; a tied name goes where its tensor goes."""
        targets: dict[str, list[torch.Tensor]] = {}
        for name, own in fit.own.items():
            held = targets.setdefault(hot.model.sources[name].tied_to or name, [])
            if not any(own is other for other in held):
                held.append(own)
        return targets

    def _converted(self, hot: HotModel, targets: Mapping[str, list[torch.Tensor]]) -> set[str]:
        """Tensors that a module keeps in another dtype than the model."""
        sources = hot.model.sources
        return {
            name
            for name, owns in targets.items()
            if any(own.dtype != sources[name].dtype.torch for own in owns)
        }

    def _require_ranges(self, hot: HotModel, targets: Mapping[str, list[torch.Tensor]]) -> None:
        for name, owns in targets.items():
            for own in owns:
                source = hot.model.sources[name].dtype.torch
                if source.is_floating_point and not own.is_floating_point() and not own.is_complex():
                    raise InvalidInputError(
                        f"{name}: weights cannot be written into a tensor of {own.dtype}",
                        kind="invalid-input/dtype",
                    )
                require_range(name, hot.largest.get(name, 0.0), own=source, dtype=own.dtype)


def _size_of(targets: Mapping[str, list[torch.Tensor]]) -> int:
    return sum(own.numel() * own.element_size() for owns in targets.values() for own in owns)


def _copy(targets: Mapping[str, list[torch.Tensor]], made: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in made.items():
        for own in targets.get(name, ()):
            if own.is_inference():  # made in inference mode, and written there alone
                with torch.inference_mode():
                    own.copy_(tensor)
            else:
                own.copy_(tensor)


def _stream_of(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None
