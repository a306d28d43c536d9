"""What loading takes: time to weights from disk and over links, switches per second, memory and requests.

Every figure stands beside its rivals, measured in the same run on the same weights: safetensors (mapped and read),
``torch.load``, safetensors in zstd, and zarr arrays. A link is modelled: each request of the reader waits its
latency and its bytes' share of a bandwidth that all requests have in common, on top of what reading the local file
takes; rivals fetch one object and load it after. Owns the measurements; the families are made by ``forged_vit.py`` and
from the demo's network.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import multiprocessing
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import numcodecs
import torch
import zarr
from forged_vit import FAMILY, ForgedVit, forge_vit
from safetensors.torch import load, load_file, save_file
from torch import Tensor

import uws_store
from uws_store import layout
from uws_store.api.family import Family
from uws_store.basis import Basis
from uws_store.loader import LazyStateDict
from uws_store.model import Model
from uws_store.registry import Registry
from uws_store.storage import LocalStorage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

from vit import DigitsViT

__all__ = ["LINKS", "LinkStorage", "LoadRow", "measure_loading"]

LINKS: Mapping[str, float] = {"100 Mbit/s": 100e6, "1 Gbit/s": 1e9, "10 Gbit/s": 10e9}
LATENCY_S = 0.02
_ZSTD_LEVEL = 3
_OURS = "uws-store, basis warm, digests checked"
_GOAL_PARAMETERS = 80_000_000


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One measurement.

    Attributes
    ----------
    group : str
        What is compared: one table.
    what : str
        The way of loading.
    seconds : float or None
        Median time to all weights in memory.
    busy_s : float or None
        Median processor time, of all threads together: what is left of it when others use the cores too.
    size_bytes : int or None
        Bytes that were fetched.
    requests : int or None
        Requests that were made.
    value : float or None
        Another number, with its unit in ``unit``.
    unit : str
        Unit of ``value``.
    goal : str
        What the project set itself.
    met : bool or None
        Whether it is met.
    """

    group: str
    what: str
    seconds: float | None = None
    busy_s: float | None = None
    size_bytes: int | None = None
    requests: int | None = None
    value: float | None = None
    unit: str = ""
    goal: str = ""
    met: bool | None = None


class LinkStorage(LocalStorage):
    """A local folder behind a modelled link; counts what passes.

    Parameters
    ----------
    root : Path
        The folder.
    bits_per_s : float or None
        Bandwidth that all requests share; None for no link.
    latency_s : float
        What each request waits first.
    """

    def __init__(self, root: Path, *, bits_per_s: float | None, latency_s: float = LATENCY_S) -> None:
        super().__init__(root)
        self.requests = 0
        self.size_bytes = 0
        self._bits_per_s = bits_per_s
        self._latency_s = latency_s
        self._free_at_s = 0.0
        self._lock = threading.Lock()

    def _pass(self, count: int) -> None:
        with self._lock:
            self.requests += 1
            self.size_bytes += count
            if self._bits_per_s is None:
                return
            now_s = time.perf_counter()
            begins_s = max(now_s + self._latency_s, self._free_at_s)
            self._free_at_s = begins_s + 8 * count / self._bits_per_s
            wait_s = self._free_at_s - now_s
        time.sleep(wait_s)

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Read, as the link lets it."""
        try:
            data = super().read(path, start=start, end=end)
        except uws_store.UwsError:
            self._pass(0)
            raise
        self._pass(len(data))
        return data

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """Read a small object, as the link lets it."""
        data = super().read_at_most(path, limit_bytes)
        self._pass(len(data or b""))
        return data

    def size(self, path: str) -> int | None:
        """Ask for a length, as the link lets it."""
        self._pass(0)
        return super().size(path)


class _Goal(TypedDict):
    goal: str
    met: bool | None


_NO_GOAL: _Goal = {"goal": "", "met": None}


@dataclass(frozen=True, slots=True)
class _Taken:
    """Medians of a task: by the clock, and of processor time."""

    seconds: float
    busy_s: float


def _medians(tasks: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, _Taken]:
    """Time tasks by repeats that take turns, after one round to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for index in range(repeats + 1):
        for name, task in tasks.items():
            started_s, busy_s = time.perf_counter(), time.process_time()
            task()
            if index:
                taken[name].append((time.perf_counter() - started_s, time.process_time() - busy_s))
    return {
        name: _Taken(*(statistics.median(column) for column in zip(*values, strict=True)))
        for name, values in taken.items()
    }


def measure_loading(
    folder: Path, *, quick: bool = False, say: Callable[[str], None] = lambda _text: None
) -> list[LoadRow]:
    """Measure everything.

    Parameters
    ----------
    folder : Path
        A folder for families and rivals' files, several GiB. A large family that is there is taken again.
    quick : bool
        A network of a hundredth of the size, and fewer repeats: shows that the bench runs, not how fast.
    say : callable
        Told what is being done.
    """
    say("writing a family of ViT-B's size")
    forged = _forged(
        folder / ("small" if quick else "vit"), width=192 if quick else 768, depth=1 if quick else 12
    )
    rivals = Rivals.write(forged.plain, folder / "rivals")
    repeats = 2 if quick else 5
    say("local disk")
    rows = _from_disk(forged, rivals, repeats=repeats)
    say("links")
    rows += _over_links(forged, rivals, links=dict(list(LINKS.items())[1:2]) if quick else LINKS)
    say("memory")
    rows += _memory(forged)
    say("switching the digits networks")
    return rows + _switching(folder / "digits", repeats=20 if quick else 200)


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


@dataclass(frozen=True, slots=True)
class Rivals:
    """The same weights in other containers.

    Attributes
    ----------
    plain, pickled, packed, arrays : Path
        safetensors, ``torch.save``, safetensors in zstd, and a zarr group with an array per tensor.
    """

    plain: Path
    pickled: Path
    packed: Path
    arrays: Path

    @classmethod
    def write(cls, plain: Path, folder: Path) -> Rivals:
        """Write them beside a safetensors file."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        weights = load_file(plain)
        torch.save(weights, folder / "plain.pt")
        packed = numcodecs.Zstd(_ZSTD_LEVEL).encode(plain.read_bytes())
        (folder / "plain.zst").write_bytes(packed)
        group = zarr.open_group(folder / "plain.zarr", mode="w")
        for name, tensor in weights.items():
            group.create_array(name, data=tensor.numpy())
        return cls(plain, folder / "plain.pt", folder / "plain.zst", folder / "plain.zarr")

    def tasks(self) -> dict[str, tuple[Callable[[], dict[str, Tensor]], int, int]]:
        """Each way of loading: how, bytes, requests to a store that holds it so."""
        files = [path for path in self.arrays.rglob("*") if path.is_file()]
        return {
            "safetensors, mapped and touched": (self._mapped, self.plain.stat().st_size, 1),
            "safetensors, read": (self._read, self.plain.stat().st_size, 1),
            "torch.load": (self._pickle, self.pickled.stat().st_size, 1),
            "safetensors in zstd": (self._unpack, self.packed.stat().st_size, 1),
            "zarr arrays": (self._zarr, sum(path.stat().st_size for path in files), len(files)),
        }

    def _mapped(self) -> dict[str, Tensor]:
        # Mapped memory is read when it is touched: a copy is what a module would make.
        return {name: tensor.clone() for name, tensor in load_file(self.plain).items()}

    def _read(self) -> dict[str, Tensor]:
        return load_file(self.plain, backend="pread")

    def _pickle(self) -> dict[str, Tensor]:
        loaded: dict[str, Tensor] = torch.load(self.pickled, weights_only=True)
        return loaded

    def _unpack(self) -> dict[str, Tensor]:
        return load(numcodecs.Zstd().decode(self.packed.read_bytes()))

    def _zarr(self) -> dict[str, Tensor]:
        group = zarr.open_group(self.arrays, mode="r")
        return {name: torch.from_numpy(array[:]) for name, array in group.arrays()}


def _from_disk(forged: ForgedVit, rivals: Rivals, *, repeats: int) -> list[LoadRow]:
    turns = itertools.cycle(forged.tasks)
    warm = Family(Registry.open(str(forged.registry)), FAMILY)
    fast = Family(Registry.open(str(forged.registry)), FAMILY, decode="fast")
    cold_storage = LinkStorage(forged.registry, bits_per_s=None)

    others = rivals.tasks()
    tasks: dict[str, Callable[[], object]] = {
        "uws-store, basis warm, digests checked": lambda: warm.load(next(turns)).materialize(),
        "uws-store, basis warm, unchecked": lambda: warm.load(next(turns), verify=False).materialize(),
        "uws-store, basis warm, fast": lambda: fast.load(next(turns)).materialize(),
        **{name: how for name, (how, _, _) in others.items()},
    }
    taken = _medians(tasks, repeats=repeats)
    taken |= _medians({"uws-store, basis cold, digests checked": lambda: _load_cold(cold_storage)}, repeats=1)
    counted = LinkStorage(forged.registry, bits_per_s=None)
    family = Family(Registry.over(counted), FAMILY)
    family.basis().prefetch()
    counted.requests = counted.size_bytes = 0
    family.load("task-0").materialize()
    cold_storage.requests = cold_storage.size_bytes = 0
    _load_cold(cold_storage)
    sizes = {name: (size, requests) for name, (_, size, requests) in others.items()}
    sizes |= dict.fromkeys((name for name in taken if "warm" in name), (counted.size_bytes, counted.requests))
    sizes["uws-store, basis cold, digests checked"] = (cold_storage.size_bytes, cold_storage.requests)
    group = f"{forged.parameters / 1e6:.0f} million parameters from the page cache"
    return [
        LoadRow(
            group,
            name,
            seconds=one.seconds,
            busy_s=one.busy_s,
            size_bytes=sizes[name][0],
            requests=sizes[name][1],
            **(_goal(forged, "1 s", met=one.seconds <= 1.0) if name == _OURS else _NO_GOAL),
        )
        for name, one in taken.items()
    ]


def _load_cold(storage: LinkStorage) -> None:
    """Load a model as a new process would: nothing that is held is used."""
    registry = Registry.over(storage)
    entry = registry.resolve(FAMILY, "task-0")
    prefix = layout.basis_prefix(FAMILY, entry.basis_digest)
    basis = Basis.open(storage, prefix, digest=entry.basis_digest)
    prefix = layout.model_prefix(FAMILY, entry.digest)
    LazyStateDict(
        Model.open(storage, prefix, digest=entry.digest, basis=basis),
        family=FAMILY,
        task=entry.task,
        version=entry.version,
        tier="compact",
        device=torch.device("cpu"),
        dtype=None,
        verify=True,
    ).materialize()


def _load_next(family: Family, tasks: Iterator[str]) -> dict[str, Tensor]:
    return family.load(next(tasks)).materialize()


def _over_links(forged: ForgedVit, rivals: Rivals, *, links: Mapping[str, float]) -> list[LoadRow]:
    rows: list[LoadRow] = []
    goals = {"100 Mbit/s": 15.0, "1 Gbit/s": 2.5}
    local = _medians({name: how for name, (how, _, _) in rivals.tasks().items()}, repeats=2)
    for link, bits_per_s in links.items():
        slow = LinkStorage(forged.registry, bits_per_s=bits_per_s)
        over = Family(Registry.over(slow), FAMILY)
        over.basis().prefetch()
        over.load("task-0").materialize()
        load_next = functools.partial(_load_next, over, itertools.cycle(forged.tasks))
        ours = _medians({"ours": load_next}, repeats=3)["ours"]
        slow.requests = slow.size_bytes = 0
        load_next()
        group = f"over {link}, {LATENCY_S * 1e3:.0f} ms (modelled)"
        found = {
            name: LATENCY_S + 8 * size / bits_per_s + local[name].seconds
            for name, (_, size, _) in rivals.tasks().items()
            if name != "zarr arrays"
        }
        goal = goals.get(link)
        ratio = found["safetensors, read"] / ours.seconds
        rows.append(
            LoadRow(
                group,
                "uws-store, basis warm, digests checked",
                seconds=ours.seconds,
                busy_s=ours.busy_s,
                size_bytes=slow.size_bytes,
                requests=slow.requests,
                value=ratio,
                unit="x sooner than safetensors",
                **(_goal(forged, f"{goal:g}", met=ratio >= goal) if goal else _NO_GOAL),
            )
        )
        rows += [
            LoadRow(group, name, seconds=seconds, size_bytes=size, requests=1)
            for (name, seconds), size in zip(
                found.items(), (rivals.tasks()[name][1] for name in found), strict=True
            )
        ]
    return rows


def _memory(forged: ForgedVit) -> list[LoadRow]:
    """Peak resident memory of one load, the basis being there, in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        basis, model, peak = pool.submit(measure_memory, forged.registry, torch.get_num_threads()).result()
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
            **_goal(forged, "1.2", met=ratio <= 1.2),
        ),
    ]


def measure_memory(registry: Path, threads: int) -> tuple[int, int, int]:
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


def _goal(forged: ForgedVit, goal: str, *, met: bool) -> _Goal:
    """A goal, where the network has the size that it was set for."""
    return {"goal": goal, "met": met} if forged.parameters > _GOAL_PARAMETERS else {"goal": "", "met": None}


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


def _switching(folder: Path, *, repeats: int) -> list[LoadRow]:
    """Switch the demo's network between tasks, beside load_file and load_state_dict of the same weights."""
    shutil.rmtree(folder, ignore_errors=True)
    zoo = folder / "zoo"
    zoo.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    network = DigitsViT(10)
    base = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for index in range(6):
        weights = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=random) for name, tensor in base.items()
        }
        save_file(weights, zoo / f"task-{index}.safetensors")
    registry = str(folder / "registry")
    uws_store.build(zoo, family="digits", registry=registry, bits=1.0)
    hot = uws_store.open_family("digits", registry=registry)
    warm = uws_store.open_family("digits", registry=registry, cache_bytes=0)
    tasks = itertools.cycle(hot.tasks())
    rival = "safetensors load_file + load_state_dict"
    taken = _medians(
        {
            "uws-store, integers in memory": lambda: hot.switch(network, next(tasks)),
            "uws-store, from disk, digests checked": lambda: warm.switch(network, next(tasks)),
            rival: lambda: network.load_state_dict(load_file(zoo / f"{next(tasks)}.safetensors")),
        },
        repeats=repeats,
    )
    group = f"switching a digits network of {sum(t.numel() for t in base.values()):,} parameters, page cache"
    return [
        LoadRow(
            group,
            name,
            seconds=one.seconds,
            busy_s=one.busy_s,
            value=one.seconds / taken[rival].seconds,
            unit="x load_file + load_state_dict",
            goal="3" if name == "uws-store, from disk, digests checked" else "",
            met=one.seconds <= 3 * taken[rival].seconds
            if name == "uws-store, from disk, digests checked"
            else None,
        )
        for name, one in taken.items()
    ]
