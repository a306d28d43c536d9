"""What lies between two stored models: bytes, the distance of every tensor, scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from uws_store.api.family import Family
from uws_store.api.opening import open_registry
from uws_store.errors import InvalidInputError
from uws_store.fidelity import ModelScore
from uws_store.metadata.model import relative_error
from uws_store.model import Tier, read_document
from uws_store.registry import ModelEntry, Registry

__all__ = ["DiffResult", "ScoreDifference", "TensorDifference", "diff"]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor in two models.

    Attributes
    ----------
    name : str
        The tensor.
    state : {"same", "changed", "added", "removed", "reshaped"}
        Same bits; other values; only in the second; only in the first; another shape or dtype.
    distance : float or None
        ``||A - B|| / ||A||`` (``||A - B||`` where A is 0), for tensors of one shape; None for others.
    """

    name: str
    state: str
    distance: float | None


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """One metric of two models.

    Attributes
    ----------
    metric : str
        Its name.
    first, second : float or None
        What the reconstruction scored; None where it was not measured.
    """

    metric: str
    first: float | None
    second: float | None


@dataclass(frozen=True, slots=True)
class DiffResult:
    """Two models beside each other.

    Attributes
    ----------
    first, second : ModelEntry
        The versions that were compared.
    tier : str
        The tier at which tensors were compared.
    same_objects : bool
        Whether both are the same stored model.
    shared_bytes : int
        Bytes of objects that both name (all of them, or none: a model is one folder).
    distance : float
        ``||A - B|| / ||A||`` over all tensors of one shape that hold real numbers.
    tensors : tuple of TensorDifference
        In the order of the first, then what only the second has.
    scores : tuple of ScoreDifference
        By metric.
    """

    first: ModelEntry
    second: ModelEntry
    tier: str
    same_objects: bool
    shared_bytes: int
    distance: float
    tensors: tuple[TensorDifference, ...]
    scores: tuple[ScoreDifference, ...]


def diff(
    first: tuple[str, str],
    second: tuple[str, str],
    *,
    tier: Tier | None = None,
    registry: str | Registry | None = None,
) -> DiffResult:
    """Compare two stored models, of one family or of two.

    Parameters
    ----------
    first, second : tuple of (str, str)
        Family and task; the task may be ``task@3`` or ``task@prod``.
    tier : {"compact", "exact"}, optional
        At which tensors are compared; ``exact`` where both have it, else ``compact``.
    registry : str or Registry, optional
        URL or path; by default ``UWS_STORE_REGISTRY``, else the user's data folder.

    Raises
    ------
    NotFoundError
        No such registry, family, task or version.
    FidelityError
        A model has not the tier.
    FormatError
        Stored bytes are damaged.
    """
    opened = open_registry(registry)
    families = Family(opened, first[0]), Family(opened, second[0])
    entries = families[0].resolve(first[1]), families[1].resolve(second[1])
    if tier == "mean":
        raise InvalidInputError("models are compared at tier compact or exact", kind="invalid-input/tier")
    used: Tier = tier or ("exact" if entries[0].exact and entries[1].exact else "compact")
    loaded = [
        family.load(entry.task, revision=entry.version, tier=used)
        for family, entry in zip(families, entries, strict=True)
    ]
    left, right = loaded
    tensors: list[TensorDifference] = []
    error_squares = squares = 0.0
    for name in left:
        if name not in right:
            tensors.append(TensorDifference(name, "removed", None))
            continue
        a, b = left[name], right[name]
        if a.shape != b.shape or a.is_complex() != b.is_complex():
            tensors.append(TensorDifference(name, "reshaped", None))
            continue
        error, own = _squares(a, b)
        if a.dtype.is_floating_point:
            error_squares, squares = error_squares + error, squares + own
        state = "reshaped" if a.dtype != b.dtype else "same" if _same_bits(a, b) else "changed"
        tensors.append(TensorDifference(name, state, relative_error(error, own)))
    tensors += [TensorDifference(name, "added", None) for name in right if name not in left]
    same = entries[0].family == entries[1].family and entries[0].digest == entries[1].digest
    return DiffResult(
        first=entries[0],
        second=entries[1],
        tier=used,
        same_objects=same,
        shared_bytes=entries[0].size_bytes if same else 0,
        distance=relative_error(error_squares, squares),
        tensors=tuple(tensors),
        scores=_scores(opened, entries),
    )


def _squares(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    wide = torch.complex128 if a.is_complex() else torch.float64
    first, second = a.to(wide), b.to(wide)
    return float(((first - second).abs() ** 2).sum()), float((first.abs() ** 2).sum())


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    first, second = (value.contiguous().reshape(-1) for value in (a, b))
    return not a.numel() or torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def _scores(registry: Registry, entries: tuple[ModelEntry, ModelEntry]) -> tuple[ScoreDifference, ...]:
    found: list[dict[str, float]] = []
    for entry in entries:
        document = read_document(registry.storage_of(entry), entry.prefix, digest=entry.digest)
        scores = [ModelScore.of(record) for record in document.scores]
        found.append({score.metric: score.reconstruction for score in reversed(scores)})
    metrics = dict.fromkeys([*found[0], *found[1]])
    return tuple(ScoreDifference(name, found[0].get(name), found[1].get(name)) for name in metrics)
