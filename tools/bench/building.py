"""The bench of the builder: subspaces of a zoo beside other packages', and a whole build beside the machine's floors.

Owns the measurements, each in a process of its own. Knows nothing about fidelity.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine_floors import (
    ENOUGH_S,
    REPEATS,
    copy_bytes_per_s,
    evict,
    forget_peak,
    memory_bytes,
    product_seconds,
    read_seconds,
)
from planted_zoo import make_planted_zoo, models_that_fit, vit_shapes
from subspace_methods import METHODS, TENSOR, captured, imported_for, several

__all__ = ["BuildBench", "Measured", "WholeBuild", "build_document", "measure_build", "measure_whole"]


_WIDE = (12, 768, 3072, 64)


@dataclass(frozen=True, slots=True)
class Measured:
    """One method on one tensor of all models.

    Attributes
    ----------
    method : str
        Which.
    seconds : float
        Reading included; the best of up to five runs of what is quick.
    cpu_seconds : float
        Of all threads, in the same run: less shaken than time by what else the machine does.
    peak_bytes : int
        Memory above what the process had after its imports and a first small run.
    captured : float
        Share of the changes' energy in the two subspaces.
    """

    method: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    captured: float


@dataclass(frozen=True, slots=True)
class WholeBuild:
    """A build of vision transformers with planted subspaces, from opening the zoo to the commit.

    Attributes
    ----------
    device : str
        Where tensors were fitted and models encoded.
    models, zoo_bytes : int
        The zoo.
    seconds, cpu_seconds : float
        Of the whole build.
    phases : dict of str to float
        Seconds by phase: reading, fitting, encoding.
    read_seconds : float
        Reading the zoo's files once, front to back.
    copy_bytes_per_s : float
        From page-locked memory to the device.
    peak_bytes, projected_bytes : int
        Memory of the process at its peak, and what was projected.
    stored_bytes : int
        Basis and models.
    remarks : tuple of str
        What the build said of tensors for which the device had no room.
    """

    device: str
    models: int
    zoo_bytes: int
    seconds: float
    cpu_seconds: float
    phases: dict[str, float]
    read_seconds: float
    copy_bytes_per_s: float
    peak_bytes: int
    projected_bytes: int
    stored_bytes: int
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuildBench:
    """Everything measured in one run.

    Attributes
    ----------
    models, rows, columns, rank, threads : int
        The tensor, the rank of both subspaces, and torch's threads.
    load : float
        The machine's load when it began, in processes that wanted a core: above 0 everything here is slower than it is.
    methods : tuple of Measured
        Beside each other.
    read_seconds, product_seconds, product_cpu_seconds : float
        The floors: reading the tensor's files once, front to back, and the products of both moments alone.
    several : Measured
        As many tensors of that shape at once as there are threads, twice over, as a build works: a thread for each.
    several_read_seconds, several_product_seconds, several_product_cpu_seconds : float
        Their floors: one read of their files, and all products with every thread at work.
    wide : tuple of Measured
        One tensor of a vision transformer's size: ours and IncrementalPCA, for their memory; none in a quick run.
    whole : WholeBuild
        A whole build of another zoo.
    """

    models: int
    rows: int
    columns: int
    rank: int
    threads: int
    load: float
    methods: tuple[Measured, ...]
    read_seconds: float
    product_seconds: float
    product_cpu_seconds: float
    several: Measured
    several_read_seconds: float
    several_product_seconds: float
    several_product_cpu_seconds: float
    wide: tuple[Measured, ...]
    whole: WholeBuild


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in this process."""
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["folder"])
    if settings["method"] == "build":
        return _built(folder, settings)
    run = several if settings["method"] == "several" else METHODS[settings["method"]]
    imported_for(settings["method"])
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        # Libraries load their kernels when they are first used: that is not what is measured, in time or memory.
        make_planted_zoo(Path(place), {TENSOR: (48, 64)}, models=3, rank=4)
        run(Path(place), 4)
    taken: list[tuple[float, float]] = []
    peak = 0
    while not taken or (len(taken) < REPEATS and sum(wall for wall, _ in taken) < ENOUGH_S):
        evict(folder)
        before = forget_peak()
        began, cpu = time.perf_counter(), time.process_time()
        left, right = run(folder, settings["rank"])
        taken.append((time.perf_counter() - began, time.process_time() - cpu))
        peak = max(peak, memory_bytes("VmHWM") - before)
    seconds, cpu_seconds = min(taken)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
        "captured": captured(folder, left, right),
    }


def _built(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import uws_store  # noqa: PLC0415 - not in every process

    phases: dict[str, float] = {}
    at = began = time.perf_counter()

    def report(phase: str, _done: int, _total: int, _size_bytes: int = 0) -> None:
        nonlocal at
        now = time.perf_counter()
        phases[phase] = phases.get(phase, 0.0) + now - at
        at = now

    evict(folder)
    at = began = time.perf_counter()
    cpu = time.process_time()
    result = uws_store.build(
        folder,
        family="bench",
        registry=settings["registry"],
        expect_models=500,
        device=settings["device"],
        progress=report,
    )
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "phases": phases,
        "peak_bytes": memory_bytes("VmHWM"),
        "projected_bytes": result.projected_memory_bytes,
        "stored_bytes": result.basis_bytes + sum(model.size_bytes for model in result.models),
        "remarks": result.remarks,
    }


def _measure(method: str, folder: Path, **settings: object) -> dict[str, Any]:
    words = json.dumps({"method": method, "folder": str(folder), **settings})
    done = subprocess.run(
        [sys.executable, __file__, words], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode:
        raise RuntimeError(f"{method} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_whole(
    folder: Path,
    *,
    width: int = 192,
    blocks: int = 2,
    models: int | None = 16,
    threads: int = 2,
    device: str = "cpu",
) -> WholeBuild:
    """Make a zoo of vision transformers, build a family of it, and measure both floors beside it.

    Parameters
    ----------
    folder : Path
        A folder that is there, for the zoo and the registry; what is made in it is removed.
    width, blocks : int
        Of the models; 768 and 12 are ViT-B's.
    models : int or None
        How many; None as many as half of the disk's free room holds, at most 500.
    threads : int
        Threads of torch; a build starts as many workers as there are cores.
    device : str
        Where tensors are fitted and models encoded.
    """
    shapes = vit_shapes(width=width, blocks=blocks)
    count = models or models_that_fit(folder, shapes)
    with tempfile.TemporaryDirectory(prefix="uws-bench-", dir=folder) as place:
        zoo, registry = Path(place) / "zoo", Path(place) / "registry"
        zoo_bytes = make_planted_zoo(zoo, shapes, models=count, rank=max(4, width // 12))
        read_s = read_seconds(zoo)
        found = _measure("build", zoo, registry=str(registry), threads=threads, device=device)
    return WholeBuild(
        device=device,
        models=count,
        zoo_bytes=zoo_bytes,
        read_seconds=read_s,
        copy_bytes_per_s=copy_bytes_per_s(device),
        **{**found, "remarks": tuple(found["remarks"])},
    )


def measure_build(
    *,
    models: int = 32,
    rows: int = 384,
    columns: int = 512,
    rank: int = 32,
    threads: int = 2,
    methods: tuple[str, ...] = tuple(METHODS),
    wide: tuple[int, int, int, int] | None = _WIDE,
    whole_models: int = 16,
    **whole: Any,  # noqa: ANN401 - as of measure_whole
) -> BuildBench:
    """Measure everything on zoos that are made for it and removed.

    Parameters
    ----------
    models, rows, columns, rank : int
        The tensor that the methods see, and the planted rank, which all are asked for.
    threads : int
        Threads of torch.
    methods : tuple of str
        Of :data:`subspace_methods.METHODS`.
    wide : tuple of int, optional
        Models, rows, columns and rank of the tensor on which memory is compared once more.
    whole_models, whole
        The zoo of the whole build, as of :func:`measure_whole`.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        folder = Path(place)
        make_planted_zoo(folder, {TENSOR: (rows, columns)}, models=models, rank=rank)
        torch.set_num_threads(threads)
        measured = [
            Measured(method, **_measure(method, folder, rank=rank, threads=threads)) for method in methods
        ]
        read_s = read_seconds(folder)
        product_s, product_cpu_s = product_seconds(models, rows, columns)
    at_once = _measured_at_once(models, (rows, columns), rank=rank, threads=threads)
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        built = measure_whole(Path(place), models=whole_models, threads=threads, **whole)
    return BuildBench(
        models,
        rows,
        columns,
        rank,
        threads,
        load,
        tuple(measured),
        read_s,
        product_s,
        product_cpu_s,
        *at_once,
        _measured_wide(*wide, threads=threads) if wide is not None else (),
        built,
    )


def _measured_at_once(
    models: int, shape: tuple[int, int], *, rank: int, threads: int
) -> tuple[Measured, float, float, float]:
    """Measure several tensors at once, and their floors."""
    count = 2 * threads
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        folder = Path(place)
        shapes = {TENSOR: shape} | {f"more.{index}.weight": shape for index in range(1, count)}
        make_planted_zoo(folder, shapes, models=models, rank=rank)
        found = Measured("several", **_measure("several", folder, rank=rank, threads=threads))
        read_s = read_seconds(folder)
    seconds, cpu_seconds = product_seconds(models, *shape, tensors=count)
    return found, read_s, seconds, cpu_seconds


def _measured_wide(models: int, rows: int, columns: int, rank: int, *, threads: int) -> tuple[Measured, ...]:
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        folder = Path(place)
        make_planted_zoo(folder, {TENSOR: (rows, columns)}, models=models, rank=rank)
        return tuple(
            Measured(method, **_measure(method, folder, rank=rank, threads=threads))
            for method in ("ours", "incremental-pca")
        )


def build_document(result: BuildBench | WholeBuild) -> dict[str, Any]:
    """Give all numbers as plain data."""
    return asdict(result)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_worker(json.loads(sys.argv[1]))) + "\n")
