"""The residual of the exact tier: differences of bit patterns taken as ordered integers.

A float's bits map to integers in the order of the reals (sign-magnitude to two's complement, so that -0.0 and
+0.0 differ); neighbours differ by one. The residual is the difference between the source and the prediction,
modulo ``2**width``, folded to unsigned by zigzag. Residuals are stored sorted by the exponent of their prediction: the
error behind them is alike everywhere, and an ulp is not, so that neighbours in this order are of one size. Pure, and
works on any device. Beside what is given and what is made a tile is held, never another copy of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from uws_store.dtypes import DType

__all__ = [
    "StoredResidual",
    "apply_residual",
    "residual_classes",
    "residual_dtype",
    "residual_of",
    "sorted_residual",
]

_TILE = 1 << 16
"""Elements that are worked on at a time."""

_KEYS = 1 << 16
_LAST = (1 << 15) - 1

_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED: dict[int, type[np.uint16 | np.uint32 | np.uint64]] = {
    1: np.uint16,
    2: np.uint16,
    4: np.uint32,
    8: np.uint64,
}

Words = npt.NDArray[np.unsignedinteger]
Classes = npt.NDArray[np.int16]


def residual_dtype(dtype: DType) -> str:
    """Name of the unsigned storage type of a dtype's residual; 8-bit types are widened to 16."""
    return f"uint{max(16, dtype.bits)}"


def _ordered(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Map bit patterns to int64 in the order of the reals."""
    signed = values.contiguous().view(_SIGNED[dtype.size_bytes]).to(torch.int64)
    # signed < 0 means the sign bit is set; its magnitude bits are signed minus the type's minimum.
    minimum = -(1 << (dtype.bits - 1))
    return torch.where(signed >= 0, signed, -1 - (signed - minimum))


def _wrap(values: torch.Tensor, width: int) -> torch.Tensor:
    """Reduce modulo ``2**width`` into the signed range (int64 arithmetic already wraps at 64)."""
    if width == 64:
        return values
    half = 1 << (width - 1)
    return ((values + half) & ((1 << width) - 1)) - half


def residual_of(
    source: torch.Tensor, prediction: torch.Tensor, dtype: DType, *, in_place: bool = False
) -> Words:
    """Compute the residual that turns a prediction into the source.

    Parameters
    ----------
    source, prediction : torch.Tensor
        The same shape, both in ``dtype.torch``.
    dtype : DType
        A float type.
    in_place : bool
        Whether the prediction may be given up: its memory is taken, where it is on the CPU and a residual is as wide.

    Returns
    -------
    numpy.ndarray
        1-D, uint16, uint32 or uint64.
    """
    own, told = source.reshape(-1), prediction.reshape(-1)
    kind = _UNSIGNED[dtype.size_bytes]
    out: Words
    if in_place and told.device.type == "cpu" and np.dtype(kind).itemsize == dtype.size_bytes:
        out = told.view(_SIGNED[dtype.size_bytes]).numpy().view(kind)
    else:
        out = np.empty(told.numel(), kind)
    for start in range(0, len(out), _TILE):
        tile = slice(start, start + _TILE)
        difference = _wrap(_ordered(own[tile], dtype) - _ordered(told[tile], dtype), dtype.bits)
        zigzag = (difference << 1) ^ (difference >> 63)
        out[tile] = zigzag.cpu().numpy().view(np.uint64).astype(kind)
    return out


def apply_residual(prediction: torch.Tensor, residual: Words, dtype: DType) -> torch.Tensor:
    """Undo :func:`residual_of`: the source's exact bits, in the shape and on the device of the prediction.

    The prediction is given up: its memory is taken, where it lies in one piece.
    """
    flat = prediction.reshape(-1)
    for start in range(0, len(residual), _TILE):
        _correct(flat[start : start + _TILE], residual[start : start + _TILE], dtype)
    return flat.reshape(prediction.shape)


def _correct(part: torch.Tensor, residual: Words, dtype: DType) -> None:
    """Turn a few predictions into the source's bits."""
    folded = torch.from_numpy(residual.astype(np.uint64).view(np.int64)).to(part.device)
    # Logical shift right of the unsigned value, then the sign.
    half = (folded >> 1) & ((1 << 63) - 1)
    difference = half ^ -(folded & 1)
    ordered = _wrap(_ordered(part, dtype) + difference, dtype.bits)
    minimum = -(1 << (dtype.bits - 1))
    signed = torch.where(ordered >= 0, ordered, minimum + (-1 - ordered))
    part.view(_SIGNED[dtype.size_bytes]).copy_(signed)


def residual_classes(prediction: torch.Tensor, shift: int) -> Classes:
    """Class of each element of a tensor by which its residual is ordered.

    Parameters
    ----------
    prediction : torch.Tensor
        What the compact tier gives, in the model's dtype.
    shift : int
        The tensor's step is the model's times ``2**-shift``.

    Returns
    -------
    numpy.ndarray
        int16, 1-D: the exponent ``e`` of ``|prediction| = f * 2**e`` with f in [0.5, 1), plus the shift; -32768 where
        the prediction is zero.
    """
    flat = prediction.reshape(-1)
    classes = np.empty(flat.numel(), np.int16)
    for start in range(0, len(classes), _TILE):
        values = flat[start : start + _TILE].to(torch.float64)
        exponents = torch.frexp(values)[1].to(torch.int32) + shift
        found = torch.where(values == 0, -32768, exponents).to(torch.int16)
        classes[start : start + _TILE] = found.cpu().numpy()
    return classes


def sorted_residual(residual: Words, classes: Classes) -> Words:
    """Sort residuals by falling class, ties in place, as they are stored."""
    out = np.empty_like(residual)
    for start, order, runs in _tiles(classes):
        tile = residual[start : start + len(order)][order]
        for place, first, last in runs:
            out[place : place + last - first] = tile[first:last]
    return out


class StoredResidual:
    """Stored residuals of tensors that were sorted together, given back to one after the other.

    Parameters
    ----------
    stored : numpy.ndarray
        1-D, as :func:`sorted_residual` gives it.
    classes : numpy.ndarray
        int16, of all elements of all the tensors, in their order.
    """

    def __init__(self, stored: Words, classes: Classes) -> None:
        self._tiles = _unsorted(stored, classes)
        self._left = stored[:0]

    def apply(self, prediction: torch.Tensor, dtype: DType) -> torch.Tensor:
        """Turn the next tensor's prediction into the source's bits, as :func:`apply_residual`."""
        flat = prediction.reshape(-1)
        done = 0
        while done < flat.numel():
            if not len(self._left):
                self._left = next(self._tiles)
            count = min(len(self._left), flat.numel() - done)
            _correct(flat[done : done + count], self._left[:count], dtype)
            self._left = self._left[count:]
            done += count
        return flat.reshape(prediction.shape)


def _unsorted(stored: Words, classes: Classes) -> Iterator[Words]:
    """Undo :func:`sorted_residual`, a tile at a time."""
    for _, order, runs in _tiles(classes):
        tile = np.empty(len(order), stored.dtype)
        tile[order] = np.concatenate([stored[place : place + last - first] for place, first, last in runs])
        yield tile


def _tiles(classes: Classes) -> Iterator[tuple[int, npt.NDArray[np.intp], list[tuple[int, int, int]]]]:
    """Sort elements by falling class, ties in place, a tile at a time.

    Yields where a tile begins, the order inside it, and its runs of one class: where a run is stored, and its first and
    last place in that order.
    """
    if len(classes) <= _TILE:
        if len(classes):
            yield 0, np.argsort(_falling(classes), kind="stable"), [(0, 0, len(classes))]
        return
    counts = np.zeros(_KEYS, np.int64)
    for start in range(0, len(classes), _TILE):
        keys = _falling(classes[start : start + _TILE]).astype(np.int64) + (_KEYS >> 1)
        counts += np.bincount(keys, minlength=_KEYS)
    places = np.cumsum(counts) - counts
    for start in range(0, len(classes), _TILE):
        falling = _falling(classes[start : start + _TILE])
        # numpy sorts 16-bit integers by counting (radix), in linear time.
        order = np.argsort(falling, kind="stable")
        keys = falling[order].astype(np.int64) + (_KEYS >> 1)
        cuts = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
        runs: list[tuple[int, int, int]] = []
        for first, last in pairwise(cuts):
            key = keys[first]
            runs.append((int(places[key]), first, last))
            places[key] += last - first
        yield start, order, runs


def _falling(classes: Classes) -> Classes:
    # -32768 has no negative in 16 bits; no other class comes near it.
    return np.minimum(-classes.astype(np.int32), _LAST).astype(np.int16)
