"""Which ways an edge tries to its gateway, and in which order."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from edge_client.gateway_client import GatewayClient
from tests.support.edge_lab import ENDPOINT, Edge, edge_lab, read
from tests.support.fake_gateway import Call
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link

FOUND = Endpoint.parse("tcp:10.0.0.9:7443")
OTHER = Endpoint.parse("tcp:10.0.0.10:7443")


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_lab(tmp_path) as edge:
        await edge.join()
        yield edge


class Ways:
    """Those in `dead` are not in reach."""

    def __init__(self, edge: Edge, dead: set[Endpoint]) -> None:
        self.edge, self.dead = edge, dead
        self.dialled: list[Endpoint] = []
        self.searches = 0
        self.client = GatewayClient(
            edge.settings, edge.outbox, (), edge.tracing, self.dial, clock=edge.clock, find=self.find
        )
        edge.clients.append(self.client)

    async def dial(self, endpoint: Endpoint) -> Link:
        self.dialled.append(endpoint)
        if endpoint in self.dead:
            raise LinkLost("nobody answers")
        return await self.edge.gateway.dial(endpoint)

    async def find(self) -> Sequence[Endpoint]:
        self.searches += 1
        return [ENDPOINT, OTHER, FOUND]

    async def ask(self) -> None:
        await read(await self.client.request("POST", "/v1/chat/completions", b"prompt"))


async def test_found_hops_come_after_what_is_configured_and_the_one_that_worked_first(edge: Edge) -> None:
    ways = Ways(edge, {ENDPOINT, OTHER})
    await ways.ask()
    assert ways.dialled == [ENDPOINT, OTHER, FOUND], "what is known is not tried twice"
    await edge.gateway.cut()
    ways.dialled.clear()
    await ways.ask()
    assert (ways.dialled, ways.searches) == ([FOUND], 1)


async def test_nobody_is_looked_for_while_there_is_a_way(edge: Edge) -> None:
    ways = Ways(edge, set())
    await ways.ask()
    assert (ways.dialled, ways.searches) == ([ENDPOINT], 0)


async def test_a_found_hop_serves_renewal_too(edge: Edge) -> None:
    ways = Ways(edge, {ENDPOINT, OTHER})
    edge.clock.ahead = 40 * 60
    await ways.ask()
    assert ways.dialled[:3] == [ENDPOINT, OTHER, FOUND] and ways.searches >= 1


async def test_the_hop_in_use_dies_in_mid_stream_and_a_better_one_serves_the_next_session(edge: Edge) -> None:
    best, second, told = Endpoint.parse("unix:/run/hop"), OTHER, asyncio.Event()

    async def slowly(call: Call) -> None:
        await call.begin()
        await call.write(b"one, ")
        await told.wait()
        await call.write(b"two")
        await call.end()

    async def dial(endpoint: Endpoint) -> Link:
        edge.clock.ahead += 10 if endpoint == second else 0
        return await edge.gateway.dial(endpoint)

    edge.gateway.handle = slowly
    client = GatewayClient(edge.settings, edge.outbox, (second, best), edge.tracing, dial, clock=edge.clock)
    edge.clients.append(client)
    answer = await client.request("POST", "/v1/chat/completions", b"prompt")
    chunks = answer.chunks()
    got = [await anext(chunks)]
    picture = client.picture()
    assert (picture.state, picture.endpoint) == ("up", str(best)) and picture.sent > 0 < picture.received
    edge.gateway.dead.add(str(best))
    await edge.gateway.cut()
    told.set()
    got += [chunk async for chunk in chunks]
    assert b"".join(got) == b"one, two" and len(edge.gateway.called) == 1
    assert edge.gateway.dialled[-2:] == [str(best), str(second)] and client.picture().endpoint == str(second)
    assert [(way.endpoint, way.state) for way in client.picture().ways] == [
        (str(second), "worked"), (str(best), "failed"),
    ]
    # It comes back; the session that stands goes on, the next one is over it.
    edge.gateway.dead.clear()
    edge.clock.ahead += 60
    await edge.ask()
    assert client.picture().endpoint == str(second)
    await edge.gateway.cut()
    await edge.ask()
    assert client.picture().endpoint == str(best)
