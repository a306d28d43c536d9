"""What the demo measures of a family: every byte, every model's score, every exact bit.

Owns all calls to uws-store and the baselines beside it. Knows nothing of training, and prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from evaluation import evaluate_all
from numcodecs.zstd import Zstd
from safetensors.torch import load_file
from torch import Tensor

import uws_store
from uws_store.api import ModelResult

ZSTD_LEVEL = 19

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Original:
    """A trained model as it was saved.

    Attributes
    ----------
    task : str
        Its name.
    path : Path
        The safetensors file.
    in_basis : bool
        Whether it takes part in making the basis; otherwise it is added afterwards.
    size_bytes, zstd_bytes : int
        The file, as it is and compressed by Zstandard at its level 19.
    accuracy : float
        Over all its test images, in [0, 1].
    """

    task: str
    path: Path
    in_basis: bool
    size_bytes: int
    zstd_bytes: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A model as it came back.

    Attributes
    ----------
    task : str
        Its name.
    in_basis : bool
        As in :class:`Original`.
    bits_per_parameter : float
        All bytes of the model but its private tensors, over its basis-coded parameters.
    size_bytes : int
        All its bytes, private tensors and metadata included.
    original, reconstructed, mean_only : float
        Accuracies over the same test images: as trained, as loaded, and with the zoo's mean for every shared tensor.
    load_s : float
        Seconds to load and reconstruct all of it.
    """

    task: str
    in_basis: bool
    bits_per_parameter: float
    size_bytes: int
    original: float
    reconstructed: float
    mean_only: float
    load_s: float


@dataclass(frozen=True, slots=True)
class ByteCount:
    """Where the bytes of a registry with one family are: every file under it is counted once.

    Attributes
    ----------
    basis, cores, private, residual : int
        What the models share; their coefficients; their private tensors; what makes them bit-identical.
    metadata : int
        The models' documents, the log, and everything else.
    """

    basis: int
    cores: int
    private: int
    residual: int
    metadata: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.basis + self.cores + self.private + self.residual + self.metadata


@dataclass(frozen=True, slots=True)
class Exactness:
    """How many tensors came back bit for bit.

    Attributes
    ----------
    models, tensors, identical : int
        Models that were loaded, tensors in them, and those whose every bit, type and shape is the original's.
    """

    models: int
    tensors: int
    identical: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One family, stored at one fidelity.

    Attributes
    ----------
    family : str
        Its name.
    bits : float
        What was asked for: mean bits per parameter over the basis's members.
    exact : bool
        Whether the residuals are stored too.
    coded_parameters : int
        Parameters per model that go through the basis.
    bytes : ByteCount
        What it takes.
    models : tuple of ModelResult
        What the store says of each model.
    build_s, add_s : float
        Seconds for building from the members, and for adding all the others.
    """

    family: str
    bits: float
    exact: bool
    coded_parameters: int
    bytes: ByteCount
    models: tuple[ModelResult, ...]
    build_s: float
    add_s: float


def weigh(paths: Sequence[tuple[Path, bool]], *, progress: Progress) -> tuple[Original, ...]:
    """Score and compress every original.

    Parameters
    ----------
    paths : sequence of (Path, bool)
        Files named after their tasks, and whether each takes part in the basis.
    progress : callable
        Called with what is being done, how many are done, and of how many.
    """
    codec = Zstd(level=ZSTD_LEVEL)
    found: list[Original] = []
    for path, in_basis in paths:
        data = path.read_bytes()
        accuracy = evaluate_all(load_file(path), path.stem)["value"]
        found.append(Original(path.stem, path, in_basis, len(data), len(codec.encode(data)), accuracy))
        progress("scoring the originals", len(found), len(paths))
    return tuple(found)


def store(
    originals: Sequence[Original],
    registry: Path,
    *,
    family: str,
    bits: float,
    exact: bool,
    progress: Progress,
) -> Stored:
    """Build a family from the members, add the others to it, and count what it takes.

    Parameters
    ----------
    originals : sequence of Original
        The members must lie in one folder of their own.
    registry : Path
        A folder for this family alone, so that all bytes in it are its own.
    family : str
        Its name.
    bits : float
        Bits per basis-coded parameter, mean over the members.
    exact : bool
        Also store the residuals.
    progress : callable
        See :func:`weigh`.
    """
    members = [original for original in originals if original.in_basis]
    others = [original for original in originals if not original.in_basis]
    started_s = time.perf_counter()
    built = uws_store.build(
        members[0].path.parent,
        family=family,
        registry=str(registry),
        bits=bits,
        exact=exact,
        progress=lambda phase, done, total, *_: progress(f"{family}: {phase}", done, total),
    )
    built_s = time.perf_counter()
    models = list(built.models)
    for index, original in enumerate(others):
        added = uws_store.add(original.path, family=family, registry=str(registry), exact=exact)
        models.append(added.model)
        progress(f"{family}: adding", index + 1, len(others))
    return Stored(
        family=family,
        bits=bits,
        exact=exact,
        coded_parameters=built.coded_parameters,
        bytes=count_bytes(registry),
        models=tuple(models),
        build_s=built_s - started_s,
        add_s=time.perf_counter() - built_s,
    )


def score(
    stored: Stored, originals: Sequence[Original], registry: Path, *, progress: Progress
) -> tuple[Scored, ...]:
    """Load every model of a family in its compact tier, and with the mean alone, and score both.

    Parameters
    ----------
    stored : Stored
        What :func:`store` returned.
    originals : sequence of Original
        Every model of the family.
    registry : Path
        Where the family lies.
    progress : callable
        See :func:`weigh`.
    """
    results = {result.task: result for result in stored.models}
    found: list[Scored] = []
    for original in originals:
        started_s = time.perf_counter()
        weights = _loaded(stored, original, registry, tier="compact")
        load_s = time.perf_counter() - started_s
        mean = _loaded(stored, original, registry, tier="mean")
        result = results[original.task]
        found.append(
            Scored(
                task=original.task,
                in_basis=original.in_basis,
                bits_per_parameter=result.bits_per_parameter,
                size_bytes=result.compact_bytes,
                original=original.accuracy,
                reconstructed=evaluate_all(weights, original.task)["value"],
                mean_only=evaluate_all(mean, original.task)["value"],
                load_s=load_s,
            )
        )
        progress(f"{stored.family}: loading and scoring", len(found), len(originals))
    return tuple(found)


def compare_bits(
    stored: Stored, originals: Sequence[Original], registry: Path, *, progress: Progress
) -> Exactness:
    """Load every model of a family in its exact tier and compare every tensor with the original's bits.

    Parameters
    ----------
    stored, originals, registry, progress
        As in :func:`score`.
    """
    tensors = identical = 0
    for index, original in enumerate(originals):
        expected = load_file(original.path)
        weights = _loaded(stored, original, registry, tier="exact")
        tensors += len(expected)
        identical += sum(name in weights and same_bits(weights[name], expected[name]) for name in expected)
        progress(f"{stored.family}: comparing bits", index + 1, len(originals))
    return Exactness(len(originals), tensors, identical)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits (so that NaN equals NaN and -0.0 is not 0.0)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [value.contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return torch.equal(*raw)


def count_bytes(registry: Path) -> ByteCount:
    """Count every file of a registry that holds one family."""
    counted = {"basis": 0, "cores": 0, "private": 0, "residual": 0, "metadata": 0}
    for path in registry.rglob("*"):
        if path.is_file():
            counted[_role(path.relative_to(registry).parts)] += path.stat().st_size
    return ByteCount(**counted)


def _role(parts: tuple[str, ...]) -> Literal["basis", "cores", "private", "residual", "metadata"]:
    match parts:
        case ("families", _, "basis", *_):
            return "basis"
        case ("families", _, "models", _, "core", "c", *_):
            return "cores"
        case ("families", _, "models", _, "private", "c", *_):
            return "private"
        case ("families", _, "models", _, array, "c", *_) if array.startswith("residual"):
            return "residual"
        case _:
            return "metadata"


def _loaded(
    stored: Stored, original: Original, registry: Path, *, tier: Literal["compact", "exact", "mean"]
) -> Mapping[str, Tensor]:
    weights = uws_store.load_model(stored.family, original.task, registry=str(registry), tier=tier)
    return weights.materialize()
