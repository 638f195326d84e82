"""Requests by plain HTTPS with an SVID: the same pipeline as sessions have, and the same ends."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway import api, response
from tests.support.ca import Ca
from tests.support.fake_triton import FakeTriton, tensors
from tests.support.gateway_lab import DOMAIN, chat
from tests.support.https_client import CHAT, CONFIG, Gateway, Workload, https_gateway, last_words
from tests.support.mock_provider import STREAM, WHOLE, MockProvider, chunk
from transport import telemetry
from transport.identity.tls import client_context

DONE = b"data: [DONE]"
REVOKED = {"who": "workload/report-1", "reason": "lost"}


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@pytest.fixture
async def gateway(made: Path, tmp_path: Path, provider: MockProvider) -> AsyncIterator[Gateway]:
    async with https_gateway(made, tmp_path / "gateway", provider) as gateway:
        yield gateway


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_a_client_with_an_svid_asks(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    assert await client.ask(chat()) == (200, WHOLE)
    assert gateway.provider.bodies == [chat()]
    (intent,), (outcome,) = gateway.audit("request.intent"), gateway.audit("request.outcome")
    assert intent["id"] == f"spiffe://{DOMAIN}/workload/report-1" and intent["enrolment"] == client.enrolment
    assert intent["decision"] == "allowed by allow[0]" or intent["decision"].startswith("allowed")
    assert (outcome["result"], outcome["input_tokens"], outcome["output_tokens"]) == ("answered", 11, 5)
    assert outcome["bytes_out"] == len(json.dumps(WHOLE))


async def test_a_client_that_cannot_leave_its_key_out_says_svid(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    named = {"Authorization": "Bearer svid"}
    assert (await client.ask(chat(), headers=named))[0] == 200
    assert code(await client.ask(chat(), headers=named, bare=True)) == (401, "identity_unknown")
    for other in ("Bearer sk-123", "Bearer", "svid", "Basic c3ZpZA=="):  # what is meant as a token is none
        assert code(await client.ask(chat(), headers={"Authorization": other})) == (401, "invalid_token")


async def test_a_stream_comes_as_the_provider_sends_it(gateway: Gateway, provider: MockProvider) -> None:
    client = await Workload.joined(gateway)
    provider.mode = "stream_stall"
    async with client.client() as http, http.post(CHAT, json=json.loads(chat(stream=True))) as answer:
        assert answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"
        seen = b""
        while STREAM[1] not in seen:  # two events are here while the provider holds back the third
            seen += await answer.content.readany()
        assert DONE not in seen
        provider.release.set()
        assert seen + await answer.read() == b"".join(STREAM)


async def test_models_are_those_that_policy_allows(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    status, answer = await client.ask(path="/v1/models", method="GET")
    assert status == 200 and [one["id"] for one in answer["data"]] == ["small"]


async def test_tensors_go_to_the_server_of_models(made: Path, tmp_path: Path, provider: MockProvider) -> None:
    async with FakeTriton() as triton:
        inference = f'[inference]\nbase_url = "{triton.base_url}"\nmodels = ["defect-detection"]\n'
        text = CONFIG.replace("[limits]", inference + "[limits]")
        text = text.replace('["small"]', '["small", "defect-detection"]')
        async with https_gateway(made, tmp_path / "gateway", provider, text=text) as gateway:
            client = await Workload.joined(gateway)
            status, answer = await client.ask(tensors(0.1, 0.9), "/v2/models/defect-detection/infer")
            assert status == 200 and answer["outputs"][0]["data"] == [True]
            assert triton.paths == ["/v2/models/defect-detection/infer"]
            assert code(await client.ask(tensors(0.1), "/v2/models/other/infer")) == (403, "model_not_allowed")


async def test_a_trace_is_taken_up_and_given_back(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    tracing = telemetry.start("edge")
    with tracing.span("ask") as span:
        parent = telemetry.traceparent_of(span)
    tracing.close()
    trace_id = telemetry.trace_id_of(span)
    async with client.client() as http, http.post(CHAT, data=chat(), headers={
        "Content-Type": "application/json", "Traceparent": parent,
    }) as answer:
        assert answer.headers["Traceparent"].startswith(f"00-{trace_id}-")
        assert answer.headers["Traceparent"] != parent and answer.headers["X-Request-Id"] == trace_id
        await answer.read()
    await gateway.audited("request.outcome")
    async with asyncio.timeout(60):
        while not (spans := await spans_of(gateway, trace_id)):  # noqa: ASYNC110 - what is waited for is in a database
            await asyncio.sleep(0)
    assert [span["role"] for span in spans] == ["gateway", "provider"]
    assert spans[0]["parent_id"] == parent.split("-")[2]
    assert code(await client.ask(b"{}", headers={"Traceparent": parent}))[0] == 400
    status, refused = await client.ask(b"{}", headers={"Traceparent": parent})
    assert status == 400 and refused["error"]["trace_id"] == trace_id


async def spans_of(gateway: Gateway, trace_id: str) -> list[dict[str, Any]]:
    from relay.gateway.control import RemoteError

    try:
        return list((await gateway.admin("trace", trace_id=trace_id))["spans"])
    except RemoteError:
        return []


@pytest.mark.parametrize(("body", "headers", "expected"), [
    (chat("large"), {}, (403, "model_not_allowed")),
    (b'{"model": "small"}', {}, (400, "invalid_request")),
    (b'{"model": "small", "model": "small", "messages": []}', {}, (400, "ambiguous_json")),
    (b"", {}, (400, "malformed_json")),
    (chat(), {"Content-Type": "text/plain"}, (415, "unsupported_content_type")),
    (chat(), {"Content-Encoding": "gzip"}, (415, "unsupported_encoding")),
])
async def test_what_is_refused_calls_nobody(
    gateway: Gateway, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    client = await Workload.joined(gateway)
    status, answer = await client.ask(body, headers=headers)
    assert (status, answer["error"]["code"]) == expected
    assert len(answer["error"]["trace_id"]) == 32 and answer["error"]["type"] == "invalid_request_error"
    assert gateway.provider.calls == 0


async def test_a_body_that_is_too_large_is_not_read(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    host, _, port = gateway.ready.https.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=client_context(client.bundle, client.svid))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: gw\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {(1 << 20) + 1}\r\n\r\n".encode())
    assert b" 413 " in await reader.readline(), "and nothing of it was sent"
    writer.close()


async def test_a_body_without_a_length_is_bounded_too(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 << 20:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    async with client.client() as http:
        try:
            async with http.post(CHAT, data=endless()) as answer:
                assert answer.status == 413
        except aiohttp.ClientError:
            pass  # it was still sending when the connection was ended
    assert sent < 32 << 20 and gateway.provider.calls == 0


async def test_a_provider_that_fails_is_told_as_in_a_session(gateway: Gateway, provider: MockProvider) -> None:
    client = await Workload.joined(gateway)
    provider.mode = "429"
    assert code(await client.ask(chat())) == (429, "provider_rate_limited")
    provider.mode = "cut"
    assert code(await client.ask(chat())) == (502, "provider_garbled")
    provider.stream = [STREAM[0], STREAM[1], b"this is no event\n\n"]
    async with client.stalled() as stream:
        provider.release.set()
        assert await last_words(stream) == "provider_garbled"


# --- who asks ---------------------------------------------------------------------------------------------------------


async def test_nobody_asks_without_an_svid(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/v2/models/a/infer", "POST")):
        assert code(await client.ask(chat(), path, method=method, bare=True)) == (401, "identity_unknown")
    assert {line["reason"] for line in gateway.audit("https.denied")} == {"certificate: none"}
    assert gateway.provider.calls == 0


async def test_nor_with_one_that_is_not_for_this(gateway: Gateway) -> None:
    hop = await Workload.joined(gateway, "hop/pi")
    assert code(await hop.ask(chat())) == (403, "identity_refused")
    (line,) = gateway.audit("https.denied")
    assert line["reason"] == "certificate: role" and line["id"].endswith("/hop/pi")


@pytest.mark.parametrize("defect", ["ca", "expired", "not yet valid", "domain", "role"])
async def test_a_certificate_that_is_no_svid_of_ours_ends_the_handshake(gateway: Gateway, defect: str) -> None:
    client = await Workload.joined(gateway)
    other = Ca("other.example") if defect == "domain" else Ca()
    path = "authority/x" if defect == "role" else "workload/report-1"
    svid = other.issue(path, start={"expired": -7200.0, "not yet valid": 3600.0}.get(defect, -300.0))
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        async with client.client(svid) as http, http.post(CHAT, data=chat()) as answer:
            await answer.read()
    assert gateway.provider.calls == 0


async def test_tls_1_2_and_tickets_are_not_spoken(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    context = client_context(client.bundle, client.svid)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(gateway.url, connector=connector) as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get("/v1/models")
    host, _, port = gateway.url.removeprefix("https://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=client_context(client.bundle, client.svid))
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    tls = writer.get_extra_info("ssl_object")
    assert tls.version() == "TLSv1.3"
    assert tls.session is None or not tls.session.has_ticket
    writer.close()


async def test_who_is_revoked_is_refused_on_a_connection_that_stands(gateway: Gateway) -> None:
    client = await Workload.joined(gateway)
    async with client.client() as http:
        async with http.get("/v1/models") as answer:
            assert answer.status == 200
            await answer.read()
        await gateway.admin("revoke", **REVOKED)
        async with http.get("/v1/models") as answer:
            assert answer.status == 403 and (await answer.json())["error"]["code"] == "identity_refused"
    (line,) = gateway.audit("https.denied")
    assert line["reason"] == "certificate: registration" and line["id"] == client.id
    assert code(await client.ask(chat())) == (403, "identity_refused")


async def test_an_svid_that_runs_out_is_refused_on_a_connection_that_stands(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    import time

    ahead = 0.0
    async with https_gateway(made, tmp_path / "gateway", provider, clock=lambda: time.time() + ahead) as gateway:
        client = await Workload.joined(gateway)
        async with client.client() as http:
            for later, expected in ((3290.0, 200), (3361.0, 401)):  # 55 minutes and the leeway of one
                ahead = later
                async with http.get("/v1/models") as answer:
                    assert answer.status == expected
                    said = await answer.json()
            assert said["error"]["code"] == "identity_expired"


# --- ends -------------------------------------------------------------------------------------------------------------


async def stalled(client: Workload, http: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    """An answer that has begun, and of which no more comes."""
    client.gateway.provider.mode = "stream_stall"
    answer = await http.post(CHAT, json=json.loads(chat(stream=True)))
    assert answer.status == 200
    seen = b""
    while STREAM[1] not in seen:
        seen += await answer.content.readany()
    return answer


async def test_revocation_cuts_a_running_stream_and_the_provider_s_call(
    gateway: Gateway, provider: MockProvider
) -> None:
    client, other = await Workload.joined(gateway), await Workload.joined(gateway, "workload/other")
    async with client.stalled() as answer, other.client() as theirs:
        untouched = await stalled(other, theirs)
        provider.ended.clear()
        await gateway.admin("revoke", **REVOKED)
        assert await last_words(answer) == "identity_refused"
        await provider.ended.wait()
        (outcome,) = await gateway.audited("request.outcome")
        assert outcome["result"] == "cancelled" and outcome["id"] == client.id
        provider.release.set()
        assert DONE in await untouched.read()


async def test_a_policy_that_changes_cuts_a_stream_whose_provider_is_silent(
    gateway: Gateway, provider: MockProvider
) -> None:
    client = await Workload.joined(gateway)
    async with client.stalled() as answer:
        gateway.allow('[[allow]]\nid = "/edge/*"\nmodels = ["small"]\n')
        await gateway.admin("policy_reload")
        assert await last_words(answer) == "policy_changed"
        await provider.ended.wait()
    (outcome,) = await gateway.audited("request.outcome")
    assert outcome["result"] == "cancelled"
    assert code(await client.ask(chat())) == (403, "not_allowed")


async def test_a_policy_that_still_allows_it_cuts_nothing(gateway: Gateway, provider: MockProvider) -> None:
    client = await Workload.joined(gateway)
    async with client.client() as http:
        answer = await stalled(client, http)
        gateway.allow('[[allow]]\nid = "/workload/report-1"\nmodels = ["small"]\n')
        assert (await gateway.admin("policy_reload"))["changed"]
        provider.release.set()
        assert DONE in await answer.read()


async def test_a_client_that_goes_away_ends_the_provider_s_call(gateway: Gateway, provider: MockProvider) -> None:
    client = await Workload.joined(gateway)
    async with client.client() as http:
        (await stalled(client, http)).close()
        await provider.ended.wait()
    (outcome,) = await gateway.audited("request.outcome")
    assert outcome["result"] in ("cancelled", "undelivered")


async def test_also_one_that_waits_for_a_whole_answer(gateway: Gateway, provider: MockProvider) -> None:
    client = await Workload.joined(gateway)
    provider.mode = "timeout"
    async with client.client() as http:
        asking = asyncio.create_task(http.post(CHAT, json=json.loads(chat())))
        await provider.began.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await provider.ended.wait()
    (outcome,) = await gateway.audited("request.outcome")
    assert outcome["result"] == "cancelled"


async def test_a_client_that_does_not_read_holds_the_provider_back(
    gateway: Gateway, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB wait at the provider: what the gateway has taken of it is no more than buffers hold. And it ends."""
    stall = asyncio.Event()
    provider.stream = [chunk("x" * 65_536)] * 1_024
    taken = 0
    pass_on = response.HttpSink.write

    async def counted(self: response.HttpSink, data: bytes) -> None:
        nonlocal taken
        taken += len(data)
        writing = asyncio.ensure_future(pass_on(self, data))
        done, _ = await asyncio.wait({writing}, timeout=0.5)
        if not done:
            stall.set()
        await writing

    monkeypatch.setattr(response.HttpSink, "write", counted)
    client = await Workload.joined(gateway)
    async with client.client() as http:
        answer = await http.post(CHAT, json=json.loads(chat(stream=True)))
        await stall.wait()
        assert taken < 24 << 20
        answer.close()
        await provider.ended.wait()
    (outcome,) = await gateway.audited("request.outcome")
    assert outcome["result"] in ("cancelled", "undelivered")


async def test_a_client_that_never_reads_is_let_go(
    gateway: Gateway, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response.HttpSink.__init__, "__kwdefaults__", {"stall_s": 0.2})
    provider.stream = [chunk("x" * 65_536)] * 1_024
    client = await Workload.joined(gateway)
    async with client.client() as http:
        answer = await http.post(CHAT, json=json.loads(chat(stream=True)))
        (outcome,) = await gateway.audited("request.outcome")
        assert outcome["result"] == "undelivered"
        answer.close()


async def test_one_identity_has_a_share_of_what_runs(
    gateway: Gateway, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = await Workload.joined(gateway), await Workload.joined(gateway, "workload/other")
    many = api.ApiLimits().per_identity
    provider.mode = "timeout"
    async with client.client() as http:
        asking = [asyncio.create_task(http.post(CHAT, json=json.loads(chat()))) for _ in range(many)]
        while provider.calls < many:  # noqa: ASYNC110
            await asyncio.sleep(0)
        status, refused = await client.ask(chat())
        assert (status, refused["error"]["code"]) == (429, "too_many_requests")
        assert (await other.ask(path="/v1/models", method="GET"))[0] == 200
        provider.release.set()
        for one in asking:
            answer = await one
            assert answer.status == 200
            answer.release()
        await gateway.audited("request.outcome", many + 1)
        while (await client.ask(chat()))[0] != 200:  # the last of them leaves its place behind its record
            pass


async def test_a_gateway_that_stops_lets_answers_finish(gateway: Gateway, provider: MockProvider) -> None:
    client = await Workload.joined(gateway)
    async with client.client() as http:
        answer = await stalled(client, http)
        gateway.stop.set()
        await asyncio.sleep(0)
        provider.release.set()
        assert DONE in await answer.read()
    await gateway.task
    assert [line["result"] for line in gateway.audit("request.outcome")] == ["answered"]
