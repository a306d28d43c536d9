"""A basis in memory: the tensor table joined with its numbers, and the canonical prediction of one tensor.

Shared by the builder, which encodes against it, and the loader, which decodes; those two do not know each other.
Owns the coding order, the read groups and the significance order. Knows nothing about models' objects or names.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from uws_store import layout
from uws_store.basis.files import read_files
from uws_store.basis.positions import Positions, positions_of
from uws_store.basis.table import Group, lay_out, shared_offsets, side_extent
from uws_store.basis.tensor import StoredTensor, TensorBasis
from uws_store.canonical import Step
from uws_store.entropy import significance_order
from uws_store.errors import FormatError
from uws_store.metadata.arrays import ArrayRecord
from uws_store.metadata.basis import BasisDocument, SideRecord, StepRecord, TensorRecord
from uws_store.metadata.group import from_group_bytes, max_group_bytes
from uws_store.storage import Storage, dropped_if_damaged
from uws_store.store import ArrayReader, read_whole
from uws_store.subspace import QuantisedSide

T = TypeVar("T")

__all__ = ["ARRAYS", "Basis", "array_record", "is_large_basis", "step_of"]

ARRAYS = ("mean", "left", "right", "exponents", "profile", "shared", "files")
"""Names of a basis's arrays."""

_MOST_HELD = 1 << 29
"""Coefficients of a basis that is held decoded; a larger one is read tensor by tensor."""
_HELD_OF_LARGE = 1 << 26
_MAX_CLASS = 8191
_MAX_EXPONENT = 60
# A 16-bit integer that is lifted this far still fits 47 bits, so factors can be held as float64 or int64.
_MAX_EXPONENT_SPREAD = 32


def is_large_basis(coefficients: int) -> bool:
    """Whether a basis of so many coefficients is read tensor by tensor."""
    return coefficients > _MOST_HELD


def step_of(record: StepRecord) -> Step:
    """Make the step that a document records."""
    return Step(record.mantissa, record.exponent)


class Basis:
    """A basis, its numbers read when they are first needed; threads may share it.

    Parameters
    ----------
    document : BasisDocument
        The table and the arrays' records.
    digest : str
        SHA-256, hex, of the group document: the basis's name.
    readers : mapping of str to ArrayReader
        One for each array that is not empty.
    """

    def __init__(self, document: BasisDocument, *, digest: str, readers: Mapping[str, ArrayReader]) -> None:
        self.document = document
        self.digest = digest
        self._readers = readers
        self._whole: dict[str, npt.NDArray[np.generic]] = {}
        self._stored: dict[str, StoredTensor] = {}
        self._tensors: dict[str, TensorBasis] = {}
        self._positions: dict[int, Positions] = {}
        self._kept: dict[str, object] = {}
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._lock = threading.RLock()
        self.table: dict[str, TensorRecord] = {tensor.name: tensor for tensor in document.tensors}
        self.slots, self.groups = lay_out(document)
        self.shared_offsets = shared_offsets(document)
        self._check_lengths()

    @classmethod
    def open(cls, storage: Storage, prefix: str, *, digest: str) -> Basis:
        """Open a stored basis: one request.

        Raises
        ------
        FormatError
            When the document is missing, damaged or not the one that ``digest`` names.
        """
        where = f"{storage.url}/{prefix}/{layout.GROUP_PATH}"
        path = f"{prefix}/{layout.GROUP_PATH}"
        with dropped_if_damaged(storage, path):
            data = storage.read_at_most(path, max_group_bytes(BasisDocument))
            if data is None:
                raise FormatError(f"{where}: the basis is missing", kind="format/missing-object")
            found = hashlib.sha256(data).hexdigest()
            if found != digest:
                raise FormatError(
                    f"{where}: SHA-256 is {found}; the document is damaged", kind="format/digest"
                )
        document = from_group_bytes(BasisDocument, data, where=where)
        readers = {
            name: ArrayReader(storage, prefix, name=name, record=record)
            for name in ARRAYS
            if (record := array_record(document, name)) is not None
        }
        return cls(document, digest=digest, readers=readers)

    @property
    def coded_parameters(self) -> int:
        """Elements of all basis-coded tensors."""
        return sum(slot.record.numel for slot in self.slots.values())

    @property
    def is_large(self) -> bool:
        """Whether its numbers are too many to be held all at once: what was read longest ago is read again then."""
        return is_large_basis(self.document.core_length)

    @property
    def size_bytes(self) -> int:
        """Bytes of the basis's arrays, without the metadata documents."""
        records = (array_record(self.document, name) for name in ARRAYS)
        return sum(record.size_bytes for record in records if record is not None)

    def prefetch(self) -> None:
        """Read every array of numbers whole, one request per shard; later reads are served from memory.

        Of a basis that is large nothing is read ahead.
        """
        if self.is_large:
            return
        with self._lock:
            names = [name for name in self._readers if name not in self._whole and name != "files"]
            readers = [self._readers[name] for name in names]
            self._whole |= zip(names, read_whole(readers), strict=True)

    def kept(self, key: str, make: Callable[[Basis], T]) -> T:
        """What was made from this basis under a key: made once, and kept for as long as the basis is."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make(self)
            return cast("T", self._kept[key])

    def _read(self, name: str, start: int, stop: int) -> npt.NDArray[np.generic]:
        if start == stop:
            return np.zeros(0, np.int16)
        whole = self._whole.get(name)
        if whole is not None:
            return whole[start:stop]
        return self._readers[name].read(start, stop)

    def _small(self, name: str) -> npt.NDArray[np.generic]:
        """An array that is small and always needed: read once, whole."""
        with self._lock:
            if name not in self._whole and name in self._readers:
                self._whole[name] = self._readers[name].read()
            return self._whole.get(name, np.zeros(0, np.int16))

    def stored(self, name: str) -> StoredTensor:
        """Integers of one coded tensor as they are stored; the first touch reads those of its whole read group."""
        with self._lock:
            found = self._stored.get(name)
            if found is None:
                group = self.slots[name].record.group
                assert group is not None
                if self.is_large:
                    self._forget_for(self.groups[group])
                self._load_group(self.groups[group])
                found = self._stored[name]
            return found

    def tensor(self, name: str) -> TensorBasis:
        """Numbers of one coded tensor, ready to encode against; the first touch reads those of its read group."""
        with self._lock:
            found = self._tensors.get(name)
            if found is None:
                found = self._tensors[name] = TensorBasis.of(self.stored(name))
            return found

    def _forget_for(self, group: Group) -> None:
        """Make room for a read group: what others use stays for as long as they do."""
        held = sum(stored.mean.numel() for stored in self._stored.values())
        if held + group.coefficients > _HELD_OF_LARGE:
            self._stored.clear()
            self._tensors.clear()

    def _load_group(self, group: Group) -> None:
        first, last = self.slots[group.names[0]], self.slots[group.names[-1]]
        mean = _narrowed(self._read("mean", first.mean[0], last.mean[1]))
        left = self._read("left", first.left[0], last.left[1])
        right = self._read("right", first.right[0], last.right[1])
        exponents = self._small("exponents")[first.exponents[0] : last.exponents[1]]
        for name in group.names:
            slot = self.slots[name]
            m, n = slot.record.matrix
            integers = mean[slot.mean[0] - first.mean[0] : slot.mean[1] - first.mean[0]]
            split = slot.exponents[0] - first.exponents[0]
            left_columns = side_extent(slot.record.left, m)[1]
            end = slot.exponents[1] - first.exponents[0]
            self._stored[name] = StoredTensor(
                slot.record,
                torch.from_numpy(integers).reshape(m, n),
                _side(
                    slot.record.left,
                    m,
                    left[slot.left[0] - first.left[0] : slot.left[1] - first.left[0]],
                    exponents[split : split + left_columns],
                    name,
                ),
                _side(
                    slot.record.right,
                    n,
                    right[slot.right[0] - first.right[0] : slot.right[1] - first.right[0]],
                    exponents[split + left_columns : end],
                    name,
                ),
            )

    def positions(self, group: int) -> Positions:
        """Where the coefficients of a read group stand in its stored sequence; kept, since every model needs it."""
        with self._lock:
            found = self._positions.get(group)
            if found is None:
                profiles = [self.profile(name) for name in self.groups[group].names]
                found = positions_of(profiles)
                if not self.is_large:
                    self._positions[group] = found
            return found

    def profile(self, name: str) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        """Row and column classes of one coded tensor, int16 (p,) and (q,).

        Raises
        ------
        FormatError
            When a class is so large that the sum of two could leave 16 bits (kind ``format/table``).
        """
        slot = self.slots[name]
        whole = self._small("profile")[slot.profile[0] : slot.profile[1]].astype(np.int16)
        if int(whole.max()) > _MAX_CLASS or int(whole.min()) < -_MAX_CLASS:
            raise FormatError(f"{name}: a variance class is beyond {_MAX_CLASS}", kind="format/table")
        return whole[: slot.core_shape[0]], whole[slot.core_shape[0] :]

    def order(self, group: int) -> npt.NDArray[np.int64]:
        """Significance order of a read group (see :func:`uws_store.entropy.significance_order`)."""
        with self._lock:
            found = self._orders.get(group)
            if found is None:
                found = significance_order([self.profile(name) for name in self.groups[group].names])
                if len(found) <= 1 << 22:
                    self._orders[group] = found
            return found

    def shared_bytes(self, name: str) -> bytes:
        """Bytes of a shared tensor."""
        start, stop = self.shared_offsets[name]
        return self._read("shared", start, stop).tobytes() if stop > start else b""

    def side_files(self, names: Collection[str]) -> dict[str, bytes]:
        """Read side files that the models have in common, by name.

        Raises
        ------
        FormatError
            When the basis has no such file (kind ``format/model``), or stored bytes are damaged.
        """
        known = self.document.files
        missing = set(names) - {record.name for record in known}
        where = f"basis {self.digest[:12]}"
        if missing:
            raise FormatError(f"{where} has no side file {min(missing)!r}", kind="format/model")
        return read_files(self._readers.get("files"), known, names=names, where=where)

    def _check_lengths(self) -> None:
        """Compare what the table needs with what the arrays hold; nothing is allocated before this."""
        last = list(self.slots.values())[-1] if self.slots else None
        needed = {
            "mean": last.mean[1] if last else 0,
            "left": last.left[1] if last else 0,
            "right": last.right[1] if last else 0,
            "exponents": last.exponents[1] if last else 0,
            "profile": last.profile[1] if last else 0,
            "shared": max((stop for _, stop in self.shared_offsets.values()), default=0),
            "files": sum(record.size for record in self.document.files),
        }
        dtypes = dict.fromkeys(ARRAYS, "int16") | {"mean": "int32", "shared": "uint8", "files": "uint8"}
        for name in ARRAYS:
            record = array_record(self.document, name)
            found = record.length if record else 0
            if found != needed[name]:
                raise FormatError(
                    f"basis {self.digest[:12]}: the table needs {needed[name]} elements of {name!r}, its array has {found}",
                    kind="format/table",
                )
            if record is not None and record.dtype != dtypes[name]:
                raise FormatError(
                    f"basis {self.digest[:12]}: {name!r} is {record.dtype}, expected {dtypes[name]}",
                    kind="format/table",
                )
        length = self.groups[-1].stop if self.groups else 0
        if self.document.core_length != length:
            raise FormatError(
                f"basis {self.digest[:12]}: the table needs a core of {length}, the document says "
                f"{self.document.core_length}",
                kind="format/table",
            )


def array_record(document: BasisDocument, name: str) -> ArrayRecord | None:
    """The record of one of a basis's arrays."""
    return {
        "mean": document.mean,
        "left": document.left,
        "right": document.right,
        "exponents": document.exponents,
        "profile": document.profile,
        "shared": document.shared,
        "files": document.file_bytes,
    }[name]


def _narrowed(integers: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Hold a mean in 16 bits where it fits: half the memory of a large basis."""
    if integers.dtype != np.int32:
        return integers
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    return integers.astype(np.int16) if low >= -(1 << 15) and high < 1 << 15 else integers


def _side(
    record: SideRecord | None,
    size: int,
    integers: npt.NDArray[np.generic],
    exponents: npt.NDArray[np.generic],
    name: str,
) -> QuantisedSide | None:
    if record is None:
        return None
    stored = QuantisedSide(
        size, record.block, record.rank, torch.from_numpy(integers), torch.from_numpy(exponents)
    )
    highest, lowest = int(stored.exponents.max()), int(stored.exponents.min())
    if highest > _MAX_EXPONENT or lowest < -_MAX_EXPONENT or highest - lowest > _MAX_EXPONENT_SPREAD:
        raise FormatError(
            f"{name}: a factor's exponents run from {lowest} to {highest}; at most {_MAX_EXPONENT} and a spread of "
            f"{_MAX_EXPONENT_SPREAD} are allowed",
            kind="format/table",
        )
    return stored
