"""One zoo, analysed: architectures, kinship of the models, what they share beside the nulls, and what that suggests.

Reads each tensor of a sample of the architecture once; tensors are taken largest first up to a budget of elements.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from uws_store.analysis.architectures import ArchitectureGroup, group_architectures
from uws_store.analysis.modes import ModeCapture, captures, pooled_captures
from uws_store.analysis.relations import Relations, relate
from uws_store.checkpoint import Checkpoint
from uws_store.dtypes import DTYPES
from uws_store.errors import InvalidInputError
from uws_store.nulls import Sharing, pooled, sharing

__all__ = ["TensorAnalysis", "ZooAnalysis", "analyze_members"]

Progress = Callable[[str, int, int], None]

_BUDGET_ELEMENTS = 1 << 27
_SAMPLES = 1 << 16
_LEAST_SAMPLES = 64
_HELD_SHARE = 4
_MOST_HELD = 6
_MOST_TRAINED = 48


@dataclass(frozen=True, slots=True)
class TensorAnalysis:
    """What one tensor's changes show.

    Attributes
    ----------
    name : str
        The tensor.
    shape : tuple of int
        Its shape.
    energy : float
        Mean squared change about the mean, over the models.
    mean_error : float
        ``||W - mean|| / ||W||`` of models outside the mean: the mean-only control.
    modes : tuple of ModeCapture
        Explained variance along each mode.
    sharing : Sharing or None
        Bits that shared factors save, beside the nulls; None for vectors and fewer than four models.
    """

    name: str
    shape: tuple[int, ...]
    energy: float
    mean_error: float
    modes: tuple[ModeCapture, ...]
    sharing: Sharing | None


@dataclass(frozen=True, slots=True)
class ZooAnalysis:
    """A zoo in numbers and words.

    Attributes
    ----------
    architectures : tuple of ArchitectureGroup
        What the folder holds; all below is of the first.
    tasks : tuple of str
        The models of the largest architecture.
    source_bytes, parameters : int
        Bytes of their files; parameters of one.
    dtypes : tuple of (str, int)
        Floating-point dtypes and how many models have each as their most frequent one.
    relations : Relations
        Which models are akin.
    mean_error : float
        ``||W - mean|| / ||W||`` over models kept out of the mean.
    modes : tuple of ModeCapture
        Explained variance along each mode, averaged over tensors by energy.
    sharing : Sharing or None
        What is shared beyond the nulls, over all tensors that were measured.
    tensors : tuple of TensorAnalysis
        Each tensor that was measured, largest first.
    measured_share : float
        Part of the parameters that was measured.
    """

    architectures: tuple[ArchitectureGroup, ...]
    tasks: tuple[str, ...]
    source_bytes: int
    parameters: int
    dtypes: tuple[tuple[str, int], ...]
    relations: Relations
    mean_error: float
    modes: tuple[ModeCapture, ...]
    sharing: Sharing | None
    tensors: tuple[TensorAnalysis, ...]
    measured_share: float

    @property
    def kind(self) -> str:
        """In a few words: ``one base``, ``8 bases``, ``one initialisation``, or ``independent``.

        The first three where they hold for half of the models or more.
        """
        groups = [group for group in self.relations.bases if len(group) > 1]
        if 2 * sum(len(group) for group in groups) >= len(self.tasks):
            return "one base" if len(groups[0]) == len(self.tasks) else f"{len(groups)} bases"
        leaning = self.relations.initialisations
        return "one initialisation" if leaning and 2 * len(leaning[0]) >= len(self.tasks) else "independent"


def analyze_members(
    checkpoints: Mapping[str, Checkpoint], *, seed: int = 0, progress: Progress | None = None
) -> ZooAnalysis:
    """Analyse the checkpoints of a zoo.

    Parameters
    ----------
    checkpoints : mapping of str to Checkpoint
        By task; they may be of several architectures.
    seed : int
        Of the nulls, the sampled coordinates and the models kept out.
    progress : callable, optional
        Called with phase, done, to do.

    Raises
    ------
    InvalidInputError
        When fewer than two checkpoints are of one architecture (``invalid-input/one-model-zoo``).
    """
    groups = group_architectures({task: held.shapes() for task, held in checkpoints.items()})
    tasks = groups[0].tasks
    if len(tasks) < 2:
        raise InvalidInputError(
            f"no two of the {len(checkpoints)} checkpoints are of one architecture; there is nothing to compare",
            kind="invalid-input/one-model-zoo",
        )
    members = {task: checkpoints[task] for task in tasks}
    shapes = _common_floats(members)
    chosen = _within_budget(shapes, models=len(tasks))
    source = torch.Generator().manual_seed(seed)
    held_names = _kept_out(tasks, source)
    measured: list[TensorAnalysis] = []
    samples: list[npt.NDArray[np.float64]] = []
    matrices = sum(math.prod(shapes[name]) for name in chosen if len(shapes[name]) > 1) or 1
    for done, name in enumerate(chosen, start=1):
        values = [_matrix(members[task].read(name)) for task in tasks]
        samples += _sampled(values, budget=_SAMPLES * values[0].numel() // matrices, source=source)
        is_held = [task in held_names for task in tasks]
        measured.append(
            _analyze_tensor(name, shapes[name], values, is_held=is_held, source=source, seed=seed)
        )
        if progress is not None:
            progress("analysing", done, len(chosen))
    total = sum(math.prod(shape) for shape in shapes.values())
    weights = [(one.energy * math.prod(one.shape), one) for one in measured]
    return ZooAnalysis(
        architectures=groups,
        tasks=tasks,
        source_bytes=sum(held.file_size_bytes for held in members.values()),
        parameters=groups[0].parameters,
        dtypes=_dtypes(members),
        relations=relate(
            tasks,
            np.concatenate(samples, axis=1) if samples else np.zeros((len(tasks), 1)),
            [held.sha256() for held in members.values()],
        ),
        mean_error=_pooled_error(measured),
        modes=pooled_captures([(energy, one.modes) for energy, one in weights]),
        sharing=pooled([one.sharing for one in measured if one.sharing is not None]),
        tensors=tuple(measured),
        measured_share=sum(math.prod(one.shape) for one in measured) / max(1, total),
    )


def _common_floats(members: Mapping[str, Checkpoint]) -> dict[str, tuple[int, ...]]:
    """Floating-point tensors that all members have in one shape."""
    first, *others = members.values()
    return {
        name: tuple(info.shape)
        for name, info in first.tensors.items()
        if info.dtype.is_float
        and math.prod(info.shape) > 0
        and all(
            name in other.tensors
            and tuple(other.tensors[name].shape) == tuple(info.shape)
            and other.tensors[name].dtype.is_float
            for other in others
        )
    }


def _within_budget(shapes: Mapping[str, tuple[int, ...]], *, models: int) -> list[str]:
    """The largest tensors first, up to a budget of elements over all models; at least one."""
    chosen: list[str] = []
    spent = 0
    for name in sorted(shapes, key=lambda name: (-math.prod(shapes[name]), name)):
        spent += math.prod(shapes[name]) * models
        if chosen and spent > _BUDGET_ELEMENTS:
            break
        chosen.append(name)
    return chosen


def _kept_out(tasks: Sequence[str], source: torch.Generator) -> frozenset[str]:
    """Models for the held-out figures: a quarter, at most six; none of a pair."""
    count = min(_MOST_HELD, len(tasks) // _HELD_SHARE) if len(tasks) >= _HELD_SHARE else 0
    picked = torch.randperm(len(tasks), generator=source).tolist()[:count]
    return frozenset(tasks[index] for index in picked)


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.to(torch.float64)
    values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return values.reshape(1, -1) if values.ndim < 2 else values.reshape(values.shape[0], -1)


def _sampled(
    values: Sequence[torch.Tensor], *, budget: int, source: torch.Generator
) -> list[npt.NDArray[np.float64]]:
    """Weights of a matrix at common coordinates, in units of their usual deviation; nothing of vectors."""
    if min(values[0].shape) < 2:
        return []
    count = min(values[0].numel(), max(_LEAST_SAMPLES, budget))
    places = torch.randperm(values[0].numel(), generator=source)[:count]
    picked = torch.stack([value.reshape(-1)[places] for value in values])
    usual = float(picked.square().mean(1).sqrt().median())
    return [(picked / usual).numpy()] if usual > 0 else []


def _analyze_tensor(
    name: str,
    shape: tuple[int, ...],
    values: Sequence[torch.Tensor],
    *,
    is_held: Sequence[bool],
    source: torch.Generator,
    seed: int,
) -> TensorAnalysis:
    held = [value for value, out in zip(values, is_held, strict=True) if out]
    train = [value for value, out in zip(values, is_held, strict=True) if not out]
    train = train[:_MOST_TRAINED]
    mean = torch.stack(train).mean(0)
    outside = held or train
    error = sum(float((value - mean).square().sum()) for value in outside)
    energy = sum(float(value.square().sum()) for value in outside)
    modes: tuple[ModeCapture, ...] = ()
    if held and error > 0 and len(train) > 1:
        changes = [value - mean for value in train]
        if any(bool(change.any()) for change in changes):
            modes = captures(changes, [value - mean for value in held], source=source)
    return TensorAnalysis(
        name=name,
        shape=shape,
        energy=error / (len(outside) * mean.numel()),
        mean_error=math.sqrt(error / energy) if energy else 0.0,
        modes=modes,
        sharing=sharing(values, seed=seed),
    )


def _pooled_error(measured: Sequence[TensorAnalysis]) -> float:
    error = sum(one.energy * math.prod(one.shape) for one in measured)
    energy = sum(
        one.energy * math.prod(one.shape) / one.mean_error**2 for one in measured if one.mean_error > 0
    )
    return math.sqrt(error / energy) if energy else 0.0


def _dtypes(members: Mapping[str, Checkpoint]) -> tuple[tuple[str, int], ...]:
    counted: Counter[str] = Counter()
    for held in members.values():
        own: Counter[str] = Counter()
        for info in held.tensors.values():
            if DTYPES[info.dtype.name].is_float:
                own[info.dtype.name] += math.prod(info.shape)
        if own:
            counted[own.most_common(1)[0][0]] += 1
    return tuple(counted.most_common())
