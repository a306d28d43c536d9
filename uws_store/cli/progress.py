"""How far a long command is: bars on a terminal, a few plain lines elsewhere, always on stderr.

Must not know what the phases do; it shows what the API reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from uws_store.cli.output import Output, error_console

__all__ = ["Report", "progress"]

Report = Callable[[str, int, int], None]
"""Called with a phase's name, what is done and what there is to do."""

_UNITS = {
    "analysing": "tensors",
    "reading": "tensors",
    "fitting": "tensors",
    "scoring": "models",
    "searching": "steps",
    "checking": "models",
    "encoding": "models",
    "verifying": "models",
    "exporting": "models",
    "transferring": "groups",
}
_LINE_EVERY_S = 10.0


@contextmanager
def progress(output: Output) -> Iterator[Report | None]:
    """Show progress while a block runs; None when the output is to be quiet."""
    if output.quiet:
        yield None
        return
    console = error_console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
        return
    with Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar for each phase; a phase that begins again gets another."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._held: dict[str, tuple[TaskID, int]] = {}

    def __call__(self, phase: str, done: int, total: int) -> None:
        held = self._held.get(phase)
        if held is None or done <= held[1]:
            words = phase if held is None else f"{phase} again"
            bar = self._bars.add_task(words, total=total, unit=_UNITS.get(phase, ""))
        else:
            bar = held[0]
        self._held[phase] = bar, done
        self._bars.update(bar, completed=done, total=total)


class _Lines:
    """A line when a phase ends, and one now and then while it lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._began = self._said = self._heard = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self._phase:
            # The first report comes when the first piece is done: the phase began when the one before ended.
            self._phase, self._began = phase, self._heard
        self._heard = now
        if done == total or now - self._said >= _LINE_EVERY_S:
            self._said = now
            unit = _UNITS.get(phase, "")
            took = now - self._began
            left = f", about {took / done * (total - done):.0f} s left" if 0 < done < total else ""
            self._console.print(f"{phase}: {done} of {total} {unit} ({took:.1f} s{left})")
