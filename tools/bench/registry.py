"""The bench of the registry: what opening costs beside reading the whole log, at the size a team reaches.

A registry is written as publishers would leave it, without the objects of its models: only names are measured.
"""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from counting import Counting
from pushing import Pushed, measure_pushing, pushed_markdown, show_pushed
from rich.console import Console
from rich.table import Table

from uws_store.metadata.log import Action, BasisAction, FamilyAction, ModelAction, PackPlace
from uws_store.registry import Registry, RegistryState
from uws_store.registry.reading import replay
from uws_store.storage import LocalStorage, MemoryStorage, Storage

__all__ = ["OpeningResult", "document", "markdown", "measure_opening", "show_opening"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way of doing a thing took.

    Attributes
    ----------
    seconds : float
        Wall time, the least of the repeats.
    requests : int
        Calls to the storage.
    size_bytes : int
        Bytes they fetched.
    """

    seconds: float
    requests: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OpeningResult:
    """The measurements.

    Attributes
    ----------
    models, families, commits : int
        The registry's size.
    log_bytes, snapshot_bytes : int
        What the commits take, and what snapshots and indexes take beside them.
    resolve : Cost
        Opening the registry and resolving one model.
    packed : Cost
        The same where every model lies in a pack, of which the log and the snapshots say the places.
    whole_log : Cost
        The same by reading every commit: the baseline.
    listing : Cost
        Walking over every model of the registry.
    listing_peak_bytes : int
        Memory that the walk took at most beyond the open registry.
    pushed : tuple of Pushed
        What pushing a family of small models took, without and with packs.
    """

    models: int
    families: int
    commits: int
    log_bytes: int
    snapshot_bytes: int
    resolve: Cost
    packed: Cost
    whole_log: Cost
    listing: Cost
    listing_peak_bytes: int
    pushed: tuple[Pushed, ...]


def measure_opening(
    folder: Path, *, models: int, families: int, per_commit: int, progress: Callable[[str], None]
) -> OpeningResult:
    """Write a registry and measure how it is opened.

    Parameters
    ----------
    folder : Path
        Where to write it; when it is there already it is used as it is.
    models, families, per_commit : int
        Its size, and how many models a commit adds.
    progress : callable
        Told what is being done.
    """
    in_packs = folder.with_name(f"{folder.name}-packs")
    for place in (folder, in_packs):
        if not place.exists():
            progress(f"writing {models} models")
            _write(place, models=models, families=families, per_commit=per_commit, packed=place is in_packs)
    storage = LocalStorage(folder)
    commits = Registry.over(storage).state().number
    wanted = f"family-{families // 2:04d}"

    def resolve(counting: Storage) -> None:
        Registry.over(counting).resolve(wanted, "task-00001")

    def whole(counting: Storage) -> None:
        replay(counting, commits).resolve(wanted, "task-00001")

    def listing(counting: Storage) -> None:
        found = sum(1 for _ in Registry.over(counting).state().models())
        assert found == models

    progress("resolving")
    resolving = _cost(storage, resolve, repeats=7)
    packed = _cost(LocalStorage(in_packs), resolve, repeats=7)
    progress("listing")
    walking = _cost(storage, listing, repeats=2)
    tracemalloc.start()
    listing(storage)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    progress("reading the whole log")
    reading = _cost(storage, whole, repeats=1)
    logs = {path: (folder / path).stat().st_size for path in storage.list("_log") if path != "_log/head"}
    index_bytes = sum(
        len(json.dumps(index, separators=(",", ":")))
        for path in logs
        if "snapshots" not in path
        and (index := json.loads((folder / path).read_bytes()).get("index")) is not None
    )
    snapshots = sum(size for path, size in logs.items() if "snapshots" in path)
    return OpeningResult(
        models=models,
        families=families,
        commits=commits,
        log_bytes=sum(logs.values()) - snapshots - index_bytes,
        snapshot_bytes=snapshots + index_bytes,
        resolve=resolving,
        packed=packed,
        whole_log=reading,
        listing=walking,
        listing_peak_bytes=peak,
        pushed=measure_pushing(progress=progress),
    )


def show_opening(result: OpeningResult, console: Console) -> None:
    """Print the measurements."""
    table = Table("way", "time (s)", "requests", "bytes read")
    for name, cost in _rows(result):
        table.add_row(name, f"{cost.seconds:.4f}", str(cost.requests), f"{cost.size_bytes:,}")
    console.print(table)
    console.print(_remarks(result), highlight=False)
    show_pushed(result.pushed, console)


def document(result: OpeningResult) -> dict[str, object]:
    """Lay the numbers out for JSON."""
    return asdict(result)


def markdown(result: OpeningResult, *, command: str) -> str:
    """Write the table of ``results/registry.md``."""
    rows = "\n".join(
        f"| {name} | {cost.seconds:.4f} | {cost.requests} | {cost.size_bytes:,} |"
        for name, cost in _rows(result)
    )
    return (
        f"# Opening a registry\n\nMade by `{command}`, on a local disk whose files are in the page cache.\n\n"
        f"| way | time (s) | requests | bytes read |\n|---|---|---|---|\n{rows}\n\n{_remarks(result)}\n\n{pushed_markdown(result.pushed)}"
    )


def _rows(result: OpeningResult) -> Iterator[tuple[str, Cost]]:
    yield "open, resolve one model", result.resolve
    yield "the same, models in packs", result.packed
    yield "baseline: read the whole log, resolve it", result.whole_log
    yield "open, walk over every model", result.listing


def _remarks(result: OpeningResult) -> str:
    return (
        f"{result.models:,} models in {result.families} families, {result.commits:,} commits. The log takes "
        f"{result.log_bytes:,} bytes, indexes and snapshots {result.snapshot_bytes:,}. The walk takes "
        f"{result.listing_peak_bytes:,} bytes of memory at most."
    )


def _cost(storage: Storage, action: Callable[[Storage], None], *, repeats: int) -> Cost:
    least = float("inf")
    for _ in range(repeats):
        counting = Counting(storage)
        began = time.perf_counter()
        action(counting)
        least = min(least, time.perf_counter() - began)
    return Cost(least, counting.requests, counting.size_bytes)


def _write(folder: Path, *, models: int, families: int, per_commit: int, packed: bool) -> None:
    """Publish in memory, then write the files: flushing each of them to a disk is not what is measured."""
    storage = MemoryStorage()
    registry = Registry.over(storage, create=True)
    each = models // families
    for number in range(families):
        registry.publish(_founding(f"family-{number:04d}"))
        for first in range(0, each, per_commit):
            tasks = [f"task-{task:05d}" for task in range(first, min(each, first + per_commit))]
            registry.publish(_adding(f"family-{number:04d}", tasks, packed=packed))
    for path in storage.list(""):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(storage.read(path))


def _founding(name: str) -> Callable[[RegistryState], list[Action]]:
    return lambda _: [
        FamilyAction(family=name, architecture=_digest(name)),
        BasisAction(family=name, revision=1, digest=_digest(f"{name} 1"), size_bytes=10_000),
    ]


def _adding(family: str, tasks: list[str], *, packed: bool) -> Callable[[RegistryState], list[Action]]:
    pack = _digest(f"{family} {tasks[0]}")
    return lambda state: [
        ModelAction(
            family=family,
            task=task,
            version=state.next_version(family, task),
            basis_revision=1,
            digest=_digest(f"{family}/{task}"),
            size_bytes=17_000,
            exact=False,
            pack=PackPlace(digest=pack, offset=17_000 * number, document=1_000, length=17_000)
            if packed
            else None,
        )
        for number, task in enumerate(tasks)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
