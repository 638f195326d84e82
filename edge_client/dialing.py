"""Opens links for this edge: a radio when an endpoint first needs one, TLS as configured, hops found nearby.

None of it is trusted: who is at the other end shows in the handshake inside the link.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol

from edge_client.identity import Identities
from store.settings import Settings
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link, Radio, connect
from transport.links.phone import WHAT_TO_DO

CONNECT_S: Final = 10.0
RADIO_CONNECT_S: Final = 20.0  # a scan, a connection and its discovery
PHONE_S: Final = 30.0  # for a phone to be there; who has more time waits again

WssTrust = Literal["bundle", "webpki"]


class RankingRadio(Radio, Protocol):
    """A radio that prefers hops through which a handshake has been completed: a strong signal proves nothing."""

    def worked(self, peer: str) -> None:
        """A handshake was completed over a link to `peer`."""


async def _open_radio(spec: str) -> RankingRadio:
    from transport.links.radio import open_radio  # Bluetooth's libraries take a quarter of a second to import

    return await open_radio(spec)


class Dialer:
    """Opens links. `settings` hold the identity, whose trust bundle a wss server is checked against."""

    def __init__(
        self, settings: Settings, *, radio: str, wss_trust: WssTrust,
        open_radio: Callable[[str], Awaitable[RankingRadio]] = _open_radio,
        tell: Callable[[str], None] = lambda text: None, identities: Identities | None = None,
    ) -> None:
        """`radio` is a spec of `transport.links.radio.open_radio`. `tell` shows a person what is to be done."""
        self._identities = identities or Identities(settings)
        self._spec, self._trust, self._open_radio = radio, wss_trust, open_radio
        self._tell, self._told = tell, False
        self._by_radio = ("ble", "phone") if radio.startswith("system") else ("ble", "phone", "rfcomm")
        self._radio: RankingRadio | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, endpoint: Endpoint) -> Link:
        """Raises LinkLost, BadInput for a radio that cannot be, IdentityRefused for a wss server of somebody else's."""
        scheme = _under_the_weather(endpoint).scheme
        if scheme == "wss":
            return await connect(endpoint, timeout_s=CONNECT_S, tls=await self._tls())
        if scheme not in self._by_radio:
            return await connect(endpoint, timeout_s=RADIO_CONNECT_S if scheme == "rfcomm" else CONNECT_S)
        radio = await self._switched_on()
        try:
            if scheme == "phone":
                return await self._phone(endpoint, radio)
            return await connect(endpoint, timeout_s=RADIO_CONNECT_S, radio=radio)
        except LinkLost as lost:
            if lost.reason == "unavailable":  # pulled out, or switched off: another attempt looks anew
                await self.close()
            raise

    async def _phone(self, endpoint: Endpoint, radio: RankingRadio) -> Link:
        """Says once what to do, and again when a phone that was there has gone."""
        if not self._told:
            self._told = True
            self._tell(f"waiting for a phone: {WHAT_TO_DO}")
        link = await connect(endpoint, timeout_s=PHONE_S, radio=radio)
        self._told = False
        return link

    def worked(self, link: Link) -> None:
        """The gateway was reached over this link."""
        if self._radio is not None and link.peer.startswith(("ble:", "phone:")):
            self._radio.worked(link.peer)

    async def close(self) -> None:
        """Closes the radio; a later link opens it again."""
        async with self._opening:
            radio, self._radio = self._radio, None
        if radio is not None:
            await radio.close()

    async def _switched_on(self) -> RankingRadio:
        async with self._opening:
            if self._radio is None:
                self._radio = await self._open_radio(self._spec)
            return self._radio

    async def _tls(self) -> ssl.SSLContext | None:
        """For the server's certificate; before joining there is no bundle, and nothing in the link needs one."""
        if self._trust == "webpki":
            return None
        from transport.identity.tls import client_context, unverified_context

        identity = await self._identities.load()
        return unverified_context() if identity is None else client_context(identity.bundle)


def _under_the_weather(endpoint: Endpoint) -> Endpoint:
    """The endpoint that a simulated one lies over, or itself."""
    return Endpoint.parse(endpoint.address.partition("@")[2]) if endpoint.scheme == "sim" else endpoint


async def nobody() -> Sequence[Endpoint]:
    """Finds no hop."""
    return ()


async def nearby() -> Sequence[Endpoint]:
    """Hops that announce themselves on this network; nobody has checked who they are."""
    from transport.links.discovery import find

    return await find()
