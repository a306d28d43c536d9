"""The registry: which families, tasks and versions there are, and the log of commits that says so."""

from __future__ import annotations

from uws_store.registry.registry import Registry
from uws_store.registry.state import (
    BasisEntry,
    FamilyState,
    ModelEntry,
    RegistryState,
    TaskState,
    split_task,
)

__all__ = [
    "BasisEntry",
    "FamilyState",
    "ModelEntry",
    "Registry",
    "RegistryState",
    "TaskState",
    "split_task",
]
