"""One tensor of a model through the basis: its integers, what they are read back as, and the error of that.

Owns the analyses of a basis's tensors and what is done where a device has no room. Decides nothing about private
tensors, and stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from uws_store.basis import Basis, TensorBasis
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
    """

    def __init__(self, basis: Basis, *, device: torch.device = CPU) -> None:
        self._basis = basis
        self.device = device
        self._made: dict[tuple[str, torch.device], Analysis] = {}
        self._numbers: dict[str, TensorBasis] = {}

    def get(self, name: str, device: torch.device = CPU) -> Analysis:
        """The analysis of one tensor."""
        found = self._made.get((name, device))
        if found is None:
            found = self._made[name, device] = Analysis.of(self._basis.tensor(name), device=device)
        return found

    def numbers(self, name: str, device: torch.device) -> TensorBasis:
        """The basis's numbers of one tensor, on the CPU or on the device."""
        if device == CPU:
            return self._basis.tensor(name)
        if name not in self._numbers:
            self._numbers[name] = self._basis.tensor(name).to(device)
        return self._numbers[name]


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
    made, retreat = first_that_fits(
        (
            ("", lambda: _coded(job, device, tiles=False)),
            ("tiles", lambda: _coded(job, device, tiles=True)),
            ("cpu", lambda: _coded(job, CPU, tiles=False)),
        ),
        what=f"encoding tensor {job.record.name!r}",
    )
    return made if isinstance(made, str) else replace(made, retreat=retreat)


def _coded(job: CodeJob, device: torch.device, *, tiles: bool) -> CodedTensor | str:
    record, analyses = job.record, job.analyses
    assert record.shift is not None
    analysis = analyses.get(record.name, device)
    home = CPU if tiles else device
    numbers = analyses.numbers(record.name, home)
    source = job.tensor.to(home).to(torch.float64)
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
    error = float((prediction.to(torch.float64) - source).square().sum())
    energy = float(values.square().sum())
    return CodedTensor(core.to(torch.int32).cpu(), prediction.cpu(), error, energy)
