"""What every method of the bench is made of: the knowledge both ends share, a coded model, byte streams.

Owns the interface of a method and the counting of its bytes. A method is fitted on the training models, which coder
and decoder both know, and then codes models that took no part in that. Knows no method, no zoo and no score.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from numcodecs.zstd import Zstd
from safetensors import safe_open
from torch import Tensor

from uws_store.entropy import encode_integers

__all__ = [
    "FLOAT16_BYTES",
    "Coded",
    "Coder",
    "LazyWeights",
    "Method",
    "Training",
    "Weights",
    "as_matrix",
    "packed_bits",
    "smallest_stream",
    "through_float16",
]

Weights = Mapping[str, Tensor]
"""A model's tensors by name; what methods code is float32."""

FLOAT16_BYTES = 2
"""References, scales and real coefficients of the baselines are kept as float16."""

_LARGE_STREAM = 1 << 21


@dataclass(frozen=True, slots=True)
class Coded:
    """One coded model.

    Attributes
    ----------
    weights : dict of str to Tensor
        What the decoder makes of it, float32.
    size_bytes : int
        What was stored for this model alone: streams and scales, without any container.
    """

    weights: dict[str, Tensor]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Coder:
    """A fitted method.

    Attributes
    ----------
    shared_bytes : int
        What all models share: reference, directions, masks' common vector.
    code : callable
        Codes one model's tensors.
    """

    shared_bytes: int
    code: Callable[[Weights], Coded]


@dataclass(frozen=True, slots=True)
class Method:
    """A method at one setting.

    Attributes
    ----------
    name, setting : str
        For the table: methods of one name are points of one curve.
    source : str
        The paper it follows.
    fit : callable
        Makes the coder from what training models tell.
    """

    name: str
    setting: str
    source: str
    fit: Callable[[Training], Coder]


class LazyWeights(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names: tuple[str, ...] = tuple(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Training:
    """What both ends know: the training models, their mean, and a base.

    Parameters
    ----------
    members : sequence of Weights
        The training models.
    names : sequence of str
        The tensors that are coded, in order; all members have them in one shape.
    base : Weights, optional
        The checkpoint that the members were fine-tuned from. Methods that need one get the member nearest to the
        mean where none is known.
    """

    def __init__(
        self, members: Sequence[Weights], names: Sequence[str], *, base: Weights | None = None
    ) -> None:
        self.members = tuple(members)
        self.names = tuple(names)
        self._base = base

    def stack(self, name: str) -> Tensor:
        """One tensor of all members, float32, (n, *shape)."""
        return torch.stack([member[name].to(torch.float32) for member in self.members])

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the coded tensors."""
        first = self.members[0]
        return {name: tuple(first[name].shape) for name in self.names}

    @property
    def parameters(self) -> int:
        """Coded parameters per model."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        """The members' mean, float32."""
        means: dict[str, Tensor] = {}
        for name in self.names:
            total = torch.zeros(self.shapes[name], dtype=torch.float64)
            for member in self.members:
                total += member[name]
            means[name] = (total / len(self.members)).to(torch.float32)
        return means

    @cached_property
    def change_rms(self) -> dict[str, float]:
        """Root mean square of each tensor's change about the mean, over members and elements."""
        rms: dict[str, float] = {}
        for name in self.names:
            energy = sum(float((member[name] - self.mean[name]).square().mean()) for member in self.members)
            rms[name] = (energy / len(self.members)) ** 0.5
        return rms

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The base, float32; the member nearest to the mean where none is known."""
        if self._base is not None:
            return {name: self._base[name].to(torch.float32) for name in self.names}
        distances = [
            sum(float((member[name] - self.mean[name]).square().sum()) for name in self.names)
            for member in self.members
        ]
        nearest = self.members[int(np.argmin(distances))]
        return {name: nearest[name].to(torch.float32) for name in self.names}

    @property
    def reference_bytes(self) -> int:
        """Bytes of one whole set of tensors as float16."""
        return FLOAT16_BYTES * self.parameters


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor as the matrix that methods see: (first axis, everything else), a vector as one row."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)


def through_float16(values: Tensor) -> Tensor:
    """What is left of values that are stored as float16."""
    return values.to(torch.float16).to(torch.float32)


def packed_bits(mask: Tensor) -> bytes:
    """One bit per element, end to end."""
    return np.packbits(mask.reshape(-1).numpy()).tobytes()


def smallest_stream(values: Sequence[Tensor] | npt.NDArray[np.integer]) -> bytes:
    """Code integers by whichever general coder makes them smallest, so that no baseline suffers from its coder.

    Parameters
    ----------
    values : sequence of Tensor, or numpy.ndarray
        Whole numbers; tensors are laid end to end.

    Returns
    -------
    bytes
        The smallest of PCodec, Zstandard at its level 19, bzip2 and LZMA, behind one byte that says which. Long
        arrays are tried with the first and third only, which have won on everything measured here.
    """
    if not isinstance(values, np.ndarray):
        values = torch.cat([part.reshape(-1) for part in values]).to(torch.int32).numpy()
    if values.size == 0:
        return b"\0"
    widest = int(np.abs(values.astype(np.int64)).max())
    narrow: npt.NDArray[np.integer] = values.astype(
        np.int8 if widest < 1 << 7 else np.int16 if widest < 1 << 15 else np.int32
    )
    data = narrow.tobytes()
    wide: npt.NDArray[np.integer] = narrow.astype(np.int16) if narrow.itemsize == 1 else narrow
    streams = [encode_integers(wide), bz2.compress(data, 9)]
    if values.size <= _LARGE_STREAM:
        streams += [bytes(Zstd(level=19).encode(data)), lzma.compress(data, preset=9)]
    return b"\0" + min(streams, key=len)
