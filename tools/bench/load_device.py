"""Switching on a device between models whose integers are there already, beside what the device can do at best.

The rival is the copy of the same weights in float32 from page-locked memory into the same module; the floors are the
device's memory, which the weights have to be written to, and its products. Runs on a CPU too, where it shows that it
runs and no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from forged_vit import FAMILY, ForgedVit
from load_rows import NO_GOAL, LoadRow, goal_for, medians
from machine_floors import copy_bytes_per_s

from uws_store.api.family import Family
from uws_store.basis import Basis
from uws_store.metadata.basis import SideRecord
from uws_store.registry import Registry

__all__ = ["measure_device", "product_operations"]

_CANONICAL = "uws-store, canonical"
_FAST = "uws-store, fast"
_COPY = "copy of the float32 weights from page-locked memory"
_GOAL_S = 3e-3
_FLOOR_BYTES = 1 << 28
_FLOOR_EXTENT = 4096


class _Holder(torch.nn.Module):
    """Parameters on a device under the names of a state dict."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in weights.items():
            owner: torch.nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if folder not in dict(owner.named_children()):
                    owner.add_module(folder, torch.nn.Module())
                owner = owner.get_submodule(folder)
            owner.register_parameter(last, torch.nn.Parameter(tensor.clone(), requires_grad=False))


def measure_device(
    forged: ForgedVit, device: str, *, repeats: int, tasks: int = 300, quick: bool = False
) -> list[LoadRow]:
    """Measure switches, their rival and the floors, with the integers of many tasks on the device.

    Parameters
    ----------
    forged : ForgedVit
        The family; its models are held over and over in place of as many tasks.
    device : str
        The device.
    repeats : int
        Of every way, taking turns.
    tasks : int
        How many models' integers are held.
    quick : bool
        Small floors: shows that it runs, not how fast.
    """
    place = torch.empty(0, device=device).device
    registry = Registry.open(str(forged.registry))
    families = {
        _CANONICAL: Family(registry, FAMILY, device=place),
        _FAST: Family(registry, FAMILY, device=place, decode="fast"),
    }
    weights = families[_CANONICAL].load(forged.tasks[0]).materialize()
    model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    module = _Holder(weights)
    ways: dict[str, Callable[[], object]] = {}
    for name, family in families.items():
        for task in forged.tasks:
            family.switch(module, task)
        ways[name] = _switching(family, module, forged.tasks, place)
    hot = families[_CANONICAL].resident()
    entry = families[_CANONICAL].resolve(forged.tasks[0])
    one = hot.hot(entry.digest, lambda: families[_CANONICAL].model(entry))
    more = [[core.clone() for core in one.cores] for _ in range(max(0, tasks - len(forged.tasks)))]
    ways[_COPY] = _copying(module, weights, place)
    taken = medians(ways, repeats=repeats)
    held = hot.size_bytes + sum(core.numel() * core.element_size() for cores in more for core in cores)
    copied_s = model_bytes / copy_bytes_per_s(device, size_bytes=_FLOOR_BYTES >> (8 if quick else 0))
    written_s = model_bytes / _written_bytes_per_s(place, size_bytes=_FLOOR_BYTES >> (8 if quick else 0))
    operations = product_operations(families[_CANONICAL].basis())
    extent = _FLOOR_EXTENT >> (4 if quick else 0)
    group = f"switching {forged.parameters / 1e6:.0f} million parameters on {_name(place)}"
    goal = _GOAL_S if place.type == "cuda" else None
    rows = []
    for name, one_taken in taken.items():
        met = one_taken.seconds < _GOAL_S and one_taken.seconds < taken[_COPY].seconds
        rows.append(
            LoadRow(
                group,
                name,
                seconds=one_taken.seconds,
                busy_s=one_taken.busy_s,
                size_bytes=model_bytes,
                value=taken[_COPY].seconds / one_taken.seconds,
                unit="x sooner than the copy",
                **(
                    goal_for(forged, "3 ms, and the copy", met=met)
                    if goal and name == _CANONICAL
                    else NO_GOAL
                ),
            )
        )
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        rate = _operations_per_s(place, dtype, extent=extent)
        rows.append(
            LoadRow(
                group,
                f"floor: its products in {name}",
                seconds=operations / rate,
                value=rate / 1e12,
                unit="Tflop/s",
            )
        )
    rows.append(
        LoadRow(
            group,
            "floor: writing the weights to its memory",
            seconds=written_s,
            value=model_bytes / written_s / 1e9,
            unit="GB/s",
        )
    )
    rows.append(
        LoadRow(
            group,
            "floor: one copy of as many bytes from page-locked memory",
            seconds=copied_s,
            value=model_bytes / copied_s / 1e9,
            unit="GB/s",
        )
    )
    rows.append(
        LoadRow(
            group,
            f"integers of {len(forged.tasks) + len(more)} tasks, held meanwhile",
            size_bytes=held,
            value=held / (len(forged.tasks) + len(more)) / model_bytes,
            unit="x a model, each",
        )
    )
    return rows


def product_operations(basis: Basis) -> int:
    """Multiplications and additions in the products of all tensors of a model."""
    total = 0
    for slot in basis.slots.values():
        (m, n), (p, _) = slot.record.matrix, slot.core_shape
        total += 2 * p * _entries(slot.record.right, n) + 2 * n * _entries(slot.record.left, m)
    return total


def _entries(side: SideRecord | None, size: int) -> int:
    """Entries of a factor: in blocks on the diagonal, the last perhaps smaller."""
    if side is None:
        return 0
    whole, rest = divmod(size, side.block)
    return whole * side.block * side.rank + rest * min(side.rank, rest)


def _switching(
    family: Family, module: torch.nn.Module, tasks: tuple[str, ...], place: torch.device
) -> Callable[[], object]:
    turns = itertools.cycle(tasks)

    def switch() -> None:
        # A version that is known by its number is not asked for.
        family.switch(module, f"{next(turns)}@1")
        _synchronize(place)

    return switch


def _copying(
    module: torch.nn.Module, weights: dict[str, torch.Tensor], place: torch.device
) -> Callable[[], object]:
    locked = {
        name: tensor.cpu().pin_memory() if place.type == "cuda" else tensor.clone()
        for name, tensor in weights.items()
    }
    own = module.state_dict()

    def copy() -> None:
        for name, tensor in locked.items():
            own[name].copy_(tensor, non_blocking=True)
        _synchronize(place)

    return copy


def _written_bytes_per_s(place: torch.device, *, size_bytes: int) -> float:
    target = torch.empty(size_bytes // 4, device=place)

    def write() -> None:
        target.fill_(1.0)
        _synchronize(place)

    return size_bytes / medians({"": write}, repeats=5)[""].seconds


def _operations_per_s(place: torch.device, dtype: torch.dtype, *, extent: int) -> float:
    first = torch.ones(extent, extent, dtype=dtype, device=place)

    def multiply() -> None:
        first @ first
        _synchronize(place)

    return 2 * extent**3 / medians({"": multiply}, repeats=3)[""].seconds


def _synchronize(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def _name(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
