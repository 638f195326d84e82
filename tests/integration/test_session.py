"""The asyncio drivers over memory links and real sockets: requests side by side, back-pressure, loss, cancellation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ca import Ca
from tests.support.connection_pair import EPOCH, header, verifier
from tests.support.memory_link import memory_links
from transport.edge_session import EdgeSession, obtain
from transport.errors import IdentityExpired, IdentityRefused, LinkLost, PeerRefused, RequestRefused, StreamEnded
from transport.handshake import JoinCredential
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.svid import Svid, make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Joining, SvidLogin
from transport.links.base import Endpoint, Link, connect, listen
from transport.messages import Credit, Issued, SpanRecord, Welcome
from transport.primitives import Secret, SigningKey, sha256
from transport.serving import GatewaySession, Incoming, Responder
from transport.tickets import TicketStore


async def open_session(link: Link, svid: Svid, ca: Ca) -> EdgeSession:
    return await EdgeSession(
        link, SvidLogin(svid.chain, svid.not_after), svid.key, verifier(ca.bundle(), "gateway")
    ).open()


@dataclass
class Stage:
    """One trust domain and a gateway whose handler a test supplies."""

    ca: Ca

    def responder(self) -> Responder:
        svid = self.ca.issue("gateway/main")
        return Responder(lambda: svid, lambda: self.ca.root_der, verifier(self.ca.bundle(), "edge"), TicketStore())

    async def serve(self, link: Link, handle) -> GatewaySession:  # type: ignore[no-untyped-def]
        session = await GatewaySession.accept(link, self.responder())
        assert isinstance(session.credential, VerifiedPeer)
        session.admit(Welcome(EPOCH, "spiffe://field.example/hop/h", 1))

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                with contextlib.suppress(LinkLost, IdentityExpired):
                    async for incoming in session.requests():
                        group.create_task(handle(incoming))

        self.task = asyncio.create_task(run())
        return session

    async def dial(self, link: Link) -> EdgeSession:
        return await open_session(link, self.ca.issue("edge/lap-1"), self.ca)


async def echo(incoming: Incoming) -> None:
    incoming.begin(200, "text/plain", streamed=False)
    with contextlib.suppress(StreamEnded):
        for start in range(0, len(incoming.body), 30_000):
            await incoming.write(incoming.body[start : start + 30_000])
        incoming.end(len(incoming.body), sha256(incoming.body))


Handler = Callable[[Incoming], Awaitable[None]]


@contextlib.asynccontextmanager
async def joined(
    handle: Handler = echo, links: tuple[Link, Link] | None = None
) -> AsyncIterator[tuple[EdgeSession, GatewaySession]]:
    stage = Stage(Ca())
    ours, theirs = links or memory_links()
    gateway, edge = await asyncio.gather(stage.serve(theirs, handle), stage.dial(ours))
    try:
        yield edge, gateway
    finally:
        await edge.close()
        await gateway.close()
        await stage.task


async def whole(session: EdgeSession, tag: int, body: bytes) -> bytes:
    answer = await session.request(bytes([tag]) * 16, header(body), body).started()
    return b"".join([chunk async for chunk in answer])


async def test_welcome_and_identity() -> None:
    async with joined() as (edge, gateway):
        assert edge.welcome.via == "spiffe://field.example/hop/h"
        assert gateway.peer is not None and gateway.peer.id.path == "/edge/lap-1"
        assert edge.session_hash == gateway.session_hash and edge.link_id == gateway.link_id


async def test_many_requests_at_once() -> None:
    async with joined() as (edge, _):
        bodies = [bytes([i]) * (i * 20_000 + 1) for i in range(30)]
        assert await asyncio.gather(*(whole(edge, i, body) for i, body in enumerate(bodies))) == bodies


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_over_real_sockets(kind: str, tmp_path: Path) -> None:
    stage, sessions = Stage(Ca()), []

    async def on_link(link: Link) -> None:
        sessions.append(await stage.serve(link, echo))
        await stage.task

    spec = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path / 's'}"
    listener = await listen(Endpoint.parse(spec), on_link)
    edge = await stage.dial(await connect(listener.endpoint))
    assert await whole(edge, 1, b"x" * 1_000_000) == b"x" * 1_000_000
    await edge.close()
    await stage.task
    await listener.close()


async def test_slow_reader_holds_the_writer() -> None:
    written = 0

    async def flood(incoming: Incoming) -> None:
        nonlocal written
        incoming.begin(200, "text/plain", streamed=True)
        with contextlib.suppress(StreamEnded):
            while True:
                await incoming.write(bytes(16_000))
                written += 16_000

    async with joined(flood) as (edge, _):
        answer = await edge.request(b"1" * 16, header(b"x"), b"x").started()
        stalled = -1
        while stalled != written:
            stalled = written
            await asyncio.sleep(0.05)
        assert 256 * 1024 <= written <= 256 * 1024 + 128 * 1024
        async for _ in answer:
            if written > stalled + 500_000:
                break
        answer.cancel()


async def test_cancelling_reaches_the_gateway() -> None:
    seen = asyncio.Event()

    async def wait(incoming: Incoming) -> None:
        await incoming.cancelled.wait()
        seen.set()
        with pytest.raises(StreamEnded):
            await incoming.write(b"late")

    async with joined(wait) as (edge, _):
        pending = edge.request(b"1" * 16, header(b"x"), b"x")
        task = asyncio.create_task(pending.started())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        async with asyncio.timeout(60):
            await seen.wait()
        assert edge.alive


async def test_refusal_is_typed() -> None:
    async def refuse(incoming: Incoming) -> None:
        incoming.refuse(429, "provider_rate_limited", "the provider is busy", retryable=True)

    async with joined(refuse) as (edge, _):
        with pytest.raises(RequestRefused) as caught:
            await edge.request(b"1" * 16, header(b"x"), b"x").started()
        refusal = caught.value
        assert (refusal.status, refusal.reason, refusal.may_retry) == (429, "provider_rate_limited", True)


async def test_lost_link_ends_answers_and_requests_on_both_sides() -> None:
    gone = asyncio.Event()

    async def wait(incoming: Incoming) -> None:
        incoming.begin(200, "text/plain", streamed=True)
        await incoming.write(b"begun")
        await incoming.lost.wait()
        gone.set()

    ours, theirs = memory_links()
    async with joined(wait, (ours, theirs)) as (edge, _):
        answer = await edge.request(b"1" * 16, header(b"x"), b"x").started()
        chunks = aiter(answer)
        assert await anext(chunks) == b"begun"
        await ours.abort()
        with pytest.raises(LinkLost):
            await anext(chunks)
        async with asyncio.timeout(60):
            await gone.wait()
        with pytest.raises(LinkLost):
            edge.request(b"2" * 16, header(b"x"), b"x")


async def test_M8_orderly_close_by_the_gateway_is_not_the_end_of_an_answer() -> None:
    async def begin(incoming: Incoming) -> None:
        incoming.begin(200, "text/plain", streamed=True)
        await incoming.write(b"half")

    async with joined(begin) as (edge, gateway):
        answer = await edge.request(b"1" * 16, header(b"x"), b"x").started()
        await gateway.close("shutdown")
        with pytest.raises(LinkLost):
            _ = [chunk async for chunk in answer]


class StuckLink:
    """A link that from `stick` on takes nothing more and brings nothing more, as with a peer that stopped reading."""

    def __init__(self, link: Link) -> None:
        self._link, self.peer = link, link.peer
        self._stuck = asyncio.Event()

    def stick(self) -> None:
        self._stuck.set()

    async def send(self, data: bytes) -> None:
        if self._stuck.is_set():
            await asyncio.Event().wait()
        await self._link.send(data)

    async def receive(self) -> bytes:
        return await self._link.receive()

    async def close(self) -> None:
        await self._link.close()


async def test_session_ends_with_its_svid_even_when_the_peer_reads_nothing() -> None:
    """An edge that makes the gateway owe it hundreds of messages and never reads holds no place for ever."""
    ca = Ca()
    ours, theirs = memory_links()
    stage, stuck = Stage(ca), StuckLink(theirs)
    serving = asyncio.create_task(stage.serve(stuck, echo))
    svid = ca.issue("edge/hostile", start=-10, lifetime=13)
    edge = await open_session(ours, svid, ca)
    gateway = await serving
    stuck.stick()
    gateway.connection.streams.send(Credit(0, 1))
    gateway.wake()
    await asyncio.sleep(0)  # the writer is stuck with this one; what follows piles up
    for number in range(300):
        gateway.connection.streams.send(Credit(number, 1))
    edge.send_spans([SpanRecord("a" * 32, "b" * 16, "", "n", "edge", 1.0, 2.0, {})])  # wakes the reader, which stops
    async with asyncio.timeout(60):
        await gateway._driver.ended()
    assert isinstance(gateway._driver.failure, IdentityExpired)
    await edge.close()
    await stage.task


async def test_refused_identity_is_told_and_the_link_closed() -> None:
    stage, (ours, theirs) = Stage(Ca()), memory_links()
    foreign = Ca()
    accept = asyncio.create_task(GatewaySession.accept(theirs, stage.responder()))
    with pytest.raises(PeerRefused):
        await open_session(ours, foreign.issue("edge/x"), stage.ca)
    with pytest.raises(IdentityRefused):
        await accept


async def test_gateway_that_closes_at_once_is_a_lost_link() -> None:
    ours, theirs = memory_links()
    await theirs.close()
    with pytest.raises(LinkLost):
        await Stage(Ca()).dial(ours)


async def test_spans_arrive() -> None:
    got: list[SpanRecord] = []
    span = SpanRecord("a" * 32, "b" * 16, "", "edge.ask", "edge", 1.0, 2.0, {})
    async with joined() as (edge, gateway):
        gateway.on_spans = got.extend
        edge.send_spans([span])
        assert await whole(edge, 1, b"x") == b"x"
    assert got == [span]


async def test_spans_sent_just_before_closing_arrive() -> None:
    got: list[SpanRecord] = []
    span = SpanRecord("a" * 32, "b" * 16, "", "edge.ask", "edge", 1.0, 2.0, {})
    async with joined() as (edge, gateway):
        gateway.on_spans = got.extend
        edge.send_spans([span])
        await edge.close()
        await gateway.close()
        assert got == [span]


async def test_joining_over_a_link() -> None:
    ca, device_key, svid_key = Ca(), SigningKey.generate(), SigningKey.generate()
    invite = Invitation(sha256(ca.root_der), b"t" * 8, Secret(b"s" * 16), ca.trust_domain, "edge/lap-1")
    ours, theirs = memory_links()
    issued = Issued("spiffe://field.example/edge/lap-1", list(ca.issue().chain), [ca.root_der], 1, 7)

    async def gateway() -> None:
        session = await GatewaySession.accept(theirs, Stage(ca).responder())
        assert isinstance(session.credential, JoinCredential)
        await session.issue(issued)

    def verify(chain, now):  # type: ignore[no-untyped-def]
        return verify_svid(chain, bundle_from_joined_root(invite, chain), role="gateway", now=now)

    serving = asyncio.create_task(gateway())
    purpose = Joining(invite, device_key.public.spki, make_csr(svid_key))
    assert await obtain(ours, purpose, device_key, verify) == issued
    await serving
