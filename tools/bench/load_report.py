"""Showing what ``load.py`` measured: on a terminal, as Markdown, as JSON."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from codec_report import setting as software
from load_rows import LoadRow
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["load_document", "load_markdown", "show_load"]

_HEADS = ("", "time", "processor", "bytes", "requests", "", "goal", "")
_NOTE = (
    "Medians of repeats that take turns; processor time is that of all threads of this process. Over links everything "
    "is read through s3fs from moto, a stand-in for S3, behind a proxy on this machine that holds every request back "
    "for 20 ms and lets bytes through as fast as the link would; both are processes of their own on the same cores, so "
    "the fastest link is no faster than they are: its last row says how fast that is. Bytes and requests are what "
    "passed the proxy. The basis is in memory, the model in no cache."
)


def setting() -> dict[str, str]:
    """What the numbers were measured with, and how busy the machine was with everything: times are by its clock."""
    busy = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return software() | {"load average at the end": busy}


def _groups(rows: Sequence[LoadRow]) -> Iterator[tuple[str, list[LoadRow]]]:
    for name, some in itertools.groupby(rows, key=lambda row: row.group):
        yield name, list(some)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _cells(row: LoadRow) -> tuple[str, ...]:
    size = "" if row.size_bytes is None else f"{row.size_bytes / 1e6:,.1f} MB"
    value = "" if row.value is None else f"{row.value:,.2f} {row.unit}"
    met = "" if row.met is None else "met" if row.met else "missed"
    requests = "" if row.requests is None else str(row.requests)
    return row.what, _time(row.seconds), _time(row.busy_s), size, requests, value, row.goal, met


def show_load(rows: Sequence[LoadRow], console: Console) -> None:
    """Print one table for each comparison."""
    for name, some in _groups(rows):
        table = Table(title=name, box=box.SIMPLE_HEAD, title_justify="left")
        for head in _HEADS:
            table.add_column(
                head, justify="right" if head in {"time", "processor", "bytes", "requests"} else "left"
            )
        for row in some:
            table.add_row(*_cells(row))
        console.print(table)
    console.print(_NOTE, style="dim", highlight=False)


def load_markdown(rows: Sequence[LoadRow], *, command: str) -> str:
    """The tables as a Markdown document."""
    parts = ["# Loading", "", f"`{command}`", "", _NOTE, ""]
    parts += [", ".join(f"{name} {value}" for name, value in setting().items()), ""]
    for name, some in _groups(rows):
        parts += [
            f"## {name}",
            "",
            "| " + " | ".join(_HEADS) + " |",
            "|---|---:|---:|---:|---:|---|---:|---|",
        ]
        parts += ["| " + " | ".join(_cells(row)) + " |" for row in some]
        parts.append("")
    return "\n".join(parts)


def load_document(rows: Sequence[LoadRow]) -> dict[str, Any]:
    """All numbers, for JSON."""
    names = ("group", "what", "seconds", "busy_s", "size_bytes", "requests", "value", "unit", "goal", "met")
    return {"setting": setting(), "rows": [{name: getattr(row, name) for name in names} for row in rows]}
