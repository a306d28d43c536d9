"""What pushing a family of small models costs: each in a folder of its own, the baseline, and in packs.

Requests are calls to the storage: every look, read, write and deletion, those of making the registry not counted.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from counting import Counting
from planted_zoo import make_planted_zoo
from publishers import BUCKET, moto
from rich.console import Console
from rich.table import Table

from uws_store.api import build, pull, push
from uws_store.registry import Registry
from uws_store.storage import LocalStorage, Storage, open_storage

__all__ = ["MODELS", "Pushed", "measure_pushing", "pushed_markdown", "show_pushed"]

MODELS = 80
_SHAPES = {"a.weight": (16, 16), "b.weight": (16, 16), "head.bias": (3,)}
_FAMILY = "small"


@dataclass(frozen=True, slots=True)
class Pushed:
    """One push of the family, and the pull back.

    Attributes
    ----------
    storage : str
        Where to.
    packed : bool
        Whether models went into packs.
    requests, again, pulled : int
        Calls to the storage: of the first push, of one that finds everything there, of a pull.
    files, size_bytes : int
        Objects of the registry afterwards, and their length.
    seconds : float
        Wall time of the first push.
    """

    storage: str
    packed: bool
    requests: int
    again: int
    pulled: int
    files: int
    size_bytes: int
    seconds: float


def measure_pushing(*, progress: Callable[[str], None]) -> tuple[Pushed, ...]:
    """Build a family of small models and push it to the disk, and to moto where that is installed."""
    with contextlib.ExitStack() as places:
        folder = Path(places.enter_context(tempfile.TemporaryDirectory()))
        progress(f"building {MODELS} small models")
        make_planted_zoo(folder / "zoo", _SHAPES, models=MODELS, rank=4)
        source = Registry.init(str(folder / "source"))
        build(folder / "zoo", family=_FAMILY, registry=source)
        targets: dict[str, Callable[[str], Storage]] = {
            "disk": lambda name: LocalStorage(folder / name, create=True)
        }
        address = places.enter_context(moto())
        if address is not None:
            options = {"endpoint_url": address, "key": "bench", "secret": "bench"}
            targets["S3 (moto)"] = lambda name: open_storage(f"s3://{BUCKET}/{name}", storage_options=options)
        results: list[Pushed] = []
        for name, made in targets.items():
            for packed in (False, True):
                progress(f"{name}: pushing {'in packs' if packed else 'in folders'}")
                back = Registry.init(str(folder / f"back-{name}-{packed}"))
                results.append(_push(source, name, made(f"target-{packed}"), back, packed=packed))
        return tuple(results)


def _push(source: Registry, name: str, target: Storage, back: Registry, *, packed: bool) -> Pushed:
    Registry.over(target, create=True)
    costs: list[int] = []
    seconds = 0.0
    for time_number in range(2):
        counting = Counting(target)
        registry = Registry.over(counting)
        counting.requests = 0
        began = time.perf_counter()
        push(_FAMILY, registry, registry=source, pack=packed)
        seconds = seconds if time_number else time.perf_counter() - began
        costs.append(counting.requests)
    counting = Counting(target)
    pull(Registry.over(counting), _FAMILY, registry=back)
    paths = list(target.list(""))
    size_bytes = sum(target.size(path) or 0 for path in paths)
    first, again = costs
    return Pushed(name, packed, first, again, counting.requests, len(paths), size_bytes, seconds)


def show_pushed(results: Sequence[Pushed], console: Console) -> None:
    """Print the table."""
    table = Table(*_HEAD)
    for row in map(_row, results):
        table.add_row(*row)
    console.print(table)


def pushed_markdown(results: Sequence[Pushed]) -> str:
    """Write the table for ``results/``."""
    rows = "".join(f"| {' | '.join(_row(result))} |\n" for result in results)
    return (
        f"## Pushing {MODELS} small models\n\nEach in a folder of its own, the baseline, and in packs. Requests are calls "
        "to the storage.\n\n"
        f"| {' | '.join(_HEAD)} |\n|---|---|{'--:|' * (len(_HEAD) - 2)}\n{rows}"
    )


_HEAD = ("storage", "models lie", "push (s)", "requests", "a second push", "pull", "files", "bytes")


def _row(result: Pushed) -> tuple[str, ...]:
    return (
        result.storage,
        "in packs" if result.packed else "in folders",
        f"{result.seconds:.2f}",
        str(result.requests),
        str(result.again),
        str(result.pulled),
        str(result.files),
        f"{result.size_bytes:,}",
    )
