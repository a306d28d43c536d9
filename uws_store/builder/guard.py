"""After encoding: tensors that a plain coder stores in less, whatever the planner predicted.

Owns the comparison on encoded models: the basis's integers beside those of the weights, and of their change about the
mean, in the tensor's own order, at equal squared error, all by the same entropy coder. Decides nothing about steps and
stores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from uws_store.builder.fit import TensorFit
from uws_store.builder.sources import ZooFiles
from uws_store.entropy import encode_integers, significance_order
from uws_store.errors import InvalidInputError
from uws_store.plan import Candidate, Choice, mean_cost
from uws_store.quantize import Rounding, quantise

__all__ = ["beaten_by_plain"]

_MARGIN = 1.01
_ROUNDS = 6
_NEAR_ENOUGH = 0.001
_TOLD_FROM = 1 << 18
_WIDEST = 8.0
_MOST_LONGER = 1024.0
_PROFILE_BITS = 6.0
_SHORT = 1 << 15
_REASON = "a plain coder took less on encoded models"

_Integers = npt.NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class _Coded:
    """A tensor of the sampled models by one coder: integers per model, bits alone, bits of what the zoo shares."""

    candidate: Candidate
    integers: list[_Integers]
    bits: float
    basis_bits: float

    def cost(self, models: int) -> float:
        """Bits of a model, with its part of the basis."""
        return self.bits + self.basis_bits / models


def beaten_by_plain(
    fits: Sequence[TensorFit],
    files: ZooFiles,
    *,
    step: float,
    models: int,
    rounding: Rounding,
    everything: bool = False,
) -> Mapping[str, Choice]:
    """Encode the sampled models by the fits and by a plain coder at the same squared error, and compare.

    Parameters
    ----------
    fits : sequence of TensorFit
        Every coded tensor.
    files : ZooFiles
        The zoo.
    step : float
        The family's step.
    models : int
        Models that the basis is divided among.
    rounding : {"length", "error"}
        How models are quantised.
    everything : bool
        Whether the plain coder gets every tensor, rather than those that it stores in less on their own.

    Returns
    -------
    mapping of str to Choice
        Nothing where all tensors together take at most one percent more than by the plain coder. Factors of products
        are left alone: their errors are those of the product. So are tensors that all models have alike, and families
        of whose tensors some are sampled in part.
    """
    tasks = sorted(set.intersection(*(set(fit.samples) for fit in fits))) if fits else []
    if not tasks or any(fit.survey.place or fit.sampled_rows is not None for fit in fits):
        return {}
    try:
        pairs = [_compared(fit, files, tasks, step=step, rounding=rounding, models=models) for fit in fits]
    except InvalidInputError:  # integers beyond 32 bits: such tensors end private
        return {}
    # Together, as models store them: the order mixes tensors, and a stream's header is paid once.
    order = significance_order([(fit.rows.numpy(), fit.columns.numpy()) for fit in fits])
    ours = plain = 0.0
    for index in range(len(tasks)):
        ours += _bits(np.concatenate([own.integers[index] for own, _ in pairs])[order]) / len(tasks)
        plain += _bits(np.concatenate([rival.integers[index] for _, rival in pairs])) / len(tasks)
    ours += sum(own.basis_bits for own, _ in pairs) / models
    plain += sum(rival.basis_bits for _, rival in pairs) / models
    if ours <= _MARGIN * plain:
        return {}
    return {
        fit.survey.name: _choice(rival, fit.choice)
        for fit, (own, rival) in zip(fits, pairs, strict=True)
        if fit.survey.change_energy > 0.0
        and own.candidate != rival.candidate
        and (everything or rival.cost(models) < own.cost(models))
    }


def _choice(rival: _Coded, before: Choice) -> Choice:
    return Choice(
        candidate=rival.candidate,
        bits_per_model=rival.bits,
        distortion=before.distortion,
        basis_bits=rival.basis_bits,
        plain_bits_per_model=rival.bits,
        plain_basis_bits=rival.basis_bits,
        reason=_REASON,
    )


def _compared(
    fit: TensorFit, files: ZooFiles, tasks: Sequence[str], *, step: float, rounding: Rounding, models: int
) -> tuple[_Coded, _Coded]:
    """One tensor by its fit, and by the cheaper plain coder."""
    own_step = step * 2.0**-fit.shift
    weights = [
        tensor.to(torch.float64).reshape(fit.survey.matrix)
        for _, tensor in files.slices(fit.survey.name, tasks)
    ]
    mean_bits, mean_error = 0.0, 0.0
    if fit.choice.candidate.centred:
        mean_bits, mean_error = mean_cost([value - fit.mean for value in weights], fit.mean, own_step)
    lost = mean_error * own_step**2 * fit.mean.numel()
    integers: list[_Integers] = []
    errors: list[float] = []
    for task in tasks:
        # The samples are those of a tensor whose step is the family's.
        whole = quantise(fit.samples[task], step, rounding=rounding)
        errors.append(_error(fit.samples[task], whole * step, rounding) * 4.0**-fit.shift)
        integers.append(_flat(whole))
    sides = sum(_bits(side.integers.numpy()) for side in (fit.left, fit.right) if side is not None)
    profile = _PROFILE_BITS * (len(fit.rows) + len(fit.columns)) if fit.choice.candidate.ordered else 0.0
    own = _coded(fit.choice.candidate, integers, mean_bits + sides + profile, fit)
    rivals = [_plain(weights, [error + lost for error in errors], own_step, rounding, centred=False)]
    if fit.choice.candidate.centred:
        changes = [value - fit.mean for value in weights]
        found = _plain(changes, errors, own_step, rounding, centred=True)
        rivals.append(_Coded(found.candidate, found.integers, found.bits, mean_bits))
    return own, min(rivals, key=lambda rival: rival.cost(models))


def _coded(candidate: Candidate, integers: list[_Integers], basis_bits: float, fit: TensorFit) -> _Coded:
    order = significance_order([(fit.rows.numpy(), fit.columns.numpy())])
    stacked = np.concatenate([values[order] for values in integers])
    return _Coded(candidate, integers, _bits(stacked) / len(integers), basis_bits)


def _plain(
    values: Sequence[torch.Tensor], errors: Sequence[float], step: float, rounding: Rounding, *, centred: bool
) -> _Coded:
    integers = [
        _flat(_at_error(value, error, step, rounding)) for value, error in zip(values, errors, strict=True)
    ]
    bits = _bits(np.concatenate(integers)) / len(integers)
    return _Coded(Candidate(centred=centred, ordered=False), integers, bits, 0.0)


def _at_error(values: torch.Tensor, error: float, step: float, rounding: Rounding) -> torch.Tensor:
    """Quantise at the step, near the given one, whose error is the given one: told from a part of many values."""
    flat = values.reshape(-1)
    part = flat[:: max(1, len(flat) // _TOLD_FROM)].contiguous()
    wanted = error * len(part) / max(1, len(flat))
    found = step
    for _ in range(_ROUNDS):
        own = _error(part, quantise(part, found, rounding=rounding) * found, rounding)
        if not wanted or not own:
            break
        ratio = math.sqrt(wanted / own)
        found = min(_WIDEST * step, max(step / _WIDEST, found * ratio))
        if abs(ratio - 1.0) < _NEAR_ENOUGH:
            break
    return quantise(values, found, rounding=rounding)


def _error(values: torch.Tensor, kept: torch.Tensor, rounding: Rounding) -> float:
    """Squared error; where the length is to be kept, once what is kept is made so long that its projection is right.

    A step that drops nearly everything has no larger error than the change itself, and nothing of it.
    """
    values, kept = values.to(torch.float64), kept.to(torch.float64)
    longer = 1.0
    if rounding == "length":
        energy, projection = float(values.square().sum()), float((values * kept).sum())
        longer = energy / max(projection, energy / _MOST_LONGER) if energy else 1.0
    return float((values - kept * longer).square().sum())


def _flat(whole: torch.Tensor) -> _Integers:
    integers: _Integers = whole.reshape(-1).to(torch.int32).numpy()
    return integers.astype(np.int16) if _are_short(integers) else integers


def _are_short(integers: _Integers) -> bool:
    return bool(len(integers)) and integers.min() > -_SHORT and integers.max() < _SHORT


def _bits(integers: _Integers) -> float:
    wanted = np.int16 if _are_short(integers) else np.int32
    return 8.0 * len(encode_integers(integers.astype(wanted, copy=False)))
