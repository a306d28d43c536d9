"""One large coded tensor on the CPU, reconstructed in floating point panel by panel.

Owns section 11 of ``spec/uws-1.md`` for tensors whose products are not made in bytes: the same operations as of the whole
tensor, on parts of it that a core's own cache nearly holds, so that nothing of the tensor's size is made beside the result.
*Fast* is float32 without the rounding of the first product. Knows nothing about storage or models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from uws_store.basis.stack import Decode, rounded
from uws_store.basis.tensor import StoredTensor
from uws_store.canonical import FRACTION_BITS, Side, Step
from uws_store.dtypes import DType
from uws_store.subspace import side_from_integers
from uws_store.tensor_bytes import bytes_of

__all__ = ["PanelTensor"]

_ELEMENTS = 1 << 18
_LEAST_WIDTH = 64


class PanelTensor:
    """A large coded tensor, ready for reconstruction on the CPU.

    Parameters
    ----------
    tensor : StoredTensor
        Its integers.
    decode : {"canonical", "fast"}
        The arithmetic.
    """

    def __init__(self, tensor: StoredTensor, decode: Decode) -> None:
        self.record = tensor.record
        self.matrix = tensor.record.matrix
        self.decode = decode
        self._dtype = torch.float64 if decode == "canonical" else torch.float32
        self._mean = tensor.mean
        self._left = _as(side_from_integers(tensor.left), self._dtype) if tensor.left else None
        self._right = _as(side_from_integers(tensor.right), self._dtype) if tensor.right else None

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers held, without the mean, which is the basis's."""
        sides = [side for side in (self._left, self._right) if side is not None]
        return sum(block.numel() * block.element_size() for side in sides for block in side.integers)

    def predict(self, core_pq: torch.Tensor | None, *, step: Step, dtype: DType) -> torch.Tensor:
        """Reconstruct the tensor.

        Parameters
        ----------
        core_pq : torch.Tensor or None
            Integers of any type, (p, q), on the CPU; None stands for zeros.
        step : Step
            The model's step.
        dtype : DType
            The tensor's dtype in the model.

        Returns
        -------
        torch.Tensor
            In the tensor's own shape.
        """
        m, n = self.matrix
        out_mn = torch.empty(m, n, dtype=dtype.torch)
        for rows, columns in self._panels(is_mean=core_pq is None):
            out_mn[rows, columns] = self.part(core_pq, rows, columns, step=step, dtype=dtype)
        return out_mn.reshape(self.record.shape)

    def part(
        self, core_pq: torch.Tensor | None, rows: slice, columns: slice, *, step: Step, dtype: DType
    ) -> torch.Tensor:
        """Reconstruct some rows, where the left factor is the identity, of some columns; as :meth:`predict`."""
        assert self.record.mean_grid is not None
        assert self.record.shift is not None
        values = self._mean[rows, columns].to(self._dtype).mul_(math.ldexp(1.0, -self.record.mean_grid))
        if core_pq is not None:
            change = self._first(core_pq[rows] if self._left is None else core_pq, columns)
            grid = FRACTION_BITS
            if self._left is not None:
                change, grid = self._left.expand(change)[rows], grid + self._left.grid
            values.add_(change.mul_(math.ldexp(step.mantissa, step.exponent - self.record.shift - grid)))
        return rounded(values, dtype, decode=self.decode)

    def confirms(self, made: torch.Tensor, core_pq: torch.Tensor, *, step: Step, dtype: DType) -> bool:
        """Whether what was made of a core in another way has the bits of this one, in a row or a column."""
        m, n = self.matrix
        row, column = slice(m // 2, m // 2 + 1), slice(n // 2, n // 2 + 1)
        if self._left is None:
            column = slice(0, n)
        elif self._right is None or len(self._right.integers) == 1:
            row = slice(0, m)
        else:
            start = n // 2 // self._right.block * self._right.block
            row, column = slice(0, m), slice(start, min(start + self._right.block, n))
        own = self.part(core_pq, row, column, step=step, dtype=dtype)
        return bytes_of(own) == bytes_of(made.reshape(m, n)[row, column])

    def _panels(self, *, is_mean: bool) -> Iterator[tuple[slice, slice]]:
        """Rows, where they do not depend on each other; else columns, of which each needs all rows of the core."""
        m, n = self.matrix
        if self._left is None or is_mean:
            height = max(1, _ELEMENTS // n)
            for start in range(0, m, height):
                yield slice(start, min(start + height, m)), slice(0, n)
            return
        width = max(_LEAST_WIDTH, _ELEMENTS // m)
        if self._right is not None and len(self._right.integers) > 1:
            width = max(1, width // self._right.block) * self._right.block
        for start in range(0, n, width):
            yield slice(0, m), slice(start, min(start + width, n))

    def _first(self, core_rq: torch.Tensor, columns: slice) -> torch.Tensor:
        """Some columns of the first product, in units of 2**-FRACTION_BITS."""
        right = self._right
        if right is None:
            return core_rq[:, columns].to(self._dtype).mul_(float(1 << FRACTION_BITS))
        height = max(1, _ELEMENTS // core_rq.shape[1])
        made = torch.cat(
            [_onto(part.to(self._dtype), right, columns) for part in torch.split(core_rq, height)]
        )
        made.mul_(math.ldexp(1.0, FRACTION_BITS - right.grid))
        return made.round_() if self.decode == "canonical" else made


def _as(side: Side, dtype: torch.dtype) -> Side:
    return Side(side.size, side.block, side.rank, tuple(b.to(dtype) for b in side.integers), side.grid)


def _onto(values_rq: torch.Tensor, right: Side, columns: slice) -> torch.Tensor:
    """``values @ right.T``, of which some columns: of several blocks, whole ones."""
    if len(right.integers) == 1:
        return values_rq @ right.integers[0][columns].T
    parts: list[torch.Tensor] = []
    rank = right.integers[0].shape[1]
    for index in range(columns.start // right.block, -(-columns.stop // right.block)):
        block = right.integers[index]
        parts.append(values_rq[:, index * rank : index * rank + block.shape[1]] @ block.T)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
