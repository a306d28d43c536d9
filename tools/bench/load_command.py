"""The subcommand ``load``: its options, and what it prints and writes."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from load import measure_loading
from load_report import load_document, load_markdown, show_load
from rich.console import Console

__all__ = ["add_load_parser", "run_load"]


def add_load_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the bench's parser."""
    parser = commands.add_parser(
        "load", help="time, bytes, requests and memory of loading, beside other containers"
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument(
        "--quick", action="store_true", help="a small network: shows that it runs, not how fast"
    )
    parser.add_argument(
        "--folder", type=Path, help="keep the families here, and take them from here next time"
    )
    parser.add_argument(
        "--digits",
        type=Path,
        help="a folder of trained digits networks to switch between, instead of forged ones",
    )
    parser.add_argument("--device", help="also switch the large network on this device, such as cuda")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--verbose", action="store_true", help="say on standard error what is being done")


def run_load(options: argparse.Namespace, console: Console) -> int:
    """Measure, show, and write what was asked for."""

    def say(what: str) -> None:
        if options.verbose:
            sys.stderr.write(f"{what}\n")

    with tempfile.TemporaryDirectory(prefix="uws-bench-") as name:
        result = measure_loading(
            options.folder or Path(name),
            quick=options.quick,
            digits=options.digits,
            device=options.device,
            say=say,
        )
    show_load(result, console)
    if options.json:
        options.json.write_text(json.dumps(load_document(result), indent=1, allow_nan=False) + "\n")
    if options.markdown:
        options.markdown.write_text(load_markdown(result, command=_command(options)))
    return 0


def _command(options: argparse.Namespace) -> str:
    """What was run, without names of folders."""
    digits = " --digits FOLDER" if options.digits else ""
    device = f" --device {options.device}" if options.device else ""
    return "python tools/bench load" + (" --quick" if options.quick else "") + digits + device
