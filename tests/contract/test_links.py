"""One contract for every kind of link: order, back-pressure, ends, cancellation."""

import asyncio
import contextlib
import hashlib
import shutil
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.ca import Ca
from tests.support.classic_radio import ClassicAir, address
from tests.support.fake_bluez import device, fake_bluez
from tests.support.memory_link import memory_links
from tests.support.phone_central import PhoneCentral
from transport.errors import CloseReason, LinkLost
from transport.identity.tls import client_context, server_context
from transport.links.base import CLOSE_TIMEOUT_S, RECEIVE_MAX, Endpoint, Link, connect, listen
from transport.links.radio import OpenRadio
from transport.links.rfcomm import RfcommDialer, RfcommLink
from transport.links.virtual_radio import VirtualRadio
from transport.links.websocket import WebSocketLink, accept_websocket

Pair = tuple[Link, Link, Callable[[], Awaitable[None]]]  # two ends; the third breaks the second end's connection
LIMIT = 60.0


@contextlib.asynccontextmanager
async def stream_pair(endpoint: Endpoint) -> AsyncIterator[Pair]:
    arrived: asyncio.Queue[Link] = asyncio.Queue()
    over = asyncio.Event()

    async def hold(link: Link) -> None:
        arrived.put_nowait(link)
        await over.wait()

    listener = await listen(endpoint, hold)
    near = await connect(listener.endpoint)
    far = await arrived.get()

    async def abort() -> None:
        transport = far._writer.transport
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    yield near, far, abort
    over.set()
    await near.close()
    await listener.close()


@contextlib.asynccontextmanager
async def websocket_pair() -> AsyncIterator[Pair]:
    ca = Ca()
    arrived: asyncio.Queue[WebSocketLink] = asyncio.Queue()
    over = asyncio.Event()

    async def tunnel(request: web.Request) -> web.StreamResponse:
        link = await accept_websocket(request, "test", on_note=lambda _: None)
        arrived.put_nowait(link)
        await over.wait()
        return link.response

    app = web.Application()
    app.router.add_get("/t", tunnel)
    runner = web.AppRunner(app)
    await runner.setup()
    tls = server_context(ca.issue("gateway/g"), ca.bundle(), ["hop"], require_client=False)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    near = await connect(Endpoint.parse(f"wss://127.0.0.1:{port}/t"), tls=client_context(ca.bundle()))
    far = await arrived.get()

    async def abort() -> None:
        far._socket._req.transport.abort()

    yield near, far, abort
    over.set()
    await asyncio.gather(near.close(), far.close())
    await runner.cleanup()


@contextlib.asynccontextmanager
async def memory_pair() -> AsyncIterator[Pair]:
    near, far = memory_links()
    yield near, far, far.abort
    await near.close()
    await far.close()


@contextlib.asynccontextmanager
async def ble_pair() -> AsyncIterator[Pair]:
    """The edge's and the hop's real code, on a virtual radio without delays."""
    air = VirtualRadio("instant")
    edge, hop = OpenRadio(await air.device("edge")), OpenRadio(await air.device("hop"))
    arrived: asyncio.Queue[Link] = asyncio.Queue()
    over = asyncio.Event()

    async def hold(link: Link) -> None:
        arrived.put_nowait(link)
        await over.wait()

    listener = await listen(Endpoint.parse("ble:a hop"), hold, radio=hop)
    near = await connect(listener.endpoint, radio=edge)
    far = await arrived.get()

    async def abort() -> None:
        air.drop()

    yield near, far, abort
    over.set()
    await near.close()
    await listener.close()
    await asyncio.gather(edge.close(), hop.close())


@contextlib.asynccontextmanager
async def phone_pair() -> AsyncIterator[Pair]:
    """The edge as peripheral, whose end is the first, and a central that does what a phone's page does."""
    air = VirtualRadio("instant")
    edge, phone = OpenRadio(await air.device("edge")), PhoneCentral(await air.device("phone"))
    waiting = asyncio.create_task(connect(Endpoint.parse("phone:"), radio=edge))
    await phone.connect()
    far, near = await phone.begin(), await waiting

    async def abort() -> None:
        air.drop()

    yield near, far, abort
    await asyncio.gather(near.close(), far.close())
    await edge.close()


@contextlib.asynccontextmanager
async def rfcomm_pair() -> AsyncIterator[Pair]:
    """The edge's and the hop's real code on a stand-in for BlueZ; the connection is a Unix socket's."""
    arrived: asyncio.Queue[Link] = asyncio.Queue()
    over = asyncio.Event()

    async def hold(link: Link) -> None:
        arrived.put_nowait(link)
        await over.wait()

    async with fake_bluez() as fake:
        async def open_link(endpoint: Endpoint, ended: Callable[[], None]) -> Link:
            near, far = socket.socketpair()
            assert not await fake.connect(device(1), far)
            return RfcommLink(near, str(endpoint), ended)

        listener = await listen(Endpoint.parse("rfcomm:"), hold)
        near = await RfcommDialer(open_link).connect(Endpoint.parse("rfcomm:00:00:00:00:00:02"), timeout_s=10)
        far = await arrived.get()

        async def abort() -> None:
            far._sock.shutdown(socket.SHUT_RDWR)

        yield near, far, abort
        over.set()
        await near.close()
        await listener.close()


@contextlib.asynccontextmanager
async def classic_pair() -> AsyncIterator[Pair]:
    """The edge's and the hop's real code on controllers of bumble's own, which have Bluetooth Classic."""
    air = ClassicAir()
    hop, edge = OpenRadio(await air.device(1)), OpenRadio(await air.device(2))
    arrived: asyncio.Queue[Link] = asyncio.Queue()
    over = asyncio.Event()

    async def hold(link: Link) -> None:
        arrived.put_nowait(link)
        await over.wait()

    listener = await listen(Endpoint.parse("rfcomm:"), hold, radio=hop)
    near = await connect(Endpoint.parse(f"rfcomm:{address(1)}"), radio=edge)
    far = await arrived.get()

    async def abort() -> None:
        air.drop()

    yield near, far, abort
    over.set()
    await near.close()
    await listener.close()
    await asyncio.gather(edge.close(), hop.close())


@pytest.fixture(params=["tcp", "unix", "websocket", "ble", "ble-phone", "memory", "rfcomm-unix", "rfcomm-bumble"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    makers = {
        "tcp": lambda: stream_pair(Endpoint.parse("tcp:127.0.0.1:0")),
        "unix": lambda: stream_pair(Endpoint("unix", str(tmp_path / "s"))),
        "websocket": websocket_pair,
        "ble": ble_pair,
        "ble-phone": phone_pair,
        "memory": memory_pair,
        "rfcomm-unix": rfcomm_pair,
        "rfcomm-bumble": classic_pair,
    }
    if request.param == "rfcomm-unix":
        if shutil.which("dbus-daemon") is None:
            pytest.skip("needs dbus-daemon")
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "")  # so that it is put back
    async with makers[request.param]() as made:
        async with asyncio.timeout(60):
            yield made


def pattern(size: int, seed: bytes) -> bytes:
    return hashlib.shake_128(seed).digest(size)


async def read(link: Link, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await link.receive()
        assert 0 < len(part) <= RECEIVE_MAX
        data += part
    return bytes(data)


async def test_bytes_arrive_in_order(pair: Pair) -> None:
    near, far, _ = pair
    for size in (1, 2, 255, 4096, RECEIVE_MAX, RECEIVE_MAX + 1):
        data = pattern(size, b"%d" % size)
        _, got = await asyncio.gather(near.send(data), read(far, size))
        assert got == data
        _, got = await asyncio.gather(far.send(data), read(near, size))
        assert got == data


async def test_big_transfers_cross_both_ways_at_once(pair: Pair, request: pytest.FixtureRequest) -> None:
    near, far, _ = pair
    size = 400_000 if "ble" in request.node.name else 3_000_000  # many windows and sequence numbers over
    one, two = pattern(size, b"one"), pattern(size, b"two")
    results = await asyncio.gather(near.send(one), far.send(two), read(far, len(one)), read(near, len(two)))
    assert results[2] == one and results[3] == two


async def test_a_sender_that_outruns_the_reader_waits(pair: Pair) -> None:
    near, far, _ = pair
    sent = 0
    part = bytes(8 * 1024)  # less than any link takes in before it waits

    async def flood() -> None:
        nonlocal sent
        while True:
            await near.send(part)
            sent += len(part)

    task = asyncio.create_task(flood())
    # The sender has stopped when nothing more leaves during many turns of the loop; a link without back-pressure
    # never stops, and runs into the bound.
    still, before, until = 0, -1, time.monotonic() + LIMIT
    while still < 2000 and sent < 64 << 20 and time.monotonic() < until:
        await asyncio.sleep(0)
        still, before = (still + 1, before) if sent == before else (0, sent)
    assert 0 < sent < 24 << 20  # kernel buffers of loopback take some megabytes
    assert not task.done()
    stuck = sent
    await read(far, 16 << 20 if stuck > 16 << 20 else stuck)
    for _ in range(100_000):
        if sent > stuck:
            break
        await asyncio.sleep(0)
    assert sent > stuck
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_close_is_a_clean_end_after_all_bytes(pair: Pair) -> None:
    near, far, _ = pair
    data = pattern(50_000, b"end")

    async def send_and_close() -> None:
        await near.send(data)
        await near.close()

    closing = asyncio.create_task(send_and_close())
    assert await read(far, len(data)) == data
    assert await far.receive() == b""
    assert await far.receive() == b""
    await far.close()
    await closing


@pytest.mark.parametrize("reason", ["idle", "limit", "shutdown", "error"])
async def test_a_close_for_a_reason_is_never_a_clean_end(
    pair: Pair, reason: CloseReason, request: pytest.FixtureRequest
) -> None:
    near, far, _ = pair
    await near.send(b"hello")
    assert await read(far, 5) == b"hello"
    closing = asyncio.create_task(near.close(reason))
    async with asyncio.timeout(LIMIT):
        if "unix" in request.node.name:  # the kernel has no reset for unix sockets
            assert await far.receive() == b""
        else:
            for _ in range(2):
                with pytest.raises(LinkLost) as lost:
                    await far.receive()
                told = not any(kind in request.node.name for kind in ("tcp", "rfcomm"))
                assert lost.value.reason == (reason if told else "lost")
        with pytest.raises(LinkLost):
            while True:
                await far.send(bytes(1000))
                await asyncio.sleep(0)
        await far.close("error")
        await closing
    with pytest.raises(LinkLost):
        await near.send(b"x")


async def test_a_reason_does_not_wait_for_what_nobody_reads(pair: Pair) -> None:
    near, _, _ = pair
    flood = asyncio.create_task(near.send(bytes(32 << 20)))
    for _ in range(2000):
        await asyncio.sleep(0)
    assert not flood.done()
    async with asyncio.timeout(CLOSE_TIMEOUT_S - 1):
        await near.close("shutdown")
        with pytest.raises(LinkLost):
            await flood


async def test_an_abort_is_never_a_clean_end(pair: Pair, request: pytest.FixtureRequest) -> None:
    near, far, abort = pair
    await far.send(b"hello")
    assert await near.receive() == b"hello"
    waiting = asyncio.create_task(near.receive())
    await asyncio.sleep(0)
    await abort()
    async with asyncio.timeout(LIMIT):
        if "unix" in request.node.name:  # the kernel has no reset for unix sockets: the end looks clean, sending fails
            await waiting
        else:
            with pytest.raises(LinkLost):
                await waiting
        with pytest.raises(LinkLost):
            while True:
                await near.send(bytes(1000))
                await asyncio.sleep(0)


async def test_close_is_idempotent_and_final(pair: Pair) -> None:
    near, far, _ = pair
    await asyncio.gather(near.close(), far.close())
    await near.close()
    await far.close()
    with pytest.raises(LinkLost):
        await near.send(b"x")
    with pytest.raises(LinkLost):
        await near.receive()


async def test_close_wakes_a_receiver(pair: Pair) -> None:
    near, far, _ = pair
    waiting = asyncio.create_task(near.receive())
    await asyncio.sleep(0)
    reader = asyncio.create_task(far.receive())
    await near.close()
    with pytest.raises(LinkLost):
        await waiting
    assert await reader == b""


async def test_a_cancelled_receive_loses_no_byte(pair: Pair) -> None:
    near, far, _ = pair
    data = pattern(200_000, b"cancel")
    got = bytearray()

    async def send() -> None:
        for start in range(0, len(data), 1000):
            await far.send(data[start:start + 1000])
            await asyncio.sleep(0)

    sender = asyncio.create_task(send())
    turn = 0
    async with asyncio.timeout(30):
        while len(got) < len(data):
            task = asyncio.create_task(near.receive())
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            turn += 1
            if turn % 3:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                got += await task
    await sender
    assert bytes(got) == data
