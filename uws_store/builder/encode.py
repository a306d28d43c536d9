"""Encoding one model against a finished basis: integers, private tensors, residual, digests, errors.

Owns the decision, tensor by tensor, whether a model's tensor goes through the basis or is kept byte for byte. Every
prediction is made by the same canonical code that a reader runs, so what is recorded is what will be loaded. Must not
know how the tensors are laid out in arrays. Writes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from uws_store.basis import Basis, step_of
from uws_store.builder.assemble_model import EncodedTensors, assemble_model
from uws_store.builder.coded import AnalysisCache, CodeJob, code_tensor
from uws_store.builder.encode_product import EncodedFactor, encode_product
from uws_store.builder.encoded import EncodedModel
from uws_store.builder.products import Form
from uws_store.builder.scratch import Scratch
from uws_store.builder.sources import naming
from uws_store.canonical import Step
from uws_store.checkpoint import Checkpoint, TensorInfo
from uws_store.device import told_of_retreat
from uws_store.executors import one_thread
from uws_store.metadata.basis import TensorRecord
from uws_store.metadata.model import (
    ScoreRecord,
)
from uws_store.quantize import Rounding
from uws_store.residual import residual_classes, residual_of
from uws_store.tensor_bytes import bytes_of, digest_of

__all__ = ["EXACT_OVERHEAD", "encode_model"]

EXACT_OVERHEAD = 0.005
"""Share by which core and residual of a read group may exceed its bits alone before it is stored alone.

Words coded alone are at least as much smaller than what ZipNN and Zstandard make of the zoos that were measured."""


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
        Shared between models; they say on which device the model is encoded.
    scores : tuple of ScoreRecord
        Measured scores for the record.
    rounding : {"length", "error"}
        What the quantiser is to keep (see :mod:`uws_store.quantize`).

    Raises
    ------
    UwsError
        What the checkpoint's reader raises.
    """
    step = step or step_of(basis.document.step)
    scratch = (analyses.scratch if analyses is not None else None) or Scratch()
    made = EncodedTensors(basis, checkpoint, step, scratch if basis.is_large else None)
    with one_thread():
        _Encoder(
            made, basis, checkpoint, step, exact, analyses or AnalysisCache.shared(basis), rounding
        ).encode_all()
        return assemble_model(made, exact=exact, exact_overhead=exact_overhead, scores=scores)


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Encodes one tensor, or the two factors of a product, after the other."""

    made: EncodedTensors
    basis: Basis
    checkpoint: Checkpoint
    step: Step
    exact: bool
    analyses: AnalysisCache
    rounding: Rounding

    def encode_all(self) -> None:
        """Encode every tensor of the table, every product, and keep what the table does not have."""
        for record in self.basis.document.tensors:
            info = self.checkpoint.tensors.get(record.name)
            if info is None:
                self.made.absent.append(record.name)
            elif record.low_rank is None:
                with naming(f"encoding tensor {record.name!r}"):
                    self.encode(record, info)
        form: Form = "plain" if dict(self.basis.document.build.options).get("form") == "plain" else "balanced"
        for left, right in self.basis.document.products():
            with naming(f"encoding tensors {left.name!r} and {right.name!r}"):
                self.encode_product(left, right, form)
        for name, info in self.checkpoint.tensors.items():
            if name not in self.basis.table:
                self.made.keep(info, self.checkpoint.read(name), None)

    def encode(self, record: TensorRecord, info: TensorInfo) -> None:
        """Encode one tensor of the table."""
        tensor = self.checkpoint.read(record.name)
        if info.shape != record.shape:
            self.made.keep(info, tensor, f"its shape is {info.shape}, the family's {record.shape}")
        elif record.mode == "private":
            self.made.keep(info, tensor, None)
        elif record.mode == "shared":
            data = bytes_of(tensor)
            if info.dtype.name == record.dtype and data == self.basis.shared_bytes(record.name):
                self.made.digest(record.name, hashlib.sha256(data).digest())
            else:
                self.made.keep(info, tensor, "it differs from the value that all models of the basis share")
        elif record.mode == "tied":
            if not self._is_tied(record, info, tensor):
                self.made.keep(info, tensor, f"it is not tied to {record.tied_to} here")
        elif not info.dtype.is_float:
            self.made.keep(info, tensor, f"it is {info.dtype.name}")
        else:
            self._encode_coded(record, info, tensor)

    def _is_tied(self, record: TensorRecord, info: TensorInfo, tensor: torch.Tensor) -> bool:
        assert record.tied_to is not None
        target = self.checkpoint.tensors.get(record.tied_to)
        if target is None or (target.shape, target.dtype) != (info.shape, info.dtype):
            return False
        return digest_of(self.checkpoint.read(record.tied_to)) == digest_of(tensor)

    def _encode_coded(self, record: TensorRecord, info: TensorInfo, tensor: torch.Tensor) -> None:
        coded = code_tensor(CodeJob(tensor, record, info, self.step, self.rounding, self.analyses))
        if isinstance(coded, str):
            self.made.keep(info, tensor, coded)
            return
        if coded.retreat:
            self.made.notices.append(f"{record.name} {told_of_retreat(coded.retreat, self.analyses.device)}")
        factor = EncodedFactor(coded.core.numpy(), tensor, coded.prediction, coded.prediction, None)
        self._add(record, info, factor, coded.error, coded.energy)

    def _add(
        self, record: TensorRecord, info: TensorInfo, factor: EncodedFactor, error: float, energy: float
    ) -> None:
        """Note a coded tensor: a factor of a product, or one that stands for itself."""
        self.made.energies[record.name] = error, energy
        self.made.cores[record.name] = self.made.held(factor.core)
        self.made.compact_digests[record.name] = digest_of(factor.compact)
        if self.exact:
            self.made.exact_digests[record.name] = digest_of(factor.source)
        if info.dtype.name != record.dtype:
            self.made.dtypes[record.name] = info.dtype.name
        if self.exact:
            classes = self.made.held(residual_classes(factor.prediction, record.shift or 0))
            # Nothing asks for the prediction any more.
            residual = residual_of(factor.source, factor.prediction, info.dtype, in_place=True)
            self.made.residuals[record.name] = self.made.held(residual), classes

    def encode_product(self, left: TensorRecord, right: TensorRecord, form: Form) -> None:
        """Encode the two factors of a product, or keep what there is of them."""
        found = [info for row in (left, right) if (info := self.checkpoint.tensors.get(row.name)) is not None]
        if len(found) < 2:
            for info in found:
                self.made.keep(
                    info, self.checkpoint.read(info.name), "the other factor of its product is missing"
                )
            return
        made = encode_product(
            self.basis, self.checkpoint, (left, right), step=self.step, form=form, analyses=self.analyses.get
        )
        if isinstance(made, str):
            for info in found:
                self.made.keep(info, self.checkpoint.read(info.name), made)
            return
        self.made.products.append(made)
        for factor, info, record in zip(made.factors, found, (left, right), strict=True):
            self._add(record, info, factor, made.error_energy, made.energy)
