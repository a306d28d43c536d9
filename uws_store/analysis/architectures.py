"""Which architectures a folder of checkpoints holds, and which of them are one under other names or turned round.

Pure: sees names, shapes and dtypes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from uws_store.architecture import compare

__all__ = ["ArchitectureGroup", "group_architectures"]

Shape = tuple[int, ...]

_SUGGESTED = 6


@dataclass(frozen=True, slots=True)
class ArchitectureGroup:
    """Checkpoints of one architecture.

    Attributes
    ----------
    tasks : tuple of str
        Its members, sorted.
    tensors, parameters : int
        Of the majority's signature.
    odd : tuple of (str, str)
        Members with tensors that differ, and the first difference of each.
    renamed_from : int or None
        The earlier group that has the same shapes under other names.
    transposed_from : int or None
        The earlier group that has the same tensors with some matrices transposed or axes in another order.
    rename : tuple of (str, str)
        For ``renamed_from``: pairs of this group's name and the other's that shapes and order suggest.
    """

    tasks: tuple[str, ...]
    tensors: int
    parameters: int
    odd: tuple[tuple[str, str], ...]
    renamed_from: int | None = None
    transposed_from: int | None = None
    rename: tuple[tuple[str, str], ...] = ()


def group_architectures(members: Mapping[str, Mapping[str, Shape]]) -> tuple[ArchitectureGroup, ...]:
    """Part checkpoints into architectures, the largest group first.

    Parameters
    ----------
    members : mapping of str to mapping of str to tuple of int
        For each task, the shapes of its tensors by name.
    """
    groups: list[tuple[tuple[str, ...], dict[str, Shape], tuple[tuple[str, str], ...]]] = []
    rest = dict(members)
    while rest:
        report = compare(rest)
        matched = report.matched
        if not matched:  # a majority that nobody has: mixed names; take the most frequent signature
            counts = Counter(frozenset(shapes.items()) for shapes in rest.values())
            chosen = counts.most_common(1)[0][0]
            tasks = tuple(
                task for task, shapes in sorted(rest.items()) if frozenset(shapes.items()) == chosen
            )
            signature = dict(rest[tasks[0]])
            odd: tuple[tuple[str, str], ...] = ()
        else:
            tasks = tuple(member.task for member in matched)
            signature = {tensor.name: tensor.shape for tensor in report.majority}
            odd = tuple((member.task, str(member.odd[0])) for member in matched if member.odd)
        groups.append((tasks, signature, odd))
        for task in tasks:
            del rest[task]
    groups.sort(key=lambda group: (-len(group[0]), group[0]))
    found: list[ArchitectureGroup] = []
    for index, (tasks, signature, odd) in enumerate(groups):
        renamed, transposed = _twins(signature, [held for _, held, _ in groups[:index]])
        found.append(
            ArchitectureGroup(
                tasks=tasks,
                tensors=len(signature),
                parameters=sum(math.prod(shape) for shape in signature.values()),
                odd=odd,
                renamed_from=renamed,
                transposed_from=transposed,
                rename=_pairs(signature, groups[renamed][1]) if renamed is not None else (),
            )
        )
    return tuple(found)


def _twins(signature: Mapping[str, Shape], earlier: list[dict[str, Shape]]) -> tuple[int | None, int | None]:
    """The first earlier architecture with the same shapes, and the first with the same up to the order of axes."""
    shapes = sorted(signature.values())
    turned = sorted(tuple(sorted(shape)) for shape in shapes)
    for index, other in enumerate(earlier):
        if sorted(other.values()) == shapes:
            return index, None
    for index, other in enumerate(earlier):
        if sorted(tuple(sorted(shape)) for shape in other.values()) == turned:
            return None, index
    return None, None


def _pairs(signature: Mapping[str, Shape], other: Mapping[str, Shape]) -> tuple[tuple[str, str], ...]:
    """Match names of equal shapes in their order; unchanged names are left out."""
    waiting: defaultdict[Shape, list[str]] = defaultdict(list)
    for name, shape in other.items():
        if signature.get(name) != shape:
            waiting[shape].append(name)
    pairs = [
        (name, waiting[shape].pop(0))
        for name, shape in signature.items()
        if other.get(name) != shape and waiting[shape]
    ]
    return tuple(pairs)
