"""Peak resident memory of one load, in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from forged_vit import FAMILY, ForgedVit
from load_rows import LoadRow, goal_for

from uws_store.api.family import Family
from uws_store.registry import Registry

__all__ = ["measure_memory", "peak_of_a_load"]


def measure_memory(forged: ForgedVit) -> list[LoadRow]:
    """Measure the peak while a model is made, the basis being there; nothing where the system does not tell it."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        basis, model, peak = pool.submit(peak_of_a_load, forged.registry, torch.get_num_threads()).result()
    group = "memory"
    ratio = (peak + basis) / (model + basis)
    return [
        LoadRow(group, "model", size_bytes=model),
        LoadRow(group, "basis, made ready for the CPU", size_bytes=basis),
        LoadRow(
            group,
            "peak while a model is made, the basis not counted",
            size_bytes=peak,
            value=ratio,
            unit="x the model and the basis",
            **goal_for(forged, "1.2", met=ratio <= 1.2),
        ),
    ]


def peak_of_a_load(registry: Path, threads: int) -> tuple[int, int, int]:
    """Bytes of the basis in memory, of a model, and of the peak above the basis while the model is made."""
    torch.set_num_threads(threads)
    family = Family(Registry.open(str(registry)), FAMILY)
    # torch and its threads have started, and the package's own code is loaded, before anything is counted.
    torch.ones(512, 512) @ torch.ones(512, 512)
    _give_back()
    before = _resident_bytes("VmRSS")
    family.load("task-0").materialize()
    _give_back()
    basis = _resident_bytes("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")
    at_rest = _resident_bytes("VmRSS")
    weights = family.load("task-1").materialize()
    peak = _resident_bytes("VmHWM") - at_rest
    return basis, sum(tensor.numel() * tensor.element_size() for tensor in weights.values()), peak


def _give_back() -> None:
    """Hand freed memory back to the system, where the C library can: it would be counted as in use."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _resident_bytes(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0
