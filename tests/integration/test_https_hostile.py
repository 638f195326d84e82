"""What a stranger or a client of ours may send by HTTPS, and what it must not do to the gateway by that."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relay.gateway import app
from relay.gateway.api import Api
from relay.gateway.identity import oauth
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.listening import HttpsLimits
from relay.rates import Rate
from tests.support.gateway_lab import chat
from tests.support.https_client import Gateway, Workload, https_gateway
from tests.support.mock_provider import MockProvider
from tests.support.oauth_client import TokenClient
from transport.identity.tls import client_context

LIMIT_S = 60  # for hanging alone


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@pytest.fixture
async def gateway(made: Path, tmp_path: Path, provider: MockProvider) -> AsyncIterator[Gateway]:
    async with https_gateway(made, tmp_path / "gateway", provider) as gateway:
        yield gateway


@contextlib.asynccontextmanager
async def connection(
    client: Workload, *, bare: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Bytes of one's own choice, by TLS."""
    host, _, port = client.gateway.ready.https.rpartition(":")
    context = client_context(client.bundle, None if bare else client.svid)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def head(line: bytes, **fields: Any) -> bytes:
    said = {"Host": "gateway", **{name.replace("_", "-"): value for name, value in fields.items()}}
    return line + b" HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in said.items()).encode() + b"\r\n"


MODELS = head(b"GET /v1/models")


async def status(reader: asyncio.StreamReader) -> int:
    """Of an answer, which is read whole."""
    async with asyncio.timeout(LIMIT_S):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if "content-length" in fields:
            await reader.readexactly(int(fields["content-length"]))
        else:
            await reader.readuntil(b"0\r\n\r\n")
    return int(lines[0].split()[1])


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "client"])
@pytest.mark.parametrize("name", [b"\xff\xed\xa0\x80", b"%FF%ED%A0%80", b"%00%0a", b"a%2Fb"])
async def test_bytes_that_are_no_text_do_not_reach_the_audit(gateway: Gateway, known: bool, name: bytes) -> None:
    client = await Workload.joined(gateway)
    async with connection(client, bare=not known) as (reader, writer):
        writer.write(head(b"POST /v2/models/" + name + b"/infer", Content_Length=0))
        assert await status(reader) in (400, 401, 404)
    async with asyncio.timeout(LIMIT_S):
        assert (await client.ask(chat()))[0] == 200
    assert all(line.get("route", "").isprintable() or b"%0" in name for line in gateway.audit())


async def test_one_identity_has_a_share_of_the_connections_that_stand(
    made: Path, tmp_path: Path, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that has asked once may stay; without a bound, one device takes all descriptors of the gateway."""
    limit = 3
    monkeypatch.setattr(app, "HttpsLimits", partial(HttpsLimits, per_client=limit, idle_s=3_600.0, life_s=3_600.0))
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(https_gateway(made, tmp_path / "gateway", provider))
        client, other = await Workload.joined(gateway), await Workload.joined(gateway, "workload/other")
        held = []
        for _ in range(limit):
            reader, writer = await stack.enter_async_context(connection(client))
            held.append(writer)
            writer.write(MODELS)
            assert await status(reader) == 200
        async with connection(client) as (reader, writer):
            writer.write(MODELS)
            assert await status(reader) == 429
            async with asyncio.timeout(LIMIT_S):
                assert await reader.read() == b"", "and that is its end"
        assert (await other.ask(chat()))[0] == 200
        held[0].write(MODELS)
        held[1].transport.abort()
        while True:  # its end is on its way
            async with connection(client) as (reader, writer):
                writer.write(MODELS)
                if await status(reader) == 200:
                    break


async def test_who_was_revoked_holds_no_connection(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    async with connection(client) as (reader, writer):
        writer.write(MODELS)
        assert await status(reader) == 200
        await gateway.admin("revoke", who="workload/report-1", reason="lost")
        writer.write(MODELS)
        assert await status(reader) == 403
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read() == b""


async def test_a_token_whose_key_is_withdrawn_while_the_body_comes(
    gateway: Gateway, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await TokenClient.joined(gateway)
    token = await client.token()
    reading, go_on = asyncio.Event(), asyncio.Event()
    original = Api._body

    async def slow(self: Api, request: Any) -> Any:
        reading.set()
        await go_on.wait()
        return await original(self, request)

    monkeypatch.setattr(Api, "_body", slow)
    asking = asyncio.create_task(client.ask(chat(), token))
    async with asyncio.timeout(LIMIT_S):
        await reading.wait()
        await gateway.admin("rotate_tokens", compromised=True)
        go_on.set()
        assert (await asking).error == (401, "invalid_token")
    assert provider.bodies == []


async def test_an_svid_that_has_run_out_has_no_more_tokens(
    made: Path, tmp_path: Path, provider: MockProvider, caplog: pytest.LogCaptureFixture
) -> None:
    ahead = 0.0
    async with https_gateway(made, tmp_path / "gateway", provider, clock=lambda: time.time() + ahead) as gateway:
        client = await Workload.joined(gateway)
        async with connection(client) as (reader, writer):
            form = b"grant_type=client_credentials"
            ask = head(b"POST /oauth/token", Content_Length=len(form),
                       Content_Type="application/x-www-form-urlencoded") + form
            writer.write(ask)
            assert await status(reader) == 200
            ahead = 3361.0
            writer.write(ask)
            assert await status(reader) == 401
        (line,) = gateway.audit("oauth.refused")
        assert line["reason"] == "certificate: expired" and line["id"] == client.id
    assert caplog.records == []


async def test_one_client_has_so_many_tokens(
    made: Path, tmp_path: Path, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where AWS signs, each has its price; and all share the way there."""
    monkeypatch.setattr(oauth, "TOKENS", Rate(0.0, 3))
    async with https_gateway(made, tmp_path / "gateway", provider) as gateway:
        client, other = await TokenClient.joined(gateway), await TokenClient.joined(gateway, "workload/other")
        form = {"grant_type": "client_credentials"}
        answers = [await client.post_form(form, with_svid=True) for _ in range(4)]
        assert [one.status for one in answers] == [200, 200, 200, 503] and answers[-1].body == {"error": "overloaded"}
        assert (await client.given()).error == (503, "overloaded")
        assert (await other.given()).status == 200
        assert len(gateway.audit("token.issued")) == 4


async def test_anothers_certificate_moves_nothing(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are no secrets: with SPIRE as source, whoever shows one would register its holder."""
    thief, victim = await TokenClient.joined(gateway), await TokenClient.joined(gateway, "workload/other")
    await thief.renewed_nonce()
    met = []
    original = Enrolment.meet

    async def meet(self: Enrolment, peer: Any) -> None:
        met.append(str(peer.id))
        await original(self, peer)

    monkeypatch.setattr(Enrolment, "meet", meet)
    shown = victim.by_svid()
    shown.key, shown.nonce = thief.key, thief.nonce
    assert (await shown.given()).error == (401, "invalid_client") and not met
    assert [line["reason"] for line in gateway.audit("oauth.refused")] == ["assertion: binding"]


async def test_who_asks_much_in_advance_and_goes_ends_the_provider_s_call(
    gateway: Gateway, provider: MockProvider
) -> None:
    """By TLS; how it is answered who does so and stays is in test_insecure_loopback.py."""
    client = await Workload.joined(gateway)
    provider.mode = "timeout"
    asked = chat()
    async with connection(client) as (_, writer), asyncio.timeout(LIMIT_S):
        writer.write(head(b"POST /v1/chat/completions", Content_Type="application/json", Content_Length=len(asked)))
        writer.write(asked + MODELS * 100)
        await provider.began.wait()
    async with asyncio.timeout(LIMIT_S):
        await provider.ended.wait()
    assert (await gateway.audited("request.outcome"))[0]["result"] == "cancelled"
