"""Evaluations of small networks, and what a build gave for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from zoo_support import same_bits

import uws_store
from uws_store.api import BuildResult, ModelSummary

Weights = dict[str, torch.Tensor]
Evaluate = Callable[[Weights, str], object]

SHAPES = {"fc1.weight": (48, 32), "fc1.bias": (48,), "fc2.weight": (10, 48), "fc2.bias": (10,)}
EXAMPLES = 200


def _logits(weights: Weights, *, seed: int) -> torch.Tensor:
    inputs = torch.randn(EXAMPLES, 32, generator=torch.Generator().manual_seed(seed))
    hidden = torch.relu(inputs @ weights["fc1.weight"].T + weights["fc1.bias"])
    return hidden @ weights["fc2.weight"].T + weights["fc2.bias"]


def agreement_of(zoo: Path, *, seed: int, unknown: tuple[str, ...] = ()) -> Evaluate:
    """Share of random inputs on which a network answers as its original does, with per-example results."""

    def agreement(weights: Weights, task: str) -> object:
        if task in unknown:
            return None
        labels = _logits(load_file(zoo / f"{task}.safetensors"), seed=seed).argmax(1)
        correct = (_logits(weights, seed=seed).argmax(1) == labels).tolist()
        value = sum(correct) / EXAMPLES
        return {
            "metric": "agreement",
            "value": value,
            "higher_is_better": True,
            "n": EXAMPLES,
            "correct": correct,
        }

    return agreement


def distance_of(zoo: Path, *, seed: int) -> Evaluate:
    """Mean squared difference of outputs to the original's: lower is better, and 0 for the original."""

    def distance(weights: Weights, task: str) -> object:
        wanted = _logits(load_file(zoo / f"{task}.safetensors"), seed=seed)
        losses = (_logits(weights, seed=seed) - wanted).square().mean(1)
        return {
            "metric": "distance",
            "value": losses.mean(),
            "higher_is_better": False,
            "n": EXAMPLES,
            "per_example": losses,
        }

    return distance


def identity_of(zoo: Path, *tasks: str) -> Evaluate:
    """1 for the very bits of the original and 0 for anything else: what no lossy tier of these tasks can keep."""

    def identity(weights: Weights, task: str) -> object:
        original = load_file(zoo / f"{task}.safetensors")
        same = all(same_bits(weights[name], original[name]) for name in original)
        return {"metric": "same", "value": float(same or task not in tasks), "higher_is_better": True, "n": 1}

    return identity


def bits_of(result: BuildResult) -> float:
    return sum(model.bits_per_parameter for model in result.models) / len(result.models)


def bytes_of(result: BuildResult) -> int:
    return result.basis_bytes + sum(model.compact_bytes for model in result.models)


def value_of(answer: object) -> float:
    assert isinstance(answer, dict)
    return float(answer["value"])


def shown_model(registry: str, task: str) -> ModelSummary:
    return uws_store.show("f", task, registry=registry)[1][0]
