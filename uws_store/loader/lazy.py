"""The mapping a user holds: names to tensors, each reconstructed when it is first touched.

Owns laziness, device and dtype; decoding itself is :mod:`uws_store.model`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from uws_store.errors import IncompatibleError, NotFoundError
from uws_store.tensor_bytes import digest_of

if TYPE_CHECKING:
    from uws_store.model import Model, Tier

__all__ = ["LazyStateDict"]


class LazyStateDict(Mapping[str, torch.Tensor]):
    """A model's weights, by name; threads may share it.

    A tensor is reconstructed when it is first touched, and kept. Touching one reads only the ranges of its read
    group. Tied names give the same tensor.

    Parameters
    ----------
    model : Model
        The open model.
    family, task : str
        Names, for messages.
    version : int
        The version that is loaded.
    tier : {"compact", "exact", "mean"}
        The fidelity.
    device : torch.device
        Where the tensors are made.
    dtype : torch.dtype or None
        Convert floating-point tensors to this; None keeps each tensor's own.
    verify : bool
        Check every tensor against its digest on record, before conversion.
    """

    def __init__(
        self,
        model: Model,
        *,
        family: str,
        task: str,
        version: int,
        tier: Tier,
        device: torch.device,
        dtype: torch.dtype | None,
        verify: bool,
    ) -> None:
        model.require_tier(tier)
        self.model = model
        self.family = family
        self.task = task
        self.version = version
        self.tier = tier
        self.device = device
        self.dtype = dtype
        self._verify = verify
        self._made: dict[str, torch.Tensor] = {}
        self._digests: dict[str, bytes] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> torch.Tensor:
        source = self.model.sources.get(name)
        if source is None:
            raise NotFoundError(
                f"{self.family}/{self.task} has no tensor {name!r}; it has {len(self)}, the first is "
                f"{next(iter(self), None)!r}",
                kind="not-found/tensor",
            )
        key = source.tied_to or name
        with self._lock:
            found = self._made.get(key)
            if found is None:
                made = self.model.tensor(key, tier=self.tier, device=self.device)
                if self._verify and self.tier != "mean":
                    digest = self._digests[key] = digest_of(made)
                    self.model.require_digest(key, digest, tier=self.tier)
                found = self._made[key] = self._converted(key, made)
            return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.model.sources)

    def __len__(self) -> int:
        return len(self.model.sources)

    def __contains__(self, name: object) -> bool:
        return name in self.model.sources

    def __repr__(self) -> str:
        return (
            f"LazyStateDict({self.family!r}, {self.task!r}, version={self.version}, tier={self.tier!r}, "
            f"device={str(self.device)!r}, {len(self)} tensors, {len(self._made)} reconstructed)"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reconstructing it."""
        return self.model.sources[name].shape

    def materialize(self) -> dict[str, torch.Tensor]:
        """Reconstruct everything, with one request per stored object, and return a plain dict.

        Raises
        ------
        FormatError
            When any stored byte is damaged; with ``verify`` the digests of all tensors together are compared with
            the whole SHA-256 on record.
        """
        if len(self._made) < len(self):
            self.model.basis.prefetch()
            if self.tier != "mean":
                self.model.read_all()
        tensors = {name: self[name] for name in self}
        if self._verify and self.tier != "mean":
            self.model.require_root(self._digests, tier=self.tier)
        self.model.forget()
        return tensors

    def _converted(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if self.dtype is None or not tensor.is_floating_point() or tensor.dtype == self.dtype:
            return tensor
        converted = tensor.to(self.dtype)
        # Some types have no infinity and turn what they cannot hold into NaN.
        if not bool((torch.isfinite(converted.to(torch.float32)) | ~torch.isfinite(tensor)).all()):
            raise IncompatibleError(
                f"{name}: {self.dtype} cannot hold its largest weight, {float(tensor.abs().max()):.3g}; load it as "
                f"{tensor.dtype}",
                kind="incompatible/dtype",
            )
        return converted
