"""Seeded weather around any link: rate, latency, loss, stalls, damage, disconnection, and places out of reach.

The weather lies on the way of the end that connects, in both directions; the link beneath is taken for perfect. Under
virtual time (`transport.links.virtual_time`) the same seed gives the same course.
"""

import asyncio
import math
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from transport.errors import CloseReason, LinkLost, LostReason
from transport.links.base import CLOSE_TIMEOUT_S, RECEIVE_MAX, Endpoint, Link, Radio, connect
from transport.links.memory import MemoryLink, memory_pair
from transport.links.weather import PROFILES, Channel, Reach, Weather, parse_weather

__all__ = ["PROFILES", "Air", "SimulatedLink", "Weather", "connect_simulated", "pair", "parse_weather"]

_AFTER_S: Final = 1e-6  # behind the last value that arrives before a cut


class SimulatedLink:
    """A link with weather over it. Owns `inner`. `up` and `down` count what is carried and under way."""

    def __init__(self, inner: Link, weather: Weather, dice: random.Random, reach: Reach) -> None:
        self.peer = inner.peer
        self._inner, self._weather = inner, weather
        self.up = Channel(weather, weather.up or weather.rate, dice, reach)
        self.down = Channel(weather, weather.rate, dice, reach)
        self.closed = False
        self._silent = False  # nothing arrives any more; the ends do not know yet
        self._left: float = weather.cut_bytes or math.inf
        self._lost: LostReason | None = None
        self._refused: LinkLost | None = None  # by the other end: it takes nothing more
        self._end: LinkLost | bool = False  # what stands at the end of `down`: True for a clean end of file
        self._to_send, self._sent = asyncio.Event(), asyncio.Event()
        self._to_receive, self._received = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._watch(reach)
        if weather.cut_after:
            self._alarms["cut after"] = self._loop.call_later(weather.cut_after, self.cut)
        self._tasks = [asyncio.create_task(self._carry_up()), asyncio.create_task(self._carry_down())]

    @property
    def lost(self) -> LostReason | None:
        """How the weather has broken the link, if it has."""
        return self._lost

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), self._weather.value):
            self._check(sending=True)
            while self.up.under_way >= self._weather.window:
                await self._until(self._sent)
                self._check(sending=True)
            self._carry(self.up, data[start:start + self._weather.value])
            self._to_send.set()
        self._check(sending=True)

    async def receive(self) -> bytes:
        while True:
            self._check(sending=False)
            if not self._silent:
                if data := self.down.arrived(self._loop.time(), RECEIVE_MAX):
                    self._received.set()
                    return data
                if self._end and not self.down.under_way:
                    if isinstance(self._end, LinkLost):
                        raise self._end
                    return b""
            await self._until(self._to_receive, self.down)

    async def close(self, reason: CloseReason = "done") -> None:
        if self.closed:
            return
        self.closed = True
        self._wake()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while reason == "done" and self.up.under_way and not (self._lost or self._refused):
                    await self._until(self._sent)
        except TimeoutError:
            reason = "error"  # not a clean end: bytes are missing
        finally:
            for alarm in self._alarms.values():
                alarm.cancel()
            for task in self._tasks[:2]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._end_inner("error" if self._silent else reason)

    def cut(self) -> None:
        """From now on nothing arrives; after the supervision time both ends notice."""
        if not self._silent:
            self._silent = True
            self._alarms["silence"] = self._loop.call_later(self._weather.supervision, self._break, "lost")

    def _carry(self, channel: Channel, value: bytes) -> None:
        now = self._loop.time()
        if self._silent or not self._left:
            channel.swallow(value)
        elif len(value) < self._left:
            self._left -= len(value)
            channel.carry(value, now)
        else:
            at = channel.carry(value[:int(self._left)], now)
            self._left = 0
            self._alarms["cut"] = self._loop.call_at(at + _AFTER_S, self.cut)

    async def _carry_up(self) -> None:
        try:
            while True:
                data = b"" if self._silent else self.up.arrived(self._loop.time(), RECEIVE_MAX)
                if data:
                    await self._inner.send(data)
                    self._sent.set()
                else:
                    await self._until(self._to_send, self.up)
        except LinkLost as error:
            self._refused = error
            self._sent.set()

    async def _carry_down(self) -> None:
        try:
            while not self._end:
                data = await self._inner.receive()
                for start in range(0, len(data), self._weather.value):
                    while self.down.under_way >= self._weather.window:
                        await self._until(self._received)
                    self._carry(self.down, data[start:start + self._weather.value])
                    self._to_receive.set()
                self._end = not data
        except LinkLost as error:
            self._end = error
        self._to_receive.set()

    async def _until(self, event: asyncio.Event, channel: Channel | None = None) -> None:
        """Until somebody sets `event`, or the next value of `channel` arrives."""
        event.clear()
        at = None if channel is None or self._silent else channel.next_arrival()
        alarm = None if at is None else self._loop.call_at(at, event.set)
        try:
            await event.wait()
        finally:
            if alarm is not None:
                alarm.cancel()

    def _watch(self, reach: Reach) -> None:
        """Breaks the link when it has been out of reach for the supervision time; before, it holds up what moves."""
        begin, end = reach.gap(self._loop.time())
        if end - begin > self._weather.supervision:
            gone = begin + self._weather.supervision
            self._alarms["reach"] = self._loop.call_at(gone, self._break, "out_of_range")
        elif begin < math.inf:
            self._alarms["reach"] = self._loop.call_at(end, self._watch, reach)

    def _break(self, reason: LostReason) -> None:
        if self._lost is None:
            self._silent, self._lost = True, reason
            self._tasks.append(self._loop.create_task(self._end_inner("error")))
            self._wake()

    async def _end_inner(self, reason: CloseReason) -> None:
        if self._lost and isinstance(self._inner, MemoryLink):
            await self._inner.close(self._lost)  # its far end was on the air, too
        else:
            await self._inner.close(reason)

    def _wake(self) -> None:
        for event in (self._to_send, self._sent, self._to_receive, self._received):
            event.set()

    def _check(self, *, sending: bool) -> None:
        if self.closed:
            raise LinkLost("the link is closed at this end")
        if self._lost is not None:
            raise LinkLost("the other end is out of reach", reason=self._lost, hint="go nearer, and try again")
        if sending and self._refused is not None:
            raise LinkLost(str(self._refused), reason=self._refused.reason)


class Air:
    """What lies between two places: their weather, when they are in reach of each other, and the links they have."""

    def __init__(self, weather: Weather, *, name: str = "") -> None:
        """`name` makes the dice of this air others than those of another one with the same seed."""
        self.weather = weather
        self._seed = f"{weather.seed} {name}".rstrip()
        self.reach = Reach(weather.near, weather.away, self._seed)
        self._opened = self._up = self._down = 0
        self.links: set[SimulatedLink] = set()

    def in_reach(self, now: float) -> bool:
        """At a time of the event loop."""
        return self.reach.gap(now)[0] > now

    async def connect(self, open_inner: Callable[[], Awaitable[Link]], *, timeout_s: float) -> SimulatedLink:
        """Opens a link beneath and lays the weather over it. Raises LinkLost, also if they are not in reach in time."""
        now = asyncio.get_running_loop().time()
        begin, end = self.reach.gap(now)
        start = end if begin <= now else now
        leaves, ready = self.reach.gap(start)[0], start + self.weather.connect
        await asyncio.sleep(min(ready - now, timeout_s))
        if ready - now > timeout_s or leaves <= ready:
            raise LinkLost("nobody is in reach", reason="out_of_range", hint="go nearer, and try again")
        self._opened += 1
        dice = random.Random(f"{self._seed} link {self._opened}")  # noqa: S311  # weather, not keys
        link = SimulatedLink(await open_inner(), self.weather, dice, self.reach)
        for one in [one for one in self.links if one.closed]:
            self.links.discard(one)
            self._up, self._down = self._up + one.up.carried, self._down + one.down.carried
        self.links.add(link)
        return link

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes of all links up and down."""
        up, down = sum(one.up.carried for one in self.links), sum(one.down.carried for one in self.links)
        return self._up + up, self._down + down


def pair(weather: str | Weather, *, seed: int | None = None) -> tuple[SimulatedLink, MemoryLink]:
    """Two ends in this process with weather between them; the first is the one that connected. Raises BadInput."""
    weather = parse_weather(weather) if isinstance(weather, str) else weather
    weather = weather if seed is None else replace(weather, seed=seed)
    near, far = memory_pair()
    reach = Reach(weather.near, weather.away, str(weather.seed), asyncio.get_running_loop().time())
    return SimulatedLink(near, weather, random.Random(f"{weather.seed} pair"), reach), far  # noqa: S311  # no keys


async def connect_simulated(
    endpoint: Endpoint, *, timeout_s: float, tls: ssl.SSLContext | None = None, radio: Radio | None = None
) -> SimulatedLink:
    """See `transport.links.base.connect`; `endpoint` is `sim:PROFILE[?...]@ENDPOINT`. Raises LinkLost, BadInput.

    The seed and the moment together are what the dice of a link begin with; times in reach are of the seed alone.
    """
    text, _, inner = endpoint.address.partition("@")
    weather = parse_weather(text)
    air = Air(weather, name=f"{inner} {asyncio.get_running_loop().time()!r}")
    air.reach = Reach(weather.near, weather.away, str(weather.seed))
    beneath = Endpoint.parse(inner)
    return await air.connect(lambda: connect(beneath, timeout_s=timeout_s, tls=tls, radio=radio), timeout_s=timeout_s)
