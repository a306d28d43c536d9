"""The rate-distortion bench: every method on the held-out models of a zoo, all bytes counted, all models scored.

Owns the measuring. Every method sees the same training models, codes the same held-out models, keeps the same private
tensors, and is charged the same container as the store's own models need. Prints nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from coding import LazyWeights, Method, Training, Weights
from low_rank_coders import delta_come, model_axis, task_singular_vectors
from mask_coders import elect_mask_rescale, tall_masks
from ours import stored
from plain_coders import mean_only, plain_coder, rounding
from sign_coders import bitdelta, dare, switch
from zoos import BenchZoo

__all__ = ["BY_ERROR", "OURS", "Point", "ZooResult", "all_methods", "measure"]

OURS = "uws-store"

BY_ERROR = "uws-store, asked for an error"
"""The store when it is asked for a squared error and not for bits: it rounds otherwise then, as plain coders do."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one setting on one zoo: means over the held-out models.

    Attributes
    ----------
    method, setting, source : str
        What it is.
    payload_bytes, private_bytes, container_bytes : float
        A model's coefficients, its tensors kept as they are, and what stores both.
    shared_bytes : int
        What all models share.
    scores : tuple of float
        One per held-out model.
    weight_error : float
        ``||W - W'|| / ||W||`` over coded tensors.
    seconds : float
        To fit and to code, decode and score all held-out models.
    """

    method: str
    setting: str
    source: str
    payload_bytes: float
    private_bytes: float
    container_bytes: float
    shared_bytes: int
    scores: tuple[float, ...]
    weight_error: float
    seconds: float

    @property
    def model_bytes(self) -> float:
        """Everything stored for one model."""
        return self.payload_bytes + self.private_bytes + self.container_bytes


@dataclass(frozen=True, slots=True)
class ZooResult:
    """All methods on one zoo.

    Attributes
    ----------
    zoo : BenchZoo
        The zoo.
    parameters, coded_parameters : float
        Per model; those that methods code.
    originals : tuple of float
        Scores of the held-out models as they were trained.
    points : tuple of Point
        In the order of the table.
    notes : tuple of str
        What was left out, and why.
    """

    zoo: BenchZoo
    parameters: float
    coded_parameters: int
    originals: tuple[float, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    def losses(self, point: Point) -> list[float]:
        """Loss of each held-out model, in the metric's unit."""
        return [
            self.zoo.metric.loss(before, after)
            for before, after in zip(self.originals, point.scores, strict=True)
        ]

    def loss(self, point: Point) -> float:
        """Mean loss, in the metric's unit; a score that is no number counts as infinitely bad."""
        losses = self.losses(point)
        return statistics.fmean(losses) if all(map(math.isfinite, losses)) else math.inf

    def loss_error(self, point: Point) -> float:
        """Standard error of the mean loss over models, each compared with itself."""
        losses = self.losses(point)
        if len(losses) < 2 or not all(map(math.isfinite, losses)):
            return 0.0
        return statistics.stdev(losses) / math.sqrt(len(losses))

    def keeps(self, point: Point) -> bool:
        """Whether the mean loss is within the metric's tolerance."""
        return self.loss(point) <= self.zoo.metric.tolerance

    def bits(self, point: Point) -> float:
        """Bits per coded parameter of payload and container; private tensors are reported beside it."""
        return 8 * (point.payload_bytes + point.container_bytes) / self.coded_parameters

    def payload_bits(self, point: Point) -> float:
        """Bits per coded parameter of the payload alone."""
        return 8 * point.payload_bytes / self.coded_parameters

    def times_smaller(self, point: Point) -> float:
        """Float32 bytes of a model over everything stored for it."""
        return 4 * self.parameters / point.model_bytes if point.model_bytes else math.inf

    def times_smaller_counted(self, point: Point) -> float:
        """The same with the shared bytes divided among the zoo's counted models."""
        return 4 * self.parameters / (point.model_bytes + point.shared_bytes / self.zoo.counted_models)


def all_methods(zoo: BenchZoo) -> list[Method]:
    """Every baseline at its settings, in the order of the table."""
    return [
        *rounding((2, 3, 4, 8)),
        *plain_coder(zoo.steps),
        *bitdelta(),
        *switch((0.5, 0.3, 0.1, 0.05)),
        *delta_come((2.0, 1.0, 0.5)),
        *dare((0.5, 0.9, 0.99)),
        *tall_masks((0.2, 0.4, 0.6)),
        *task_singular_vectors((1 / 4, 1 / 8, 1 / 16)),
        *elect_mask_rescale(),
        *model_axis(16),
        *mean_only(),
    ]


def measure(
    zoo: BenchZoo,
    *,
    methods: Sequence[Method] | None = None,
    bits: Sequence[float] | None = None,
    on_progress: Progress = lambda _: None,
) -> ZooResult:
    """Run the store and every baseline on a zoo.

    Parameters
    ----------
    zoo : BenchZoo
        The zoo.
    methods : sequence of Method, optional
        The baselines; all of them when absent.
    bits : sequence of float, optional
        The store's rates; the zoo's own when absent.
    on_progress : callable
        Called with what is being done.

    Returns
    -------
    ZooResult
        Scores of every method on every held-out model.
    """
    held = {task: LazyWeights(path) for task, path in zoo.held}
    first = LazyWeights(zoo.training[0][1])
    names = [name for name in first if not name.startswith(zoo.private)] if zoo.private else list(first)
    training = Training(
        [LazyWeights(path) for _, path in zoo.training],
        names,
        base=LazyWeights(zoo.base) if zoo.base else None,
    )
    originals = tuple(zoo.score(weights, task) for task, weights in held.items())
    notes: list[str] = []
    points: list[Point] = []
    for rate in bits or zoo.bits:
        on_progress(f"{zoo.name}: {OURS} at {rate:g} bits")
        point = _ours(zoo, rate, training, held)
        if point is None:
            notes.append(f"{OURS} cannot be built at {rate:g} bits: the records alone take more")
        else:
            points.append(point)
    for error in _change_errors(training, points):
        on_progress(f"{zoo.name}: {BY_ERROR} of {error:.3g}")
        point = _ours(zoo, error, training, held, by_error=True)
        assert point is not None
        points.append(point)
    container = statistics.fmean(point.container_bytes for point in points) if points else 0.0
    for method in all_methods(zoo) if methods is None else methods:
        on_progress(f"{zoo.name}: {method.name} {method.setting}")
        points.append(_baseline(zoo, method, training, held, container_bytes=container))
    if zoo.base is None:
        notes.append(
            "no base is known: TALL-masks and EMR take the training model nearest to the mean in its place"
        )
    return ZooResult(
        zoo=zoo,
        parameters=statistics.fmean(
            sum(tensor.numel() for tensor in weights.values()) for weights in held.values()
        ),
        coded_parameters=training.parameters,
        originals=originals,
        points=tuple(points),
        notes=tuple(notes),
    )


def _change_errors(training: Training, points: Sequence[Point]) -> list[float]:
    """The points' errors relative to the change: what to ask for so that the error of the weights is the same."""
    energy = sum(float(value.square().sum()) for value in training.mean.values())
    change = sum(training.change_rms[name] ** 2 * training.mean[name].numel() for name in training.names)
    ratio = math.sqrt((energy + change) / change)
    return [min(0.9, point.weight_error * ratio) for point in points]


def _ours(
    zoo: BenchZoo,
    asked: float,
    training: Training,
    held: dict[str, LazyWeights],
    *,
    by_error: bool = False,
) -> Point | None:
    started_s = time.perf_counter()
    with stored(
        zoo.training,
        zoo.held,
        bits=None if by_error else asked,
        change_error=asked if by_error else None,
        expect_models=zoo.counted_models,
    ) as family:
        if family is None:
            return None
        scores: list[float] = []
        errors: list[float] = []
        for model in family.models:
            weights = family.load(model.task)
            scores.append(zoo.score(weights, model.task))
            errors.append(_weight_error(training.names, weights, held[model.task]))
    return Point(
        method=BY_ERROR if by_error else OURS,
        setting=f"{100 * asked:.3g} %" if by_error else f"{asked:g} bits",
        source="this project",
        payload_bytes=statistics.fmean(model.payload_bytes for model in family.models),
        private_bytes=statistics.fmean(model.private_bytes for model in family.models),
        container_bytes=statistics.fmean(model.container_bytes for model in family.models),
        shared_bytes=family.basis_bytes,
        scores=tuple(scores),
        weight_error=statistics.fmean(errors),
        seconds=time.perf_counter() - started_s,
    )


def _baseline(
    zoo: BenchZoo,
    method: Method,
    training: Training,
    held: dict[str, LazyWeights],
    *,
    container_bytes: float,
) -> Point:
    started_s = time.perf_counter()
    coder = method.fit(training)
    payload: list[int] = []
    private: list[int] = []
    scores: list[float] = []
    errors: list[float] = []
    for task, weights in held.items():
        kept = {name: tensor for name, tensor in weights.items() if name not in training.shapes}
        coded = coder.code(weights)
        payload.append(coded.size_bytes)
        private.append(sum(tensor.nbytes for tensor in kept.values()))
        errors.append(_weight_error(training.names, coded.weights, weights))
        scores.append(zoo.score(_checked(coded.weights | kept, weights), task))
    return Point(
        method=method.name,
        setting=method.setting,
        source=method.source,
        payload_bytes=statistics.fmean(payload),
        private_bytes=statistics.fmean(private),
        container_bytes=container_bytes,
        shared_bytes=coder.shared_bytes,
        scores=tuple(scores),
        weight_error=statistics.fmean(errors),
        seconds=time.perf_counter() - started_s,
    )


def _weight_error(names: Sequence[str], restored: Weights, original: Weights) -> float:
    error = energy = 0.0
    for name in names:
        whole = original[name].double()
        error += float((restored[name].double() - whole).square().sum())
        energy += float(whole.square().sum())
    return math.sqrt(error / energy)


def _checked(restored: dict[str, torch.Tensor], original: Weights) -> Weights:
    """A method must give back every tensor in its shape."""
    for name, tensor in original.items():
        if restored[name].shape != tensor.shape:
            raise ValueError(f"{name} came back as {tuple(restored[name].shape)}, not {tuple(tensor.shape)}")
    return restored
