"""Explained variance along each mode of one tensor's changes, on models kept out of the fit, beside two nulls.

Mode 0 runs over the models, modes 1 and 2 over rows and columns (De Lathauwer, De Moor, Vandewalle 2000). The nulls are
changes of the same variance whose entries are Gaussian, and the changes' own entries in an order of each model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from uws_store.subspace import block_moments, eigenvectors

__all__ = ["ModeCapture", "captures", "pooled_captures"]

_DIRECTIONS = 16
_SHARE = 16
_WIDEST = 1024

Changes = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class ModeCapture:
    """Share of held-out models' change that the leading directions of a mode capture.

    Attributes
    ----------
    mode : int
        0: at most 16 directions over the models (the paper's reading); 1 and 2: a sixteenth of the rows' and of the
        columns' coordinates.
    fitted : float
        The share in the models of the fit.
    held_out : float
        The share in models that took no part in it.
    gaussian, shuffled : float
        ``held_out`` of the nulls.
    """

    mode: int
    fitted: float
    held_out: float
    gaussian: float
    shuffled: float


def captures(train: Changes, held: Changes, *, source: torch.Generator) -> tuple[ModeCapture, ...]:
    """Measure the three modes of one tensor.

    Parameters
    ----------
    train, held : sequence of torch.Tensor
        Changes about the mean of the fit, float64, each (m x n).
    source : torch.Generator
        For the nulls.

    Returns
    -------
    tuple of ModeCapture
        Modes 1 and 2 only where the side has sixteen coordinates or more, and at most 1024.
    """

    def gaussian(change: torch.Tensor) -> torch.Tensor:
        return torch.randn(change.shape, generator=source, dtype=change.dtype) * change.square().mean().sqrt()

    def shuffled(change: torch.Tensor) -> torch.Tensor:
        return change.reshape(-1)[torch.randperm(change.numel(), generator=source)].reshape(change.shape)

    def nulls(null: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [null(change) for change in train], [null(change) for change in held]

    found: list[ModeCapture] = []
    by_gauss, by_shuffle = nulls(gaussian), nulls(shuffled)
    for mode in (0, 1, 2):
        size = 0 if mode == 0 else int(train[0].shape[mode - 1])
        if mode and not _SHARE <= size <= _WIDEST:
            continue
        fitted, held_out = _capture(train, held, mode)
        found.append(
            ModeCapture(mode, fitted, held_out, _capture(*by_gauss, mode)[1], _capture(*by_shuffle, mode)[1])
        )
    return tuple(found)


def pooled_captures(parts: Sequence[tuple[float, Sequence[ModeCapture]]]) -> tuple[ModeCapture, ...]:
    """Average over tensors, weighted by the energy of their changes."""
    pooled: list[ModeCapture] = []
    for mode in (0, 1, 2):
        held = [(energy, one) for energy, found in parts for one in found if one.mode == mode]
        total = sum(energy for energy, _ in held)
        if total > 0:
            means = [
                sum(energy * getattr(one, name) for energy, one in held) / total
                for name in ("fitted", "held_out", "gaussian", "shuffled")
            ]
            pooled.append(ModeCapture(mode, *means))
    return tuple(pooled)


def _capture(train: Changes, held: Changes, mode: int) -> tuple[float, float]:
    """Share of energy within the leading directions: in the fit, and outside it."""
    if mode == 0:
        return _over_models(train, held)
    side = "left" if mode == 1 else "right"
    size = int(train[0].shape[mode - 1])
    (moment,) = block_moments(train, size=size, block=size, side=side)
    leading = eigenvectors(moment, max(1, size // _SHARE)).to(torch.float64)

    def share(changes: Changes) -> float:
        inside = sum(
            float((leading.T @ (change if mode == 1 else change.T).to(torch.float64)).square().sum())
            for change in changes
        )
        return inside / max(_energy(changes), 1e-300)

    return share(train), share(held)


def _over_models(train: Changes, held: Changes) -> tuple[float, float]:
    flat = torch.stack([change.reshape(-1) for change in train])
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    count = min(_DIRECTIONS, len(train) - 1)
    values, vectors = values.flip(0)[:count].clamp(min=0), vectors.flip(1)[:, :count]
    fitted = float(values.sum()) / max(_energy(train), 1e-300)
    solid = values > 1e-12 * max(float(values[0]), 1e-300)
    directions = (vectors[:, solid] / values[solid].sqrt()).T @ flat
    inside = sum(float((directions @ change.reshape(-1)).square().sum()) for change in held)
    return fitted, inside / max(_energy(held), 1e-300)


def _energy(changes: Changes) -> float:
    return sum(float(change.square().sum()) for change in changes)
