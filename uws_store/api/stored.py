"""A model of a registry as a checkpoint: what a new basis revision is built from without the old files.

Owns the names under which its tensors are read. Must not know what they are read for.
"""

from __future__ import annotations

from types import MappingProxyType

import torch

from uws_store.checkpoint import Checkpoint, TensorInfo
from uws_store.checkpoint.base import check_rows, tensor_info
from uws_store.model import Model, Tier

__all__ = ["StoredCheckpoint"]

_CPU = torch.device("cpu")


class StoredCheckpoint(Checkpoint):
    """A stored model, read at its best tier.

    Parameters
    ----------
    model : Model
        Open.
    source : str
        What messages call it.
    """

    def __init__(self, model: Model, *, source: str) -> None:
        self._model = model
        self.tier: Tier = "exact" if model.has_exact else "compact"
        self.source = source
        self.tensors = MappingProxyType(
            {name: TensorInfo(name, found.dtype, found.shape) for name, found in model.sources.items()}
        )
        self.tied = ()
        self.notices = ()
        self.metadata = MappingProxyType(dict(model.document.source.metadata))
        self.file_size_bytes = model.document.source.size_bytes

    @property
    def is_exact(self) -> bool:
        """Whether its tensors are those of the original, bit by bit."""
        return self.tier == "exact"

    def read(self, name: str) -> torch.Tensor:
        """Reconstruct a tensor; see :meth:`Checkpoint.read`."""
        tensor_info(self.tensors, name, source=self.source)
        return self._model.tensor(name, tier=self.tier, device=_CPU).contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Reconstruct a tensor whole and cut rows from it."""
        check_rows(tensor_info(self.tensors, name, source=self.source), start, stop, source=self.source)
        return self.read(name)[start:stop].clone()

    def sha256(self) -> str:
        """Digest of the original's files, from the record."""
        return self._model.document.source.sha256

    def identity(self) -> str:
        """Digest of what is read."""
        return f"{self._model.document.compact.root} {self.tier}"

    def close(self) -> None:
        """Let go of nothing: the registry owns what is open."""
