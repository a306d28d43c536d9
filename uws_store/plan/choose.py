"""The planner: what a tensor gets, decided by bits and distortion on models kept out of the fit.

Owns the choice and its reasons. Pure: it sees one tensor's changes as arrays and knows neither files nor documents.
A mean or a factor is stored only when the bits it saves over the family's models outweigh its own, so a zoo that
shares nothing pays nothing for it and takes what a plain coder would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from uws_store.device import CPU
from uws_store.entropy import encode_integers
from uws_store.plan.candidates import Candidate, SideChoice, side_options
from uws_store.plan.measure import HeldOut, Measured, can_hold_out
from uws_store.plan.steps import mean_grid
from uws_store.quantize import Rounding
from uws_store.subspace import side_shape

__all__ = ["Choice", "choose_sides", "mean_cost"]

_PROFILE_BITS = 6.0
_LEAST_ENTRY_BITS = 4.0
_EXPONENT_BITS = 2.0
_MIN_GAIN = 0.005
_MIN_BASIS_SHARE = 0.01
_TRUNCATION_LOSS = 0.02
_SLOPES = (0.02, 0.15)
_SLOPE_RATIO = 1.25
_WIDEST_MEAN = float(2**31 - 1)


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
        Predicted squared error of the tensor in that model, in squared steps per element.
    basis_bits : float
        Bits of mean, factors and profile.
    plain_bits_per_model : float
        Bits of the best plain coder's integers in such a model, at equal cost for distortion: the weights themselves
        or their change about the mean, in their own order.
    plain_basis_bits : float
        Bits of that coder's mean, if it takes one.
    flops_per_weight : float
        What decoding takes.
    reason : str
        Why, in a few words.
    saved_bits_per_model : float
        What factors save in each model beyond their own part of the basis.
    simple : Choice or None
        With factors: the best choice without any.
    """

    candidate: Candidate
    bits_per_model: float
    distortion: float
    basis_bits: float
    plain_bits_per_model: float
    plain_basis_bits: float = 0.0
    flops_per_weight: float = 0.0
    reason: str = ""
    saved_bits_per_model: float = 0.0
    simple: Choice | None = None


def choose_sides(
    changes: Sequence[torch.Tensor],
    *,
    step: float,
    models: int,
    mean: torch.Tensor | None = None,
    unit: int = 1,
    max_flops_per_weight: float = math.inf,
    truncate: bool = False,
    rounding: Rounding = "length",
    seed: int = 0,
    device: torch.device = CPU,
) -> Choice:
    """Choose how one tensor is coded.

    Parameters
    ----------
    changes : sequence of torch.Tensor
        The basis models' changes about their mean, each (m x n).
    step : float
        The tensor's step to plan for.
    models : int
        How many models the basis will serve: its bits are divided among them.
    mean : torch.Tensor, optional
        That mean; without it the mean is taken to be free, and always used.
    unit : int
        Elements of a row that belong together, such as the taps of a kernel.
    max_flops_per_weight : float
        The most that decoding may take.
    truncate : bool
        Whether factors may drop columns. What they drop no finer step brings back, in no model: not for a basis that
        is to keep an error or a score.
    rounding : {"length", "error"}
        How models will be quantised.
    seed : int
        Which models are kept out.
    device : torch.device
        Where candidates are measured; changes that lie elsewhere are copied there one by one.

    Returns
    -------
    Choice
        With fewer than four models nothing can be kept out, and no factor is chosen.
    """
    if not can_hold_out(len(changes)):
        return Choice(Candidate(), 0.0, 0.0, 0.0, 0.0, reason="too few models to keep one out of the fit")
    if not any(bool(change.any()) for change in changes):
        return Choice(Candidate(), 0.0, 0.0, 0.0, 0.0, reason="all models are alike")
    held_out = HeldOut(changes, mean=mean, step=step, rounding=rounding, seed=seed, device=device)
    mean_bits, mean_error = mean_cost(changes, mean, step)
    return _Search(
        held_out=held_out,
        shape=(int(changes[0].shape[0]), int(changes[0].shape[1])),
        models=models,
        unit=unit,
        max_flops=max_flops_per_weight,
        truncate=truncate,
        has_mean=mean is not None,
        mean_bits=mean_bits,
        mean_error=mean_error,
        slope=_slope(held_out, step, changes[0].numel()),
    ).run()


def _slope(held_out: HeldOut, step: float, elements: int) -> float:
    """Squared steps of distortion that one bit per element is worth, on this tensor at this step."""
    plain = Candidate(ordered=False)
    fine, coarse = held_out.measure(plain), held_out.measure(plain, step=step * _SLOPE_RATIO)
    if fine.equal_distortion != fine.distortion:
        # So coarse a step drops most of a change: its noise is nothing beside what is missing.
        return _SLOPES[1]
    saved = (fine.bits - coarse.bits) / elements
    added = coarse.distortion - fine.distortion
    return min(_SLOPES[1], max(_SLOPES[0], added / saved if saved > 0 else _SLOPES[1]))


@dataclass(frozen=True, slots=True)
class _Search:
    """One tensor's search: what it knows, and what was measured so far."""

    held_out: HeldOut
    shape: tuple[int, int]
    models: int
    unit: int
    max_flops: float
    truncate: bool
    has_mean: bool
    mean_bits: float
    mean_error: float
    slope: float
    measured: dict[Candidate, Measured] = field(default_factory=dict)

    def run(self) -> Choice:
        """Try the plain coders, the order, each side's factors, both, and truncations of the best."""
        plain = [Candidate(ordered=False)]
        if self.has_mean:
            plain.append(Candidate(centred=False, ordered=False))
        best_plain = min(plain, key=self._cost)
        unfactored = [*plain, *(replace(candidate, ordered=True) for candidate in plain)]
        best_simple = min(unfactored, key=self._cost)
        factored = self._factored()
        best = best_simple
        if factored is not None:
            gain = self._cost(best_simple) - self._cost(factored)
            if gain > _MIN_GAIN * self._measure(best_simple).equal_bits:
                best = self._truncated(factored) if self.truncate else factored
        simple = self._choice(best_simple, best_plain, self._reason(best_simple, best_simple, factored))
        if best == best_simple:
            return simple
        return replace(
            self._choice(best, best_plain, self._reason(best, best_simple, factored)),
            saved_bits_per_model=self._cost(best_simple) - self._cost(best),
            simple=simple,
        )

    def _choice(self, best: Candidate, best_plain: Candidate, reason: str) -> Choice:
        measured, rival = self._measure(best), self._measure(best_plain)
        return Choice(
            candidate=best,
            bits_per_model=measured.bits,
            distortion=measured.distortion,
            basis_bits=self._basis_bits(best),
            plain_bits_per_model=measured.bits
            + rival.equal_bits
            - measured.equal_bits
            + (rival.equal_distortion - measured.equal_distortion) * self._elements() / self.slope,
            plain_basis_bits=self._basis_bits(best_plain),
            flops_per_weight=best.flops_per_weight(*self.shape),
            reason=reason,
        )

    def _elements(self) -> int:
        return self.shape[0] * self.shape[1]

    def _measure(self, candidate: Candidate) -> Measured:
        if candidate not in self.measured:
            found = self.held_out.measure(candidate)
            if candidate.centred:
                found = replace(
                    found,
                    distortion=found.distortion + self.mean_error,
                    equal_distortion=found.equal_distortion + self.mean_error,
                )
            self.measured[candidate] = found
        return self.measured[candidate]

    def _basis_bits(self, candidate: Candidate) -> float:
        bits = self.mean_bits if candidate.centred else 0.0
        if candidate.ordered:
            bits += _PROFILE_BITS * sum(
                side_shape(size, side.block, side.rank)[1] if side else size
                for size, side in zip(self.shape, (candidate.left, candidate.right), strict=True)
            )
        for size, side in zip(self.shape, (candidate.left, candidate.right), strict=True):
            if side is not None:
                bits += _EXPONENT_BITS * side_shape(size, side.block, side.rank)[1]
        return bits + self._measure(candidate).side_bits

    def _cost(self, candidate: Candidate) -> float:
        """Everything in bits of one model: its core, its distortion, its part of the basis."""
        measured = self._measure(candidate)
        return (
            measured.equal_bits
            + measured.equal_distortion * self._elements() / self.slope
            + self._basis_bits(candidate) / self.models
        )

    def _allowed(self, candidate: Candidate) -> bool:
        return candidate.flops_per_weight(*self.shape) <= self.max_flops

    def _can_pay(self, candidate: Candidate) -> bool:
        """Whether a factor takes less than the whole core would; saves fitting it to vectors."""
        entries = sum(
            side_shape(size, side.block, side.rank)[0]
            for size, side in zip(self.shape, (candidate.left, candidate.right), strict=True)
            if side is not None
        )
        return _LEAST_ENTRY_BITS * entries < self.models * self._measure(Candidate(ordered=False)).equal_bits

    def _factored(self) -> Candidate | None:
        """The best candidate with factors: greedily the best right one, the best left one, then pairs of them."""
        m, n = self.shape
        rights = [Candidate(right=side) for side in side_options(n, unit=self.unit)]
        lefts = [Candidate(left=side) for side in side_options(m)]
        rights, lefts = ([side for side in sides if self._can_pay(side)] for sides in (rights, lefts))
        tried = [candidate for candidate in (*rights, *lefts) if self._allowed(candidate)]
        tried += [candidate for candidate in self._pairs(lefts, rights) if self._allowed(candidate)]
        return min(tried, key=self._cost, default=None)

    def _pairs(self, lefts: Sequence[Candidate], rights: Sequence[Candidate]) -> Iterator[Candidate]:
        """The pair of the best allowed sides; where it takes too much to decode, the cheaper pairs."""
        orders = [
            sorted((side for side in sides if self._allowed(side)), key=self._cost)
            for sides in (lefts, rights)
        ]
        if not all(orders):
            return
        pairs = [Candidate(left=left.left, right=right.right) for left in orders[0] for right in orders[1]]
        yield next((pair for pair in pairs if self._allowed(pair)), pairs[0])

    def _truncated(self, candidate: Candidate) -> Candidate:
        """Drop the last columns of a factor that are coded as zeros anyway; where the basis is nothing, leave it whole."""
        best = candidate
        allowed = self._measure(candidate).distortion + _TRUNCATION_LOSS
        for name in ("left", "right"):
            while True:
                if self._basis_bits(best) / self.models < _MIN_BASIS_SHARE * self._measure(best).equal_bits:
                    return best
                side: SideChoice | None = getattr(best, name)
                if side is None or side.rank < 4:
                    break
                fewer = SideChoice(side.block, side.rank - max(1, side.rank // 4))
                rival = replace(best, left=fewer) if name == "left" else replace(best, right=fewer)
                if self._cost(rival) >= self._cost(best) or self._measure(rival).distortion > allowed:
                    break
                best = rival
        return best

    def _reason(self, best: Candidate, simple: Candidate, factored: Candidate | None) -> str:
        if best.left or best.right:
            share = 1.0 - self._cost(best) / self._cost(simple)
            return (
                f"its factors save {share:.1%} of what {_words(simple)} would cost, over {self.models} models"
            )
        parts = []
        if self.has_mean:
            centred, bare = (
                min(
                    self._cost(replace(simple, centred=centred, ordered=ordered)) for ordered in (False, True)
                )
                for centred in (True, False)
            )
            if not best.centred:
                parts.append(f"the mean costs {centred / bare - 1.0:.1%} more than it saves")
        if factored is None:
            parts.append("too narrow for factors, or they take too much to store or to decode")
        else:
            more = self._cost(factored) / self._cost(best) - 1.0
            parts.append(
                f"the best factors, {factored}, cost {more:.1%} more"
                if more > 0
                else "factors save too little"
            )
        return "; ".join(parts)


def _words(candidate: Candidate) -> str:
    return "the mean alone" if candidate.centred else "no basis"


def mean_cost(changes: Sequence[torch.Tensor], mean: torch.Tensor | None, step: float) -> tuple[float, float]:
    """Count the bits of the quantised mean, and what its rounding adds to the squared error.

    Returns
    -------
    bits : float
        Of the whole mean.
    error : float
        Per element, in squared steps.
    """
    if mean is None:
        return 0.0, 0.0
    energy = sum(float(change.square().mean()) for change in changes) / len(changes)
    grid = mean_grid(step=step, change_rms=math.sqrt(energy))
    whole = torch.round(mean * math.ldexp(1.0, grid))
    error = float((whole * math.ldexp(1.0, -grid) - mean).square().mean()) / step**2
    if not bool(whole.abs().max() < _WIDEST_MEAN):
        return 32.0 * mean.numel(), error
    return 8.0 * len(encode_integers(whole.to(torch.int32).reshape(-1).cpu().numpy())), error
