"""A gateway as `serve` builds it, one client by HTTPS that goes astray, and a receiver that hears of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from relay.gateway.anomaly import guard
from tests.support.gateway_lab import Clock, chat
from tests.support.https_client import CHAT, CONFIG, Gateway, Workload, https_gateway, last_words
from tests.support.mock_provider import MockProvider

ALERTING = """
[anomaly]
warn = 1.0
throttle = 2.0
quarantine = 60.0
[alerts]
webhook = "{hook}"
webhook_secret_file = "webhook.secret"
"""


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


async def reached(gateway: Gateway, client: Workload, clock: Clock, state: str) -> None:
    """Asks nonsense until the client is in that state, and time goes by between."""
    async with client.client() as https:
        while (await gateway.admin("devices"))["devices"][0]["state"] != state:
            for _ in range(10):
                async with https.post(CHAT, data=b"{}", headers={"Content-Type": "application/json"}) as answer:
                    await answer.read()
            await asyncio.sleep(0)
            clock.now += 1


async def test_it_is_slowed_down_cut_and_told_of_and_a_person_brings_it_back(
    made: Path, tmp_path: Path, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "TICK_S", 0.005)
    told: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def hook(request: web.Request) -> web.Response:
        assert request.headers["webhook-signature"].startswith("v1,")
        told.put_nowait(await request.json())
        return web.Response(status=204)

    receiver = web.AppRunner(app := web.Application())
    app.router.add_post("/hook", hook)
    await receiver.setup()
    site = web.TCPSite(receiver, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    text = CONFIG + ALERTING.replace("{hook}", f"http://127.0.0.1:{port}/hook")
    clock = Clock()
    secret = tmp_path / "webhook.secret"
    secret.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    text = text.replace('"webhook.secret"', f'"{secret}"')
    async with https_gateway(made, tmp_path / "g", provider, text=text, clock=clock) as gateway:
        client = await Workload.joined(gateway)
        assert (await client.ask(chat()))[0] == 200
        await reached(gateway, client, clock, "throttled")
        async with client.client() as https:
            answers = [
                await https.post(CHAT, data=chat(), headers={"Content-Type": "application/json"}) for _ in range(8)
            ]
            assert [one.status for one in answers].count(429) >= 3
            assert answers[-1].headers["Retry-After"] == "2" and answers[-1].headers["X-Should-Retry"] == "true"
            assert (await answers[-1].json())["error"]["code"] == "throttled"
        clock.now += 4  # room for two
        async with client.stalled() as stream:
            await reached(gateway, client, clock, "quarantined")
            assert await last_words(stream) == "quarantined"
        status, answer = await client.ask(chat())
        assert (status, answer["error"]["code"]) == (403, "quarantined")
        alerts = [await told.get() for _ in range(2)]
        assert [one["type"] for one in alerts] == ["device.throttled", "device.quarantined"]

        assert (await gateway.admin("reinstate", who="workload/report-1"))["was"] == "quarantined"
        provider.mode = "ok"
        assert (await client.ask(chat()))[0] == 200
        assert told.empty(), "each once"
        await client.renew()
    await receiver.cleanup()
