"""From the gathered numbers and their plots to one HTML page that needs nothing else.

Owns the words of the page. Everything that comes from a registry is escaped: names and options are not trusted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

import jinja2

from uws_store.config import tool_version
from uws_store.metadata.log import utc_now
from uws_store.report.gather import FamilyView
from uws_store.report.plots import PLOTS, draw
from uws_store.report.text import percent, printable, short_number, size

__all__ = ["Plot", "render"]

_WORST_TENSORS = 10
_SIXTEENTH = 1 / 16
_SIDES = {
    "original": "original",
    "compact": "compact",
    "exact": "exact",
    "mean": "mean only",
    "basis-free": "basis-free, same bits",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot and what it shows in words.

    Attributes
    ----------
    svg : str
        The element.
    words : str
        The same for those who do not see it.
    """

    svg: str
    words: str


def render(view: FamilyView) -> str:
    """Write the page.

    Parameters
    ----------
    view : FamilyView
        What :func:`uws_store.report.gather` read.

    Returns
    -------
    str
        HTML without scripts and without references to other files.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("uws_store.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": printable,
        "size": size,
        "number": short_number,
        "percent": percent,
    }
    words = _words(view)
    plots = {name: Plot(svg, words[name]) for name in PLOTS if (svg := draw(view, name)) is not None}
    return environment.get_template("page.html.j2").render(
        view=view,
        verified=view.verification,
        sides=_SIDES,
        plots=plots,
        worst=_worst_tensors(view),
        sixteenth=_SIXTEENTH,
        bits=view.bits,
        made=utc_now(),
        tool=tool_version(),
    )


def _worst_tensors(view: FamilyView) -> list[tuple[str, float, float]]:
    """Tensors with the largest median relative error: name, median, largest."""
    held: defaultdict[str, list[float]] = defaultdict(list)
    for model in view.models:
        for name, error in model.errors:
            held[name].append(error)
    rows = [(name, median(errors), max(errors)) for name, errors in held.items()]
    return sorted(rows, key=lambda row: -row[1])[:_WORST_TENSORS]


def _words(view: FamilyView) -> dict[str, str]:
    shares = view.bytes
    basis = view.bases[-1] if view.bases else None
    spectrum = ""
    for mode, held in (("left", basis.left if basis else None), ("right", basis.right if basis else None)):
        if held is not None:
            own, chance = held.share_at(_SIXTEENTH)
            spectrum += f"A sixteenth of the {mode} coordinates holds {percent(own)} of the change, by chance {percent(chance)}. "
    bits = view.bits
    return {
        "bytes": f"Stored bytes by role: basis {size(shares.basis)}, cores {size(shares.core)}, private tensors "
        f"{size(shares.private)}, records {size(shares.records)}, residuals {size(shares.residual)}; checkpoints "
        f"{size(shares.source)}.",
        "rate": f"Bits per parameter against relative error, one point per model: "
        f"{short_number(bits.min())} to {short_number(bits.max())} bits."
        if len(bits)
        else "",
        "scores": f"Drop of the score of each model, worst first, of {len(view.models)} models.",
        "spectrum": spectrum.strip(),
        "errors": f"Relative error of every coded tensor (rows) of every model (columns): {len(view.models)} models.",
        "growth": "Cumulated bytes of checkpoints and of the store, and bits per parameter, by order of publication.",
    }
