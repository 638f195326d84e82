"""What may happen to bytes on their way, as numbers and as arithmetic: no event loop, no clock.

Radios do not lose data, they send it again: `loss` is delay. What a host queue, a broken bridge or a hostile hop does
to bytes is `drop`, `reorder`, `corrupt` and `duplicate`; a session above notices each of them, and ends the link.
"""

import math
import random
import re
from collections import deque
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Final

from transport.errors import BadInput

VALUE_MAX: Final = 65_536
SHORTEST_S: Final = 0.1  # time between two changes of the weather
_NUMBER: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?(e-?[0-9]{1,2})?", re.ASCII)


@dataclass(frozen=True)
class Weather:
    """All parameters of a simulated link; each can be named in an endpoint. Times in seconds; shares from 0 to 0.9.

    rate, up          bytes a second in a direction, 0 without limit; `up`: from the end that connects, 0 like `rate`
    value             bytes that travel together, and are lost or damaged together; 1 to 65,536
    window            bytes under way in a direction above which send() waits
    interval          an idle link sends at multiples of this
    latency, jitter   one way: always, and evenly drawn on top; what was sent first arrives first
    loss, retry       share of values that have to be sent again, and what each time costs; those behind it wait
    drop, duplicate   share of values that never arrive, or twice
    reorder, corrupt  share of values that change places with the one before, or have a bit turned over
    stall_every, stall    mean time between pauses in which nothing moves (0: none), and how long each lasts
    cut_bytes, cut_after  the link falls silent after so many bytes (both ways together), or so long; 0: never
    near, away        mean time in reach and out of it, in turns (0: always in reach)
    supervision       silence by which both ends notice that the link has gone
    connect           what connecting takes
    seed              of all dice
    """

    profile: str = "clear"
    rate: float = 0.0
    up: float = 0.0
    value: int = 1_448
    window: int = 65_536
    interval: float = 0.0
    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    retry: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    stall_every: float = 0.0
    stall: float = 0.0
    cut_bytes: int = 0
    cut_after: float = 0.0
    near: float = 0.0
    away: float = 0.0
    supervision: float = 0.0
    connect: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        """As in an endpoint: the profile, and what differs from it. `parse_weather` reads it back."""
        profile = PROFILES[self.profile]
        changed = [
            f"{one.name}={getattr(self, one.name)!r}" for one in fields(self)[1:]
            if getattr(self, one.name) != getattr(profile, one.name)
        ]
        return self.profile + ("?" + "&".join(changed) if changed else "")


# Where the numbers come from. Radio: ceilings of application bytes that the modelled link layer allows, one direction
# (1M PHY 100 kB/s and 2M PHY 178 kB/s with 495-byte values and data length 251; see transport.links.virtual_radio).
# ble-ios: values of 182 bytes, four packets in an interval of 30 ms. ble-bluez-worst: 20-byte values, at the lower end
# of the 4 to 15 kB/s that users of BlueZ report. rfcomm: the lower end of 180 to 270 kB/s. lte-edge: retransmission
# after 8 ms is LTE's HARQ round trip. sat: a geostationary satellite, 35,786 km up and down again, plus processing.
# Everything else (losses of a café's Wi-Fi, pauses, how long people stay in reach) is chosen, not measured.
PROFILES: Final[dict[str, Weather]] = {weather.profile: weather for weather in (
    Weather("clear"),
    Weather("ble-1m", rate=100_000, value=495, window=15_840, interval=0.03, latency=0.002, loss=0.01, retry=0.03,
            supervision=2.0, connect=0.6),
    Weather("ble-2m", rate=178_000, value=495, window=15_840, interval=0.03, latency=0.002, loss=0.01, retry=0.03,
            supervision=2.0, connect=0.6),
    Weather("ble-ios", rate=24_200, value=182, window=5_824, interval=0.03, latency=0.002, loss=0.02, retry=0.03,
            supervision=2.0, connect=1.0),
    Weather("ble-bluez-worst", rate=4_000, value=20, window=640, interval=0.05, latency=0.005, jitter=0.02, loss=0.05,
            retry=0.05, stall_every=60.0, stall=1.5, supervision=0.42, connect=2.5),
    Weather("rfcomm", rate=180_000, value=990, window=31_680, latency=0.015, jitter=0.02, loss=0.01, retry=0.02,
            supervision=5.0, connect=1.5),
    Weather("wifi-cafe", rate=1_000_000, latency=0.015, jitter=0.04, loss=0.02, retry=0.03, stall_every=90.0,
            stall=0.8, supervision=8.0, connect=0.08),
    Weather("lte-edge", rate=125_000, up=30_000, latency=0.045, jitter=0.06, loss=0.08, retry=0.008, stall_every=120.0,
            stall=1.0, supervision=8.0, connect=0.2),
    Weather("sat", rate=250_000, up=60_000, window=262_144, latency=0.28, jitter=0.02, loss=0.005, retry=0.6,
            supervision=10.0, connect=0.6),
    Weather("walk-away", rate=100_000, value=495, window=15_840, interval=0.03, latency=0.002, loss=0.05, retry=0.03,
            near=240.0, away=120.0, supervision=2.0, connect=0.8),
)}


def parse_weather(text: str) -> Weather:
    """From `PROFILE[?NAME=VALUE&...]`. Raises BadInput, with the names there are as the hint."""
    name, question, query = text.partition("?")
    if name not in PROFILES:
        raise BadInput("there is no such weather", hint=f"profiles are {', '.join(PROFILES)}")
    types = {one.name: one.type for one in fields(Weather)[1:]}
    changes: dict[str, int | float] = {}
    for part in query.split("&") if question else ():
        key, equals, value = part.partition("=")
        if key not in types or not equals or key in changes:
            raise BadInput("the weather has no such parameter", hint=f"parameters are {', '.join(types)}")
        if _NUMBER.fullmatch(value) is None or (types[key] is int and not value.isdigit()):
            raise BadInput(f"the weather's {key} is not a number", hint="as in loss=0.02 or seed=7")
        changes[key] = int(value) if types[key] is int else float(value)
    weather = replace(PROFILES[name], **changes)  # type: ignore[arg-type]
    if not 1 <= weather.value <= VALUE_MAX or weather.window < weather.value:
        raise BadInput("the weather's value is 1 to 65536 bytes, and its window no smaller",
                       hint="as in value=495&window=15840")
    if max(weather.loss, weather.drop, weather.duplicate, weather.reorder, weather.corrupt) > 0.9:
        raise BadInput("the weather's shares go from 0 to 0.9", hint="as in loss=0.02, for one packet in fifty")
    if any(0 < each < SHORTEST_S for each in (weather.near, weather.away, weather.stall_every)):
        raise BadInput("the weather's near, away and stall_every are 0, or at least 0.1 s",
                       hint="as in near=240&away=120")
    return weather


@dataclass(frozen=True)
class Reach:
    """When two places are in reach of each other: once in each cycle of `near` + `away` seconds, for half to one and a
    half times `near`, and first at `start`. A function of the seed and the time alone.
    """

    near: float
    away: float
    seed: str
    start: float = 0.0

    def gap(self, now: float) -> tuple[float, float]:
        """(begin, end) of the first time out of reach that is not over at `now`; both infinite if there is none."""
        if not self.near or not self.away:
            return math.inf, math.inf
        cycle = math.floor((now - self.start) / (self.near + self.away)) - 1
        while True:
            begin, end = _stay(self, cycle)[1], _stay(self, cycle + 1)[0]
            if now < end and begin < end:
                return begin, end
            cycle += 1


@lru_cache(maxsize=64)
def _stay(reach: Reach, cycle: int) -> tuple[float, float]:
    length = reach.near + reach.away
    dice = random.Random(f"{reach.seed} reach {cycle}")  # noqa: S311  # weather, not keys
    stay = min(length, reach.near * (0.5 + dice.random()))
    begin = reach.start + cycle * length + (dice.random() * (length - stay) if cycle else 0.0)
    return begin, begin + stay


@dataclass
class Channel:
    """One direction: when what is sent arrives, and as what. `now` never falls."""

    weather: Weather
    rate: float
    dice: random.Random
    reach: Reach
    carried: int = 0  # bytes, all in all
    under_way: int = 0  # bytes
    most_under_way: int = 0  # since `take_most` was last called
    _arriving: deque[tuple[float, bytes]] = field(default_factory=deque)
    _busy_until: float = 0.0
    _last_arrival: float = 0.0
    _next_stall: float = 0.0

    def carry(self, value: bytes, now: float) -> float:
        """Takes one value on; when it arrives."""
        weather, roll = self.weather, self.dice.random
        start = max(now, self._busy_until)
        if start == now and weather.interval:
            start = max(now, math.ceil(now / weather.interval) * weather.interval)
        depart = self._past_stalls(start) + (len(value) / self.rate if self.rate else 0.0)
        while weather.loss and roll() < weather.loss:
            depart += weather.retry
        self._busy_until = depart
        arrival = max(depart + weather.latency + (weather.jitter * roll() if weather.jitter else 0.0), now)
        begin, end = self.reach.gap(arrival)
        if begin <= arrival:
            arrival = end
        self._last_arrival = arrival = max(arrival, self._last_arrival)
        self.carried += len(value)
        for one in self._damaged(value):
            self._arriving.append((arrival, one))
            self.under_way += len(one)
        self.most_under_way = max(self.most_under_way, self.under_way)
        return arrival

    def swallow(self, value: bytes) -> None:
        """Takes one value that arrives nowhere, and takes up room all the same."""
        self.under_way += len(value)

    def take_most(self) -> int:
        """The most bytes that were under way since this was last asked."""
        most, self.most_under_way = self.most_under_way, self.under_way
        return most

    def next_arrival(self) -> float | None:
        return self._arriving[0][0] if self._arriving else None

    def arrived(self, now: float, limit: int) -> bytes:
        """What has arrived, at most `limit` bytes."""
        parts, room = [], limit
        while self._arriving and room and self._arriving[0][0] <= now:
            at, value = self._arriving.popleft()
            if len(value) > room:
                self._arriving.appendleft((at, value[room:]))
                value = value[:room]
            room -= len(value)
            parts.append(value)
        self.under_way -= limit - room
        return b"".join(parts)

    def _past_stalls(self, start: float) -> float:
        weather = self.weather
        if not weather.stall_every:
            return start
        if not self._next_stall:
            self._next_stall = start + self.dice.expovariate(1 / weather.stall_every)
        while start >= self._next_stall:
            start = max(start, self._next_stall + weather.stall)
            self._next_stall += weather.stall + self.dice.expovariate(1 / weather.stall_every)
        return start

    def _damaged(self, value: bytes) -> list[bytes]:
        weather, roll = self.weather, self.dice.random
        if weather.drop and roll() < weather.drop:
            return []
        if weather.corrupt and roll() < weather.corrupt:
            at = self.dice.randrange(len(value) * 8)
            value = value[: at // 8] + bytes([value[at // 8] ^ 1 << at % 8]) + value[at // 8 + 1 :]
        if weather.reorder and self._arriving and roll() < weather.reorder:
            sooner, before = self._arriving.pop()
            self._arriving.append((sooner, value))
            self.under_way += len(value) - len(before)
            value = before
        return [value, value] if weather.duplicate and roll() < weather.duplicate else [value]
