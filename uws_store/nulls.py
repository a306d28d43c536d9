"""Whether a zoo shares anything: its mean, its subspaces, and the same of zoos that share nothing by construction.

Owns the controls: the mean alone, Gaussian numbers of a tensor's variance, and each model's own numbers shuffled. A
gain that a null has as well is no shared subspace. Pure: it sees one tensor of a zoo as matrices; no step, no coder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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


def sharing(
    values: Sequence[torch.Tensor], *, origin: torch.Tensor | None = None, seed: int = 0
) -> Sharing | None:
    """Measure what one tensor of a zoo shares.

    Parameters
    ----------
    values : sequence of torch.Tensor
        The models' weights, each (m x n), float64; only the first some fifty are used.
    origin : torch.Tensor, optional
        (m x n): what was taken off the weights before, such as their mean.
    seed : int
        Of the nulls, and of which models are kept out.

    Returns
    -------
    Sharing or None
        None for fewer than four models, for one row, or where all models are alike. Costs about three fits, and memory for
        one more copy of the values.
    """
    if len(values) < _LEAST_MODELS or min(values[0].shape) < 2:
        return None
    source = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(values), generator=source).tolist()
    held_count = max(1, min(_MOST_HELD, len(values) // 4))
    held = [values[index] for index in sorted(picked[:held_count])]
    train = [values[index] for index in sorted(picked[held_count : held_count + _MOST_TRAINED])]
    mean = _mean(train)
    left_over = sum(float((value - mean).square().sum()) for value in held)
    energy = sum(float((value if origin is None else value + origin).square().sum()) for value in held)
    if left_over <= 0.0 or not any(not torch.equal(value, mean) for value in train):
        return None

    def gaussian(change: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(change.shape, generator=source, dtype=change.dtype).to(change.device)
        return drawn * change.square().mean().sqrt()

    def shuffled(change: torch.Tensor) -> torch.Tensor:
        order = torch.randperm(change.numel(), generator=source).to(change.device)
        return change.reshape(-1)[order].reshape(change.shape)

    return Sharing(
        elements=mean.numel(),
        mean_share=1.0 - left_over / energy if energy else 0.0,
        gain_bits=_gain(train, held, mean),
        gaussian_bits=_null_gain(train, held, mean, gaussian),
        shuffled_bits=_null_gain(train, held, mean, shuffled),
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
    train: Sequence[torch.Tensor],
    held: Sequence[torch.Tensor],
    mean: torch.Tensor,
    null: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    trained, kept_out = ([null(value - mean) for value in part] for part in (train, held))
    return _gain(trained, kept_out, _mean(trained))


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(values[0])
    for value in values:
        total += value
    return total / len(values)


def _gain(train: Sequence[torch.Tensor], held: Sequence[torch.Tensor], mean: torch.Tensor) -> float:
    """Bits per element that the best of right, left and both factors of changes about a mean save on the held models.

    One change at a time is turned: that of a large zoo shall not be in memory four times.
    """
    right, left = (_rotation((value - mean for value in train), mean, side) for side in ("right", "left"))

    def turns(value: torch.Tensor) -> Iterator[torch.Tensor]:
        change = value - mean
        yield change
        by_right = right(change.T).T
        yield by_right
        yield left(change)
        yield left(by_right)

    margins = [(torch.zeros_like(mean[:, 0]), torch.zeros_like(mean[0])) for _ in range(4)]
    for value in train:
        for (rows, columns), turned in zip(margins, turns(value), strict=True):
            squared = turned.square()
            rows.add_(squared.mean(1))
            columns.add_(squared.mean(0))
    codes = [_Code(rows, columns) for rows, columns in margins]
    scales = [
        [code.scale(turned) for code, turned in zip(codes, turns(value), strict=True)] for value in held
    ]
    lengths = [
        code.level + sum(own[index] for own in scales) / len(scales) for index, code in enumerate(codes)
    ]
    return lengths[0] - min(lengths[1:])


def _rotation(
    train: Iterable[torch.Tensor], mean: torch.Tensor, side: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    size = int(mean.shape[0 if side == "left" else 1])
    block = size if size <= _WIDEST else _BLOCK
    moments = block_moments(train, size=size, block=block, side=side)
    analysis = tuple(eigenvectors(moment, len(moment)).T.contiguous() for moment in moments)
    return lambda change: project(change.contiguous(), analysis, block=block)


class _Code:
    """Bits per element of a Gaussian code, up to a constant, with separable variances and a scale for each model.

    Parameters
    ----------
    rows, columns : torch.Tensor
        Mean squares over the columns and over the rows, summed over the models.
    """

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        total = rows.mean()
        floor = total * 2.0**-40
        self._variance = rows.clamp(min=floor)[:, None] * columns.clamp(min=floor)[None, :] / total
        self.level = float(0.5 * torch.log2(self._variance).mean())

    def scale(self, change: torch.Tensor) -> float:
        """Give a model's own share of the bits."""
        return float(0.5 * torch.log2((change.square() / self._variance).mean().clamp(min=2.0**-200)))
