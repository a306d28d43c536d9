"""The bench's zoos: where each comes from, who is held out, how a model is scored, which rates are tried.

Owns the splits and the tolerances. Zoos that are not at hand are told with the reason. Knows no method.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coding import Weights
from scores import acas_agreement, digits_accuracy, evaluations_at, weight_error

from uws_store.checkpoint import scan_zoo

TOOLS = Path(__file__).resolve().parent.parent
if str(TOOLS / "demo") not in sys.path:
    sys.path.insert(0, str(TOOLS / "demo"))

import minilm  # noqa: E402 - its neighbours are found only now
import zoo as demo  # noqa: E402
from digit_tasks import task_names  # noqa: E402

__all__ = ["ZOO_NAMES", "AbsentError", "BenchZoo", "open_zoo"]

ZOO_NAMES = ("digits", "wakewords", "ani", "hexells", "acas", "minilm")

HALF_POINT = 0.005
"""Half a point of accuracy, area under the curve, or agreement."""

_QUICK_HELD = 8


class AbsentError(Exception):
    """A zoo, or what trains it, is not at hand; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a zoo's models are scored by.

    Attributes
    ----------
    name : str
        For the table's head.
    higher_is_better : bool
        Its direction.
    tolerance : float
        The loss, in the metric's own unit, up to which a method counts as keeping the model.
    scale : float
        The unit of the table: 100 prints points.
    gains_count : bool
        Whether a model that gets better pays for one that gets worse. Badly trained wake-word detectors get better by
        being moved towards the mean, by more than any coder loses elsewhere.
    """

    name: str
    higher_is_better: bool
    tolerance: float
    scale: float = 1.0
    gains_count: bool = True

    def loss(self, original: float, kept: float) -> float:
        """How much worse a score is, in the metric's unit."""
        loss = original - kept if self.higher_is_better else kept - original
        return loss if self.gains_count or loss > 0 or math.isnan(loss) else 0.0


@dataclass(frozen=True, slots=True)
class BenchZoo:
    """A zoo, split and ready.

    Attributes
    ----------
    name : str
        Its name on the command line.
    training, held : tuple of (str, Path)
        Task and checkpoint: those in the basis, and those that no method sees when it is fitted.
    private : tuple of str
        Prefixes of tensors that every method keeps as they are.
    base : Path or None
        What the models were fine-tuned from, where that is known.
    metric : Metric
        The score.
    score : callable
        Scores weights of a task.
    bits : tuple of float
        Rates at which the store is asked to build.
    steps : tuple of float
        Steps of the plain coder, in units of a tensor's change.
    counted_models : int
        Models that shared bytes are divided among.
    """

    name: str
    training: tuple[tuple[str, Path], ...]
    held: tuple[tuple[str, Path], ...]
    private: tuple[str, ...]
    base: Path | None
    metric: Metric
    score: Callable[[Weights, str], float]
    bits: tuple[float, ...]
    steps: tuple[float, ...]
    counted_models: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where zoos lie.

    Attributes
    ----------
    cache : Path
        Where trained zoos are kept between runs.
    shared : Path
        Other people's zoos and the data sets.
    digits : Path or None
        A digits zoo that is trained already, instead of the cached one; its base lies beside it.
    quick : bool
        Smaller zoos.
    """

    cache: Path
    shared: Path
    digits: Path | None = None
    quick: bool = False


def open_zoo(name: str, places: Places, *, on_progress: Callable[[str], None]) -> BenchZoo:
    """Open a zoo by name; the digits are trained first when they are not in the cache.

    Raises
    ------
    AbsentError
        When the zoo is not at hand.
    """
    if name == "digits":
        return _digits(places, on_progress)
    if name == "minilm":
        return _minilm(places)
    folder = places.shared / _FOLDERS[name]
    if not folder.is_dir():
        raise AbsentError(f"there is no folder {_FOLDERS[name]} of other people's zoos; give --zoos FOLDER")
    members = [(member.task, member.path) for member in scan_zoo(folder)]
    return _OTHERS[name](members, places)


def _digits(places: Places, on_progress: Callable[[str], None]) -> BenchZoo:
    count = 30 if places.quick else 80
    names = task_names(count)
    folder = places.digits or places.cache / f"digits-{demo.BASE_STEPS}-{demo.TASK_STEPS}"
    base = folder.with_name(f"{folder.name}-base.safetensors")
    missing = [name for name in names if not (folder / f"{name}.safetensors").is_file()]
    if places.digits is not None and missing:
        raise AbsentError(f"the digits zoo lacks {missing[0]} and {len(missing) - 1} more of {count} tasks")
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        on_progress(f"training {len(missing)} digits models")
        if not base.is_file():
            demo.train_base(base)
        demo.fine_tune_all(base, [(name, folder / f"{name}.safetensors") for name in missing])
    members = [(name, folder / f"{name}.safetensors") for name in names]
    training, held = _split(members, 3 if places.quick else 5)
    return BenchZoo(
        name="digits",
        training=training,
        held=held,
        private=("head.",),
        base=base if base.is_file() else None,
        metric=Metric("accuracy", higher_is_better=True, tolerance=HALF_POINT, scale=100),
        score=digits_accuracy,
        bits=(1.2, 0.8, 0.6, 0.45, 0.3),
        steps=(0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
        counted_models=100,
    )


def _wakewords(members: Sequence[tuple[str, Path]], places: Places) -> BenchZoo:
    evaluations = evaluations_at(places.shared)
    scored = [member for member in members if evaluations.wakeword_phrase(member[0]) is not None]
    _, held = _split(scored, 5, most=_QUICK_HELD if places.quick else None)
    return BenchZoo(
        name="wakewords",
        training=tuple(member for member in members if member not in held),
        held=held,
        private=(),
        base=None,
        metric=Metric("AUC", higher_is_better=True, tolerance=HALF_POINT, scale=100, gains_count=False),
        score=lambda weights, task: float(evaluations.wakeword_auc(weights, task)["auc"]),
        bits=(3.5, 2.5, 1.7, 1.2, 0.8),
        steps=(0.04, 0.08, 0.12, 0.18, 0.27, 0.4, 0.6, 0.9, 1.4, 2.2, 3.5),
        counted_models=len(members),
    )


def _ani(members: Sequence[tuple[str, Path]], places: Places) -> BenchZoo:
    evaluations = evaluations_at(places.shared)
    training, held = _split(members, 5)
    return BenchZoo(
        name="ani",
        training=training,
        held=held,
        private=(),
        base=None,
        # A tenth of the spread between the ensemble's own members.
        metric=Metric("kcal/mol off", higher_is_better=False, tolerance=0.105),
        score=lambda weights, task: float(evaluations.ani_error(weights, task)["mae_kcal_mol"]),
        bits=(10.5, 9.0, 8.0, 6.5, 5.0),
        steps=(0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.6, 2.2),
        counted_models=len(members),
    )


def _hexells(members: Sequence[tuple[str, Path]], places: Places) -> BenchZoo:
    training, held = _split(members, 5, most=_QUICK_HELD if places.quick else None)
    return BenchZoo(
        name="hexells",
        training=training,
        held=held,
        private=(),
        base=None,
        # No score of a texture is at hand: -30 dB of the weights' energy.
        metric=Metric("weight error, %", higher_is_better=False, tolerance=10**-1.5, scale=100),
        score=weight_error(held),
        bits=(9.0, 7.5, 6.5, 5.5, 4.5),
        steps=(0.02, 0.04, 0.08, 0.12, 0.18, 0.27, 0.4, 0.6, 0.9, 2.2),
        counted_models=len(members),
    )


def _acas(members: Sequence[tuple[str, Path]], places: Places) -> BenchZoo:
    training, held = _split(members, 5)
    return BenchZoo(
        name="acas",
        training=training,
        held=held,
        private=(),
        base=None,
        metric=Metric("same advisory, %", higher_is_better=True, tolerance=HALF_POINT, scale=100),
        score=acas_agreement(held, places.shared / "acasxu" / "normalisation.json"),
        bits=(13.0, 12.0, 11.0, 9.5, 8.0),
        steps=(0.0006, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.16, 0.6, 2.2),
        counted_models=len(members),
    )


def _minilm(places: Places) -> BenchZoo:
    folder = places.cache / minilm.FOLDER
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    tasks = {path.stem: path for path in found}
    held = tuple((task, tasks[task]) for task in minilm.HELD_OUT if task in tasks)
    training = tuple((task, path) for task, path in tasks.items() if task not in minilm.HELD_OUT)
    texts = places.shared / "text_sets"
    if not texts.is_dir():
        raise AbsentError(
            f"{texts} is not there: its texts are what accuracy is measured on; give --zoos FOLDER"
        )
    if len(training) + len(held) < minilm.FEWEST or not held:
        raise AbsentError(
            f"{len(tasks)} of at least {minilm.FEWEST} text models are trained; "
            "run python tools/bench/minilm.py first (100 s per task on two cores)"
        )
    return BenchZoo(
        name="minilm",
        training=training,
        held=held,
        private=("head.",),
        base=minilm.base_file(),
        metric=Metric("accuracy", higher_is_better=True, tolerance=HALF_POINT, scale=100),
        score=minilm.scorer(texts),
        bits=(0.35, 0.2, 0.14, 0.1, 0.06),
        steps=(1.5, 2.5, 4.0, 6.0, 8.0),
        counted_models=100,
    )


def _split(
    members: Sequence[tuple[str, Path]], every: int, *, most: int | None = None
) -> tuple[tuple[tuple[str, Path], ...], tuple[tuple[str, Path], ...]]:
    """Hold out every so many members, in order of their names."""
    held = tuple(members[::every])[:most]
    return tuple(member for member in members if member not in held), held


_FOLDERS = {"wakewords": "wakewords", "ani": "ani_1x_1ccx", "hexells": "hexells", "acas": "acasxu"}
_OTHERS = {"wakewords": _wakewords, "ani": _ani, "hexells": _hexells, "acas": _acas}
