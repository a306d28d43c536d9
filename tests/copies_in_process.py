"""Encode and decode one large tensor in a process of its own, and tell how much memory each took.

``python copies_in_process.py FOLDER``, with a basis and a checkpoint below ``small`` and ``large`` of the folder. Writes
one JSON object: bytes at the peak, over what there was before, by what was done.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from uws_store.basis import Basis
from uws_store.builder import encode_model
from uws_store.canonical import Step
from uws_store.checkpoint import open_checkpoint
from uws_store.model import Model, Tier
from uws_store.storage import LocalStorage, open_storage
from uws_store.tensor_bytes import digest_of

T = TypeVar("T")

COARSE, FINE = Step(200, -12), Step(128, -22)
WAYS: dict[str, dict[str, Any]] = {
    "compact": {"step": COARSE},
    "compact fine": {"step": FINE},
    # What the tensor takes alone is compared, and is never less; then always.
    "exact": {"step": COARSE, "exact": True, "exact_overhead": 10.0},
    "exact alone": {"step": COARSE, "exact": True, "exact_overhead": -0.9},
}


def copies_in_process(folder: Path) -> dict[str, int]:
    """Measure in another process."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        # What is freed goes back to the system at once: what is measured is what was asked for at a time.
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told


def _resident_bytes(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def _peak(work: Callable[[], T]) -> tuple[int, T]:
    """Bytes at the peak over those before, and what came of the work."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_bytes("VmRSS")
    made = work()
    return _resident_bytes("VmHWM") - before, made


def _measure(folder: Path) -> dict[str, int]:
    """Encode and decode what lies in a folder; the basis is open and its numbers are read before."""
    storage = open_storage(str(folder))
    assert isinstance(storage, LocalStorage)
    basis = Basis.open(storage, "basis", digest=(folder / "digest").read_text())
    basis.prefetch()
    basis.stored("w")
    peaks: dict[str, int] = {}
    for way, options in WAYS.items():
        with open_checkpoint(folder / "model.safetensors") as checkpoint:
            peaks[f"encode {way}"], encoded = _peak(
                functools.partial(encode_model, basis, checkpoint, **options)
            )
        prefix = way.replace(" ", "-")
        for path, data in encoded.objects.items():
            storage.put_if_absent(f"{prefix}/{path}", data)
        tier: Tier = "exact" if options.get("exact") else "compact"

        def decode(digest: str = encoded.digest, prefix: str = prefix, tier: Tier = tier) -> None:
            opened = Model.open(storage, prefix, digest=digest, basis=basis)
            tensor = opened.tensor("w", tier=tier, device=torch.device("cpu"))
            opened.require_digest("w", digest_of(tensor), tier=tier)

        del encoded
        peaks[f"decode {way}"], _ = _peak(decode)
    return peaks


def main() -> None:
    """Once with a small tensor, so that what is loaded and kept by then does not count, and once with a large one."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    _measure(folder / "small")
    sys.stdout.write(json.dumps(_measure(folder / "large")) + "\n")


if __name__ == "__main__":
    main()
