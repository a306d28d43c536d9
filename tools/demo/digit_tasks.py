"""The demo's data: scikit-learn's digits, and the many small tasks that are made of them.

Owns what a task is (a grouping of the ten digits and a rotation, both drawn from the task's name alone), the split
into training and test images, and the order of random numbers. Knows nothing of networks or of uws-store.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

N_TRAIN = 1200
MEAN_GREY = 0.3053
STD_GREY = 0.3760
BASE_TASK = "base"

Part = Literal["search", "report", "all"]


@dataclass(frozen=True, slots=True)
class Task:
    """One way to look at the ten digits.

    Attributes
    ----------
    name : str
        The task's name, from which everything else follows.
    groups : tuple of int
        The class of each digit 0..9.
    rotation_deg : float
        By how much every image is turned counter-clockwise, in [-180, 180).
    """

    name: str
    groups: tuple[int, ...]
    rotation_deg: float

    @property
    def n_classes(self) -> int:
        """Number of classes, 2 to 5 (10 for the base)."""
        return max(self.groups) + 1


def generator_of(*words: object) -> torch.Generator:
    """Return a random generator whose seed is the SHA-256 of ``words``, the same on every machine."""
    digest = hashlib.sha256("\0".join(str(word) for word in words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def task_names(count: int) -> tuple[str, ...]:
    """Return the names of the first ``count`` tasks: ``task-00``, ``task-01``..."""
    return tuple(f"task-{index:02d}" for index in range(count))


@cache
def task_named(name: str) -> Task:
    """Return the task of that name: any name is one, and ``"base"`` is plain ten-way classification.

    Parameters
    ----------
    name : str
        Any text.

    Returns
    -------
    Task
        Its grouping has 2 to 5 classes, none of them empty.
    """
    if name == BASE_TASK:
        return Task(name, tuple(range(10)), 0.0)
    random = generator_of("digits-task", name)
    n_classes = int(torch.randint(2, 6, (), generator=random))
    groups = torch.empty(10, dtype=torch.int64)
    order = torch.randperm(10, generator=random)
    groups[order[:n_classes]] = torch.arange(n_classes)
    groups[order[n_classes:]] = torch.randint(n_classes, (10 - n_classes,), generator=random)
    rotation_deg = float(torch.rand((), generator=random, dtype=torch.float64)) * 360 - 180
    return Task(name, tuple(groups.tolist()), round(rotation_deg, 1))


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Return all 1,797 images, float32 in [0, 1], and their digits, in one fixed random order."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=generator_of("digits-split"))
    images = torch.from_numpy(data.images).to(torch.float32)[order] / 16
    return images, torch.from_numpy(data.target).to(torch.int64)[order]


def turned(images: Tensor, angles_deg: Tensor, shifts: Tensor | None = None) -> Tensor:
    """Rotate, and optionally shift, each image by its own amount, with bilinear interpolation.

    Parameters
    ----------
    images : Tensor
        ``(n, 8, 8)`` float32.
    angles_deg : Tensor
        ``(n,)`` float32, degrees.
    shifts : Tensor, optional
        ``(n, 2)`` float32, in half widths of an image.

    Returns
    -------
    Tensor
        ``(n, 8, 8)`` float32; what comes from outside is black.
    """
    radians = angles_deg * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    across, down = (torch.zeros_like(cos),) * 2 if shifts is None else shifts.unbind(1)
    rows = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = functional.affine_grid(rows, [len(images), 1, 8, 8], align_corners=False)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def normalised(images: Tensor) -> Tensor:
    """Bring images in [0, 1] to about zero mean and unit variance."""
    return (images - MEAN_GREY) / STD_GREY


def training_images() -> tuple[Tensor, Tensor]:
    """Return the 1,200 training images ``(n, 8, 8)`` float32 in [0, 1], unturned, and their digits ``(n,)``."""
    images, digits = _digits()
    return images[:N_TRAIN], digits[:N_TRAIN]


@cache
def scored_images(task: Task, part: Part) -> tuple[Tensor, Tensor]:
    """Return a task's test images, ready for the network, and their classes.

    Parameters
    ----------
    task : Task
        The task.
    part : {"search", "report", "all"}
        One half of the 597 test images for choosing, the other for reporting, or both.

    Returns
    -------
    images : Tensor
        ``(n, 8, 8)`` float32.
    labels : Tensor
        ``(n,)`` int64.
    """
    images, digits = _digits()
    start = {"search": N_TRAIN, "report": N_TRAIN + 1, "all": N_TRAIN}[part]
    chosen = slice(start, None, 1 if part == "all" else 2)
    angles = torch.full((len(digits[chosen]),), task.rotation_deg)
    return normalised(turned(images[chosen], angles)), torch.tensor(task.groups)[digits[chosen]]
