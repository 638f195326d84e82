"""A running hop: accepts links, gives each a tunnel of its own, keeps its SVID fresh, and stops cleanly."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from relay.hop.counters import Counters
from relay.hop.errors import HopError
from relay.hop.gateways import Gateways
from relay.hop.identity import HopHome, HopIdentity, exchange_list, of_agent, renew
from relay.hop.pipe import Pipe, PipeLimits
from relay.hop.quotas import Flight, Patience
from relay.places import Places, source_of_link
from relay.rates import Rate, TokenBucket
from store.errors import StoreError
from transport.errors import AgentLost, LinkLost, TransportError
from transport.identity.revocation import read_list
from transport.identity.source import AgentSource
from transport.identity.tls import client_context
from transport.links.base import Endpoint, Link, Listener, Radio, listen
from transport.links.websocket import WebSocketLink, connect_websocket

if TYPE_CHECKING:
    from transport.links.discovery import Announcement

TUNNEL_PATH: Final = "/v1/tunnel"
RETRY_S: Final = (5.0, 300.0)  # first and longest wait between attempts to renew
CARRY_S: Final = 600.0  # how often the revocation list is exchanged with each gateway
CHECK_S: Final = 60.0  # a laptop that slept must notice that its SVID has run out
_RADIO: Final = ("ble", "rfcomm")
REPORTS: Final = Rate(0.1, 20)  # lines: strangers must not fill a log


@dataclass(frozen=True)
class HopLimits:
    """`max_links` at once, of which one address has `per_source`; a unix socket and the radio, which may stand for many
    edges, have three quarters. `first_s`: how long a stranger may hold a place without sending a byte. `max_flight`:
    bytes of all links together that wait for somebody to take them.
    """

    max_links: int = 64
    first_s: float = 10.0
    connect_s: float = 10.0
    max_flight: int = 32 << 20
    pipe: PipeLimits = field(default_factory=PipeLimits)

    @property
    def per_source(self) -> int:
        """A quarter, but a small hop may serve one place alone."""
        return max(4, self.max_links // 4)

    @property
    def per_door(self) -> int:
        return max(4, self.max_links * 3 // 4)


class Hop:
    """One hop process. `report` takes one line for the person who runs it."""

    def __init__(
        self, home: HopHome, identity: HopIdentity, gateways: Sequence[str], *, limits: HopLimits,
        report: Callable[[str], None], clock: Callable[[], float] = time.time, source: AgentSource | None = None,
    ) -> None:
        """`gateways` are base URLs, https://HOST:PORT, best first. `source`: the agent that has `identity`, if one has,
        and that gives the next.
        """
        self._home, self._identity, self._source = home, identity, source
        if source is not None:
            source.on_change.append(self._take_given)
        self._gateways = Gateways(gateways)
        self._limits, self._report, self._clock = limits, report, clock
        self._revoked = home.carried()
        self._tls = client_context(identity.bundle, identity.svid, revoked=self._revoked)
        self._renewing = asyncio.Lock()
        self._places = Places(limits.max_links, limits.per_source)
        self._flight = Flight(limits.max_flight)
        self._patience = Patience()
        self._counters = Counters(time.monotonic())
        self._last_report = ""
        self._reports = TokenBucket(REPORTS, time.monotonic())

    @property
    def identity(self) -> HopIdentity:
        return self._identity

    def status(self) -> dict[str, Any]:
        """Blurred counters, see `relay.hop.counters`."""
        return self._counters.blurred(
            now=time.monotonic(), carried=self._flight.carried, gateway=self._gateways.current
        )

    async def run(
        self, endpoints: Sequence[Endpoint], stop: asyncio.Event, *, radio: Radio | None = None, announce: bool = False
    ) -> None:
        """Listens until `stop` is set; `radio` is for ble endpoints, with `announce` the tcp ones are told by multicast
        DNS. Raises LinkLost if an address cannot be had.
        """
        listeners: list[Listener] = []
        announcements: list[Announcement] = []
        upkeep = [asyncio.create_task(self._stay_fresh()), asyncio.create_task(self._carry())]
        try:
            for endpoint in endpoints:
                listeners.append(await listen(endpoint, self._on_link, radio=radio))
            if announce:
                await _announce([listener.endpoint for listener in listeners], announcements)
            where = ", ".join(str(listener.endpoint) for listener in listeners)
            self._report(f"hop ready {self._identity.svid.id.name} listening on {where}")
            await stop.wait()
        finally:
            for task in upkeep:
                task.cancel()
            ends = [*(one.close() for one in announcements), *(one.close() for one in listeners)]
            await asyncio.gather(*upkeep, *ends, return_exceptions=True)

    async def _on_link(self, edge: Link) -> None:
        door = edge.peer.partition(":")[0]
        # A Bluetooth address is made up as one likes, so the radio is one source, as a socket is.
        source = door if door in _RADIO else source_of_link(edge.peer)
        if not self._places.take(source, share=self._limits.per_door if door in ("unix", *_RADIO) else None):
            if self._places.taken >= self._limits.max_links:
                self._tell(f"all {self._limits.max_links} links are taken; one more was turned away")
            else:
                whole = "all links that one source may have are taken"
                self._tell(f"{whole} by {source}; one more was turned away", shown=f"{whole}; one was turned away")
            return
        self._counters.arrived()
        try:
            await self._serve(edge, door)
        except (TransportError, StoreError, HopError) as error:
            self._tell(f"no tunnel: {error}" + (f" ({error.hint})" if error.hint else ""))
        finally:
            self._counters.left()
            self._places.leave(source)

    async def _serve(self, edge: Link, door: str) -> None:
        culprit = edge.peer if door in _RADIO else source_of_link(edge.peer)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._patience.pause(culprit, loop.time()))
        try:
            async with asyncio.timeout(self._limits.first_s):
                first = await edge.receive()
        except (TimeoutError, LinkLost):
            return
        if not first:
            return
        tunnel = await self._open_tunnel()
        self._last_report = ""
        pipe = Pipe(edge, tunnel, self._limits.pipe, first=first, flight=self._flight, clock=self._clock)
        if (await pipe.run()).reason == "refused" and door != "unix":  # a socket's strangers are not told apart
            self._patience.failed(culprit, loop.time())

    async def _open_tunnel(self) -> WebSocketLink:
        """To the first gateway that answers. Only before a link's first byte has left is there a choice."""
        if self._clock() >= self._identity.svid.not_after:
            await self._renew(self._identity)
        now = asyncio.get_running_loop().time
        failure: TransportError = LinkLost("no gateway has answered of late", hint="they are tried again in a moment")
        candidates = self._gateways.candidates(now())
        for url in candidates:
            began = now()
            try:
                tunnel = await connect_websocket(_tunnel_of(url), tls=self._tls, timeout_s=self._limits.connect_s)
            except TransportError as error:
                self._gateways.failed(url, began=began, now=now())
                failure = error
                if url != candidates[-1]:
                    self._tell(f"{error}; the next gateway is tried")
            else:
                self._gateways.worked(url)
                return tunnel
        raise failure

    async def _renew(self, seen: HopIdentity) -> None:
        if self._source is not None:
            raise self._source.failure or AgentLost(
                "this hop's identity has run out, and the SPIFFE agent has given no other", reason="no identity",
                hint="is the SPIRE server in reach of the agent?",
            )
        async with self._renewing:  # many links may see the same old identity; one renewal serves them all
            if self._identity is not seen:
                return
            urls = self._gateways.all()
            for url in urls:
                try:
                    self._identity = await renew(self._home, seen, url, clock=self._clock, revoked=self._revoked)
                    break
                except (TransportError, HopError):
                    if url == urls[-1]:
                        raise
            self._tls = client_context(self._identity.bundle, self._identity.svid, revoked=self._revoked)

    def _take_given(self) -> None:
        """New tunnels use what the agent has pushed; those that stand go on."""
        assert self._source is not None
        self._identity = of_agent(self._source, self._identity.gateway)
        self._tls = client_context(self._identity.bundle, self._identity.svid, revoked=self._revoked)

    async def _carry(self) -> None:
        """Takes the revocation list from gateway to gateway, so that an older memory learns, and goes by it."""
        while True:
            for url in self._gateways.all():
                with contextlib.suppress(TransportError, HopError, StoreError):  # the tunnels tell what is wrong there
                    data = await exchange_list(self._identity, url, self._revoked)
                    if data:
                        revoked = read_list(data, self._identity.bundle, now=self._clock(), held=self._revoked)
                        if revoked is not self._revoked:
                            self._revoked = revoked
                            self._tls = client_context(
                                self._identity.bundle, self._identity.svid, revoked=revoked
                            )
                            await asyncio.to_thread(self._home.carry, revoked)
            if self._revoked.stale(self._clock()):
                self._tell("the revocation list is old: no gateway has given a newer one")
            await asyncio.sleep(CARRY_S)

    async def _stay_fresh(self) -> None:
        """Renews at half-life; after a failure again and again, ever more slowly, and the hop goes on.

        What an agent has given is not renewed here.
        """
        if self._source is not None:
            return
        wait = 0.0
        pause = RETRY_S[0]
        while True:
            await asyncio.sleep(wait)
            half = self._identity.half_life()
            if self._clock() < half:
                wait = min(CHECK_S, half - self._clock())
                continue
            try:
                await self._renew(self._identity)
                # By what is left, not by half-life alone: clocks that disagree must not make a renewal storm.
                wait = max(RETRY_S[0], min(CHECK_S, (self._identity.svid.not_after - self._clock()) / 2))
                pause = RETRY_S[0]
            except (TransportError, StoreError, HopError) as error:
                self._tell(f"cannot renew this hop's identity: {error}" + (f" ({error.hint})" if error.hint else ""))
                wait, pause = pause, min(pause * 2, RETRY_S[1])

    def _tell(self, line: str, *, shown: str | None = None) -> None:
        """Says a thing once, not for each of a thousand links, nor two of them in turn for ever; `shown` is what the
        status keeps of it.
        """
        self._counters.last_error = line if shown is None else shown
        if line != self._last_report and self._reports.take(time.monotonic()):
            self._last_report = line
            with contextlib.suppress(OSError):
                self._report(line)


async def _announce(endpoints: Iterable[Endpoint], started: "list[Announcement]") -> None:
    """Adds each to `started` at once, so that those before one that fails are ended."""
    from transport.links.discovery import Announcement, own_addresses

    for endpoint in endpoints:
        if endpoint.scheme == "tcp":
            host, port = endpoint.host_port()
            announcement = Announcement(port, await asyncio.to_thread(own_addresses, host))
            await announcement.start()
            started.append(announcement)


def _tunnel_of(url: str) -> Endpoint:
    return Endpoint.parse(url.replace("https://", "wss://", 1) + TUNNEL_PATH)
