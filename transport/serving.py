"""The gateway's side of a session in asyncio: from an accepted link to whole requests and their answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from transport.connection import CredentialReceived, Event, GatewayConnection, PeerClosed, SpansReceived
from transport.errors import LinkLost, StreamEnded
from transport.handshake import Credential, Verify
from transport.identity.svid import Svid
from transport.identity.verify import VerifiedPeer
from transport.links.base import Link
from transport.messages import Issued, RequestHeader, SpanRecord, Welcome
from transport.mux import RequestCancelled, RequestReceived, StreamWritable
from transport.noise import SystemEphemerals
from transport.session import Driver, session_clock

WRITE_HIGH_WATER: Final = 64 * 1024  # answer bytes of one stream that wait before `write` does


@dataclass(frozen=True)
class Responder:
    """What a gateway brings to every handshake: its SVID of the moment, its root (DER), and how edges are verified."""

    svid: Callable[[], Svid]
    root: Callable[[], bytes]
    verify_edge: Verify


class Incoming:
    """One whole, verified request, and the way to answer it: `begin`, `write`, `end`, or `refuse` at any point."""

    def __init__(self, session: "GatewaySession", event: RequestReceived) -> None:
        self._session, self._stream = session, event.stream
        self.request_id = event.request_id
        self.header: RequestHeader = event.header
        self.header_bytes = event.header_bytes
        self.body = event.body
        self.digest = event.digest
        self.cancelled = asyncio.Event()  # nobody waits any more: the edge cancelled, or the session is gone
        self.writable = asyncio.Event()

    def begin(self, status: int, content_type: str, *, streamed: bool) -> None:
        self._session.connection.streams.answer(self._stream, status, content_type, streamed=streamed)
        self._session.wake()

    async def write(self, data: bytes) -> None:
        """Waits while more than 64 KiB of this answer wait to leave. Raises StreamEnded."""
        streams = self._session.connection.streams
        while True:
            if self.cancelled.is_set():
                raise StreamEnded("nobody waits for this answer any more")
            if streams.buffered(self._stream) <= WRITE_HIGH_WATER:
                break
            self.writable.clear()
            await self.writable.wait()
        streams.write(self._stream, data)
        self._session.wake()

    def end(self) -> None:
        """Marks the end; length and SHA-256 of all that was written follow the last byte."""
        self._session.connection.streams.end(self._stream)
        self._session.settle(self._stream)

    def refuse(self, status: int, code: str, message: str, *, retryable: bool = False) -> None:
        """Ends the request; `message` is for a person, at most 512 characters."""
        self._session.connection.streams.refuse(self._stream, status, code, message[:512], retryable=retryable)
        self._session.settle(self._stream)

    def mark_cancelled(self) -> None:
        self.cancelled.set()
        self.writable.set()


class GatewaySession:
    """An accepted session. First decide on `credential`: `admit`, `issue` or `refuse`; then serve `requests()`."""

    def __init__(self, driver: Driver, connection: GatewayConnection) -> None:
        self._driver = driver
        self.connection = connection
        self.on_spans: Callable[[list[SpanRecord]], None] = lambda spans: None
        self._credential: asyncio.Future[Credential] = asyncio.get_running_loop().create_future()
        self._open: dict[int, Incoming] = {}
        self._requests: asyncio.Queue[Incoming | None] = asyncio.Queue()  # at most STREAMS_MAX, by the mux's count

    @classmethod
    async def accept(cls, link: Link, responder: Responder) -> "GatewaySession":
        """Handshake over a fresh link, up to a verified `credential`. Raises TransportError, with the link closed."""
        clock = session_clock()
        svid = responder.svid()
        connection = GatewayConnection(
            svid.chain, svid.not_after, responder.root(), responder.verify_edge, SystemEphemerals(), clock()
        )
        session = cls(Driver(link, connection, svid.key, clock), connection)
        session._driver.on_event = session._on_event
        session._driver.start()
        try:
            session.credential = await session._credential
        except BaseException:
            await session.close()
            raise
        return session

    credential: Credential

    @property
    def session_hash(self) -> bytes:
        return self.connection.session_hash

    @property
    def link_id(self) -> str:
        return self.connection.link_id

    @property
    def peer(self) -> VerifiedPeer | None:
        """Who it is, once admitted."""
        return self.connection.peer

    def admit(self, welcome: Welcome) -> None:
        """Opens the session to the holder of a verified SVID. Raises TransportError."""
        try:
            self.connection.admit(welcome, self._driver.clock())
        finally:
            self._driver.dispatch()

    async def issue(self, issued: Issued) -> None:
        """Answers a join or renewal, and ends the session."""
        self.connection.issue(issued, self._driver.clock())
        await self.close()

    async def refuse(self) -> None:
        """Turns the credential down, without saying why, and ends the session."""
        self.connection.refuse(self._driver.clock())
        await self.close()

    async def requests(self) -> AsyncIterator[Incoming]:
        """Whole requests as they come, until the session ends; then raises why, unless it was an orderly end."""
        while (incoming := await self._requests.get()) is not None:
            yield incoming
        if self._driver.failure is not None:
            raise self._driver.failure

    def wake(self) -> None:
        """To be called after an answer has gone on."""
        self._driver.wake()

    def settle(self, stream: int) -> None:
        """Nothing more will be written to this stream."""
        self._open.pop(stream, None)
        self.wake()

    async def close(self, code: str = "normal") -> None:
        await self._driver.close(code)

    def _on_event(self, event: Event) -> None:
        match event:
            case CredentialReceived():
                if not self._credential.done():
                    self._credential.set_result(event.credential)
            case RequestReceived():
                self._open[event.stream] = incoming = Incoming(self, event)
                self._requests.put_nowait(incoming)
            case RequestCancelled():
                if (found := self._open.pop(event.stream, None)) is not None:
                    found.mark_cancelled()
            case StreamWritable():
                if (found := self._open.get(event.stream)) is not None:
                    found.writable.set()
            case SpansReceived():
                self.on_spans(event.spans.spans)
            case PeerClosed():
                if not self._credential.done():
                    self._credential.set_exception(self._driver.failure or LinkLost("the link ended in the handshake"))
                for incoming in self._open.values():
                    incoming.mark_cancelled()
                self._open.clear()
                self._requests.put_nowait(None)
