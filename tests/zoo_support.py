"""Small zoos for tests: networks that share a base and differ by a low-rank change and a little noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]


def make_zoo(
    folder: Path,
    *,
    models: int = 8,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dtype: torch.dtype = torch.float32,
    change: Callable[[int, Weights], None] | None = None,
    seed: int = 0,
) -> Path:
    """Write ``task-00.safetensors``... whose weights are a base plus rank-4 changes in shared subspaces."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = shapes or {"fc1.weight": (24, 16), "fc1.bias": (24,), "fc2.weight": (10, 24), "fc2.bias": (10,)}
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    base = {name: normal(*shape) for name, shape in shapes.items()}
    spaces = {
        name: (normal(shape[0], 4), normal(4, int(torch.tensor(shape[1:]).prod())))
        for name, shape in shapes.items()
        if len(shape) > 1
    }
    for index in range(models):
        weights: Weights = {}
        for name, shape in shapes.items():
            value = base[name] + 0.01 * normal(*shape)
            if name in spaces:
                left, right = spaces[name]
                value = value + 0.1 * (left @ torch.diag(normal(4)) @ right).reshape(shape)
            weights[name] = value.to(dtype).contiguous()
        if change is not None:
            change(index, weights)
        save_file(weights, folder / f"task-{index:02d}.safetensors")
    return folder


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal in dtype, shape and every bit."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    a, b = first.contiguous().reshape(-1), second.contiguous().reshape(-1)
    return not a.numel() or bool(torch.equal(a.view(torch.uint8), b.view(torch.uint8)))


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
