"""The text zoo's data: sentence classification tasks from plain files, and BERT's tokens for them.

Owns the tasks, the split into 2,000 training and 400 test sentences, and the uncased WordPiece tokenizer (Devlin et
al. 2019, arXiv:1810.04805). Knows no network.
"""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["HELD_OUT", "LENGTH", "TASKS", "Split", "Tokenizer", "seed_of", "split_of"]

LENGTH = 32
"""Tokens of a sentence, at most."""

TRAIN = 2000
TEST = 400
_LONGEST_WORD = 100

Label = Callable[[int], int | None]
"""From a file's label to the task's class; None leaves the example out."""


@dataclass(frozen=True, slots=True)
class TextTask:
    """One way to look at a text set.

    Attributes
    ----------
    train, test : tuple of str
        Files; without test files, test sentences are kept out of the training files.
    classes : int
        Number of classes.
    label : callable
        From the file's label to the task's.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: int
    label: Label


@dataclass(frozen=True, slots=True)
class Split:
    """A task's sentences, tokenized.

    Attributes
    ----------
    train_tokens, test_tokens : Tensor
        int64, (n, LENGTH), padded with 0.
    train_labels, test_labels : Tensor
        int64, (n,).
    classes : int
        Number of classes.
    """

    train_tokens: Tensor
    train_labels: Tensor
    test_tokens: Tensor
    test_labels: Tensor
    classes: int


def _as_is(label: int) -> int | None:
    return label


def _pair(low: int, high: int) -> Label:
    return {low: 0, high: 1}.get


_FINE = ("stsa.fine.train",), ("stsa.fine.test",)
_AG = ("ag_news_test/test.csv",), ()

TASKS: dict[str, TextTask] = {
    "mr": TextTask(("rt-polarity.all",), (), 2, _as_is),
    "subj": TextTask(("subj.all",), (), 2, _as_is),
    "sst-2": TextTask(("stsa.binary.train",), ("stsa.binary.test",), 2, _as_is),
    "sst-5": TextTask(*_FINE, 5, _as_is),
    "sst-strong": TextTask(*_FINE, 2, {0: 1, 1: 0, 3: 0, 4: 1}.get),
    "sst-neutral": TextTask(*_FINE, 2, lambda label: int(label == 2)),
    "ag": TextTask(*_AG, 4, _as_is),
    **{
        f"ag-{low}-{high}": TextTask(*_AG, 2, _pair(low, high))
        for low, high in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    },
    "cr": TextTask(("custrev.all",), (), 2, _as_is),
    "mpqa": TextTask(("mpqa.all",), (), 2, _as_is),
    "trec": TextTask(("TREC.train.all",), ("TREC.test.all",), 6, _as_is),
}
"""Tasks by name."""

HELD_OUT = ("ag-2-3", "cr", "mpqa", "trec")
"""Tasks that take no part in the basis: three of them are of domains that it has not seen at all."""


class Tokenizer:
    """BERT's uncased tokenizer.

    Parameters
    ----------
    vocabulary : Path
        One token per line.
    """

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").split("\n")
        self._ids = {token: index for index, token in enumerate(lines) if token}

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Tokenize: int64 (n, LENGTH), [CLS] first, [SEP] last, then zeros."""
        out = torch.zeros(len(sentences), LENGTH, dtype=torch.int64)
        for row, sentence in enumerate(sentences):
            pieces = [piece for word in _words(sentence) for piece in self._pieces(word)]
            ids = [self._ids["[CLS]"], *pieces[: LENGTH - 2], self._ids["[SEP]"]]
            out[row, : len(ids)] = torch.tensor(ids)
        return out

    def _pieces(self, word: str) -> list[int]:
        """The longest known prefix, again and again."""
        unknown = [self._ids["[UNK]"]]
        if len(word) > _LONGEST_WORD:
            return unknown
        found: list[int] = []
        start = 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = word[start:stop] if start == 0 else f"##{word[start:stop]}"
                if piece in self._ids:
                    found.append(self._ids[piece])
                    start = stop
                    break
            else:
                return unknown
        return found


def _words(sentence: str) -> list[str]:
    """Lower case without accents, split at blanks and around every mark of punctuation."""
    plain = unicodedata.normalize("NFD", sentence.lower())
    spaced = []
    for character in plain:
        category = unicodedata.category(character)
        if category == "Mn" or (category in {"Cc", "Cf"} and character not in "\t\n\r"):
            continue
        is_symbol = character.isascii() and not character.isalnum() and not character.isspace()
        spaced.append(f" {character} " if is_symbol or category.startswith("P") else character)
    return "".join(spaced).split()


def seed_of(*words: str) -> int:
    """A seed that follows from words, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:7], "big")


@cache
def split_of(name: str, folder: Path, tokenizer: Tokenizer) -> Split:
    """Read, draw and tokenize a task's sentences; the draw follows from the task's name.

    Parameters
    ----------
    name : str
        One of ``TASKS``.
    folder : Path
        Where the text sets lie.
    tokenizer : Tokenizer
        For its ids.
    """
    task = TASKS[name]
    drawn = [_drawn(name, part, folder) for part in (task.train, task.test) if part]
    train = drawn[0][:TRAIN]
    test = drawn[1][:TEST] if len(drawn) > 1 else drawn[0][TRAIN : TRAIN + TEST]
    return Split(
        train_tokens=tokenizer.encode([text for _, text in train]),
        train_labels=torch.tensor([label for label, _ in train]),
        test_tokens=tokenizer.encode([text for _, text in test]),
        test_labels=torch.tensor([label for label, _ in test]),
        classes=task.classes,
    )


def _drawn(name: str, files: Sequence[str], folder: Path) -> list[tuple[int, str]]:
    """All of a task's examples in some files, in the task's own random order."""
    found: list[tuple[int, str]] = []
    for file in files:
        for raw, text in _examples(folder / file):
            label = TASKS[name].label(raw)
            if label is not None:
                found.append((label, text))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed_of("draw", name)))
    return [found[index] for index in order.tolist()]


@cache
def _examples(path: Path) -> tuple[tuple[int, str], ...]:
    """Labels from 0, and texts; the sets are in several encodings."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = [line for line in text.split("\n") if line.strip()]
    if path.suffix == ".csv":
        return tuple((int(row[0]) - 1, f"{row[1]} . {row[2]}") for row in csv.reader(lines))
    return tuple((int(label), words) for label, _, words in (line.partition(" ") for line in lines))
