"""Event streams (WHATWG) of providers, as they come: passed on in whole lines, and checked before."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from relay.gateway.errors import ProviderFailure
from relay.gateway.upstream.connection import Response, too_large
from relay.gateway.upstream.formats import garbled

LINE_MAX: Final = 1 << 20
_PIECE: Final = 16_384  # bytes that go on at once, or one line
_AFTER_END_S: Final = 2.0  # a stream that has said that it ends need not be waited for
_FIELDS: Final = (b"event:", b"id:", b"retry:", b":")


async def whole_lines(response: Response, limit: int, ends: Callable[[bytes], bool]) -> AsyncIterator[bytes]:
    """The stream's bytes, at most `limit` of them, cut only behind newlines.

    `ends` gets what each `data:` line holds, raises ProviderFailure for what may not be passed on, and says whether
    the stream ends with it. Raises ProviderFailure unless it is an event stream up to such an end.
    """
    held, total, done = bytearray(), 0, False
    while True:
        try:
            chunk = await response.chunk(_AFTER_END_S if done else None)
        except ProviderFailure:
            if done:
                return
            raise
        if not chunk:
            break
        total += len(chunk)
        if total > limit or len(held) > LINE_MAX:
            raise too_large()
        if cut := chunk.rfind(b"\n") + 1:
            whole = chunk[:cut]
            if held:
                whole = bytes(held) + whole
                held.clear()
            held += chunk[cut:]
            while whole:
                piece, whole = _piece(whole)
                done = _checked(piece, ends) or done
                yield piece
                if whole:
                    await asyncio.sleep(0)  # what a provider says at once is not the other streams' delay
        else:
            held += chunk
    if not done or held.strip():
        raise garbled()


def _piece(whole: bytes) -> tuple[bytes, bytes]:
    """Some lines, and those that are left."""
    if len(whole) <= _PIECE:
        return whole, b""
    cut = (whole.rfind(b"\n", 0, _PIECE) + 1) or (whole.find(b"\n") + 1)
    return whole[:cut], whole[cut:]


def _checked(whole: bytes, ends: Callable[[bytes], bool]) -> bool:
    if b"\r" in whole and whole.count(b"\r") != whole.count(b"\r\n"):
        raise garbled()  # a line's end to some readers, and not to others
    done = False
    for line in whole.split(b"\n"):
        if line.startswith(b"data:"):
            done = ends(line[5:].strip()) or done
        elif line and line != b"\r" and not line.startswith(_FIELDS):
            raise garbled()
    return done
