"""Scores of single models: accuracy on digits, agreement of collision advisories, error of weights.

Owns what a number in the bench's tables means. Two zoos bring their own scores in ``evaluations.py``, which is loaded
from beside them. Knows no method.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from coding import LazyWeights, Weights
from torch import Tensor

_DEMO = Path(__file__).resolve().parent.parent / "demo"
if str(_DEMO) not in sys.path:
    sys.path.insert(0, str(_DEMO))

from evaluation import evaluate_all  # noqa: E402 - found only now

__all__ = ["acas_agreement", "digits_accuracy", "evaluations_at", "weight_error"]

_ACAS_INPUTS = 4096
_ACAS_FEATURES = 5

Score = Callable[[Weights, str], float]


def digits_accuracy(weights: Weights, task: str) -> float:
    """Accuracy on a digits task over all its 597 test images; nothing here was chosen by any of them."""
    return evaluate_all(weights, task)["value"]


@cache
def evaluations_at(shared: Path) -> ModuleType:
    """Load ``evaluations.py`` from the folder of other people's zoos."""
    spec = importlib.util.spec_from_file_location("zoo_evaluations", shared / "evaluations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def acas_agreement(members: Sequence[tuple[str, Path]], normalisation: Path) -> Score:
    """Share of random normalised states in which a network advises what the original does.

    Parameters
    ----------
    members : sequence of (str, Path)
        The originals.
    normalisation : Path
        JSON with, per task, ``mins``, ``maxs``, ``means`` and ``ranges`` of the five inputs.
    """
    limits = json.loads(normalisation.read_text())

    @cache
    def states(task: str) -> Tensor:
        bounds = {key: torch.tensor(value[:_ACAS_FEATURES]) for key, value in limits[task].items()}
        random = torch.Generator().manual_seed(0)
        part = torch.rand(_ACAS_INPUTS, _ACAS_FEATURES, generator=random)
        raw = bounds["mins"] + part * (bounds["maxs"] - bounds["mins"])
        return (raw - bounds["means"]) / bounds["ranges"]

    originals = dict(members)

    @cache
    def reference(task: str) -> Tensor:
        return _advisories(LazyWeights(originals[task]), states(task))

    def score(weights: Weights, task: str) -> float:
        return float((_advisories(weights, states(task)) == reference(task)).double().mean())

    return score


def _advisories(weights: Weights, states: Tensor) -> Tensor:
    """The advisory of lowest cost, per state."""
    x = states
    layers = sum(name.endswith(".weight") for name in weights)
    for layer in range(layers):
        x = torch.nn.functional.linear(x, weights[f"fc{layer}.weight"], weights[f"fc{layer}.bias"])
        if layer < layers - 1:
            x = x.relu()
    return x.argmin(1)


def weight_error(members: Sequence[tuple[str, Path]]) -> Score:
    """``||W - W'|| / ||W||`` over all weights of a model: no task score, and no substitute for one."""
    originals = dict(members)

    def score(weights: Weights, task: str) -> float:
        error = energy = 0.0
        for name, original in LazyWeights(originals[task]).items():
            error += float((weights[name].double() - original.double()).square().sum())
            energy += float(original.double().square().sum())
        return math.sqrt(error / energy)

    return score
