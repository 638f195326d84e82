"""A running hop: accepts links, gives each a tunnel of its own, keeps its SVID fresh, and stops cleanly."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay.hop.errors import HopError
from relay.hop.identity import HopHome, HopIdentity, renew
from relay.hop.pipe import Pipe, PipeLimits
from relay.places import Places, source_of_link
from store.errors import StoreError
from transport.errors import LinkLost, TransportError
from transport.identity.tls import client_context
from transport.links.base import Endpoint, Link, Listener, listen
from transport.links.websocket import WebSocketLink, connect_websocket

TUNNEL_PATH: Final = "/v1/tunnel"
RETRY_S: Final = (5.0, 300.0)  # first and longest wait between attempts to renew
CHECK_S: Final = 60.0  # a laptop that slept must notice that its SVID has run out


@dataclass(frozen=True)
class HopLimits:
    """`max_links` at once, of which one address has `per_source` and a unix socket, which may stand for many edges,
    three quarters; `first_s`: how long a stranger may hold a place without sending a byte.
    """

    max_links: int = 64
    first_s: float = 10.0
    connect_s: float = 15.0
    pipe: PipeLimits = field(default_factory=PipeLimits)

    @property
    def per_source(self) -> int:
        """A quarter, but a small hop may serve one place alone."""
        return max(4, self.max_links // 4)

    @property
    def per_socket(self) -> int:
        return max(4, self.max_links * 3 // 4)


class Hop:
    """One hop process. `report` takes one line for the person who runs it."""

    def __init__(
        self, home: HopHome, identity: HopIdentity, gateway: str, *, limits: HopLimits,
        report: Callable[[str], None], clock: Callable[[], float] = time.time,
    ) -> None:
        """`gateway` is a base URL, https://HOST:PORT."""
        self._home, self._identity, self._gateway = home, identity, gateway
        self._tunnel = Endpoint.parse(gateway.replace("https://", "wss://", 1) + TUNNEL_PATH)
        self._limits, self._report, self._clock = limits, report, clock
        self._tls = client_context(identity.bundle, identity.svid)
        self._renewing = asyncio.Lock()
        self._places = Places(limits.max_links, limits.per_source)
        self._last_report = ""

    @property
    def identity(self) -> HopIdentity:
        return self._identity

    async def run(self, endpoints: Sequence[Endpoint], stop: asyncio.Event) -> None:
        """Listens until `stop` is set. Raises LinkLost if an address cannot be had."""
        listeners: list[Listener] = []
        freshness = asyncio.create_task(self._stay_fresh())
        try:
            for endpoint in endpoints:
                listeners.append(await listen(endpoint, self._on_link))
            where = ", ".join(str(listener.endpoint) for listener in listeners)
            self._report(f"hop ready {self._identity.svid.id.name} listening on {where}")
            await stop.wait()
        finally:
            freshness.cancel()
            await asyncio.gather(freshness, *(one.close() for one in listeners), return_exceptions=True)

    async def _on_link(self, edge: Link) -> None:
        source = source_of_link(edge.peer)
        if not self._places.take(source, share=self._limits.per_socket if edge.peer.startswith("unix:") else None):
            if self._places.taken >= self._limits.max_links:
                self._tell(f"all {self._limits.max_links} links are taken; one more was turned away")
            else:
                self._tell(f"all links that one source may have are taken by {source}; one more was turned away")
            return
        try:
            await self._serve(edge)
        except (TransportError, StoreError, HopError) as error:
            self._tell(f"no tunnel: {error}" + (f" ({error.hint})" if error.hint else ""))
        finally:
            self._places.leave(source)

    async def _serve(self, edge: Link) -> None:
        try:
            async with asyncio.timeout(self._limits.first_s):
                first = await edge.receive()
        except (TimeoutError, LinkLost):
            return
        if not first:
            return
        tunnel = await self._open_tunnel()
        self._last_report = ""
        await Pipe(edge, tunnel, self._limits.pipe, first=first, clock=self._clock).run()

    async def _open_tunnel(self) -> WebSocketLink:
        if self._clock() >= self._identity.svid.not_after:
            await self._renew(self._identity)
        return await connect_websocket(self._tunnel, tls=self._tls, timeout_s=self._limits.connect_s)

    async def _renew(self, seen: HopIdentity) -> None:
        async with self._renewing:  # many links may see the same old identity; one renewal serves them all
            if self._identity is seen:
                self._identity = await renew(self._home, self._identity, self._gateway, clock=self._clock)
                self._tls = client_context(self._identity.bundle, self._identity.svid)

    async def _stay_fresh(self) -> None:
        """Renews at half-life; after a failure again and again, ever more slowly, and the hop goes on."""
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

    def _tell(self, line: str) -> None:
        """Says a thing once, not for each of a thousand links."""
        if line != self._last_report:
            self._last_report = line
            with contextlib.suppress(OSError):
                self._report(line)
