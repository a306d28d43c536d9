"""Train the demo's zoo: one base on scikit-learn's digits, fine-tuned in full to many small tasks.

Owns training, and the files it leaves: one safetensors file per task. Knows nothing of uws-store. Run it alone as
``python tools/demo/zoo.py --out zoo --tasks 45``.

Models are trained one by one in single-threaded worker processes. Stacking all models in one ``torch.func.vmap``
measured 164 us per image on two cores against 125 us this way, and here a model's bits do not depend on how many
cores there are.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from digit_tasks import (
    BASE_TASK,
    Task,
    generator_of,
    normalised,
    task_named,
    task_names,
    training_images,
    turned,
)
from evaluation import evaluate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from vit import DigitsViT

BATCH = 32
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 20
BASE_STEPS = 1500
TASK_STEPS = 160
JITTER_DEG = 5.0
JITTER_SHIFT = 0.05


def train(
    network: DigitsViT,
    task: Task,
    *,
    steps: int,
    jitter_deg: float = JITTER_DEG,
    on_step: Callable[[], None] | None = None,
) -> None:
    """Train every parameter of a network, in place, with AdamW, a short warm-up and a cosine to zero.

    Parameters
    ----------
    network : DigitsViT
        Its head fits the task.
    task : Task
        What to learn. Its name also seeds the order of images.
    steps : int
        Optimiser steps of ``BATCH`` images.
    jitter_deg : float
        Every image is turned by up to this much more, either way, anew each time.
    on_step : callable, optional
        Called after each step.
    """
    random = generator_of("digits-train", task.name)
    images, digits = training_images()
    labels = torch.tensor(task.groups)[digits]
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    batches: Iterator[Tensor] = iter(())
    for _ in range(steps):
        chosen = next(batches, None)
        if chosen is None or len(chosen) < BATCH:
            batches = iter(torch.split(torch.randperm(len(images), generator=random), BATCH))
            chosen = next(batches)
        angles = task.rotation_deg + (torch.rand(BATCH, generator=random) * 2 - 1) * jitter_deg
        shifts = (torch.rand(BATCH, 2, generator=random) * 2 - 1) * JITTER_SHIFT
        optimiser.zero_grad()
        logits = network(normalised(turned(images[chosen], angles, shifts)))
        torch.autograd.backward(functional.cross_entropy(logits, labels[chosen]))
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step()


def train_base(
    path: Path, *, steps: int = BASE_STEPS, on_step: Callable[[], None] | None = None
) -> Mapping[str, Tensor]:
    """Train the ten-way base from random weights, save it, and return its tensors.

    Parameters
    ----------
    path : Path
        The safetensors file to write.
    steps : int
        Optimiser steps.
    on_step : callable, optional
        Called after each step.
    """
    task = task_named(BASE_TASK)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DigitsViT(task.n_classes)
        train(network, task, steps=steps, jitter_deg=3 * JITTER_DEG, on_step=on_step)
    _save(network, task, path)
    return network.state_dict()


def fine_tune(base_path: Path, name: str, path: Path, *, steps: int = TASK_STEPS) -> None:
    """Fine-tune every parameter of the base to one task, under a new head, and save the model.

    Parameters
    ----------
    base_path : Path
        What :func:`train_base` wrote.
    name : str
        The task's name.
    path : Path
        The safetensors file to write.
    steps : int
        Optimiser steps.
    """
    task = task_named(name)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of("digits-head", name).initial_seed())
        network = DigitsViT(task.n_classes)
        shared = {key: value for key, value in load_file(base_path).items() if not key.startswith("head.")}
        network.load_state_dict(shared, strict=False)
        train(network, task, steps=steps)
    _save(network, task, path)


def fine_tune_all(
    base_path: Path,
    jobs: Sequence[tuple[str, Path]],
    *,
    steps: int = TASK_STEPS,
    workers: int | None = None,
    on_done: Callable[[str], None] | None = None,
) -> None:
    """Run :func:`fine_tune` for many tasks in parallel.

    Parameters
    ----------
    base_path : Path
        What :func:`train_base` wrote.
    jobs : sequence of (str, Path)
        Task names and the files to write.
    steps : int
        Optimiser steps of each.
    workers : int, optional
        Processes; as many as there are processors unless told.
    on_done : callable, optional
        Called with each task's name when its file is there, in the order of completion.
    """
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(fine_tune, base_path, name, path, steps=steps): name for name, path in jobs}
        for future in as_completed(futures):
            future.result()
            if on_done is not None:
                on_done(futures[future])


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums are then taken in one order, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress_bars(console: Console) -> Progress:
    """Return the progress bars of the demo, which show nothing where no terminal is."""
    return Progress(
        TextColumn("{task.description}", table_column=None),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _save(network: DigitsViT, task: Task, path: Path) -> None:
    described = {
        "format": "pt",
        "task": task.name,
        "classes": str(task.n_classes),
        "groups": ",".join(str(group) for group in task.groups),
        "rotation_deg": str(task.rotation_deg),
    }
    tensors = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, path, metadata=described)


def main() -> None:
    """Parse the command line, train, and print accuracies and times."""
    parser = argparse.ArgumentParser(description="Train the demo zoo of small vision transformers.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the zoo, one file per task")
    parser.add_argument("--tasks", type=int, default=45, help="how many tasks (default: 45)")
    parser.add_argument(
        "--base", type=Path, help="file for the base (default: OUT-base.safetensors, beside OUT)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per processor)")
    options = parser.parse_args()
    out: Path = options.out
    base_path: Path = options.base or out.with_name(f"{out.name}-base.safetensors")
    out.mkdir(parents=True, exist_ok=True)
    names = task_names(options.tasks)
    console = Console(highlight=False, soft_wrap=True)
    started_s = time.perf_counter()
    with progress_bars(console) as bars:
        base_bar = bars.add_task("training the base", total=BASE_STEPS)
        base = train_base(base_path, on_step=lambda: bars.advance(base_bar))
        base_s = time.perf_counter() - started_s
        bar = bars.add_task("fine-tuning", total=len(names))
        fine_tune_all(
            base_path,
            [(name, out / f"{name}.safetensors") for name in names],
            workers=options.workers,
            on_done=lambda _: bars.advance(bar),
        )
    total_s = time.perf_counter() - started_s
    values = [evaluate(load_file(out / f"{name}.safetensors"), name)["value"] for name in names]
    console.print(f"base: accuracy {evaluate(base, BASE_TASK)['value']:.4f}, {base_s:.1f} s")
    console.print(
        f"{len(names)} tasks in {out}: accuracy mean {sum(values) / len(values):.4f}, worst {min(values):.4f}, "
        f"best {max(values):.4f}, {total_s - base_s:.1f} s"
    )


if __name__ == "__main__":
    main()
