"""The edge's side of a session in asyncio: requests in, answers out; and the sessions that join or renew."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Self

from transport.connection import (
    CLOSE_REVOKED,
    ChallengeReceived,
    Event,
    IssuedReceived,
    PeerClosed,
    Phase,
    RevocationsReceived,
    Welcomed,
    refused_by,
)
from transport.errors import LinkLost, RequestRefused, StreamEnded, TransportError
from transport.handshake import Verify
from transport.initiator import EdgeConnection, Joining, Renewing, Resumption, SvidLogin
from transport.links.base import Link
from transport.messages import Challenge, Issued, Padding, Posture, SpanRecord, Spans, Welcome
from transport.mux import AnswerBytes, AnswerEnded, AnswerStarted, StreamRefused
from transport.noise import SystemEphemerals
from transport.primitives import Signer
from transport.session import Clock, Driver, session_clock
from transport.stream import Progress
from transport.tickets import Ticket


class RemoteAnswer:
    """An answer as it arrives at the edge. Iterate once; it is whole only if that ends without an exception."""

    def __init__(self, session: "EdgeSession", stream: int) -> None:
        self._session, self._stream = session, stream
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._over = False
        self.status = 0
        self.content_type = ""

    def put(self, event: Event) -> None:
        self._events.put_nowait(event)

    async def started(self) -> Self:
        """Waits for the head. Raises RequestRefused, or why the session ended."""
        event = await self._next()
        if not isinstance(event, AnswerStarted):
            raise StreamEnded("the answer ended before it began")
        self.status, self.content_type = event.status, event.content_type
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not isinstance(event := await self._next(), AnswerEnded):
            if isinstance(event, AnswerBytes):
                yield event.data
                self._session.consumed(self._stream, len(event.data))

    async def _next(self) -> Event:
        if self._over:
            raise StreamEnded("the answer is over")
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        match event:
            case StreamRefused():
                self._over = True
                raise RequestRefused(
                    event.message, status=event.status, reason=event.code, retryable=event.retryable
                )
            case PeerClosed():
                self._over = True
                raise self._session.failure or LinkLost("the session ended before the answer was whole")
            case AnswerEnded():
                self._over = True
        return event

    def cancel(self) -> None:
        """No more of it is wanted; the gateway is told. Does nothing once it is over."""
        if not self._over:
            self._over = True
            self._session.cancel(self._stream)


class EdgeSession:
    """A session that carries requests, from the edge. For use in one event loop; requests may run side by side.

    Made over a fresh link; requests may be queued before `open`, and then travel in its first flight where they may.
    `padding` is for both directions; a session that is closed right behind an answer loses the cells that would hide
    that answer's length.
    """

    welcome: Welcome

    def __init__(
        self, link: Link, purpose: SvidLogin | Resumption, key: Signer, verify_gateway: Verify,
        padding: Padding = Padding.BUCKET, *, clock: Clock | None = None, posture: Posture | None = None,
    ) -> None:
        """`posture` is told before any request, unless that travels as early data."""
        clock = clock or session_clock()
        self._connection = EdgeConnection(
            purpose, verify_gateway, SystemEphemerals(), clock(), padding, posture=posture
        )
        self._driver = Driver(link, self._connection, key, clock)
        self._driver.on_event = self._on_event
        self._answers: dict[int, RemoteAnswer] = {}
        self._revoked: TransportError | None = None
        self.on_revocations: Callable[[bytes], None] = lambda data: None
        self._welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    async def open(self) -> Self:
        """The handshake. Raises TransportError (TicketRefused: a full handshake will do); then the link is closed."""
        self._driver.start()
        try:
            self.welcome = await self._welcomed
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def failure(self) -> TransportError | None:
        return self._revoked or self._driver.failure

    @property
    def alive(self) -> bool:
        """Whether requests can be given to it."""
        return self._connection.phase is not Phase.CLOSED

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return not self._answers

    @property
    def tickets(self) -> list[Ticket]:
        """What a later session can be resumed by; each once."""
        return self._connection.tickets

    @property
    def link_id(self) -> str:
        return self._connection.link_id

    @property
    def session_hash(self) -> bytes:
        return self._connection.session_hash

    def request(
        self, request_id: bytes, header: bytes, body: bytes, progress: Progress | None = None
    ) -> RemoteAnswer:
        """Sends a request; `await answer.started()` for its head. Raises Overloaded, or why the session ended."""
        self._check_alive()
        return self._answer(self._connection.request(request_id, header, body, progress))

    def resume(self, request_id: bytes, progress: Progress) -> RemoteAnswer:
        """Asks for the rest of an earlier request's answer, of which `progress` tells what is here."""
        self._check_alive()
        return self._answer(self._connection.resume(request_id, progress))

    def acknowledge(self, request_id: bytes, offset: int) -> None:
        """Tells the gateway that it may forget the answer up to `offset`. Does nothing once the session has ended."""
        if self.alive:
            self._connection.acknowledge(request_id, offset)
            self._driver.wake()

    def consumed(self, stream: int, count: int) -> None:
        self._connection.consumed(stream, count)
        self._driver.wake()

    def cancel(self, stream: int) -> None:
        self._answers.pop(stream, None)
        self._connection.cancel(stream)
        self._driver.wake()

    def tell_held(self, sequence: int) -> None:
        """Asks for the revocation list if it is newer than `sequence`; `on_revocations` is called with it."""
        self._connection.tell_held(sequence)
        self._driver.wake()

    def send_spans(self, spans: list[SpanRecord]) -> None:
        """Hands the edge's own spans of a settled request to the gateway; at most 32."""
        self._connection.send_spans(Spans(spans))
        self._driver.wake()

    async def linger(self, limit_s: float) -> None:
        """Waits, at most `limit_s`, until the padding behind the last streamed answer has come.

        To be called before `close` by who has time: a session that ends earlier shows how long that answer was.
        """
        clock = self._driver.clock
        end = clock() + limit_s
        # Each wait is as long as silence would have to last; only bytes that come make it longer.
        while self.alive and (rest := self._connection.tail_seconds(clock())) and clock() < end:  # noqa: ASYNC110
            await asyncio.sleep(min(rest, end - clock()))

    async def ended(self) -> None:
        """Waits until it is over, whoever ended it."""
        await self._driver.ended()

    async def close(self) -> None:
        await self._driver.close("normal")

    def _check_alive(self) -> None:
        if not self.alive:
            raise self.failure or LinkLost("the session has ended", hint="try again")

    def _answer(self, stream: int) -> RemoteAnswer:
        self._answers[stream] = answer = RemoteAnswer(self, stream)
        self._driver.wake()
        return answer

    def _on_event(self, event: Event) -> None:
        match event:
            case Welcomed():
                if not self._welcomed.done():
                    self._welcomed.set_result(event.welcome)
            case AnswerStarted() | AnswerBytes():
                if (answer := self._answers.get(event.stream)) is not None:
                    answer.put(event)
            case AnswerEnded() | StreamRefused():
                if (answer := self._answers.pop(event.stream, None)) is not None:
                    answer.put(event)
            case RevocationsReceived():
                self.on_revocations(event.data)
            case PeerClosed():
                if event.code == CLOSE_REVOKED:
                    self._revoked = refused_by(event.code)
                if not self._welcomed.done():
                    self._welcomed.set_exception(self.failure or LinkLost("the session ended before it began"))
                for answer in self._answers.values():
                    answer.put(event)
                self._answers.clear()


async def obtain(
    link: Link, purpose: Joining | Renewing, device_key: Signer, verify_gateway: Verify,
    clock: Clock | None = None, activate: Callable[[Challenge], bytes] | None = None,
) -> Issued:
    """A join or renewal over a fresh link, which it closes. `activate` has the TPM answer a challenge, in a thread.

    Raises TransportError.
    """
    clock = clock or session_clock()
    connection = EdgeConnection(purpose, verify_gateway, SystemEphemerals(), clock())
    driver = Driver(link, connection, device_key, clock)
    issued: list[Issued] = []

    def on_event(event: Event) -> None:
        if isinstance(event, IssuedReceived):
            issued.append(event.issued)
        elif isinstance(event, ChallengeReceived) and activate is not None:
            driver.aside(partial(activate, event.challenge), connection.prove)

    driver.on_event = on_event
    driver.start()
    try:
        await driver.ended()
    finally:
        await driver.close("normal")
    if not issued:
        raise driver.failure or LinkLost("the session ended before an SVID was issued")
    return issued[0]
