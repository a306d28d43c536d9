"""Loading: a model's tensors from its objects and its basis, one at a time, when they are touched."""

from __future__ import annotations

from uws_store.loader.construct import build_module
from uws_store.loader.conversion import memory_errors
from uws_store.loader.lazy import LazyStateDict, TensorSlice
from uws_store.loader.module import fill_module, fit_module
from uws_store.loader.resident import Resident

__all__ = [
    "LazyStateDict",
    "Resident",
    "TensorSlice",
    "build_module",
    "fill_module",
    "fit_module",
    "memory_errors",
]
