"""The chat page's routes over the real gateway client: the picture of the link, and a question taken up again."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from edge_client.gateway_client import GatewayClient
from tests.support.edge_lab import ENDPOINT, Edge, edge_lab
from tests.support.fake_engine import sse
from tests.support.fake_gateway import Call
from tests.support.page_lab import TOKEN, Lab, page_lab

BEARER = {"Authorization": f"Bearer {TOKEN}"}
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Why?"}]}).encode()


class Setting:
    def __init__(self, edge: Edge, lab: Lab, http: ClientSession) -> None:
        self.edge, self.lab, self.http = edge, lab, http

    async def link(self) -> Any:
        return (await (await self.http.get("/causeway/status", headers=BEARER)).json())["link"]

    async def becomes(self, state: str) -> Any:
        """The picture, once it says so; each look at it may make the client look for a way."""
        async with asyncio.timeout(30):
            while (link := await self.link())["state"] != state:
                self.lab.page._look_at = 0.0
            return link


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    (tmp_path / "edge").mkdir()
    async with edge_lab(tmp_path / "edge") as edge, page_lab(tmp_path) as lab, ClientSession(lab.address) as http:
        await edge.join()

        async def way() -> GatewayClient:
            return edge.client

        lab.page._behind = replace(lab.page._behind, relay=way, outbox=lambda: edge.outbox)
        yield Setting(edge, lab, http)


async def test_the_picture_follows_the_link_while_somebody_looks(setting: Setting) -> None:
    first = await setting.link()
    assert (first["state"], first["sent"], first["received"]) == ("idle", 0, 0), "nothing was asked yet"
    up = await setting.becomes("up")
    assert (up["endpoint"], up["via"]) == (str(ENDPOINT), "spiffe://field.example/hop/h")
    assert up["sent"] > 500 < up["received"] and up["round_trip_s"] >= 0
    assert [(way["endpoint"], way["state"]) for way in up["ways"]] == [(str(ENDPOINT), "worked")]
    setting.edge.gateway.dead.add(str(ENDPOINT))
    await setting.edge.gateway.cut()
    down = await setting.becomes("down")
    assert (down["endpoint"], down["ways"][0]["state"]) == ("", "failed")
    setting.edge.gateway.dead.clear()
    assert (await setting.becomes("up"))["received"] > up["received"]


async def test_a_question_that_waits_is_taken_up_and_streams(setting: Setting) -> None:
    goes_on = asyncio.Event()

    async def slowly(call: Call) -> None:
        first, *rest = sse("It ", "stands.")
        await call.begin(200, "text/event-stream")
        await call.write(first)
        await goes_on.wait()
        await call.write(b"".join(rest))
        await call.end()

    async def promise(request_id: bytes) -> None:
        """Nobody else takes it up."""

    edge = setting.edge
    edge.gateway.handle = slowly
    id, _ = await edge.client.leave("POST", "/v1/chat/completions", BODY, promise)
    answer = await setting.http.post(f"/causeway/outbox/{id.hex()}/retry", headers=BEARER)
    events = [json.loads((await answer.content.readuntil(b"\n\n"))[6:]) for _ in range(2)]
    assert events[0]["question"] == "Why?" and events[1]["choices"][0]["delta"]["content"] == "It "
    await edge.gateway.cut()  # it goes on over another link
    goes_on.set()
    rest = (await answer.read()).decode()
    assert '"stands."' in rest and rest.endswith("data: [DONE]\n\n")
    assert edge.gateway.called == [id] and [state for state, _, _ in await edge.states()] == ["done"]
