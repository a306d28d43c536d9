"""The plots of a report, drawn by matplotlib as SVG that follows the page's text colour.

Owns what is drawn. The page gives each plot its caption and its words for those who do not see it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from uws_store.report.gather import BasisView, FamilyView, ModelView
from uws_store.report.letters import FONT, Letters
from uws_store.report.text import printable

__all__ = ["PLOTS", "draw"]

# A colour that nothing else has, replaced by the page's own after drawing.
_INK = "#010203"
BLUE, ORANGE, GREY, GREEN, PURPLE = "#3b82c4", "#d07a1f", "#8a8a8a", "#3d9a50", "#9a6bc4"
_ROLES = (
    ("basis", "basis", BLUE),
    ("core", "cores", GREEN),
    ("private", "private tensors", PURPLE),
    ("records", "records", GREY),
    ("residual", "residuals (exact tier)", ORANGE),
)
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "font.size": 11,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
}
_MOST_NAMES = 40
_LONGEST_NAME = 28


def draw(view: FamilyView, name: str) -> str | None:
    """Draw one of :data:`PLOTS`.

    Returns
    -------
    str or None
        An ``<svg>`` element; None when the family has nothing to draw there.
    """
    letters = Letters()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = PLOTS[name](view, letters)
        if figure is None:
            return None
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(letters.restored(stream.getvalue()), name)


def _inline(text: str, name: str) -> str:
    """Cut the element out of its file, let it follow the page, and keep its ids apart from other plots'."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(_INK, "currentColor")
    # The size comes from the page; the aspect from the viewBox.
    return re.sub(
        r'<svg([^>]*?) width="[^"]*"',
        r"<svg\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )


def _figure(width: float = 7.0, height: float = 3.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _bytes(view: FamilyView, _letters: Letters) -> Figure | None:
    if not view.models:
        return None
    figure, axes = _figure(height=2.2)
    left = 0.0
    for role, label, colour in _ROLES:
        share = getattr(view.bytes, role) / 1e6
        if share:
            axes.barh(1, share, left=left, color=colour, label=label)
            left += share
    axes.barh(0, view.bytes.source / 1e6, color=GREY, alpha=0.5)
    axes.set_yticks([0, 1], ["checkpoints", "stored"])
    axes.set_xlabel("MB")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _rate(view: FamilyView, _letters: Letters) -> Figure | None:
    if not view.models:
        return None
    figure, axes = _figure()
    for revision in sorted({model.basis_revision for model in view.models}):
        held = [model for model in view.models if model.basis_revision == revision]
        axes.scatter(
            [model.bits for model in held],
            [max(model.rel_error, 1e-9) for model in held],
            s=22,
            alpha=0.75,
            label=f"basis r{revision}",
            color=(BLUE, ORANGE, GREEN, PURPLE)[(revision - 1) % 4],
        )
    axes.set_xlabel("bits per parameter (compact tier, record counted)")
    axes.set_ylabel("relative error")
    axes.margins(0.1)
    axes.legend()
    return figure


def _reported(model: ModelView) -> Any:  # noqa: ANN401 - a score or None
    scores = [score for score in model.scores if score.purpose != "search"] or list(model.scores)
    return scores[0] if scores else None


def _scores(view: FamilyView, letters: Letters) -> Figure | None:
    scored = [(model, score) for model in view.models if (score := _reported(model)) is not None]
    if not scored:
        return None
    scored.sort(key=lambda pair: -pair[1].drop)
    shown = scored[:_MOST_NAMES]
    figure, axes = _figure(height=max(2.4, 0.24 * len(shown) + 1.2))
    places = np.arange(len(shown))[::-1]
    axes.axvline(0.0, color=GREY, linewidth=1)
    for place, (_, score) in zip(places, shown, strict=True):
        if score.interval is not None:
            axes.plot(score.interval, [place, place], color=BLUE, linewidth=2, alpha=0.5)
        axes.plot(score.drop, place, "o", color=ORANGE if score.significant else BLUE, markersize=5)
    axes.set_yticks(places, [letters.known(_short(model.task)) for model, _ in shown])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    metric = letters.known(printable(shown[0][1].metric))
    axes.set_xlabel(f"drop of {metric}, with its 95 % interval; to the right is worse")
    return figure


def _spectrum(view: FamilyView, _letters: Letters) -> Figure | None:
    basis = view.bases[-1] if view.bases else None
    if basis is None or (basis.left is None and basis.right is None):
        return None
    figure, axes = _figure()
    for spectrum, label, colour in _modes(basis):
        axes.plot(spectrum.kept, spectrum.captured, color=colour, label=label)
        axes.plot(
            spectrum.kept,
            spectrum.chance,
            color=colour,
            linestyle="--",
            alpha=0.8,
            label=f"{label}, by chance",
        )
    axes.set_xlabel("share of coordinates kept")
    axes.set_ylabel("share of the change captured")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend()
    return figure


def _modes(basis: BasisView) -> list[tuple[Any, str, str]]:
    both = ((basis.left, "left (mode 1)", BLUE), (basis.right, "right (mode 2)", ORANGE))
    return [(spectrum, label, colour) for spectrum, label, colour in both if spectrum is not None]


def _errors(view: FamilyView, letters: Letters) -> Figure | None:
    names = list(dict.fromkeys(name for model in view.models for name, _ in model.errors))
    if not names:
        return None
    rows = {name: row for row, name in enumerate(names)}
    table = np.full((len(names), len(view.models)), np.nan)
    for column, model in enumerate(view.models):
        for name, error in model.errors:
            table[rows[name], column] = error
    figure, axes = _figure(height=min(9.0, max(3.0, 0.13 * len(names) + 1.2)))
    image = axes.imshow(table, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0.0)
    every = max(1, round(len(names) / _MOST_NAMES))
    axes.set_yticks(
        range(0, len(names), every), [letters.known(_short(name)) for name in names[::every]], fontsize=7
    )
    if len(view.models) <= _MOST_NAMES:
        labels = [letters.known(_short(model.task)) for model in view.models]
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    else:
        axes.set_xlabel("models, by task")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="relative error")
    return figure


def _growth(view: FamilyView, _letters: Letters) -> Figure | None:
    if not view.models:
        return None
    order = sorted(view.models, key=lambda model: (model.commit, model.task))
    figure = Figure(figsize=(7.0, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    at = np.arange(1, len(order) + 1)
    basis = sum(held.size_bytes for held in view.bases)
    upper.plot(at, np.cumsum([model.source_bytes for model in order]) / 1e6, color=GREY, label="checkpoints")
    upper.plot(
        at, (basis + np.cumsum([model.size_bytes for model in order])) / 1e6, color=BLUE, label="stored"
    )
    upper.set_ylabel("MB")
    upper.set_ylim(bottom=0)
    upper.legend()
    for revision in sorted({model.basis_revision for model in order}):
        held = [
            (place, model.bits)
            for place, model in zip(at, order, strict=True)
            if model.basis_revision == revision
        ]
        lower.plot(
            [place for place, _ in held],
            [bits for _, bits in held],
            ".",
            label=f"basis r{revision}",
            color=(BLUE, ORANGE, GREEN, PURPLE)[(revision - 1) % 4],
        )
    lower.set_ylim(bottom=0)
    lower.set_ylabel("bits per parameter")
    lower.set_xlabel("models in the order they were published")
    lower.legend(loc="lower right")
    return figure


def _short(name: str) -> str:
    name = printable(name)
    return (
        name
        if len(name) <= _LONGEST_NAME
        else f"{name[: _LONGEST_NAME // 2 - 1]}…{name[-_LONGEST_NAME // 2 :]}"
    )


PLOTS: dict[str, Callable[[FamilyView, Letters], Figure | None]] = {
    "bytes": _bytes,
    "rate": _rate,
    "scores": _scores,
    "spectrum": _spectrum,
    "errors": _errors,
    "growth": _growth,
}
"""The plots by name."""
