"""A family to be moved: several versions, one of them withdrawn, and an alias."""

from __future__ import annotations

from pathlib import Path

from uws_store import api
from uws_store.registry import Registry
from uws_store.storage import MemoryStorage


def fill(registry: Registry, zoo: Path) -> None:
    api.build(zoo, family="mlp", registry=registry, exact=True)
    for other in ("task-01", "task-02"):
        api.add(zoo / f"{other}.safetensors", family="mlp", task="task-00", registry=registry)
    api.delete("mlp", "task-00@2", registry=registry)
    api.set_alias("mlp", "task-00@3", "prod", registry=registry)


def filled(zoo: Path) -> MemoryStorage:
    """A storage with such a family of a zoo."""
    storage = MemoryStorage("source")
    fill(Registry.over(storage, create=True), zoo)
    return storage


def names(registry: Registry) -> list[tuple[str, int, str]]:
    return [(entry.task, entry.version, entry.digest) for entry in registry.state().models()]
