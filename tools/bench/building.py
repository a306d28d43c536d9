"""The bench of the builder: subspaces of a zoo beside other packages', and a whole build beside the machine's floors.

Owns the zoo that is measured (planted subspaces, so that any size can be made) and the measurements, each in a process
of its own. Knows nothing about fidelity.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file

__all__ = [
    "METHODS",
    "BuildBench",
    "Measured",
    "build_document",
    "make_planted_zoo",
    "measure_build",
    "show_build",
    "vit_shapes",
]

_NAME = "layer.weight"
_BLOCK_BYTES = 1 << 22
_REPEATS = 5
_ENOUGH_S = 2.0
METHODS = ("ours", "incremental-pca", "pca", "pca-lowrank", "tucker")
"""Ways to the same subspaces. The PCAs see the rows of all models, then their columns."""


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
    read_seconds, product_seconds : float
        The floors: reading the tensor's files once, front to back, and the products of both moments alone.
    zoo_bytes, build_seconds, build_read_seconds, build_peak_bytes, projected_bytes : number
        A whole build of another zoo: its bytes, its time, the time to read it once, its peak and what was projected.
    device : dict
        Moments on an accelerator, where one was asked for: bytes per second of moments and of copies to it.
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
    zoo_bytes: int
    build_seconds: float
    build_read_seconds: float
    build_peak_bytes: int
    projected_bytes: int
    device: dict[str, float]


def vit_shapes(*, width: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Give the tensors of a vision transformer; 768 and 12 are ViT-B."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (width, width)}
    for index in range(blocks):
        at = f"blocks.{index}"
        shapes |= {
            f"{at}.qkv.weight": (3 * width, width),
            f"{at}.proj.weight": (width, width),
            f"{at}.fc1.weight": (4 * width, width),
            f"{at}.fc2.weight": (width, 4 * width),
            f"{at}.norm.weight": (width,),
        }
    return shapes


def make_planted_zoo(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, models: int, rank: int, seed: int = 0
) -> int:
    """Write models that share a base and differ inside planted subspaces, and by a little noise.

    Returns
    -------
    int
        Bytes of all files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    base = {name: normal(*shape) for name, shape in shapes.items()}
    planted = {
        name: (normal(shape[0], rank), normal(rank, shape[1]))
        for name, shape in shapes.items()
        if len(shape) > 1
    }
    total = 0
    for index in range(models):
        weights = {}
        for name, value in base.items():
            change = 0.01 * normal(*value.shape)
            if name in planted:
                left, right = planted[name]
                change += 0.05 * (left @ normal(rank, rank) / rank) @ right
            weights[name] = value + change
        path = folder / f"task-{index:04d}.safetensors"
        save_file(weights, path)
        total += path.stat().st_size
    return total


def _slices(folder: Path) -> Iterator[torch.Tensor]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield file.get_tensor(_NAME)


def _mean(folder: Path) -> torch.Tensor:
    total, count = None, 0
    for tensor in _slices(folder):
        values = tensor.to(torch.float64)
        total = values if total is None else total.add_(values)
        count += 1
    assert total is not None
    return (total / count).to(torch.float32)


def _ours(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    from uws_store.moments import SideMoment, eigenvectors  # noqa: PLC0415 - not in every process

    # One pass: moments about the first model, moved to the mean of all. A build gives each thread a tensor of its own;
    # here there is one tensor, and each thread takes one of its sides.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    slices = _slices(folder)
    reference = next(slices)
    total = torch.zeros(reference.shape, dtype=torch.float64)
    moments = [
        SideMoment(size=size, block=size, side=side)
        for side, size in zip(("left", "right"), reference.shape, strict=True)
    ]
    count = 1
    with ThreadPoolExecutor(threads) as pool:
        for tensor in slices:
            change = tensor - reference
            at_work = [pool.submit(moment.add, change) for moment in moments]
            total += change
            count += 1
            wait(at_work)
        total /= count

        def finished(moment: SideMoment) -> torch.Tensor:
            moment.add(total, times=-count)
            return eigenvectors(moment.blocks()[0], rank)

        left, right = pool.map(finished, moments)
    torch.set_num_threads(threads)
    return left, right


def _stacked(folder: Path) -> torch.Tensor:
    mean = _mean(folder)
    return torch.stack([tensor - mean for tensor in _slices(folder)])


def _incremental_pca(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.decomposition import IncrementalPCA  # noqa: PLC0415 - an extra

    mean = _mean(folder)
    rows, columns = IncrementalPCA(rank), IncrementalPCA(rank)
    for tensor in _slices(folder):
        change = (tensor - mean).numpy()
        rows.partial_fit(change)
        columns.partial_fit(change.T)
    return torch.from_numpy(columns.components_.T), torch.from_numpy(rows.components_.T)


def _pca(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.decomposition import PCA  # noqa: PLC0415 - an extra

    changes = _stacked(folder)
    right = PCA(rank).fit(changes.reshape(-1, changes.shape[2]).numpy()).components_.T
    left = PCA(rank).fit(changes.transpose(1, 2).reshape(-1, changes.shape[1]).numpy()).components_.T
    return torch.from_numpy(left), torch.from_numpy(right)


def _pca_lowrank(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    changes = _stacked(folder)
    torch.manual_seed(0)
    _, _, right = torch.pca_lowrank(changes.reshape(-1, changes.shape[2]), q=rank, center=False)
    _, _, left = torch.pca_lowrank(
        changes.transpose(1, 2).reshape(-1, changes.shape[1]), q=rank, center=False
    )
    return left, right


def _tucker(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    import tensorly  # noqa: PLC0415 - an extra
    from tensorly.decomposition import partial_tucker  # noqa: PLC0415 - an extra

    tensorly.set_backend("pytorch")
    (_, factors), _ = partial_tucker(_stacked(folder), rank=[rank, rank], modes=[1, 2])
    return factors[0], factors[1]


_RUN: Mapping[str, Callable[[Path, int], tuple[torch.Tensor, torch.Tensor]]] = {
    "ours": _ours,
    "incremental-pca": _incremental_pca,
    "pca": _pca,
    "pca-lowrank": _pca_lowrank,
    "tucker": _tucker,
}


def _captured(folder: Path, left: torch.Tensor, right: torch.Tensor) -> float:
    """Share of the changes' energy inside both subspaces; factors that are not orthonormal are made so."""
    left, right = (torch.linalg.qr(side.to(torch.float64))[0] for side in (left, right))
    mean = _mean(folder).to(torch.float64)
    inside = whole = 0.0
    for tensor in _slices(folder):
        change = tensor.to(torch.float64) - mean
        inside += float((left.T @ change @ right).square().sum())
        whole += float(change.square().sum())
    return inside / whole


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _forget_peak() -> int:
    """Begin a new high-water mark, and give the memory that is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _evict(folder: Path) -> None:
    """Ask the system to forget the files, so that reading them costs what it costs the first time."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_seconds(folder: Path) -> float:
    _evict(folder)
    began = time.perf_counter()
    block = bytearray(_BLOCK_BYTES)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - began


def _product_seconds(models: int, rows: int, columns: int) -> float:
    """Time of both moments' whole products; the best of as many runs as the methods get."""
    change = torch.randn(rows, columns)
    taken: list[float] = []
    while not taken or (len(taken) < _REPEATS and sum(taken) < _ENOUGH_S):
        began = time.perf_counter()
        for _ in range(models):
            change @ change.T
            change.T @ change
        taken.append(time.perf_counter() - began)
    return min(taken)


def _worker(settings: dict[str, Any]) -> dict[str, float]:
    """Run one measurement in this process."""
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["folder"])
    if settings["method"] == "build":
        import uws_store  # noqa: PLC0415 - not in every process

        _evict(folder)
        began = time.perf_counter()
        result = uws_store.build(folder, family="bench", registry=settings["registry"], expect_models=500)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "peak": _memory("VmHWM"), "projected": result.projected_memory_bytes}
    run = _RUN[settings["method"]]
    if settings["method"] in ("pca", "incremental-pca"):
        import sklearn.decomposition  # noqa: F401, PLC0415 - its import is not what is measured
    if settings["method"] == "tucker":
        import tensorly.decomposition  # noqa: F401, PLC0415 - as above
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        # Libraries load their kernels when they are first used: that is not what is measured, in time or memory.
        make_planted_zoo(Path(place), {_NAME: (48, 64)}, models=3, rank=4)
        run(Path(place), 4)
    taken: list[tuple[float, float]] = []
    peak = 0
    while not taken or (len(taken) < _REPEATS and sum(wall for wall, _ in taken) < _ENOUGH_S):
        _evict(folder)
        before = _forget_peak()
        began, cpu = time.perf_counter(), time.process_time()
        left, right = run(folder, settings["rank"])
        taken.append((time.perf_counter() - began, time.process_time() - cpu))
        peak = max(peak, _memory("VmHWM") - before)
    seconds, cpu_seconds = min(taken)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak": peak,
        "captured": _captured(folder, left, right),
    }


def _measure(method: str, folder: Path, **settings: object) -> dict[str, float]:
    words = json.dumps({"method": method, "folder": str(folder), **settings})
    done = subprocess.run(
        [sys.executable, __file__, words], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode:
        raise RuntimeError(f"{method} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _on_device(device: str, *, models: int, rows: int, columns: int) -> dict[str, float]:
    """Speed of moments on a device, from copies of a slice in page-locked memory, and of the copies alone."""
    from uws_store.subspace import block_moments  # noqa: PLC0415 - not in every process

    pinned = torch.randn(rows, columns)
    if device.startswith("cuda"):
        pinned = pinned.pin_memory()

    def sync() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def timed(work: Callable[[torch.Tensor], object]) -> float:
        work(pinned.to(device))
        sync()
        began = time.perf_counter()
        for _ in range(models):
            work(pinned.to(device, non_blocking=True))
        sync()
        return models * pinned.nbytes / (time.perf_counter() - began)

    def moments(change: torch.Tensor) -> None:
        for side, size in zip(("left", "right"), change.shape, strict=True):
            block_moments([change], size=size, block=size, side=side)

    return {"copy_bytes_per_s": timed(lambda change: change), "moments_bytes_per_s": timed(moments)}


def measure_build(
    *,
    models: int = 32,
    rows: int = 384,
    columns: int = 512,
    rank: int = 32,
    threads: int = 2,
    width: int = 192,
    blocks: int = 4,
    zoo_models: int = 16,
    synthetic: int | None = None,
    methods: tuple[str, ...] = METHODS,
    device: str | None = None,
) -> BuildBench:
    """Measure everything on zoos that are made for it and removed.

    Parameters
    ----------
    models, rows, columns, rank : int
        The tensor that the methods see, and the planted rank, which all are asked for.
    threads : int
        Threads of torch; a build starts as many workers as there are cores.
    width, blocks, zoo_models : int
        The vision transformers of the whole build.
    synthetic : int, optional
        In place of `zoo_models`.
    methods : tuple of str
        Of :data:`METHODS`.
    device : str, optional
        Also measure moments there.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="uws-bench-") as place:
        root = Path(place)
        make_planted_zoo(root / "tensor", {_NAME: (rows, columns)}, models=models, rank=rank)
        torch.set_num_threads(threads)
        measured = []
        for method in methods:
            found = _measure(method, root / "tensor", rank=rank, threads=threads)
            measured.append(
                Measured(
                    method, found["seconds"], found["cpu_seconds"], int(found["peak"]), found["captured"]
                )
            )
        read_s = _read_seconds(root / "tensor")
        product_s = _product_seconds(models, rows, columns)
        zoo_bytes = make_planted_zoo(
            root / "zoo",
            vit_shapes(width=width, blocks=blocks),
            models=synthetic or zoo_models,
            rank=max(4, width // 12),
        )
        build = _measure("build", root / "zoo", registry=str(root / "registry"), threads=threads)
        build_read_s = _read_seconds(root / "zoo")
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
        zoo_bytes,
        build["seconds"],
        build_read_s,
        int(build["peak"]),
        int(build["projected"]),
        _on_device(device, models=models, rows=rows, columns=columns) if device else {},
    )


def show_build(result: BuildBench, console: Console) -> None:
    """Print the tables."""
    table = Table(
        title=f"Subspaces of {result.models} x {result.rows} x {result.columns}, rank {result.rank}"
    )
    for name in ("method", "time", "of ours", "CPU", "memory", "of ours", "captured"):
        table.add_column(name, justify="left" if name == "method" else "right")
    ours = result.methods[0]
    for one in result.methods:
        table.add_row(
            one.method,
            f"{one.seconds:.2f} s",
            f"{one.seconds / ours.seconds:.1f}x",
            f"{one.cpu_seconds:.2f} s",
            f"{one.peak_bytes / 2**20:.0f} MiB",
            f"{one.peak_bytes / max(1, ours.peak_bytes):.1f}x",
            f"{one.captured:.4f}",
        )
    console.print(table)
    floor = max(result.read_seconds, result.product_seconds)
    console.print(f"load of the machine when it began: {result.load:.1f}")
    console.print(
        f"floors: read {result.read_seconds:.2f} s, products {result.product_seconds:.2f} s; ours is at "
        f"{floor / ours.seconds:.0%} of the larger floor's speed"
    )
    console.print(
        f"whole build of {result.zoo_bytes / 2**20:.0f} MiB: {result.build_seconds:.1f} s "
        f"({result.zoo_bytes / result.build_seconds / 1e9:.3f} GB/s), one read takes {result.build_read_seconds:.2f} s; "
        f"peak {result.build_peak_bytes / 2**20:.0f} MiB of {result.projected_bytes / 2**20:.0f} MiB projected"
    )
    if result.device:
        console.print(", ".join(f"{name} {value / 1e9:.2f} GB/s" for name, value in result.device.items()))


def build_document(result: BuildBench) -> dict[str, Any]:
    """Give all numbers as plain data."""
    return asdict(result)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_worker(json.loads(sys.argv[1]))) + "\n")
