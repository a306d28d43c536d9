"""Baselines that keep one mask per model over a vector that all share: TALL-masks, EMR-Merging.

Owns two methods and their settings; see :mod:`coding`. Both papers make the shared vector from all the tasks they are
tested on. Here it comes from the training models alone, since a store must take models that come later: what is shown
is how these masks extend to a model that the merge has not seen. Changes are about the base (of changes about the mean
the sum is zero); where a zoo has no known base, the member nearest to the mean stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from coding import (
    FLOAT16_BYTES,
    Coded,
    Coder,
    Method,
    Training,
    Weights,
    packed_bits,
    smallest_stream,
    through_float16,
)
from torch import Tensor

__all__ = ["elect_mask_rescale", "tall_masks"]


def tall_masks(thresholds: Sequence[float]) -> list[Method]:
    """TALL-masks (Wang et al. 2024, arXiv:2405.07813): where the merged vector is near enough to the model's own.

    The mask is ``|change| >= threshold * |merged - change|``; the merged vector is the sum of the training models'
    changes. One factor per model, fitted to its change, takes the place of the paper's search for it.
    """
    return [
        Method("TALL-masks", f"threshold {value:g}", "arXiv:2405.07813", _tall(value)) for value in thresholds
    ]


def _tall(threshold: float) -> Callable[[Training], Coder]:
    def fit(training: Training) -> Coder:
        base = {name: through_float16(value) for name, value in training.base.items()}
        merged = {
            name: through_float16((training.stack(name) - base[name]).sum(0)) for name in training.names
        }

        def code(weights: Weights) -> Coded:
            changes = {name: weights[name].to(torch.float32) - base[name] for name in training.names}
            masks = {
                name: (change.abs() >= threshold * (merged[name] - change).abs())
                for name, change in changes.items()
            }
            along = sum(float((merged[name] * changes[name])[mask].sum()) for name, mask in masks.items())
            norm = sum(float(merged[name][mask].square().sum()) for name, mask in masks.items())
            factor = float(through_float16(torch.tensor(along / norm if norm else 0.0)))
            restored = {name: base[name] + factor * merged[name] * mask for name, mask in masks.items()}
            return Coded(restored, len(_mask_stream(masks.values())) + FLOAT16_BYTES)

        return Coder(2 * training.reference_bytes, code)

    return fit


def elect_mask_rescale() -> list[Method]:
    """EMR-Merging (Huang et al. 2024, arXiv:2405.17461): elected signs and magnitudes, a sign mask, a rescaler."""

    def fit(training: Training) -> Coder:
        base = {name: through_float16(value) for name, value in training.base.items()}
        elected: dict[str, Tensor] = {}
        for name in training.names:
            changes = training.stack(name) - base[name]
            signs = torch.sign(changes.sum(0))
            agreeing = torch.where(torch.sign(changes) == signs, changes.abs(), torch.zeros(()))
            elected[name] = through_float16(signs * agreeing.amax(0))

        def code(weights: Weights) -> Coded:
            masks: dict[str, Tensor] = {}
            own = kept = 0.0
            for name in training.names:
                change = weights[name].to(torch.float32) - base[name]
                masks[name] = change * elected[name] > 0
                own += float(change.abs().sum())
                kept += float(elected[name].abs()[masks[name]].sum())
            rescale = float(through_float16(torch.tensor(own / kept if kept else 0.0)))
            restored = {name: base[name] + rescale * elected[name] * mask for name, mask in masks.items()}
            return Coded(restored, len(_mask_stream(masks.values())) + FLOAT16_BYTES)

        return Coder(2 * training.reference_bytes, code)

    return [Method("EMR", "", "arXiv:2405.17461", fit)]


def _mask_stream(masks: Iterable[Tensor]) -> bytes:
    """One bit per element, or entropy coded where that is smaller."""
    whole = torch.cat([mask.reshape(-1) for mask in masks])
    return min(packed_bits(whole), smallest_stream([whole]), key=len)
