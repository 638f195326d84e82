"""Every route, by every entrance, to every kind of provider that has it: what goes in comes out, byte for byte."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.answer_streams import ends_whole
from tests.support.https_client import Gateway, https_gateway
from tests.support.mock_provider import KEY, MockProvider, stream_of, whole_of
from tests.support.route_lab import ALLOWED, HEAD, PATHS, Way, request, section, two_ways, write_keys
from transport.identity.tls import client_context

OPENAI = ("chat", "responses", "embeddings")
KINDS = {"openai": OPENAI, "azure": OPENAI, "azure-v1": OPENAI, "anthropic": ("messages",)}
CASES = [(kind, what) for kind, routes in KINDS.items() for what in routes]
ENTRANCES = ("session", "https")
MODELS = {kind: f"of-{kind}" for kind in KINDS}


class Lab:
    """One gateway for all tests of this file: it is the same whoever asks."""

    def __init__(self, gateway: Gateway, providers: dict[str, MockProvider], ways: dict[str, Way]) -> None:
        self.gateway, self.providers, self.ways = gateway, providers, ways


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        providers = {kind: await stack.enter_async_context(MockProvider(kind, f"sk-of-{kind}")) for kind in KINDS}
        sections = [section(one, models=[MODELS[kind], "there"]) for kind, one in providers.items()]
        sections += [
            f'[[model]]\nname = "other-{kind}"\nproviders = ["{kind}"]\nas = "there"\n' for kind in KINDS
        ]
        names = [*MODELS.values(), *(f"other-{kind}" for kind in KINDS)]
        text = HEAD + "".join(sections) + ALLOWED.format(models=json.dumps(names))
        folder = tmp_path / "gateway"
        shutil.copytree(made, folder)
        write_keys(folder, **{kind: f"sk-of-{kind}" for kind in KINDS})
        gateway = await stack.enter_async_context(https_gateway(made, folder, providers["openai"], text=text))
        ways = await stack.enter_async_context(two_ways(gateway))
        yield Lab(gateway, providers, ways)


def path_of(kind: str, what: str, model: str) -> str:
    path = PATHS[what]
    if kind == "azure":
        by_name = "" if what == "responses" else f"/deployments/{model}"
        return f"/openai{by_name}{path[3:]}?api-version=2024-10-21"
    return f"/openai{path}" if kind == "azure-v1" else path


async def test_what_goes_in_comes_out_byte_for_byte(lab: Lab) -> None:
    for entrance in ENTRANCES:
        for kind, what in CASES:
            provider, where = lab.providers[kind], f"{what} to {kind} by {entrance}"
            for stream in (False, True) if what != "embeddings" else (False,):
                body = request(what, MODELS[kind], stream=stream)
                status, answer = await lab.ways[entrance].ask(PATHS[what], body)
                expected = b"".join(stream_of(what)) if stream else json.dumps(whole_of(what)).encode()
                assert (status, answer) == (200, expected), where
                assert provider.bodies[-1] == body, where
                assert provider.paths[-1] == path_of(kind, what, MODELS[kind]), where
                shown = {name.lower(): value for name, value in provider.headers[-1].items()}
                assert shown["content-type"] == "application/json"
                keys = {"openai": {"authorization": f"Bearer {provider.key}"}, "anthropic": {
                    "x-api-key": provider.key, "anthropic-version": "2023-06-01",
                }}.get(kind, {"api-key": provider.key})
                assert keys.items() <= shown.items(), where
                assert not {"authorization", "x-api-key", "api-key"} & shown.keys() - keys.keys(), where
                outcome = (await lab.gateway.audited("request.outcome", provider.calls and total(lab)))[-1]
                assert outcome["provider"] == kind and outcome["result"] == "answered"
                told = (outcome["input_tokens"], outcome["output_tokens"])
                assert told == (11, None if what == "embeddings" else 5), where


def total(lab: Lab) -> int:
    return sum(one.calls for one in lab.providers.values())


@pytest.mark.parametrize("entrance", ENTRANCES)
async def test_an_alias_changes_the_name_and_no_other_byte(lab: Lab, entrance: str) -> None:
    for kind, what in CASES:
        body = request(what, f"other-{kind}")
        assert (await lab.ways[entrance].ask(PATHS[what], body))[0] == 200
        assert lab.providers[kind].bodies[-1] == request(what, "there")
        assert lab.providers[kind].paths[-1] == path_of(kind, what, "there")


@pytest.mark.parametrize("entrance", ENTRANCES)
async def test_nothing_is_translated(lab: Lab, entrance: str) -> None:
    """A model on a route that its provider does not have is refused, and calls nobody."""
    for kind, model in MODELS.items():
        for what in set(PATHS) - set(KINDS[kind]):
            refused = await lab.ways[entrance].ask(PATHS[what], request(what, model))
            assert refused == (404, b"model_not_on_route")
    assert total(lab) == 0 and lab.gateway.audit("request.intent") == []


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(("mode", "expected"), [
    ("400", (400, b"provider_rejected")), ("401", (502, b"provider_auth")), ("429", (429, b"provider_rate_limited")),
    ("500", (502, b"provider_error")), ("529", (502, b"provider_error")), ("error_200", (502, b"provider_error")),
    ("quotes_key", (502, b"provider_garbled")), ("stream_cut", None), ("stream_no_done", None), ("stream_error", None),
])
async def test_every_failure_is_one_of_ours(
    lab: Lab, entrance: str, mode: str, expected: tuple[int, bytes] | None
) -> None:
    for kind, what in CASES:
        if (stream := mode.startswith("stream_")) and what == "embeddings":
            continue
        provider = lab.providers[kind]
        provider.mode = mode
        body = request(what, MODELS[kind], stream=stream)
        if expected is not None:
            assert await lab.ways[entrance].ask(PATHS[what], body) == expected, (kind, what)
            continue
        try:
            status, answer = await lab.ways[entrance].ask(PATHS[what], body)
        except Exception:  # the connection ended in the middle: no client takes that to be whole
            continue
        assert status == 502, (kind, what, answer)


@pytest.mark.parametrize("what", [one for one in PATHS if one != "embeddings"])
async def test_a_client_that_goes_away_stops_the_call(lab: Lab, what: str) -> None:
    """By HTTPS in any case; in a session if it cancels."""
    kind = "anthropic" if what == "messages" else "openai"
    provider = lab.providers[kind]
    provider.mode = "stream_stall"
    body = request(what, MODELS[kind], stream=True)
    asked = asyncio.create_task(lab.ways["https"].ask(PATHS[what], body))
    await provider.began.wait()
    asked.cancel()
    await provider.ended.wait()
    assert (await lab.gateway.audited("request.outcome"))[-1]["result"] in ("cancelled", "undelivered")
    provider.began.clear()
    provider.ended.clear()
    session: Any = lab.ways["session"]
    answer = session.begin(PATHS[what], body)
    await answer.started()
    answer.cancel()
    await provider.ended.wait()
    assert (await lab.gateway.audited("request.outcome", 2))[-1]["result"] == "cancelled"


@pytest.mark.parametrize("what", [one for one in PATHS if one != "embeddings"])
async def test_a_stream_that_we_end_says_why_in_its_api_s_words(lab: Lab, what: str) -> None:
    kind = "anthropic" if what == "messages" else "openai"
    provider = lab.providers[kind]
    provider.mode = "stream_stall"
    way: Any = lab.ways["https"]
    body = request(what, MODELS[kind], stream=True)
    host, _, port = lab.gateway.ready.https.rpartition(":")
    # As bytes of HTTP: a client library may lose what comes together with the end of a connection.
    context = client_context(way.client.bundle, way.client.svid)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    head = f"POST {PATHS[what]} HTTP/1.1\r\nHost: gw\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    seen = await reader.readuntil(stream_of(what)[1].rstrip())
    assert b" 200 " in seen
    await lab.gateway.admin("revoke", who="workload/report-1", reason="lost")
    seen += await reader.read()
    writer.transport.abort()
    event = seen.rpartition(b"\n\n" if what == "chat" else b"event: error\n")[0 if what == "chat" else 2]
    error = json.loads(event.rpartition(b"data: ")[2].split(b"\n")[0])
    assert error["error"]["code"] == "identity_refused" and not ends_whole(what, seen)
    if what != "chat":
        assert error["type"] == "error"


@pytest.mark.parametrize("what", PATHS)
async def test_an_answer_that_an_outbox_waits_for_goes_on_without_it(lab: Lab, what: str) -> None:
    kind = "anthropic" if what == "messages" else "openai"
    provider, stream = lab.providers[kind], what != "embeddings"
    provider.mode = "stream_stall" if stream else "timeout"
    body, request_id = request(what, MODELS[kind], stream=stream), b"i" * 16
    way: Any = lab.ways["session"]
    way.begin(PATHS[what], body, request_id)
    await provider.began.wait()
    await way.session.close()
    way.session = await way.anew()
    assert not provider.ended.is_set()
    provider.release.set()
    expected = b"".join(stream_of(what)) if stream else json.dumps(whole_of(what)).encode()
    assert await way.ask(PATHS[what], body, request_id) == (200, expected)
    assert provider.calls == 1, "it is the same call's answer"


async def test_models_are_listed_in_openai_s_shape(lab: Lab) -> None:
    client: Any = lab.ways["https"]
    status, answer = await client.client.ask(path="/v1/models", method="GET")
    assert status == 200 and answer["object"] == "list"
    assert {one["id"] for one in answer["data"]} == {*MODELS.values(), *(f"other-{kind}" for kind in KINDS)}
    assert KEY not in json.dumps(answer)


async def test_the_doctor_tries_each_provider_s_key(lab: Lab) -> None:
    found = await lab.gateway.admin("examine", stage="provider", timeout_s=20.0)
    assert found["status"] == "ok" and found["finding"].count("takes the key") == len(KINDS)
    (lab.gateway.folder / "anthropic.key").write_text("sk-of-somebody-else")
    found = await lab.gateway.admin("examine", stage="provider", timeout_s=20.0)
    number = list(KINDS).index("anthropic")
    assert found["status"] == "failed" and f"provider[{number}].key_file" in found["hint"]
    assert "anthropic at 127.0.0.1 refuses the key" in found["finding"] and ";" not in found["finding"]
    (lab.gateway.folder / "azure.key").write_text("sk-of-somebody-else")
    found = await lab.gateway.admin("examine", stage="provider", timeout_s=20.0)
    assert found["finding"].count("refuses the key") == 2, "each that fails is named"
    assert "sk-of" not in json.dumps(found)
