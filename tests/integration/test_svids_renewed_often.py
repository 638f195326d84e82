"""Certificates that are renewed every five seconds under answers that take half a minute: nobody who reads notices."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import edge_client.sessions
import store.keys
import store.sealed
from edge_client.gateway_client import GatewayClient
from edge_client.outbox import Outbox
from relay.gateway.identity.ca import BACKDATE_S, Lifetimes
from store.queue import Queue
from tests.integration.test_edge_that_was_away import WallClock, world
from tests.support.edge_lab import read
from tests.support.gateway_lab import chat, make_folder
from tests.support.mock_provider import MockProvider, chunk
from tests.support.session_lab import gateway
from tests.support.stores import CachedStretch
from tests.support.virtually import in_virtual_time
from transport import telemetry
from transport.links.virtual_time import UNIX_START_S, wall

CACHED = CachedStretch()
READERS, EVENTS, PACE_S, RENEWED_S = 6, 300, 0.1, 5.0
STREAM = [chunk(f"{number} ") for number in range(EVENTS)] + [b"data: [DONE]\n\n"]


class SlowProvider(MockProvider):
    """A piece in each tenth of a second."""

    async def _streamed(self, request: web.Request, what: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self.stream:
            await response.write(event)
            await asyncio.sleep(PACE_S)
        await response.write_eof()
        return response


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("often") / "gateway", now=UNIX_START_S)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (store.keys, store.sealed):
        monkeypatch.setattr(module, "stretch", CACHED)
    monkeypatch.setattr(edge_client.sessions, "_RENEWAL_PAUSE_S", RENEWED_S)


@in_virtual_time
async def test_H8_renewal_every_five_seconds_interrupts_no_answer(made: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with world(made, tmp_path) as here:
        async with SlowProvider() as provider, gateway(
            here.directory, provider.base_url, clock=wall, ticking=wall
        ) as here.lab:
            lab = here.lab
            provider.stream = STREAM
            lab.authority._lifetimes = Lifetimes(svid_s=BACKDATE_S + 70)
            await here.join()
            tracing = telemetry.start("edge")
            client = GatewayClient(
                here.settings, Outbox(Queue(here.database, "outbox")), (), tracing, here.dial, clock=WallClock(),
                tell=told.append,
            )

            async def ask(number: int) -> bytes:
                await asyncio.sleep(number)
                return await read(await client.request("POST", "/v1/chat/completions", chat(stream=True)))

            began = wall()
            answers: list[Any] = await asyncio.gather(*(ask(number) for number in range(READERS)))
            took = wall() - began
            await client.close()
            tracing.close()
            assert answers == [b"".join(STREAM)] * READERS
            assert provider.calls == READERS and told == [], "asked once each, and nobody was told of a lost link"
            assert len(lab.audit("renew.issued")) >= took / RENEWED_S - 2 > 3
            assert len(lab.audit("session.opened")) >= len(lab.audit("renew.issued")), "each with a session of its own"
            assert len({line["serial"] for line in lab.audit("renew.issued")}) == len(lab.audit("renew.issued"))
