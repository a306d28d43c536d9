"""Factors of products in an open model: their slices cut to the model's rank and scaled, their gauges undone.

Owns what section 11.5 of the format adds to a coded tensor. Knows nothing about cores and residuals.
"""

from __future__ import annotations

import numpy as np
import torch

from uws_store.errors import FormatError
from uws_store.low_rank import MAX_GRID, Gauge, apply_gauge, apply_scales, unpad
from uws_store.metadata.model import ModelDocument
from uws_store.model.sources import SliceRange, Source
from uws_store.store import ArrayReader

__all__ = ["Slices"]


class Slices:
    """What a model has beside the cores of its products' factors.

    Parameters
    ----------
    document : ModelDocument
        Its record, checked against the basis.
    gauge : ArrayReader or None
        Its gauge array.
    where : str
        The model, for messages.
    """

    def __init__(self, document: ModelDocument, gauge: ArrayReader | None, *, where: str) -> None:
        self._scales = torch.tensor(document.scale_list(), dtype=torch.int64)
        self._gauge = gauge
        self._where = where

    def cut(self, values: torch.Tensor, source: Source) -> torch.Tensor:
        """Turn the unrounded values of a row (float64, in its shape) into the tensor of this model."""
        slices = source.slices
        assert slices is not None
        own = unpad(values.reshape(values.shape[0], -1), slices.rank, side=slices.side)
        scales = self._scales_of(slices)
        return apply_scales(own, scales, source.dtype, side=slices.side).reshape(source.shape)

    def undo_gauge(self, compact: torch.Tensor, source: Source) -> torch.Tensor:
        """Predict the source's tensor from the one that the compact tier gives.

        Raises
        ------
        FormatError
            When the stored gauge is damaged.
        """
        slices = source.slices
        if slices is None or self._gauge is None:
            return compact
        stored = self._gauge.read(slices.gauge, slices.gauge_stop).astype(np.int32)
        gauge = Gauge(int(stored[0]), int(stored[1]), torch.from_numpy(stored[2:]).reshape(slices.rank, -1))
        if max(abs(gauge.factor_grid), abs(gauge.grid)) > MAX_GRID:
            raise FormatError(f"{self._where}: the grid of a gauge is out of range", kind="format/model")
        matrix = compact.reshape(compact.shape[0], -1)
        made = apply_gauge(matrix, self._scales_of(slices), gauge, source.dtype, side=slices.side)
        return made.reshape(source.shape)

    def _scales_of(self, slices: SliceRange) -> torch.Tensor | None:
        return self._scales[slices.scales : slices.scales + slices.rank] if len(self._scales) else None
