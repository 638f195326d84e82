"""A gateway for tests of the edge: the product's session code, a journal in memory, and faults on request.

A handler plays the provider: it is called once for each request id that is accepted, and writes into the journal, which
carries the answer to whichever session asks for it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import serialization

from edge_client.sessions import Clock
from tests.support.ca import Ca
from tests.support.connection_pair import EPOCH, verifier
from tests.support.memory_link import MemoryLink, memory_links
from transport.errors import CloseReason, LinkLost, StreamEnded, TransportError
from transport.handshake import JoinCredential, RenewCredential
from transport.identity.svid import parse_csr
from transport.identity.verify import VerifiedPeer
from transport.links.base import Endpoint, Link
from transport.messages import Issued, RequestHeader, SpanRecord, Welcome
from transport.primitives import sha256
from transport.serving import AnswerStream, GatewaySession, Incoming, Responder, Resumed
from transport.tickets import TicketStore

LONG_S = 40.0  # above every pause between attempts


class FakeClock(Clock):
    """Pauses between attempts take no time; longer sleeps (renewal) end with `wake`."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.pauses: list[float] = []
        self._woken = asyncio.Event()

    def now(self) -> float:
        return super().now() + self.ahead

    async def sleep(self, seconds: float) -> None:
        if seconds > LONG_S:
            await self._woken.wait()
            self._woken.clear()
            return
        self.pauses.append(seconds)
        due = self.ahead + seconds
        await asyncio.sleep(0)
        self.ahead = max(self.ahead, due)

    def wake(self) -> None:
        self._woken.set()


class Call:
    """One accepted request: what the handler sees of it, and its answer in the journal."""

    def __init__(self, incoming: Incoming) -> None:
        self.request_id, self.header, self.body, self.digest = (
            incoming.request_id, incoming.header, incoming.body, incoming.digest
        )
        self.cancelled = asyncio.Event()
        self.head: tuple[int, str, bool] | None = None
        self.answer = bytearray()
        self.whole = False
        self.refusal: tuple[int, str, str, bool] | None = None
        self.changed = asyncio.Condition()

    header: RequestHeader

    async def begin(self, status: int = 200, content_type: str = "text/plain", *, streamed: bool = True) -> None:
        self.head = status, content_type, streamed
        await self._change()

    async def write(self, data: bytes) -> None:
        self.answer += data
        await self._change()

    async def end(self) -> None:
        self.whole = True
        await self._change()

    async def refuse(self, status: int, code: str, *, retryable: bool = False) -> None:
        self.refusal = status, code, "no", retryable
        await self._change()

    async def give(self, data: bytes, *, content_type: str = "application/json") -> None:
        """A whole answer."""
        await self.begin(200, content_type, streamed=False)
        await self.write(data)
        await self.end()

    async def _change(self) -> None:
        async with self.changed:
            self.changed.notify_all()


Handler = Callable[[Call], Awaitable[None]]


class CuttingLink:
    """The edge's end of a link that breaks after so many bytes in one direction."""

    def __init__(self, link: MemoryLink, *, sent: int | None = None, received: int | None = None) -> None:
        self.peer = link.peer
        self._link = link
        self._sent, self._received = sent, received

    async def send(self, data: bytes) -> None:
        if self._sent is not None:
            if len(data) > self._sent:
                with contextlib.suppress(LinkLost):
                    await self._link.send(data[: self._sent])
                await self._break()
            self._sent -= len(data)
        await self._link.send(data)

    async def receive(self) -> bytes:
        data = await self._link.receive()
        if self._received is not None:
            if len(data) > self._received:
                await self._break()
            self._received -= len(data)
        return data

    async def close(self, reason: CloseReason = "done") -> None:
        await self._link.close(reason)

    async def _break(self) -> None:
        await asyncio.sleep(0)
        await self._link.abort()
        raise LinkLost("cut")


@dataclass
class FakeGateway:
    """The gateway's end of memory links; the session code is the product's, decisions are the test's."""

    ca: Ca
    handle: Handler
    lifetime: float = 3600.0
    start: float = -300.0
    issue_path: str = "edge/lap-1"
    sequence: int = 1
    drop_after_credential: bool = False
    refuse_everybody: bool = False
    unknown_svids: bool = False  # refuses sessions, and renews all the same
    revocations: bytes = b""  # the list it sends to whoever says what it holds
    held: list[int] = field(default_factory=list)  # what edges said they hold
    epoch: bytes = EPOCH
    lose_requests: int = 0  # so many requests are dropped unseen, with their link
    cuts: deque[dict[str, int]] = field(default_factory=deque)  # for the next links: {"sent": n} or {"received": n}
    dead: set[str] = field(default_factory=set)  # endpoints that nobody answers at
    device_keys: list[bytes] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)
    links: list[MemoryLink] = field(default_factory=list)
    spans: list[SpanRecord] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    tickets: TicketStore = field(default_factory=TicketStore)
    calls: dict[bytes, Call] = field(default_factory=dict)  # the journal
    called: list[bytes] = field(default_factory=list)  # request ids, in order of provider calls
    asked: list[str] = field(default_factory=list)  # "open" or "resume N", as they came
    acks: dict[bytes, int] = field(default_factory=dict)
    resumed_sessions: int = 0
    sessions: list[GatewaySession] = field(default_factory=list)

    @property
    def dials(self) -> int:
        return len(self.dialled)

    async def dial(self, endpoint: Endpoint) -> Link:
        self.dialled.append(str(endpoint))
        if str(endpoint) in self.dead:
            raise LinkLost("nobody answers")
        ours, theirs = memory_links(record=True)
        self.links.append(ours)
        self.tasks.append(asyncio.create_task(self._serve(theirs)))
        return CuttingLink(ours, **self.cuts.popleft()) if self.cuts else ours

    async def cut(self) -> None:
        """Breaks the newest link."""
        await self.links[-1].abort()

    async def restart(self, *, journal_lost: bool = False) -> None:
        """A gateway's process dies, with its tickets; its journal outlives it unless lost: then the epoch is new."""
        self.tickets = TicketStore()
        for call in self.calls.values():
            if not call.whole and call.refusal is None:
                await call.refuse(409, "interrupted")
        if journal_lost:
            self.epoch = bytes([self.epoch[0] + 1]) * 16
            self.calls.clear()
        await self.cut()

    async def _serve(self, link: MemoryLink) -> None:
        svid = self.ca.issue("gateway/main")
        responder = Responder(lambda: svid, lambda: self.ca.root_der, verifier(self.ca.bundle(), "edge"), self.tickets)
        with contextlib.suppress(TransportError):
            session = await GatewaySession.accept(link, responder)
            credential = session.credential
            if self.refuse_everybody or (self.unknown_svids and isinstance(credential, VerifiedPeer)):
                await session.refuse()
            elif isinstance(credential, VerifiedPeer):
                await self._carry(session, link)
            else:
                self.unknown_svids = False
                await self._issue(session, credential, link)

    async def _carry(self, session: GatewaySession, link: MemoryLink) -> None:
        session.on_spans = self.spans.extend
        session.on_ack = lambda request_id, offset: self.acks.update({request_id: offset})
        session.on_held = lambda sequence: self._held(session, sequence)
        self.sessions.append(session)
        self.resumed_sessions += session.connection._resuming
        session.admit(Welcome(self.epoch, "spiffe://field.example/hop/h", 1))
        async with asyncio.TaskGroup() as group:
            with contextlib.suppress(TransportError):
                async for stream in session.requests():
                    if self.lose_requests:
                        self.lose_requests -= 1
                        await link.abort()
                        break
                    group.create_task(self._take(stream))
        await session.close()

    def _held(self, session: GatewaySession, sequence: int) -> None:
        self.held.append(sequence)
        if self.revocations:
            session.send_revocations(self.revocations)

    async def _take(self, stream: Incoming | Resumed) -> None:
        offset = 0
        if isinstance(stream, Incoming):
            self.asked.append("open")
            call = self.calls.get(stream.request_id)
            if call is None:
                self.calls[stream.request_id] = call = Call(stream)
                self.called.append(stream.request_id)
                self.tasks.append(asyncio.create_task(self._provide(call)))
            elif call.digest != stream.digest:
                stream.refuse(409, "id_conflict", "no")
                return
        else:
            self.asked.append(f"resume {stream.offset}")
            offset = stream.offset
            found = self.calls.get(stream.request_id)
            if found is None:
                stream.refuse(404, "unknown_request", "no")
                return
            call = found
        follower = asyncio.create_task(self._follow(call, stream, offset))
        watchers = [asyncio.create_task(event.wait()) for event in (stream.cancelled, stream.lost)]
        await asyncio.wait({follower, *watchers}, return_when=asyncio.FIRST_COMPLETED)
        if stream.cancelled.is_set() and not call.whole:
            call.cancelled.set()
            await call.refuse(499, "cancelled")
        for task in (follower, *watchers):
            task.cancel()
        await asyncio.wait({follower, *watchers})

    async def _provide(self, call: Call) -> None:
        await self.handle(call)

    async def _follow(self, call: Call, stream: AnswerStream, offset: int) -> None:
        begun = False
        with contextlib.suppress(StreamEnded):
            while True:
                async with call.changed:
                    while not (len(call.answer) > offset or call.whole or call.refusal or (call.head and not begun)):
                        await call.changed.wait()
                if call.head and not begun:
                    status, content_type, streamed = call.head
                    stream.begin(status, content_type, streamed=streamed, offset=offset)
                    begun = True
                if data := bytes(call.answer[offset:]):
                    offset += len(data)
                    await stream.write(data)
                elif call.refusal is not None:
                    stream.refuse(*call.refusal[:3], retryable=call.refusal[3])
                    return
                elif call.whole:
                    stream.end(len(call.answer), sha256(bytes(call.answer)))
                    return

    async def _issue(
        self, session: GatewaySession, credential: JoinCredential | RenewCredential, link: MemoryLink
    ) -> None:
        if isinstance(credential, JoinCredential):
            self.device_keys.append(credential.device_key.spki)
        if self.drop_after_credential:
            await link.close()
            return
        public = serialization.load_der_public_key(parse_csr(credential.csr).spki)
        chain = self.ca.issue(self.issue_path, foreign_key=public, start=self.start, lifetime=self.lifetime).chain
        await session.issue(Issued(
            f"spiffe://field.example/{self.issue_path}", list(chain), [self.ca.root_der], self.sequence, 7
        ))


async def say_hello(call: Call) -> None:
    await call.give(b"hello")
