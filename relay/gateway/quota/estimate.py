"""How many tokens something may be, before and unless a provider says so. Pure.

- A token is a byte at least: so much is reserved for the text of a request, whatever language or nonsense it is.
- Where nobody reports what a call came to, three bytes are taken for a token, and an event that holds text for one at
  least. English has more than four bytes to a token, Chinese about three: the error is on the strict side for both.
- Images and files, in base64, count for FILE_TOKENS each, whatever their size; their true cost is known afterwards.
"""

from collections.abc import Sequence
from typing import Final

from relay.gateway.pipeline import Said

FILE_TOKENS: Final = 2_048
LONGEST: Final = 16  # bytes of text to a token, beyond which a provider does not keep to the number it was told
_FILE_MIN: Final = 64  # bytes of a word that may be a file


def at_most(body: bytes, said: Sequence[Said]) -> int:
    """Tokens of a request. What looks like a file counts as text as well where a model will read it as text."""
    if b"base64" not in body:
        return len(body)
    files = [
        len(word) for word in body.split(b'"')
        if len(word) >= _FILE_MIN and b" " not in word and b"[" not in word  # of numbers each is a token
    ]
    text = sum(len(one.text.encode("utf-8", "surrogatepass")) for one in said)
    return max(len(body) - sum(files), text) + len(files) * FILE_TOKENS


def likely(size: int) -> int:
    """Tokens of `size` bytes of text."""
    return -(-size // 3)


def passed(events: int, size: int, cap: int | None) -> int:
    """Tokens of an answer of which so many events with text, of so many bytes, have come. `cap`: what the request told
    the provider to stop at, which is believed as long as it can be true.
    """
    found = max(events, likely(size))
    return min(found, cap) if cap is not None and events <= cap and size <= cap * LONGEST else found
