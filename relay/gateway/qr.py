"""A QR code (ISO/IEC 18004) as text for a terminal."""

import io
from typing import Final

import segno

_LIGHT_ON_DARK: Final = "\x1b[97;40m"  # whatever the terminal's colours are: not every scanner reads an inverted code
_RESET: Final = "\x1b[0m"


def qr_lines(text: str) -> list[str]:
    """Lines with two rows of modules each, in half blocks, quiet zone and colours included.

    The lowest level of error correction: a screen is not smudged, and a smaller code is easier to scan.
    """
    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, compact=True)
    return [f"{_LIGHT_ON_DARK}{line}{_RESET}" for line in drawn.getvalue().splitlines()]


def width(lines: list[str]) -> int:
    """Columns that they need."""
    return max(len(line) for line in lines) - len(_LIGHT_ON_DARK + _RESET)
