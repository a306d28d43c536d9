"""What one pass over the members finds out about a tensor, before any number is fitted.

Sees one tensor of all members at a time. Must not know which other tensors there are: ties are found by whoever has
all surveys.
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from uws_store.builder.products import FactorPlace
from uws_store.builder.sources import ZooFiles
from uws_store.builder.tiles import is_tiled, tile_extents
from uws_store.checkpoint import TensorInfo
from uws_store.dtypes import DTYPES, DType
from uws_store.tensor_bytes import bytes_of, digest_of

__all__ = ["SurveyJob", "Surveyed", "TensorSurvey", "is_statistic", "survey_tensor"]

_STATISTICS = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "moving_mean",
    "moving_variance",
    "moving_var",
)
_OUTLIER_RATIO = 100.0


def is_statistic(name: str) -> bool:
    """Whether a tensor is a normalisation statistic, which no lossy tier may touch: a variance must stay positive."""
    return name.rsplit(".", 1)[-1] in _STATISTICS


@dataclass(frozen=True, slots=True)
class TensorSurvey:
    """What one pass over the members found out about a tensor.

    Attributes
    ----------
    name, shape
        From the majority's signature.
    dtype : str
        The most frequent dtype.
    mode : {"coded", "shared", "private", "tied"}
        How it will be stored.
    tied_to : str or None
        For ``tied``.
    usable : tuple of str
        Tasks whose tensor takes part in the fit.
    energy, change_energy : float
        Mean over the usable members of the sum of squares, of the tensor and of its change about the mean, times the
        square of ``sensitivity``.
    place : FactorPlace or None
        For a factor of a product.
    sensitivity : float
        By how much its errors grow in the product.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    mode: str
    tied_to: str | None
    usable: tuple[str, ...]
    energy: float = 0.0
    change_energy: float = 0.0
    place: FactorPlace | None = None
    sensitivity: float = 1.0

    @property
    def matrix(self) -> tuple[int, int]:
        """The tensor as a matrix, as :attr:`uws_store.metadata.basis.TensorRecord.matrix` has it."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows, math.prod(self.shape) // rows if rows else 0


@dataclass(frozen=True, slots=True)
class SurveyJob:
    """One tensor to survey."""

    files: ZooFiles
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A survey, and what is needed to see it among the others.

    Attributes
    ----------
    survey : TensorSurvey
        Not yet held against the other tensors: its mode is not ``tied``.
    digests : dict of str to bytes
        Task to SHA-256 of the tensor's bytes and its dtype's name, where the shape is the majority's.
    outliers : tuple of str
        Tasks kept out of the fit for their norm.
    """

    survey: TensorSurvey
    digests: dict[str, bytes]
    outliers: tuple[str, ...]


def survey_tensor(job: SurveyJob) -> Surveyed:
    """Classify one tensor, reading it once from each member (twice when a member's norm is far beyond the others')."""
    files, name, shape = job.files, job.name, job.shape
    infos = {task: info for task in files if (info := files[task].tensors.get(name)) is not None}
    place = files.place(name)
    same_shape = [task for task in infos if files.holds(task, name, shape)]
    rows = shape[0] if len(shape) > 1 else 1
    if place is None and is_tiled((rows, math.prod(shape) // max(1, rows))):
        return _by_tiles(job, infos, same_shape)
    energies: dict[str, float] = {}
    digests: dict[str, bytes] = {}
    total: torch.Tensor | None = None
    for task, tensor in files.slices(name, same_shape):
        dtype = infos[task].dtype
        # No two factors are taken for equal: what they make is another matter than what they are.
        digests[task] = f"{task}/{name}".encode() if place else digest_of(tensor) + dtype.name.encode()
        if not dtype.is_float:
            continue
        values = tensor.to(torch.float64)
        energy = float(values.square().sum())
        # Squares of finite numbers can be beyond float64, and then only by a member nobody wants in a mean.
        if math.isfinite(energy) or bool(torch.isfinite(values).all()):
            if total is None:
                total = values.clone() if values is tensor else values
            else:
                total += values
            energies[task] = energy
    outliers = _outliers(energies)
    for task in outliers:
        del energies[task]
        total = None
    usable = tuple(energies)
    if total is None and usable:
        # Summed anew: an outlier cannot be taken back out of a sum that it has swallowed.
        total = functools.reduce(
            torch.add, (tensor.to(torch.float64) for _, tensor in files.slices(name, usable))
        )
    square = None if total is None else float((total / len(usable)).square().sum())
    return _judged(job, infos, energies, digests, outliers=outliers, mean_square=square)


def _judged(
    job: SurveyJob,
    infos: Mapping[str, TensorInfo],
    energies: Mapping[str, float],
    digests: dict[str, bytes],
    *,
    outliers: Sequence[str],
    mean_square: float | None,
) -> Surveyed:
    """Classify a tensor by what was read; ``mean_square`` is the mean's sum of squares over the usable members."""
    files, name, shape, usable = job.files, job.name, job.shape, tuple(energies)
    dtypes = [info.dtype.name for info in infos.values()]
    most = max(sorted(set(dtypes)), key=dtypes.count)
    everywhere = len(digests) == len(files)
    if everywhere and len(set(digests.values())) == 1:
        mode = "shared"
    elif _stays_private(name, shape, DTYPES[most]) or len(usable) < 2 or 2 * len(digests) < len(files):
        mode = "private"
    else:
        mode = "coded"
    if mean_square is None:
        return Surveyed(TensorSurvey(name, shape, most, mode, None, usable), digests, tuple(outliers))
    mean_energy = sum(energies.values()) / len(usable)
    change_energy = max(0.0, mean_energy - mean_square)
    survey = TensorSurvey(name, shape, most, mode, None, usable, mean_energy, change_energy)
    return Surveyed(_in_product(survey, files), digests, tuple(outliers))


def _by_tiles(job: SurveyJob, infos: Mapping[str, TensorInfo], tasks: Sequence[str]) -> Surveyed:
    """Survey a large tensor by tiles of its rows: each is read from every member, and then forgotten."""
    hashes = {task: hashlib.sha256() for task in tasks}
    energies = dict.fromkeys((task for task in tasks if infos[task].dtype.is_float), 0.0)
    square = _pass(job, tasks, hashes, energies)
    digests = {task: found.digest() + infos[task].dtype.name.encode() for task, found in hashes.items()}
    usable = {task: energy for task, energy in energies.items() if not math.isnan(energy)}
    outliers = _outliers(usable)
    for task in outliers:
        del usable[task]
    if len(usable) < len(energies) and usable:
        square = _pass(job, list(usable), {}, dict(usable))
    return _judged(job, infos, usable, digests, outliers=outliers, mean_square=square if usable else None)


def _pass(
    job: SurveyJob, tasks: Sequence[str], hashes: Mapping[str, hashlib._Hash], energies: dict[str, float]
) -> float:
    """Read all tiles of some members; add to their energies, NaN for one that is not finite, and square their mean."""
    rows = job.shape[0]
    square = 0.0
    for extent in tile_extents((rows, math.prod(job.shape[1:]))):
        total: torch.Tensor | None = None
        for task, tensor in job.files.tiles(job.name, tasks, *extent):
            if task in hashes:
                hashes[task].update(bytes_of(tensor))
            if task not in energies:
                continue
            values = tensor.to(torch.float64)
            energies[task] += float(values.square().sum())
            if not math.isfinite(energies[task]) and not bool(torch.isfinite(values).all()):
                energies[task] = math.nan
            if total is None:
                total = values.clone() if values is tensor else values
            else:
                total += values
        if total is not None:
            square += float((total / len(energies)).square().sum())
    return square


def _in_product(survey: TensorSurvey, files: ZooFiles) -> TensorSurvey:
    """See a factor by what it does to its product."""
    place = files.place(survey.name)
    if place is None or files.products is None or survey.mode != "coded":
        return survey
    sensitivity = files.products.sensitivity(files, survey.usable, survey.name)
    return replace(
        survey,
        energy=survey.energy * sensitivity**2,
        change_energy=survey.change_energy * sensitivity**2,
        place=place,
        sensitivity=sensitivity,
    )


def _stays_private(name: str, shape: tuple[int, ...], dtype: DType) -> bool:
    """Whether a tensor is none to code: a statistic, the ``alpha`` beside an adapter's factors, integers, nothing."""
    is_scaling = not shape and name.rsplit(".", 1)[-1] == "alpha"
    return is_statistic(name) or is_scaling or not dtype.is_float or 0 in shape


def _outliers(energies: Mapping[str, float]) -> list[str]:
    """Tasks whose norm is a hundred times the median: one such member would be all there is in a mean and a basis."""
    if len(energies) < 3:
        return []
    limit = _OUTLIER_RATIO**2 * statistics.median(energies.values())
    return [task for task, energy in energies.items() if energy > limit > 0.0]
