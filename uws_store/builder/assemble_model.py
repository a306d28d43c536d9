"""A model from its encoded tensors: read groups laid end to end, the arrays, the document.

Owns what is kept of a model's tensors once they are encoded, and how that becomes objects; also the choice, read group
by read group, of what is stored alone because it is smaller so. Must not know how a tensor is encoded. Writes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from uws_store import layout
from uws_store.basis import Basis
from uws_store.builder.alone import cheaper_alone, pack_private
from uws_store.builder.encode_product import EncodedProduct, gauge_numbers, ranks_of
from uws_store.builder.encoded import EncodedModel
from uws_store.builder.files import own_files, pack_files
from uws_store.builder.object_folder import ObjectFolder
from uws_store.builder.scratch import Scratch
from uws_store.canonical import Step
from uws_store.checkpoint import RENAME_KEY, Checkpoint, TensorInfo
from uws_store.dtypes import DTYPES
from uws_store.metadata.basis import StepRecord
from uws_store.metadata.group import to_group_bytes
from uws_store.metadata.model import (
    DigestRecord,
    ModelDocument,
    PrivateRecord,
    ScoreRecord,
    SourceRecord,
    relative_error,
)
from uws_store.residual import residual_dtype, sorted_residual
from uws_store.store import EncodedArray, encode_array
from uws_store.tensor_bytes import bytes_of, digest_of, view_of

__all__ = ["EncodedTensors", "assemble_model"]

T = TypeVar("T", bound=np.generic)
Take = Callable[[str, bytes], None]
Into = Callable[[str], Take | None]

_SOURCE_METADATA_BYTES = 4096

Integers = npt.NDArray[np.integer]
Words = npt.NDArray[np.unsignedinteger]


@dataclass(slots=True)
class EncodedTensors:
    """What the encoding of a model's tensors gives, while they go by.

    Attributes
    ----------
    basis : Basis
        What the model is encoded against.
    checkpoint : Checkpoint
        The source.
    step : Step
        The model's quantiser step.
    scratch : Scratch or None
        Where cores and residuals lie until they are packed; None is memory.
    cores : dict of str to numpy.ndarray
        int16 or int32 (p x q) of each coded tensor.
    private : list of (PrivateRecord, bytes)
        Tensors that are kept byte for byte.
    absent : list of str
        Tensors of the table that the source does not have.
    dtypes : dict of str to str
        Dtypes of coded tensors, where they are not the table's.
    compact_digests, exact_digests : dict of str to bytes
        SHA-256 of each tensor at a tier.
    energies : dict of str to (float, float)
        Squared error and squared norm of each coded tensor; of a factor, its product's.
    private_groups : list of int
        Read groups that are stored alone.
    residuals : dict of str to (numpy.ndarray, numpy.ndarray)
        Residual and its classes (int16) of each coded tensor, until its read group is sorted.
    sorted : dict of int to dict
        Residuals of a read group by the name of their array, sorted by class.
    notices : list of str
        What the user should know.
    products : list of EncodedProduct
        In the order of the basis.
    """

    basis: Basis
    checkpoint: Checkpoint
    step: Step
    scratch: Scratch | None = None
    cores: dict[str, Integers] = field(default_factory=dict)
    private: list[tuple[PrivateRecord, bytes]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)
    compact_digests: dict[str, bytes] = field(default_factory=dict)
    exact_digests: dict[str, bytes] = field(default_factory=dict)
    energies: dict[str, tuple[float, float]] = field(default_factory=dict)
    private_groups: list[int] = field(default_factory=list)
    residuals: dict[str, tuple[Words, npt.NDArray[np.int16]]] = field(default_factory=dict)
    sorted: dict[int, dict[str, Words]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    products: list[EncodedProduct] = field(default_factory=list)

    def keep(self, info: TensorInfo, tensor: torch.Tensor, why: str | None) -> None:
        """Keep a tensor byte for byte; say why when nobody would expect it."""
        record = PrivateRecord(name=info.name, shape=info.shape, dtype=info.dtype.name)
        self.private.append((record, bytes_of(tensor)))
        self.digest(info.name, digest_of(tensor))
        if why is not None:
            self.notices.append(f"{info.name} is kept byte for byte: {why}")

    def digest(self, name: str, digest: bytes) -> None:
        """Record a tensor that is the same at every tier."""
        self.compact_digests[name] = self.exact_digests[name] = digest

    def held(self, values: npt.NDArray[T]) -> npt.NDArray[T]:
        """Put an array where it is to lie."""
        if self.scratch is None:
            return values
        held = self.room(values.size, values.dtype)
        held[:] = values.reshape(-1)
        self.scratch.forget()
        return held.reshape(values.shape)

    def joined(self, parts: list[npt.NDArray[T]]) -> npt.NDArray[T]:
        """Lay 1-D arrays that are held end to end; they are given up."""
        if len(parts) == 1:
            return parts.pop()
        joined = self.room(sum(map(len, parts)), parts[0].dtype)
        at = 0
        parts.reverse()
        while parts:
            part = parts.pop()
            joined[at : at + len(part)] = part
            at += len(part)
            self.forget()
        return joined

    def room(self, length: int, dtype: np.dtype[T]) -> npt.NDArray[T]:
        """Zeros where they are to lie."""
        return np.zeros(length, dtype) if self.scratch is None else self.scratch.zeros((length,), dtype.type)

    def forget(self) -> None:
        """Let go of memory for what lies on the disk."""
        if self.scratch is not None:
            self.scratch.forget()

    def dtype(self, name: str) -> str:
        """The dtype of a coded tensor in this model."""
        return self.dtypes.get(name, self.basis.table[name].dtype)


def assemble_model(
    made: EncodedTensors, *, exact: bool, exact_overhead: float | None, scores: tuple[ScoreRecord, ...]
) -> EncodedModel:
    """Put a model's document and objects together.

    Parameters
    ----------
    made : EncodedTensors
        Every tensor of the model; read groups that are cheaper alone are moved to ``private_groups``. Cores and
        residuals are given up.
    exact : bool
        Whether to add what makes every tensor bit-identical.
    exact_overhead : float or None
        See :func:`uws_store.builder.encode_model`.
    scores : tuple of ScoreRecord
        For the record.
    """
    own_types = {made.dtype(name) for name in made.cores}
    folder = ObjectFolder(made.scratch.folder) if made.scratch is not None else None

    def into(name: str) -> Take | None:
        return functools.partial(_put, folder, name, made.forget) if folder is not None else None

    arrays = _pack_arrays(made, into, exact=exact, exact_overhead=exact_overhead)
    shared_files, own = own_files(made.basis, made.checkpoint)
    files, file_array = pack_files(own)
    if file_array is not None:
        arrays["files"] = file_array
    uniform = own_types.pop() if made.dtypes and len(own_types) == 1 else None
    records = {name: array.record for name, array in arrays.items()}
    table_names = [record.name for record in made.basis.document.tensors]
    extra = [record.name for record, _ in made.private if record.name not in made.basis.table]
    order = [name for name in (*table_names, *extra) if name in made.compact_digests]
    document = ModelDocument(
        basis=made.basis.digest,
        step=StepRecord(mantissa=made.step.mantissa, exponent=made.step.exponent),
        dtype=uniform,
        dtypes=() if uniform else tuple(made.dtypes.items()),
        absent=tuple(made.absent),
        private=tuple(record for record, _ in made.private),
        private_groups=tuple(made.private_groups),
        core=records.get("core"),
        private_bytes=records.get("private"),
        private16=records.get("private16"),
        private32=records.get("private32"),
        private64=records.get("private64"),
        residual16=records.get("residual16"),
        residual32=records.get("residual32"),
        residual64=records.get("residual64"),
        ranks=ranks_of(made.products, made.basis) or None,
        scales=ModelDocument.pack_scales([scale for product in made.products for scale in product.scales]),
        gauge=records.get("gauge"),
        shared_files=shared_files,
        files=files,
        file_bytes=records.get("files"),
        compact=DigestRecord.over([made.compact_digests[name] for name in order]),
        exact=DigestRecord.over([made.exact_digests[name] for name in order])
        if exact and made.energies
        else None,
        lossless=True if exact and not made.energies else None,
        rel_error=_total_error(made),
        errors=ModelDocument.pack_errors(
            [relative_error(*made.energies[name]) for name in table_names if name in made.energies]
        ),
        source=SourceRecord(
            sha256=made.checkpoint.sha256(),
            size_bytes=made.checkpoint.file_size_bytes,
            metadata=_source_metadata(made.checkpoint),
        ),
        scores=scores,
    )
    objects: dict[str, bytes] = {
        f"{name}/{path}": data for name, array in arrays.items() for path, data in array.objects.items()
    }
    group = to_group_bytes(document)
    objects[layout.GROUP_PATH] = group
    found: Mapping[str, bytes] = objects
    if folder is not None:
        for path, data in objects.items():
            folder.add(path, data)
        found = folder
    return EncodedModel(document, hashlib.sha256(group).hexdigest(), found, tuple(made.notices))


def _total_error(made: EncodedTensors) -> float:
    """The relative error over all coded tensors; a product counts once: with its left factor."""
    seconds = {right.name for _, right in made.basis.document.products()}
    counted = [energies for name, energies in made.energies.items() if name not in seconds]
    return relative_error(
        math.fsum(error for error, _ in counted), math.fsum(energy for _, energy in counted)
    )


def _put(folder: ObjectFolder, name: str, forget: Callable[[], None], path: str, data: bytes) -> None:
    folder.add(f"{name}/{path}", data)
    forget()


def _pack_arrays(
    made: EncodedTensors, into: Into, *, exact: bool, exact_overhead: float | None
) -> dict[str, EncodedArray]:
    """The arrays that hold a model's weights, by name."""
    private = [(record.dtype, data) for record, data in made.private]
    if exact and exact_overhead is not None:
        private += _keep_groups(made, exact_overhead)
    arrays = pack_private(private)
    del private
    core = _pack_core(made, into("core"))
    arrays |= _pack_residuals(made, into)
    if core is not None:
        arrays["core"] = core
    gauge = gauge_numbers(made.products) if exact else None
    if gauge is not None:
        arrays["gauge"] = encode_array(
            gauge, chunk=layout.core_chunk_for(len(gauge)), page=layout.page_for(len(gauge))
        )
    return arrays


def _group_core(made: EncodedTensors, index: int, *, out: Integers | None = None) -> Integers:
    """Integers of a read group, sorted by significance; zeros for tensors that are not coded here."""
    group = made.basis.groups[index]
    found = [name for name in group.names if name in made.cores]
    dtype = np.result_type(np.int16, *(made.cores[name] for name in found))
    if len(group.names) == 1 and found:
        pooled = made.cores[found[0]].reshape(-1)
    else:
        pooled = np.zeros(group.coefficients, dtype)
        for name in found:
            offset = made.basis.slots[name].core_offset
            flat = made.cores[name].reshape(-1)
            pooled[offset : offset + len(flat)] = flat
    if out is None:
        out = np.empty(group.coefficients, dtype)
    made.basis.positions(index).sort(pooled.astype(out.dtype, copy=False), out)
    return out


def _group_residuals(made: EncodedTensors, index: int) -> dict[str, Words]:
    """Residuals of a read group by the name of their array, sorted by class; those of its tensors are given up."""
    if index in made.sorted:
        return made.sorted[index]
    members: dict[str, list[str]] = {}
    for name in made.basis.groups[index].names:
        if name in made.residuals:
            width = residual_dtype(DTYPES[made.dtype(name)]).removeprefix("uint")
            members.setdefault(f"residual{width}", []).append(name)
    parts: dict[str, Words] = {}
    for array, names in members.items():
        found = [made.residuals.pop(name) for name in names]
        values = [residual for residual, _ in found]
        classes = [own for _, own in found]
        del found
        parts[array] = made.held(
            sorted_residual(
                values[0] if len(values) == 1 else np.concatenate(values),
                classes[0] if len(classes) == 1 else np.concatenate(classes),
            )
        )
    made.sorted[index] = parts
    made.forget()
    return parts


def _keep_groups(made: EncodedTensors, overhead: float) -> list[tuple[str, bytes]]:
    """Keep the read groups that are cheaper alone; their tensors, by dtype and bytes, in the model's order."""
    kept: list[tuple[str, bytes]] = []
    for index, group in enumerate(made.basis.groups):
        names = [name for name in group.names if name in made.cores]
        if not names or any(made.basis.table[name].low_rank for name in group.names):
            continue
        # Read when the streams are done with.
        tensors = ((made.dtype(name), view_of(made.checkpoint.read(name))) for name in names)
        if cheaper_alone(tensors, _streams(made, index), overhead=overhead):
            made.private_groups.append(index)
            del made.sorted[index]
            for name in names:
                del made.cores[name], made.energies[name]
                made.compact_digests[name] = made.exact_digests[name]
                kept.append((made.dtype(name), bytes_of(made.checkpoint.read(name))))
        made.forget()
    return kept


def _streams(made: EncodedTensors, index: int) -> Iterator[Integers]:
    """The residuals and the core of a read group, as they are stored."""
    yield from _group_residuals(made, index).values()
    yield _group_core(made, index)


def _pack_core(made: EncodedTensors, take: Take | None) -> EncodedArray | None:
    """Lay the read groups end to end."""
    document = made.basis.document
    if len(made.private_groups) == len(made.basis.groups):
        return None
    small = all(map(_fits_16_bits, made.cores.values()))
    core: Integers = made.room(document.core_length, np.dtype(np.int16) if small else np.dtype(np.int32))
    for index, group in enumerate(made.basis.groups):
        _group_core(made, index, out=core[group.start : group.start + group.coefficients])
        for name in group.names:
            made.cores.pop(name, None)
        made.forget()
    return encode_array(core, chunk=document.core_chunk, page=document.core_page, made=take)


def _fits_16_bits(values: Integers) -> bool:
    return not values.size or bool(values.max() < 1 << 15 and values.min() > -(1 << 15))


def _pack_residuals(made: EncodedTensors, into: Into) -> dict[str, EncodedArray]:
    """One array per storage width: read groups end to end."""
    parts: dict[str, list[Words]] = {}
    for index in range(len(made.basis.groups)):
        for array, values in _group_residuals(made, index).items():
            parts.setdefault(array, []).append(values)
        made.sorted.pop(index, None)
    arrays: dict[str, EncodedArray] = {}
    for name, held in parts.items():
        joined = made.joined(held)
        arrays[name] = encode_array(
            joined,
            chunk=made.basis.document.residual_chunk,
            page=layout.page_for(len(joined)),
            made=into(name),
        )
    return arrays


def _source_metadata(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The checkpoint's own metadata, as long as it is small: licences travel, training logs do not."""
    pairs = tuple(sorted(checkpoint.metadata.items()))
    size = sum(len(key.encode()) + len(value.encode()) for key, value in pairs)
    return pairs if size <= _SOURCE_METADATA_BYTES else tuple(pair for pair in pairs if pair[0] == RENAME_KEY)
