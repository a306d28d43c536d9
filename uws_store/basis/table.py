"""Offsets and read groups, derived from a basis's tensor table.

Everything is a running sum in coding order: by read group, then by table order. Reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from uws_store.dtypes import DTYPES
from uws_store.metadata.basis import BasisDocument, SideRecord, TensorRecord
from uws_store.subspace import side_shape

__all__ = ["Group", "Slot", "lay_out", "shared_offsets", "side_extent"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one coded tensor's numbers lie in the packed arrays: a running sum in coding order.

    Attributes
    ----------
    record : TensorRecord
        The row of the table.
    core_shape : tuple of int
        Left columns x right columns.
    mean, left, right, exponents, profile : tuple of int
        Start and stop in each packed array.
    core_offset : int
        Start among the concatenated cores of its read group, before sorting.
    """

    record: TensorRecord
    core_shape: tuple[int, int]
    mean: tuple[int, int]
    left: tuple[int, int]
    right: tuple[int, int]
    exponents: tuple[int, int]
    profile: tuple[int, int]
    core_offset: int

    @property
    def coefficients(self) -> int:
        """Coefficients of the tensor's core."""
        return self.core_shape[0] * self.core_shape[1]


@dataclass(frozen=True, slots=True)
class Group:
    """A read group: tensors whose coefficients are sorted together and read together.

    Attributes
    ----------
    names : tuple of str
        Its tensors in table order.
    start, stop : int
        Its range in the core array; ``start`` is a multiple of the inner chunk.
    coefficients : int
        Coefficients in use; the rest of the range is padding zeros.
    """

    names: tuple[str, ...]
    start: int
    stop: int
    coefficients: int


def side_extent(record: SideRecord | None, size: int) -> tuple[int, int, int]:
    """Stored integers, stored exponents and columns of a side."""
    if record is None:
        return 0, 0, size
    entries, columns = side_shape(size, record.block, record.rank)
    return entries, columns, columns


def lay_out(document: BasisDocument) -> tuple[dict[str, Slot], tuple[Group, ...]]:
    """Derive every offset from the table: coding order is by read group, then by table order."""
    coded = [tensor for tensor in document.tensors if tensor.mode == "coded"]
    members: dict[int, list[TensorRecord]] = {}
    for tensor in coded:
        assert tensor.group is not None
        members.setdefault(tensor.group, []).append(tensor)
    slots: dict[str, Slot] = {}
    groups: list[Group] = []
    at = dict.fromkeys(("mean", "left", "right", "exponents", "profile"), 0)

    def take(name: str, count: int) -> tuple[int, int]:
        at[name] += count
        return at[name] - count, at[name]

    core_start = 0
    for index in sorted(members):
        offset = 0
        for tensor in members[index]:
            m, n = tensor.matrix
            left_entries, left_exponents, p = side_extent(tensor.left, m)
            right_entries, right_exponents, q = side_extent(tensor.right, n)
            slots[tensor.name] = Slot(
                record=tensor,
                core_shape=(p, q),
                mean=take("mean", m * n),
                left=take("left", left_entries),
                right=take("right", right_entries),
                exponents=take("exponents", left_exponents + right_exponents),
                profile=take("profile", p + q),
                core_offset=offset,
            )
            offset += p * q
        padded = -(-offset // document.core_chunk) * document.core_chunk
        names = tuple(tensor.name for tensor in members[index])
        groups.append(Group(names, core_start, core_start + padded, offset))
        core_start += padded
    return slots, tuple(groups)


def shared_offsets(document: BasisDocument) -> dict[str, tuple[int, int]]:
    """Byte ranges of the shared tensors in their array, in table order."""
    offsets: dict[str, tuple[int, int]] = {}
    at = 0
    for tensor in document.tensors:
        if tensor.mode == "shared":
            size = tensor.numel * DTYPES[tensor.dtype].size_bytes
            offsets[tensor.name] = (at, at + size)
            at += size
    return offsets
