"""The registry: which families, tasks and versions there are, and the log of commits that says so."""

from __future__ import annotations

from uws_store.registry.collect import Collection, Removal, collect
from uws_store.registry.pending import Publication
from uws_store.registry.registry import Registry
from uws_store.registry.state import (
    BasisEntry,
    FamilyState,
    ModelEntry,
    RegistryState,
    TaskState,
    VerificationEntry,
    split_task,
)
from uws_store.registry.verifications import publish_verification, read_verification

__all__ = [
    "BasisEntry",
    "Collection",
    "FamilyState",
    "ModelEntry",
    "Publication",
    "Registry",
    "RegistryState",
    "Removal",
    "TaskState",
    "VerificationEntry",
    "collect",
    "publish_verification",
    "read_verification",
    "split_task",
]
