"""Encoding one model against a finished basis: integers, private tensors, residual, digests, errors.

Owns the decision, tensor by tensor, whether a model's tensor goes through the basis or is kept byte for byte. Every
prediction is made by the same canonical code that a reader runs, so what is recorded is what will be loaded. Writes
nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from uws_store import layout
from uws_store.basis import Basis, step_of
from uws_store.builder.alone import cheaper_alone, pack_private
from uws_store.builder.encode_product import EncodedProduct, encode_product, gauge_numbers, ranks_of
from uws_store.builder.encoded import EncodedModel
from uws_store.builder.files import own_files, pack_files
from uws_store.builder.products import Form
from uws_store.builder.transform import Analysis
from uws_store.canonical import Step
from uws_store.checkpoint import RENAME_KEY, Checkpoint, TensorInfo
from uws_store.dtypes import DTYPES
from uws_store.errors import InvalidInputError
from uws_store.executors import one_thread
from uws_store.metadata.basis import StepRecord, TensorRecord
from uws_store.metadata.group import to_group_bytes
from uws_store.metadata.model import (
    DigestRecord,
    ModelDocument,
    PrivateRecord,
    ScoreRecord,
    SourceRecord,
    relative_error,
)
from uws_store.quantize import Rounding, quantise
from uws_store.residual import residual_classes, residual_dtype, residual_of, residual_order
from uws_store.store import EncodedArray, encode_array
from uws_store.tensor_bytes import bytes_of, digest_of

__all__ = ["EXACT_OVERHEAD", "AnalysisCache", "encode_model"]

EXACT_OVERHEAD = 0.005
"""Share by which core and residual of a read group may exceed its bits alone before it is stored alone.

Words coded alone are at least as much smaller than what ZipNN and Zstandard make of the zoos that were measured."""

_SOURCE_METADATA_BYTES = 4096


class AnalysisCache:
    """The analyses of a basis's tensors, made once and shared by the models that are encoded together."""

    def __init__(self, basis: Basis) -> None:
        self._basis = basis
        self._made: dict[str, Analysis] = {}

    def get(self, name: str) -> Analysis:
        """The analysis of one tensor."""
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = Analysis.of(self._basis.tensor(name))
        return found


def encode_model(
    basis: Basis,
    checkpoint: Checkpoint,
    *,
    step: Step | None = None,
    exact: bool = False,
    exact_overhead: float | None = EXACT_OVERHEAD,
    analyses: AnalysisCache | None = None,
    scores: tuple[ScoreRecord, ...] = (),
    rounding: Rounding = "length",
) -> EncodedModel:
    """Encode a checkpoint against a basis.

    Parameters
    ----------
    basis : Basis
        The basis of the model's architecture.
    checkpoint : Checkpoint
        The source.
    step : Step, optional
        Quantiser step; the basis's own when absent.
    exact : bool
        Whether to add what makes every tensor bit-identical.
    exact_overhead : float or None
        With ``exact``: a read group whose core and residual are larger than its bits alone, by more than this share, is
        stored alone. None never does so.
    analyses : AnalysisCache, optional
        Shared between models.
    scores : tuple of ScoreRecord
        Measured scores for the record.
    rounding : {"length", "error"}
        What the quantiser is to keep (see :mod:`uws_store.quantize`).

    Raises
    ------
    UwsError
        What the checkpoint's reader raises.
    """
    with one_thread():
        return _encode(
            _Encoding(
                basis=basis,
                checkpoint=checkpoint,
                step=step or step_of(basis.document.step),
                exact=exact,
                exact_overhead=exact_overhead,
                analyses=analyses or AnalysisCache(basis),
                rounding=rounding,
            ),
            scores,
        )


def _encode(work: _Encoding, scores: tuple[ScoreRecord, ...]) -> EncodedModel:
    basis, checkpoint = work.basis, work.checkpoint
    for record in basis.document.tensors:
        info = checkpoint.tensors.get(record.name)
        if info is None:
            work.absent.append(record.name)
        elif record.low_rank is None:
            work.encode(record, info)
    form: Form = "plain" if dict(basis.document.build.options).get("form") == "plain" else "balanced"
    for left, right in basis.document.products():
        work.encode_product(left, right, form)
    for name, info in checkpoint.tensors.items():
        if name not in basis.table:
            work.keep(info, checkpoint.read(name), None)
    return work.assemble(scores)


@dataclass(slots=True)
class _Encoding:
    """One model's encoding: its arguments, and what accumulates while the tensors go by."""

    basis: Basis
    checkpoint: Checkpoint
    step: Step
    exact: bool
    exact_overhead: float | None
    analyses: AnalysisCache
    rounding: Rounding
    cores: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    private: list[tuple[PrivateRecord, bytes]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)
    compact_digests: dict[str, bytes] = field(default_factory=dict)
    exact_digests: dict[str, bytes] = field(default_factory=dict)
    energies: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Squared error and squared norm of each coded tensor."""
    private_groups: list[int] = field(default_factory=list)
    residuals: dict[str, tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int16]]] = field(
        default_factory=dict
    )
    notices: list[str] = field(default_factory=list)
    products: list[EncodedProduct] = field(default_factory=list)

    def keep(self, info: TensorInfo, tensor: torch.Tensor, why: str | None) -> None:
        """Keep a tensor byte for byte; say why when nobody would expect it."""
        record = PrivateRecord(name=info.name, shape=info.shape, dtype=info.dtype.name)
        self.private.append((record, bytes_of(tensor)))
        self._digest(info.name, digest_of(tensor))
        if why is not None:
            self.notices.append(f"{info.name} is kept byte for byte: {why}")

    def _digest(self, name: str, digest: bytes) -> None:
        self.compact_digests[name] = self.exact_digests[name] = digest

    def encode(self, record: TensorRecord, info: TensorInfo) -> None:
        """Encode one tensor of the table."""
        tensor = self.checkpoint.read(record.name)
        if info.shape != record.shape:
            self.keep(info, tensor, f"its shape is {info.shape}, the family's {record.shape}")
        elif record.mode == "private":
            self.keep(info, tensor, None)
        elif record.mode == "shared":
            data = bytes_of(tensor)
            if info.dtype.name == record.dtype and data == self.basis.shared_bytes(record.name):
                self._digest(record.name, hashlib.sha256(data).digest())
            else:
                self.keep(info, tensor, "it differs from the value that all models of the basis share")
        elif record.mode == "tied":
            if not self._is_tied(record, info, tensor):
                self.keep(info, tensor, f"it is not tied to {record.tied_to} here")
        elif not info.dtype.is_float:
            self.keep(info, tensor, f"it is {info.dtype.name}")
        elif not bool(torch.isfinite(tensor.to(torch.float64)).all()):
            self.keep(info, tensor, "it holds NaN or infinity")
        else:
            self._encode_coded(record, info, tensor)

    def _is_tied(self, record: TensorRecord, info: TensorInfo, tensor: torch.Tensor) -> bool:
        assert record.tied_to is not None
        target = self.checkpoint.tensors.get(record.tied_to)
        if target is None or (target.shape, target.dtype) != (info.shape, info.dtype):
            return False
        return digest_of(self.checkpoint.read(record.tied_to)) == digest_of(tensor)

    def _encode_coded(self, record: TensorRecord, info: TensorInfo, tensor: torch.Tensor) -> None:
        numbers = self.basis.tensor(record.name)
        assert record.shift is not None
        values = tensor.to(torch.float64).reshape(record.matrix)
        coefficients = self.analyses.get(record.name).coefficients(values - numbers.mean())
        try:
            core = quantise(coefficients, self.step.value * 2.0**-record.shift, rounding=self.rounding)
        except InvalidInputError:
            self.keep(info, tensor, "a coefficient is beyond the range of the core")
            return
        if not numbers.is_exact(core, step=self.step):
            self.keep(info, tensor, "its values are too large for exact arithmetic at this step")
            return
        prediction = numbers.predict(core, step=self.step, dtype=info.dtype)
        error = float((prediction.to(torch.float64) - tensor.to(torch.float64)).square().sum())
        energy = float(values.square().sum())
        self.energies[record.name] = error, energy
        self.cores[record.name] = core.to(torch.int32).numpy()
        self.compact_digests[record.name] = digest_of(prediction)
        self.exact_digests[record.name] = digest_of(tensor)
        if info.dtype.name != record.dtype:
            self.dtypes[record.name] = info.dtype.name
        if self.exact:
            self.residuals[record.name] = (
                residual_of(tensor, prediction, info.dtype),
                residual_classes(prediction, record.shift),
            )

    def encode_product(self, left: TensorRecord, right: TensorRecord, form: Form) -> None:
        """Encode the two factors of a product, or keep what there is of them."""
        found = [info for row in (left, right) if (info := self.checkpoint.tensors.get(row.name)) is not None]
        if len(found) < 2:
            for info in found:
                self.keep(info, self.checkpoint.read(info.name), "the other factor of its product is missing")
            return
        made = encode_product(
            self.basis, self.checkpoint, (left, right), step=self.step, form=form, analyses=self.analyses.get
        )
        if isinstance(made, str):
            for info in found:
                self.keep(info, self.checkpoint.read(info.name), made)
            return
        self.products.append(made)
        for factor, info, record in zip(made.factors, found, (left, right), strict=True):
            self.energies[record.name] = made.error_energy, made.energy
            self.cores[record.name] = factor.core
            self.compact_digests[record.name] = digest_of(factor.compact)
            self.exact_digests[record.name] = digest_of(factor.source)
            if info.dtype.name != record.dtype:
                self.dtypes[record.name] = info.dtype.name
            if self.exact:
                self.residuals[record.name] = (
                    residual_of(factor.source, factor.prediction, info.dtype),
                    residual_classes(factor.prediction, record.shift or 0),
                )

    def _group_core(self, index: int) -> npt.NDArray[np.int32]:
        """Integers of a read group, sorted by significance; zeros for tensors that are not coded here."""
        group = self.basis.groups[index]
        pooled = np.zeros(group.coefficients, np.int32)
        for name in group.names:
            if name in self.cores:
                offset = self.basis.slots[name].core_offset
                flat = self.cores[name].reshape(-1)
                pooled[offset : offset + len(flat)] = flat
        return pooled[self.basis.order(index)]

    def _group_residuals(self, index: int) -> dict[str, npt.NDArray[np.unsignedinteger]]:
        """Residuals of a read group by the name of their array, sorted by class."""
        members: dict[str, list[str]] = {}
        for name in self.basis.groups[index].names:
            if name in self.residuals:
                width = residual_dtype(DTYPES[self._dtype(name)]).removeprefix("uint")
                members.setdefault(f"residual{width}", []).append(name)
        parts: dict[str, npt.NDArray[np.unsignedinteger]] = {}
        for array, names in members.items():
            values = np.concatenate([self.residuals[name][0] for name in names])
            order = residual_order(np.concatenate([self.residuals[name][1] for name in names]))
            parts[array] = values[order]
        return parts

    def _dtype(self, name: str) -> str:
        return self.dtypes.get(name, self.basis.table[name].dtype)

    def _keep_groups(self, overhead: float) -> list[tuple[str, bytes]]:
        """Keep the read groups that are cheaper alone; their tensors, by dtype and bytes, in the model's order."""
        kept: list[tuple[str, bytes]] = []
        for index, group in enumerate(self.basis.groups):
            names = [name for name in group.names if name in self.cores]
            if any(self.basis.table[name].low_rank for name in group.names):
                continue
            tensors = [(self._dtype(name), bytes_of(self.checkpoint.read(name))) for name in names]
            streams = [self._group_core(index), *self._group_residuals(index).values()]
            if names and cheaper_alone(tensors, streams, overhead=overhead):
                kept += tensors
                self.private_groups.append(index)
                for name in names:
                    del self.cores[name], self.residuals[name], self.energies[name]
                    self.compact_digests[name] = self.exact_digests[name]
        return kept

    def _pack_core(self) -> EncodedArray | None:
        """Lay the read groups end to end."""
        document = self.basis.document
        if len(self.private_groups) == len(self.basis.groups):
            return None
        core = np.zeros(document.core_length, np.int32)
        for index, group in enumerate(self.basis.groups):
            core[group.start : group.start + group.coefficients] = self._group_core(index)
        small = bool(np.abs(core).max(initial=0) < 1 << 15)
        return encode_array(
            core.astype(np.int16) if small else core, chunk=document.core_chunk, page=document.core_page
        )

    def _pack_residuals(self) -> dict[str, EncodedArray]:
        """One array per storage width: read groups end to end."""
        parts: dict[str, list[npt.NDArray[np.unsignedinteger]]] = {}
        for index in range(len(self.basis.groups)):
            for array, values in self._group_residuals(index).items():
                parts.setdefault(array, []).append(values)
        return {
            name: encode_array(
                np.concatenate(arrays),
                chunk=self.basis.document.residual_chunk,
                page=layout.page_for(sum(len(array) for array in arrays)),
            )
            for name, arrays in parts.items()
        }

    def assemble(self, scores: tuple[ScoreRecord, ...]) -> EncodedModel:
        """Put the model's document and objects together."""
        own_types = {self._dtype(name) for name in self.cores}
        private = [(record.dtype, data) for record, data in self.private]
        if self.exact and self.exact_overhead is not None:
            private += self._keep_groups(self.exact_overhead)
        arrays = pack_private(private) | self._pack_residuals()
        core = self._pack_core()
        if core is not None:
            arrays["core"] = core
        gauge = gauge_numbers(self.products) if self.exact else None
        if gauge is not None:
            arrays["gauge"] = encode_array(
                gauge, chunk=layout.core_chunk_for(len(gauge)), page=layout.page_for(len(gauge))
            )
        shared_files, own = own_files(self.basis, self.checkpoint)
        files, file_array = pack_files(own)
        if file_array is not None:
            arrays["files"] = file_array
        records = {name: array.record for name, array in arrays.items()}
        uniform = own_types.pop() if self.dtypes and len(own_types) == 1 else None
        table_names = [record.name for record in self.basis.document.tensors]
        extra = [record.name for record, _ in self.private if record.name not in self.basis.table]
        order = [name for name in (*table_names, *extra) if name in self.compact_digests]
        # A product counts once: with its left factor.
        seconds = {right.name for _, right in self.basis.document.products()}
        counted = [name for name in self.energies if name not in seconds]
        document = ModelDocument(
            basis=self.basis.digest,
            step=StepRecord(mantissa=self.step.mantissa, exponent=self.step.exponent),
            dtype=uniform,
            dtypes=() if uniform else tuple(self.dtypes.items()),
            absent=tuple(self.absent),
            private=tuple(record for record, _ in self.private),
            private_groups=tuple(self.private_groups),
            core=records.get("core"),
            private_bytes=records.get("private"),
            private16=records.get("private16"),
            private32=records.get("private32"),
            private64=records.get("private64"),
            residual16=records.get("residual16"),
            residual32=records.get("residual32"),
            residual64=records.get("residual64"),
            ranks=ranks_of(self.products, self.basis) or None,
            scales=ModelDocument.pack_scales([scale for made in self.products for scale in made.scales]),
            gauge=records.get("gauge"),
            shared_files=shared_files,
            files=files,
            file_bytes=records.get("files"),
            compact=DigestRecord.over([self.compact_digests[name] for name in order]),
            exact=DigestRecord.over([self.exact_digests[name] for name in order])
            if self.exact and self.cores
            else None,
            lossless=True if self.exact and not self.cores else None,
            rel_error=relative_error(
                math.fsum(self.energies[name][0] for name in counted),
                math.fsum(self.energies[name][1] for name in counted),
            ),
            errors=ModelDocument.pack_errors(
                [relative_error(*self.energies[name]) for name in table_names if name in self.energies]
            ),
            source=SourceRecord(
                sha256=self.checkpoint.sha256(),
                size_bytes=self.checkpoint.file_size_bytes,
                metadata=_source_metadata(self.checkpoint),
            ),
            scores=scores,
        )
        objects = {
            f"{name}/{path}": data for name, array in arrays.items() for path, data in array.objects.items()
        }
        group = to_group_bytes(document)
        objects[layout.GROUP_PATH] = group
        return EncodedModel(document, hashlib.sha256(group).hexdigest(), objects, tuple(self.notices))


def _source_metadata(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The checkpoint's own metadata, as long as it is small: licences travel, training logs do not."""
    pairs = tuple(sorted(checkpoint.metadata.items()))
    size = sum(len(key.encode()) + len(value.encode()) for key, value in pairs)
    return pairs if size <= _SOURCE_METADATA_BYTES else tuple(pair for pair in pairs if pair[0] == RENAME_KEY)
