"""Tensors that are stored alone: their words entropy coded, and when a read group is cheaper so.

Owns the packing of private tensors, and the comparison of a read group's own bits with its core and residual: weights
that share nothing, or take few values, are smaller alone, and then they are exact at every tier. Decides nothing about
single tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from uws_store import layout
from uws_store.dtypes import DTYPES
from uws_store.entropy import encode_integers
from uws_store.store import EncodedArray, encode_array
from uws_store.tensor_bytes import rotated

__all__ = ["cheaper_alone", "pack_private"]

_WIDTHS = (16, 32, 64)
_SHORTEST_PAGE = 1024
_EFFORT = 12
_EFFORT_ELEMENTS = 1 << 20
"""Short arrays are worth the coder's greatest effort: a histogram is a large part of them."""

Integers = npt.NDArray[np.integer]
Bytes = bytes | memoryview


def pack_private(tensors: Iterable[tuple[str, bytes]]) -> dict[str, EncodedArray]:
    """Pack private tensors: words of one width together, where that is smaller than their bytes.

    Parameters
    ----------
    tensors : iterable of (str, bytes)
        Dtype and bytes of each, in the model's order.

    Returns
    -------
    dict of str to EncodedArray
        The arrays ``private``, ``private16``, ``private32`` and ``private64`` that are needed.
    """
    tensors = list(tensors)
    arrays: dict[str, EncodedArray] = {}
    for width in _WIDTHS:
        data, cuts = _joined(tensors, width)
        if not len(data):
            continue
        words = rotated(data, width=width)
        coded = encode_array(
            words,
            chunk=layout.RESIDUAL_CHUNK,
            page=layout.page_for(len(words)),
            cuts=cuts,
            level=_level(len(words)),
        )
        if sum(map(len, coded.objects.values())) < words.nbytes:
            arrays[f"private{width}"] = coded
    rest = b"".join(data for dtype, data in tensors if f"private{DTYPES[dtype].bits}" not in arrays)
    if rest:
        arrays["private"] = encode_array(np.frombuffer(rest, np.uint8), chunk=layout.PRIVATE_CHUNK, page=None)
    return arrays


def cheaper_alone(
    tensors: Iterable[tuple[str, Bytes]], streams: Iterable[Integers], *, overhead: float
) -> bool:
    """Whether a read group's tensors take less alone than as core and residual.

    Parameters
    ----------
    tensors : iterable of (str, bytes)
        Dtype and bytes of each; asked for when the streams are done with.
    streams : iterable of numpy.ndarray
        The group's core and residuals, as they would be stored; one is asked for after the other.
    overhead : float
        Share of the bytes alone by which core and residual may exceed them: a small compact tier is worth something.
    """
    coded = sum(_coded_bytes(stream, layout.PCODEC_LEVEL) for stream in streams)
    tensors = list(tensors)
    alone = sum(len(data) for dtype, data in tensors if DTYPES[dtype].bits not in _WIDTHS)
    for width in _WIDTHS:
        data, cuts = _joined(tensors, width)
        count = len(data) * 8 // width
        for start in range(0, count, layout.RESIDUAL_CHUNK):
            stop = min(start + layout.RESIDUAL_CHUNK, count)
            words = rotated(data[start * width // 8 : stop * width // 8], width=width)
            inside = [cut - start for cut in cuts if start < cut < stop]
            alone += _coded_bytes(words, _level(count), cuts=inside)
    return alone * (1.0 + overhead) < coded


def _coded_bytes(values: Integers, level: int, *, cuts: Sequence[int] | None = None) -> int:
    """What integers take, coded in chunks as they are stored: a coder holds several times what it is given at once."""
    if cuts is not None:
        sizes = np.diff([0, *cuts, len(values)]).tolist()
        return len(encode_integers(values, sizes=sizes, level=level))
    chunk = layout.RESIDUAL_CHUNK
    return sum(
        len(encode_integers(values[start : start + chunk], level=level))
        for start in range(0, len(values), chunk)
    )


def _joined(tensors: Iterable[tuple[str, Bytes]], width: int) -> tuple[Bytes, list[int]]:
    """The bytes of all tensors of one width, end to end, and where pages of their words are cut between them."""
    parts = [data for dtype, data in tensors if DTYPES[dtype].bits == width]
    return parts[0] if len(parts) == 1 else b"".join(parts), _cuts([len(part) * 8 // width for part in parts])


def _level(count: int) -> int:
    return _EFFORT if count <= _EFFORT_ELEMENTS else layout.PCODEC_LEVEL


def _cuts(lengths: Sequence[int]) -> list[int]:
    """Begin a page with each tensor, unless it or the page before it is short."""
    cuts: list[int] = []
    at = begun = 0
    for length in lengths:
        if length >= _SHORTEST_PAGE and at - begun >= _SHORTEST_PAGE:
            cuts.append(at)
            begun = at
        at += length
    return cuts
