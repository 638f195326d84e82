"""The loopback API against OpenAI's shapes, and against those who should not use it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, web

from edge_client.answering import Assistant
from edge_client.api.guard import load_token
from edge_client.api.server import Names, make_runner
from edge_client.errors import BadUse, EngineFailed, ModelMissing, ModelUnusable
from tests.support.fake_engine import FakeChat, FakeEmbedder, FakeRelay
from transport import telemetry

TOKEN = "t" * 43
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def tracing() -> Iterator[telemetry.Telemetry]:
    made = telemetry.start("edge")
    yield made
    made.close()


class Api:
    """A running server, its engine and its gateway."""

    def __init__(self, client: ClientSession, chat: FakeChat, relay: FakeRelay, app: web.Application) -> None:
        self.client, self.chat, self.relay, self.app = client, chat, relay, app

    async def post(self, path: str, **body: Any) -> ClientResponse:
        return await self.client.post(path, data=io.BytesIO(json.dumps(body).encode()), headers=BEARER)

    async def chat_with(self, headers: dict[str, str] | None = None, **body: Any) -> ClientResponse:
        full = {"model": "local", "messages": [{"role": "user", "content": "hello"}], **body}
        raw = io.BytesIO(json.dumps(full).encode())
        return await self.client.post("/v1/chat/completions", data=raw, headers=BEARER | (headers or {}))


@pytest.fixture
async def api(tracing: telemetry.Telemetry) -> AsyncIterator[Api]:
    chat, relay = FakeChat(), FakeRelay()

    async def auto() -> Assistant:
        return Assistant(chat=chat, retrieval=None, relay=relay, tracing=tracing)

    async def embedder() -> FakeEmbedder:
        return FakeEmbedder()

    alone = Assistant(chat=chat, retrieval=None, relay=None, tracing=tracing)
    names = Names(alone=alone, auto=auto, alias="demo-cloud", granted=relay.models, embedder=embedder)
    runner = make_runner(names, TOKEN)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            assert runner.app is not None
            yield Api(client, chat, relay, runner.app)
    finally:
        await runner.cleanup()


def routes(api: Api) -> list[tuple[str, str]]:
    """Every method and path that this server has, also those that nobody thought of here."""
    found = [(route.method, route.resource.canonical) for route in api.app.router.routes() if route.resource]
    assert len(found) > 8, "the control: there are routes"
    return [(method, path.replace("{model}", "auto")) for method, path in found]


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_whole_answer(api: Api) -> None:
    answer = await api.chat_with(temperature=0.5, max_tokens=9, stop="END", seed=-1, unknown_field=1)
    assert answer.status == 200
    body = await answer.json()
    assert body["object"] == "chat.completion" and body["model"] == "local" and body["id"].startswith("chatcmpl-")
    assert body["choices"] == [{
        "index": 0, "message": {"role": "assistant", "content": "Six bar."}, "logprobs": None, "finish_reason": "stop",
    }]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert body["causeway"]["route"] == "local" and len(body["causeway"]["trace_id"]) == 32
    assert body["causeway"]["documents"] is None, "none were looked into"
    sampling = api.chat.sampled[0]
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.5, 9, ("END",))


async def test_a_streamed_answer(api: Api) -> None:
    answer = await api.chat_with(stream=True, stream_options={"include_usage": True})
    assert answer.status == 200 and answer.content_type == "text/event-stream"
    found = events(await answer.text())
    assert found.pop() == "[DONE]"
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert len({event["id"] for event in found}) == 1
    usage = found.pop()
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 9
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in found) == "Six bar."
    assert [event["choices"][0]["finish_reason"] for event in found] == [None, None, None, "stop"]


async def test_models_and_aliases(api: Api) -> None:
    listed = await (await api.client.get("/v1/models", headers=BEARER)).json()
    assert [model["id"] for model in listed["data"]] == ["local", "demo-cloud", "auto", "cloud-model"]
    assert (await (await api.chat_with(model="demo-cloud")).json())["model"] == "demo-cloud"
    assert (await (await api.client.get("/v1/models/auto", headers=BEARER)).json())["id"] == "auto"
    assert (await api.client.get("/v1/models/gpt-99", headers=BEARER)).status == 404
    unknown = await api.chat_with(model="gpt-99")
    assert unknown.status == 404 and (await unknown.json())["error"]["code"] == "model_not_found"


async def test_auto_relays_what_is_hard_and_local_never_does(api: Api) -> None:
    hard = [{"role": "user", "content": "Explain why the sky is blue, in four sentences"}]
    assert (await (await api.chat_with(model="local", messages=hard)).json())["causeway"]["route"] == "local"
    assert api.relay.requests == []
    body = await (await api.chat_with(model="auto", messages=hard)).json()
    assert body["causeway"]["route"] == "relay" and body["choices"][0]["message"]["content"] == "It stands."


async def test_parts_and_roles(api: Api) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    await api.chat_with(messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}])
    assert [(message.role, message.content) for message in api.chat.asked[0]] == [
        ("system", "be kind"), ("user", "hello"),
    ]


@pytest.mark.parametrize(("body", "status", "code"), [
    ({"messages": []}, 400, "bad_use"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "empty_prompt"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "bad_use"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "bad_use"),
    ({"messages": "hi"}, 400, "bad_use"),
    ({"n": 2}, 400, "bad_use"),
    ({"tools": [{}]}, 400, "bad_use"),
    ({"logprobs": True}, 400, "bad_use"),
    ({"logprobs": True, "top_logprobs": 3}, 400, "bad_use"),
    ({"functions": [{"name": "f"}]}, 400, "bad_use"),
    ({"function_call": "auto"}, 400, "bad_use"),
    ({"modalities": ["text", "audio"]}, 400, "bad_use"),
    ({"audio": {"voice": "alloy"}}, 400, "bad_use"),
    ({"web_search_options": {"search_context_size": "low"}}, 400, "bad_use"),
    ({"metadata": {"a": 1}}, 400, "bad_use"),
    ({"temperature": 9}, 400, "bad_use"),
    ({"max_tokens": 0}, 400, "bad_use"),
    ({"model": ""}, 400, "bad_use"),
    ({"messages": [{"role": "user", "content": "x" * ((1 << 20) + 1)}]}, 400, "context_length_exceeded"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests_are_errors_in_openais_shape(
    api: Api, body: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    answer = await api.chat_with(**body, stream=stream)
    assert answer.status == status
    error = (await answer.json())["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
    assert error["type"] == "invalid_request_error"


async def test_what_the_local_model_does_not_heed_is_said(api: Api) -> None:
    given: dict[str, Any] = {"frequency_penalty": 0.5, "presence_penalty": 0, "logit_bias": {"1": 5}, "user": "me"}
    note = ["the local model does not heed `frequency_penalty`, `logit_bias`"]
    assert (await (await api.chat_with(**given)).json())["causeway"]["notes"] == note
    streamed = await (await api.chat_with(**given, stream=True)).text()
    told = [json.loads(line[6:])["causeway"]["notes"] for line in streamed.split("\n\n") if '"causeway"' in line]
    assert told == [note, note]
    assert (await (await api.chat_with()).json())["causeway"]["notes"] == []


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[1]", b"[" * 100_000])
async def test_what_is_not_json_is_told_so(api: Api, raw: bytes) -> None:
    answer = await api.client.post("/v1/chat/completions", data=raw, headers=BEARER)
    assert answer.status == 400 and "code" in (await answer.json())["error"]


async def test_too_large_and_unknown_routes_have_the_same_shape(api: Api) -> None:
    answer = await api.client.post("/v1/chat/completions", data=io.BytesIO(b"x" * (3 << 20)), headers=BEARER)
    assert answer.status == 413 and "code" in (await answer.json())["error"]
    assert (await (await api.client.get("/v1/nothing", headers=BEARER)).json())["error"]["code"] == "not_found"


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": f"Basic {TOKEN}"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": "Bearer \u00fc"},
])  # fmt: skip
async def test_without_the_token_nobody_is_served(api: Api, headers: dict[str, str]) -> None:
    for method, path in [*routes(api), ("GET", "/v1/nothing"), ("GET", "/"), ("DELETE", "/v1/models")]:
        if path == "/healthz":
            continue
        answer = await api.client.request(method, path, headers=headers)
        assert answer.status == 401, path
        if method != "HEAD":
            assert (await answer.json())["error"]["code"] == "invalid_api_key"
    assert (await api.client.get("/healthz", headers=headers)).status == 200


@pytest.mark.parametrize(("name", "value"), [
    ("Host", "evil.example"), ("Host", "evil.example:8080"), ("Host", "127.0.0.1.evil.example"), ("Host", ""),
    ("Host", "localhost@evil.example"), ("Host", "["),
    ("Origin", "https://evil.example"), ("Origin", "null"), ("Origin", "http://localhost.evil.example"),
    ("Origin", "file://"),
])  # fmt: skip
async def test_foreign_pages_are_refused_even_with_the_token(api: Api, name: str, value: str) -> None:
    for method, path in routes(api):
        answer = await api.client.request(method, path, headers=BEARER | {name: value})
        assert answer.status == 403, path
    assert api.chat.asked == []


@pytest.mark.parametrize("headers", [{"Host": "localhost:8080"}, {"Host": "[::1]:1"}, {"Origin": "http://localhost:3"}])
async def test_this_machine_is_welcome(api: Api, headers: dict[str, str]) -> None:
    assert (await api.client.get("/v1/models", headers=BEARER | headers)).status == 200


async def test_an_error_before_the_first_word_is_a_status_and_later_an_event(api: Api) -> None:
    api.chat.error = EngineFailed("the local model stopped")
    whole = await api.chat_with()
    assert whole.status == 500 and (await whole.json())["error"]["code"] == "engine_failed"
    streamed = await api.chat_with(stream=True)
    found = events(await streamed.text())
    assert found[-1]["error"]["code"] == "engine_failed", "no [DONE] after an error"
    api.chat.words, api.chat.error = [], ModelMissing("no model", hint="install it")
    assert (await api.chat_with()).status == 503
    api.chat.error = ModelUnusable("no model that loads")
    assert (await api.chat_with()).status == 503


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_stops_the_model(api: Api, stream: bool) -> None:
    api.chat.endless = True
    request = asyncio.ensure_future(api.chat_with(stream=stream))
    if stream:
        answer = await request
        await answer.content.readany()
        answer.close()
    else:
        await api.chat.began.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    async with asyncio.timeout(60):
        await api.chat.closed.wait()


def test_the_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "api-token"
    token = load_token(path)
    assert len(token) >= 43 and load_token(path) == token
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(BadUse, match="other users"):
        load_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(BadUse, match="no token"):
        load_token(path)
