"""What the bench shows: a table per zoo, the comparison at the tolerated loss, Markdown, JSON, a plot.

Owns words and numbers' formats. Measures nothing.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from codec import OURS, Point, ZooResult
from plain_coders import CONTROL
from rich import box
from rich.console import Console
from rich.table import Table
from verdicts import Verdict, equal_error_ratios, verdict_of

__all__ = ["as_document", "draw", "markdown", "setting", "show"]

_HEADS = (
    "method",
    "setting",
    "bits",
    "bare",
    "smaller",
    "shared KB",
    "smaller at {models}",
    "{metric}",
    "loss",
    "",
)
_COLOURS = 10
LEGEND = (
    "bits: everything stored for one model but its private tensors (the same for all methods), over its coded parameters; "
    "every method is charged the container that the store's own models need. bare: the same without container. smaller: "
    "how many times smaller all of a model's bytes are than float32, private tensors too; and again with the shared "
    "bytes divided among so many models. loss: mean over held-out models, each compared with itself, with the standard error over "
    "models; a star marks a loss within the tolerance. The AUC's loss is that of the models "
    "that got worse: badly trained detectors get better when they are moved towards the mean."
)


def setting() -> dict[str, str]:
    """What the numbers were measured with."""
    packages = {name: version(name) for name in ("uws-store", "torch", "numpy", "pcodec", "zarr")}
    return {
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
        "python": platform.python_version(),
    } | packages


def show(result: ZooResult, console: Console) -> None:
    """Print one zoo's table and verdict."""
    table = Table(title=_title(result), box=box.SIMPLE_HEAD, title_justify="left")
    for index, head in enumerate(_heads(result)):
        table.add_column(head, justify="left" if index < 2 else "right", no_wrap=True)
    best = _best(result)
    for point in result.points:
        style = "bold" if point.method == OURS else "green" if point in best else ""
        table.add_row(*_row(result, point), style=style)
    console.print(table)
    for line in _sentences(result):
        console.print(line, highlight=False, soft_wrap=True)


def markdown(results: Sequence[ZooResult], *, absent: Mapping[str, str], command: str) -> str:
    """The tables as a Markdown document."""
    parts = ["# Score kept against bytes", "", f"`{command}`", "", LEGEND, ""]
    parts += [", ".join(f"{name} {value}" for name, value in setting().items()), ""]
    for result in results:
        heads = [head or "kept" for head in _heads(result)]
        parts += [f"## {_title(result)}", "", "| " + " | ".join(heads) + " |"]
        parts.append("|" + "---|" * 2 + "---:|" * (len(heads) - 2))
        for point in result.points:
            row = _row(result, point)
            mark = "**" if point.method == OURS else ""
            parts.append("| " + " | ".join([f"{mark}{row[0]}{mark}", *row[1:]]) + " |")
        parts += ["", *(f"- {line}" for line in _sentences(result)), ""]
    parts += [f"- {name} was left out: {why}" for name, why in absent.items()]
    return "\n".join(parts).rstrip() + "\n"


def as_document(results: Sequence[ZooResult], *, absent: Mapping[str, str]) -> dict[str, Any]:
    """All numbers, for JSON."""
    return {
        "setting": setting(),
        "absent": dict(absent),
        "zoos": {result.zoo.name: _zoo_document(result) for result in results},
    }


def _zoo_document(result: ZooResult) -> dict[str, Any]:
    return {
        "metric": result.zoo.metric.name,
        "higher_is_better": result.zoo.metric.higher_is_better,
        "tolerance": result.zoo.metric.tolerance,
        "training_models": len(result.zoo.training),
        "held_out": [task for task, _ in result.zoo.held],
        "parameters": result.parameters,
        "coded_parameters": result.coded_parameters,
        "counted_models": result.zoo.counted_models,
        "originals": list(result.originals),
        "notes": list(result.notes),
        "plain_coder_at_equal_weight_error": _equal_error(result),
        "verdicts": [_verdict_document(verdict) for verdict in verdict_of(result)],
        "points": [
            {
                "method": point.method,
                "setting": point.setting,
                "source": point.source,
                "bits_per_parameter": result.bits(point),
                "coefficient_bits_per_parameter": result.payload_bits(point),
                "payload_bytes": point.payload_bytes,
                "container_bytes": point.container_bytes,
                "private_bytes": point.private_bytes,
                "shared_bytes": point.shared_bytes,
                "times_smaller": result.times_smaller(point),
                "times_smaller_counted": result.times_smaller_counted(point),
                "weight_error": point.weight_error,
                "scores": [None if math.isnan(score) else score for score in point.scores],
                "loss": None if math.isinf(result.loss(point)) else result.loss(point),
                "loss_standard_error": None if math.isinf(result.loss(point)) else result.loss_error(point),
                "kept": result.keeps(point),
                "seconds": point.seconds,
            }
            for point in result.points
        ],
    }


def _equal_error(result: ZooResult) -> dict[str, list[float]]:
    models = result.zoo.counted_models
    return {
        "coefficients alone": equal_error_ratios(result, lambda point: point.payload_bytes),
        f"with shared bytes, {models} models": equal_error_ratios(
            result, lambda point: point.model_bytes + point.shared_bytes / models
        ),
    }


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    return {
        "measure": verdict.measure,
        "ours_bytes": verdict.ours_bytes,
        "best_baseline": verdict.best,
        "best_baseline_bytes": verdict.best_bytes,
        "ratio": verdict.ratio,
        "control_bytes": verdict.control_bytes,
        "steady": verdict.steady,
        "times_smaller": verdict.times_smaller,
    }


def draw(results: Sequence[ZooResult], path: Path) -> str | None:
    """Draw loss over bits for every zoo, as SVG.

    Returns
    -------
    str or None
        Why nothing was drawn, or None.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        return "no plot: matplotlib is not installed (pip install matplotlib)"
    with matplotlib.rc_context({"svg.hashsalt": "uws-store", "font.size": 8}):
        figure = figures.Figure(figsize=(7, 4.2 * len(results)), layout="constrained")
        for axes, result in zip(figure.subplots(len(results), squeeze=False)[:, 0], results, strict=True):
            _panel(axes, result)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return None


def _panel(axes: Any, result: ZooResult) -> None:  # noqa: ANN401 - matplotlib's, which may be absent
    metric = result.zoo.metric
    floor = metric.tolerance * metric.scale / 20
    for index, method in enumerate(dict.fromkeys(point.method for point in result.points)):
        points = sorted((p for p in result.points if p.method == method), key=result.bits)
        points = [point for point in points if math.isfinite(result.loss(point))]
        axes.plot(
            [result.bits(point) for point in points],
            [max(floor, result.loss(point) * metric.scale) for point in points],
            marker="o" if index < _COLOURS else "s",
            markersize=3,
            linewidth=2.2 if method == OURS else 0.9,
            color="black" if method == OURS else None,
            label=method,
        )
    axes.axhline(metric.tolerance * metric.scale, color="grey", linewidth=0.7, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bits per parameter, container counted")
    axes.set_ylabel(
        f"loss of {metric.name}{' x 100' if metric.scale != 1 and '%' not in metric.name else ''}"
    )
    axes.set_title(_title(result), fontsize=8)
    axes.legend(fontsize=6, ncols=2)
    axes.grid(visible=True, which="both", linewidth=0.2)


def _title(result: ZooResult) -> str:
    zoo = result.zoo
    return (
        f"{zoo.name}: {len(zoo.training)} models of {result.coded_parameters:,} coded parameters in the basis, "
        f"{len(zoo.held)} held out"
    )


def _heads(result: ZooResult) -> list[str]:
    return [head.format(models=result.zoo.counted_models, metric=result.zoo.metric.name) for head in _HEADS]


def _row(result: ZooResult, point: Point) -> list[str]:
    metric = result.zoo.metric
    original = sum(result.originals) / len(result.originals) * metric.scale
    kept = sum(point.scores) / len(point.scores) * metric.scale
    loss, error = result.loss(point) * metric.scale, result.loss_error(point) * metric.scale
    return [
        point.method,
        point.setting,
        f"{result.bits(point):.3f}",
        f"{result.payload_bits(point):.3f}",
        f"{result.times_smaller(point):.1f}x",
        f"{point.shared_bytes / 1000:,.0f}",
        f"{result.times_smaller_counted(point):.1f}x",
        f"{original:.2f} to {kept:.2f}",
        f"{loss:.2f} +- {error:.2f}" if math.isfinite(loss) else "no number",
        "*" if result.keeps(point) else "",
    ]


def _best(result: ZooResult) -> list[Point]:
    kept = [p for p in result.points if result.keeps(p) and p.method not in (OURS, CONTROL)]
    return [min(kept, key=lambda point: point.model_bytes)] if kept else []


def _sentences(result: ZooResult) -> list[str]:
    metric = result.zoo.metric
    allowed = f"{metric.tolerance * metric.scale:.3g}{' points' if metric.scale == 100 else ''}"
    lines = []
    for verdict in verdict_of(result):
        if verdict.ours_bytes is None:
            text = f"{OURS} does not stay within {allowed} at any rate tried"
        else:
            assert verdict.times_smaller is not None
            text = (
                f"at a loss of {allowed} {OURS} takes {verdict.ours_bytes:,.0f} bytes, "
                f"{verdict.times_smaller:.1f}x smaller than float32"
            )
        if verdict.best is None:
            text += "; no baseline keeps the score"
        else:
            text += f"; the best baseline, {verdict.best}, takes {verdict.best_bytes:,.0f}"
        if verdict.ratio is not None:
            text += f": {verdict.ratio:.2f} times as much"
        if verdict.control_bytes is not None and verdict.ours_bytes is not None:
            text += f" ({CONTROL}: {verdict.control_bytes / verdict.ours_bytes:.2f} times)"
        if not verdict.steady:
            text += "; larger settings lose more here and there, so chance has a part in this"
        lines.append(f"{verdict.measure}: {text}.")
    for measure, ratios in _equal_error(result).items():
        if ratios:
            lines.append(
                f"at equal error of the weights, {measure}: the best plain coder takes "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} times as much as the store asked for that error."
            )
    return lines + [f"{note}." for note in result.notes]
