"""What counts as use of `edge serve`: what somebody with the token asks for, for as long as it lasts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from edge_client.answering import Assistant
from edge_client.api.names import Names
from edge_client.api.server import make_runner
from edge_client.idle import Activity
from tests.support.fake_engine import FakeChat
from tests.support.page_lab import TOKEN, Lab, page_lab
from transport import telemetry

BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Now:
    def __init__(self) -> None:
        self.now = 0.0
        self.activity = Activity(lambda: self.now)


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with page_lab(tmp_path) as made:
        yield made


@pytest.fixture
async def client(lab: Lab, now: Now) -> AsyncIterator[ClientSession]:
    """Of a server that counts, with an engine that goes on until it is closed."""
    tracing = telemetry.start("edge")
    alone = Assistant(chat=FakeChat(endless=True), retrieval=None, relay=None, tracing=tracing)
    runner = make_runner(Names(alone=alone, auto=lab._auto), TOKEN, lab.page, now.activity)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as made:
        yield made
    await runner.cleanup()
    tracing.close()


@pytest.mark.parametrize("path", ["/v1/models", "/causeway/documents", "/causeway/history?q=x", "/v1/nothing/here"])
async def test_what_is_asked_for_with_the_token_is_use(client: ClientSession, now: Now, path: str) -> None:
    now.now = 500.0
    assert now.activity.idle_s() == 500
    async with client.get(path, headers=BEARER) as answer:
        await answer.read()
    assert now.activity.idle_s() == 0


@pytest.mark.parametrize(("path", "headers"), [
    ("/healthz", BEARER), ("/causeway/status", BEARER), ("/", {}), ("/page.js", {}), ("/v1/models", {}),
    ("/v1/models", BEARER | {"Origin": "http://evil.example"}),
])  # fmt: skip
async def test_an_open_page_and_strangers_are_not(
    client: ClientSession, now: Now, path: str, headers: dict[str, str]
) -> None:
    now.now = 500.0
    async with client.get(path, headers=headers) as answer:
        await answer.read()
    assert now.activity.idle_s() == 500


async def test_a_stream_is_use_while_it_lasts(client: ClientSession, now: Now) -> None:
    body = {"model": "local", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    async with client.post("/v1/chat/completions", json=body, headers=BEARER) as answer:
        await answer.content.readline()
        now.now = 500.0
        assert now.activity.idle_s() == 0
