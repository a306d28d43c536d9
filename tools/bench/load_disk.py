"""Loading from the page cache of this machine, beside the same weights in other containers."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numcodecs
import torch
import zarr
from forged_vit import FAMILY, ForgedVit
from load_rows import NO_GOAL, LoadRow, goal_for, medians
from safetensors.torch import load, load_file
from torch import Tensor

from uws_store import layout
from uws_store.api.family import Family
from uws_store.basis import Basis
from uws_store.loader import LazyStateDict
from uws_store.model import Model
from uws_store.registry import Registry
from uws_store.storage import LocalStorage, Storage

__all__ = ["CHECKED", "CountingStorage", "Rivals", "load_cold", "measure_disk"]

CHECKED = "uws-store, basis warm, digests checked"
_COLD = "uws-store, basis cold, digests checked"
_ZSTD_LEVEL = 3


class CountingStorage(LocalStorage):
    """A local folder that counts what is asked of it.

    Attributes
    ----------
    requests, size_bytes : int
        Reads and questions for a size, and the bytes that were read.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests = 0
        self.size_bytes = 0

    def read(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Read, and count."""
        self.requests += 1
        data = super().read(path, start=start, end=end)
        self.size_bytes += len(data)
        return data

    def read_at_most(self, path: str, limit_bytes: int) -> bytes | None:
        """Read a small object, and count."""
        self.requests += 1
        data = super().read_at_most(path, limit_bytes)
        self.size_bytes += len(data or b"")
        return data

    def size(self, path: str) -> int | None:
        """Ask for a length, and count."""
        self.requests += 1
        return super().size(path)


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
            # One chunk each, and all metadata in one document: as few requests as it can have.
            group.create_array(name, data=tensor.numpy(), chunks=tuple(tensor.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # not in Zarr's version 3 yet
            zarr.consolidate_metadata(group.store)
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
        group = zarr.open_group(self.arrays, mode="r", use_consolidated=True)
        return {name: torch.from_numpy(array[:]) for name, array in group.arrays()}


def measure_disk(forged: ForgedVit, rivals: Rivals, *, repeats: int) -> list[LoadRow]:
    """Measure every way of loading by turns."""
    turns = itertools.cycle(forged.tasks)
    warm = Family(Registry.open(str(forged.registry)), FAMILY)
    fast = Family(Registry.open(str(forged.registry)), FAMILY, decode="fast")
    cold_storage = CountingStorage(forged.registry)

    others = rivals.tasks()
    tasks: dict[str, Callable[[], object]] = {
        CHECKED: lambda: warm.load(next(turns)).materialize(),
        "uws-store, basis warm, unchecked": lambda: warm.load(next(turns), verify=False).materialize(),
        "uws-store, basis warm, fast": lambda: fast.load(next(turns)).materialize(),
        **{name: how for name, (how, _, _) in others.items()},
    }
    taken = medians(tasks, repeats=repeats)
    taken |= medians({_COLD: lambda: load_cold(cold_storage)}, repeats=1)
    counted = CountingStorage(forged.registry)
    family = Family(Registry.over(counted), FAMILY)
    family.basis().prefetch()
    counted.requests = counted.size_bytes = 0
    family.load("task-0").materialize()
    cold_storage.requests = cold_storage.size_bytes = 0
    load_cold(cold_storage)
    sizes = {name: (size, requests) for name, (_, size, requests) in others.items()}
    sizes |= dict.fromkeys((name for name in taken if "warm" in name), (counted.size_bytes, counted.requests))
    sizes[_COLD] = (cold_storage.size_bytes, cold_storage.requests)
    group = f"{forged.parameters / 1e6:.0f} million parameters from the page cache"
    return [
        LoadRow(
            group,
            name,
            seconds=one.seconds,
            busy_s=one.busy_s,
            size_bytes=sizes[name][0],
            requests=sizes[name][1],
            **(goal_for(forged, "1 s", met=one.seconds <= 1.0) if name == CHECKED else NO_GOAL),
        )
        for name, one in taken.items()
    ]


def load_cold(storage: Storage) -> None:
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
