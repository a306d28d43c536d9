"""Encoding the product of two thin factors: cores, what a reader will make of them, the gauge back to the source.

Owns the decision whether a product goes through the basis. Every prediction is made by the canonical code that a
reader runs. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from uws_store.basis import Basis
from uws_store.builder.products import Form, form_of, matrices_of
from uws_store.builder.transform import Analysis
from uws_store.canonical import Step
from uws_store.checkpoint import Checkpoint
from uws_store.dtypes import DTYPES
from uws_store.errors import InvalidInputError
from uws_store.low_rank import (
    Gauge,
    LowRankSide,
    apply_gauge,
    apply_scales,
    fit_gauge,
    is_exact_gauge,
    product_energy,
    product_error,
    unpad,
)
from uws_store.metadata.basis import TensorRecord
from uws_store.quantize import quantise

__all__ = ["EncodedFactor", "EncodedProduct", "encode_product", "gauge_numbers", "ranks_of"]

_SIDES: tuple[LowRankSide, LowRankSide] = ("left", "right")


@dataclass(frozen=True, slots=True)
class EncodedFactor:
    """One factor of an encoded product.

    Attributes
    ----------
    core : numpy.ndarray
        int16 or int32, (p x q).
    source, compact, prediction : torch.Tensor
        The source's factor, what the compact tier gives, and what the residual is taken against; in the source's
        shape and dtype.
    gauge : Gauge or None
        From ``compact`` to ``prediction``; None where they are one.
    """

    core: npt.NDArray[np.integer]
    source: torch.Tensor
    compact: torch.Tensor
    prediction: torch.Tensor
    gauge: Gauge | None


@dataclass(frozen=True, slots=True)
class EncodedProduct:
    """An encoded product.

    Attributes
    ----------
    factors : tuple of EncodedFactor
        Left, right.
    rank : int
        Its rank in this model.
    scales : tuple of int
        Exponents of its slices' scales.
    error_energy, energy : float
        Sums of squares of the error of the product and of the product.
    """

    factors: tuple[EncodedFactor, EncodedFactor]
    rank: int
    scales: tuple[int, ...]
    error_energy: float
    energy: float


def encode_product(
    basis: Basis,
    checkpoint: Checkpoint,
    rows: tuple[TensorRecord, TensorRecord],
    *,
    step: Step,
    form: Form,
    analyses: Callable[[str], Analysis],
) -> EncodedProduct | str:
    """Encode a product whose two factors the checkpoint has.

    Returns
    -------
    EncodedProduct or str
        Why its factors must be kept byte for byte, where that is so.
    """
    infos = [checkpoint.tensors[row.name] for row in rows]
    rank = infos[1].shape[0] if infos[1].shape else 0
    for row, info in zip(rows, infos, strict=True):
        if not info.dtype.is_float:
            return f"it is {info.dtype.name}"
        if not 1 <= rank <= (row.slices or 0):
            return f"its rank is {rank}, the family's at most {row.slices}"
        if info.shape != row.shape_at(rank):
            return f"its shape is {info.shape}, the family's {row.shape_at(rank)}"
    sources = matrices_of(checkpoint, rows[0].name, rows[1].name)
    if not all(bool(torch.isfinite(source.to(torch.float64)).all()) for source in sources):
        return "its product holds NaN or infinity"
    coded = form_of(*sources, form)
    scales = torch.tensor(coded.scales) if any(coded.scales) else None
    factors: list[EncodedFactor] = []
    for row, info, source, values, side in zip(
        rows, infos, sources, (coded.left, coded.right), _SIDES, strict=True
    ):
        numbers = basis.tensor(row.name)
        assert row.shift is not None
        # Slices that this model has not are never read: at the mean they cost least.
        change = torch.zeros(row.matrix, dtype=torch.float64)
        unpad(change, rank, side=side).copy_(values - unpad(numbers.mean(), rank, side=side))
        try:
            core = quantise(analyses(row.name).coefficients(change), step.value * 2.0**-row.shift)
        except InvalidInputError:
            return "a coefficient is beyond the range of the core"
        if not numbers.is_exact(core, step=step):
            return "its values are too large for exact arithmetic at this step"
        whole = numbers.predict(core, step=step, dtype=DTYPES["F64"]).reshape(row.matrix)
        compact = apply_scales(unpad(whole, rank, side=side), scales, info.dtype, side=side)
        gauge = fit_gauge(source, compact, scales, side=side) if form == "balanced" else None
        if gauge is not None and not is_exact_gauge(compact, scales, gauge, side=side):
            return "its values are too large for an exact gauge"
        prediction = apply_gauge(compact, scales, gauge, info.dtype, side=side)
        factors.append(
            EncodedFactor(
                core.to(torch.int32).numpy(),
                source.reshape(info.shape),
                compact.reshape(info.shape),
                prediction.reshape(info.shape),
                gauge,
            )
        )
    left, right = (factor.compact.reshape(factor.compact.shape[0], -1) for factor in factors)
    return EncodedProduct(
        (factors[0], factors[1]),
        rank,
        coded.scales,
        product_error(*sources, left, right),
        product_energy(*sources),
    )


def ranks_of(products: Sequence[EncodedProduct], basis: Basis) -> tuple[int, ...]:
    """The ranks for a model's document: none when they are the table's, one when they are equal."""
    ranks = tuple(product.rank for product in products)
    largest = tuple(left.slices for left, _ in basis.document.products())
    if ranks == largest:
        return ()
    return ranks[:1] if len(set(ranks)) == 1 else ranks


def gauge_numbers(products: Sequence[EncodedProduct]) -> npt.NDArray[np.int16] | None:
    """The numbers of the gauge array: for each factor its grids and its matrix; None where nothing has a gauge."""
    parts: list[torch.Tensor] = []
    for product in products:
        for factor in product.factors:
            if factor.gauge is not None:
                parts.append(torch.tensor([factor.gauge.factor_grid, factor.gauge.grid]))
                parts.append(factor.gauge.integers.reshape(-1))
    return torch.cat(parts).to(torch.int16).numpy() if parts else None
