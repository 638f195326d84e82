"""`/v2/models/NAME/infer` on the loopback: passed on as it is, to a gateway or to nobody."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web

from edge_client.answering import Assistant, Relay
from edge_client.api.server import Names, make_runner
from edge_client.inference import Inference
from tests.support.fake_engine import FakeChat, FakeRelay
from tests.support.fake_triton import tensors
from transport import telemetry
from transport.errors import RequestRefused

TOKEN = "t" * 43
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ROUTE = "/v2/models/defect-detection/infer"


@asynccontextmanager
async def serving(relay: FakeRelay | None) -> AsyncIterator[ClientSession]:
    tracing = telemetry.start("edge")
    alone = Assistant(chat=FakeChat(), retrieval=None, relay=None, tracing=tracing)

    async def auto() -> Assistant:
        return alone

    async def way() -> Relay | None:
        return relay

    runner = make_runner(Names(alone=alone, auto=auto, infer=Inference(way, tracing)), TOKEN)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            yield client
    finally:
        await runner.cleanup()
        tracing.close()


async def test_bytes_go_through_unchanged_both_ways() -> None:
    relay = FakeRelay([b'{"outputs": ', b"[ ]}"], content_type="application/json")
    async with serving(relay) as client, client.post(ROUTE, data=(body := tensors(0.1, 0.9)), headers=BEARER) as answer:
        assert answer.status == 200 and await answer.read() == b'{"outputs": [ ]}'
        assert answer.content_type == "application/json"
    assert relay.requests == [("POST", ROUTE, body)]
    assert len(relay.reported) == 1 and len(relay.reported[0]) == 32


async def test_without_a_token_or_a_gateway_nothing_leaves() -> None:
    relay = FakeRelay()
    async with serving(relay) as client, client.post(ROUTE, data=tensors(0.1)) as answer:
        assert answer.status == 401
    assert relay.requests == []
    async with serving(None) as client, client.post(ROUTE, data=tensors(0.1), headers=BEARER) as answer:
        assert answer.status == 403 and (await answer.json())["error"]["code"] == "not_joined"


@pytest.mark.parametrize("route", ["/v2/models/a%2Fb/infer", "/v2/models/../infer", "/v2/models//infer"])
async def test_names_that_are_none(route: str) -> None:
    relay = FakeRelay()
    async with serving(relay) as client, client.post(route, data=tensors(0.1), headers=BEARER) as answer:
        assert answer.status == 404
    assert relay.requests == []


async def test_a_refusal_keeps_its_code() -> None:
    relay = FakeRelay()
    relay.error = RequestRefused("not this model", status=403, reason="model_not_allowed", retryable=False)
    async with serving(relay) as client, client.post(ROUTE, data=tensors(0.1), headers=BEARER) as answer:
        assert answer.status == 403 and (await answer.json())["error"]["code"] == "model_not_allowed"
