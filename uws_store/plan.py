"""The planner: which factors a tensor gets, decided by bits and distortion on models kept out of the fit.

Owns the candidates and their cost. Pure: it sees one tensor's changes as arrays and knows neither files nor
documents. A factor is stored only when the bits it saves over the family's models outweigh its own, so a zoo that
shares no subspace gets no factors and pays nothing for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uws_store.canonical import Side
from uws_store.entropy import ideal_bits
from uws_store.quantize import preserving_offset, quantise
from uws_store.subspace import (
    PROFILE_UNITS_PER_OCTAVE,
    QuantisedSide,
    analysis_matrix,
    block_moments,
    eigenvectors,
    project,
    quantise_side,
    separable_profile,
    side_from_integers,
    side_shape,
)

__all__ = [
    "FACTOR_BITS_PER_ENTRY",
    "Candidate",
    "Choice",
    "SideChoice",
    "choose_sides",
    "fit_side",
    "step_shift",
]

FACTOR_BITS_PER_ENTRY = 5.5
"""Entropy of a factor's 7-bit integers, measured on ViT and MLP factors."""

LAGRANGE = 0.05
"""Squared steps of distortion that one bit is worth: the slope of the quantiser's curve at 0.3 to 0.6 bits."""

_FREE_SHARE = 0.0005
_FULL_LIMIT = 1024
_BLOCKS = (64, 256)
_MIN_GAIN = 0.005
_MAX_HELD = 4


@dataclass(frozen=True, slots=True)
class SideChoice:
    """Block width and rank of a factor."""

    block: int
    rank: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair of sides; None is the identity."""

    left: SideChoice | None
    right: SideChoice | None

    def __str__(self) -> str:
        words = []
        for name, side in (("left", self.left), ("right", self.right)):
            if side is not None:
                words.append(
                    f"{name} {side.block}" + (f" rank {side.rank}" if side.rank < side.block else "")
                )
        return " + ".join(words) or "none"


@dataclass(frozen=True, slots=True)
class Choice:
    """The planner's decision for one tensor.

    Attributes
    ----------
    candidate : Candidate
        What was chosen.
    bits_per_model : float
        Predicted bits of the tensor's core in one model that the fit has not seen.
    distortion : float
        Predicted squared error of the tensor in that model, in squared steps per coefficient.
    basis_bits : float
        Bits of the factors.
    plain_bits_per_model : float
        The same as ``bits_per_model`` without any factor, at equal cost for distortion.
    """

    candidate: Candidate
    bits_per_model: float
    distortion: float
    basis_bits: float
    plain_bits_per_model: float


def step_shift(*, own_energy: float, own_parameters: int, energy: float, parameters: int) -> int:
    """Choose how much finer than the family's a tensor's step is, in octaves.

    Steps in proportion to a tensor's own change keep every layer's relative error alike. One step for all minimises
    the squared error of the whole and may spend all of it on a small layer that matters: at equal bits the digits
    ViTs score alike either way, and the ANI potentials come several times nearer to the original energies. Tensors of
    next to no elements are made finer still, since they cost nothing.

    Parameters
    ----------
    own_energy, energy : float
        Mean sum of squared changes, of the tensor and of all coded tensors.
    own_parameters, parameters : int
        Elements of the tensor and of all coded tensors.

    Returns
    -------
    int
        In [-2, 12].
    """
    rare = math.log2(max(1.0, _FREE_SHARE * parameters / own_parameters))
    if own_energy <= 0.0 or energy <= 0.0:
        return round(rare)
    octaves = 0.5 * math.log2((energy / parameters) / (own_energy / own_parameters))
    return max(-2, min(12, round(octaves + rare)))


def side_options(size: int) -> Iterator[SideChoice]:
    """Factors worth trying on a side of this extent."""
    if size < 4:
        return
    if size <= _FULL_LIMIT:
        yield SideChoice(size, size)
    for block in _BLOCKS:
        if size > block * 3 // 2:
            yield SideChoice(block, block)


def fit_side(
    changes: Sequence[torch.Tensor], choice: SideChoice | None, *, side: str
) -> QuantisedSide | None:
    """Fit one side's factor to changes and quantise it, as it will be stored."""
    if choice is None:
        return None
    size = changes[0].shape[0 if side == "left" else 1]
    moments = block_moments(changes, size=size, block=choice.block, side=side)
    vectors = [eigenvectors(moment, choice.rank) for moment in moments]
    return quantise_side(vectors, size=size, block=choice.block, rank=choice.rank)


def choose_sides(changes: Sequence[torch.Tensor], *, step: float, models: int, seed: int = 0) -> Choice:
    """Choose the factors of one tensor.

    Parameters
    ----------
    changes : sequence of torch.Tensor
        The basis models' changes about their mean, each (m x n).
    step : float
        The step to plan for.
    models : int
        How many models the basis will serve: its bits are divided among them.
    seed : int
        Which models are kept out.

    Returns
    -------
    Choice
        With fewer than four models nothing can be kept out, and no factor is chosen.
    """
    m, n = changes[0].shape
    none = Candidate(None, None)
    if len(changes) < 4 or float(sum(change.square().sum() for change in changes)) == 0.0:
        return Choice(none, 0.0, 0.0, 0.0, 0.0)
    held_count = max(1, min(_MAX_HELD, len(changes) // 4))
    held_indexes = set(np.random.default_rng(seed).permutation(len(changes))[:held_count].tolist())
    train = [change for index, change in enumerate(changes) if index not in held_indexes]
    held = [changes[index] for index in sorted(held_indexes)]
    # The mean was taken with the held models in it; centre the others on their own.
    centre = torch.stack(train).mean(0)
    train = [change - centre for change in train]
    held = [change - centre for change in held]

    fitted: dict[tuple[str, SideChoice], Side] = {}

    def cost(candidate: Candidate) -> tuple[float, float, float, float]:
        """Total cost in bits per model, and its parts: bits, distortion per coefficient, basis bits."""
        sides: list[Side | None] = []
        for name, choice in (("left", candidate.left), ("right", candidate.right)):
            if choice is None:
                sides.append(None)
                continue
            if (name, choice) not in fitted:
                stored = fit_side(train, choice, side=name)
                assert stored is not None
                fitted[name, choice] = side_from_integers(stored)
            sides.append(fitted[name, choice])
        bits, distortion = _measure(train, held, left=sides[0], right=sides[1], step=step)
        basis = sum(
            side_shape(size, choice.block, choice.rank)[0] * FACTOR_BITS_PER_ENTRY
            for size, choice in ((m, candidate.left), (n, candidate.right))
            if choice is not None
        )
        return bits + distortion * m * n / LAGRANGE + basis / models, bits, distortion, basis

    measured = {none: cost(none)}
    best = none
    # Greedy: the best right factor, the best left one, then both together.
    best_sides: dict[str, SideChoice | None] = {"left": None, "right": None}
    for name, size in (("right", n), ("left", m)):
        for choice in side_options(size):
            candidate = Candidate(choice, None) if name == "left" else Candidate(None, choice)
            measured[candidate] = cost(candidate)
            current = best_sides[name]
            rival = Candidate(current, None) if name == "left" else Candidate(None, current)
            if measured[candidate][0] < measured[rival][0]:
                best_sides[name] = choice
    if best_sides["left"] and best_sides["right"]:
        both = Candidate(best_sides["left"], best_sides["right"])
        measured[both] = cost(both)
    winner = min(measured, key=lambda candidate: measured[candidate][0])
    if measured[winner][0] < measured[none][0] * (1 - _MIN_GAIN):
        best = winner
    _, bits, distortion, basis = measured[best]
    plain = measured[none][1] + (measured[none][2] - distortion) * m * n / LAGRANGE
    return Choice(best, bits, distortion, basis, plain)


def _measure(
    train: Sequence[torch.Tensor],
    held: Sequence[torch.Tensor],
    *,
    left: Side | None,
    right: Side | None,
    step: float,
) -> tuple[float, float]:
    """Bits per held model under the Laplace bound, and distortion per coefficient in squared steps."""
    left_analysis = analysis_matrix(left) if left else None
    right_analysis = analysis_matrix(right) if right else None

    def coefficients(change: torch.Tensor) -> torch.Tensor:
        if right_analysis is not None and right is not None:
            change = project(change.T.contiguous(), right_analysis, block=right.block).T
        if left_analysis is not None and left is not None:
            change = project(change.contiguous(), left_analysis, block=left.block)
        return change

    variance = torch.zeros(0, dtype=torch.float64)
    for change in train:
        squared = coefficients(change).to(torch.float64).square()
        variance = squared if not variance.numel() else variance + squared
    rows, columns = separable_profile(variance / len(train))
    classes = (rows[:, None] + columns[None, :]).to(torch.float64)
    scales = torch.exp2(classes / PROFILE_UNITS_PER_OCTAVE).numpy() / (2**0.5 * step)
    bits = distortion = 0.0
    for change in held:
        real = coefficients(change).to(torch.float64)
        offset = preserving_offset(real, step)
        whole = quantise(real, step, offset=offset)
        distortion += float((real - whole * step).square().mean()) / step**2
        bits += ideal_bits(whole.numpy().astype(np.int64), scales, offset=offset)
    return bits / len(held), distortion / len(held)
