"""An edge with a store, an outbox and a fake gateway, in one process and without a socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_client.gateway_client import GatewayClient, RemoteAnswer
from edge_client.identity import NAMESPACE, DeviceIdentity, join
from edge_client.outbox import Outbox
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.queue import Queue
from store.settings import Settings
from tests.support.ca import Ca
from tests.support.fake_gateway import FakeClock, FakeGateway, say_hello
from transport import telemetry
from transport.identity.join import Invitation
from transport.links.base import Endpoint
from transport.messages import Padding
from transport.primitives import Secret, sha256

ENDPOINT = Endpoint.parse("tcp:127.0.0.1:1")


@dataclass
class Edge:
    settings: Settings
    queue: Queue
    tracing: telemetry.Telemetry
    gateway: FakeGateway
    clock: FakeClock = field(default_factory=FakeClock)
    notes: list[str] = field(default_factory=list)
    clients: list[GatewayClient] = field(default_factory=list)

    @property
    def outbox(self) -> Outbox:
        return Outbox(self.queue)

    @property
    def client(self) -> GatewayClient:
        return self.clients[-1]

    def start(
        self, endpoints: Sequence[Endpoint] = (), *, early_data: bool = True, padding: Padding = Padding.BUCKET
    ) -> GatewayClient:
        """Another process of this edge: a new client on the same store. The one before it is not told."""
        self.clients.append(GatewayClient(
            self.settings, self.outbox, endpoints, self.tracing, self.gateway.dial, clock=self.clock,
            tell=self.notes.append, early_data=early_data, padding=padding,
        ))
        return self.client

    async def kill(self) -> None:
        """The process dies: its links go without a word, and nothing more is written."""
        for link in self.gateway.links:
            await link.abort()
        await self.client.close()

    async def join(self) -> DeviceIdentity:
        return await join_gateway(self.settings, self.gateway)

    async def request(self, body: bytes = b"prompt") -> RemoteAnswer:
        return await self.client.request("POST", "/v1/chat/completions", body)

    async def ask(self, body: bytes = b"prompt") -> bytes:
        return await read(await self.request(body))

    async def states(self) -> list[tuple[str, str, bool]]:
        return [(row.state, row.note, row.payload is not None) for row in await self.queue.list()]


async def join_gateway(settings: Settings, gateway: FakeGateway) -> DeviceIdentity:
    ca = gateway.ca
    invite = Invitation(sha256(ca.root_der), b"t" * 8, Secret(b"s" * 16), ca.trust_domain, "edge/lap-1")
    return await join(settings, invite, await gateway.dial(ENDPOINT), (str(ENDPOINT),))


async def read(answer: RemoteAnswer) -> bytes:
    return b"".join([chunk async for chunk in answer.chunks()])


async def until(condition: Callable[[], object]) -> None:
    """Lets the event loop turn until it holds; TimeoutError after 60 s."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - any state may be asked for, not only what has an event
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def edge_lab(path: Path) -> AsyncIterator[Edge]:
    database = Database.open(path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    edge = Edge(
        Settings(database, NAMESPACE), Queue(database, "outbox"), telemetry.start("edge"),
        FakeGateway(Ca(), say_hello),
    )
    edge.start()
    try:
        async with asyncio.timeout(60):
            yield edge
    finally:
        for client in edge.clients:
            await client.close()
        for link in edge.gateway.links:
            await link.close()
        for task in edge.gateway.tasks:
            task.cancel()
        await asyncio.gather(*edge.gateway.tasks, return_exceptions=True)
        edge.tracing.close()
        database.close()
