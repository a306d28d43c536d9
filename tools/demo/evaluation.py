"""The demo's evaluation, in the form that uws-store takes: ``evaluation.py:evaluate`` and ``evaluation.py:search``.

Owns the score of one model on its own task's test images. Knows nothing of training or of uws-store. A search for a
step uses :func:`search`, the report :func:`evaluate`: the two see different images.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

if str(Path(__file__).parent) not in sys.path:  # loaded by path: its neighbours are found beside it
    sys.path.insert(0, str(Path(__file__).parent))

from digit_tasks import Part, scored_images, task_named
from vit import DigitsViT


class Score(TypedDict):
    """What an evaluation returns.

    Attributes
    ----------
    metric : str
        Name of the number.
    value : float
        The number; an accuracy in [0, 1] here.
    higher_is_better : bool
        Its direction.
    n : int
        How many examples were scored.
    correct : list of bool
        Per example, in an order that is the same for every model of the task.
    """

    metric: str
    value: float
    higher_is_better: bool
    n: int
    correct: list[bool]


def evaluate(weights: Mapping[str, Tensor], task: str) -> Score:
    """Score a model on the reporting half of its test images.

    Parameters
    ----------
    weights : Mapping of str to Tensor
        A model's tensors, any floating-point dtype, on any one device.
    task : str
        The task's name, from which its classes and rotation follow.

    Returns
    -------
    Score
        The accuracy over 298 images.
    """
    return _score(weights, task, "report")


def search(weights: Mapping[str, Tensor], task: str) -> Score:
    """Score a model on the other half, 299 images, for choosing how coarsely to store it; see :func:`evaluate`."""
    return _score(weights, task, "search")


def evaluate_all(weights: Mapping[str, Tensor], task: str) -> Score:
    """Score a model on all 597 test images, where nothing was chosen by any of them; see :func:`evaluate`."""
    return _score(weights, task, "all")


@cache
def _network(n_classes: int) -> DigitsViT:
    with torch.device("meta"):
        return DigitsViT(n_classes).eval()


def _score(weights: Mapping[str, Tensor], task: str, part: Part) -> Score:
    described = task_named(task)
    images, labels = scored_images(described, part)
    network = _network(described.n_classes)
    # Every tensor by name, strictly: a missing one must not be replaced by anything.
    state = {name: weights[name].detach().to(torch.float32) for name in network.state_dict()}
    device = state["head.weight"].device
    with torch.inference_mode():
        logits = torch.func.functional_call(network, state, (images.to(device),), strict=True)
    correct: list[bool] = (logits.argmax(1).cpu() == labels).tolist()
    return Score(
        metric="accuracy",
        value=sum(correct) / len(correct),
        higher_is_better=True,
        n=len(correct),
        correct=correct,
    )
