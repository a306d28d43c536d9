"""One tensor of a model through the basis: its integers, what they are read back as, and the error of that.

Owns the analyses of a basis's tensors and what is done where a device has no room. Decides nothing about private
tensors, and stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from uws_store.basis import Basis, TensorBasis
from uws_store.builder.scratch import Scratch
from uws_store.builder.tiles import UNIT, is_tiled, tile_extents
from uws_store.builder.transform import Analysis
from uws_store.canonical import Step
from uws_store.checkpoint import TensorInfo
from uws_store.device import CPU, first_that_fits
from uws_store.errors import InvalidInputError
from uws_store.metadata.basis import TensorRecord
from uws_store.quantize import Rounding, quantise

__all__ = ["AnalysisCache", "CodeJob", "CodedTensor", "code_tensor"]


class AnalysisCache:
    """The analyses of a basis's tensors, made once and shared by the models that are encoded together.

    Parameters
    ----------
    basis : Basis
        The basis.
    device : torch.device
        Where models are encoded.
    scratch : Scratch, optional
        Where what is as large as a model lies while one is encoded against a basis that is large.
    """

    def __init__(self, basis: Basis, *, device: torch.device = CPU, scratch: Scratch | None = None) -> None:
        self._basis = basis
        self.device = device
        self.scratch = scratch
        self._made: dict[tuple[str, torch.device], Analysis] = {}
        self._numbers: dict[str, TensorBasis] = {}

    def get(self, name: str, device: torch.device = CPU) -> Analysis:
        """The analysis of one tensor."""
        found = self._made.get((name, device))
        if found is None:
            if self._basis.is_large:
                self._made.clear()
            found = self._made[name, device] = Analysis.of(self._basis.tensor(name), device=device)
        return found

    def numbers(self, name: str, device: torch.device) -> TensorBasis:
        """The basis's numbers of one tensor, on the CPU or on the device."""
        if device == CPU:
            return self._basis.tensor(name)
        found = self._numbers.get(name)
        if found is None:
            if self._basis.is_large:
                self._numbers.clear()
            found = self._numbers[name] = self._basis.tensor(name).to(device)
        return found


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """A tensor that went through the basis, on the CPU.

    Attributes
    ----------
    core : torch.Tensor
        int32, (p x q).
    prediction : torch.Tensor
        What readers make of it, in the tensor's own shape and dtype.
    error, energy : float
        Sums of squares: of the tensor less the prediction, and of the tensor.
    retreat : str
        Where the device had no room: ``tiles`` when the products alone were made there, tile by tile, ``cpu`` when
        nothing was; else empty.
    """

    core: torch.Tensor
    prediction: torch.Tensor
    error: float
    energy: float
    retreat: str = ""


@dataclass(frozen=True, slots=True)
class CodeJob:
    """One tensor to take through the basis.

    Attributes
    ----------
    tensor : torch.Tensor
        As it stands in the checkpoint, finite.
    record : TensorRecord
        Its row of the basis's table.
    info : TensorInfo
        What the checkpoint says of it.
    step : Step
        The model's step.
    rounding : {"length", "error"}
        What the quantiser is to keep.
    analyses : AnalysisCache
        Of the basis.
    """

    tensor: torch.Tensor
    record: TensorRecord
    info: TensorInfo
    step: Step
    rounding: Rounding
    analyses: AnalysisCache


def code_tensor(job: CodeJob) -> CodedTensor | str:
    """Quantise a tensor's coefficients and read them back, on the device of the analyses.

    Returns
    -------
    CodedTensor or str
        A reason where the tensor cannot go through the basis.
    """
    device = job.analyses.device
    if _takes_rows(job.record):
        found, retreat = first_that_fits(
            (("", lambda: _by_rows(job, device)), ("cpu", lambda: _by_rows(job, CPU))),
            what=f"encoding tensor {job.record.name!r}",
        )
        return found if isinstance(found, str) else replace(found, retreat=retreat)
    made, retreat = first_that_fits(
        (
            ("", lambda: _coded(job, device, tiles=False)),
            ("tiles", lambda: _coded(job, device, tiles=True)),
            ("cpu", lambda: _coded(job, CPU, tiles=False)),
        ),
        what=f"encoding tensor {job.record.name!r}",
    )
    return made if isinstance(made, str) else replace(made, retreat=retreat)


def _takes_rows(record: TensorRecord) -> bool:
    """Whether a tensor goes through the basis by tiles of its rows, each by itself."""
    whole = record.left is None or (UNIT % record.left.block == 0 and record.left.rank >= record.left.block)
    return whole and record.low_rank is None and is_tiled(record.matrix)


def _by_rows(job: CodeJob, device: torch.device) -> CodedTensor | str:
    """Code tiles of rows, each quantised by itself: beside core and prediction a few tiles are held."""
    record = job.record
    numbers, analysis = job.analyses.numbers(record.name, CPU), job.analyses.get(record.name, device)
    source = job.tensor.reshape(record.matrix)
    core: torch.Tensor | None = None
    prediction = torch.empty(record.matrix, dtype=job.info.dtype.torch)
    error = energy = 0.0
    for start, stop in tile_extents(record.matrix):
        part = _quantised(
            source[start:stop], numbers.part(start, stop).to(device), analysis.part(start, stop), job
        )
        if isinstance(part, str):
            return part
        if core is None:
            core = torch.empty(record.matrix[0], part.core.shape[1], dtype=torch.int32)
        core[start:stop] = part.core
        prediction[start:stop] = part.prediction.reshape(stop - start, -1)
        error += part.error
        energy += part.energy
    assert core is not None
    return CodedTensor(core, prediction.reshape(record.shape), error, energy)


def _coded(job: CodeJob, device: torch.device, *, tiles: bool) -> CodedTensor | str:
    home = CPU if tiles else device
    numbers = job.analyses.numbers(job.record.name, home)
    return _quantised(job.tensor, numbers, job.analyses.get(job.record.name, device), job, tiles=tiles)


def _quantised(
    tensor: torch.Tensor, numbers: TensorBasis, analysis: Analysis, job: CodeJob, *, tiles: bool = False
) -> CodedTensor | str:
    record = numbers.record
    assert record.shift is not None
    source = tensor.to(numbers.mean_integers.device).to(torch.float64)
    values = source.reshape(record.matrix)
    change = values - numbers.mean()
    coefficients = analysis.coefficients_by_tiles(change) if tiles else analysis.coefficients(change)
    try:
        core = quantise(coefficients, job.step.value * 2.0**-record.shift, rounding=job.rounding)
    except InvalidInputError:
        return "a coefficient is beyond the range of the core"
    if not numbers.is_exact(core, step=job.step):
        return "its values are too large for exact arithmetic at this step"
    prediction = numbers.predict(core, step=job.step, dtype=job.info.dtype)
    error = float((prediction.to(torch.float64).reshape(record.matrix) - values).square().sum())
    energy = float(values.square().sum())
    return CodedTensor(core.to(torch.int32).cpu(), prediction.cpu(), error, energy)
