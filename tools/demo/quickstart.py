"""The demo: train a zoo, store it, load every model again, and print what was kept and what it took.

Owns the story and its tables. Training is in ``zoo.py``, everything that calls uws-store in ``measuring.py``. Run it
through ``tools/quickstart``, which makes the environment.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from digit_tasks import BASE_TASK, scored_images, task_named, task_names
from figures import Report, Setting, as_document, bars_of, summary
from measuring import ZSTD_LEVEL, Progress, compare_bits, score, store, weigh
from rich import box
from rich.console import Console
from rich.table import Table
from zoo import BASE_STEPS, TASK_STEPS, fine_tune_all, progress_bars, train_base

TASKS = 45
FAMILY = "vit-digits"
BITS = 1.0
SMALL_BITS = 0.6


@dataclass(slots=True)
class Stage:
    """Where the demo shows its progress and keeps its times.

    Attributes
    ----------
    console : Console
        A terminal gets bars; anything else one line per phase.
    seconds : dict of str to float
        Filled in as phases end.
    """

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[Progress]:
        """Time one phase, and show its progress as it calls back."""
        started_s = time.perf_counter()
        with progress_bars(self.console) as bars:
            known = {}

            def progress(what: str, done: int, total: int) -> None:
                if what not in known:
                    known[what] = bars.add_task(what, total=total)
                bars.update(known[what], completed=done, total=total)

            yield progress
        self.seconds[name] = time.perf_counter() - started_s
        if not self.console.is_terminal:
            self.console.print(f"{name}: {self.seconds[name]:.1f} s")


def run(
    folder: Path,
    console: Console,
    *,
    tasks: int = TASKS,
    base_steps: int = BASE_STEPS,
    task_steps: int = TASK_STEPS,
) -> Report:
    """Go through the whole demo.

    Parameters
    ----------
    folder : Path
        An empty folder, for the zoo and the registries.
    console : Console
        Where progress is shown.
    tasks : int
        Models of the zoo: two thirds make the basis, the rest is added afterwards.
    base_steps, task_steps : int
        How long the base, and each model, is trained.
    """
    stage = Stage(console)
    paths = _places(folder, tasks)
    with stage.phase("train the base") as progress:
        base_path = folder / "base.safetensors"
        steps = iter(range(1, base_steps + 1))
        train_base(
            base_path,
            steps=base_steps,
            on_step=lambda: progress("training the base", next(steps), base_steps),
        )
    with stage.phase(f"fine-tune {tasks} models") as progress:
        done = iter(range(1, tasks + 1))
        fine_tune_all(
            base_path,
            [(path.stem, path) for path, _ in paths],
            steps=task_steps,
            on_done=lambda _: progress("fine-tuning", next(done), tasks),
        )
    with stage.phase("score and compress the originals") as progress:
        originals = weigh(paths, progress=progress)
    settings: list[Setting] = []
    for bits in (BITS, SMALL_BITS):
        registry = folder / f"registry-{bits}"
        with stage.phase(f"build and add at {bits} bits") as progress:
            stored = store(originals, registry, family=FAMILY, bits=bits, exact=False, progress=progress)
        with stage.phase(f"load and score at {bits} bits") as progress:
            settings.append(Setting(stored, score(stored, originals, registry, progress=progress)))
    registry = folder / "registry-exact"
    with stage.phase("build and add with the exact tier") as progress:
        exact = store(originals, registry, family=FAMILY, bits=BITS, exact=True, progress=progress)
    with stage.phase("load exactly and compare every bit") as progress:
        exactness = compare_bits(exact, originals, registry, progress=progress)
    return Report(originals, tuple(settings), exact, exactness, stage.seconds)


def _places(folder: Path, tasks: int) -> tuple[tuple[Path, bool], ...]:
    """Return where each model goes, the members of the basis in a folder of their own, and which they are."""
    members = tasks * 2 // 3
    places: list[tuple[Path, bool]] = []
    for index, name in enumerate(task_names(tasks)):
        parent = folder / ("zoo" if index < members else "kept-out")
        parent.mkdir(exist_ok=True)
        places.append((parent / f"{name}.safetensors", index < members))
    return tuple(places)


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return an empty table that fits into 80 columns with the demo's numbers."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def accuracy_table(report: Report) -> Table:
    """Return the table of accuracies, before and after."""
    images = len(scored_images(task_named(BASE_TASK), "all")[1])
    table = _table(
        f"Accuracy on {images} test images a model, mean over models",
        ("stored as", "models"),
        (
            "bits/\nparam",
            "times\nless",
            "original",
            "loaded",
            "points\nlost",
            "worst\nloss",
            "mean\nonly",
        ),
    )
    for setting in report.settings:
        for in_basis in (True, False):
            row = summary(setting, in_basis=in_basis)
            table.add_row(
                f"--bits {setting.stored.bits:g}",
                f"{row['models']:.0f} {'in basis' if in_basis else 'kept out'}",
                f"{row['bits_per_parameter']:.3f}",
                f"{row['times_smaller']:.1f}",
                f"{row['original']:.4f}",
                f"{row['reconstructed']:.4f}",
                f"{row['drop_points']:.2f}",
                f"{row['worst_drop_points']:.2f}",
                f"{row['mean_only']:.4f}",
            )
    return table


def bytes_table(report: Report) -> Table:
    """Return the table of bytes, everything counted."""
    originals = report.originals
    plain = sum(original.size_bytes for original in originals)
    table = _table(
        f"Bytes of the whole family of {len(originals)} models, everything counted",
        ("stored as",),
        ("basis", "cores", "private", "records\nand log", "residual", "total", "times\nless"),
    )
    none = ("", "", "", "", "")
    zstd = sum(original.zstd_bytes for original in originals)
    table.add_row("safetensors", *none, f"{plain:,}", "1.0")
    table.add_row(f"  zstd -{ZSTD_LEVEL}", *none, f"{zstd:,}", f"{plain / zstd:.2f}")
    # The exact family is at the first setting.
    rows = [(f"--bits {setting.stored.bits:g}", setting.stored.bytes) for setting in report.settings]
    rows.insert(1, ("  --exact", report.exact.bytes))
    for name, count in rows:
        parts = (count.basis, count.cores, count.private, count.metadata, count.residual, count.total)
        ratio = plain / count.total
        table.add_row(
            name, *(f"{part:,}" for part in parts), f"{ratio:.1f}" if ratio > 10 else f"{ratio:.2f}"
        )
    return table


def print_report(report: Report, console: Console) -> None:
    """Print the tables, the times and whether each promise holds."""
    console.print()
    console.print(accuracy_table(report))
    console.print()
    console.print(bytes_table(report))
    console.print()
    exactness = report.exactness
    load_ms = summary(report.settings[0], in_basis=False)["load_ms"]
    console.print(
        f"exact tier: {exactness.identical} of {exactness.tensors} tensors of {exactness.models} models "
        f"are bit-identical"
    )
    console.print(f"loading a compact model, all of it, takes {load_ms:.0f} ms")
    console.print("mean only: the zoo's mean stands for every tensor that goes through the basis")
    console.print("\ntime")
    for name, seconds in report.seconds.items():
        console.print(f"  {seconds:6.1f} s  {name}")
    console.print(f"  {sum(report.seconds.values()):6.1f} s  in all\n")
    for name, bar in bars_of(report).items():
        verdict = "holds" if bar["holds"] else "FAILS"
        console.print(f"{verdict}: {name.replace('_', ' ')} {bar['measured']:.3g}, at most {bar['limit']:g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if every promise holds, 1 if one does not, 2 for an option that cannot be followed."""
    parser = argparse.ArgumentParser(prog="tools/quickstart", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers to this file")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave the zoo and the registries in this empty folder"
    )
    parser.add_argument("--tasks", type=int, default=TASKS, help=f"models in the zoo (default: {TASKS})")
    options = parser.parse_args(arguments)
    if options.tasks < 6:
        parser.error("--tasks is at least 6: the basis takes two thirds of them")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"{options.json.parent} is no folder")
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        if any(options.keep.iterdir()):
            parser.error(f"{options.keep} is not empty")
    # Without a terminal a line is as long as it needs to be.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)
    folder: Path = options.keep or Path(tempfile.mkdtemp(prefix="uws-quickstart-"))
    try:
        report = run(folder, console, tasks=options.tasks)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print_report(report, console)
    if options.json is not None:
        options.json.write_text(json.dumps(as_document(report), indent=2) + "\n", encoding="utf-8")
    if options.keep is not None:
        console.print(
            f"kept: {folder}/registry-{BITS}; try: uws-store list --registry {folder}/registry-{BITS}"
        )
    return 0 if all(bar["holds"] for bar in bars_of(report).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
