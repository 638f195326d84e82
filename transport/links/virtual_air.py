"""The air between virtual Bluetooth controllers: when a packet that a host hands to its controller has crossed.

One connection is a row of exchanges, as on a real link layer: the central sends a packet or an empty one, and so does
the peripheral. An idle connection waits for its next connection event; while there is more to send, exchanges follow
each other without a gap, up to `packets_per_event`. A controller has one radio, so its connections take turns. Errors
cost time and never data: the link layer repeats what was not acknowledged. A host learns that a packet has left only
when it has crossed, which is what holds back a host that is faster than the radio.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

LATENESS_S: Final = 0.1  # a machine too slow for the modelled rate: how far the radio's clock may fall behind


@dataclass(frozen=True)
class Phy:
    """What a radio link is like. The defaults are a link without delays.

    `rate_bps` bits per second of payload (0: takes no time); `overhead_us` per exchange: both packets' headers and the
    two pauses between them; `interval_s` between connection events (0: always one); `pdu` payload bytes of one packet
    (27, or 251 with the data length extension); `per` probability that a packet or its acknowledgement is lost;
    `supervision_s` of silence that end a connection; `packets_per_event` that a side sends in one connection event
    (0: no limit); `mtu` that the weaker host agrees to; `buffers` packets of a controller, shared by its connections.
    """

    rate_bps: float = 0.0
    overhead_us: float = 0.0
    interval_s: float = 0.0
    pdu: int = 251
    per: float = 0.0
    supervision_s: float = 4.0
    packets_per_event: int = 0
    mtu: int = 517
    buffers: int = 16

    @property
    def instant(self) -> bool:
        return not (self.rate_bps or self.overhead_us or self.interval_s)

    def exchange_s(self, there: int, back: int) -> float:
        """Seconds that an exchange takes with this many bytes of payload each way."""
        air = (there + back) * 8 / self.rate_bps if self.rate_bps else 0.0
        return air + self.overhead_us / 1e6


# Overheads: preamble, access address, header, CRC of two packets (10 bytes each on 1M, 11 on 2M) and two pauses of
# 150 us (Core 5.4, vol 6, part B, sections 2.1 and 4.1). BlueZ connects with 30..50 ms and ends a silent link after
# 420 ms; iOS takes four packets an event and an MTU of 185.
PHYS: Final = MappingProxyType({
    "instant": Phy(),
    "1m": Phy(rate_bps=1e6, overhead_us=460, interval_s=0.03),
    "2m": Phy(rate_bps=2e6, overhead_us=388, interval_s=0.03),
    "ios": Phy(rate_bps=1e6, overhead_us=460, interval_s=0.03, packets_per_event=4, mtu=185),
    "bluez-worst": Phy(rate_bps=1e6, overhead_us=460, interval_s=0.05, pdu=27, per=0.05, supervision_s=0.42,
                       packets_per_event=10, mtu=23),
})


@dataclass(eq=False)
class Antenna:
    """What connections of one controller share: whether it is on the air now, in range, and can take packets in."""

    busy: bool = False
    in_range: bool = True
    full: bool = False  # its host does not read
    airs: "list[Air]" = field(default_factory=list)


@dataclass(eq=False)
class _Side:
    antenna: Antenna
    crossed: Callable[[Any], None]  # is given each packet when it has reached the other side
    waiting: deque[tuple[Any, int]] = field(default_factory=deque)  # packets with their sizes in bytes


class Air:
    """One connection. Side 0 is the central. `lost` is called once when it has been silent for too long."""

    def __init__(
        self,
        sky: "Sky",
        central: tuple[Antenna, Callable[[Any], None]],
        peripheral: tuple[Antenna, Callable[[Any], None]],
        lost: Callable[[], None],
    ) -> None:
        self.phy = sky.phy
        self._sky = sky
        self._sides = (_Side(*central), _Side(*peripheral))
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._began = self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._pending = False  # waits for an event, in the sky's queue, or is in an exchange
        self._sent = self._failed = 0  # exchanges of this event; failures in a row
        self.closed = False
        for side in self._sides:
            side.antenna.airs.append(self)
        self.reach_changed()

    @property
    def antennas(self) -> tuple[Antenna, Antenna]:
        return self._sides[0].antenna, self._sides[1].antenna

    @property
    def silent(self) -> bool:
        return not all(antenna.in_range for antenna in self.antennas)

    def submit(self, side: int, packet: Any, size: int) -> None:
        """A packet from the host on that side."""
        self._sides[side].waiting.append((packet, size))
        self.wake()

    def waiting(self, side: int) -> int:
        """How many packets of that side have not crossed."""
        return len(self._sides[side].waiting)

    def wake(self) -> None:
        """Looks again whether there is something to send."""
        if self._pending or self.closed or self.silent or not self._ready():
            return
        if self.phy.instant:
            self._cross_all()
            return
        self._heard = self._loop.time()  # empty packets kept it alive until now
        self._await_event()

    def next_event(self) -> float:
        """Loop time of the next connection event."""
        now = self._loop.time()
        if not self.phy.interval_s:
            return now
        passed = (now - self._began) // self.phy.interval_s
        return self._began + (passed + 1) * self.phy.interval_s

    def reach_changed(self) -> None:
        """To be called after `in_range` or `full` of an antenna has changed.

        A host that reads nothing for `supervision_s` is taken for gone, so that it cannot hold its peer's buffers.
        """
        if self.closed:
            return
        reached = not self.silent and not any(antenna.full for antenna in self.antennas)
        if not reached and self._silence is None:
            self._silence = self._loop.call_later(self.phy.supervision_s, self._lost)
        elif reached and self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self.wake()

    def close(self) -> None:
        """What has not crossed is lost with the connection."""
        if self.closed:
            return
        self.closed = True
        for timer in (self._timer, self._silence):
            if timer is not None:
                timer.cancel()
        for side in self._sides:
            side.waiting.clear()
            side.antenna.airs.remove(self)
        self._sky.forget(self)

    def start(self, at: float) -> None:
        """Begins an exchange at loop time `at`."""
        there, back = (side.waiting[0][1] if self._may_send(number) else 0 for number, side in enumerate(self._sides))
        end = max(at, self._loop.time() - LATENESS_S) + self.phy.exchange_s(there, back)
        self._timer = self._loop.call_at(end, self._finish, end)

    def _await_event(self) -> None:
        self._pending = True
        self._sent = self._failed = 0
        at = self.next_event()
        self._timer = self._loop.call_at(at, self._sky.queue, self, at)

    def _finish(self, at: float) -> None:
        self._sky.done(self, at, again=self._exchange(at))

    def _exchange(self, at: float) -> bool:
        """What has crossed by the loop time `at`; returns whether the connection event goes on."""
        for number, side in enumerate(self._sides):
            if not self._may_send(number):
                continue
            if self.silent or self._sky.dice.random() < self.phy.per:
                self._failed += 1
                continue
            self._failed = 0
            self._heard = at
            side.crossed(side.waiting.popleft()[0])
            if self.closed:
                return False
        if at - self._heard > self.phy.supervision_s:
            self._lost()
            return False
        self._sent += 1
        self._pending = False
        if self.silent or not self._ready():
            return False
        # a second error in a row closes the event (Core 5.4, vol 6, part B, section 4.5.6)
        if self._failed >= 2 or self._sent == self.phy.packets_per_event:
            self._await_event()
            return False
        self._pending = True
        return True

    def _ready(self) -> bool:
        return self._may_send(0) or self._may_send(1)

    def _may_send(self, number: int) -> bool:
        return bool(self._sides[number].waiting) and not self._sides[1 - number].antenna.full

    def _cross_all(self) -> None:
        for number, side in enumerate(self._sides):
            while not self.closed and self._may_send(number):
                side.crossed(side.waiting.popleft()[0])


class Sky:
    """Who is on the air: every controller has one radio, and connections that share one take turns."""

    def __init__(self, phy: Phy, dice: random.Random) -> None:
        self.phy = phy
        self.dice = dice
        self._queue: dict[Air, float] = {}  # loop time from which each waits, first come first served
        self._on: set[Air] = set()

    def queue(self, air: Air, at: float) -> None:
        """`air` wants an exchange from loop time `at`."""
        self._queue[air] = at
        self._start_next(at)

    def done(self, air: Air, at: float, *, again: bool) -> None:
        """The exchange of `air` ended at loop time `at`; it wants another one, after those who wait already."""
        self._leave(air)
        if again:
            self._queue[air] = at
        self._start_next(at)

    def forget(self, air: Air) -> None:
        """`air` is closed."""
        self._queue.pop(air, None)
        self._leave(air)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._start_next, loop.time())

    def _leave(self, air: Air) -> None:
        if air in self._on:
            self._on.remove(air)
            for antenna in air.antennas:
                antenna.busy = False

    def _start_next(self, at: float) -> None:
        for air in list(self._queue):
            if not any(antenna.busy for antenna in air.antennas):
                since = self._queue.pop(air)
                for antenna in air.antennas:
                    antenna.busy = True
                self._on.add(air)
                air.start(max(since, at))
