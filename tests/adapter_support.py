"""Small zoos of adapters for tests, in PEFT's layout: products that share subspaces and differ in rank and gauge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]

MODULES: Mapping[str, tuple[int, int]] = {
    "layers.0.q_proj": (48, 32),
    "layers.0.v_proj": (32, 32),
    "layers.1.q_proj": (48, 32),
}
BASE = "org/tiny-base"


def config_of(rank: int, **changes: Any) -> dict[str, Any]:
    """An ``adapter_config.json`` as PEFT writes it, in short."""
    return {
        "base_model_name_or_path": BASE,
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": False,
        "inference_mode": True,
    } | changes


def name_of(module: str, letter: str) -> str:
    return f"base_model.model.{module}.lora_{letter}.weight"


def write_adapter(folder: Path, weights: Weights, config: Mapping[str, Any] | str) -> Path:
    """Write a folder as ``save_pretrained`` does."""
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = config if isinstance(config, str) else json.dumps(dict(config), indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder


def make_adapters(
    folder: Path,
    *,
    models: int = 8,
    ranks: tuple[int, ...] = (4, 8),
    dtype: torch.dtype = torch.float32,
    one_start: bool = False,
    change: Callable[[int, Weights], None] | None = None,
    seed: int = 0,
) -> Path:
    """Write ``task-00/``...: products in shared subspaces, each behind a gauge of its own.

    With ``one_start`` all have one A, moved a little, and any B.
    """
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    spaces = {name: (normal(m, 10), normal(10, n)) for name, (m, n) in MODULES.items()}
    starts = {name: normal(max(ranks), n) for name, (_, n) in MODULES.items()}
    for index in range(models):
        rank = ranks[index % len(ranks)]
        weights: Weights = {}
        for module, (m, _) in MODULES.items():
            left, right = spaces[module]
            gauge = torch.linalg.qr(normal(rank, rank))[0] * 3.0
            b = left @ normal(10, rank) @ gauge * 0.02
            a = torch.linalg.solve(gauge, normal(rank, 10)) @ right * 0.05
            if one_start:
                a = starts[module][:rank] + 0.01 * normal(rank, right.shape[1])
                b = 0.02 * normal(m, rank)
            weights[name_of(module, "A")] = a.to(dtype).contiguous()
            weights[name_of(module, "B")] = b.to(dtype).contiguous()
        if change is not None:
            change(index, weights)
        write_adapter(folder / f"task-{index:02d}", weights, config_of(rank))
    return folder


def products(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``B A`` of every module, float64."""
    return {
        module: weights[name_of(module, "B")].to(torch.float64)
        @ weights[name_of(module, "A")].to(torch.float64)
        for module in MODULES
    }


def relative_error(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """Of all products together."""
    first, second = products(found), products(wanted)
    error = sum(float((first[name] - second[name]).square().sum()) for name in MODULES)
    return math.sqrt(error / sum(float(value.square().sum()) for value in second.values()))
