"""Families of transformers, really trained: built, loaded, exported and evaluated by the library itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import run, run_well
from library_support import (
    STEPS,
    TASKS,
    Batch,
    Forward,
    accuracy,
    image_batches,
    logits_of,
    make_zoo,
    series_batches,
    token_batches,
)
from torch import Tensor, nn
from zoo_support import same_bits, snapshot

from uws_store import load_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.usefixtures("_libraries")

VOCABULARY = 24


@dataclass(frozen=True)
class Kind:
    """A family: how its base is made, its tasks, how it is called and how it is saved."""

    make: Callable[[], nn.Module]
    batches: Callable[[], list[Batch]]
    forward: Forward
    dtype: torch.dtype = torch.float32
    shard: str = "5GB"
    steps: int = STEPS
    extra: Callable[[Path], None] = lambda _: None


def _of(architecture: str, config: str, **values: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        made: nn.Module = getattr(transformers, architecture)(getattr(transformers, config)(**values))
        return made

    return make


def _causal(module: nn.Module, inputs: Tensor, _: Tensor) -> Tensor:
    logits: Tensor = module(input_ids=inputs).logits
    return logits


def _encoder_decoder(module: nn.Module, inputs: Tensor, _: Tensor) -> Tensor:
    logits: Tensor = module(input_ids=inputs, decoder_input_ids=inputs).logits
    return logits


def _image(module: nn.Module, inputs: Tensor, _: Tensor) -> Tensor:
    logits: Tensor = module(pixel_values=inputs).logits
    return logits


def _series(module: nn.Module, inputs: Tensor, _: Tensor) -> Tensor:
    logits: Tensor = module(past_values=inputs).prediction_logits
    return logits


def _save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, as the library saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - comes with transformers

    words = {f"w{index}": index for index in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0").save_pretrained(folder)


def _save_processor(folder: Path) -> None:
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


KINDS = {
    "vit": Kind(
        _of(
            "ViTForImageClassification",
            "ViTConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=4,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        lambda: image_batches(16),
        _image,
        extra=_save_processor,
    ),
    # A tied head, weights in several files.
    "gpt2": Kind(
        _of(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=VOCABULARY,
            n_positions=16,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
        ),
        lambda: token_batches(VOCABULARY, 8),
        _causal,
        shard="40KB",
        extra=_save_tokenizer,
    ),
    # Rotary embeddings: buffers that no checkpoint has. Half the bytes.
    "llama": Kind(
        _of(
            "LlamaForCausalLM",
            "LlamaConfig",
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
        ),
        lambda: token_batches(VOCABULARY, 8),
        _causal,
        dtype=torch.bfloat16,
        extra=_save_tokenizer,
    ),
    # Flan-T5's shape: one embedding under four names, gated feed-forward layers.
    "t5": Kind(
        _of(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=True,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        ),
        lambda: token_batches(VOCABULARY, 8),
        _encoder_decoder,
    ),
    # BatchNorm: statistics and counters that no lossy tier may touch.
    "resnet": Kind(
        _of(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[1, 2],
            layer_type="bottleneck",
            num_labels=3,
        ),
        lambda: image_batches(32),
        _image,
    ),
    "patchtst": Kind(
        _of(
            "PatchTSTForClassification",
            "PatchTSTConfig",
            num_input_channels=1,
            num_targets=3,
            context_length=48,
            patch_length=8,
            patch_stride=8,
            num_hidden_layers=2,
            d_model=32,
            num_attention_heads=2,
            ffn_dim=64,
            use_cls_token=True,
            attention_dropout=0.0,
            ff_dropout=0.0,
            head_dropout=0.0,
            positional_dropout=0.0,
            path_dropout=0.0,
        ),
        lambda: series_batches(48),
        _series,
        steps=4 * STEPS,
    ),
}


@dataclass(frozen=True)
class Family:
    """A zoo that was trained, and the registry that it was built in."""

    name: str
    kind: Kind
    zoo: Path
    registry: Path
    batches: list[Batch]

    def source(self, index: int) -> nn.Module:
        return self.opened(self.zoo / f"task-{index}")

    def opened(self, folder: Path, **options: Any) -> nn.Module:
        """Open a folder as users do, by the class that its configuration names."""
        architecture = json.loads((folder / "config.json").read_bytes())["architectures"][0]
        module: nn.Module = getattr(transformers, architecture).from_pretrained(folder, **options)
        return module

    def logits(self, module: nn.Module, index: int) -> Tensor:
        return logits_of(module, self.batches[index], self.kind.forward)

    def accuracy(self, module: nn.Module, index: int) -> float:
        return accuracy(module, self.batches[index], self.kind.forward)

    def weights(self, index: int, **options: Any) -> Any:
        return load_model(self.name, f"task-{index}", registry=str(self.registry), **options)


@pytest.fixture(scope="module", params=list(KINDS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name, kind = request.param, KINDS[request.param]
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    batches = kind.batches()

    def save(module: nn.Module, path: Path, _: int) -> None:
        module.to(kind.dtype).save_pretrained(path, max_shard_size=kind.shard)  # type: ignore[operator]
        kind.extra(path)

    zoo = make_zoo(folder / "zoo", kind.make(), batches, kind.forward, save, steps=kind.steps)
    # Models this small would be stored bit-identical at every tier, and the mean would be no control.
    kept = ("--exact", "--exact-overhead", "1")
    run_well("build", zoo, "--family", name, *kept, "--registry", folder / "registry")
    return Family(name, kind, zoo, folder / "registry", batches)


def test_an_exact_export_is_the_same_model_to_the_library(family: Family, tmp_path: Path) -> None:
    for index in (0, TASKS - 1):
        target = tmp_path / str(index)
        run_well(
            *("export", family.name, f"task-{index}", "-o", target, "--tier", "exact"),
            *("--registry", family.registry),
        )
        source, back = family.source(index), family.opened(target)
        assert type(back) is type(source)
        assert torch.equal(family.logits(back, index), family.logits(source, index))
        original = snapshot(family.zoo / f"task-{index}")
        for name, data in snapshot(target).items():
            if name != "model.safetensors" or name in original:
                assert data == original[name], name
        assert {name for name in original if not name.startswith("model")} == {
            name for name in snapshot(target) if not name.startswith("model")
        }


def test_a_module_is_made_from_the_record_as_from_the_export(family: Family, tmp_path: Path) -> None:
    made = family.weights(1, tier="exact").module()
    source = family.source(1)
    assert type(made) is type(source)
    assert not made.training
    assert torch.equal(family.logits(made, 1), family.logits(source, 1))
    theirs = source.state_dict(keep_vars=True)
    for name, value in made.state_dict(keep_vars=True).items():
        assert same_bits(value.detach(), theirs[name].detach()), name
    ours = dict(made.named_parameters())
    # Without duplicates: ties are ties, and training one name trains the other.
    assert list(ours) == list(dict(source.named_parameters()))
    assert [value.requires_grad for value in ours.values()] == [
        value.requires_grad for value in source.parameters()
    ]
    buffers = dict(source.named_buffers())
    assert {name for name, _ in made.named_buffers()} == set(buffers)
    for name, value in made.named_buffers():
        assert same_bits(value, buffers[name]), name


def test_the_compact_tier_keeps_the_score(family: Family) -> None:
    lost, control = [], []
    for index in range(TASKS):
        original = family.accuracy(family.source(index), index)
        assert original > 0.9, "the tasks are learned, or nothing is shown"
        lost.append(original - family.accuracy(family.weights(index).module(), index))
        control.append(original - family.accuracy(family.weights(index, tier="mean").module(), index))
    assert max(lost) <= 0.02
    assert max(control) > 0.02, "the mean alone would do, and the score shows nothing"


def test_tokenizers_and_processors_come_back(family: Family, tmp_path: Path) -> None:
    names = {path.name for path in (family.zoo / "task-2").iterdir()}
    if not names & {"tokenizer.json", "preprocessor_config.json"}:
        pytest.skip("this family has none")
    run_well("export", family.name, "task-2", "-o", tmp_path / "back", "--registry", family.registry)
    if "tokenizer.json" in names:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
        assert tokenizer("w3 w7 w0")["input_ids"] == [3, 7, 0]
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back")
        assert processor.size["height"] == 16


def test_a_module_takes_a_dtype(family: Family) -> None:
    made = family.weights(0, tier="exact", dtype=torch.float16).module()
    # The library itself keeps some of T5's layers in float32.
    theirs = dict(family.opened(family.zoo / "task-0", dtype=torch.float16).named_parameters())
    for name, value in made.named_parameters():
        assert value.dtype == theirs[name].dtype, name
    assert torch.float16 in {value.dtype for value in made.parameters()}


def test_logits_are_compared_with_the_originals_without_labels(family: Family) -> None:
    named = ("verify", family.name, "--registry", family.registry, "--eval", "logits", "--json")
    if family.name in {"resnet", "patchtst"}:
        refused = run(*named)
        assert refused.error_kind == "invalid-input/data", "its configuration does not say what it takes"
        return
    found = run_well(*named).document
    scores = {(side["metric"], side["side"]): side["value"] for side in found["scores"]}
    assert scores["agreement", "original"] == 1.0
    assert scores["agreement", "compact"] > 0.9
    assert scores["KL divergence", "compact"] < scores["KL divergence", "mean"]
