"""What a WebSocket link adds to the contract of links: notes, close codes, bounds."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest
from aiohttp import web

from tests.support.ca import Ca
from transport.errors import BadInput, IdentityRefused, LinkLost, PeerRefused
from transport.identity.tls import client_context, server_context
from transport.links.base import RECEIVE_MAX, Endpoint, Link, listen
from transport.links.websocket import NOTE_MAX, WebSocketLink, accept_websocket, connect_websocket

CA = Ca()


class Server:
    """Accepts one kind of WebSocket; `links` are the far ends."""

    def __init__(self, *, takes_notes: bool) -> None:
        self.notes: list[str] = []
        self.links: asyncio.Queue[WebSocketLink] = asyncio.Queue()
        self.headers: list[Mapping[str, str]] = []  # of each request
        self.over = asyncio.Event()
        self._on_note = self.notes.append if takes_notes else None

    async def __aenter__(self) -> "Server":
        app = web.Application()
        app.router.add_get("/t", self._tunnel)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        tls = server_context(CA.issue("gateway/g"), CA.bundle(), ["hop"], require_client=False)
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.url = f"wss://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.over.set()
        await self._runner.cleanup()

    async def _tunnel(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        link = await accept_websocket(request, "test", on_note=self._on_note)
        self.links.put_nowait(link)
        await self.over.wait()
        await link.close()
        return link.response

    async def pair(self) -> tuple[WebSocketLink, WebSocketLink]:
        near = await connect_websocket(Endpoint.parse(self.url + "/t"), tls=client_context(CA.bundle()))
        return near, await self.links.get()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with asyncio.timeout(30), Server(takes_notes=True) as running:
        yield running


async def test_notes_are_no_bytes(server: Server) -> None:
    near, far = await server.pair()
    await near.send(b"a")
    await near.send_note("one")
    await near.send_note("x" * NOTE_MAX)
    await near.send(b"b")
    assert await far.receive() == b"a" and await far.receive() == b"b"
    assert server.notes == ["one", "x" * NOTE_MAX]
    with pytest.raises(BadInput):
        await near.send_note("x" * (NOTE_MAX + 1))
    await asyncio.gather(near.close(), far.close())


async def test_a_note_that_is_too_long_ends_the_link(server: Server) -> None:
    near, far = await server.pair()
    waiting = asyncio.create_task(near.receive())
    await near._socket.send_str("x" * (NOTE_MAX + 1))
    with pytest.raises(LinkLost, match="note"):
        await far.receive()
    with pytest.raises(LinkLost, match="1009"):
        await waiting
    await near.close()


async def test_notes_nobody_wants_end_the_link() -> None:
    async with Server(takes_notes=False) as server:
        near, far = await server.pair()
        waiting = asyncio.create_task(near.receive())
        await near.send_note("hello")
        with pytest.raises(LinkLost, match="note"):
            await far.receive()
        with pytest.raises(LinkLost, match="1003"):
            await waiting
        await near.close()


async def test_a_frame_over_64_kib_is_not_taken(server: Server) -> None:
    near, far = await server.pair()
    waiting = asyncio.create_task(near.receive())
    await near._socket.send_bytes(bytes(RECEIVE_MAX))
    assert len(await far.receive()) == RECEIVE_MAX
    await near._socket.send_bytes(bytes(RECEIVE_MAX + 1))
    with pytest.raises(LinkLost):
        await far.receive()
    with pytest.raises(LinkLost):
        await waiting
    await near.close()


async def test_L7_no_end_of_a_tunnel_negotiates_compression(server: Server) -> None:
    """The client does not offer it, and the server does not take up the offer of one that does."""
    near, far = await server.pair()
    assert "Sec-WebSocket-Extensions" not in server.headers[-1]
    await asyncio.gather(near.close(), far.close())
    tls = client_context(CA.bundle())
    async with aiohttp.ClientSession() as client, client.ws_connect(server.url + "/t", ssl=tls, compress=15) as socket:
        assert "permessage-deflate" in server.headers[-1]["Sec-WebSocket-Extensions"], "the offer was not made"
        assert "Sec-WebSocket-Extensions" not in socket._response.headers
        assert not socket.compress
        await asyncio.gather(socket.close(), (await server.links.get()).close())  # each waits for the other


async def test_a_close_code_tells_why(server: Server) -> None:
    for code, reason in ((4001, "idle"), (4002, "limit"), (4003, "shutdown"), (4004, "error"), (4005, "lost")):
        near, far = await server.pair()
        closing = asyncio.create_task(far._socket.close(code=code))
        with pytest.raises(LinkLost, match=str(code)) as lost:
            await near.receive()
        assert lost.value.reason == reason
        await asyncio.gather(closing, near.close(), far.close())


async def test_the_end_that_takes_notes_gets_the_last_one(server: Server) -> None:
    for reading in (False, True):
        server.notes.clear()
        near, far = await server.pair()
        reader = asyncio.create_task(far.receive()) if reading else None
        await asyncio.sleep(0)
        closing = asyncio.create_task(far.close())
        assert await near.receive() == b""
        await near.send_note("last")
        await near.close()
        await closing
        assert server.notes == ["last"]
        if reader:
            with pytest.raises(LinkLost):
                await reader


async def test_what_keeps_a_tunnel_from_opening(server: Server) -> None:
    with pytest.raises(PeerRefused) as refused:
        await connect_websocket(Endpoint.parse(server.url + "/elsewhere"), tls=client_context(CA.bundle()))
    assert refused.value.reason == "http_404"
    with pytest.raises(IdentityRefused):
        await connect_websocket(Endpoint.parse(server.url + "/t"), tls=client_context(Ca().bundle()))
    with pytest.raises(IdentityRefused):  # by default only the system's authorities count
        await connect_websocket(Endpoint.parse(server.url + "/t"))
    with pytest.raises(LinkLost, match="hung up"):
        await connect_websocket(
            Endpoint.parse(server.url + "/t"), tls=client_context(CA.bundle(), CA.issue("edge/lap-1")))


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def silent(link: Link) -> None:
        await asyncio.Event().wait()

    listener = await listen(Endpoint.parse("tcp:127.0.0.1:0"), silent)
    port = listener.endpoint.host_port()[1]
    with pytest.raises(LinkLost, match="no answer"):
        await connect_websocket(Endpoint.parse(f"wss://127.0.0.1:{port}"), timeout_s=0.05)
    await listener.close()


async def test_a_last_note_counts_though_its_sender_has_gone_already(server: Server) -> None:
    near, far = await server.pair()
    await near.send(b"a")
    assert await far.receive() == b"a"
    await near.send_note("last")
    assert near._session is not None
    await near._session.close()  # without the closing handshake, for which the far end would have to read
    async with asyncio.timeout(60):  # until this end has noticed: from here on sending fails
        while True:
            try:
                await far._socket.send_str("end")
            except (OSError, RuntimeError):
                break
            await asyncio.sleep(0)
    assert server.notes == []
    await far.close()
    assert server.notes == ["last"]
    await near.close()


@pytest.mark.parametrize("kind", ["ping", "pong", "empty"])
async def test_a_flood_of_nothing_lets_everybody_else_be_served(server: Server, kind: str) -> None:
    near, far = await server.pair()
    for _ in range(1_000):
        await (near._socket.send_bytes(b"") if kind == "empty" else getattr(near._socket, kind)())
    await near.send(b"x")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    serving = asyncio.create_task(others())
    assert await far.receive() == b"x"
    serving.cancel()
    assert turns >= 1_000
    await asyncio.gather(near.close(), far.close())


async def test_pings_are_answered(server: Server) -> None:
    async with aiohttp.ClientSession() as client:
        tls = client_context(CA.bundle())
        async with client.ws_connect(server.url + "/t", ssl=tls, autoping=False) as socket:
            far = await server.links.get()
            receiving = asyncio.create_task(far.receive())
            await socket.ping(b"there?")
            message = await socket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"there?")
            await socket.close()
            assert await receiving == b""
            await far.close()
