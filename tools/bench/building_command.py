"""The command line of the builder's bench."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from building import build_document, measure_build, show_build
from rich.console import Console

__all__ = ["add_build_parser", "run_build"]


def add_build_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``build``."""
    build = commands.add_parser(
        "build", help="subspaces beside other packages', and a whole build beside the machine's floors"
    )
    build.add_argument(
        "--synthetic", type=int, metavar="N", help="models of the zoo that is built (default: 16)"
    )
    build.add_argument(
        "--width", type=int, help="width of the models that are built; 768 is ViT-B's (default: 192)"
    )
    build.add_argument("--blocks", type=int, default=12, help="their blocks, with --width (default: 12)")
    build.add_argument("--device", help="also measure moments and copies on this device, such as cuda")
    build.add_argument("--quick", action="store_true", help="small sizes")
    build.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    build.add_argument("--json", type=Path, help="write all numbers to this file")


def run_build(options: argparse.Namespace, console: Console) -> int:
    """Measure, print and perhaps write."""
    settings: dict[str, Any] = {
        "threads": options.threads,
        "device": options.device,
        "synthetic": options.synthetic,
    }
    if options.quick:
        settings |= {"models": 12, "rows": 192, "columns": 192, "rank": 16}
        settings |= {"width": 48, "blocks": 1, "zoo_models": 8}
    elif options.width:
        settings |= {"width": options.width, "blocks": options.blocks}
    result = measure_build(**settings)
    show_build(result, console)
    if options.json:
        options.json.write_text(json.dumps(build_document(result), indent=1, allow_nan=False) + "\n")
    return 0
