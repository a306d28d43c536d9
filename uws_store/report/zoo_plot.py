"""The plot of a zoo's analysis: kinship of the models, and what each mode captures beside the nulls."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from uws_store.analysis import ZooAnalysis
from uws_store.report.letters import FONT, Letters, with_known_letters
from uws_store.report.text import printable

__all__ = ["draw_zoo"]

_MOST_NAMES = 40
_NAMES = {0: "models\n(16 directions)", 1: "rows\n(a sixteenth)", 2: "columns\n(a sixteenth)"}


def draw_zoo(analysis: ZooAnalysis, path: Path) -> None:
    """Draw an analysis to an SVG, PNG or PDF file.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    is_text = path.suffix == ".svg"
    letters = Letters()
    style: Any = {"text.parse_math": False, "svg.fonttype": "none", "font.sans-serif": [FONT]}
    with mpl.rc_context(style):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        kinship, modes = figure.subplots(1, 2)
        # Models of one base beside each other.
        places = {task: place for place, task in enumerate(analysis.tasks)}
        order = [places[task] for group in analysis.relations.bases for task in group]
        image = kinship.imshow(
            analysis.relations.cosine[np.ix_(order, order)],
            vmin=-1,
            vmax=1,
            cmap="RdBu_r",
            interpolation="nearest",
        )
        if len(order) <= _MOST_NAMES:
            spelled = letters.known if is_text else with_known_letters
            names = [spelled(printable(analysis.tasks[place])) for place in order]
            kinship.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            kinship.set_yticks(range(len(names)), names, fontsize=6)
        kinship.set_title(f"cosine between models: {analysis.kind}")
        figure.colorbar(image, ax=kinship, shrink=0.8)
        width = 0.2
        at = np.arange(len(analysis.modes))
        sides = (
            ("in the fit", "fitted", "#9db8d9"),
            ("held out", "held_out", "#3b82c4"),
            ("Gaussian null", "gaussian", "#bbbbbb"),
            ("shuffled null", "shuffled", "#8a8a8a"),
        )
        for index, (label, name, colour) in enumerate(sides):
            heights = [100 * getattr(mode, name) for mode in analysis.modes]
            modes.bar(at + (index - 1.5) * width, heights, width, label=label, color=colour)
        modes.set_xticks(at, [_NAMES[mode.mode] for mode in analysis.modes])
        modes.set_ylabel("share of the change captured, %")
        modes.set_ylim(0, 105)
        modes.legend(frameon=False)
        modes.set_title(f"mean-only error {analysis.mean_error:.3g}")
        if not is_text:
            figure.savefig(path)
            return
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    path.write_text(letters.restored(stream.getvalue()), encoding="utf-8")
