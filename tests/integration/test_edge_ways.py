"""Which ways an edge tries to its gateway, and in which order."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from edge_client.gateway_client import GatewayClient
from tests.support.edge_lab import ENDPOINT, Edge, edge_lab, read
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
