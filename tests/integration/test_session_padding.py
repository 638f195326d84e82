"""Ticks in real time: the asyncio driver keeps them, over a link that works and over one that takes nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import transport.connection
from tests.support.ca import Ca
from tests.support.connection_pair import EPOCH, header, verifier
from tests.support.memory_link import MemoryLink, memory_links
from tests.support.timeline import record_sizes
from tests.support.virtually import in_virtual_time
from transport.edge_session import EdgeSession
from transport.errors import LinkLost
from transport.initiator import SvidLogin
from transport.messages import Padding, Welcome
from transport.pacing import BUCKET_CELL, CONSTANT_CELL, TICK_S
from transport.primitives import sha256
from transport.responder import GatewayConnection
from transport.serving import GatewaySession, Incoming, Responder
from transport.tickets import TicketStore

START = time.time()  # the certificates are made then; from there on time is the loop's
WORDS = [b"six", b" bar", b", not", b" seven"]


def clock() -> float:
    return START + asyncio.get_running_loop().time()


async def speak(incoming: Incoming) -> None:
    incoming.begin(200, "text/event-stream", streamed=True)
    for word in WORDS:
        await incoming.write(word)
        await asyncio.sleep(0.05)
    whole = b"".join(WORDS)
    incoming.end(len(whole), sha256(whole))


@contextlib.asynccontextmanager
async def session(
    padding: Padding, links: tuple[MemoryLink, MemoryLink]
) -> AsyncIterator[tuple[EdgeSession, GatewaySession]]:
    ca = Ca()
    ours, theirs = links
    edge_svid, gateway_svid = ca.issue("edge/lap-1"), ca.issue("gateway/main")
    responder = Responder(
        lambda: gateway_svid, lambda: ca.root_der, verifier(ca.bundle(), "edge"), TicketStore(), clock=lambda: clock
    )

    async def serve() -> GatewaySession:
        gateway = await GatewaySession.accept(theirs, responder)
        gateway.admit(Welcome(EPOCH, "", 1))
        return gateway

    login = SvidLogin(edge_svid.chain, edge_svid.not_after)
    dialling = EdgeSession(ours, login, edge_svid.key, verifier(ca.bundle(), "gateway"), padding, clock=clock)
    gateway, edge = await asyncio.gather(serve(), dialling.open())

    async def run() -> None:
        with contextlib.suppress(LinkLost):
            async for incoming in gateway.requests():
                assert isinstance(incoming, Incoming)
                await speak(incoming)

    task = asyncio.create_task(run())
    try:
        yield edge, gateway
    finally:
        await edge.close()
        await gateway.close()
        await task


@pytest.mark.parametrize("padding", list(Padding))
@in_virtual_time
async def test_answers_arrive_in_every_mode(padding: Padding) -> None:
    async with asyncio.timeout(60), session(padding, memory_links()) as (edge, _):
        answer = await edge.request(b"r" * 16, header(b"x"), b"x").started()
        assert b"".join([chunk async for chunk in answer]) == b"".join(WORDS)


@in_virtual_time
async def test_H9_who_lingers_before_closing_leaves_a_whole_rung() -> None:
    """The prompt's process may end at once with its answer; its session ends when the ladder is reached."""
    ours, theirs = memory_links(record=True)
    async with asyncio.timeout(60), session(Padding.BUCKET, (ours, theirs)) as (edge, _):
        mark = len(theirs.sent)

        def cells() -> int:
            return record_sizes(bytes(theirs.sent[mark:])).count(2 + BUCKET_CELL + 16)

        answer = await edge.request(b"r" * 16, header(b"x"), b"x").started()
        _ = [chunk async for chunk in answer]
        at_end = cells()
        await edge.linger(10)
        assert at_end < 16 == cells()


@in_virtual_time
async def test_lingering_is_bounded_and_needless_without_an_answer() -> None:
    async with asyncio.timeout(60), session(Padding.BUCKET, memory_links()) as (edge, _):
        await edge.linger(60)  # at once
        answer = await edge.request(b"r" * 16, header(b"x"), b"x").started()
        begun = asyncio.get_running_loop().time()
        await edge.linger(0.05)
        assert asyncio.get_running_loop().time() - begun < 1
        assert b"".join([chunk async for chunk in answer]) == b"".join(WORDS)


@in_virtual_time
async def test_H9_a_constant_session_sends_cells_and_nothing_else() -> None:
    ours, theirs = memory_links(record=True)
    async with asyncio.timeout(60), session(Padding.CONSTANT, (ours, theirs)) as (edge, _):
        marks, began = (len(ours.sent), len(theirs.sent)), clock()
        answer = await edge.request(b"r" * 16, header(b"x"), b"x").started()
        assert b"".join([chunk async for chunk in answer]) == b"".join(WORDS)
        await asyncio.sleep(10 * TICK_S)
        ticks = (clock() - began) / TICK_S
    for link, mark in zip((ours, theirs), marks, strict=True):
        sizes = record_sizes(bytes(link.sent[mark:]))
        assert set(sizes) == {CONSTANT_CELL + 18} and ticks - 2 < len(sizes) < ticks + 2


@in_virtual_time
async def test_a_link_that_takes_nothing_holds_up_ticks_without_a_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = memory_links()
    async with asyncio.timeout(60), session(Padding.CONSTANT, (ours, theirs)) as (_, gateway):
        stuck, rung, genuine = asyncio.Event(), 0, GatewayConnection.handle_time

        async def send(data: bytes) -> None:
            await stuck.wait()

        def ring(connection: GatewayConnection, now: float) -> None:
            nonlocal rung
            rung += 1
            genuine(connection, now)

        monkeypatch.setattr(theirs, "send", send)
        monkeypatch.setattr(GatewayConnection, "handle_time", ring)
        await asyncio.sleep(6 * TICK_S)
        assert rung <= 8
        assert not gateway.connection._out, "what nobody takes is not made"
        stuck.set()


@in_virtual_time
async def test_a_ping_leaves_when_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.connection, "IDLE_S", 0.1)
    ours, theirs = memory_links()
    async with asyncio.timeout(60), session(Padding.BUCKET, (ours, theirs)):
        for link in (ours, theirs):
            left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            genuine = link.send

            async def send(
                data: bytes, left: asyncio.Future[bytes] = left, genuine: Callable[..., Awaitable[None]] = genuine
            ) -> None:
                if not left.done():
                    left.set_result(data)
                await genuine(data)

            monkeypatch.setattr(link, "send", send)
            assert record_sizes(await left) == [64 + 18]
