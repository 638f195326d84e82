"""The asyncio driver of a connection over a link: one reader, one writer, no protocol of its own.

The reader owns the time-outs, the writer the back-pressure; both only move bytes between the link and the sans-IO
`connection`, which is touched from this one event loop alone.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol, Self

from transport.connection import (
    EdgeConnection,
    Event,
    GatewayConnection,
    IssuedReceived,
    Joining,
    PeerClosed,
    Phase,
    Renewing,
    SignatureNeeded,
    SvidLogin,
    Welcomed,
)
from transport.errors import LinkLost, RequestRefused, StreamEnded, TransportError
from transport.handshake import Verify
from transport.identity.svid import Svid
from transport.links.base import Link
from transport.messages import Issued, SpanRecord, Spans, Welcome
from transport.mux import (
    AnswerBytes,
    AnswerEnded,
    AnswerStarted,
    StreamRefused,
)
from transport.noise import SystemEphemerals
from transport.primitives import SigningKey

FLUSH_S: Final = 2.0  # for what a closing connection still has to say
SEND_STALL_S: Final = 60.0  # one burst of at most 64 KiB takes no longer, or the link has failed


class Clock(Protocol):
    def __call__(self) -> float: ...


def session_clock() -> Clock:
    """Unix seconds that run on through suspension and never jump: the wall clock at the start, the boot clock since."""
    wall, boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: wall + time.clock_gettime(time.CLOCK_BOOTTIME) - boot


class Driver:
    """Runs a connection until it ends. `failure` holds why, None after an orderly close."""

    def __init__(
        self, link: Link, connection: EdgeConnection | GatewayConnection, key: SigningKey, clock: Clock
    ) -> None:
        self._link, self._key, self.clock = link, key, clock
        self.connection = connection
        self.failure: TransportError | None = None
        self.ended = asyncio.Event()
        self.on_event: Callable[[Event], None] = lambda event: None
        self._output = asyncio.Event()
        self._output.set()
        self._flushed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.Timeout | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """To be called after anything that may have made output, or moved the deadline."""
        self._output.set()
        deadline = self.connection.next_deadline()
        if self._timer is not None and deadline is not None:
            due = asyncio.get_running_loop().time() + max(0.0, deadline - self.clock())
            with contextlib.suppress(RuntimeError):  # it has fired already
                if (when := self._timer.when()) is None or due < when:
                    self._timer.reschedule(due)

    async def close(self, code: str) -> None:
        """Says `close` to the peer, gives that two seconds to leave, and gives the link back."""
        self.connection.close(code, self.clock())
        self.wake()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=FLUSH_S)
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            self.wake()
            await asyncio.wait({writer}, timeout=FLUSH_S)  # what a closing connection still has to say
        finally:
            for task in (reader, writer):
                task.cancel()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
            self.failure = next((error for error in results if isinstance(error, TransportError)), None)
            with contextlib.suppress(LinkLost):
                self.connection.receive_eof()  # the link may have failed without the connection knowing
            await self._link.close()
            self.ended.set()
            self.on_event(PeerClosed("link"))
        for error in results:
            if isinstance(error, Exception) and not isinstance(error, TransportError):
                raise error  # a bug of ours: loud, not silent

    async def _read(self) -> None:
        while self.connection.phase is not Phase.CLOSED:
            deadline = self.connection.next_deadline()
            left = None if deadline is None else max(0.0, deadline - self.clock())
            try:
                async with asyncio.timeout(left) as self._timer:
                    if self.connection.congested:
                        self._flushed.clear()
                        await self._flushed.wait()
                        continue
                    data = await self._link.receive()
            except TimeoutError:
                self.connection.handle_time(self.clock())
                continue
            except LinkLost:
                with contextlib.suppress(LinkLost):
                    self.connection.receive_eof()  # from here on nobody takes the session for alive
                raise
            try:
                if data:
                    self.connection.receive_data(data, self.clock())
                else:
                    self.connection.receive_eof()
            finally:
                self.dispatch()

    def dispatch(self) -> None:
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, SignatureNeeded):
                self.connection.signed(self._key.sign(event.message), self.clock())
            else:
                self.on_event(event)
        self.wake()

    async def _write(self) -> None:
        while True:
            self._output.clear()
            data = self.connection.data_to_send(self.clock())
            while (event := self.connection.next_event()) is not None:
                self.on_event(event)
            if data:
                try:
                    async with asyncio.timeout(SEND_STALL_S):
                        await self._link.send(data)
                except TimeoutError:
                    raise LinkLost("the peer takes nothing from this link any more") from None
                self._flushed.set()
            elif self.connection.phase is Phase.CLOSED:
                return
            else:
                await self._output.wait()


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
    """A session that carries requests, from the edge. For use in one event loop; requests may run side by side."""

    def __init__(self, driver: Driver, connection: EdgeConnection) -> None:
        self._driver, self._connection = driver, connection
        self._answers: dict[int, RemoteAnswer] = {}
        self._welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, link: Link, svid: Svid, verify_gateway: Verify) -> "EdgeSession":
        """Full handshake over a fresh link. Raises TransportError; then the link is closed."""
        clock = session_clock()
        login = SvidLogin(svid.chain, svid.not_after)
        connection = EdgeConnection(login, verify_gateway, SystemEphemerals(), clock())
        session = cls(Driver(link, connection, svid.key, clock), connection)
        session._driver.on_event = session._on_event
        session._driver.start()
        try:
            session.welcome = await session._welcomed
        except BaseException:
            await session.close()
            raise
        return session

    welcome: Welcome

    @property
    def failure(self) -> TransportError | None:
        return self._driver.failure

    @property
    def alive(self) -> bool:
        return self._connection.phase is Phase.OPEN

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return not self._answers

    @property
    def link_id(self) -> str:
        return self._connection.link_id

    @property
    def session_hash(self) -> bytes:
        return self._connection.session_hash

    def request(self, request_id: bytes, header: bytes, body: bytes) -> RemoteAnswer:
        """Sends a request; `await answer.started()` for its head. Raises Overloaded, or why the session ended."""
        if not self.alive:
            raise self.failure or LinkLost("the session has ended", hint="try again")
        stream = self._connection.request(request_id, header, body)
        self._answers[stream] = answer = RemoteAnswer(self, stream)
        self._driver.wake()
        return answer

    def consumed(self, stream: int, count: int) -> None:
        self._connection.consumed(stream, count)
        self._driver.wake()

    def cancel(self, stream: int) -> None:
        self._answers.pop(stream, None)
        self._connection.cancel(stream)
        self._driver.wake()

    def send_spans(self, spans: list[SpanRecord]) -> None:
        """Hands the edge's own spans of a settled request to the gateway; at most 32."""
        self._connection.send_spans(Spans(spans))
        self._driver.wake()

    async def close(self) -> None:
        await self._driver.close("normal")

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
            case PeerClosed():
                if not self._welcomed.done():
                    self._welcomed.set_exception(self.failure or LinkLost("the session ended before it began"))
                for answer in self._answers.values():
                    answer.put(event)
                self._answers.clear()


async def obtain(link: Link, purpose: Joining | Renewing, device_key: SigningKey, verify_gateway: Verify) -> Issued:
    """A join or renewal over a fresh link, which it closes. Raises TransportError."""
    clock = session_clock()
    connection = EdgeConnection(purpose, verify_gateway, SystemEphemerals(), clock())
    driver = Driver(link, connection, device_key, clock)
    issued: list[Issued] = []
    driver.on_event = lambda event: issued.append(event.issued) if isinstance(event, IssuedReceived) else None
    driver.start()
    try:
        await driver.ended.wait()
    finally:
        await driver.close("normal")
    if not issued:
        raise driver.failure or LinkLost("the session ended before an SVID was issued")
    return issued[0]
