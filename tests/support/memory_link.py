"""An in-memory pair of links with real back-pressure, for tests of what lies above a link."""

import asyncio
from collections import deque

from transport.errors import CloseReason, LinkLost
from transport.links.base import RECEIVE_MAX

CAPACITY = 64 * 1024  # bytes under way in one direction above which send() waits


class _Pipe:
    """One direction."""

    def __init__(self) -> None:
        self.parts: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.lost = False
        self.reason: CloseReason = "done"  # why its sender ended it
        self.changed = asyncio.Condition()


class MemoryLink:
    """One end. `abort()` breaks the link without a clean end; `sent` keeps what went out if asked to record."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe, peer: str, *, record: bool) -> None:
        self.peer = peer
        self.sent = bytearray()
        self._out, self._in, self._record = outgoing, incoming, record
        self._closed = False

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), RECEIVE_MAX):
            part = bytes(data[start:start + RECEIVE_MAX])
            async with self._out.changed:
                await self._out.changed.wait_for(
                    lambda: self._out.size < CAPACITY or self._out.lost or self._out.ended or self._closed)
                self._check()
                if self._out.lost or self._out.ended:
                    raise LinkLost("the link broke while sending")
                self._out.parts.append(part)
                self._out.size += len(part)
                if self._record:
                    self.sent += part
                self._out.changed.notify_all()
        self._check()
        if self._out.lost:
            raise LinkLost("the link broke while sending")

    async def receive(self) -> bytes:
        pipe = self._in
        async with pipe.changed:
            await pipe.changed.wait_for(lambda: pipe.parts or pipe.ended or pipe.lost or self._closed)
            self._check()
            if pipe.lost:
                raise LinkLost("the link broke while receiving")
            if not pipe.parts:
                if pipe.reason != "done":
                    raise LinkLost(f"the peer ended the link: {pipe.reason}", reason=pipe.reason)
                return b""
            part = pipe.parts.popleft()
            pipe.size -= len(part)
            pipe.changed.notify_all()
            return part

    async def close(self, reason: CloseReason = "done") -> None:
        if self._closed:
            return
        self._closed = True
        async with self._out.changed:
            if not self._out.ended:
                self._out.reason = reason
            self._out.ended = True
            self._out.changed.notify_all()
        async with self._in.changed:
            self._in.ended = True  # what the other end still sends has no reader
            self._in.changed.notify_all()

    async def abort(self) -> None:
        self._closed = True
        for pipe in (self._out, self._in):
            async with pipe.changed:
                pipe.lost = True
                pipe.changed.notify_all()

    def _check(self) -> None:
        if self._closed:
            raise LinkLost("the link is closed at this end")


def memory_links(*, record: bool = False) -> tuple[MemoryLink, MemoryLink]:
    """A connected pair."""
    there, back = _Pipe(), _Pipe()
    return MemoryLink(there, back, "memory:b", record=record), MemoryLink(back, there, "memory:a", record=record)
