"""The published API, by both ways in: malformed bodies call nobody, requests made from the schema break nothing."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from relay.gateway.checks.openapi import PATHS, schemas
from relay.gateway.checks.problems import MEDIA_TYPE, PROBLEMS
from tests.support.gateway_lab import DOMAIN, chat
from tests.support.https_client import CHAT, CONFIG, Gateway, Workload, https_gateway
from tests.support.json_cases import Case, cases
from tests.support.mock_provider import MockProvider
from transport.edge_session import EdgeSession, obtain
from transport.errors import RequestRefused
from transport.identity.join import bundle_from_joined_root
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.verify import verify_svid
from transport.initiator import Joining, SvidLogin
from transport.links.base import Endpoint, connect
from transport.messages import RequestHeader, encode_header
from transport.primitives import Secret, SigningKey, random_bytes

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
TOKEN = "a-token-of-24-characters"
# So many malformed requests look like what they are: the device would be in quarantine before it is through.
BOTH = CONFIG + """
[anomaly]
warn = 1e6
throttle = 2e6
quarantine = 3e6
"""
BOTH = BOTH.replace("[provider]", """insecure = "127.0.0.1:0"
session = "tcp:127.0.0.1:0"
[inference]
base_url = "{base_url}"
key_file = "provider.key"
models = ["small"]
[[provider]]
api = "anthropic"
base_url = "{base_url}"
key_file = "provider.key"
models = ["small"]
[[provider]]
models = ["small"]""")  # all asked at one address, so that nobody is asked unseen
AT_ONCE = 8
EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "6"))  # few, since making one takes longer than asking
MESSAGES = "/v1/messages"


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@pytest.fixture
async def gateway(made: Path, tmp_path: Path, provider: MockProvider) -> AsyncIterator[Gateway]:
    async with https_gateway(
        made, tmp_path / "gateway", provider, text=BOTH, loopback_token=Secret(TOKEN.encode())
    ) as gateway:
        yield gateway


@contextlib.asynccontextmanager
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(f"http://{gateway.ready.insecure}", headers=headers,
        connector=connector) as client:
        yield client


async def by_https(client: aiohttp.ClientSession, body: bytes, route: str = CHAT) -> str:
    """The code of the refusal, "" if there is an answer."""
    async with client.post(route, data=body) as response:
        told = json.loads(await response.read())
        if response.status == 200:
            return ""
        code = str(told["error"]["code"])
        assert response.status == told["status"] == PROBLEMS[code].status
        return code


async def by_session(session: EdgeSession, body: bytes) -> str:
    header = encode_header(RequestHeader("POST", CHAT, "application/json", "", len(body), int(time.time()) + 600))
    try:
        answer = await session.request(random_bytes(16), header, body).started()
        assert b"".join([part async for part in answer])
    except RequestRefused as refused:
        assert refused.status == PROBLEMS[refused.reason].status
        return refused.reason
    return ""


async def opened(gateway: Gateway) -> EdgeSession:
    """Of an edge that has joined for it."""
    invitation, endpoint = await gateway.invite("edge/lap-1"), Endpoint.parse(gateway.ready.session)
    device, key = SigningKey.generate(), SigningKey.generate()
    joining = Joining(invitation, device.public.spki, make_csr(key))
    issued = await obtain(await connect(endpoint), joining, device, lambda chain, now: verify_svid(
        chain, bundle_from_joined_root(invitation, chain), role="gateway", now=now
    ))
    bundle = TrustBundle(DOMAIN, tuple(issued.roots), issued.bundle_sequence)
    svid = Svid.from_chain(issued.chain, key)
    return await EdgeSession(
        await connect(endpoint), SvidLogin(svid.chain, svid.not_after), key,
        lambda chain, now: verify_svid(chain, bundle, role="gateway", now=now),
    ).open()


async def verdicts(ask: Any, given: list[Case]) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting = list(given)

    async def work() -> None:
        while waiting:
            case = waiting.pop()
            found[case.name] = await ask(case.body)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return found


async def test_malformed_bodies_call_nobody_by_https(gateway: Gateway) -> None:
    refused, taken = [one for one in cases() if one.code], [one for one in cases() if not one.code]
    async with client(gateway) as asking:
        found = await verdicts(lambda body: by_https(asking, body), refused)
        assert found == {case.name: case.code for case in refused}
        assert gateway.provider.calls == 0 and not gateway.audit("request.intent")
        found = await verdicts(lambda body: by_https(asking, body), taken)
    assert found == dict.fromkeys(found, "") and gateway.provider.calls == len(taken)
    assert sorted(gateway.provider.bodies) == sorted(case.body for case in taken)


async def test_malformed_bodies_call_nobody_by_a_session(gateway: Gateway) -> None:
    some = [case for number, case in enumerate(cases()) if number % 4 == 0 or case.name[0] == "i"]
    refused = [case for case in some if case.code]
    session = await opened(gateway)
    found = await verdicts(lambda body: by_session(session, body), refused)
    assert found == {case.name: case.code for case in refused} and gateway.provider.calls == 0
    found = await verdicts(lambda body: by_session(session, body), [case for case in some if not case.code])
    assert found == dict.fromkeys(found, "") and gateway.provider.calls == len(found) > 10
    await session.close()


async def test_the_other_endpoints_read_alike(gateway: Gateway) -> None:
    some = [case for case in cases() if case.code][::16]
    async with client(gateway) as asking:
        for route in ("/v1/responses", "/v1/embeddings", MESSAGES):
            for case in some:
                assert await by_https(asking, case.body, route) == case.code, (route, case.name)
    assert gateway.provider.calls == 0


@pytest.mark.parametrize("operation", PATHS)
async def test_what_is_made_against_the_schema_is_refused(gateway: Gateway, operation: str) -> None:
    """By schemathesis, from the committed document: bodies that do not fit, each a typed refusal and no call."""
    api = schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text()))
    fits = jsonschema_rs.validator_for(schemas()[operation])
    asked = []

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(api[PATHS[operation]]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def ask(case: schemathesis.Case) -> None:
        case.path_parameters = {"name": "small"} if case.path_parameters else {}
        if isinstance(case.body, dict) and not fits.is_valid(case.body | {"model": "small"}):
            case.body |= {"model": "small"} if "model" in case.body else {}  # which this device may use
        response = case.call(base_url=f"http://{gateway.ready.insecure}", headers={"Authorization": f"Bearer {TOKEN}"})
        asked.append(response.status_code)
        assert 400 <= response.status_code < 500, response.text
        told = response.json()
        assert told["error"]["code"] in PROBLEMS and told["status"] == response.status_code
        case.validate_response(response, checks=[
            not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance,
        ])

    await asyncio.to_thread(ask)
    assert len(asked) >= EXAMPLES and gateway.provider.calls == 0


async def test_what_is_made_from_the_schema_breaks_nothing(gateway: Gateway) -> None:
    """Bodies that fit are answered, or refused for what a schema cannot say."""
    api = schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text()))
    codes = []

    @settings(max_examples=6 * EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(api[CHAT]["POST"].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        case.body["model"] = "small"  # which this device may use
        response = case.call(base_url=f"http://{gateway.ready.insecure}", headers={"Authorization": f"Bearer {TOKEN}"})
        codes.append("" if response.status_code == 200 else response.json()["error"]["code"])
        assert response.status_code < 500

    await asyncio.to_thread(ask)
    assert set(codes) <= {"", "empty_prompt", "malformed_json", "ambiguous_json", "json_too_deep"}
    assert codes.count("") == gateway.provider.calls > EXAMPLES


async def test_it_tells_what_it_takes(gateway: Gateway) -> None:
    workload = await Workload.joined(gateway)
    status, document = await workload.ask(path="/openapi.json", method="GET", bare=True)
    assert status == 200 and document == json.loads(DOCUMENT.read_text())
    for operation in PATHS:
        status, schema = await workload.ask(path=f"/schemas/{operation}.json", method="GET", bare=True)
        assert status == 200 and schema["$id"] == f"/schemas/{operation}.json"
        assert jsonschema_rs.meta.is_valid(schema)
    fits = jsonschema_rs.validator_for((await workload.ask(path="/schemas/chat.json", method="GET", bare=True))[1])
    assert fits.is_valid(json.loads(chat(stream=True))) and not fits.is_valid(json.loads(chat(shape=1)))
    status, refusal = await workload.ask(path="/schemas/none.json", method="GET", bare=True)
    assert (status, refusal["error"]["code"]) == (404, "unknown_route")


async def test_what_is_not_there_is_refused_in_the_same_words(gateway: Gateway) -> None:
    async with client(gateway) as asking:
        for method, path, code in (
            ("POST", "/v1/images", "unknown_route"), ("GET", CHAT, "method_not_allowed"),
            ("PUT", MESSAGES, "method_not_allowed"), ("POST", "/v2/models/a%2Fb/infer", "unknown_route"),
        ):
            async with asking.request(method, path) as response:
                told = await response.json()
                assert (response.status, told["error"]["code"], told["status"]) == (
                    PROBLEMS[code].status, code, response.status
                ), path
                assert response.headers.get("Allow") == ("POST" if code == "method_not_allowed" else None)
    assert gateway.provider.calls == 0


async def test_a_refusal_is_read_by_everybody(gateway: Gateway) -> None:
    workload = await Workload.joined(gateway)
    status, told = await workload.ask(chat(temperature="CANARY"))
    trace = told["error"]["trace_id"]
    detail = "the request has a field that is not valid: temperature"
    assert (status, told) == (400, {
        "error": {"message": detail, "type": "invalid_request_error", "param": "temperature", "code": "invalid_request",
                  "trace_id": trace},
        "type": "/openapi.json#/x-problems/invalid_request", "title": PROBLEMS["invalid_request"].title, "status": 400,
        "detail": detail, "instance": f"urn:causeway:trace:{trace}",
    })
    assert "invalid_request" in json.loads(DOCUMENT.read_text())["x-problems"]
    status, told = await workload.ask(b'{"model":"small","max_tokens":0,"messages":[]}', MESSAGES)
    assert (status, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
    assert told["error"]["code"] == "invalid_request" and told["request_id"] == told["error"]["trace_id"]
    async with workload.client() as asking:
        for accept, kind in {"application/json": "application/json", f"{MEDIA_TYPE}, */*": MEDIA_TYPE}.items():
            headers = {"Content-Type": "application/json", "Accept": accept}
            async with asking.post(CHAT, data=b"{", headers=headers) as response:
                assert response.content_type == kind and response.headers["X-Should-Retry"] == "false"
                assert (await response.json(content_type=None))["error"]["code"] == "malformed_json"


async def raw(gateway: Gateway, *requests: bytes) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """Sends `requests` at once by one connection: status line, fields and body of each answer, up to its end."""
    reader, writer = await asyncio.open_connection(*gateway.ready.insecure.split(":"))
    writer.write(b"".join(requests))
    answers = []
    async with asyncio.timeout(20):
        for request in requests:
            if b"Expect" in request:
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            line, *rest = (await reader.readuntil(b"\r\n\r\n")).rstrip().split(b"\r\n")
            fields = {name: value for name, _, value in (field.partition(b": ") for field in rest)}
            assert len(fields) == len(rest)
            answers.append((line, fields, await reader.readexactly(int(fields[b"Content-Length"]))))
        if answers[-1][1].get(b"Connection") == b"close":
            assert not await reader.read()
    writer.close()
    return answers


def by_hand(fields: str = "", *, version: str = "1.1", path: str = CHAT) -> bytes:
    body = chat()
    return (
        f"POST {path} HTTP/{version}\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\n{fields}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def test_whole_answers_have_one_head_however_they_are_asked_for(gateway: Gateway) -> None:
    """The usual way is a short one, past the router and the server's own writing of a head."""
    answers = await raw(gateway, by_hand(), by_hand(), by_hand("Connection: close\r\n"))
    (line, usual, body), again, (_, last, _) = answers
    assert line == again[0] == b"HTTP/1.1 200 OK" and json.loads(body)["object"] == "chat.completion"
    own = {b"Date", b"X-Request-Id", b"Traceparent", b"RateLimit"}
    assert usual.keys() == again[1].keys() and own - {b"RateLimit"} < usual.keys()
    for other in (
        last, (await raw(gateway, by_hand(path=f"{CHAT}?a=b")))[0][1],
        (await raw(gateway, by_hand("Expect: 100-continue\r\n")))[0][1],
        (await raw(gateway, by_hand("Connection: keep-alive\r\n", version="1.0")))[0][1],
    ):
        assert {name: value for name, value in other.items() if name not in own | {b"Connection"}} == {
            name: value for name, value in usual.items() if name not in own}
    assert gateway.provider.calls == 6
