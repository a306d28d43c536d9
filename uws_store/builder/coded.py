"""One tensor of a model through the basis: its integers, what they are read back as, and the error of that.

Owns the analyses of a basis's tensors and what is done where a device has no room. Decides nothing about private
tensors, and stores nothing.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import torch

from uws_store.basis import Basis, PanelTensor, StoredTensor, TensorBasis, WideTensor, is_wide
from uws_store.builder.scratch import Scratch
from uws_store.builder.tiles import UNIT, is_tiled, tile_extents
from uws_store.builder.transform import Analysis
from uws_store.builder.whole_analysis import WholeAnalysis
from uws_store.canonical import EXACT_LIMIT, Step, exactness_bound
from uws_store.checkpoint import TensorInfo
from uws_store.device import CPU, first_that_fits
from uws_store.dtypes import DType
from uws_store.errors import InvalidInputError
from uws_store.metadata.basis import TensorRecord
from uws_store.quantize import Rounding, quantise, quantised_integers
from uws_store.subspace import side_from_integers

__all__ = ["AnalysisCache", "CodeJob", "CodedTensor", "TensorCoder", "code_tensor"]

KEPT_BYTES = 1 << 29
"""Bytes that a cache of analyses keeps."""

_PART = 1 << 17
_ROWS = 256
_HELD = 9
"""What an inverse in two bytes, one in float64 and a factor in float64 take, over the first."""
_NOT_FINITE = "it holds NaN or infinity"
_BEYOND_RANGE = "a coefficient is beyond the range of the core"
_INEXACT = "its values are too large for exact arithmetic at this step"


class TensorCoder:
    """What encoding a tensor on the CPU needs of the basis: its analysis, its canonical reconstruction, its reach.

    Parameters
    ----------
    stored : StoredTensor
        The basis's integers.
    """

    def __init__(self, stored: StoredTensor) -> None:
        self.record = stored.record
        self.analysis = WholeAnalysis(stored)
        self._stored = stored
        self._real_analysis = Analysis.of(stored)
        self._is_confirmed = False
        self._numbers: WideTensor | PanelTensor = (
            WideTensor(stored) if is_wide(stored) else PanelTensor(stored, "canonical")
        )
        sides = [side_from_integers(side).reach() if side else None for side in (stored.left, stored.right)]
        self._left, self._right = sides
        low, high = torch.aminmax(stored.mean)
        self._mean_peak = max(-float(low), float(high))

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers held besides the basis's own, or that may come to be."""
        return _HELD * self.analysis.size_bytes

    def real_coefficients(self, source_mn: torch.Tensor) -> torch.Tensor:
        """Project a tensor in float64, for steps that are too fine for whole numbers, and to tell whether it is finite."""
        record = self.record
        assert record.mean_grid is not None
        change = source_mn.to(torch.float64, copy=True)
        for rows in range(0, len(change), _ROWS):
            part = change[rows : rows + _ROWS]
            part.sub_(self._stored.mean[rows : rows + _ROWS].to(torch.float64), alpha=2.0**-record.mean_grid)
        return self._real_analysis.coefficients_in_place(change)

    def is_exact(self, core_pq: torch.Tensor, *, step: Step) -> bool:
        """Prove that canonical reconstruction of this core cannot round anywhere."""
        record = self.record
        assert record.mean_grid is not None
        assert record.shift is not None
        bound = exactness_bound(
            core_pq,
            left=self._left,
            right=self._right,
            step=step,
            shift=record.shift,
            mean_bound=math.ldexp(self._mean_peak, -record.mean_grid),
            mean_grid=record.mean_grid,
        )
        return bound < EXACT_LIMIT

    def predict(self, core_pq: torch.Tensor, *, step: Step, dtype: DType) -> torch.Tensor:
        """Reconstruct canonically, as a reader on the CPU does.

        The first time, a part is made in float64 too. Where a machine's byte products gave other bits, all are made so.
        """
        made = self._numbers.predict(core_pq, step=step, dtype=dtype)
        if made is not None and (self._is_confirmed or isinstance(self._numbers, PanelTensor)):
            return made
        panels = PanelTensor(self._stored, "canonical")
        if made is not None and panels.confirms(made, core_pq, step=step, dtype=dtype):
            self._is_confirmed = True
            return made
        if made is not None:
            self._numbers = panels
        return panels.predict(core_pq, step=step, dtype=dtype)


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
    kept_bytes : int
        How many bytes may be kept; what does not fit is made anew for each model. Of a large basis nothing is kept.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        device: torch.device = CPU,
        scratch: Scratch | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._basis = basis
        self.device = device
        self.scratch = scratch
        self._made: dict[tuple[str, torch.device], Analysis] = {}
        self._numbers: dict[str, TensorBasis] = {}
        self._coders: dict[str, TensorCoder] = {}
        self._kept_bytes = 0 if basis.is_large else kept_bytes
        self._lock = threading.Lock()

    @classmethod
    def shared(
        cls, basis: Basis, *, device: torch.device = CPU, scratch: Scratch | None = None
    ) -> AnalysisCache:
        """One for all who encode against an open basis on the CPU; a new one where memory is scarce."""
        if device == CPU and not basis.is_large:
            return basis.kept("analyses", cls)
        return cls(basis, device=device, scratch=scratch)

    def get(self, name: str, device: torch.device = CPU) -> Analysis:
        """The analysis of one tensor."""
        found = self._made.get((name, device))
        if found is None:
            if self._basis.is_large:
                self._made.clear()
            found = self._made[name, device] = Analysis.of(self._basis.stored(name), device=device)
        return found

    def coder(self, name: str) -> TensorCoder:
        """What encodes one tensor on the CPU."""
        with self._lock:
            found = self._coders.get(name)
        if found is None:
            found = TensorCoder(self._basis.stored(name))
            with self._lock:
                # What is made first stays: models go by in one order, so that dropping the oldest would keep nothing.
                if found.size_bytes < self._kept_bytes and name not in self._coders:
                    self._coders[name] = found
                    self._kept_bytes -= found.size_bytes
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
        int16 or int32, (p x q).
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
        As it stands in the checkpoint.
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
        if not _is_finite(job.tensor):
            return _NOT_FINITE
        found, retreat = first_that_fits(
            (("", lambda: _by_rows(job, device)), ("cpu", lambda: _by_rows(job, CPU))),
            what=f"encoding tensor {job.record.name!r}",
        )
        return found if isinstance(found, str) else replace(found, retreat=retreat)
    made, retreat = first_that_fits(
        (
            ("", lambda: _coded_here(job) if device == CPU else _coded_there(job, device, tiles=False)),
            ("tiles", lambda: _coded_there(job, device, tiles=True)),
            ("cpu", lambda: _coded_here(job)),
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


def _quantised(
    tensor: torch.Tensor, numbers: TensorBasis, analysis: Analysis, job: CodeJob
) -> CodedTensor | str:
    """Code a tile in float64."""
    record = numbers.record
    assert record.shift is not None
    values = tensor.to(numbers.mean_integers.device).to(torch.float64).reshape(record.matrix)
    coefficients = analysis.coefficients(values - numbers.mean())
    try:
        core = quantise(coefficients, job.step.value * 2.0**-record.shift, rounding=job.rounding)
    except InvalidInputError:
        return _BEYOND_RANGE
    if not numbers.is_exact(core, step=job.step):
        return _INEXACT
    prediction = numbers.predict(core, step=job.step, dtype=job.info.dtype)
    error = float((prediction.to(torch.float64).reshape(record.matrix) - values).square().sum())
    energy = float(values.square().sum())
    return CodedTensor(core.to(torch.int32).cpu(), prediction.cpu(), error, energy)


def _coded_here(job: CodeJob) -> CodedTensor | str:
    """On the CPU, where besides the tensor there are its coefficients and its core, then its core and what is read back."""
    record = job.record
    assert record.shift is not None
    coder = job.analyses.coder(record.name)
    source = job.tensor.reshape(record.matrix)
    own_step = job.step.value * 2.0**-record.shift
    coefficients = coder.analysis.coefficients(source, own_step)
    if coefficients is None:
        if not _is_finite(job.tensor):
            return _NOT_FINITE
        coefficients = coder.real_coefficients(source)
    try:
        core = quantised_integers(coefficients, own_step, rounding=job.rounding)
    except InvalidInputError:
        return _BEYOND_RANGE
    del coefficients
    if not coder.is_exact(core, step=job.step):
        return _INEXACT
    prediction = coder.predict(core, step=job.step, dtype=job.info.dtype)
    return CodedTensor(core, prediction, *_energies(job.tensor, prediction))


def _coded_there(job: CodeJob, device: torch.device, *, tiles: bool) -> CodedTensor | str:
    """On a device, whole, or with the products alone there."""
    record, analyses = job.record, job.analyses
    assert record.shift is not None
    if not _is_finite(job.tensor):
        return _NOT_FINITE
    analysis = analyses.get(record.name, device)
    home = CPU if tiles else device
    numbers = analyses.numbers(record.name, home)
    own_step = job.step.value * 2.0**-record.shift
    source = job.tensor.to(home)
    change = source.to(torch.float64).reshape(record.matrix) - numbers.mean()
    project = analysis.coefficients_by_tiles if tiles else analysis.coefficients
    try:
        core = quantise(project(change, own_step), own_step, rounding=job.rounding)
    except InvalidInputError:
        return _BEYOND_RANGE
    core = core.to(torch.float64)
    if not numbers.is_exact(core, step=job.step):
        return _INEXACT
    prediction = numbers.predict(core, step=job.step, dtype=job.info.dtype)
    return CodedTensor(core.to(torch.int32).cpu(), prediction.cpu(), *_energies(source, prediction))


def _is_finite(tensor: torch.Tensor) -> bool:
    # Some 8-bit types have no test of their own.
    parts = torch.split(tensor.reshape(-1), _PART)
    return all(bool(torch.isfinite(part.to(torch.float64)).all()) for part in parts)


def _energies(source: torch.Tensor, prediction: torch.Tensor) -> tuple[float, float]:
    """Sums of squares of the error and of the tensor; on the CPU a part at a time, in one order."""
    error = energy = 0.0
    count = _PART if source.device.type == "cpu" else max(1, source.numel())
    for own, made in zip(
        torch.split(source.reshape(-1), count), torch.split(prediction.reshape(-1), count), strict=True
    ):
        real = own.to(torch.float64)
        energy += float(torch.dot(real, real))
        real = made.to(torch.float64) - real
        error += float(torch.dot(real, real))
    return error, energy
