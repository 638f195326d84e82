"""Many streams at once, an event each 10 ms: that every event comes through the gateway, and when.

The first event of an answer sets its clock: event n is due n times the pace after it, and late if the next one was due
before it came. The provider asked straight gives what machine and client do to that by themselves.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.bare_proxy import PACE_S, PATH
from benchmarks.measure import Row

STREAMS = 64  # at once
_BODY = json.dumps({
    "model": "mock-pace", "max_tokens": 64, "stream": True,
    "messages": [{"role": "user", "content": "Explain in two sentences why the sky is blue."}],
}).encode()
_EVENT, _DONE, _LAST = b"data: {", b"data: [DONE]", b"\r\n0\r\n\r\n"


@dataclass
class Paced:
    """What came: events of each answer, and behind its time each of them, in seconds."""

    events: list[int] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)

    @property
    def late(self) -> int:
        return sum(one > PACE_S for one in self.behind)

    def add(self, times: Sequence[float]) -> None:
        """The moments at which one answer's events came."""
        self.events.append(len(times))
        self.behind += [time - times[0] - number * PACE_S for number, time in enumerate(times)]


class _Client(asyncio.Protocol):
    """One connection that asks again and again, and notes when events come."""

    def __init__(self, head: bytes, answers: int, paced: Paced) -> None:
        self._ask, self._left, self._paced = head + _BODY, answers, paced
        self._held, self._times = b"", list[float]()
        loop = asyncio.get_running_loop()
        self._clock, self.over = loop.time, loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._ask)

    def data_received(self, data: bytes) -> None:
        now = self._clock()
        self._held += data
        self._times += [now] * (self._held.count(_EVENT) - len(self._times))
        if self._held.endswith(_LAST):
            if not self._held.startswith(b"HTTP/1.1 200 ") or _DONE not in self._held:
                self._transport.abort()
                return
            self._paced.add(self._times)
            self._held, self._times, self._left = b"", [], self._left - 1
            if self._left:
                self._transport.write(self._ask)
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._left:
            self.over.set_exception(SystemExit("a stream was cut"))
        elif not self.over.done():
            self.over.set_result(None)


async def paced(port: int, token: str, *, streams: int, answers: int) -> Paced:
    """`answers` one after the other on each of `streams` connections, at once. Raises SystemExit if one is cut."""
    found, loop = Paced(), asyncio.get_running_loop()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(_BODY)}\r\n\r\n"
    ).encode()
    clients = [
        (await loop.create_connection(lambda: _Client(head, answers, found), "127.0.0.1", port))[1]
        for _ in range(streams)
    ]
    await asyncio.gather(*(one.over for one in clients))
    return found


async def measured(
    port: int, token: str, provider: int, key: str, *, streams: int, answers: int
) -> list[Row]:
    """Through the gateway at `port`, and from the provider straight."""
    through = await paced(port, token, streams=streams, answers=answers)
    straight = await paced(provider, key, streams=streams, answers=answers)
    return rows_of(through, straight, streams)


def rows_of(through: Paced, straight: Paced, streams: int) -> list[Row]:
    """Of what came through the gateway and what came straight, of the same number of answers."""
    without_us = "from the provider straight"
    lost = sum(straight.events) - sum(through.events)
    share, bare = (100 * one.late / sum(one.events) for one in (through, straight))
    worst, bare_worst = (sorted(one.behind)[len(one.behind) * 99 // 100] * 1e3 for one in (through, straight))
    return [
        Row(f"events lost, {streams} streams", float(lost), "", 0.0, "must", float(lost == 0), 1.0),
        Row(f"events over {PACE_S * 1e3:g} ms late, {streams} streams", share, "%", bare, without_us, None),
        Row(f"an event behind its time at the 99th percentile, {streams} streams", worst, "ms", bare_worst, without_us,
            None),
    ]
