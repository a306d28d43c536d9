"""The bytes of a tensor: what digests are taken of and what private tensors are made of.

Little-endian, row-major, without padding, as safetensors stores them. Pure.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch

from uws_store.dtypes import DType
from uws_store.errors import FormatError

__all__ = ["bytes_of", "digest_of", "from_rotated", "rotated", "tensor_from_bytes", "view_of"]

_TILE = 1 << 17

Words = npt.NDArray[np.unsignedinteger]


def _view(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    if tensor.numel() == 0:
        return np.zeros(0, np.uint8)
    held = tensor.detach() if tensor.requires_grad else tensor
    flat = held.cpu().contiguous().view(-1)
    if tensor.dtype == torch.float32:  # nearly all of them, and small ones are many: one step less
        return flat.numpy().view(np.uint8)
    view: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return view


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Copy a tensor's bytes."""
    return _view(tensor).tobytes()


def view_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes where they lie, when it lies on the CPU in one piece; else a copy of them."""
    return _view(tensor).data


def digest_of(tensor: torch.Tensor) -> bytes:
    """SHA-256 of a tensor's bytes, 32 bytes."""
    return hashlib.sha256(_view(tensor).data).digest()


def tensor_from_bytes(data: bytes, *, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """Make a tensor that owns a copy of the bytes.

    Raises
    ------
    FormatError
        When the length does not fit (kind ``format/size``).
    """
    expected = math.prod(shape) * dtype.size_bytes
    if len(data) != expected:
        raise FormatError(
            f"a {dtype.name} tensor of shape {shape} has {expected} bytes, found {len(data)}",
            kind="format/size",
        )
    if expected == 0:
        return torch.empty(shape, dtype=dtype.torch)
    flat = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    return flat.view(dtype.torch).reshape(shape)


def rotated(data: bytes | memoryview, *, width: int) -> Words:
    """Read bytes as words of 16, 32 or 64 bits, each rotated left by one: a float's sign becomes its lowest bit.

    Entropy coders take small integers for likely ones, and a float is as likely to have one sign as the other.
    """
    words = np.frombuffer(data, f"<u{width // 8}")
    turned = np.empty(len(words), f"u{width // 8}")
    for start in range(0, len(words), _TILE):
        part = words[start : start + _TILE].astype(turned.dtype, copy=False)
        turned[start : start + _TILE] = (part << part.dtype.type(1)) | (part >> part.dtype.type(width - 1))
    return turned


def from_rotated(words: Words) -> Words:
    """Undo :func:`rotated`: the words, little-endian."""
    width = 8 * words.dtype.itemsize
    back = np.empty(len(words), f"<u{width // 8}")
    for start in range(0, len(words), _TILE):
        part = words[start : start + _TILE]
        back[start : start + _TILE] = (part >> part.dtype.type(1)) | (part << part.dtype.type(width - 1))
    return back
