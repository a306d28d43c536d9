"""The command line of the builder's bench."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from building import BuildBench, WholeBuild, build_document, measure_build, measure_whole
from building_report import show_build, show_whole
from rich.console import Console

__all__ = ["add_build_parser", "run_build"]


def add_build_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``build``."""
    build = commands.add_parser(
        "build", help="subspaces beside other packages', and a whole build beside the machine's floors"
    )
    build.add_argument(
        "--synthetic",
        type=int,
        metavar="N",
        help="only the whole build, of N models; 0 for as many as half of the free disk holds",
    )
    build.add_argument(
        "--width", type=int, help="width of the models that are built; 768 is ViT-B's (default: 192)"
    )
    build.add_argument("--blocks", type=int, help="their blocks (default: 12 with --width, else 2)")
    build.add_argument(
        "--device", default="cpu", help="where the whole build fits and encodes (default: cpu)"
    )
    build.add_argument("--folder", type=Path, help="where the zoo of --synthetic is made and removed")
    build.add_argument("--quick", action="store_true", help="small sizes")
    build.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    build.add_argument("--json", type=Path, help="write all numbers to this file")


def run_build(options: argparse.Namespace, console: Console) -> int:
    """Measure, print and perhaps write."""
    whole: dict[str, Any] = {"threads": options.threads, "device": options.device}
    if options.quick:
        whole |= {"width": 48, "blocks": 1, "models": 8}
    if options.width or options.blocks:
        width = options.width or 192
        whole |= {"width": width, "blocks": options.blocks or (12 if options.width else 2)}
    result: BuildBench | WholeBuild
    if options.synthetic is not None:
        whole["models"] = options.synthetic or None
        result = measure_whole(options.folder or Path(tempfile.gettempdir()), **whole)
        show_whole(result, console)
    else:
        sizes: dict[str, Any] = (
            {"models": 12, "rows": 192, "columns": 192, "rank": 16, "wide": None} if options.quick else {}
        )
        zoo_models = whole.pop("models", 16)
        result = measure_build(**sizes, **whole, whole_models=zoo_models)
        show_build(result, console)
    if options.json:
        options.json.write_text(json.dumps(build_document(result), indent=1, allow_nan=False) + "\n")
    return 0
