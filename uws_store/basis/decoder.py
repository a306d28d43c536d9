"""A basis made ready to reconstruct models on one device: which tensors are made together, and by which arithmetic.

Owns the layout of a model's integers into jobs and batches. A *job* is what is read together: a read group, or, where
a basis is kept resident on an accelerator, several of them. A *batch* is tensors of a job that have their shapes in
common. Neither changes a bit of the result. Knows nothing about models' objects or names of families.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from uws_store.basis.opened import Basis
from uws_store.basis.panels import PanelTensor
from uws_store.basis.positions import KEPT_INDEX
from uws_store.basis.stack import Decode, Stack, fits_float32, float32_is_whole, rounded
from uws_store.basis.wide import WideTensor, is_wide
from uws_store.canonical import Step
from uws_store.dtypes import DType

__all__ = ["Batch", "Decoder", "Job", "shared_decoder"]

_WIDE_ELEMENTS = 1 << 15
# From here on a tensor that is made in floating point is made panel by panel.
_PANEL_ELEMENTS = 1 << 20
_ACROSS_ELEMENTS = 1 << 25
# On the CPU the float copies of large tensors are made anew for each model: they cost a hundredth of the products,
# and eight times the memory of the integers.
_KEPT_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors that are reconstructed in one go.

    Attributes
    ----------
    names : tuple of str
        The tensors.
    start : int
        Where their coefficients begin in the job's sequence.
    shape : tuple of int
        (tensors, p, q).
    """

    names: tuple[str, ...]
    start: int
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """Read groups whose tensors are made together.

    Attributes
    ----------
    groups : tuple of int
        The read groups.
    starts : tuple of int
        Where each group's coefficients begin in the job's sequence.
    batches : tuple of Batch
        The tensors, in the order of the sequence.
    coefficients : int
        Length of the sequence.
    """

    groups: tuple[int, ...]
    starts: tuple[int, ...]
    batches: tuple[Batch, ...]
    coefficients: int


class Decoder:
    """A basis on a device; threads may share it.

    Parameters
    ----------
    basis : Basis
        The basis. Its numbers are read when they are first needed.
    device : torch.device
        Where tensors are reconstructed.
    decode : {"canonical", "fast"}
        The arithmetic.
    across : bool
        Whether tensors of several read groups may be made together: right where all of a model is made each time.
    """

    def __init__(self, basis: Basis, *, device: torch.device, decode: Decode, across: bool = False) -> None:
        self.basis = basis
        self.device = device
        self.decode = decode
        self.jobs = _jobs(basis, across=across)
        self.job_of = {
            name: index
            for index, job in enumerate(self.jobs)
            for batch in job.batches
            for name in batch.names
        }
        self._numbers: dict[tuple[int, int, Decode], Stack | WideTensor | PanelTensor] = {}
        self._indexes: dict[int, npt.NDArray[np.integer]] = {}
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers that are kept ready."""
        with self._lock:
            return sum(numbers.size_bytes for numbers in self._numbers.values())

    def gather(self, index: int, read: Callable[[int], npt.NDArray[np.integer]]) -> torch.Tensor:
        """Put a model's integers into the order of a job.

        Parameters
        ----------
        index : int
            The job.
        read : callable
            Gives the integers of a read group as stored, without padding.

        Returns
        -------
        torch.Tensor
            1-D, on the CPU.
        """
        job = self.jobs[index]
        sequence: torch.Tensor | None = None
        for group, start in zip(job.groups, job.starts, strict=True):
            stored = read(group)
            if sequence is None:
                sequence = torch.from_numpy(np.empty(job.coefficients, stored.dtype))
            self._unsort(index, group, stored, sequence.numpy()[start : start + len(stored)])
        assert sequence is not None
        return sequence

    def predict(
        self, index: int, batch: int, core: torch.Tensor | None, *, step: Step, dtypes: Sequence[DType | None]
    ) -> list[torch.Tensor | None]:
        """Reconstruct a batch.

        Parameters
        ----------
        index, batch : int
            The job, and the batch in it.
        core : torch.Tensor or None
            The job's sequence, on the decoder's device; None stands for zeros.
        step : Step
            The model's step.
        dtypes : sequence of DType or None
            The model's dtype of each tensor; None for one that it has not coded.

        Returns
        -------
        list of torch.Tensor or None
            Each in its own shape and memory.
        """
        what = self.jobs[index].batches[batch]
        own = None if core is None else core[what.start : what.start + math.prod(what.shape)].view(what.shape)
        numbers = self._ready(index, batch, self._arithmetic(what, step))
        if isinstance(numbers, WideTensor | PanelTensor):
            if dtypes[0] is None:
                return [None]
            core_pq = None if own is None else own[0]
            made = numbers.predict(core_pq, step=step, dtype=dtypes[0])
            if made is None:
                panels = PanelTensor(self.basis.stored(what.names[0]), "canonical")
                made = panels.predict(core_pq, step=step, dtype=dtypes[0])
            return [made]
        values = numbers.predict(own, step=step)
        if len(set(dtypes)) == 1 and dtypes[0] is not None:
            values = rounded(values, dtypes[0], decode=numbers.decode)
            parts = [values[0]] if len(dtypes) == 1 else [part.clone() for part in values.unbind(0)]
            return [part.reshape(r.shape) for part, r in zip(parts, numbers.records, strict=True)]
        return [
            None
            if dtype is None
            else rounded(part, dtype, decode=numbers.decode).clone().reshape(record.shape)
            for part, dtype, record in zip(values.unbind(0), dtypes, numbers.records, strict=True)
        ]

    def _unsort(
        self, index: int, group: int, stored: npt.NDArray[np.integer], out: npt.NDArray[np.integer]
    ) -> None:
        positions = self.basis.positions(group)
        order = positions.pooled
        if order is None:
            positions.unsort(stored, out)
            return
        with self._lock:
            own = self._indexes.get(group)
        if own is None:
            slots = [self.basis.slots[name] for batch in self.jobs[index].batches for name in batch.names]
            parts = [
                order[s.core_offset : s.core_offset + s.coefficients]
                for s in slots
                if s.record.group == group
            ]
            own = np.concatenate(parts)
            with self._lock:
                self._indexes[group] = own
        np.take(stored, own, out=out, mode="clip")

    def _arithmetic(self, what: Batch, step: Step) -> Decode:
        """Fast, unless that would not keep its bound here."""
        fast = (
            self.decode == "fast"
            and float32_is_whole(self.device)
            and all(fits_float32(self.basis.stored(name), step) for name in what.names)
        )
        return "fast" if fast else "canonical"

    def _ready(self, index: int, batch: int, decode: Decode) -> Stack | WideTensor | PanelTensor:
        with self._lock:
            found = self._numbers.get((index, batch, decode))
        if found is not None:
            return found
        what = self.jobs[index].batches[batch]
        made = self._made(what, decode)
        if self.device.type == "cpu" and self._is_made_anew(made):
            return made
        if self.device.type == "cuda":
            # Another thread may be on another stream, which does not wait for this one.
            torch.cuda.current_stream(self.device).synchronize()
        with self._lock:
            return self._numbers.setdefault((index, batch, decode), made)

    def _is_made_anew(self, made: Stack | WideTensor | PanelTensor) -> bool:
        """Whether numbers take too much to be kept on the CPU."""
        return self.basis.is_large if isinstance(made, WideTensor) else made.size_bytes > _KEPT_BYTES

    def _made(self, what: Batch, decode: Decode) -> Stack | WideTensor | PanelTensor:
        if self.device.type == "cpu" and len(what.names) == 1:
            stored = self.basis.stored(what.names[0])
            # Byte products cost less than float32 ones, so that a fast decode takes them, too, and is exact there.
            if stored.mean.numel() >= _WIDE_ELEMENTS and is_wide(stored):
                return WideTensor(stored)
            if stored.mean.numel() >= _PANEL_ELEMENTS:
                return PanelTensor(stored, decode)
        return self._stack(what, decode)

    def _stack(self, batch: Batch, decode: Decode) -> Stack:
        return Stack([self.basis.stored(name) for name in batch.names], device=self.device, decode=decode)


def shared_decoder(basis: Basis, decode: Decode) -> Decoder:
    """The basis made ready for the CPU, once for all who use it."""
    return basis.kept(
        f"decoder/{decode}", lambda basis: Decoder(basis, device=torch.device("cpu"), decode=decode)
    )


def _jobs(basis: Basis, *, across: bool) -> tuple[Job, ...]:
    """Lay out jobs: one for each read group, and, across groups, one for all large tensors of a shape."""
    alone: dict[object, list[int]] = {}
    jobs: list[Job] = []
    for index, group in enumerate(basis.groups):
        record = basis.slots[group.names[0]].record
        if len(group.names) > 1:
            jobs.append(_pool(basis, index))
        elif across:
            alone.setdefault((record.matrix, record.left, record.right), []).append(index)
        else:
            jobs.append(_together(basis, [index]))
    for groups in alone.values():
        elements = basis.slots[basis.groups[groups[0]].names[0]].record.numel
        together = max(1, _ACROSS_ELEMENTS // elements)
        jobs += [_together(basis, groups[at : at + together]) for at in range(0, len(groups), together)]
    return tuple(jobs)


def _pool(basis: Basis, index: int) -> Job:
    """The job of a read group of many tensors: those of one shape make a batch."""
    group = basis.groups[index]
    alike: dict[object, list[str]] = {}
    for name in group.names:
        record = basis.slots[name].record
        # A pool beyond what writers make keeps its order: no index of it is held.
        key = (record.matrix, record.left, record.right) if group.coefficients <= KEPT_INDEX else name
        alike.setdefault(key, []).append(name)
    batches, at = [], 0
    for names in alike.values():
        batches.append(Batch(tuple(names), at, (len(names), *basis.slots[names[0]].core_shape)))
        at += math.prod(batches[-1].shape)
    return Job((index,), (0,), tuple(batches), at)


def _together(basis: Basis, groups: Sequence[int]) -> Job:
    """The job of tensors of one shape that are read groups of their own."""
    names = tuple(basis.groups[group].names[0] for group in groups)
    p, q = basis.slots[names[0]].core_shape
    starts = tuple(place * p * q for place in range(len(groups)))
    return Job(tuple(groups), starts, (Batch(names, 0, (len(names), p, q)),), len(groups) * p * q)
