"""What the classifier sees of tokens: pairs of near ones, by number; and windows over them."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
REACH: Final = 3  # a token pairs with each of so many that follow
PAIRS: Final = 1 << 18  # numbers that a pair may get
WINDOW: Final = 64  # tokens that are judged as one
STRIDE: Final = 32
_SHIFT: Final = np.uint64(64 - 18)
_LEFT: Final = np.array([[0x9E3779B97F4A7C15], [0xC2B2AE3D27D4EB4F], [0xD6E8FEB86659FD93]], np.uint64)
_RIGHT: Final = np.array([[0xC2B2AE3D27D4EB4F], [0x9E3779B97F4A7C15], [0x165667B19E3779F9]], np.uint64)
_STEPS: Final = np.arange(1, REACH + 1)[:, None]


def pairs(tokens: NDArray[Any]) -> Ints:
    """(REACH, n) numbers below PAIRS for n tokens that REACH of padding follow: the same on every machine."""
    n = len(tokens) - REACH
    wide = tokens.astype(np.uint64)
    right = wide[np.arange(n) + _STEPS]
    mixed = wide[:n] * _LEFT + right * _RIGHT
    mixed ^= mixed >> np.uint64(29)
    mixed *= _LEFT[0, 0]
    found: Ints = (mixed >> _SHIFT).astype(np.int64)
    return found
