"""Which way to the gateway is tried first: a pure policy over what became of each, and what the links have carried.

A way that works stays first, until another is clearly better: one that took less than half as long to open, or is of a
kind that does. Ways that have just failed come last, and the longer, the more often they did so in a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from transport.errors import CloseReason
from transport.links.base import Endpoint, Link

__all__ = ["CountedLink", "LinkPicture", "Traffic", "Way", "Ways"]

_CLEARLY: Final = 0.5  # of the time that the way in use takes
_REST_S: Final = 30.0  # after a failure; twice as long after each more
_REST_MAX_S: Final = 960.0
# Seconds to open a link and its session, until it is known: a scan is slow, and so is what follows it; a phone comes in
# a person's hand.
_USUAL_S: Final = {"unix": 0.05, "tcp": 0.2, "wss": 0.4, "rfcomm": 2.0, "ble": 3.0, "phone": 30.0}


@dataclass(frozen=True)
class Way:
    """One way as a person is told of it; `opened_ms` is None where it never was."""

    endpoint: str
    state: Literal["worked", "failed", "untried"]
    opened_ms: int | None


@dataclass(frozen=True)
class LinkPicture:
    """`via` is a hop's SPIFFE ID, empty if direct; `endpoint` the way of the session, empty if there is none."""

    state: Literal["up", "down", "idle"]
    via: str
    endpoint: str
    round_trip_s: float | None
    sent: int
    received: int
    ways: list[Way]


@dataclass
class _Record:
    opened_s: float | None = None  # smoothed
    failures: int = 0  # in a row
    until: float = 0.0  # when it is worth a try again


class Ways:
    """`now` is any clock in seconds."""

    def __init__(self) -> None:
        self._records: dict[Endpoint, _Record] = {}
        self.worked: Endpoint | None = None  # the last one that did

    def succeeded(self, endpoint: Endpoint, seconds: float) -> None:
        """A session stands over this way; opening it took so long."""
        record = self._records.setdefault(endpoint, _Record())
        record.opened_s = seconds if record.opened_s is None else (record.opened_s + seconds) / 2
        record.failures, record.until = 0, 0.0
        self.worked = endpoint

    def failed(self, endpoint: Endpoint, now: float) -> None:
        record = self._records.setdefault(endpoint, _Record())
        record.until = now + min(_REST_S * 2.0**record.failures, _REST_MAX_S)
        record.failures = min(record.failures + 1, 16)

    def forget(self, endpoints: Iterable[Endpoint]) -> None:
        """These are no ways any more, unless they are named again."""
        for endpoint in endpoints:
            self._records.pop(endpoint, None)
            if self.worked == endpoint:
                self.worked = None

    def order(self, endpoints: Iterable[Endpoint], now: float) -> list[Endpoint]:
        """These ways and the one that last worked, each once, best first; of equals the first named."""
        worked = self.worked
        known = dict.fromkeys([*([] if worked is None else [worked]), *endpoints])
        bound = 0.0 if worked is None else self._cost(worked) * _CLEARLY

        def rank(endpoint: Endpoint) -> tuple[float, bool, float]:
            record = self._records.get(endpoint, _Record())
            if record.until > now:
                return record.until, False, 0.0
            behind = worked is not None and endpoint != worked and self._cost(endpoint) >= bound
            return 0.0, behind, self._cost(endpoint)

        return sorted(known, key=rank)

    def told(self, endpoint: Endpoint) -> Way:
        record = self._records.get(endpoint, _Record())
        opened_ms = None if record.opened_s is None else round(record.opened_s * 1000)
        state: Literal["worked", "failed", "untried"] = "untried" if opened_ms is None else "worked"
        return Way(str(endpoint), "failed" if record.failures else state, opened_ms)

    def _cost(self, endpoint: Endpoint) -> float:
        record = self._records.get(endpoint)
        if record is not None and record.opened_s is not None:
            return record.opened_s
        inner = endpoint.address.partition("@")[2] if endpoint.scheme == "sim" else str(endpoint)
        return _USUAL_S[inner.partition(":")[0]]


class Traffic:
    """Of all links of an edge: bytes, padding and handshakes included; the latest link's first round trip, seconds."""

    sent = received = 0
    round_trip_s: float | None = None


class CountedLink:
    """A link that adds to `traffic` what it carries. `clock` in seconds."""

    def __init__(self, link: Link, traffic: Traffic, clock: Callable[[], float]) -> None:
        self._link, self._traffic, self._clock = link, traffic, clock
        self._asked: float | None = None  # when the first bytes left
        self._answered = False

    @property
    def peer(self) -> str:
        return self._link.peer

    async def send(self, data: bytes) -> None:
        if self._asked is None:
            self._asked = self._clock()
        await self._link.send(data)
        self._traffic.sent += len(data)

    async def receive(self) -> bytes:
        data = await self._link.receive()
        self._traffic.received += len(data)
        if self._asked is not None and not self._answered:
            self._answered, self._traffic.round_trip_s = True, self._clock() - self._asked
        return data

    async def close(self, reason: CloseReason = "done") -> None:
        await self._link.close(reason)
