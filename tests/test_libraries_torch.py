"""Networks of plain torch and of timm, really trained: bare files, and folders as timm's hub has them."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import run_well
from library_support import TASKS, accuracy, image_batches, logits_of, make_zoo, series_batches
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uws_store import load_model
from uws_store.errors import IncompatibleError

pytestmark = pytest.mark.usefixtures("_libraries")

timm: Any = None
with contextlib.suppress(ImportError):  # it needs torchvision, which not every torch has
    timm = importlib.import_module("timm")


class Residual(nn.Module):
    """A bottleneck of ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width // 4, 1, bias=False),
            nn.BatchNorm2d(width // 4),
            nn.ReLU(),
            nn.Conv2d(width // 4, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images + self.body(images))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        Residual(32),
        Residual(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


class Recurrent(nn.Module):
    """A series encoder: convolution, GRU, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv1d(1, 16, 5, padding=2)
        self.unit = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, series: Tensor) -> Tensor:
        filtered = torch.relu(self.filter(series.transpose(1, 2))).transpose(1, 2)
        made: Tensor = self.head(self.unit(filtered)[0].mean(1))
        return made


def plain(module: nn.Module, inputs: Tensor, _: Tensor) -> Tensor:
    logits: Tensor = module(inputs)
    return logits


@pytest.mark.parametrize(
    ("make", "batches", "steps"),
    [(resnet, lambda: image_batches(16), 30), (Recurrent, lambda: series_batches(48), 60)],
    ids=["resnet", "gru"],
)
def test_bare_files_come_back_as_bare_files(
    tmp_path: Path, make: Callable[[], nn.Module], batches: Callable[[], Any], steps: int
) -> None:
    torch.manual_seed(0)
    tasks = batches()

    def save(module: nn.Module, path: Path, index: int) -> None:
        path.parent.mkdir(exist_ok=True)
        if index % 2:
            torch.save({"state_dict": module.state_dict()}, path.with_suffix(".pt"))
        else:
            save_file(module.state_dict(), path.with_suffix(".safetensors"))

    zoo = make_zoo(tmp_path / "zoo", make(), tasks, plain, save, steps=steps)
    registry = tmp_path / "registry"
    run_well("build", zoo, "--family", "f", "--exact", "--registry", registry)
    lost, control = [], []
    for index in range(TASKS):
        target = tmp_path / f"{index}.safetensors"
        task = f"task-{index}"
        run_well("export", "f", task, "-o", target, "--tier", "exact", "--registry", registry)
        source, back = make(), make()
        files = [path for path in zoo.iterdir() if path.stem == task]
        saved = (
            load_file(files[0]) if not index % 2 else torch.load(files[0], weights_only=True)["state_dict"]
        )
        source.load_state_dict(saved)
        back.load_state_dict(load_file(target))
        assert torch.equal(logits_of(back, tasks[index], plain), logits_of(source, tasks[index], plain))
        scores = {
            tier: accuracy(
                load_model("f", task, registry=str(registry), tier=tier, into=make()), tasks[index], plain
            )
            for tier in ("compact", "mean")
        }
        original = accuracy(source, tasks[index], plain)
        assert original > 0.9
        lost.append(original - scores["compact"])
        control.append(original - scores["mean"])
        compact = load_model("f", task, registry=str(registry))
        for name, value in saved.items():
            # Statistics and counters are kept as they are at every tier.
            if name.rsplit(".", 1)[-1] in {"running_mean", "running_var", "num_batches_tracked"}:
                assert torch.equal(compact[name], value), name
    assert max(lost) <= 0.02
    # With each member's own statistics around the mean's weights, the ResNet classifies nearly as well.
    assert max(control) > 0.02 or make is resnet
    with pytest.raises(IncompatibleError) as caught:
        load_model("f", "task-0", registry=str(registry)).module()
    assert caught.value.kind == "incompatible/no-config"


TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2},
        32,
    ),
    "resnet": ("resnet10t", {"channels": [16, 16, 32, 32]}, 32),
}


@pytest.mark.skipif(timm is None, reason="timm cannot be imported (it needs torchvision)")
@pytest.mark.parametrize("kind", list(TIMM))
def test_timm_opens_the_export(tmp_path: Path, kind: str) -> None:
    architecture, arguments, size = TIMM[kind]
    torch.manual_seed(0)
    tasks = image_batches(size)

    def make(**more: object) -> nn.Module:
        made: nn.Module = timm.create_model(
            architecture, pretrained=False, num_classes=3, **arguments, **more
        )
        return made

    def save(module: nn.Module, path: Path, _: int) -> None:
        path.mkdir(parents=True)
        save_file(module.state_dict(), path / "model.safetensors")
        # What a configuration must not bring about: the file is not there, and nothing looks for it.
        given = {**arguments, "checkpoint_path": "/nowhere.pt", "pretrained": True}
        config = {"architecture": architecture, "num_classes": 3, "model_args": given}
        (path / "config.json").write_text(json.dumps(config))

    zoo = make_zoo(tmp_path / "zoo", make(), tasks, plain, save, steps=30)
    registry = tmp_path / "registry"
    run_well("build", zoo, "--family", "t", "--exact", "--registry", registry)
    for index in (0, TASKS - 1):
        task, target = f"task-{index}", tmp_path / f"back-{index}"
        run_well("export", "t", task, "-o", target, "--tier", "exact", "--registry", registry)
        source, back = (
            make(checkpoint_path=str(path / "model.safetensors")) for path in (zoo / task, target)
        )
        built = load_model("t", task, registry=str(registry), tier="exact").module()
        expected = logits_of(source, tasks[index], plain)
        assert torch.equal(logits_of(back, tasks[index], plain), expected)
        assert torch.equal(logits_of(built, tasks[index], plain), expected)
        compact = load_model("t", task, registry=str(registry)).module()
        assert accuracy(compact, tasks[index], plain) >= accuracy(source, tasks[index], plain) - 0.02
