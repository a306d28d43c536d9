"""The encoder's half of the transform: from a tensor to its real coefficients in the basis.

Unlike decoding this need not be canonical: any float noise here only picks other integers. Knows one tensor at a
time.
"""

from __future__ import annotations

import torch

from uws_store.basis import TensorBasis
from uws_store.canonical import Side
from uws_store.subspace import analysis_matrix, project

__all__ = ["Analysis"]


class Analysis:
    """Coefficients of changes about a mean, for one tensor's factors.

    Parameters
    ----------
    left, right : Side or None
        Quantised factors; None is the identity.
    dtype : torch.dtype
        Precision of the products.
    """

    def __init__(self, left: Side | None, right: Side | None, *, dtype: torch.dtype = torch.float64) -> None:
        self._left = analysis_matrix(left) if left else None
        self._right = analysis_matrix(right) if right else None
        self._left_block = left.block if left else 0
        self._right_block = right.block if right else 0
        self._dtype = dtype

    @classmethod
    def of(cls, basis: TensorBasis) -> Analysis:
        """Make the analysis of a basis's tensor."""
        return cls(basis.left, basis.right)

    def coefficients(self, change_mn: torch.Tensor) -> torch.Tensor:
        """Project a change: (m x n) to (p x q)."""
        change = change_mn.to(self._dtype)
        if self._right is not None:
            change = project(change.T.contiguous(), self._right, block=self._right_block).T
        if self._left is not None:
            change = project(change.contiguous(), self._left, block=self._left_block)
        return change.contiguous()
