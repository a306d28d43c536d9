"""Switching a small network between the tasks of its family, beside reading each from a file.

The networks are trained ones where a folder of them is given, and forged otherwise: a digits network and small random
changes of it, which take longer to decode than trained ones of the same size do, since more of their integers differ
from zero.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from load_rows import LoadRow, medians
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import uws_store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

from vit import DigitsViT

__all__ = ["measure_switching"]

_RIVAL = "safetensors load_file + load_state_dict"
_FROM_DISK = "uws-store, from disk, digests checked"
_GOAL = 3.0
_MOST_TASKS = 24
_HEAD = "head.bias"


def measure_switching(folder: Path, *, repeats: int, digits: Path | None = None) -> list[LoadRow]:
    """Switch the demo's network between tasks, beside load_file and load_state_dict of the same weights.

    Parameters
    ----------
    folder : Path
        For the family; what is in it is removed.
    repeats : int
        How many switches of each kind.
    digits : Path, optional
        A folder of trained digits networks, one file each; those that have as many classes as most are taken.
    """
    shutil.rmtree(folder, ignore_errors=True)
    zoo = folder / "zoo"
    zoo.mkdir(parents=True)
    classes = _forge(zoo) if digits is None else _take(digits, zoo)
    network = DigitsViT(classes)
    registry = str(folder / "registry")
    uws_store.build(zoo, family="digits", registry=registry, bits=1.0)
    hot = uws_store.open_family("digits", registry=registry)
    # The model used last is always kept, so that every switch to another one reads.
    warm = uws_store.open_family("digits", registry=registry, cache_bytes=0)

    def in_turn(switch: Callable[[str], object]) -> Callable[[], object]:
        tasks = itertools.cycle(hot.tasks())
        return lambda: switch(next(tasks))

    for task in hot.tasks():
        hot.switch(network, task)
    taken = medians(
        {
            "uws-store, integers in memory": in_turn(lambda task: hot.switch(network, task)),
            _FROM_DISK: in_turn(lambda task: warm.switch(network, task)),
            _RIVAL: in_turn(lambda task: network.load_state_dict(load_file(zoo / f"{task}.safetensors"))),
        },
        repeats=repeats,
    )
    parameters = sum(tensor.numel() for tensor in network.state_dict().values())
    kind = "forged" if digits is None else "trained"
    group = f"switching a digits network of {parameters:,} parameters, {kind}, page cache"
    rows = []
    for name, one in taken.items():
        ratio = one.seconds / taken[_RIVAL].seconds
        rows.append(
            LoadRow(
                group,
                f"{name}, {1 / one.seconds:,.0f} per second",
                seconds=one.seconds,
                busy_s=one.busy_s,
                value=ratio,
                unit="x load_file + load_state_dict",
                goal=f"{_GOAL:g}" if name == _FROM_DISK else "",
                met=ratio <= _GOAL if name == _FROM_DISK else None,
            )
        )
    return rows


def _forge(zoo: Path) -> int:
    """Write a network and small random changes of it; gives how many classes it has."""
    random = torch.Generator().manual_seed(0)
    base = {name: tensor.clone() for name, tensor in DigitsViT(10).state_dict().items()}
    for index in range(6):
        weights = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=random) for name, tensor in base.items()
        }
        save_file(weights, zoo / f"task-{index}.safetensors")
    return 10


def _take(digits: Path, zoo: Path) -> int:
    """Copy trained networks of the commonest number of classes; gives that number."""
    classes: dict[Path, int] = {}
    for path in sorted(digits.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if _HEAD in file.keys():  # noqa: SIM118 - no mapping
                classes[path] = file.get_slice(_HEAD).get_shape()[0]
    if not classes:
        raise ValueError(f"{digits} holds no digits networks")
    commonest = Counter(classes.values()).most_common(1)[0][0]
    same = [path for path, count in classes.items() if count == commonest]
    for path in same[:_MOST_TASKS]:
        shutil.copy(path, zoo / path.name)
    return commonest
