"""Load a forged family in a process of its own, whose peak of memory can be measured.

``python load_in_process.py SETTINGS``: a JSON object with how, the folder of a small registry to start everything
with, and that of the registry that is measured.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import uws_store
from uws_store.api.family import Family, open_family
from uws_store.basis.opened import array_record
from uws_store.loader import resident

FAMILY = "vit-b"


def load_in_process(how: str, *, registry: Path, small: Path) -> dict[str, int]:
    """Load in another process and return what it tells: bytes of the model, the basis, and the peak."""
    words = {"how": how, "registry": str(registry), "small": str(small)}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(words)],
        capture_output=True,
        text=True,
        check=False,
        # What is freed goes back to the system at once: what is measured is what was asked for at a time.
        env={**os.environ, "OMP_NUM_THREADS": "2", "MALLOC_MMAP_THRESHOLD_": "65536"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told


class Module(torch.nn.Module):
    """Parameters under the names of a state dict."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            owner: torch.nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if folder not in dict(owner.named_children()):
                    owner.add_module(folder, torch.nn.Module())
                owner = owner.get_submodule(folder)
            owner.register_parameter(last, torch.nn.Parameter(torch.ones(shape), requires_grad=False))


def _resident_bytes(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def _begin() -> int:
    """Hand freed memory back, begin a new high-water mark, and tell what is held now."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident_bytes("VmRSS")


def _shapes(family: Family) -> dict[str, tuple[int, ...]]:
    return {name: source.shape for name, source in family.model(family.resolve("task-0")).sources.items()}


def _peak(how: str, family: Family, registry: str) -> tuple[int, int]:
    """The most memory beside what was there before, and what of it was the basis."""
    if how == "cold":
        before = _begin()
        weights = family.load("task-0").materialize()
        peak = _resident_bytes("VmHWM") - before
        del weights
        return peak, _begin() - before
    shapes = _shapes(family)
    before = _begin()
    family.load("task-0").materialize()
    basis = _begin() - before
    module = Module(shapes)
    if how == "switch again":
        for task in ("task-1", "task-0"):
            family.switch(module, task)
    before = _begin()
    if how == "into":
        uws_store.load_model(FAMILY, "task-1", registry=registry, into=module)
    else:
        family.switch(module, "task-1")
    return _resident_bytes("VmHWM") - before + basis, basis


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(2)
    # As a model that is too large to be made beside the module.
    resident._BESIDE_BYTES = 0
    # Threads have started and the package's code is loaded before anything is counted.
    small = open_family(FAMILY, registry=settings["small"])
    small.switch(Module(_shapes(small)), "task-0")
    small.load("task-0").materialize()
    family = open_family(FAMILY, registry=settings["registry"])
    peak, basis = _peak(settings["how"], family, settings["registry"])
    document = family.basis().document
    numbers = {
        name: record.length
        for name in ("mean", "left", "right")
        if (record := array_record(document, name)) is not None
    }
    told = {
        "model": sum(4 * torch.Size(shape).numel() for shape in _shapes(family).values()),
        "basis": basis,
        # A mean in 16 bits; factors in 16, and in 8 for the products.
        "numbers": 2 * numbers["mean"] + 3 * (numbers["left"] + numbers["right"]),
        "peak": peak,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
