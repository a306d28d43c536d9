"""Names and numbers as a report writes them."""

from __future__ import annotations

import unicodedata

__all__ = ["percent", "printable", "short_number", "size"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_STEP = 1000.0


def printable(name: str) -> str:
    """Replace what cannot be seen or turns text around (control, format and private characters) by a mark."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char)[0] == "C" else char for char in name
    )


def size(count: float) -> str:
    """Bytes, in powers of a thousand."""
    unit = 0
    while count >= _STEP and unit < len(_UNITS) - 1:
        count /= _STEP
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.3g} {_UNITS[unit]}"


def short_number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A share, in percent."""
    return f"{100 * value:.1f} %"
