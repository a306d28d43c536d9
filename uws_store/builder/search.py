"""The search for the step that gives a fidelity in a user's words.

Works on sampled coefficients that are already in the basis, so that trying a step costs one quantisation and one
run of the entropy coder. Knows nothing about documents or storage.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from uws_store.builder.fit import TensorFit
from uws_store.entropy import encode_integers, significance_order
from uws_store.errors import FidelityError, InvalidInputError
from uws_store.quantize import Rounding, quantise

__all__ = ["DEFAULT_FIDELITY", "Fidelity", "FidelityKind", "find_step", "first_step", "step_beyond"]

FidelityKind = Literal["bits", "rel-error", "change-error", "max-drop"]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What a user asked for.

    Attributes
    ----------
    kind : {"bits", "rel-error", "change-error", "max-drop"}
        Bits per basis-coded parameter, counted whole; ``||W - W'|| / ||W||``; ``||W - W'|| / ||W - mean||``; or the
        most that a model's score may get worse, absolute.
    value : float
        The number; positive, and for ``max-drop`` at least 0.
    """

    kind: FidelityKind
    value: float

    def __post_init__(self) -> None:
        if self.kind == "max-drop":
            if not 0 <= self.value < math.inf:
                raise InvalidInputError(
                    f"--max-drop takes a number of at least 0, not {self.value:g}",
                    kind="invalid-input/fidelity",
                )
            return
        limit = 64.0 if self.kind == "bits" else 1.0
        if not 0 < self.value <= limit:
            raise InvalidInputError(
                f"--{self.kind} takes a number above 0 and at most {limit:g}, not {self.value:g}",
                kind="invalid-input/fidelity",
            )

    @property
    def rounding(self) -> Rounding:
        """What the quantiser is to keep: who asks for an error gets the fewest bits at that error."""
        return "error" if self.kind in {"rel-error", "change-error"} else "length"

    def __str__(self) -> str:
        short = f"{self.value:g}"
        # Read back when models are added: it must be the same number then.
        return f"{self.kind} {short if float(short) == self.value else repr(self.value)}"

    @classmethod
    def parse(cls, words: str) -> Fidelity | None:
        """Read what ``str`` wrote; None when it is nothing this version knows."""
        kind, _, value = words.partition(" ")
        known = next((name for name in get_args(FidelityKind) if name == kind), None)
        try:
            return cls(known, float(value)) if known is not None else None
        except ValueError:
            return None


DEFAULT_FIDELITY = Fidelity("change-error", 0.05)
"""Careful on purpose: nothing is known yet of how much error these models bear (-26 dB of what sets them apart)."""


_OCTAVES = 24
"""How far from the first guess the step is looked for, either way."""

_OCTAVES_FOR_BITS = 72
"""How far above it for bits: at 64 the guess is that fine, and nearly all of a small model may be metadata."""

_MOST_BEYOND = 4.0
_NEAR_BEYOND = 1.005


def first_step(fidelity: Fidelity, *, energy: float, change_energy: float, parameters: int) -> float:
    """Guess the step before anything is fitted, from energies alone (within a factor of about two).

    Parameters
    ----------
    fidelity : Fidelity
        The goal, in weights: not ``max-drop``.
    energy, change_energy : float
        Mean sums of squares per model, of the coded weights and of their changes.
    parameters : int
        Coded parameters.
    """
    rms = math.sqrt(change_energy / parameters)
    if fidelity.kind == "bits":
        ratio = 1.4 / fidelity.value if fidelity.value < 1.4 else 2.0 ** (1.4 - fidelity.value)
    elif fidelity.kind == "change-error":
        ratio = math.sqrt(12.0) * fidelity.value
    else:
        ratio = math.sqrt(12.0) * min(1.0, fidelity.value * math.sqrt(energy / change_energy))
    return rms * ratio


def find_step(fits: Sequence[TensorFit], fidelity: Fidelity, *, start: float, overhead_bytes: float) -> float:
    """Find the largest step that meets a fidelity on the sampled models.

    Parameters
    ----------
    fits : sequence of TensorFit
        Every coded tensor.
    fidelity : Fidelity
        The goal, in weights: not ``max-drop``.
    start : float
        Where to begin.
    overhead_bytes : float
        Bytes of a model besides its core, for ``bits``.

    Returns
    -------
    float
        Within 0.2 % in the step.

    Raises
    ------
    FidelityError
        When the bits would not even pay for the metadata (``fidelity/bits``).
    """
    # The search begins at one step both ways, and may come back to another.
    score = functools.cache(_scorer(fits, fidelity, overhead_bytes=overhead_bytes))
    # Bits fall and errors grow with the step; both are written as "positive means the step may not grow further".
    low = high = start
    for _ in range(_OCTAVES):
        if score(low) <= 0:
            break
        low /= 2
    for _ in range(_OCTAVES_FOR_BITS if fidelity.kind == "bits" else _OCTAVES):
        if score(high) > 0:
            break
        high *= 2
    else:
        if fidelity.kind == "bits":
            raise FidelityError(
                f"{fidelity.value:g} bits per parameter cannot be met: at the coarsest step a model still takes "
                f"{fidelity.value - score(high):.3g}, nearly all of it metadata; ask for more bits, or keep models this "
                "small as safetensors",
                kind="fidelity/bits",
            )
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        if score(middle) <= 0:
            low = middle
        else:
            high = middle
    return high if fidelity.kind == "bits" else low


def step_beyond(fits: Sequence[TensorFit], step: float) -> float:
    """Find by how much coarser a step gives models outside the zoo the bits that `step` gives its members.

    Parameters
    ----------
    fits : sequence of TensorFit
        Every coded tensor; those that were coded by fits of other members are measured.
    step : float
        The members' step.

    Returns
    -------
    float
        In [1, 4]. Of the logarithm that is measured, with fits of a share f of the members, 2 f / (1 + f) is taken: what
        sets a member apart from another model falls with one over the models in the fit, half of it on either side.
    """
    measured = [fit for fit in fits if fit.outside]
    tasks = sorted(set.intersection(*(set(fit.outside) for fit in measured))) if measured else []
    if not tasks:
        return 1.0
    classes = [fit.sampled_classes for fit in measured]
    order = significance_order([(rows.numpy(), columns.numpy()) for rows, columns in classes])
    orders = {
        task: significance_order(
            [(fit.outside[task].rows.numpy(), fit.outside[task].columns.numpy()) for fit in measured]
        )
        for task in tasks
    }
    wanted = sum(_bytes([fit.samples[task] for fit in measured], step, order) for task in tasks)

    def is_too_much(ratio: float) -> bool:
        total = 0
        for task in tasks:
            values = [fit.outside[task].coefficients for fit in measured]
            try:
                total += _bytes(values, step * ratio, orders[task])
            except InvalidInputError:  # beyond 32 bits at so fine a step
                return True
        return total > wanted

    low, high = 1.0, _MOST_BEYOND
    if not is_too_much(low):
        return 1.0
    while high / low > _NEAR_BEYOND:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_too_much(middle) else (low, middle)
    weights = [(fit.coefficients, fit.outside[tasks[0]].fitted_share) for fit in measured]
    share = sum(count * share for count, share in weights) / sum(count for count, _ in weights)
    return float(math.sqrt(low * high) ** (2 * share / (1 + share)))


def _bytes(values: Sequence[torch.Tensor], step: float, order: npt.NDArray[np.int64]) -> int:
    whole = np.concatenate([quantise(each, step).reshape(-1).to(torch.int32).numpy() for each in values])
    return len(encode_integers(whole[order]))


def _scorer(
    fits: Sequence[TensorFit], fidelity: Fidelity, *, overhead_bytes: float
) -> Callable[[float], float]:
    tasks = sorted(set.intersection(*(set(fit.samples) for fit in fits)))
    parameters = sum(math.prod(fit.survey.shape) for fit in fits)
    if fidelity.kind == "bits":
        classes = [fit.sampled_classes for fit in fits]
        order = significance_order([(rows.numpy(), columns.numpy()) for rows, columns in classes])
        each = sum(fit.coefficients for fit in fits) / max(1, len(order))

        def bits(step: float) -> float:
            total = 0.0
            for task in tasks:
                core_bytes = _bytes([fit.samples[task] for fit in fits], step, order)
                total += 8 * (each * core_bytes + overhead_bytes) / parameters
            return fidelity.value - total / len(tasks)

        return bits

    reference = sum(
        fit.survey.energy if fidelity.kind == "rel-error" else fit.survey.change_energy for fit in fits
    )
    allowed = fidelity.value**2 * reference

    def error(step: float) -> float:
        worst = 0.0
        for task in tasks:
            total = 0.0
            for fit in fits:
                difference = fit.samples[task] - quantise(fit.samples[task], step, rounding="error") * step
                scale = 4.0**-fit.shift * fit.survey.sensitivity**2 * fit.sampled_part
                total += float(difference.to(torch.float64).square().sum()) * scale
            worst = max(worst, total)
        return worst - allowed

    return error
