"""Order and entropy coding of integers: significance order, PCodec streams, the ideal Laplace bound.

Owns how a read group's coefficients become one sequence, sorted by falling predicted variance, and back; and the
bounded decoding of PCodec streams (Longoria 2024, https://github.com/mwlon/pcodec). Knows nothing about arrays on
storage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from uws_store.errors import FormatError
from uws_store.pages import page_sizes

__all__ = ["decode_integers", "encode_integers", "ideal_bits", "significance_order"]

Integers = npt.NDArray[np.integer]


def significance_order(
    profiles: Sequence[tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]],
) -> npt.NDArray[np.int64]:
    """Order the coefficients of a read group by falling class, ties in place.

    Parameters
    ----------
    profiles : sequence of (rows, columns)
        Per tensor of the group, in table order, the int16 row classes (p,) and column classes (q,); the class of
        coefficient (i, j) is their sum.

    Returns
    -------
    numpy.ndarray
        int64: position ``s`` of the stored sequence holds coefficient ``order[s]`` of the concatenated row-major
        cores. A stable sort, so the order is a function of the profile alone.
    """
    parts = [(rows[:, None] + columns[None, :]).reshape(-1) for rows, columns in profiles]
    classes = np.concatenate(parts) if parts else np.zeros(0, np.int16)
    # numpy sorts 16-bit integers by counting (radix), in linear time.
    return np.argsort(np.negative(classes), kind="stable")


def encode_integers(
    values: Integers, *, page: int | None = None, sizes: Sequence[int] | None = None, level: int = 8
) -> bytes:
    """Compress a 1-D integer array (16, 32 or 64 bits wide) as one standalone PCodec stream.

    Parameters
    ----------
    values : numpy.ndarray
        The integers.
    page : int, optional
        Cut into equal pages of at most so many; by default where :func:`uws_store.pages.page_sizes` says.
    sizes : sequence of int, optional
        Sizes of the pages, instead.
    level : int
        Effort, 0 to 12.
    """
    paging = (
        PagingSpec.exact_page_sizes(page_sizes(values) if sizes is None else list(sizes))
        if page is None and len(values)
        else PagingSpec.equal_pages_up_to(page or 1 << 14)
    )
    config = ChunkConfig(
        compression_level=level,
        delta_spec=DeltaSpec.none(),
        mode_spec=ModeSpec.classic(),
        paging_spec=paging,
    )
    return bytes(standalone.simple_compress(np.ascontiguousarray(values), config))


def decode_integers(data: bytes, *, dtype: npt.DTypeLike, count: int) -> Integers:
    """Decompress a PCodec stream into exactly ``count`` integers, allocating no more than they need.

    Raises
    ------
    FormatError
        When the stream is damaged, of another type, or of another length (kind ``format/entropy``).
    """
    # One spare element shows a stream that is longer than promised, whatever its header claims.
    out = np.zeros(count + 1, dtype)
    try:
        progress = standalone.simple_decompress_into(data, out)
    except (RuntimeError, TypeError, ValueError) as error:
        raise FormatError(
            f"a PCodec stream of {len(data)} bytes is damaged: {error}", kind="format/entropy"
        ) from error
    if progress.n_processed != count or not progress.finished:
        raise FormatError(
            f"a PCodec stream holds {progress.n_processed} integers or more, expected {count}",
            kind="format/entropy",
        )
    return out[:count]


def ideal_bits(integers: Integers, scales: npt.NDArray[np.float64], *, offset: float = 0.4) -> float:
    """Code length of quantised Laplace variables whose scales are known: the bound an entropy coder works against.

    Parameters
    ----------
    integers : numpy.ndarray
        Quantised coefficients.
    scales : numpy.ndarray
        Laplace scale of each (mean absolute value), in steps; the same shape.
    offset : float
        The quantiser's rounding offset.

    Returns
    -------
    float
        Total bits.
    """
    magnitude = np.abs(integers).astype(np.float64)
    rate = 1.0 / np.maximum(scales, 1e-9)
    edge = 1.0 - offset
    zero_nats = -np.log(-np.expm1(-np.minimum(rate * edge, 700.0)) + 1e-300)
    # P(|q| = m) = exp(-rate (m - offset)) (1 - exp(-rate)), and one bit for the sign.
    rest_nats = rate * (magnitude - offset) - np.log(-np.expm1(-rate)) + math.log(2.0)
    nats = np.where(magnitude == 0, zero_nats, rest_nats)
    return float(nats.sum() / math.log(2.0))
