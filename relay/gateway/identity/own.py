"""Which identity a gateway shows: of its own authority, or of a SPIFFE agent. And how a new one comes into force.

Sessions take the SVID of the moment at each handshake, the TLS listener at each connection; what runs goes on.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from relay.gateway.config import Config
from relay.gateway.errors import ConfigError
from relay.gateway.examination import Finding
from relay.gateway.identity.agent import NUMBER_FILE, follow, from_spire
from relay.gateway.identity.ca import BACKDATE_S, Authority, OwnIdentity
from store.errors import StoreError
from transport.identity.source import AgentSource
from transport.identity.svid import Svid
from transport.identity.tls import load_svid
from transport.identity.verify import VerifiedPeer

ROTATE_CHECK_S: Final = 60.0  # a host that slept must not wait out a long timer with an old SVID
_log = logging.getLogger(__name__)


class Embedded:
    """Of the gateway's own authority: `shown` to everybody."""

    joining: None = None

    def __init__(self, authority: Authority, name: str, clock: Callable[[], float]) -> None:
        self.shown = OwnIdentity(authority, name, clock=clock)
        self._context: ssl.SSLContext | None = None

    def elsewhere(self, peer: VerifiedPeer) -> str:
        """Nobody else vouches for anybody."""
        return ""

    def context(self, make: Callable[[], ssl.SSLContext]) -> Callable[[], ssl.SSLContext]:
        """What `make` makes of `shown`; it is given each new SVID by `keep_fresh`."""
        made = self._context = make()
        return lambda: made

    def finding(self) -> Finding | None:
        """No agent, so nothing is wrong with it."""
        return None

    async def keep_fresh(self) -> None:
        loaded = self.shown.svid()
        while True:
            await asyncio.sleep(min(ROTATE_CHECK_S, self.shown.renew_in))
            await self.shown.tend()
            current = self.shown.svid()
            if current is not loaded and self._context is not None:
                load_svid(self._context, current)
                loaded = current


class OfAgent:
    """Of a SPIFFE agent, which has its trust bundle, too; who joins is shown one of the gateway's own authority."""

    def __init__(
        self, source: AgentSource, authority: Authority, name: str, directory: Path, clock: Callable[[], float]
    ) -> None:
        self.shown = _Shown(source)
        self.joining = OwnIdentity(authority, name, clock=clock)
        self.elsewhere = from_spire
        self._source, self._authority, self._directory, self._clock = source, authority, directory, clock
        self._news = asyncio.Event()
        self._not_taken = ""
        source.on_change.append(self._news.set)

    def follow(self) -> None:
        """Raises ConfigError, StoreError."""
        follow(self._authority, self._directory, self._source.bundle, now=self._clock())

    def context(self, make: Callable[[], ssl.SSLContext]) -> Callable[[], ssl.SSLContext]:
        """A new one for each SVID and bundle: a root that is taken out must go, which no context can do."""
        made, by = make(), (self._source.svid, self._authority.bundle)

        def current() -> ssl.SSLContext:
            nonlocal made, by
            now = (self._source.svid, self._authority.bundle)
            if now[0] is not by[0] or now[1] is not by[1]:
                made, by = make(), now
            return made

        return current

    def finding(self) -> Finding | None:
        """What is wrong with the agent; None if it has given what is in use."""
        if self._not_taken:  # who was taken out of it is believed still
            return Finding("failed", f"the agent's trust bundle is not taken: {self._not_taken}",
                           "this gateway goes on with the one of before, and would not start anew")
        failure, left = self._source.failure, self._source.svid.not_after - self._clock()
        if left <= 0:
            return Finding("failed", f"this gateway's identity has run out: {failure or 'the agent gave no other'}",
                           "is the agent running, and the SPIRE server in its reach?")
        if failure is not None:
            return Finding("warning", f"{failure}; this gateway's identity is good for {left / 60:.0f} more minutes",
                           failure.hint)
        return None

    async def keep_fresh(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(ROTATE_CHECK_S, self.joining.renew_in))
            await self.joining.tend()
            if not self._news.is_set():
                continue
            self._news.clear()
            try:
                self.follow()
                self._not_taken = ""
            except (ConfigError, StoreError) as error:
                self._not_taken = str(error)
                _log.error("the SPIFFE agent's trust bundle is not taken: %s", error)


class _Shown:
    def __init__(self, source: AgentSource) -> None:
        self._source = source

    def svid(self) -> Svid:
        return self._source.svid


async def identity_of(
    config: Config, authority: Authority, stack: AsyncExitStack, clock: Callable[[], float] = time.time
) -> Embedded | OfAgent:
    """As the configuration says; `authority` has the bundle that goes with it.

    Raises AgentLost, IdentityRefused, ConfigError, StoreError.
    """
    settings = config.identity
    if settings.socket is None:
        if (config.directory / NUMBER_FILE).exists():  # there was an agent, and devices know its bundle's number
            follow(authority, config.directory, authority.bundle, now=clock())
        return Embedded(authority, config.name, clock)
    source = AgentSource(
        settings.socket, "gateway", path=f"/gateway/{config.name}", trust_domain=config.trust_domain,
        longest_s=settings.svid_max_s + BACKDATE_S, clock=clock, report=_log.warning,
    )
    stack.push_async_callback(source.close)
    await source.start()
    own = OfAgent(source, authority, config.name, config.directory, clock)
    own.follow()
    return own
