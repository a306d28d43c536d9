"""Examples for the built-in evaluations: read from a file, or drawn where a model says what it takes.

Owns what a data file holds. Never unpickles. Knows nothing about scores and stored models.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from uws_store.checkpoint import open_checkpoint
from uws_store.errors import InvalidInputError, NotFoundError

__all__ = ["BATCH", "Examples", "digest_of_file", "draw_examples", "find_examples"]

BATCH = 64
"""Examples in one forward pass."""

_KIND = "invalid-input/data"
_LABELS = "labels"
_POSITIONAL = "inputs"
_SUFFIXES = (".safetensors", ".npz")
_DRAWN = 64
# What numpy and zipfile raise on files that are damaged, encrypted, of another kind, or lie about their shapes.
_NPZ_ERRORS = (
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zlib.error,
)
_DRAWN_TOKENS = 32
_NAME_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs of a model, and labels where there are any.

    Attributes
    ----------
    name : str
        Where they come from, with a digest: for records.
    inputs : dict of str to torch.Tensor
        Each (n, ...). A single one named ``inputs`` is passed by position, others by their names.
    labels : torch.Tensor or None
        int64, (n,) or (n, positions); -100 marks positions that do not count, as in torch's cross entropy.
    """

    name: str
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batches(self) -> Iterator[tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor], slice]]:
        """Yield positional and keyword arguments of each forward pass, and the examples they are."""
        for start in range(0, len(self), BATCH):
            part = slice(start, min(start + BATCH, len(self)))
            named = {name: value[part] for name, value in self.inputs.items()}
            yield ((named[_POSITIONAL],), {}, part) if set(named) == {_POSITIONAL} else ((), named, part)


def find_examples(path: Path, task: str, *, labelled: bool) -> Examples | None:
    """Read the examples for a task.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` or ``.npz`` file, the same for all tasks; or a folder with one such file per task, named
        after it. Every array but ``labels`` is an input of the model's ``forward``.
    task : str
        The task.
    labelled : bool
        Whether labels are needed.

    Returns
    -------
    Examples or None
        None when the folder has no file for the task.

    Raises
    ------
    NotFoundError
        When there is no such file or folder (``not-found/data``).
    InvalidInputError
        When the file is not as above (``invalid-input/data``).
    """
    if path.is_dir():
        found = [path / f"{task}{suffix}" for suffix in _SUFFIXES if (path / f"{task}{suffix}").is_file()]
        if not found:
            return None
        path = found[0]
    if not path.is_file():
        raise NotFoundError(
            f"{path} is no file and no folder of examples; give a .safetensors or .npz file, or a folder with one per task",
            kind="not-found/data",
        )
    arrays = _read(path)
    labels = arrays.pop(_LABELS, None)
    if labelled and labels is None:
        raise InvalidInputError(
            f"{path} has no array 'labels', only {', '.join(sorted(arrays)) or 'nothing'}; accuracy needs them",
            kind=_KIND,
        )
    if not arrays:
        raise InvalidInputError(
            f"{path} has no inputs; name one array 'inputs', or each as forward() calls it", kind=_KIND
        )
    lengths = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
    if labels is not None:
        lengths[_LABELS] = len(labels) if labels.ndim else 0
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise InvalidInputError(
            f"{path}: every array has one entry per example, at least one; found {lengths}", kind=_KIND
        )
    if labels is not None and (labels.is_floating_point() or labels.is_complex()):
        raise InvalidInputError(f"{path}: labels are whole numbers, not {labels.dtype}", kind=_KIND)
    name = f"{path.name} sha256:{digest_of_file(path)}"
    return Examples(name, arrays, None if labels is None else labels.to(torch.int64))


def digest_of_file(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256, which tell versions of it apart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:_NAME_DIGITS]


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npz":
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                return {name: torch.from_numpy(np.ascontiguousarray(held[name])) for name in held.files}
        except (*_NPZ_ERRORS, BadZipFile) as error:
            raise InvalidInputError(f"{path} is not read as .npz: {error}", kind=_KIND) from error
    if path.suffix == ".safetensors":
        with open_checkpoint(path) as held:
            return {name: held.read(name) for name in held.tensors}
    raise InvalidInputError(f"{path}: examples are read from .safetensors and .npz files", kind=_KIND)


def draw_examples(module: torch.nn.Module, *, seed: int = 0) -> Examples:
    """Draw random inputs for a model of the transformers or timm library, by its configuration.

    Token ids are uniform over the vocabulary, images standard normal; 64 examples, the same for the same seed.

    Raises
    ------
    InvalidInputError
        When the module does not say what it takes (``invalid-input/data``).
    """
    source = torch.Generator().manual_seed(seed)
    config = getattr(module, "config", None)
    main = getattr(module, "main_input_name", None)
    image = getattr(config, "image_size", None)
    if main == "pixel_values" and image is not None:
        shape = (int(getattr(config, "num_channels", 3)), *_pair(image))
        return _drawn({main: torch.randn(_DRAWN, *shape, generator=source)}, seed)
    vocabulary = getattr(config, "vocab_size", None)
    if main == "input_ids" and isinstance(vocabulary, int) and vocabulary > 0:
        longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        tokens = min(_DRAWN_TOKENS, longest) if isinstance(longest, int) else _DRAWN_TOKENS
        inputs = {main: torch.randint(vocabulary, (_DRAWN, tokens), generator=source)}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.randint(vocabulary, (_DRAWN, tokens), generator=source)
        return _drawn(inputs, seed)
    timm = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    size = getattr(timm, "input_size", None) or (timm.get("input_size") if isinstance(timm, dict) else None)
    if size:
        return _drawn({_POSITIONAL: torch.randn(_DRAWN, *size, generator=source)}, seed)
    raise InvalidInputError(
        f"{type(module).__name__} does not say what inputs it takes; give some with --data", kind=_KIND
    )


def _drawn(inputs: dict[str, torch.Tensor], seed: int) -> Examples:
    return Examples(f"random inputs, seed {seed}", inputs, None)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
