"""Small networks of the libraries that people have, really trained, each zoo from one base: seconds for all of them.

A zoo is a base that is fine-tuned once for each task; tasks differ in what they ask, so that a score means something.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

TASKS = 4
STEPS = 30
BATCH = 64
Batch = tuple[Tensor, Tensor]
Forward = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a module, inputs and targets to logits (..., classes)."""


def train(module: nn.Module, batch: Batch, forward: Forward, *, steps: int = STEPS) -> None:
    """Fit a module to one batch, which is all of its task."""
    inputs, targets = batch
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(steps):
        logits = forward(module, inputs, targets)
        loss = functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    module.eval()


def accuracy(module: nn.Module, batch: Batch, forward: Forward) -> float:
    inputs, targets = batch
    module.eval()
    with torch.no_grad():
        return float((forward(module, inputs, targets).argmax(-1) == targets).float().mean())


def logits_of(module: nn.Module, batch: Batch, forward: Forward) -> Tensor:
    module.eval()
    with torch.no_grad():
        return forward(module, *batch)


def make_zoo(
    folder: Path,
    base: nn.Module,
    batches: list[Batch],
    forward: Forward,
    save: Callable[[nn.Module, Path, int], None],
    *,
    steps: int = STEPS,
) -> Path:
    """Train a base on every task's data a little, then one copy of it for each task, and save these."""
    mixed = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    train(base, mixed, forward, steps=steps // 2)
    for index, batch in enumerate(batches):
        tuned = copy.deepcopy(base)
        train(tuned, batch, forward, steps=steps)
        save(tuned, folder / f"task-{index}", index)
    return folder


def token_batches(vocabulary: int, length: int, *, seed: int = 0) -> list[Batch]:
    """For each task, sequences whose next token is a function of the last, another function for every task."""
    source = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(TASKS):
        successor = torch.randperm(vocabulary, generator=source)
        tokens = [torch.randint(0, vocabulary, (BATCH,), generator=source)]
        for _ in range(length):
            tokens.append(successor[tokens[-1]])
        sequence = torch.stack(tokens, 1)
        batches.append((sequence[:, :-1], sequence[:, 1:]))
    return batches


def image_batches(size: int, *, classes: int = 3, seed: int = 0) -> list[Batch]:
    """For each task, noisy images of its own prototypes."""
    source = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(TASKS):
        prototypes = torch.randn(classes, 3, size, size, generator=source)
        labels = torch.randint(0, classes, (BATCH,), generator=source)
        noise = torch.randn(BATCH, 3, size, size, generator=source)
        batches.append((prototypes[labels] + noise, labels))
    return batches


def series_batches(length: int, *, classes: int = 3, seed: int = 0) -> list[Batch]:
    """For each task, noisy waves of its own frequencies, (batch, length, 1)."""
    source = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / length
    batches = []
    for index in range(TASKS):
        labels = torch.randint(0, classes, (BATCH,), generator=source)
        frequency = 2.0 + 3.0 * labels + index
        phase = 0.25 * torch.rand(BATCH, 1, generator=source)
        waves = torch.sin(2 * torch.pi * (frequency[:, None] * time + phase))
        batches.append(((waves + 0.1 * torch.randn(BATCH, length, generator=source))[..., None], labels))
    return batches
