"""Adapters that PEFT saved, through the command line and back into ``PeftModel.from_pretrained``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import run_well

peft = pytest.importorskip("peft", reason="needs peft")
transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("_libraries")]


def base_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six adapters of ranks 2 and 4, one of them with rsLoRA and its own rank for a module."""
    folder = tmp_path_factory.mktemp("peft") / "zoo"
    for index in range(6):
        options: dict[str, Any] = {"r": 4 if index % 2 else 2, "lora_alpha": 8}
        if index == 5:
            options |= {"use_rslora": True, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"v_proj": 3}}
        config = peft.LoraConfig(
            target_modules=["q_proj", "v_proj", "down_proj"], base_model_name_or_path="org/llama", **options
        )
        torch.manual_seed(100 + index)
        model = peft.get_peft_model(base_model(), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        model.peft_config["default"].base_model_name_or_path = "org/llama"
        model.save_pretrained(folder / f"task-{index}")
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(base_model(), folder)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(12)[None]).logits
    return found


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.fixture(scope="module")
def place(zoo: Path) -> list[object]:
    place: list[object] = ["--registry", zoo.parent / "registry"]
    run_well("build", zoo, "--family", "llama-lora", "--rel-error", "0.02", "--exact", *place)
    return place


@pytest.mark.parametrize("task", ["task-0", "task-1", "task-5"])
@pytest.mark.parametrize(("tier", "check"), [("exact", torch.equal), ("compact", None)])
def test_peft_opens_an_exported_folder(
    task: str,
    tier: str,
    check: Callable[[Any, Any], bool] | None,
    zoo: Path,
    place: list[object],
    tmp_path: Path,
) -> None:
    run_well("export", f"llama-lora/{task}", "--tier", tier, "-o", tmp_path / "out", *place)
    assert config_of(tmp_path / "out") == config_of(zoo / task)
    found, wanted = logits(tmp_path / "out"), logits(zoo / task)
    if check is not None:
        assert check(found, wanted)
        return
    torch.manual_seed(0)
    with torch.inference_mode():
        plain = base_model()(torch.arange(12)[None]).logits
    assert not torch.equal(found, wanted)
    assert float((found - wanted).norm()) < 0.1 * float((wanted - plain).norm())


def test_an_adapter_that_peft_saved_is_added_and_shown(zoo: Path, place: list[object]) -> None:
    run_well("add", zoo / "task-5", "--family", "llama-lora", "--task", "again", *place)
    shown = run_well("show", "llama-lora/again", *place).stdout
    assert "org/llama" in shown
    assert "rank 1, 4" in shown
