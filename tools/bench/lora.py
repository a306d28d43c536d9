"""``python tools/bench lora``: adapters that took no part in the fit, error of B A and accuracy against bytes.

Owns the measurement and the table. Bytes are those of one adapter without its head, everything counted: ours with its
record and array metadata. What adapters share stands beside them.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lora_coders import Adapter, baselines, vlora_absent
from lora_zoo import MODULES, accuracy, make_adapter_zoo
from safetensors.torch import load_file
from torch import Tensor

from uws_store import add, build, load_model

__all__ = ["Point", "lora_markdown", "measure_lora"]

_COUNTED = (
    "Means over eight adapters that took no part in any fit. Bytes of uws-store are all of an adapter's objects but its "
    "head: with record, digests and array metadata, 2.8 KB here. Those of the baselines are streams without a container."
)
_MOST = 1e9

_ERRORS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45)


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one setting, means over the held-out adapters.

    Attributes
    ----------
    zoo, method, setting : str
        What was measured.
    size_bytes, shared_bytes : float
        Of one adapter; of what all share.
    smaller : float
        Float32 bytes of the factors over ``size_bytes``.
    error : float
        Relative error of all products of an adapter.
    accuracy, worst_drop : float
        On the tasks' test images; the largest loss of one adapter.
    """

    zoo: str
    method: str
    setting: str
    size_bytes: float
    shared_bytes: int
    smaller: float
    error: float
    accuracy: float
    worst_drop: float


class _Judge:
    def __init__(self, zoo: str, folder: Path, held: Sequence[str]) -> None:
        self._zoo = zoo
        self._base = load_file(folder.parent / "base.safetensors")
        self._stored = {name: load_file(folder / name / "adapter_model.safetensors") for name in held}
        self.adapters = {name: factors(weights) for name, weights in self._stored.items()}
        self._originals = {name: self._score(name, whole(adapter)) for name, adapter in self.adapters.items()}
        self._float_bytes = sum(
            4 * part.numel()
            for adapter in self.adapters.values()
            for pair in adapter.values()
            for part in pair
        ) / len(held)

    def _score(self, name: str, products: dict[str, Tensor]) -> float:
        head = {key: self._stored[name][f"base_model.model.head.{key}"] for key in ("weight", "bias")}
        return accuracy(self._base, products, head, name)

    def point(
        self,
        method: str,
        setting: str,
        shared: int,
        code: Callable[[Adapter], tuple[dict[str, Tensor], float]],
    ) -> Point:
        """Measure a method on every held-out adapter."""
        sizes, errors, scores, drops = [], [], [], []
        for name, adapter in self.adapters.items():
            found, size = code(adapter)
            wanted = whole(adapter)
            squares = sum(float((found[key] - wanted[key]).square().sum()) for key in wanted)
            errors.append(math.sqrt(squares / sum(float(value.square().sum()) for value in wanted.values())))
            scores.append(self._score(name, found))
            drops.append(self._originals[name] - scores[-1])
            sizes.append(size)
        count = len(sizes)
        mean = sum(sizes) / count
        return Point(
            self._zoo, method, setting, mean, shared, self._float_bytes / max(mean, 1e-9), sum(errors) / count,
            sum(scores) / count, max(drops),
        )  # fmt: skip


def factors(weights: Mapping[str, Tensor]) -> Adapter:
    """Give (B, A) of every module."""
    prefix = "base_model.model"
    return {
        name: (weights[f"{prefix}.{name}.lora_B.weight"], weights[f"{prefix}.{name}.lora_A.weight"])
        for name in MODULES
    }


def whole(adapter: Adapter) -> dict[str, Tensor]:
    """Give B A of every module."""
    return {name: b @ a for name, (b, a) in adapter.items()}


def measure_lora(
    cache: Path, *, quick: bool = False, on_progress: Callable[[str], None] = lambda _: None
) -> list[Point]:
    """Measure every method on adapters with their own starts, and with one."""
    points: list[Point] = []
    train, held = (12, 4) if quick else (32, 8)
    for zoo, one_start in (("own random A", False), ("one random A", True)):
        folder = make_adapter_zoo(cache / "lora", train + held, one_start=one_start, on_done=on_progress)
        names = [f"task-{index:02d}" for index in range(train + held)]
        judge = _Judge(zoo, folder, names[train:])
        points.append(judge.point("original", "float32", 0, lambda adapter: (whole(adapter), math.nan)))
        points += _ours(
            judge, folder, names[:train], names[train:], errors=_ERRORS[1:5:2] if quick else _ERRORS
        )
        points.append(judge.point("no adapter", "", 0, lambda adapter: (_nothing(adapter), 0)))
        training = [factors(load_file(folder / name / "adapter_model.safetensors")) for name in names[:train]]
        for method in baselines(training):
            on_progress(f"{zoo}: {method.name}, {method.setting}")
            points.append(judge.point(method.name, method.setting, method.shared_bytes, method.code))
    return points


def _nothing(adapter: Adapter) -> dict[str, Tensor]:
    return {name: torch.zeros_like(product) for name, product in whole(adapter).items()}


def _ours(
    judge: _Judge, folder: Path, train: Sequence[str], held: Sequence[str], *, errors: Sequence[float]
) -> list[Point]:
    points = []
    with tempfile.TemporaryDirectory() as work:
        zoo = Path(work) / "zoo"
        for name in train:
            shutil.copytree(folder / name, zoo / name)
        for error in errors:
            registry = str(Path(work) / f"registry-{error}")
            built = build(zoo, family="adapters", registry=registry, change_error=error, expect_models=100)
            sizes = {}
            for name in held:
                model = add(folder / name, family="adapters", task=name, registry=registry).model
                sizes[name] = model.compact_bytes - model.private_bytes

            loaded = {
                name: factors(load_model("adapters", name, registry=registry).materialize()) for name in held
            }
            order = iter(held)

            def code(
                _: Adapter,
                order: Iterator[str] = order,
                loaded: Mapping[str, Adapter] = loaded,
                sizes: Mapping[str, int] = sizes,
            ) -> tuple[dict[str, Tensor], float]:
                name = next(order)
                return whole(loaded[name]), sizes[name]

            points.append(judge.point("uws-store", f"change error {error:g}", built.basis_bytes, code))
    return points


def lora_markdown(points: Sequence[Point]) -> str:
    """Write the tables."""
    lines = ["# Adapters: error of B A and accuracy against bytes", "", _COUNTED, ""]
    absent = vlora_absent()
    if absent:
        lines += [f"Left out: {absent}.", ""]
    for zoo in dict.fromkeys(point.zoo for point in points):
        lines += [
            f"## {zoo}",
            "",
            "| method | setting | bytes | x smaller | shared bytes | error of B A | accuracy | worst drop |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [
            f"| {p.method} | {p.setting} | {_shown(p.size_bytes)} | {_shown(p.smaller, 1)} | {p.shared_bytes} | {p.error:.4f} | "
            f"{p.accuracy:.4f} | {p.worst_drop:.4f} |"
            for p in points
            if p.zoo == zoo
        ]
        lines.append("")
    return "\n".join(lines)


def _shown(value: float, digits: int = 0) -> str:
    return f"{value:.{digits}f}" if value < _MOST else "-"


def as_rows(points: Sequence[Point]) -> list[dict[str, object]]:
    """Give the points as plain data; a size that is not counted is left out."""
    return [
        {key: value for key, value in asdict(point).items() if value == value}  # noqa: PLR0124 - NaN
        for point in points
    ]
