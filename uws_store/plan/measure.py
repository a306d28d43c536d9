"""What a candidate takes on models kept out of its fit: bits by the entropy coder itself, and squared error.

Owns the folds and the measuring. Chooses nothing. A Laplace bound is not asked: weights that are nearly uniform, or
that lie on a coarse lattice of their own, take fewer bits than it says, and a transform makes them Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uws_store.canonical import Side
from uws_store.device import CPU, fed
from uws_store.entropy import encode_integers, ideal_bits
from uws_store.errors import InvalidInputError
from uws_store.plan.candidates import Candidate, SideChoice
from uws_store.quantize import Rounding, least_error_offset, preserving_offset, quantise
from uws_store.subspace import (
    PROFILE_UNITS_PER_OCTAVE,
    QuantisedSide,
    analysis_matrix,
    block_extents,
    block_moments,
    eigenvectors,
    profile_of_margins,
    project,
    quantise_side,
    side_from_integers,
)

__all__ = ["HeldOut", "Measured", "can_hold_out", "fit_side"]

_LEAST_MODELS = 4
_FEW_MODELS = 17
_MOST_FOLDS = 4
_MOST_HELD = 6
_SMALL_TENSOR = 1 << 18
_MEASURED_COEFFICIENTS = 1 << 23
_CODED_COUNT = 8192
_FULL_LIMIT = 1024
_WIDE_BLOCK = 256
_PRIVATE_BITS = 64.0
_KEPT_LENGTH = 0.6
"""Share of a change's length that a candidate must keep to be compared with others: networks bear noise, not less."""
_FINER = 2.0**-0.25
_MOST_FINER = 40


@dataclass(frozen=True, slots=True)
class Measured:
    """What a candidate takes.

    Attributes
    ----------
    bits : float
        Bits of the tensor's core in one model that the fit has not seen.
    distortion : float
        Squared error per element, in squared steps.
    side_bits : float
        Bits of the factors, as they are stored.
    equal_bits, equal_distortion : float
        The same as the first two, in the same units, where the candidate may be compared with others. Where rounding is
        to keep the length and cannot at so coarse a step, that is at the coarsest step at which it keeps 0.6 of it.
        Few bits at a step that drops nearly everything say nothing: such a model is the mean.
    """

    bits: float
    distortion: float
    side_bits: float
    equal_bits: float
    equal_distortion: float


def can_hold_out(models: int) -> bool:
    """Whether a zoo is large enough for some of it to be kept out of a fit."""
    return models >= _LEAST_MODELS


def fit_side(
    changes: Sequence[torch.Tensor], choice: SideChoice | None, *, side: str, device: torch.device = CPU
) -> QuantisedSide | None:
    """Fit one side's factor to changes, on a device, and quantise it, as it will be stored."""
    if choice is None:
        return None
    size = changes[0].shape[0 if side == "left" else 1]
    return _side_of(
        block_moments(fed(changes, device), size=size, block=choice.block, side=side), choice, size
    )


def _side_of(moments: Sequence[torch.Tensor], choice: SideChoice, size: int) -> QuantisedSide:
    vectors = [eigenvectors(moment, choice.rank) for moment in moments]
    return quantise_side(vectors, size=size, block=choice.block, rank=choice.rank)


class HeldOut:
    """A tensor of a zoo, split into models that are fitted and models that are measured.

    A small zoo is cross-fitted: every model is measured once, against a fit of the others. Of a larger one, or of a
    large tensor, some models are picked.

    Parameters
    ----------
    changes : sequence of torch.Tensor
        The models' changes about their mean, each (m x n), float64; at least four.
    mean : torch.Tensor or None
        That mean; None where it is of no interest.
    step : float
        The tensor's step.
    rounding : {"length", "error"}
        See :mod:`uws_store.quantize`.
    seed : int
        Which models are kept out.
    device : torch.device
        Where the work is done; changes that lie elsewhere are copied there one by one, each time they are used.
    """

    def __init__(
        self,
        changes: Sequence[torch.Tensor],
        *,
        mean: torch.Tensor | None,
        step: float,
        rounding: Rounding = "length",
        seed: int = 0,
        device: torch.device = CPU,
    ) -> None:
        self._folds = [
            _Fold(changes, held, mean, device) for held in _splits(len(changes), changes[0].numel(), seed)
        ]
        self._step = step
        self._rounding = rounding
        self._elements = changes[0].numel()

    def measure(self, candidate: Candidate, *, step: float | None = None) -> Measured:
        """Code the held models as a candidate would; at another step than the tensor's if one is given."""
        try:
            parts = [fold.measure(candidate, step or self._step, self._rounding) for fold in self._folds]
        except InvalidInputError:  # beyond 32 bits: such a tensor would be private
            private = _PRIVATE_BITS * self._elements
            return Measured(private, 0.0, 0.0, private, 0.0)
        averages = [float(sum(values)) / len(parts) for values in zip(*parts, strict=True)]
        bits, distortion, side_bits, equal_bits, equal_distortion = averages
        scale = (step or self._step) ** 2 / self._step**2
        return Measured(bits, distortion * scale, side_bits, equal_bits, equal_distortion * scale)


def _splits(models: int, elements: int, seed: int) -> list[list[int]]:
    shuffled = np.random.default_rng(seed).permutation(models).tolist()
    if models < _FEW_MODELS and elements <= _SMALL_TENSOR:
        folds = min(models, _MOST_FOLDS)
        return [sorted(shuffled[start::folds]) for start in range(folds)]
    most = max(1, min(_MOST_HELD, _MEASURED_COEFFICIENTS // max(1, elements), models // 4))
    return [sorted(shuffled[:most])]


class _Fold:
    """One split: the moments of what is fitted, made when they are first asked for, and the held models."""

    def __init__(
        self,
        changes: Sequence[torch.Tensor],
        held: Sequence[int],
        mean: torch.Tensor | None,
        device: torch.device,
    ) -> None:
        kept_out = set(held)
        self._train = [change for index, change in enumerate(changes) if index not in kept_out]
        self._held = [changes[index] for index in held]
        self._device = device
        self._mean = None if mean is None else mean.to(device)
        # The mean was taken with the held models in it; the others have their own.
        centre = torch.zeros_like(changes[0], device=device)
        for change in fed(self._train, device):
            centre += change
        self._centre = centre / len(self._train)
        self._moments: dict[tuple[str, int], list[torch.Tensor]] = {}
        self._sides: dict[tuple[str, SideChoice], tuple[Side, tuple[torch.Tensor, ...], float]] = {}
        self._margins: dict[tuple[str, bool], torch.Tensor] = {}

    def _centred(self) -> Iterator[torch.Tensor]:
        return (change - self._centre for change in fed(self._train, self._device))

    def _block_moments(self, side: str, block: int) -> list[torch.Tensor]:
        """Moments of a side's blocks, cut from wider ones that were made before where that can be."""
        size = self._centre.shape[0 if side == "left" else 1]
        wide = size if size <= _FULL_LIMIT else max(block, _WIDE_BLOCK // block * block)
        if (side, wide) not in self._moments:
            self._moments[side, wide] = block_moments(self._centred(), size=size, block=wide, side=side)
        whole = self._moments[side, wide]
        parts = []
        for start, stop in block_extents(size, block):
            base = start // wide
            parts.append(
                whole[base][
                    start - base * wide : stop - base * wide, start - base * wide : stop - base * wide
                ]
            )
        return parts

    def _side(self, side: str, choice: SideChoice) -> tuple[Side, tuple[torch.Tensor, ...], float]:
        if (side, choice) not in self._sides:
            size = self._centre.shape[0 if side == "left" else 1]
            stored = _side_of(self._block_moments(side, choice.block), choice, size)
            bits = 8.0 * len(encode_integers(stored.integers.numpy()))
            made = side_from_integers(stored).to(self._device)
            self._sides[side, choice] = made, analysis_matrix(made), bits
        return self._sides[side, choice]

    def _margin(self, side: str, choice: SideChoice | None, *, centred: bool) -> torch.Tensor:
        """Sum of squares of every row, or column, of the fitted models' coefficients."""
        if choice is not None:
            _, analysis, _ = self._side(side, choice)
            moments = self._block_moments(side, choice.block)
            return torch.cat(
                [((rows @ moment) * rows).sum(1) for rows, moment in zip(analysis, moments, strict=True)]
            )
        if (side, centred) not in self._margins:
            changes = self._centred() if centred else self._uncentred()
            axis = 1 if side == "left" else 0
            sums = torch.zeros(self._centre.shape[1 - axis], dtype=torch.float64, device=self._device)
            for change in changes:
                sums += change.square().sum(axis)
            self._margins[side, centred] = sums
        return self._margins[side, centred]

    def _uncentred(self) -> Iterator[torch.Tensor]:
        return (change + self._whole_mean() for change in fed(self._train, self._device))

    def _whole_mean(self) -> torch.Tensor:
        assert self._mean is not None
        return self._mean

    def measure(self, candidate: Candidate, step: float, rounding: Rounding) -> tuple[float, ...]:
        """What :class:`Measured` holds, on average over the held models."""
        origin = self._centre if candidate.centred else -self._whole_mean()
        sides = {
            name: self._side(name, choice) if choice else None
            for name, choice in (("left", candidate.left), ("right", candidate.right))
        }
        reals: list[torch.Tensor] = []
        lost = 0.0
        for change in fed(self._held, self._device):
            real = _coefficients(change - origin, sides["left"], sides["right"])
            if candidate.is_truncated:
                lost += float(
                    (change - origin - _weights(real, sides["left"], sides["right"])).square().sum()
                )
            reals.append(real)
        rows, columns = profile_of_margins(
            self._margin("left", candidate.left, centred=candidate.centred),
            self._margin("right", candidate.right, centred=candidate.centred),
            count=len(self._train),
        )
        classes = (rows[:, None] + columns[None, :]).reshape(-1).numpy()
        side_bits = sum(side[2] for side in sides.values() if side)
        count = len(self._held) * self._centre.numel() * step**2
        rounded = _Rounded.of(reals, step, rounding)
        bits, distortion = rounded.bits(classes, ordered=candidate.ordered), (rounded.error + lost) / count
        for _ in range(_MOST_FINER if rounding == "length" else 0):
            if rounded.kept >= _KEPT_LENGTH:
                break
            rounded = _Rounded.of(reals, rounded.step * _FINER, rounding)
        if rounded.step == step:
            return bits, distortion, side_bits, bits, distortion
        equal_bits = rounded.bits(classes, ordered=candidate.ordered)
        return bits, distortion, side_bits, equal_bits, (rounded.error + lost) / count


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Coefficients of several models at a step: integers, squared error, and the share of the length that is kept."""

    step: float
    integers: tuple[torch.Tensor, ...]
    offset: float
    error: float
    kept: float

    @classmethod
    def of(cls, reals: Sequence[torch.Tensor], step: float, rounding: Rounding) -> _Rounded:
        """Quantise coefficients."""
        find_offset = preserving_offset if rounding == "length" else least_error_offset
        integers: list[torch.Tensor] = []
        error = projection = energy = offsets = 0.0
        for real in reals:
            offset = find_offset(real, step)
            whole = quantise(real, step, offset=offset)
            error += float((real - whole * step).square().sum())
            projection += float((real * whole).sum()) * step
            energy += float(real.square().sum())
            integers.append(whole.reshape(-1).to(torch.int32).cpu())
            offsets += offset / len(reals)
        return cls(step, tuple(integers), offsets, error, projection / energy if energy else 1.0)

    def bits(self, classes: np.ndarray[tuple[int, ...], np.dtype[np.int16]], *, ordered: bool) -> float:
        """Bits of a model's integers."""
        stacked = torch.stack(self.integers, 1).numpy()
        if stacked.size < _CODED_COUNT:
            # A stream's header would be most of so little, and is shared with other tensors of the read group.
            level = classes if ordered else np.full_like(classes, round(float(classes.mean())))
            scales = np.exp2(level / PROFILE_UNITS_PER_OCTAVE) / (2**0.5 * self.step)
            bits = ideal_bits(stacked, np.broadcast_to(scales[:, None], stacked.shape), offset=self.offset)
        else:
            if ordered:
                stacked = stacked[np.argsort(np.negative(classes), kind="stable")]
            bits = _coded_bits(stacked if ordered else stacked.T)
        return bits / len(self.integers)


def _coded_bits(integers: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> float:
    flat = integers.reshape(-1)
    small = bool(np.abs(flat).max(initial=0) < 1 << 15)
    return 8.0 * len(encode_integers(flat.astype(np.int16) if small else flat))


def _coefficients(
    change: torch.Tensor,
    left: tuple[Side, tuple[torch.Tensor, ...], float] | None,
    right: tuple[Side, tuple[torch.Tensor, ...], float] | None,
) -> torch.Tensor:
    if right is not None:
        change = project(change.T.contiguous(), right[1], block=right[0].block).T
    if left is not None:
        change = project(change.contiguous(), left[1], block=left[0].block)
    return change


def _weights(
    coefficients: torch.Tensor,
    left: tuple[Side, tuple[torch.Tensor, ...], float] | None,
    right: tuple[Side, tuple[torch.Tensor, ...], float] | None,
) -> torch.Tensor:
    """What coefficients stand for, in floating point."""
    if right is not None:
        coefficients = right[0].expand(coefficients.T.contiguous()).T * 2.0 ** -right[0].grid
    if left is not None:
        coefficients = left[0].expand(coefficients.contiguous()) * 2.0 ** -left[0].grid
    return coefficients
