"""Where a sequence of integers is cut into pages, so that each page holds integers of one size.

PCodec writes a histogram for every page: few long pages mix integers of different spread, many short ones pay for
their histograms. Owns the estimate of what a page takes and the search for the cuts. Knows nothing of streams or
arrays.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

__all__ = ["page_sizes"]

_SHORTEST = 2048
_LONGEST = 1 << 24
"""What PCodec takes as one page."""
_MOST_PIECES = 64
_PAGE_BITS = 160.0
"""A page's header and the states of its coder, measured with PCodec 0.3: 20 bytes."""
_BIN_BITS = 20.0
_EXACT = 15
_OCTAVES = 64
_MIDDLE = _EXACT + _OCTAVES
_WIDTH = 2 * _MIDDLE + 1


def page_sizes(values: npt.NDArray[np.integer]) -> list[int]:
    """Cut a sequence so that the estimated size of all pages is small.

    Neighbouring pieces are merged for as long as a merge saves bits. On cores of the digits ViTs the pages take 0.8,
    1.9 and 3.0 % fewer bits than pages of 16,384 (at 1.1, 0.46 and 0.31 bits per coefficient).

    Parameters
    ----------
    values : numpy.ndarray
        1-D integers, sorted by predicted size or in any other order.

    Returns
    -------
    list of int
        Sizes of the pages, in order, each at most 2^24; their sum is ``len(values)``.
    """
    count = len(values)
    piece = min(_LONGEST, max(_SHORTEST, -(-count // _MOST_PIECES)))
    pieces = -(-count // piece)
    if pieces < 2:
        return [count] if count else []
    extra_bits = _extra_bits()
    # Piece by piece: the symbols of all would take several times what the integers do.
    counts = np.stack(
        [
            np.bincount(_symbols(values[start : start + piece]), minlength=_WIDTH)
            for start in range(0, count, piece)
        ]
    ).astype(np.float64)
    histograms = list(counts)
    sizes = [piece] * (pieces - 1) + [count - piece * (pieces - 1)]
    alone = _costs(counts, extra_bits)
    costs = alone.tolist()
    gains = (alone[:-1] + alone[1:] - _costs(counts[:-1] + counts[1:], extra_bits)).tolist()
    gains = [gain if sum(sizes[at : at + 2]) <= _LONGEST else -1.0 for at, gain in enumerate(gains)]
    while gains:
        at = int(np.argmax(gains))
        if gains[at] <= 0.0:
            break
        histograms[at] = histograms[at] + histograms.pop(at + 1)
        costs[at] = costs[at] + costs.pop(at + 1) - gains.pop(at)
        sizes[at] += sizes.pop(at + 1)
        for other in (at - 1, at):
            if 0 <= other < len(gains):
                fits = sum(sizes[other : other + 2]) <= _LONGEST
                gains[other] = _gain(histograms, costs, other, extra_bits) if fits else -1.0
    return sizes


def _extra_bits() -> npt.NDArray[np.float64]:
    """Bits of each symbol besides its own: which of the integers of an octave it is."""
    extra_bits = np.zeros(_WIDTH)
    octaves = np.arange(1, _OCTAVES + 1)
    extra_bits[_MIDDLE + _EXACT + octaves] = extra_bits[_MIDDLE - _EXACT - octaves] = octaves - 1
    return extra_bits


@functools.cache
def _symbols_of_words(kind: str) -> npt.NDArray[np.int64]:
    """The symbols of all 16-bit integers, by their bits."""
    words: npt.NDArray[np.integer] = np.arange(1 << 16, dtype=np.uint16).view(f"{kind}2")
    return _computed(words)


def _symbols(values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Give every small integer a symbol of its own, larger ones one per octave and sign."""
    if values.dtype.itemsize == 2:
        symbols: npt.NDArray[np.int64] = _symbols_of_words(values.dtype.kind)[values.view(np.uint16)]
        return symbols
    return _computed(values)


def _computed(values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    if values.dtype.kind == "u":
        small: npt.NDArray[np.int64] = np.minimum(values, np.array(_EXACT, values.dtype)).astype(np.int64)
        large = np.flatnonzero(values > _EXACT)
    else:
        small = np.clip(values, -_EXACT, _EXACT).astype(np.int64)
        large = np.flatnonzero((values > _EXACT) | (values < -_EXACT))
    if large.size:
        exponents = np.frexp(np.abs(values[large].astype(np.float64)))[1]
        small[large] += np.sign(small[large]) * np.minimum(exponents, _OCTAVES)
    small += _MIDDLE
    return small


def _costs(
    histograms: npt.NDArray[np.float64], extra_bits: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Bits of several pages, a row each; as :func:`_cost`."""
    totals = histograms.sum(1)
    parts = (histograms * np.log2(np.maximum(histograms, 1.0))).sum(1)
    bins = np.count_nonzero(histograms, axis=1)
    entropy = totals * np.log2(totals) - parts
    bits: npt.NDArray[np.float64] = entropy + histograms @ extra_bits + _PAGE_BITS + _BIN_BITS * bins
    return bits


def _cost(histogram: npt.NDArray[np.float64], extra_bits: npt.NDArray[np.float64]) -> float:
    """Bits of a page: its entropy, its header, its bins."""
    used = np.flatnonzero(histogram)
    counts = histogram[used]
    total = counts.sum()
    entropy = total * np.log2(total) - float(counts @ np.log2(counts))
    return float(entropy + counts @ extra_bits[used] + _PAGE_BITS + _BIN_BITS * len(used))


def _gain(
    histograms: list[npt.NDArray[np.float64]],
    costs: list[float],
    at: int,
    extra_bits: npt.NDArray[np.float64],
) -> float:
    return costs[at] + costs[at + 1] - _cost(histograms[at] + histograms[at + 1], extra_bits)
