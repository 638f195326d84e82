"""Edges that come straight to the HTTPS listener by WebSocket: whom they trust; strangers, garbage and slow ones."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edge_client.dialing import Dialer, WssTrust
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, join
from edge_client.outbox import Outbox
from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.https import listen_https, make_app
from relay.gateway.identity.ca import OwnIdentity
from relay.gateway.listening import Gate, HttpsLimits
from relay.gateway.sessions import SessionLimits
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.queue import Queue
from store.settings import Settings
from tests.support import session_lab
from tests.support.ca import Ca
from tests.support.edge_lab import read, until
from tests.support.gateway_lab import chat
from tests.support.joining_gateway import JoiningGateway
from tests.support.mock_provider import STREAM, MockProvider
from transport import telemetry
from transport.errors import IdentityRefused, LinkLost, TransportError
from transport.identity.tls import server_context, unverified_context
from transport.links.base import Endpoint, Link, connect

LIMIT = 60.0


@dataclass
class Lab:
    gateway: session_lab.Lab
    gate: Gate
    endpoint: Endpoint
    settings: Settings
    queue: Queue
    tracing: telemetry.Telemetry
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def dialer(self, trust: WssTrust = "bundle") -> Dialer:
        return Dialer(self.settings, radio="none", wss_trust=trust)

    async def edge(self) -> GatewayClient:
        """A device that joins and asks by the WebSocket alone."""
        invitation = await self.gateway.enrolment.invite("edge/lap-1")
        dial = self.dialer()
        await join(self.settings, invitation, await dial(self.endpoint), (str(self.endpoint),))
        client = GatewayClient(self.settings, Outbox(self.queue), (), self.tracing, dial)
        self.stack.push_async_callback(client.close)
        return client

    async def stranger(self) -> Link:
        return await connect(self.endpoint, tls=unverified_context())


async def ask(client: GatewayClient) -> bytes:
    return await read(await client.request("POST", "/v1/chat/completions", chat(stream=True)))


@contextlib.asynccontextmanager
async def running(
    made: Path, directory: Path, *, sessions: SessionLimits | None = None, **limits: Any
) -> AsyncIterator[Lab]:
    shutil.copytree(made, directory / "gateway")
    async with AsyncExitStack() as stack, asyncio.timeout(60), MockProvider() as provider:
        provider.stream = STREAM
        gateway = await stack.enter_async_context(
            session_lab.gateway(directory / "gateway", provider.base_url, limits=sessions)
        )
        audit = AuditLog(directory / "https.jsonl")
        stack.push_async_callback(audit.close)
        gate = Gate(HttpsLimits(**limits))
        app = make_app(
            authority=gateway.authority, enrolment=gateway.enrolment, sessions=gateway.sessions, traces=gateway.traces,
            refusals=Refusals(audit), gate=gate, revocation=gateway.revocation,
        )
        svid = OwnIdentity(gateway.authority, "main").svid()
        context = server_context(svid, gateway.authority.bundle, ("hop",), require_client=False)
        address = await listen_https(stack, app, ("127.0.0.1", 0), context, gate)
        database = Database.open(directory / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
        stack.callback(database.close)
        tracing = telemetry.start("edge")
        stack.callback(tracing.close)
        lab = Lab(
            gateway, gate, Endpoint.parse(f"wss://{address}/v1/edge"), Settings(database, NAMESPACE),
            Queue(database, "outbox"), tracing,
        )
        async with lab.stack:
            yield lab


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(made, tmp_path) as lab:
        yield lab


async def end(link: Link) -> str:
    """How the gateway has ended a link: "" or the reason; what it said before is skipped."""
    async with asyncio.timeout(LIMIT):
        try:
            while await link.receive():
                pass
        except LinkLost as lost:
            return lost.reason
        finally:
            await link.close()
    return ""


async def test_an_edge_joins_asks_and_holds_no_stranger_s_place(lab: Lab) -> None:
    client = await lab.edge()
    assert await ask(client) == b"".join(STREAM)
    assert lab.gate.places.taken == 0 and len(lab.gate.connections) == 1
    (opened,) = lab.gateway.audit("session.opened")
    assert (opened["id"], opened["via"]) == ("spiffe://field.example/edge/lap-1", "")


@pytest.mark.parametrize("trust", ["bundle", "webpki"])
async def test_the_server_s_certificate_is_looked_at_as_configured(lab: Lab, trust: WssTrust) -> None:
    await lab.edge()
    async with JoiningGateway(Ca()).running() as foreign:
        with pytest.raises(IdentityRefused):
            await lab.dialer(trust)(Endpoint.parse(f"wss://127.0.0.1:{foreign.port}/v1/tunnel"))
    if trust == "webpki":
        with pytest.raises(IdentityRefused):  # the gateway's SVID is of no public authority
            await lab.dialer(trust)(lab.endpoint)


@pytest.mark.parametrize("sent", [b"\0", b"\x16\x03\x01" + bytes(500), b"GET / HTTP/1.1\r\n\r\n", bytes(70_000)])
async def test_garbage_ends_its_own_link_and_no_other(lab: Lab, sent: bytes) -> None:
    client = await lab.edge()
    assert await ask(client) == b"".join(STREAM)
    stranger = await lab.stranger()
    with contextlib.suppress(LinkLost):
        await stranger.send(sent)
    assert await end(stranger) in ("", "lost")
    assert await ask(client) == b"".join(STREAM)
    await until(lambda: lab.gate.places.taken == 0)
    assert len(lab.gateway.audit("session.opened")) == 1


async def test_a_note_or_no_websocket_at_all_is_refused(lab: Lab) -> None:
    stranger = await lab.stranger()
    await stranger.send_note("hello")
    assert await end(stranger) == "lost"
    url = f"https:{lab.endpoint.address}"
    async with aiohttp.ClientSession() as http, http.get(url, ssl=unverified_context()) as response:
        assert (response.status, set(await response.json())) == (400, {"error"})


async def test_slow_strangers_end_while_a_session_stands(made: Path, tmp_path: Path) -> None:
    async with running(made, tmp_path, life_s=3.0) as lab:
        client = await lab.edge()
        assert await ask(client) == b"".join(STREAM)
        stranger = await lab.stranger()
        await stranger.send(b"\x01")  # the first byte of a handshake, and then nothing
        assert await end(stranger) == "lost"
        assert await ask(client) == b"".join(STREAM)
        assert len(lab.gateway.audit("session.opened")) == 1, "the session is the same that stood before"


async def test_a_handshake_has_its_own_time(made: Path, tmp_path: Path) -> None:
    async with running(made, tmp_path, sessions=SessionLimits(handshake_s=0.1), life_s=100.0) as lab:
        stranger = await lab.stranger()
        await stranger.send(b"\x01")
        assert await end(stranger) in ("", "lost")
        await until(lambda: lab.gate.places.taken == 0)


async def test_strangers_of_one_address_have_a_share_and_an_edge_from_elsewhere_a_place(
    made: Path, tmp_path: Path
) -> None:
    async with running(made, tmp_path, strangers=8, per_source=2, idle_s=100.0, life_s=100.0) as lab:
        held = [await lab.stranger() for _ in range(2)]
        with pytest.raises(TransportError):
            await lab.stranger()
        assert lab.gate.places.taken == 2
        await held[0].close()
        await until(lambda: lab.gate.places.taken == 1)
        assert await ask(await lab.edge()) == b"".join(STREAM)
        await held[1].close()


async def test_places_for_handshakes_are_shared_with_the_session_port(made: Path, tmp_path: Path) -> None:
    """An address has one share of them, whichever door it comes by."""
    async with running(made, tmp_path, sessions=SessionLimits(handshakes=4)) as lab:
        held = lab.gateway.link(peer="tcp:127.0.0.1:4711")
        await until(lambda: lab.gateway.sessions._handshaking.taken == 1)
        stranger = await lab.stranger()
        async with asyncio.timeout(LIMIT):
            assert len(await stranger.receive()) == 2  # the hint that there are too many
            assert await stranger.receive() == b""
        await asyncio.gather(held.close(), stranger.close())
