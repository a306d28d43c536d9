"""The bench: ``codec``, ``exact``, ``load``, ``build`` and ``registry``, each beside its baselines.

``codec`` measures score against bytes, ``codec --speed`` throughput, ``exact`` what comes back bit by bit,
``load`` what loading takes, ``registry`` opening a large one. Owns the command line. Results of whole runs are kept in ``results/``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import registry
import torch
from building_command import add_build_parser, run_build
from codec import ZooResult, measure
from codec_report import LEGEND, as_document, draw, markdown, show
from exact import DTYPES, ExactResult, ZipnnAbsentError, measure_exact
from exact import as_document as exact_document
from exact import markdown as exact_markdown
from exact import show as show_exact
from load_command import add_load_parser, run_load
from lora import as_rows, lora_markdown, measure_lora
from publishers import add_publishers_parser, run_publishers
from rich.console import Console
from speed import measure_speed, show_speed, speed_document, speed_markdown
from zoos import ZOO_NAMES, AbsentError, Places, open_zoo

from uws_store.config import cache_folder

REPOSITORY = Path(__file__).resolve().parents[2]
PRINTED_WIDTH = 150
EXACT_ZOOS = ("digits", "wakewords", "ani", "hexells")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line.

    Returns
    -------
    int
        0, or 1 when no zoo is at hand.
    """
    options = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: lines stay whole
        console = Console(width=PRINTED_WIDTH)
    others = {"build": run_build, "publishers": run_publishers, "registry": _registry}
    if options.command in others:
        return others[options.command](options, console)
    torch.set_num_threads(options.threads)
    if options.command == "load":
        return run_load(options, console)
    if options.command in ("lora", "exact"):
        return _lora(options) if options.command == "lora" else _exact(options, console)
    if options.speed:
        return _speed(options, console)
    places, progress = _places(options), _narrator(options)
    results: list[ZooResult] = []
    absent: dict[str, str] = {}

    for name in options.zoo.split(","):
        try:
            zoo = open_zoo(name, places, on_progress=progress)
        except AbsentError as error:
            absent[name] = str(error)
            console.print(f"{name}: skipped, {error}", highlight=False)
            continue
        results.append(measure(zoo, on_progress=progress))
        show(results[-1], console)
    console.print(LEGEND, style="dim", highlight=False)
    if options.json:
        document = as_document(results, absent=absent)
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if options.markdown:
        command = f"python tools/bench codec --zoo {options.zoo}" + (" --quick" if options.quick else "")
        options.markdown.write_text(markdown(results, absent=absent, command=command))
    if options.svg and results:
        reason = draw(results, options.svg)
        if reason is not None:
            console.print(reason)
    return 0 if results else 1


def _places(options: argparse.Namespace) -> Places:
    """Where zoos are found, by the options that codec and exact share."""
    return Places(
        cache=options.cache or cache_folder() / "bench",
        shared=options.zoos,
        digits=options.digits,
        quick=options.quick,
    )


def _narrator(options: argparse.Namespace) -> Callable[[str], None]:
    """Tell on standard error what is being done, where that is asked for."""

    def tell(what: str) -> None:
        if options.verbose:
            sys.stderr.write(f"{what}\n")

    return tell


def _exact(options: argparse.Namespace, console: Console) -> int:
    places, progress = _places(options), _narrator(options)
    results: list[ExactResult] = []
    absent: dict[str, str] = {}

    for name in options.zoo.split(","):
        try:
            zoo = open_zoo(name, places, on_progress=progress)
            members = sorted([*zoo.training, *zoo.held])
            results += [measure_exact(name, members, dtype, on_progress=progress) for dtype in DTYPES]
        except (AbsentError, ZipnnAbsentError) as error:
            absent[name] = str(error)
            console.print(f"{name}: skipped, {error}", highlight=False)
    show_exact(results, console)
    if options.json:
        document = exact_document(results, absent=absent)
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if options.markdown:
        command = f"python tools/bench exact --zoo {options.zoo}" + (" --quick" if options.quick else "")
        options.markdown.write_text(exact_markdown(results, absent=absent, command=command))
    return 0 if results else 1


def _speed(options: argparse.Namespace, console: Console) -> int:
    result = measure_speed(quick=options.quick)
    show_speed(result, console)
    if options.json:
        options.json.write_text(json.dumps(speed_document(result), indent=1, allow_nan=False) + "\n")
    if options.markdown:
        options.markdown.write_text(speed_markdown(result))
    return 0


def _registry(options: argparse.Namespace, console: Console) -> int:
    def tell(what: str) -> None:
        sys.stderr.write(f"{what}\n")

    def measured(folder: Path) -> registry.OpeningResult:
        return registry.measure_opening(
            folder,
            models=options.models,
            families=options.families,
            per_commit=options.per_commit,
            progress=tell,
        )

    if options.folder is not None:
        result = measured(options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measured(Path(folder) / "registry")
    registry.show_opening(result, console)
    if options.json:
        options.json.write_text(json.dumps(registry.document(result), indent=1) + "\n")
    if options.markdown:
        command = (
            f"python tools/bench registry --models {options.models} --families {options.families} "
            f"--per-commit {options.per_commit}"
        )
        options.markdown.write_text(registry.markdown(result, command=command))
    return 0


def _lora(options: argparse.Namespace) -> int:
    cache = options.cache or cache_folder() / "bench"

    def progress(what: str) -> None:
        sys.stderr.write(f"{what}\n")

    points = measure_lora(cache, quick=options.quick, on_progress=progress)
    text = lora_markdown(points)
    sys.stdout.write(f"{text}\n")
    if options.markdown:
        options.markdown.write_text(f"{text}\n")
    if options.json:
        options.json.write_text(json.dumps(as_rows(points), indent=1, allow_nan=False) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/bench", description="Measure the codec, or the registry."
    )
    commands = parser.add_subparsers(required=True, dest="command")
    opening = commands.add_parser("registry", help="opening a large registry, beside reading its whole log")
    opening.add_argument("--models", type=int, default=100_000, help="models in all (default: 100000)")
    opening.add_argument("--families", type=int, default=200, help="families (default: 200)")
    opening.add_argument("--per-commit", type=int, default=10, help="models a commit adds (default: 10)")
    opening.add_argument("--folder", type=Path, help="keep the registry here, and use it when it is there")
    opening.add_argument("--json", type=Path, help="write all numbers to this file")
    opening.add_argument("--markdown", type=Path, help="write the table to this file")
    lora = commands.add_parser("lora", help="adapters: error of B A and accuracy against bytes")
    lora.add_argument("--quick", action="store_true", help="16 adapters instead of 40")
    lora.add_argument("--cache", type=Path, help="folder for trained adapters (default: in the user's cache)")
    lora.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    lora.add_argument("--json", type=Path, help="write all numbers to this file")
    lora.add_argument("--markdown", type=Path, help="write the tables to this file")
    codec = commands.add_parser("codec", help="score kept against bytes, beside other methods; or speed")
    exact = commands.add_parser(
        "exact", help="bytes of a family that comes back bit by bit, beside other coders"
    )
    for command, names in ((codec, ZOO_NAMES), (exact, EXACT_ZOOS)):
        command.add_argument(
            "--zoo", default=",".join(names), type=_zoo_names, help=f"zoos; by default {', '.join(names)}"
        )
        command.add_argument("--json", type=Path, help="write all numbers to this file")
        command.add_argument("--markdown", type=Path, help="write the tables to this file")
        command.add_argument(
            "--quick", action="store_true", help="30 digits models instead of 80, fewer held out"
        )
        command.add_argument(
            "--cache", type=Path, help="folder for trained zoos (default: in the user's cache)"
        )
        command.add_argument(
            "--digits", type=Path, help="a folder of trained digits models, instead of training them"
        )
        command.add_argument(
            "--zoos", type=Path, default=REPOSITORY.parent / "shared" / "zoos", help="other people's zoos"
        )
        command.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
        command.add_argument(
            "--verbose", action="store_true", help="say on standard error what is being done"
        )
    codec.add_argument(
        "--svg", type=Path, help="draw rate-distortion curves into this file (needs matplotlib)"
    )
    codec.add_argument("--speed", action="store_true", help="measure throughput per core instead")
    add_load_parser(commands)
    add_publishers_parser(commands)
    add_build_parser(commands)
    return parser


def _zoo_names(text: str) -> str:
    unknown = [name for name in text.split(",") if name not in ZOO_NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(ZOO_NAMES)}")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
