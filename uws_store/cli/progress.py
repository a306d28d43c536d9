"""How far and how fast a long command is: bars on a terminal, a few plain lines elsewhere, always on stderr.

Must not know what the phases do; it shows what the API reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from uws_store.cli.output import Output, error_console

if TYPE_CHECKING:
    from uws_store.builder import Progress

__all__ = ["progress"]

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
_BAR_WIDTH = 20


@contextmanager
def progress(output: Output) -> Iterator[Progress | None]:
    """Show progress while a block runs; None when the output is to be quiet."""
    if output.quiet:
        yield None
        return
    console = error_console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
        return
    with Bars(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR_WIDTH),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar for each phase; a phase that begins again gets another."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._held: dict[str, tuple[TaskID, int]] = {}
        self._began: dict[TaskID, float] = {}
        self._heard = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, size_bytes: int = 0) -> None:
        held = self._held.get(phase)
        if held is None or done <= held[1]:
            words = phase if held is None else f"{phase} again"
            bar = self._bars.add_task(words, total=total, unit=_UNITS.get(phase, ""), rate="")
            self._began[bar] = self._heard
        else:
            bar = held[0]
        self._held[phase] = bar, done
        self._heard = time.monotonic()
        self._bars.update(
            bar, completed=done, total=total, rate=_rate(size_bytes, self._heard - self._began[bar])
        )


class _Lines:
    """A line when a phase ends, and one now and then while it lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._done = 0
        self._began = self._said = self._heard = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, size_bytes: int = 0) -> None:
        now = time.monotonic()
        if phase != self._phase or done <= self._done:
            # The first report comes when the first piece is done: the phase began when the one before ended.
            self._phase, self._began = phase, self._heard
        self._done = done
        self._heard = now
        if done == total or now - self._said >= _LINE_EVERY_S:
            self._said = now
            unit = _UNITS.get(phase, "")
            took = now - self._began
            left = f"about {took / done * (total - done):.0f} s left" if 0 < done < total else ""
            told = ", ".join(filter(None, (f"{took:.1f} s", _rate(size_bytes, took), left)))
            self._console.print(f"{phase}: {done} of {total} {unit} ({told})")


def _rate(size_bytes: int, seconds: float) -> str:
    """Tell how fast checkpoints are taken in; nothing where that is not counted."""
    return f"{size_bytes / seconds / 1e6:.3g} MB/s" if size_bytes and seconds > 0 else ""
