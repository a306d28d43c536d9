"""What a command prints: one JSON document, bare names, or tables for people; progress and notices beside it.

Owns both streams, the units of numbers and how untrusted text is made harmless. Must not know what the commands do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TextIO

from rich import box, filesize
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from uws_store.errors import Problem, StorageError

__all__ = [
    "Output",
    "PipeClosedError",
    "as_plain",
    "columns",
    "counted",
    "drop",
    "error_console",
    "facts",
    "number",
    "printable",
    "problem_lines",
    "ratio",
    "size",
]

# What is no terminal has no width: a table in a file or a pipe is as wide as what it holds.
_UNLIMITED = 4096
# Marks that reorder the text around them: what is shown must be what is there.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SHOWN = 5


class PipeClosedError(Exception):
    """Whoever read the output has gone. Never leaves the command line."""


class _Console(Console):
    """A console that lets the caller decide what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        """Leave the exit code to the program; rich would exit with 1, which here means "something is wrong"."""
        raise PipeClosedError


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else _UNLIMITED
    # Names come from files: they are neither markup nor emoji codes.
    return _Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def _print(console: Console, parts: Iterable[RenderableType]) -> None:
    for part in parts:
        console.print(Text(printable(part)) if isinstance(part, str) else part)


def error_console() -> Console:
    """Make the console for what is no result: progress, notices, errors."""
    return _console(sys.stderr)


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's results go.

    Attributes
    ----------
    as_json : bool
        One JSON document on stdout, and nothing else there.
    quiet : bool
        Names only, one per line; no progress and no notices.
    """

    as_json: bool
    quiet: bool

    def document(self, value: object) -> None:
        """Print a result as JSON: dataclasses become objects with their fields as keys."""
        # ASCII: what json escapes stays valid in any encoding a pipe may have.
        self._write(json.dumps(as_plain(value), indent=2, allow_nan=False) + "\n")

    def names(self, names: Iterable[str]) -> None:
        """Print names, one per line."""
        self._write("".join(f"{printable(name)}\n" for name in names))

    def show(self, *parts: RenderableType) -> None:
        """Print text and tables for people, on stdout."""
        console = _console(sys.stdout)
        if console.is_terminal:
            _print(console, parts)
        else:
            # Cells are padded to their columns' width; a file or a pipe need not hold that.
            text = io.StringIO()
            _print(_console(text), parts)
            self._write("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))

    def notice(self, text: str) -> None:
        """Print a remark on stderr, unless it is to be quiet."""
        if not self.quiet:
            error_console().print(Text(printable(text)))

    def notices(self, heading: str, texts: Sequence[str]) -> None:
        """Print the first of many remarks and how many more there are."""
        if texts and not self.quiet:
            self.notice(f"{heading}:")
            more = [f"and {len(texts) - _SHOWN} more (--json gives all)"] if len(texts) > _SHOWN else []
            for text in [*texts[:_SHOWN], *more]:
                error_console().print(Padding(Text(printable(text)), (0, 0, 0, 2), expand=False))

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise PipeClosedError from error
        except OSError as error:
            drop(sys.stdout)
            raise StorageError(
                f"the result cannot be written to stdout: {error}", kind="storage/io"
            ) from error


def drop(*streams: TextIO) -> None:
    """Let what streams still hold go nowhere, where the interpreter's last flush would complain of it."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def as_plain(value: object) -> object:
    """Turn results into what JSON has.

    Parameters
    ----------
    value : object
        Dataclasses, parts of documents, mappings, sequences, paths, text and numbers, nested.

    Returns
    -------
    object
        Numbers that JSON has not (NaN, infinity) become None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)  # a part of a document; what makes these is slow to import
    if callable(dump):
        return as_plain(dump())
    if isinstance(value, Mapping):
        return {str(key): as_plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(held) for held in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def printable(text: str) -> str:
    """Write control characters out, so that a name from a file cannot drive the terminal."""
    return "".join(character if _is_shown(character) else ascii(character)[1:-1] for character in text)


def _is_shown(character: str) -> bool:
    if character in "\n\t":
        return True
    return (
        unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"} and character not in _DIRECTION_MARKS
    )


def size(size_bytes: float) -> str:
    """Write a number of bytes for people, in powers of 1000: ``17.3 kB``."""
    return filesize.decimal(round(size_bytes))


def number(value: float) -> str:
    """Write a number with three significant digits."""
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = 3 - math.ceil(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, min(6, digits))}f}"


def counted(count: int, thing: str) -> str:
    """Write a number of things: ``1 model``, ``2 models``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def ratio(whole: float, part: float) -> str:
    """Write how many times larger one number of bytes is: ``14.2x``."""
    return f"{number(whole / part)}x" if part else "-"


def columns(headings: Mapping[str, str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """Lay out rows under headings.

    Parameters
    ----------
    headings : Mapping of str to str
        Each column's heading and its kind: ``"name"`` folds where the terminal is narrow, ``"number"`` is right
        aligned and kept whole, ``"word"`` is kept whole.
    rows : iterable of sequences
        Cells.
    """
    table = Table(
        *(
            Column(
                heading,
                justify="right" if kind == "number" else "left",
                no_wrap=kind in {"number", "word"},
                overflow="fold",
                min_width=8 if kind == "name" else None,
            )
            for heading, kind in headings.items()
        ),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return table


def facts(rows: Iterable[tuple[str, str, str]]) -> Table:
    """Lay out facts: what, how much, and a remark."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, value, remark in rows:
        remarked = (f"{'  ' if value else ''}{printable(remark)}", "dim")
        table.add_row(Text(f"  {what}"), Text.assemble(printable(value), remarked))
    return table


def problem_lines(problems: Sequence[tuple[str, Problem]], *, what: str = "") -> Iterator[RenderableType]:
    """Write what is wrong, each with whose it is and its kind; nothing where nothing is.

    Parameters
    ----------
    problems : sequence of (str, Problem)
        Whose each is, as it is written before it.
    what : str
        Written behind how many there are.
    """
    if problems:
        yield Text.assemble((counted(len(problems), "problem"), "bold red"), printable(what), ":")
        yield "\n".join(f"  {whose}{problem} [{problem.kind}]" for whose, problem in problems)
