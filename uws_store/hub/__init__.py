"""A Hugging Face Hub through its own client: repositories and buckets, by files and ranges.

Owns every use of `huggingface_hub`. Buckets stand in ``bucket.py``, which older releases of it cannot import. Must not know paths of ours, storages or errors of ours.
"""

from __future__ import annotations

from uws_store.hub.fetching import HubFileInfo, Sink
from uws_store.hub.repo import HubRepo

__all__ = ["HubFileInfo", "HubRepo", "Sink"]
