"""The plain listener for benchmarks and first steps: one token, one identity, and nothing that others do not have."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway import app
from relay.gateway.config import parse
from relay.gateway.errors import ConfigError
from relay.gateway.identity.loopback import ID_PATH, token_from_file
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, chat
from tests.support.https_client import CHAT, CONFIG, Gateway, https_gateway
from tests.support.mock_provider import STREAM, WHOLE, MockProvider
from transport.primitives import Secret

TOKEN = "a-token-of-24-characters"
INSECURE = CONFIG.replace("[provider]", 'insecure = "127.0.0.1:0"\n[provider]')
ID = f"spiffe://{DOMAIN}{ID_PATH}"


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@pytest.fixture
async def gateway(made: Path, tmp_path: Path, provider: MockProvider) -> AsyncIterator[Gateway]:
    async with https_gateway(
        made, tmp_path / "gateway", provider, text=INSECURE, loopback_token=Secret(TOKEN.encode())
    ) as gateway:
        yield gateway


@contextlib.asynccontextmanager
async def asked(
    gateway: Gateway, body: bytes, *headers: tuple[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with aiohttp.ClientSession() as client, client.post(
        f"http://{gateway.ready.insecure}{CHAT}", data=body, headers=[("Content-Type", "application/json"), *headers]
    ) as response:
        yield response


async def ask(gateway: Gateway, body: bytes | None = None, token: str = f"Bearer {TOKEN}") -> tuple[int, Any]:
    async with asked(gateway, body or chat(), ("Authorization", token)) as response:
        return response.status, await response.json()


async def test_the_token_is_an_identity_on_record(gateway: Gateway) -> None:
    assert await ask(gateway) == (200, WHOLE)
    assert await ask(gateway) == (200, WHOLE)
    device, = (await gateway.admin("devices"))["devices"]
    assert (device["id"], device["source"]) == (ID, "loopback")
    for event in ("request.intent", "request.outcome"):
        assert [line["id"] for line in gateway.audit(event)] == [ID, ID]
    opened, = gateway.audit("insecure.opened")
    assert (opened["id"], opened["address"]) == (ID, gateway.ready.insecure)
    assert TOKEN not in (gateway.folder / app.AUDIT_FILE).read_text()


async def test_streams_come_as_they_are(gateway: Gateway) -> None:
    async with asked(gateway, chat(stream=True), ("Authorization", f"Bearer {TOKEN}")) as response:
        assert await response.read() == b"".join(STREAM)


@pytest.mark.parametrize("token", [
    "", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Bearer svid", f"DPoP {TOKEN}", "Bearer caf\xe9",
])
async def test_nothing_else_is_the_token(gateway: Gateway, token: str) -> None:
    status, answer = await ask(gateway, token=token)
    assert (status, answer["error"]["code"]) == (401, "invalid_token")
    assert gateway.provider.calls == 0
    denied, = gateway.audit("https.denied")
    assert denied["reason"] == "token: loopback"


async def test_two_tokens_are_none(gateway: Gateway) -> None:
    header = ("Authorization", f"Bearer {TOKEN}")
    async with asked(gateway, chat(), header, header) as response:
        assert response.status == 401 and gateway.provider.calls == 0


async def test_policy_and_schema_are_asked_as_for_anybody(gateway: Gateway) -> None:
    status, answer = await ask(gateway, chat("large"))
    assert (status, answer["error"]["code"]) == (403, "model_not_allowed")
    status, answer = await ask(gateway, chat(colour="blue"))
    assert (status, answer["error"]["code"]) == (400, "unknown_field")
    gateway.allow('[[allow]]\nid = "/workload/*"\nmodels = ["small"]\n')
    await gateway.admin("policy_reload")
    status, answer = await ask(gateway)
    assert (status, answer["error"]["code"]) == (403, "not_allowed")
    assert gateway.provider.calls == 0


async def test_revoked_is_revoked_and_what_runs_is_cut(gateway: Gateway) -> None:
    gateway.provider.mode = "stream_stall"
    async with asked(gateway, chat(stream=True), ("Authorization", f"Bearer {TOKEN}")) as response:
        assert await response.content.readline() == STREAM[0].splitlines(keepends=True)[0]
        await gateway.admin("revoke", who="edge/insecure-loopback", reason="over")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    gateway.provider.mode = "ok"
    assert (await ask(gateway))[0] == 401
    await gateway.admin("reinstate", who="edge/insecure-loopback")
    assert await ask(gateway) == (200, WHOLE)


async def test_the_token_is_nothing_on_the_listener_for_https(gateway: Gateway) -> None:
    connector = aiohttp.TCPConnector(ssl=False)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(connector=connector) as client, client.post(
        gateway.url + CHAT, json={}, headers=headers
    ) as response:
        assert response.status == 401


async def test_the_plain_listener_has_no_other_route(gateway: Gateway) -> None:
    async with aiohttp.ClientSession() as client:
        for route in ("/v1/bundle", "/oauth/jwks", "/v1/edge", "/healthz"):
            async with client.get(f"http://{gateway.ready.insecure}{route}") as response:
                assert response.status == 404, route


@pytest.mark.parametrize(("text", "token"), [(INSECURE, None), (CONFIG, Secret(TOKEN.encode()))])
async def test_flag_and_address_go_together(made: Path, text: str, token: Secret | None) -> None:
    config = parse(text.format(base_url="http://127.0.0.1:9/v1").encode(), made)
    with pytest.raises(ConfigError, match="insecure-loopback"):
        await app.serve(config, PASSPHRASE, ready=lambda _: None, stop=asyncio.Event(), loopback_token=token)


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "192.0.2.7:8080", "localhost:8080", "[::]:8080"])
def test_it_listens_on_a_loopback_address_alone(address: str) -> None:
    text = INSECURE.replace('insecure = "127.0.0.1:0"', f'insecure = "{address}"')
    with pytest.raises(ConfigError, match=r"^listen\.insecure: "):
        parse(text.format(base_url="http://127.0.0.1:9/v1").encode(), Path("/srv/gateway"))


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("x" * 15 + "\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="less than 16"):
        token_from_file(file)
    file.write_text("x" * 16 + "\n")
    assert token_from_file(file).expose() == b"x" * 16


def written(body: bytes, count: int = 1, method: str = "POST", route: str = CHAT) -> bytes:
    """Requests one behind the other."""
    head = f"{method} {route} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    return (head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body) * count


@contextlib.asynccontextmanager
async def pipelined(gateway: Gateway, data: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which `data` has been sent, and the first of it has reached the provider."""
    host, _, port = gateway.ready.insecure.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await gateway.provider.began.wait()
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("count", [0, 1, 100])
async def test_who_asks_much_in_advance_and_goes_ends_the_provider_s_call(gateway: Gateway, count: int) -> None:
    gateway.provider.mode = "timeout"
    more = written(b"", count, "GET", "/v1/models")
    async with pipelined(gateway, written(chat()) + more) as (_, writer):
        writer.write(more)
    async with asyncio.timeout(60):
        await gateway.provider.ended.wait()
    assert (await gateway.audited("request.outcome"))[0]["result"] == "cancelled"


async def test_who_asks_in_advance_is_answered_in_order(gateway: Gateway) -> None:
    gateway.provider.mode = "timeout"
    models = written(b"", 50, "GET", "/v1/models")
    async with pipelined(gateway, written(chat()) + models) as (reader, writer), asyncio.timeout(60):
        writer.write(models + written(chat("unknown")))
        await writer.drain()
        gateway.provider.release.set()
        answers = b""
        while b'"code":"' not in answers.replace(b'": "', b'":"'):
            piece = await reader.read(65_536)
            assert piece
            answers += piece
    said = answers.split(b"HTTP/1.1 ")[1:]
    assert [one[:3] for one in said] == [b"200"] * 101 + [b"403"]
    assert b"chat.completion" in said[0] and all(b'"list"' in one for one in said[1:-1])


async def test_who_sends_on_and_on_while_it_is_answered_is_cut_off(gateway: Gateway) -> None:
    gateway.provider.mode = "timeout"
    async with pipelined(gateway, written(chat())) as (reader, writer), asyncio.timeout(60):
        writer.write(written(b" " * 100_000))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await gateway.provider.ended.wait()
