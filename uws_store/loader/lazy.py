"""The mapping a user holds: names to tensors, each reconstructed when it is first touched.

Owns laziness, device and dtype; decoding itself is :mod:`uws_store.model`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from uws_store.device import one_device
from uws_store.errors import NotFoundError
from uws_store.loader.ambient import plain_arithmetic
from uws_store.loader.construct import build_module
from uws_store.loader.conversion import converted, memory_errors
from uws_store.loader.decoding import Checks, make_tensors

if TYPE_CHECKING:
    from uws_store.basis import Decode, Decoder
    from uws_store.model import Model, Tier

__all__ = ["LazyStateDict", "TensorSlice"]


class TensorSlice:
    """A tensor that is reconstructed when it is indexed, as safetensors' ``get_slice`` gives.

    Parameters
    ----------
    weights : LazyStateDict
        The model's weights.
    name : str
        The tensor.
    """

    def __init__(self, weights: LazyStateDict, name: str) -> None:
        self._weights = weights
        self._name = name

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor; nothing is read."""
        return list(self._weights.shape(self._name))

    def get_dtype(self) -> str:
        """The safetensors name of the dtype that the tensor is stored with; nothing is read."""
        return self._weights.model.sources[self._name].dtype.name

    def __getitem__(self, index: Any) -> torch.Tensor:  # noqa: ANN401 - whatever a tensor takes
        part: torch.Tensor = self._weights[self._name][index]
        return part


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
        Check every tensor against its digest on record, before conversion. Tensors that were decoded fast have no
        digest; the objects they come from are checked all the same.
    decode : {"canonical", "fast"}
        The arithmetic.
    decoder : Decoder, optional
        The basis, ready on the device; made when absent.
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
        decode: Decode = "canonical",
        decoder: Decoder | None = None,
    ) -> None:
        model.require_tier(tier)
        self.model = model
        self.family = family
        self.task = task
        self.version = version
        self.tier = tier
        self.device = device
        self.dtype = dtype
        self.decode = decode
        self._decoder = decoder
        self._verify = verify
        self._checks = Checks(model, tier=tier, coded=decode == "canonical")
        self._made: dict[str, torch.Tensor] = {}
        self._moved = False
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
                what = f"{name} of {self.family}/{self.task}"
                with memory_errors(what, self.device), plain_arithmetic(self.device):
                    made = self.model.tensor(
                        key, tier=self.tier, device=self.device, decode=self.decode, decoder=self._decoder
                    )
                    found = self._made[key] = self._finished(key, made)
            return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.model.sources)

    def __len__(self) -> int:
        return len(self.model.sources)

    def __contains__(self, name: object) -> bool:
        return name in self.model.sources

    def __repr__(self) -> str:
        fast = ", decode='fast'" if self.decode == "fast" else ""
        return (
            f"LazyStateDict({self.family!r}, {self.task!r}, version={self.version}, tier={self.tier!r}{fast}, "
            f"device={str(self.device)!r}, {len(self)} tensors, {len(self._made)} reconstructed)"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reconstructing it."""
        if name not in self.model.sources:
            self[name]  # says what there is
        return self.model.sources[name].shape

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to be indexed: ``weights.get_slice(name)[a:b]`` reads the ranges of its read group and no others."""
        self.shape(name)
        return TensorSlice(self, name)

    def to(self, device: str | torch.device) -> LazyStateDict:
        """The same weights on another device; what was made is copied, the rest will be made there.

        Raises
        ------
        InvalidInputError
            When the device cannot be used (kind ``invalid-input/device``).
        MemoryLimitError
            When what was made does not fit there (kind ``memory-limit/device``).
        """
        place = one_device(device)
        moved = LazyStateDict(
            self.model,
            family=self.family,
            task=self.task,
            version=self.version,
            tier=self.tier,
            device=place,
            dtype=self.dtype,
            verify=self._verify,
            decode=self.decode,
        )
        with self._lock, memory_errors(f"{self.family}/{self.task}", place):
            moved._made = {name: tensor.to(place) for name, tensor in self._made.items()}
            moved._moved = bool(moved._made)
        return moved

    def materialize(self, *, stopped: threading.Event | None = None) -> dict[str, torch.Tensor]:
        """Reconstruct everything, with one request per stored object, and return a plain dict.

        Parameters
        ----------
        stopped : threading.Event, optional
            When another thread sets it, no further tensors are made, and only what was made before is returned.

        Raises
        ------
        FormatError
            When any stored byte is damaged; with ``verify`` the digests of all tensors together are compared with
            the whole SHA-256 on record.
        MemoryLimitError
            When the tensors do not fit on the device (kind ``memory-limit/device``).
        """
        keys = {name: source.tied_to or name for name, source in self.model.sources.items()}
        with self._lock:
            left = {key for key in keys.values() if key not in self._made}
            if left:
                what = f"{self.family}/{self.task}"
                with memory_errors(what, self.device), plain_arithmetic(self.device):
                    self._made |= make_tensors(
                        self.model,
                        left,
                        decoder=self._decoder or self.model.decoder(self.device, self.decode),
                        tier=self.tier,
                        done=self._finished,
                        stopped=stopped,
                    )
            if stopped is None or not stopped.is_set():
                # Tensors that came from elsewhere, as in `to`, were compared with the record one by one.
                if self._verify and not self._moved:
                    self._checks.finish()
                self.model.forget()
            return {name: self._made[key] for name, key in keys.items() if key in self._made}

    def side_files(self) -> dict[str, bytes]:
        """Read the small files that lay beside the weights, by name: configuration, tokenizer, preprocessor.

        Raises
        ------
        FormatError
            When stored bytes are damaged.
        """
        return self.model.side_files()

    def module(self) -> torch.nn.Module:
        """Build the module that the recorded configuration describes, with these weights, in evaluation mode.

        The class is looked up in the installed transformers or timm; no code that came with the checkpoint is run and
        nothing is fetched.

        Raises
        ------
        IncompatibleError
            When there is no configuration (kind ``incompatible/no-config``), its library is not installed
            (``incompatible/library-missing``), does not define the class (``incompatible/not-in-library``) or refuses
            its values (``incompatible/config``), or the weights do not fit (``incompatible/module``).
        """
        name = f"{self.family}/{self.task}"
        return build_module(self.side_files(), self.materialize, name=name, dtype=self.dtype).to(self.device)

    def _finished(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if self._verify:
            self._checks.check(name, tensor)
        return converted(name, tensor, self.dtype)
