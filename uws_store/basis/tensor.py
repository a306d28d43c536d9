"""The numbers of one coded tensor, and its canonical prediction from a core."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from uws_store import canonical
from uws_store.canonical import Side, Step
from uws_store.dtypes import DType
from uws_store.metadata.basis import TensorRecord
from uws_store.subspace import QuantisedSide, side_from_integers

__all__ = ["StoredTensor", "TensorBasis"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The integers of one coded tensor, as they are stored.

    Attributes
    ----------
    record : TensorRecord
        Its row of the table.
    mean : torch.Tensor
        int16 or int32, (m x n).
    left, right : QuantisedSide or None
        Factors; None is the identity.
    """

    record: TensorRecord
    mean: torch.Tensor
    left: QuantisedSide | None
    right: QuantisedSide | None


@dataclass(frozen=True, slots=True)
class TensorBasis:
    """The numbers of one coded tensor.

    Attributes
    ----------
    record : TensorRecord
        Its row of the table.
    mean_integers : torch.Tensor
        int16 or int32, (m x n): the mean is ``mean_integers * 2**-record.mean_grid``.
    left, right : Side or None
        Factors; None is the identity.
    """

    record: TensorRecord
    mean_integers: torch.Tensor
    left: Side | None
    right: Side | None

    @classmethod
    def of(cls, stored: StoredTensor) -> TensorBasis:
        """Put the factors on their grids."""
        return cls(
            stored.record,
            # In 16 bits where it is stored so.
            stored.mean,
            side_from_integers(stored.left) if stored.left else None,
            side_from_integers(stored.right) if stored.right else None,
        )

    def mean(self) -> torch.Tensor:
        """The mean as float64, (m x n); exact."""
        assert self.record.mean_grid is not None
        return self.mean_integers.to(torch.float64) * math.ldexp(1.0, -self.record.mean_grid)

    def predict(self, core_pq: torch.Tensor | None, *, step: Step, dtype: DType) -> torch.Tensor:
        """Reconstruct the tensor canonically, in its own shape and the given dtype.

        Parameters
        ----------
        core_pq : torch.Tensor or None
            Whole numbers, float64, (p x q); None stands for zeros.
        step : Step
            The model's step.
        dtype : DType
            The model's dtype of this tensor.
        """
        values = self.mean()
        if core_pq is not None:
            assert self.record.shift is not None
            values = values + canonical.reconstruct(
                core_pq, left=self.left, right=self.right, step=step, shift=self.record.shift
            )
        return canonical.round_to_dtype(values, dtype).reshape(self.record.shape)

    def part(self, start: int, stop: int) -> TensorBasis:
        """Some rows as a tensor of their own; `start` begins a block of the left factor, and `stop` ends one."""
        left = self.left
        if left is not None:
            blocks = left.integers[start // left.block : -(-stop // left.block)]
            left = Side(stop - start, left.block, left.rank, blocks, left.grid)
        shape = (stop - start, *self.record.shape[1:])
        record = self.record.model_copy(update={"shape": shape})
        return TensorBasis(record, self.mean_integers[start:stop], left, self.right)

    def is_exact(self, core_pq: torch.Tensor, *, step: Step) -> bool:
        """Prove that canonical reconstruction of this core cannot round anywhere."""
        assert self.record.mean_grid is not None
        assert self.record.shift is not None
        # In float64: the smallest int32 has no absolute value in its own type.
        peak = float(self.mean_integers.to(torch.float64).abs().max()) if self.mean_integers.numel() else 0.0
        bound = canonical.exactness_bound(
            core_pq,
            left=self.left.reach() if self.left else None,
            right=self.right.reach() if self.right else None,
            step=step,
            shift=self.record.shift,
            mean_bound=math.ldexp(peak, -self.record.mean_grid),
            mean_grid=self.record.mean_grid,
        )
        return bound < canonical.EXACT_LIMIT

    def fast_bound(self, core_pq: torch.Tensor, *, step: Step, dtype: DType) -> float:
        """Bound how far float32 reconstruction of this core lies from the canonical one, for every element."""
        assert self.record.shift is not None
        return canonical.fast_bound(
            core_pq,
            left=self.left,
            right=self.right,
            step=step,
            shift=self.record.shift,
            mean_bound=float(self.mean().abs().max()),
            dtype=dtype,
        )

    def to(self, device: torch.device) -> TensorBasis:
        """Copy to a device."""
        return TensorBasis(
            self.record,
            self.mean_integers.to(device),
            self.left.to(device) if self.left else None,
            self.right.to(device) if self.right else None,
        )
