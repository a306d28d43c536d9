"""The bench's zoo of adapters: low-rank changes to the demo's digits ViT, one per task, each trained in seconds.

Owns training and scoring. Ranks 4 and 8 alternate; every adapter has its own random A, as PEFT gives it, and B begins
at zero. The head of a task is trained with it, and kept out of every method's bytes.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DEMO = Path(__file__).resolve().parents[1] / "demo"
if str(DEMO) not in sys.path:
    sys.path.append(str(DEMO))

from digit_tasks import generator_of, scored_images, task_named  # noqa: E402
from vit import DigitsViT  # noqa: E402
from zoo import one_thread, train, train_base  # noqa: E402

__all__ = ["MODULES", "accuracy", "make_adapter_zoo"]

MODULES = tuple(
    f"blocks.{block}.{name}" for block in range(4) for name in ("attn.qkv", "attn.proj", "fc1", "fc2")
)
ALPHA = 2.0
"""Alpha over rank: one for all, so that products alone differ."""

_STEPS = 160
_RANKS = (4, 8)


class _LowRank(nn.Module):
    def __init__(self, inner: nn.Linear, rank: int, random: torch.Generator) -> None:
        super().__init__()
        self.inner = inner
        bound = math.sqrt(6 / inner.in_features) / math.sqrt(6)
        self.a = nn.Parameter((torch.rand(rank, inner.in_features, generator=random) * 2 - 1) * bound)
        self.b = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + ALPHA * (x @ self.a.T @ self.b.T)
        return out


def make_adapter_zoo(
    folder: Path, count: int, *, one_start: bool = False, on_done: Callable[[str], None] | None = None
) -> Path:
    """Train what is missing of a base and some adapters, and give the folder of adapters.

    Parameters
    ----------
    folder : Path
        Kept between runs.
    count : int
        Adapters.
    one_start : bool
        Give all the same random A, and rank 8.
    on_done : callable, optional
        Called with each task's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.safetensors"
    if not base.exists():
        train_base(base)
    adapters = folder / ("one-start" if one_start else "adapters")
    for index in range(count):
        name = f"task-{index:02d}"
        if not (adapters / name / "adapter_config.json").exists():
            rank = _RANKS[-1] if one_start else _RANKS[index % len(_RANKS)]
            _train(base, name, adapters / name, rank, start="all" if one_start else name)
        if on_done is not None:
            on_done(name)
    return adapters


def _train(base: Path, name: str, folder: Path, rank: int, *, start: str) -> None:
    task = task_named(name)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of("adapter-head", name).initial_seed())
        network = DigitsViT(task.n_classes)
        shared = {key: value for key, value in load_file(base).items() if not key.startswith("head.")}
        network.load_state_dict(shared, strict=False)
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(key.startswith("head."))
        random = generator_of("adapter-start", start)
        for module in MODULES:
            parent, _, leaf = module.rpartition(".")
            owner = network.get_submodule(parent)
            setattr(owner, leaf, _LowRank(getattr(owner, leaf), rank, random))
        train(network, task, steps=_STEPS)
    tensors = {
        f"base_model.model.head.{key}": value.detach() for key, value in network.head.named_parameters()
    }
    for module in MODULES:
        wrapped = network.get_submodule(module)
        assert isinstance(wrapped, _LowRank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = wrapped.a.detach().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = wrapped.b.detach().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": "digits-vit",
        "lora_alpha": ALPHA * rank,
        "modules_to_save": ["head"],
        "peft_type": "LORA",
        "r": rank,
        "target_modules": ["fc1", "fc2", "proj", "qkv"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def accuracy(
    base: dict[str, Tensor], products: dict[str, Tensor], head: dict[str, Tensor], name: str
) -> float:
    """Score an adapter on its task's 597 test images.

    Parameters
    ----------
    base : dict of str to Tensor
        The base model.
    products : dict of str to Tensor
        Per module, B A.
    head : dict of str to Tensor
        The task's own ``weight`` and ``bias``.
    name : str
        The task.
    """
    task = task_named(name)
    weights = copy.copy(base)
    for module, product in products.items():
        weights[f"{module}.weight"] = base[f"{module}.weight"] + ALPHA * product.to(torch.float32)
    weights |= {f"head.{key}": value for key, value in head.items()}
    network = DigitsViT(task.n_classes)
    network.load_state_dict(weights)
    images, labels = scored_images(task, "all")
    with torch.inference_mode():
        return float((network.eval()(images).argmax(1) == labels).to(torch.float64).mean())
