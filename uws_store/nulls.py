"""Whether a zoo shares anything: its mean, its subspaces, and the same of zoos that share nothing by construction.

Owns the controls: the mean alone, Gaussian numbers of a tensor's variance, and each model's own numbers shuffled. A
gain that a null has as well is no shared subspace. Pure: it sees one tensor of a zoo as matrices; no step, no coder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from uws_store.subspace import block_moments, eigenvectors, project

__all__ = ["Shares", "Sharing", "pooled", "sharing"]

Shares = Literal["subspace", "mean", "nothing"]

_LEAST_MODELS = 4
_MOST_HELD = 6
_MOST_TRAINED = 48
_WIDEST = 512
_BLOCK = 256
_CLEAR_BITS = 0.02
_CLEAR_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Sharing:
    """What models have in common that a model outside the fit has too.

    Attributes
    ----------
    elements : int
        Elements this was measured on.
    mean_share : float
        Part of a held-out model's energy that the others' mean explains; at most 1, below 0 where it harms.
    gain_bits : float
        Bits per element that shared left and right factors save at equal distortion, in a Gaussian model.
    gaussian_bits, shuffled_bits : float
        The same for the nulls: Gaussian numbers of the changes' variance, and the changes' entries in an order of each
        model's own.
    """

    elements: int
    mean_share: float
    gain_bits: float
    gaussian_bits: float
    shuffled_bits: float

    @property
    def shares(self) -> Shares:
        """What is shared beyond the nulls: a subspace (and maybe a mean), a mean alone, or nothing."""
        if self.gain_bits > max(0.0, self.gaussian_bits, self.shuffled_bits) + _CLEAR_BITS:
            return "subspace"
        return "mean" if self.mean_share > _CLEAR_SHARE else "nothing"

    def __str__(self) -> str:
        said = {
            "subspace": "these models share a subspace",
            "mean": "these models share a mean and no subspace",
            "nothing": "these models share no subspace and no mean",
        }[self.shares]
        return (
            f"{said}: on models kept out, shared factors save {self.gain_bits:.2f} bits per weight (Gaussian null "
            f"{self.gaussian_bits:.2f}, shuffled {self.shuffled_bits:.2f}), and the mean explains "
            f"{max(0.0, self.mean_share):.0%} of the weights"
        )


def sharing(values: Sequence[torch.Tensor], *, seed: int = 0) -> Sharing | None:
    """Measure what one tensor of a zoo shares.

    Parameters
    ----------
    values : sequence of torch.Tensor
        The models' weights, each (m x n), float64; only the first some fifty are used.
    seed : int
        Of the nulls, and of which models are kept out.

    Returns
    -------
    Sharing or None
        None for fewer than four models, for one row, or where all models are alike. Costs about three fits.
    """
    if len(values) < _LEAST_MODELS or min(values[0].shape) < 2:
        return None
    source = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(values), generator=source).tolist()
    held_count = max(1, min(_MOST_HELD, len(values) // 4))
    held = [values[index] for index in sorted(picked[:held_count])]
    train = [values[index] for index in sorted(picked[held_count : held_count + _MOST_TRAINED])]
    mean = torch.stack(train).mean(0)
    left_over = sum(float((value - mean).square().sum()) for value in held)
    energy = sum(float(value.square().sum()) for value in held)
    changes = [value - mean for value in train], [value - mean for value in held]
    if left_over <= 0.0 or not any(bool(change.any()) for change in changes[0]):
        return None

    def gaussian(change: torch.Tensor) -> torch.Tensor:
        return torch.randn(change.shape, generator=source, dtype=change.dtype) * change.square().mean().sqrt()

    def shuffled(change: torch.Tensor) -> torch.Tensor:
        return change.reshape(-1)[torch.randperm(change.numel(), generator=source)].reshape(change.shape)

    return Sharing(
        elements=mean.numel(),
        mean_share=1.0 - left_over / energy if energy else 0.0,
        gain_bits=_gain(*changes),
        gaussian_bits=_null_gain(changes, gaussian),
        shuffled_bits=_null_gain(changes, shuffled),
    )


def pooled(parts: Sequence[Sharing]) -> Sharing | None:
    """Average over tensors, weighted by their elements; None without any."""
    elements = sum(part.elements for part in parts)
    if not elements:
        return None

    def mean(pick: Callable[[Sharing], float]) -> float:
        return sum(pick(part) * part.elements for part in parts) / elements

    return Sharing(
        elements=elements,
        mean_share=mean(lambda part: part.mean_share),
        gain_bits=mean(lambda part: part.gain_bits),
        gaussian_bits=mean(lambda part: part.gaussian_bits),
        shuffled_bits=mean(lambda part: part.shuffled_bits),
    )


def _null_gain(
    changes: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    null: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    train, held = ([null(change) for change in part] for part in changes)
    mean = torch.stack(train).mean(0)
    return _gain([change - mean for change in train], [change - mean for change in held])


def _gain(train: Sequence[torch.Tensor], held: Sequence[torch.Tensor]) -> float:
    """Bits per element that the best of right, left and both factors save on the held models."""
    right, left = _rotation(train, "right"), _rotation(train, "left")
    plain = _code_length(train, held)
    turned: list[float] = []
    by_right = [[right(change.T).T for change in part] for part in (train, held)]
    turned.append(_code_length(*by_right))
    turned.append(_code_length(*([left(change) for change in part] for part in (train, held))))
    turned.append(_code_length(*([left(change) for change in part] for part in by_right)))
    return plain - min(turned)


def _rotation(train: Sequence[torch.Tensor], side: str) -> Callable[[torch.Tensor], torch.Tensor]:
    size = int(train[0].shape[0 if side == "left" else 1])
    block = size if size <= _WIDEST else _BLOCK
    moments = block_moments(train, size=size, block=block, side=side)
    analysis = tuple(eigenvectors(moment, len(moment)).T.contiguous() for moment in moments)
    return lambda change: project(change.contiguous(), analysis, block=block)


def _code_length(train: Sequence[torch.Tensor], held: Sequence[torch.Tensor]) -> float:
    """Bits per element of a Gaussian code, up to a constant, with separable variances and a scale for each model."""
    rows = sum(change.square().mean(1) for change in train)
    columns = sum(change.square().mean(0) for change in train)
    assert isinstance(rows, torch.Tensor)
    assert isinstance(columns, torch.Tensor)
    total = rows.mean()
    floor = total * 2.0**-40
    variance = rows.clamp(min=floor)[:, None] * columns.clamp(min=floor)[None, :] / total
    level = 0.5 * torch.log2(variance).mean()
    scales = [0.5 * torch.log2((change.square() / variance).mean().clamp(min=2.0**-200)) for change in held]
    return float(level + torch.stack(scales).mean())
