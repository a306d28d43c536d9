"""What loading takes: time to weights from disk and over links, switches per second, memory and requests.

Every figure stands beside its rivals, measured in the same run on the same weights: safetensors (mapped and read),
``torch.load``, safetensors in zstd, and zarr arrays. Owns the order of the measurements; the families are made by
``forged_vit.py`` and from the demo's network.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from forged_vit import ForgedVit, forge_vit
from load_device import measure_device
from load_disk import Rivals, measure_disk
from load_links import LINKS, measure_links
from load_memory import measure_memory
from load_rows import LoadRow
from load_switching import measure_switching
from s3_stand_in import is_installed

__all__ = ["measure_loading"]


def measure_loading(
    folder: Path,
    *,
    quick: bool = False,
    digits: Path | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> list[LoadRow]:
    """Measure everything.

    Parameters
    ----------
    folder : Path
        A folder for families and rivals' files, several GiB. A large family that is there is taken again.
    quick : bool
        A network of a hundredth of the size, and fewer repeats: shows that the bench runs, not how fast.
    digits : Path, optional
        A folder of trained digits networks to switch between, instead of forged ones.
    device : str, optional
        A GPU to switch the large network on.
    say : callable
        Told what is being done.
    """
    say("writing a family of ViT-B's size")
    forged = _forged(
        folder / ("small" if quick else "vit"), width=192 if quick else 768, depth=1 if quick else 12
    )
    rivals = Rivals.write(forged.plain, folder / "rivals")
    repeats = 2 if quick else 3
    say("local disk")
    rows = measure_disk(forged, rivals, repeats=repeats)
    if is_installed():
        names = list(LINKS)[1:2] if quick else list(LINKS)
        links = {name: LINKS[name] for name in names}
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            rows += measure_links(forged, rivals, links=links, folder=Path(cache), say=say)
    else:
        say("links are left out: they need moto[server] and s3fs")
    say("memory")
    rows += measure_memory(forged)
    if device is not None:
        say(f"switching on {device}")
        rows += measure_device(forged, device, repeats=5 if quick else 50, quick=quick)
    say("switching the digits networks")
    return rows + measure_switching(folder / "digits", repeats=20 if quick else 200, digits=digits)


def _forged(folder: Path, *, width: int, depth: int) -> ForgedVit:
    """Write the large family, or take the one that an earlier run left."""
    record = folder / "forged.json"
    if record.exists():
        held = json.loads(record.read_text())
        held |= {
            "registry": Path(held["registry"]),
            "plain": Path(held["plain"]),
            "tasks": tuple(held["tasks"]),
        }
        return ForgedVit(**held)
    forged = forge_vit(folder, width=width, depth=depth)
    record.write_text(json.dumps(asdict(forged), default=str))
    return forged
