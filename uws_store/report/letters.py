"""Letters that the plotting library's own font has not: names of models and tensors may be in any script.

An SVG is shown in the fonts of its reader; the plotting library only measures text in the font that it ships. Owns the
stand-ins that it measures and what they are turned back into. Must not know what is drawn.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from types import MappingProxyType

from matplotlib.font_manager import findfont, get_font

__all__ = ["FONT", "Letters", "with_known_letters"]

FONT = "DejaVu Sans"
"""It comes with matplotlib, so that text is measured alike everywhere."""

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# Letters of the font, about as wide as an ideograph, that few names hold: syllabics, hexagrams, Braille.
_POOL = tuple(map(chr, chain(range(0x1400, 0x1680), range(0x4DC0, 0x4E00), range(0x2801, 0x2900))))
_POOL_LETTERS = frozenset(_POOL)


class Letters:
    """One drawing's stand-ins, each for one letter."""

    def __init__(self) -> None:
        self._stand_ins: dict[str, str] = {}
        self._free = [letter for letter in reversed(_POOL) if ord(letter) in _known()]

    def known(self, text: str) -> str:
        """Put a stand-in for each letter that the font has not; one of the stand-ins themselves gets one, too."""
        return "".join(map(self._known, text))

    def restored(self, text: str) -> str:
        """Turn every stand-in back."""
        return text.translate({ord(held): letter for letter, held in self._stand_ins.items()})

    def _known(self, letter: str) -> str:
        if ord(letter) in _known() and letter not in _POOL_LETTERS:
            return letter
        if letter not in self._stand_ins:
            if not self._free:
                return _UNKNOWN
            self._stand_ins[letter] = self._free.pop()
        return self._stand_ins[letter]


def with_known_letters(text: str) -> str:
    """Put a mark for each letter that the font has not: for pictures, which show letters as they were drawn."""
    return "".join(letter if ord(letter) in _known() else _UNKNOWN for letter in text)


@cache
def _known() -> MappingProxyType[int, int]:
    return MappingProxyType(get_font(findfont(FONT)).get_charmap())
