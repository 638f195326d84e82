"""Quotas of a gateway that runs: by HTTPS and in sessions, over a reload and over a restart."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from relay.gateway.admin_alone import open_admin
from relay.gateway.config import load
from relay.gateway.identity.loopback import ID_PATH
from relay.gateway.quota.quotas import Quotas
from relay.gateway.quota.settings import PriceEntry
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, chat
from tests.support.https_client import CHAT, CONFIG, Workload, https_gateway
from tests.support.mock_provider import MockProvider, chunk
from tests.support.quota_lab import limiting, quota
from tests.support.resuming_edge import Edge, refused, until
from tests.support.session_lab import gateway as session_gateway
from transport.primitives import Secret

QUOTAS = """
[[quota]]
name = "reports"
id = "/workload/*"
window = "1h"
requests = 2
tokens = 10000
[[quota]]
name = "edges"
id = "/edge/*"
per = "role"
models = ["small"]
window = "1d"
requests = 1
money = "2.50"
[[price]]
model = "small"
input = "0.15"
output = "0.60"
"""
TOKEN = "a-token-of-24-characters"


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


async def headers(client: Workload) -> tuple[int, dict[str, str]]:
    async with client.client() as http, http.post(CHAT, json=json.loads(chat(max_tokens=100))) as response:
        await response.read()
        return response.status, dict(response.headers)


async def test_by_https_with_what_is_left_and_when_again_over_reload_and_restart(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    folder, hangup = tmp_path / "gateway", asyncio.Event()
    async with https_gateway(made, folder, provider, text=CONFIG + QUOTAS, reload=hangup) as gateway:
        client = await Workload.joined(gateway)
        status, first = await headers(client)
        assert status == 200
        assert first["RateLimit-Policy"] == (
            '"reports.requests";q=2;w=3600;qu="request", "reports.tokens";q=10000;w=3600;qu="tokens"')
        assert re.fullmatch(
            r'"reports\.requests";r=1;t=3[56]\d\d, "reports\.tokens";r=9984;t=3[56]\d\d', first["RateLimit"])
        assert (await headers(client))[0] == 200
        status, last = await headers(client)
        assert status == 429 and 3_500 < int(last["Retry-After"]) <= 3_660
        assert last["RateLimit"] == f'"reports.requests";r=0;t={last["Retry-After"]}'
        assert last["X-Should-Retry"] == "false"
        status, answer = await client.ask(chat())
        assert (status, answer["error"]["code"]) == (429, "rate_limited")
        assert answer["error"]["message"].startswith("quota reports: 2 requests in 1 h, of which too little is left; ")
        other = await Workload.joined(gateway, "workload/report-2")
        assert (await headers(other))[0] == 200  # whose count is its own
        assert provider.calls == 3
        more = (CONFIG + QUOTAS).replace("requests = 2", "requests = 3")
        (folder / "gateway.toml").write_text(more.format(base_url=provider.base_url))
        hangup.set()
        await gateway.audited("config.reloaded")
        assert [(await headers(client))[0] for _ in range(2)] == [200, 429]
        assert len(gateway.audit("request.refused")) == 3
    async with https_gateway(made, folder, provider, text=more) as gateway:
        lines = [line for line in (await gateway.admin("usage"))["quotas"] if line["quota"] == "reports"]
        assert [(line["for"].removeprefix("/workload/"), line["used"]) for line in lines] == [
            ("report-1", 3), ("report-1", 48), ("report-2", 1), ("report-2", 16)]
        client.gateway = gateway
        status, refusal = await headers(client)
        assert status == 429 and int(refusal["Retry-After"]) <= 3_660
    assert provider.calls == 4


async def test_the_token_of_the_plain_listener_is_not_exempt(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    text = CONFIG.replace("[provider]", 'insecure = "127.0.0.1:0"\n[provider]') + QUOTAS
    async with https_gateway(
        made, tmp_path / "gateway", provider, text=text, loopback_token=Secret(TOKEN.encode())
    ) as gateway, aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    ) as http:
        found = []
        for _ in range(2):
            async with http.post(f"http://{gateway.ready.insecure}{CHAT}", data=chat()) as response:
                found.append((response.status, "RateLimit" in response.headers))  # of a shared limit nothing is told
        assert found == [(200, False), (429, False)]
        refusal, = gateway.audit("request.refused")
        assert refusal["id"] == f"spiffe://{DOMAIN}{ID_PATH}" and refusal["code"] == "rate_limited"


async def test_each_attempt_that_reached_a_provider_is_a_request(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    """One says that it is too busy, the next answers; then the first cannot be reached at all."""
    two = """[[provider]]
name = "first"
base_url = "{base_url}"
key_file = "provider.key"
models = ["a"]
[[provider]]
name = "second"
base_url = "OTHER"
key_file = "provider.key"
models = ["b"]
[[model]]
name = "small"
providers = ["first", "second"]
as = {{ first = "a", second = "b" }}
[limits]"""
    start, _, rest = CONFIG.partition("[provider]")
    async with MockProvider() as other:
        text = start + two.replace("OTHER", other.base_url) + rest.partition("[limits]")[2]
        more = QUOTAS.replace("requests = 2", "requests = 9")
        provider.mode = "503"
        async with https_gateway(made, tmp_path / "gateway", provider, text=text + more) as gateway:
            client = await Workload.joined(gateway)
            assert (await client.ask(chat()))[0] == 200
            outcome, = gateway.audit("request.outcome")
            assert (outcome["attempts"], outcome["charged_tokens"], outcome["provider"]) == (2, 16, "second")
            await provider.__aexit__()
            assert (await client.ask(chat()))[0] == 200
            assert gateway.audit("request.outcome")[-1]["attempts"] == 1
            lines = (await gateway.admin("usage"))["quotas"]
            assert [line["used"] for line in lines if line["quota"] == "reports"] == [3, 32]


async def test_in_a_session_what_leaves_the_provider_is_charged_whoever_fetches_it(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    """The link is gone before the answer is; it runs on, is charged and cut, and waits as a whole one."""
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    prices = (PriceEntry(model="small", input="0.15", output="0.60", output_max=5_000),)
    quotas = Quotas(limiting(quota(tokens=1_500, models=["small"]), prices=prices))
    provider.stream = [*(chunk(f"word {number:04} ") for number in range(3_000)), b"data: [DONE]\n\n"]
    provider.mode = "stream_stall"
    async with asyncio.timeout(60), session_gateway(directory, provider.base_url, quotas=quotas) as lab:
        edge = await Edge.joined(lab)
        await edge.take(await edge.ask(), 1)
        await edge.cut()
        (window,) = next(quotas.ledger.slots()).windows.values()
        assert window.held == 1_500 and window.spent == 0
        provider.release.set()
        await until(lambda: bool(lab.audit("request.outcome")))
        outcome, = lab.audit("request.outcome")
        assert (outcome["result"], outcome["code"]) == ("cut", "quota_exceeded")
        assert window.held == 0 and window.spent == outcome["charged_tokens"] > 1_000
        await edge.take(await edge.come_back())
        words = edge.got.count(b"word ")
        assert outcome["charged_tokens"] == -(-len(edge.body) // 3) - (-words * 10 // 3)
        assert b"length" in edge.got
        provider.mode = "ok"
        other = Edge(lab, edge.svid, body=chat(text="x" * 1_000))
        assert await refused(await other.ask()) == (429, "quota_exceeded", False)
        await edge.finish()
        await other.finish()


async def test_usage_without_a_gateway_is_what_it_left(made: Path, tmp_path: Path, provider: MockProvider) -> None:
    folder = tmp_path / "gateway"
    async with https_gateway(made, folder, provider, text=CONFIG + QUOTAS) as gateway:
        client = await Workload.joined(gateway)
        assert (await headers(client))[0] == 200
    async with open_admin(load(folder / "gateway.toml"), PASSPHRASE) as admin:
        lines = (await admin.call("usage", {}))["quotas"]
    assert [(line["quota"], line["for"], line["counts"], line["used"], line["limit"]) for line in lines] == [
        ("reports", "/workload/report-1", "requests", 1, 2), ("reports", "/workload/report-1", "tokens", 16, 10_000),
        ("edges", "/edge/*", "requests", 0, 1), ("edges", "/edge/*", "money", 0, 2_500_000),
    ]
