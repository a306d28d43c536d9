"""A stored model, open: its tensors decoded on request."""

from __future__ import annotations

from uws_store.model.fetching import Fetch
from uws_store.model.opened import Model, Tier
from uws_store.model.record import coded_names, exact_bytes, read_document
from uws_store.model.sources import Source

__all__ = ["Fetch", "Model", "Source", "Tier", "coded_names", "exact_bytes", "read_document"]
