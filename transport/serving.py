"""The gateway's side of a session in asyncio: from an accepted link to whole requests and their answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from transport.connection import (
    AckReceived,
    CredentialReceived,
    Event,
    EvidenceReceived,
    HeldReceived,
    PeerClosed,
    PostureReceived,
    SpansReceived,
)
from transport.errors import LinkLost, StreamEnded
from transport.handshake import Credential, JoinCredential, Verify
from transport.identity.svid import Svid
from transport.identity.verify import VerifiedPeer
from transport.links.base import Link
from transport.messages import Attest, Challenge, Issued, Posture, Proof, RequestHeader, SpanRecord, Welcome
from transport.mux import RequestCancelled, RequestReceived, ResumeRequested, StreamWritable
from transport.noise import SystemEphemerals
from transport.responder import GatewayConnection
from transport.session import Clock, Driver, session_clock
from transport.tickets import TicketStore

WRITE_HIGH_WATER: Final = 64 * 1024  # answer bytes of one stream that wait before `write` does


@dataclass(frozen=True)
class Responder:
    """What a gateway brings to every handshake: its SVID of the moment, root (DER), how edges are verified, tickets.

    `joining`: another SVID of its own for those who join or renew, where the path of the first leaves no room for the
    root.
    """

    svid: Callable[[], Svid]
    root: Callable[[], bytes]
    verify_edge: Verify
    tickets: TicketStore
    take_full: Callable[[], bool] = lambda: True  # asked once a link has begun a full handshake; see GatewayConnection
    take_resumed: Callable[[], bool] = lambda: True  # and once it has shown a ticket that is known
    clock: Callable[[], Clock] = session_clock  # makes one for each session
    joining: Callable[[], Svid] | None = None


class AnswerStream:
    """The way to answer one request on one session: `begin`, `write`, `end`, or `refuse` at any point."""

    def __init__(self, session: "GatewaySession", stream: int, request_id: bytes) -> None:
        self._session, self._stream = session, stream
        self.request_id = request_id
        self.cancelled = asyncio.Event()  # the edge wants no more of it
        self.lost = asyncio.Event()  # the session has ended; the edge may come back on another
        self._writable = asyncio.Event()
        self._over: Callable[[], None] = lambda: None

    def on_over(self, told: Callable[[], None]) -> None:
        """`told` is called once it is cancelled or lost; at once if it is."""
        self._over = told
        if self.cancelled.is_set() or self.lost.is_set():
            told()

    def begin(self, status: int, content_type: str, *, streamed: bool, generation: int = 0, offset: int = 0) -> None:
        """Begins the answer, or goes on with it at `offset`."""
        self._session.connection.streams.answer(
            self._stream, status, content_type, streamed=streamed, generation=generation, offset=offset
        )
        self._session.wake()

    async def write(self, data: bytes) -> None:
        """Waits while more than 64 KiB of this answer wait to leave. Raises StreamEnded."""
        streams = self._session.connection.streams
        while True:
            if self.cancelled.is_set() or self.lost.is_set():
                raise StreamEnded("nobody waits for this answer any more")
            if streams.buffered(self._stream) <= WRITE_HIGH_WATER:
                break
            self._writable.clear()
            await self._writable.wait()
        streams.write(self._stream, data)
        self._session.wake()

    def end(self, length: int, sha256: bytes) -> None:
        """Marks the end; length and SHA-256 are of the whole answer, whatever part of it this session carried."""
        self._session.connection.streams.end(self._stream, length, sha256)
        self._session.settle(self._stream)

    def refuse(self, status: int, code: str, message: str, *, retryable: bool = False) -> None:
        """Ends the request; `message` is for a person, at most 512 characters."""
        self._session.connection.streams.refuse(self._stream, status, code, message[:512], retryable=retryable)
        self._session.settle(self._stream)

    def wake_writer(self) -> None:
        self._writable.set()

    def ended(self, why: asyncio.Event) -> None:
        """Sets `why`, which is `cancelled` or `lost`."""
        why.set()
        self.wake_writer()
        self._over()


class Incoming(AnswerStream):
    """One whole, verified request. The same id with the same digest may come again: the journal tells."""

    def __init__(self, session: "GatewaySession", event: RequestReceived) -> None:
        super().__init__(session, event.stream, event.request_id)
        self.header: RequestHeader = event.header
        self.header_bytes = event.header_bytes
        self.body = event.body
        self.digest = event.digest


class Resumed(AnswerStream):
    """A request for the rest of an answer: from `offset` of `generation` on."""

    def __init__(self, session: "GatewaySession", event: ResumeRequested) -> None:
        super().__init__(session, event.stream, event.request_id)
        self.generation, self.offset = event.generation, event.offset


class GatewaySession:
    """An accepted session. First decide on `credential`: `admit`, `issue` or `refuse`; then serve `requests()`."""

    __slots__ = (
        "_credential", "_driver", "_ended", "_evidence", "_news", "_open", "_requests", "connection", "credential",
        "on_ack", "on_held", "on_posture", "on_spans",
    )

    def __init__(self, driver: Driver, connection: GatewayConnection) -> None:
        self._driver = driver
        self.connection = connection
        self.on_posture: Callable[[Posture], None] = lambda posture: None
        self.on_spans: Callable[[list[SpanRecord]], None] = lambda spans: None
        self.credential: Credential
        self._credential: asyncio.Future[Credential] = asyncio.get_running_loop().create_future()
        self._evidence: asyncio.Queue[Attest | Proof | None] | None = None  # in it: None as the session has ended
        self.on_ack: Callable[[bytes, int], None] = lambda request_id, offset: None
        self.on_held: Callable[[int], None] = lambda sequence: None
        self._open: dict[int, AnswerStream] = {}
        self._requests: list[Incoming | Resumed] = []  # bounded by the mux
        self._news: asyncio.Future[None] | None = None  # for `requests`: there is one, or the session has ended
        self._ended = False

    @classmethod
    async def accept(cls, link: Link, responder: Responder) -> "GatewaySession":
        """Handshake over a fresh link, up to a verified `credential`. Raises TransportError, with the link closed."""
        clock = responder.clock()
        svid = responder.svid()
        joining = svid if responder.joining is None else responder.joining()
        connection = GatewayConnection(
            svid.chain, svid.not_after, responder.root(), responder.verify_edge, SystemEphemerals(), clock(),
            responder.tickets, take_full=responder.take_full, take_resumed=responder.take_resumed,
            joining=joining.chain,
        )
        session = cls(Driver(link, connection, svid.key, clock, joining.key), connection)
        session._driver.on_event = session._on_event
        session._driver.start()
        try:
            session.credential = await session._credential
        except BaseException:
            await session.close()
            raise
        return session

    @property
    def session_hash(self) -> bytes:
        return self.connection.session_hash

    @property
    def link_id(self) -> str:
        return self.connection.link_id

    @property
    def resumed(self) -> bool:
        """Whether it was opened by a ticket, so that no certificate was shown."""
        return self.connection.resumed

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

    async def evidence(self) -> Attest | Proof:
        """What a device that joins shows next, if its credential says that it attests. Raises why the session ended."""
        found = None if self._evidence is None else await self._evidence.get()
        if found is None:
            raise self._driver.failure or LinkLost("the link ended while a device attested")
        return found

    def challenge(self, challenge: Challenge) -> None:
        """Answers `Attest`."""
        self.connection.challenge(challenge, self._driver.clock())
        self._driver.wake()

    async def issue(self, issued: Issued) -> None:
        """Answers a join or renewal, and ends the session."""
        self.connection.issue(issued, self._driver.clock())
        await self.close()

    async def refuse(self) -> None:
        """Turns the credential down, without saying why, and ends the session."""
        self.connection.refuse(self._driver.clock())
        await self.close()

    async def requests(self) -> AsyncIterator[Incoming | Resumed]:
        """Whole requests as they come, until the session ends; then raises why, unless it was an orderly end."""
        while self._requests or not self._ended:
            if self._requests:
                yield self._requests.pop(0)
            else:
                self._news = asyncio.get_running_loop().create_future()
                await self._news
        if self._driver.failure is not None:
            raise self._driver.failure

    def wake(self) -> None:
        """To be called after an answer has gone on."""
        self._driver.wake()

    def send_revocations(self, data: bytes) -> None:
        """Hands the edge a signed revocation list."""
        self.connection.send_revocations(data)
        self._driver.wake()

    def settle(self, stream: int) -> None:
        """Nothing more will be written to this stream."""
        self._open.pop(stream, None)
        self.wake()

    def cut(self, code: str) -> None:
        """Takes and gives nothing more from now on but this word; `close` is to follow, which lets it leave."""
        self.connection.cut(code, self._driver.clock())
        self._driver.wake()

    async def close(self, code: str = "normal") -> None:
        await self._driver.close(code)

    def _on_event(self, event: Event) -> None:
        match event:
            case CredentialReceived():
                if isinstance(event.credential, JoinCredential) and event.credential.attests:
                    self._evidence = asyncio.Queue()
                if not self._credential.done():
                    self._credential.set_result(event.credential)
            case EvidenceReceived():
                if self._evidence is not None:
                    self._evidence.put_nowait(event.evidence)
            case RequestReceived():
                self._open[event.stream] = incoming = Incoming(self, event)
                self._arrived(incoming)
            case ResumeRequested():
                self._open[event.stream] = resumed = Resumed(self, event)
                self._arrived(resumed)
            case AckReceived():
                self.on_ack(event.request_id, event.offset)
            case HeldReceived():
                self.on_held(event.sequence)
            case RequestCancelled():
                if (found := self._open.pop(event.stream, None)) is not None:
                    found.ended(found.cancelled)
            case StreamWritable():
                if (found := self._open.get(event.stream)) is not None:
                    found.wake_writer()
            case SpansReceived():
                self.on_spans(event.spans.spans)
            case PostureReceived():
                self.on_posture(event.posture)
            case PeerClosed():
                if not self._credential.done():
                    self._credential.set_exception(self._driver.failure or LinkLost("the link ended in the handshake"))
                for stream in self._open.values():
                    stream.ended(stream.lost)
                self._open.clear()
                self._ended = True
                if self._evidence is not None:
                    self._evidence.put_nowait(None)
                self._tell()

    def _arrived(self, request: Incoming | Resumed) -> None:
        self._requests.append(request)
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
