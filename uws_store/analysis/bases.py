"""The bases that a zoo was tuned from, where a basis for each is smaller than one for all.

Owns that decision: kinship from weights at some coordinates, then bits of held-out models at those coordinates, coded about
one mean and about each group's. Builds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from uws_store.analysis.relations import relate
from uws_store.builder import DEFAULT_FIDELITY, Fidelity, Members, first_step
from uws_store.plan import choose_sides

__all__ = ["bases_of"]

_LEAST_GROUP = 4
"""Fewer models cannot be planned for: none can be kept out."""

_TENSORS = 12
_ELEMENTS = 1 << 24
_COORDINATES = 1 << 13
_LEAST_SIDE = 4
_WORTH = 0.97
_SLOPE = 0.1
"""Squared steps of distortion that one bit per element is worth: about what planners find around a bit."""

_FINEST = 1e-3


def bases_of(members: Members, *, fidelity: Fidelity) -> tuple[tuple[str, ...], ...]:
    """Group the members by the base they were tuned from, if a family with a basis for each group is smaller.

    Parameters
    ----------
    members : Members
        The opened zoo. Some slices of it are read: a dozen matrices, spread over the architecture.
    fidelity : Fidelity
        What the family is built for.

    Returns
    -------
    tuple of tuple of str
        The tasks of each group, sorted, the largest group first; one group where one basis is as good. Models that are
        akin to no group are with the one they lean to most; four or more of them are a group of their own.
    """
    tasks = tuple(members.checkpoints)
    together = (tasks,)
    products = members.checkpoints.products
    if len(tasks) < 2 * _LEAST_GROUP or (products is not None and products.places):
        return together
    samples = _samples(members, tasks)
    if not samples:
        return together
    units = [values / usual for values in samples if (usual := _usual(values)) > 0]
    if not units:
        return together
    relations = relate(tasks, np.concatenate(units, axis=1), tasks)
    groups = _completed(relations.bases, tasks, relations.cosine)
    if len(groups) < 2 or not all(_is_whole(members, group) for group in groups):
        return together
    place = {task: index for index, task in enumerate(tasks)}
    indexes = [[place[task] for task in group] for group in groups]
    apart = one = 0.0
    for values in samples:
        step = _step_for(values, indexes, fidelity)
        if step is not None:
            one += _bits(values, step)
            apart += sum(_bits(values[index], step) for index in indexes)
    return groups if apart < _WORTH * one else together


def _samples(members: Members, tasks: Sequence[str]) -> list[npt.NDArray[np.float64]]:
    """Weights of some matrices at common coordinates, (n, count) each; only of matrices that all members have alike."""
    matrices = [
        signature
        for signature in members.report.majority
        if len(signature.shape) > 1
        and min(signature.shape[0], math.prod(signature.shape[1:])) >= _LEAST_SIDE
        and all(_has(members, task, signature.name, signature.shape) for task in tasks)
    ]
    count = min(_TENSORS, len(matrices))
    random = np.random.default_rng(0)
    found: list[npt.NDArray[np.float64]] = []
    read = 0
    for index in range(count):
        signature = matrices[index * len(matrices) // count]
        size = math.prod(signature.shape)
        if len(found) >= 3 and read + size * len(tasks) > _ELEMENTS:
            continue
        read += size * len(tasks)
        places = torch.from_numpy(np.sort(random.permutation(size)[:_COORDINATES]))
        rows = [
            torch.nan_to_num(tensor.reshape(-1)[places].to(torch.float64), nan=0.0, posinf=0.0, neginf=0.0)
            for _, tensor in members.checkpoints.slices(signature.name, tasks)
        ]
        found.append(torch.stack(rows).numpy())
    return found


def _has(members: Members, task: str, name: str, shape: tuple[int, ...]) -> bool:
    info = members.checkpoints[task].tensors.get(name)
    return info is not None and info.shape == shape and info.dtype.is_float


def _is_whole(members: Members, group: Sequence[str]) -> bool:
    """Whether each tensor of the architecture is in some model of the group: its basis has a row for it."""
    held = {name for task in group for name in members.checkpoints[task].tensors}
    return all(signature.name in held for signature in members.report.majority)


def _usual(values: npt.NDArray[np.float64]) -> float:
    return float(np.median(np.sqrt(np.square(values).mean(1))))


def _completed(
    bases: Sequence[tuple[str, ...]], tasks: Sequence[str], cosine: npt.NDArray[np.float64]
) -> tuple[tuple[str, ...], ...]:
    """Groups that can be planned for, with everyone in one."""
    groups = [list(group) for group in bases if len(group) >= _LEAST_GROUP]
    alone = [task for group in bases if len(group) < _LEAST_GROUP for task in group]
    if len(groups) < 2:
        return (tuple(tasks),)
    if len(alone) >= _LEAST_GROUP:
        groups.append(alone)
        alone = []
    place: Mapping[str, int] = {task: index for index, task in enumerate(tasks)}
    cores = [[place[task] for task in group] for group in groups]
    for task in alone:
        leaning = [float(cosine[place[task], core].mean()) for core in cores]
        groups[leaning.index(max(leaning))].append(task)
    return tuple(sorted((tuple(sorted(group)) for group in groups), key=lambda group: (-len(group), group)))


def _step_for(
    values: npt.NDArray[np.float64], groups: Sequence[Sequence[int]], fidelity: Fidelity
) -> float | None:
    """About the step that a group's change will have; None where all members are alike."""
    count = values.shape[1]
    total = float(np.square(values - values.mean(0)).sum(1).mean())
    if total <= 0.0:
        return None
    within = sum(float(np.square(values[g] - values[g].mean(0)).sum()) for g in groups) / len(values)
    goal = DEFAULT_FIDELITY if fidelity.kind == "max-drop" else fidelity
    finest = _FINEST * math.sqrt(total / count)
    if within <= 0.0:
        return finest
    energy = float(np.square(values).sum(1).mean())
    return max(finest, first_step(goal, energy=energy, change_energy=within, parameters=count))


def _bits(values: npt.NDArray[np.float64], step: float) -> float:
    """Bits of models at the sampled coordinates, in the best way without factors, with their mean and what is lost."""
    matrices = [torch.from_numpy(row).reshape(1, -1) for row in values]
    mean = torch.stack(matrices).mean(0)
    changes = [matrix - mean for matrix in matrices]
    choice = choose_sides(changes, step=step, models=len(values), mean=mean, max_flops_per_weight=0.0)
    lost = choice.distortion * mean.numel() / _SLOPE
    return len(values) * (choice.bits_per_model + lost) + choice.basis_bits
