"""Copies bytes both ways between an edge's link and the tunnel to the gateway. It cannot do anything else.

Nothing is parsed. The link id is a hash of the first 64 bytes the edge sends; the gateway computes the same, so that a
trace can name the way without the hop knowing whose it is.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from relay.hop.quotas import Flight, Rate
from transport.errors import CloseReason, LinkLost
from transport.links.base import Link
from transport.primitives import sha256

LINK_ID_FROM: Final = 64  # bytes of the edge's that the link id is made of
_TO_EDGE: Final[dict[str, CloseReason]] = {
    "idle": "idle", "bytes": "limit", "time": "limit", "stuck": "limit", "crowded": "limit"
}
REFUSED: Final = "error"  # why a gateway closes a tunnel whose handshake failed, docs/SPEC.md section 9


class Tunnel(Link, Protocol):
    """A link that takes notes beside the bytes."""

    async def send_note(self, text: str) -> None: ...


@dataclass(frozen=True)
class PipeLimits:
    """Bounds of one pipe: bytes of both directions together, and a second; seconds in all, without a byte, for a peer
    to take what it is sent, and between notes.
    """

    max_bytes: int = 1 << 30
    max_rate: float = 8 << 20
    max_s: float = 6 * 3600.0
    idle_s: float = 300.0
    stuck_s: float = 120.0
    note_every_s: float = 1.0


@dataclass(frozen=True)
class PipeReport:
    """How a pipe ended, and bytes each way. `link_id` may be "".

    `reason`: "edge" or "gateway" (who ended it), "refused" (the gateway, in the handshake), or which limit it was:
    "bytes", "time", "idle", "stuck" (a peer that takes nothing) or "crowded" (its bytes were in the way of others').
    """

    reason: str
    link_id: str
    up: int
    down: int


def link_id(start: bytes) -> str:
    """16 hex digits from the first 64 bytes an edge sends."""
    return sha256(b"causeway link", start[:LINK_ID_FROM])[:8].hex()


class Pipe:
    """One edge link and its tunnel, made for each other: a tunnel is never put under another link."""

    def __init__(
        self, edge: Link, tunnel: Tunnel, limits: PipeLimits, *, first: bytes = b"",
        flight: Flight | None = None, clock: Callable[[], float] = time.time,
    ) -> None:
        """`first` holds what the edge has sent already; `clock` gives unix seconds for notes, `flight` is shared."""
        self._edge, self._tunnel, self._limits, self._clock = edge, tunnel, limits, clock
        self._flight = flight or Flight(limits.max_bytes)
        self._rate = Rate(limits.max_rate, asyncio.get_running_loop().time())
        self._crowded = asyncio.Event()
        self._first = [first] if first else []
        self._start = bytearray()
        self._up = self._down = 0
        self._began = self._last = clock()
        self._moved = asyncio.Event()
        self._tunnel_lock = asyncio.Lock()  # bytes and notes share one sender
        self._idle: asyncio.Timeout | None = None

    async def run(self) -> PipeReport:
        """Copies until one side ends or a limit is reached, then sends the last note and closes both sides."""
        reason = ""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.idle_s) as self._idle:
                    reason = await self._copy()
            reason = reason or "idle"
        finally:
            await asyncio.gather(self._close_tunnel(), self._edge.close(_TO_EDGE.get(reason, "done")))
        return PipeReport(reason, self._known_id(), self._up, self._down)

    async def _copy(self) -> str:
        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(work) for work in (self._upward(), self._downward(), self._limit())]
            notes = group.create_task(self._notes())
            done, rest = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in (*rest, notes):
                task.cancel()
        return sorted(task.result() for task in done)[0]

    async def _upward(self) -> str:
        while True:
            try:
                data = self._first.pop() if self._first else await self._edge.receive()
            except LinkLost:
                data = b""  # both ends end all the same: only the session can tell whether anything was lost
            if not data:
                return "edge"
            if not self._room(len(data)):
                return "bytes"
            self._up += len(data)
            self._start += data[:max(0, LINK_ID_FROM - len(self._start))]
            try:
                await self._pass_on(data, self._send_up)
            except LinkLost:
                return "gateway"
            except TimeoutError:
                return "stuck"

    async def _downward(self) -> str:
        while True:
            try:
                data = await self._tunnel.receive()
            except LinkLost as lost:
                return "refused" if lost.reason == REFUSED else "gateway"
            if not data:
                return "gateway"
            if not self._room(len(data)):
                return "bytes"
            self._down += len(data)
            try:
                await self._pass_on(data, self._edge.send)
            except LinkLost:
                return "edge"
            except TimeoutError:
                return "stuck"

    async def _send_up(self, data: bytes) -> None:
        async with self._tunnel_lock:
            await self._tunnel.send(data)

    async def _pass_on(self, data: bytes, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Raises LinkLost, and TimeoutError if the other side does not take it."""
        with self._flight.hold(len(data), self._crowded.set):
            async with asyncio.timeout(self._limits.stuck_s):
                await send(data)
        self._progress()
        if wait := self._rate.spend(len(data), asyncio.get_running_loop().time()):
            await asyncio.sleep(wait)

    async def _limit(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.max_s):
                await self._crowded.wait()
                return "crowded"
        return "time"

    def _room(self, size: int) -> bool:
        return self._up + self._down + size <= self._limits.max_bytes

    def _progress(self) -> None:
        self._last = self._clock()
        self._moved.set()
        if self._idle is not None and not self._idle.expired():
            self._idle.reschedule(asyncio.get_running_loop().time() + self._limits.idle_s)

    def _known_id(self) -> str:
        return link_id(bytes(self._start)) if len(self._start) >= LINK_ID_FROM else ""

    async def _notes(self) -> None:
        """A note when something has moved, at most one in `note_every_s`."""
        with contextlib.suppress(LinkLost):
            while True:
                await self._moved.wait()
                self._moved.clear()
                if self._known_id():
                    await self._note(final=False)
                    await asyncio.sleep(self._limits.note_every_s)

    async def _note(self, *, final: bool) -> None:
        note = {
            "link": self._known_id(), "start_ms": round(self._began * 1000, 3), "end_ms": round(self._last * 1000, 3),
            "up": self._up, "down": self._down, "final": final,
        }
        async with self._tunnel_lock:
            await self._tunnel.send_note(json.dumps(note, separators=(",", ":")))

    async def _close_tunnel(self) -> None:
        if self._known_id():
            with contextlib.suppress(LinkLost, TimeoutError):
                async with asyncio.timeout(2.0):  # a gateway that reads nothing gets no last word
                    await self._note(final=True)
        await self._tunnel.close()
