"""A link within one process: two ends, bounded, without weather."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from transport.errors import CloseReason, LinkLost, LostReason
from transport.links.base import RECEIVE_MAX

CAPACITY: Final = 64 * 1024  # bytes under way in a direction above which send() waits


class _Way:
    """One direction."""

    def __init__(self) -> None:
        self.parts: deque[bytes] = deque()
        self.size = 0
        self.ended: CloseReason | LostReason | None = None  # by its sender
        self.deaf = False  # its receiver has closed
        self._waiting: list[asyncio.Future[None]] = []

    async def until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._waiting.append(turn := asyncio.get_running_loop().create_future())
            await turn

    def changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)


class MemoryLink:
    """One end. See `memory_pair`."""

    def __init__(self, out: _Way, back: _Way, peer: str) -> None:
        self.peer = peer
        self._out, self._in = out, back
        self._closed = False

    async def send(self, data: bytes) -> None:
        out = self._out
        for start in range(0, len(data), RECEIVE_MAX):
            await out.until(lambda: out.size < CAPACITY or out.deaf or self._closed)
            self._check(sending=True)
            part = data[start:start + RECEIVE_MAX]
            out.parts.append(part)
            out.size += len(part)
            out.changed()
        self._check(sending=True)

    async def receive(self) -> bytes:
        way = self._in
        await way.until(lambda: bool(way.parts) or way.ended is not None or self._closed)
        self._check(sending=False)
        if not way.parts:
            if way.ended == "done":
                return b""
            raise _closed_by_peer(way.ended)
        part = way.parts.popleft()
        way.size -= len(part)
        way.changed()
        return part

    async def close(self, reason: CloseReason | LostReason = "done") -> None:
        if self._closed:
            return
        self._closed = True
        self._out.ended = reason
        if reason != "done":
            self._out.parts.clear()
        self._in.deaf = True
        self._out.changed()
        self._in.changed()

    def _check(self, *, sending: bool) -> None:
        if self._closed:
            raise LinkLost("the link is closed at this end")
        if sending and self._out.deaf:
            raise _closed_by_peer(self._in.ended)


def _closed_by_peer(reason: CloseReason | LostReason | None) -> LinkLost:
    lost: LostReason = "lost" if reason is None or reason == "done" else reason
    return LinkLost("the peer has ended the link", reason=lost)


def memory_pair(near: str = "memory:near", far: str = "memory:far") -> tuple[MemoryLink, MemoryLink]:
    """A connected pair; `near` and `far` are what each end calls itself, and the other one sees as its peer."""
    there, back = _Way(), _Way()
    return MemoryLink(there, back, far), MemoryLink(back, there, near)
