"""The one session that carries this edge's requests: opened when needed, resumed by ticket, renewed at half-life.

Endpoints are tried best first, as `ways` has it, hops found nearby after them. When the SVID has been renewed, a new
session is opened before the old one is closed; whoever reads an answer on the old one finds the new one here.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from random import SystemRandom
from typing import Final, Protocol

from edge_client.errors import NotJoined
from edge_client.identity import DeviceIdentity, Identities, renew
from edge_client.posture import Tell
from edge_client.ways import CountedLink, Traffic, Way, Ways
from store.errors import StoreError
from store.settings import Settings
from transport.edge_session import EdgeSession, RemoteAnswer
from transport.errors import (
    AgentLost,
    BadInput,
    IdentityRefused,
    PeerRefused,
    StreamEnded,
    TicketRefused,
    TransportError,
)
from transport.initiator import Resumption, SvidLogin
from transport.links.base import Endpoint, Link
from transport.messages import Padding
from transport.reconnect import is_final, worth_retrying
from transport.session import Clock as SessionClock
from transport.session import session_clock
from transport.tickets import Ticket, Wallet

_EPOCH: Final = "journal-epoch"
_ACKS_REPEATED: Final = 16  # the latest, with each new session; about 30 bytes each
LINGER_S: Final = 10.0  # for the padding behind the last answer, which hides how long it was
_RENEWAL_PAUSE_S: Final = 60.0  # between attempts at renewal while the old SVID is still good

_dice = SystemRandom().random

Dial = Callable[[Endpoint], Awaitable[Link]]
Find = Callable[[], Awaitable[Sequence[Endpoint]]]


class Asker(Protocol):
    """Somebody with a request."""

    async def ask(self, session: EdgeSession, epoch: bytes) -> RemoteAnswer:
        """Gives it to a session, open or about to be opened. `epoch` is the gateway's as last told."""

    def not_taken(self) -> None:
        """The session that was just asked was refused before its gateway looked at any request."""


class Clock:
    """Unix time, waiting for it, and the dice for how long. Tests have one that needs no time."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def dice(self) -> float:
        """Evenly from [0, 1)."""
        return _dice()

    def of_session(self) -> SessionClock:
        """A clock for one session."""
        return session_clock()


class Sessions:
    """Gives each request a session that stands. `opened` is called with each new one."""

    def __init__(
        self, settings: Settings, endpoints: Sequence[Endpoint], dial: Dial, clock: Clock, *, early_data: bool,
        padding: Padding, find: Find, worked: Callable[[Link], None], posture: Tell,
        identities: Identities,
    ) -> None:
        """`early_data` off: nothing is asked before `welcome` has told the epoch that it is asked under."""
        self._early_data, self._padding = early_data and padding is not Padding.CONSTANT, padding
        self._find, self._reached, self._posture = find, worked, posture
        self._settings, self._dial, self._clock = settings, dial, clock
        self._identities = identities
        identities.on_change = self._given
        self._endpoints = tuple(endpoints)
        self._ways, self._seen = Ways(), tuple[Endpoint, ...]()
        self._over: Endpoint | None = None  # the way that a session was opened by last
        self.traffic = Traffic()
        self._wallet = Wallet()
        self._lock = asyncio.Lock()
        self._identity: DeviceIdentity | None = None
        self._chain: Sequence[bytes] = ()  # of the SVID that the session goes back to
        self._revoked: frozenset[int] = frozenset()  # certificates that were so when the tickets were made
        self._renewal_tried = 0.0
        self._epoch: bytes | None = None
        self._freshening: asyncio.Task[None] | None = None
        self._half_life = 0.0
        self._failure: TransportError | None = None  # of the last attempt to connect
        self._failures = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._acknowledged: deque[tuple[bytes, bytes, int]] = deque(maxlen=_ACKS_REPEATED)  # epoch, id, offset
        self.current: EdgeSession | None = None
        self.closed = False
        self.opened: Callable[[EdgeSession], None] = lambda session: None

    async def attach(self, asker: Asker) -> tuple[EdgeSession, RemoteAnswer]:
        """Gives a request to the session, or to a new one, where it may travel as early data.

        One attempt at each endpoint; who waited for another's attempt shares its failure. Raises NotJoined,
        TransportError.
        """
        failures = self._failures
        async with self._lock:
            if self._failure is not None and self._failures != failures:
                raise self._failure
            identity = await self._fresh_identity()
            session = self._usable(identity)
            if session is None:
                try:
                    session, answer = await self._connect(identity, asker)
                except TransportError as error:
                    session = self.current  # past its half-life, but it stands
                    if is_final(error) or session is None or not session.alive:
                        self._failure, self._failures = error, self._failures + 1
                        raise
                else:
                    if answer is not None:
                        return session, answer
        return session, await asker.ask(session, session.welcome.epoch)

    async def stand(self) -> EdgeSession:
        """A session without a request for it. Raises like `attach`."""
        async with self._lock:
            identity = await self._fresh_identity()
            try:
                return self._usable(identity) or (await self._connect(identity, None))[0]
            except TransportError as error:
                if self.current is None or not self.current.alive:
                    self._failure, self._failures = error, self._failures + 1
                raise

    @property
    def endpoint(self) -> str:
        """Where the gateway was last reached; empty if it was not."""
        return "" if self._over is None else str(self._over)

    def forget(self, endpoints: Sequence[Endpoint]) -> None:
        """They were found, and are not to be tried any more. A session over one of them goes on."""
        self._ways.forget(endpoints)
        self._seen = tuple(endpoint for endpoint in self._seen if endpoint not in endpoints)

    def known(self) -> list[Way]:
        """What is known of each way that was tried, given or found, best first."""
        return [self._ways.told(endpoint) for endpoint in self._ways.order(self._seen, self._clock.now())]

    @property
    def failed(self) -> bool:
        """Whether the last attempt to connect came to nothing."""
        return self._failure is not None

    def acknowledge(self, request_id: bytes, offset: int) -> None:
        """Tells the gateway, now and with the next session, that it may forget an answer up to `offset`.

        Nothing answers an acknowledgement, and a link may break behind it; a second one changes nothing.
        """
        if self.current is not None and self.current.alive:
            self.current.acknowledge(request_id, offset)
        if self._epoch is not None:
            self._acknowledged.append((self._epoch, request_id, offset))

    async def close(self) -> None:
        """Ends the session in an orderly way. What is under way stays in the outbox."""
        self.closed = True
        if self._freshening is not None:
            self._freshening.cancel()
            await asyncio.wait({self._freshening})
        async with self._lock:
            session, self.current = self.current, None
        if session is not None:
            await session.linger(LINGER_S)
            await session.close()
        if self._closing:
            await asyncio.wait(self._closing)
        self._wallet.clear()

    def _usable(self, identity: DeviceIdentity) -> EdgeSession | None:
        session = self.current
        if session is not None and session.alive and identity.svid.chain == self._chain:
            return session
        return None

    async def _fresh_identity(self) -> DeviceIdentity:
        """The stored identity, renewed if that is due. While its SVID is good, a failure to renew is no failure."""
        if self.closed:
            raise StreamEnded("this edge is closing its sessions")
        identity = await self._identities.load()
        if identity is None:
            raise NotJoined
        now = self._clock.now()
        usable = identity.svid_valid(now)
        if not self._identities.renewable:
            if not usable:
                raise AgentLost(
                    "this device's identity has run out, and the SPIFFE agent has given no other", reason="no identity",
                    hint="is the agent running, and the SPIRE server in its reach?",
                )
        elif identity.wants_renewal(now) and not (usable and now - self._renewal_tried < _RENEWAL_PAUSE_S):
            self._renewal_tried = now
            try:
                identity = await self._renewed(identity)
            except TransportError:
                if not usable:
                    raise
        if identity.svid.chain != self._chain or identity.revoked.serials != self._revoked:
            # A resumed session would end with the old SVID, and might be one with a gateway that was revoked since.
            self._wallet.clear()
        return identity

    async def _renewed(self, identity: DeviceIdentity) -> DeviceIdentity:
        failures: list[TransportError] = []
        async for endpoint in self._in_order(identity):
            try:
                link = await self._dial(endpoint)
                return await renew(self._settings, identity, link, clock=self._clock.of_session())
            except TransportError as error:
                failures.append(error)
                if is_final(error):
                    break
        raise _telling(failures)

    async def _connect(
        self, identity: DeviceIdentity, asker: Asker | None
    ) -> tuple[EdgeSession, RemoteAnswer | None]:
        """By the SVID that is here; once by a new one if the gateway does not know that: it was restored from a backup,
        or has reinstated this device.
        """
        try:
            return await self._try_each(identity, asker)
        except PeerRefused as error:
            if error.reason != "refused" or not self._identities.renewable:
                raise
            self._wallet.clear()
            return await self._try_each(await self._renewed(identity), asker)

    async def _try_each(
        self, identity: DeviceIdentity, asker: Asker | None
    ) -> tuple[EdgeSession, RemoteAnswer | None]:
        failures: list[TransportError] = []
        if self._epoch is None:
            self._epoch = await self._settings.get(_EPOCH)
        async for endpoint in self._in_order(identity):
            ticket = self._wallet.take(self._clock.now())
            try:
                try:
                    return await self._open(endpoint, identity, ticket, asker)
                except TicketRefused:
                    if ticket is None:
                        raise
                return await self._open(endpoint, identity, None, asker)
            except TransportError as error:
                failures.append(error)
                if is_final(error):
                    break
                self._ways.failed(endpoint, self._clock.now())
        raise _telling(failures)

    async def _open(
        self, endpoint: Endpoint, identity: DeviceIdentity, ticket: Ticket | None, asker: Asker | None
    ) -> tuple[EdgeSession, RemoteAnswer | None]:
        begun = self._clock.now()
        link = await self._dial(endpoint)
        answer: RemoteAnswer | None = None
        try:
            login = SvidLogin(identity.svid.chain, identity.svid.not_after)
            purpose = Resumption(ticket, self._early_data) if ticket else login
            session = EdgeSession(
                CountedLink(link, self.traffic, self._clock.now), purpose, identity.svid.key, identity.verify_gateway,
                self._padding, clock=self._clock.of_session(), posture=await self._posture(),
            )
            if asker is not None and self._epoch is not None and self._early_data:
                answer = await asker.ask(session, self._epoch)
            await session.open()
        except BaseException as error:
            await link.close()
            if answer is not None and asker is not None and _took_nothing(error, ticket):
                asker.not_taken()
            raise
        try:
            self._reached(link)
            self._ways.succeeded(endpoint, self._clock.now() - begun)
            self._over = endpoint
            await self._stands(session, identity)
        except BaseException:
            await session.close()
            raise
        return session, answer

    async def _stands(self, session: EdgeSession, identity: DeviceIdentity) -> None:
        if session.welcome.epoch != self._epoch:
            await self._settings.put(_EPOCH, session.welcome.epoch)
            self._epoch = session.welcome.epoch
        self._failure = None
        self._wallet.put(session.tickets)
        old, self.current = self.current, session
        self._chain, self._revoked = identity.svid.chain, identity.revoked.serials
        session.on_revocations = lambda data: self._take_list(identity, data)
        session.tell_held(identity.revoked.sequence)
        if old is not None and old.alive:  # its answers go on here
            self._closing.add(task := asyncio.create_task(old.close()))
            task.add_done_callback(self._closing.discard)
        self._half_life = (identity.svid.not_before + identity.svid.not_after) / 2
        if self._freshening is None or self._freshening.done():
            self._freshening = asyncio.create_task(self._stay_fresh())
        for epoch, request_id, offset in self._acknowledged:
            if epoch == self._epoch:
                session.acknowledge(request_id, offset)
        self.opened(session)

    def _take_list(self, identity: DeviceIdentity, data: bytes) -> None:
        async def work() -> None:
            with contextlib.suppress(IdentityRefused, StoreError):  # the one held stays, as if none had come
                await identity.take_list(self._settings, data, self._clock.now())

        self._closing.add(task := asyncio.create_task(work()))
        task.add_done_callback(self._closing.discard)

    async def _stay_fresh(self) -> None:
        """Renews at half-life while a session stands, so that no answer runs into its session's end."""
        while not self.closed:
            await self._clock.sleep(max(_RENEWAL_PAUSE_S, self._half_life - self._clock.now()))
            if self.current is None or not self.current.alive:
                return  # the next request opens a session, and begins this anew
            with contextlib.suppress(TransportError, NotJoined):
                await self.stand()

    def _given(self) -> None:
        """The agent has another identity: a session that stands goes on by that, while the old one is still good."""
        async def work() -> None:
            with contextlib.suppress(TransportError, NotJoined):  # the old one goes on; its end begins this anew
                await self.stand()

        if self.current is not None and self.current.alive and not self.closed:
            self._closing.add(task := asyncio.create_task(work()))
            task.add_done_callback(self._closing.discard)

    async def _in_order(self, identity: DeviceIdentity) -> AsyncIterator[Endpoint]:
        known = self._endpoints or tuple(Endpoint.parse(text) for text in identity.endpoints)
        self._seen = self._seen or known
        tried = self._ways.order(known, self._clock.now())
        for endpoint in tried:
            yield endpoint
        found = [endpoint for endpoint in await self._find() if endpoint not in tried]
        self._seen = (*known, *(endpoint for endpoint in found if endpoint not in known))
        for endpoint in self._ways.order(found, self._clock.now()):
            if endpoint not in tried:
                yield endpoint


def _took_nothing(error: BaseException, ticket: Ticket | None) -> bool:
    """Whether a session that ended so was refused before any request of it was looked at."""
    if isinstance(error, PeerRefused):
        # A hint to a resumption is no proof: whoever wrote those two bytes may have passed the early data on.
        return ticket is None or error.reason == "refused"
    return isinstance(error, IdentityRefused)


def _telling(failures: Sequence[TransportError]) -> TransportError:
    """Of the failures of all ways the one to go by: a gateway's own word, then one that may pass, then the last."""
    for telling in (is_final, worth_retrying):
        for error in failures:
            if telling(error):
                return error
    if failures:
        return failures[-1]
    return BadInput("no hop or gateway is known", hint="name one in config.toml: [relay] endpoints")
