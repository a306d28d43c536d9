"""The members of a zoo as the builder sees them: opened, compared, and read one tensor at a time.

Owns which checkpoints take part and how each tensor of the architecture is treated before any number is fitted.
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch

from uws_store.architecture import ArchitectureReport, compare
from uws_store.checkpoint import Checkpoint, ZooMember, open_checkpoint
from uws_store.dtypes import DTYPES
from uws_store.errors import InvalidInputError
from uws_store.tensor_bytes import digest_of

__all__ = ["Members", "TensorSurvey", "is_statistic"]

_STATISTICS = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "moving_mean",
    "moving_variance",
    "moving_var",
)
_TIE_ELEMENTS = 1024
_OUTLIER_RATIO = 100.0


def is_statistic(name: str) -> bool:
    """Whether a tensor is a normalisation statistic, which no lossy tier may touch: a variance must stay positive."""
    return name.rsplit(".", 1)[-1] in _STATISTICS


@dataclass(frozen=True, slots=True)
class TensorSurvey:
    """What one pass over the members found out about a tensor.

    Attributes
    ----------
    name, shape
        From the majority's signature.
    dtype : str
        The most frequent dtype.
    mode : {"coded", "shared", "private", "tied"}
        How it will be stored.
    tied_to : str or None
        For ``tied``.
    usable : tuple of str
        Tasks whose tensor takes part in the fit.
    energy, change_energy : float
        Mean over the usable members of the sum of squares, of the tensor and of its change about the mean.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    mode: str
    tied_to: str | None
    usable: tuple[str, ...]
    energy: float = 0.0
    change_energy: float = 0.0

    @property
    def matrix(self) -> tuple[int, int]:
        """The tensor as a matrix, as :attr:`uws_store.metadata.basis.TensorRecord.matrix` has it."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows, math.prod(self.shape) // rows if rows else 0


class Members:
    """The checkpoints that make a basis. A context manager.

    Parameters
    ----------
    zoo : sequence of ZooMember
        At least two.
    skip_mismatched : bool
        Leave out members of another architecture instead of refusing the zoo.
    """

    def __init__(self, zoo: Sequence[ZooMember], *, skip_mismatched: bool = False) -> None:
        with ExitStack() as stack:
            opened = {member.task: stack.enter_context(open_checkpoint(member.path)) for member in zoo}
            report = compare({task: checkpoint.shapes() for task, checkpoint in opened.items()})
            if not skip_mismatched:
                report.require_one_family()
            self.report: ArchitectureReport = report
            self.checkpoints: Mapping[str, Checkpoint] = {
                member.task: opened[member.task] for member in report.matched
            }
            if len(self.checkpoints) < 2:
                raise InvalidInputError(
                    f"a basis needs at least two models of one architecture, found {len(self.checkpoints)}"
                    + (f" of {len(zoo)}" if len(zoo) > 1 else "")
                    + "; add more checkpoints, or keep a single model as safetensors",
                    kind="invalid-input/one-model-zoo",
                )
            self._outliers: dict[str, list[str]] = {}
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def skipped(self) -> tuple[str, ...]:
        """Tasks left out because they are of another architecture."""
        return tuple(member.task for member in self.report.mismatched)

    @property
    def odd(self) -> Mapping[str, tuple[str, ...]]:
        """Per task, the tensors that differ from the majority and will be private."""
        return {
            member.task: tuple(str(tensor) for tensor in member.odd)
            for member in self.report.matched
            if member.odd
        }

    @property
    def outliers(self) -> Mapping[str, tuple[str, ...]]:
        """Per task, the tensors kept out of the fit because their norm is far beyond the others'; after the survey."""
        return {task: tuple(names) for task, names in self._outliers.items()}

    def sources_digest(self) -> str:
        """SHA-256, hex, over the sorted lines ``<sha256 of the checkpoint> <task>``."""
        lines = sorted(f"{checkpoint.sha256()} {task}\n" for task, checkpoint in self.checkpoints.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def survey(self) -> Iterator[TensorSurvey]:
        """Classify every tensor of the majority's signature, reading each tensor of each member once."""
        digests: dict[str, dict[str, bytes]] = {}
        order = [signature.name for signature in self.report.majority]
        for signature in self.report.majority:
            found = self._one(signature.name, signature.shape, digests)
            tied = self._tied(found, order, digests) if found.mode in ("coded", "private") else None
            if tied is not None:
                found = TensorSurvey(found.name, found.shape, found.dtype, "tied", tied, ())
            yield found

    def _one(self, name: str, shape: tuple[int, ...], digests: dict[str, dict[str, bytes]]) -> TensorSurvey:
        energies: dict[str, float] = {}
        total: torch.Tensor | None = None
        dtypes: list[str] = []
        mine: dict[str, bytes] = {}
        for task, checkpoint in self.checkpoints.items():
            info = checkpoint.tensors.get(name)
            if info is None:
                continue
            dtypes.append(info.dtype.name)
            if info.shape != shape:
                continue
            tensor = checkpoint.read(name)
            mine[task] = digest_of(tensor) + info.dtype.name.encode()
            if not info.dtype.is_float:
                continue
            values = tensor.to(torch.float64)
            if bool(torch.isfinite(values).all()):
                total = values if total is None else total + values
                energies[task] = float(values.square().sum())
        digests[name] = mine
        for task in _outliers(energies):
            self._outliers.setdefault(task, []).append(name)
            del energies[task]
            total = None
        usable = tuple(energies)
        if total is None and usable:
            # Summed anew: an outlier cannot be taken back out of a sum that it has swallowed.
            tensors = (self.checkpoints[task].read(name).to(torch.float64) for task in usable)
            total = functools.reduce(torch.add, tensors)
        dtype = max(sorted(set(dtypes)), key=dtypes.count)
        everywhere = len(mine) == len(self.checkpoints)
        if everywhere and len(set(mine.values())) == 1:
            mode = "shared"
        elif (
            is_statistic(name)
            or len(usable) < 2
            or 2 * len(mine) < len(self.checkpoints)
            or not DTYPES[dtype].is_float
            or 0 in shape
        ):
            mode = "private"
        else:
            mode = "coded"
        if total is None:
            return TensorSurvey(name, shape, dtype, mode, None, usable)
        mean_energy = sum(energies.values()) / len(usable)
        change_energy = max(0.0, mean_energy - float((total / len(usable)).square().sum()))
        return TensorSurvey(name, shape, dtype, mode, None, usable, mean_energy, change_energy)

    def _tied(
        self, found: TensorSurvey, order: list[str], digests: dict[str, dict[str, bytes]]
    ) -> str | None:
        """An earlier tensor that holds the same bytes in every member that has this one."""
        mine = digests[found.name]
        if math.prod(found.shape) < _TIE_ELEMENTS or len(mine) < len(self.checkpoints):
            return None
        for other in order:
            if other == found.name:
                return None
            if digests.get(other) == mine:
                return other
        return None

    def values(self, survey: TensorSurvey) -> Iterator[tuple[str, torch.Tensor]]:
        """Read a tensor of every usable member as a real matrix, float64, with its task."""
        for task in survey.usable:
            yield task, self.checkpoints[task].read(survey.name).to(torch.float64).reshape(survey.matrix)


def _outliers(energies: Mapping[str, float]) -> list[str]:
    """Tasks whose norm is a hundred times the median: one such member would be all there is in a mean and a basis."""
    if len(energies) < 3:
        return []
    limit = _OUTLIER_RATIO**2 * statistics.median(energies.values())
    return [task for task, energy in energies.items() if energy > limit > 0.0]
