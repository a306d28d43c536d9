"""Zoos that are made for a bench: models that share a base and differ inside planted subspaces, of any size."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

__all__ = ["make_planted_zoo", "models_that_fit", "vit_shapes"]

_MOST_MODELS = 500
_USED_SHARE = 0.5
_BYTES = 4


def vit_shapes(*, width: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Give the tensors of a vision transformer; 768 and 12 are ViT-B."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (width, width)}
    for index in range(blocks):
        at = f"blocks.{index}"
        shapes |= {
            f"{at}.qkv.weight": (3 * width, width),
            f"{at}.proj.weight": (width, width),
            f"{at}.fc1.weight": (4 * width, width),
            f"{at}.fc2.weight": (width, 4 * width),
            f"{at}.norm.weight": (width,),
        }
    return shapes


def make_planted_zoo(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, models: int, rank: int, seed: int = 0
) -> int:
    """Write models that share a base and differ inside planted subspaces, and by a little noise.

    Returns
    -------
    int
        Bytes of all files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    base = {name: normal(*shape) for name, shape in shapes.items()}
    planted = {
        name: (normal(shape[0], rank), normal(rank, shape[1]))
        for name, shape in shapes.items()
        if len(shape) > 1
    }
    total = 0
    for index in range(models):
        weights = {}
        for name, value in base.items():
            change = 0.01 * normal(*value.shape)
            if name in planted:
                left, right = planted[name]
                change += 0.05 * (left @ normal(rank, rank) / rank) @ right
            weights[name] = value + change
        path = folder / f"task-{index:04d}.safetensors"
        save_file(weights, path)
        total += path.stat().st_size
    return total


def models_that_fit(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the models that half of a disk's free room holds: at least 4, at most 500."""
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    room = int(shutil.disk_usage(folder).free * _USED_SHARE)
    return max(4, min(_MOST_MODELS, room // (_BYTES * elements)))
