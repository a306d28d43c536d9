"""What a machine can do at best: reading files front to back, the products alone, copies to a device; and memory's peak.

Owns these floors. Must not know what is built.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

__all__ = [
    "ENOUGH_S",
    "REPEATS",
    "copy_bytes_per_s",
    "evict",
    "forget_peak",
    "memory_bytes",
    "product_seconds",
    "read_seconds",
]

_BLOCK_BYTES = 1 << 22
REPEATS = 5
ENOUGH_S = 2.0


def memory_bytes(field: str) -> int:
    """Give a line of what the system tells of this process: VmRSS, VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> int:
    """Begin a new high-water mark, and give the memory that is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_bytes("VmRSS")


def evict(folder: Path) -> None:
    """Ask the system to forget the files, so that reading them costs what it costs the first time."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(folder: Path) -> float:
    """Time of reading the files of a zoo once, in their order, front to back, in blocks of 4 MiB."""
    evict(folder)
    began = time.perf_counter()
    block = bytearray(_BLOCK_BYTES)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - began


def product_seconds(models: int, rows: int, columns: int, *, tensors: int = 1) -> tuple[float, float]:
    """Time and CPU time of both moments' whole products, of one tensor or several, each the best of several runs.

    Time is that of torch's own threads or of a thread for each side, whichever is less: threads that wait for a core
    that another process has make the first several times longer. CPU time is that of one thread.
    """
    change = torch.randn(rows, columns)
    sides = (change, change.T) * tensors

    def products(side: torch.Tensor) -> None:
        for _ in range(models):
            side @ side.T

    def together() -> None:
        for side in sides:
            products(side)

    threads = torch.get_num_threads()
    own = _best(time.perf_counter, together)
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads if tensors > 1 else len(sides)) as pool:
        apart = _best(time.perf_counter, lambda: list(pool.map(products, sides)))
    cpu = _best(time.process_time, together)
    torch.set_num_threads(threads)
    return min(own, apart) if threads > 1 else min(own, cpu), cpu


def _best(clock: Callable[[], float], work: Callable[[], object]) -> float:
    taken: list[float] = []
    while not taken or (len(taken) < REPEATS and sum(taken) < ENOUGH_S):
        began = clock()
        work()
        taken.append(clock() - began)
    return min(taken)


def copy_bytes_per_s(device: str, *, size_bytes: int = 1 << 28) -> float:
    """Speed of copies from page-locked memory to a device."""
    there = torch.device(device)
    source = torch.zeros(size_bytes // 4)
    if there.type == "cuda":
        source = source.pin_memory()
    target = torch.empty_like(source, device=there)
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        if there.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return source.nbytes / min(taken)
