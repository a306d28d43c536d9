"""Loading: a model's tensors from its objects and its basis, one at a time, when they are touched."""

from __future__ import annotations

from uws_store.loader.lazy import LazyStateDict
from uws_store.loader.module import fill_module

__all__ = ["LazyStateDict", "fill_module"]
