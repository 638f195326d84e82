"""What programs send through the loopback API to a model behind the gateway, and what they hear when that fails."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, web

from edge_client.answering import Assistant
from edge_client.api.names import Names
from edge_client.api.server import make_runner
from edge_client.errors import GatewayRefused, GaveUp, Interrupted, NotJoined, ProviderFailed
from tests.support.fake_engine import FakeChat, FakeRelay, sse
from transport import telemetry

TOKEN = "t" * 43
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SPEC = Path(__file__).resolve().parents[2] / "docs" / "SPEC.md"
TOOLS = [{"type": "function", "function": {"name": "pressure", "parameters": {"type": "object"}}}]


def calls(*deltas: dict[str, Any]) -> list[bytes]:
    """A streamed answer that calls tools, as a provider sends it."""
    choices = [{"index": 0, "delta": {"tool_calls": [delta]}, "finish_reason": None} for delta in deltas]
    last = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    events = [json.dumps({"choices": [choice]}).encode() for choice in (*choices, last)]
    return [*(b"data: " + event + b"\n\n" for event in events), b"data: [DONE]\n\n"]


DELTAS = (
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "pressure", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"pump": '}},
    {"index": 0, "function": {"arguments": '"P-101"}'}},
    {"index": 1, "id": "call_2", "type": "function", "function": {"name": "pressure", "arguments": "{}"}},
)


class Api:
    def __init__(self, client: ClientSession, chat: FakeChat) -> None:
        self.client, self.chat, self.relay, self.joined = client, chat, FakeRelay(), True

    async def ask(self, content: str = "hello", *, path: str = "/v1/chat/completions", **body: Any) -> ClientResponse:
        full = {"model": "cloud-model", "messages": [{"role": "user", "content": content}], **body}
        return await self.client.post(path, data=io.BytesIO(json.dumps(full).encode()), headers=BEARER)

    @property
    def sent(self) -> Any:
        """The body of the only request that left."""
        (request,) = self.relay.requests
        return json.loads(request[2])


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    tracing = telemetry.start("edge")
    chat = FakeChat()

    async def auto() -> Assistant:
        return Assistant(chat=chat, retrieval=None, relay=made.relay if made.joined else None, tracing=tracing)

    async def granted() -> list[str]:
        return await made.relay.models()

    alone = Assistant(chat=chat, retrieval=None, relay=None, tracing=tracing)
    runner = make_runner(Names(alone=alone, auto=auto, granted=granted), TOKEN)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            made = Api(client, chat)
            yield made
    finally:
        await runner.cleanup()
        tracing.close()


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_model_of_the_gateway_is_asked_by_its_name(api: Api) -> None:
    body = await (await api.ask()).json()
    assert body["model"] == "cloud-model" and body["choices"][0]["message"]["content"] == "It stands."
    assert body["causeway"]["route"] == "relay" and body["causeway"]["rule"] == "flag-relay"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert api.sent["model"] == "cloud-model" and api.chat.asked == []


async def test_what_the_client_gave_travels_as_it_is_and_nothing_else(api: Api) -> None:
    given = {
        "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "pressure"}}, "seed": -7,
        "parallel_tool_calls": False, "response_format": {"type": "json_object"}, "stop": ["END"], "temperature": 0,
        "top_p": 0.5, "max_tokens": 9, "max_completion_tokens": 8, "frequency_penalty": 0.25, "presence_penalty": 0.5,
        "logit_bias": {"50256": -100}, "reasoning_effort": "low", "verbosity": "low",
        "user": "me", "safety_identifier": "us", "metadata": {"job": "7"}, "store": False, "service_tier": "flex",
        "prediction": {"type": "content", "content": "hi"},
    }
    idle: dict[str, Any] = {"n": 1, "logprobs": False, "top_logprobs": 0, "functions": [], "modalities": ["text"]}
    answer = await api.ask(**given, **idle, an_unknown_field=1)
    assert answer.status == 200 and (await answer.json())["causeway"]["notes"] == []
    sent = api.sent
    assert sent.pop("messages") == [{"role": "user", "content": "hello"}]
    assert sent.pop("stream") is True and sent.pop("stream_options") == {"include_usage": True}
    assert sent.pop("model") == "cloud-model"
    assert sent == given


async def test_what_says_who_asks_is_looked_through_too(api: Api) -> None:
    answer = await api.ask(user="my password is hunter22")
    assert (await answer.json())["error"]["code"] == "kept_local" and api.relay.requests == []


async def test_tool_calls_come_back_whole_and_streamed(api: Api) -> None:
    api.relay = FakeRelay(calls(*DELTAS))
    (choice,) = (await (await api.ask(tools=TOOLS)).json())["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "pressure", "arguments": '{"pump": "P-101"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "pressure", "arguments": "{}"}},
    ]
    *found, done = events(await (await api.ask(tools=TOOLS, stream=True)).text())
    deltas = [event["choices"][0]["delta"] for event in found]
    assert done == "[DONE]" and found[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [call for delta in deltas for call in delta.get("tool_calls", ())] == list(DELTAS)


async def test_tool_calls_of_a_whole_answer(api: Api) -> None:
    message = {"content": None, "tool_calls": [{key: DELTAS[0][key] for key in ("id", "type", "function")}]}
    answer = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode()
    api.relay = FakeRelay([answer], content_type="application/json")
    (choice,) = (await (await api.ask(tools=TOOLS)).json())["choices"]
    assert choice["message"]["tool_calls"] == message["tool_calls"]


@pytest.mark.parametrize("delta", [
    {"index": "0"}, {"index": 0, "function": "f"}, {"index": 0, "function": ["SECRETTEXT"]},
])  # fmt: skip
async def test_tool_calls_that_are_none_are_the_providers_fault(api: Api, delta: dict[str, Any]) -> None:
    api.relay = FakeRelay(calls(delta))
    answer = await api.ask(tools=TOOLS)
    assert answer.status == 502 and "SECRETTEXT" not in await answer.text()


async def test_the_turns_of_a_tool_travel(api: Api) -> None:
    called = [{"id": "call_1", "type": "function", "function": {"name": "pressure", "arguments": "{}"}}]
    messages = [
        {"role": "user", "content": "how much?"}, {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ]
    assert (await api.ask(messages=messages)).status == 200
    assert api.sent["messages"] == messages
    local = await api.ask(messages=messages, model="local")
    assert local.status == 200
    assert [(m.role, m.content, m.extras) for m in api.chat.asked[0]] == [
        ("user", "how much?", {}), ("assistant", "I call pressure.", {}), ("user", "The tool gave: ", {}),
    ]


async def test_auto_relays_tools_and_never_what_is_private(api: Api) -> None:
    body = await (await api.ask("hello", model="auto", tools=TOOLS)).json()
    assert body["causeway"]["rule"] == "tools" and len(api.relay.requests) == 1
    body = await (await api.ask("hello", model="auto", tools=TOOLS, tool_choice="none")).json()
    assert body["causeway"]["route"] == "local"
    private = await (await api.ask("my password is hunter22", model="auto", tools=TOOLS)).json()
    assert private["causeway"]["rule"] == "private" and "none of the tools" in private["causeway"]["reasons"][-1]
    forced = await api.ask("my password is hunter22", model="auto", tools=TOOLS, tool_choice="required")
    assert forced.status == 403 and (await forced.json())["error"]["code"] == "kept_local"
    api.joined = False
    alone = await api.ask("hello", model="auto", tools=TOOLS, tool_choice="required")
    assert alone.status == 403 and (await alone.json())["error"]["code"] == "not_joined"
    here = await api.ask("hello", model="local", tools=TOOLS)
    assert here.status == 400 and "tools" in (await here.json())["error"]["message"]
    assert len(api.relay.requests) == 1


SECRET = "AKIAABCDEFGHIJKLMNOP"


@pytest.mark.parametrize("body", [
    {"tools": [{"type": "function", "function": {"name": "f", "description": f"use {SECRET}"}}]},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [SECRET]}}}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": {"password": "hunter22"}}}}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": json.dumps({"a": SECRET})}}]},
                  {"role": "user", "content": "go on"}]},
])  # fmt: skip
async def test_a_secret_in_tools_or_their_calls_does_not_travel(api: Api, body: dict[str, Any]) -> None:
    answer = await api.ask(**body)
    assert answer.status == 403 and (await answer.json())["error"]["code"] == "kept_local"
    assert api.relay.requests == []


async def test_responses_are_relayed_too(api: Api) -> None:
    format = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    asked = {"messages": None, "input": "hello", "instructions": "be kind", "max_output_tokens": 9, "user": "me"}
    answer = await api.ask(path="/v1/responses", **asked, text={"format": format}, temperature=0.5, reasoning={
        "effort": "low",
    })
    assert answer.status == 200 and (await answer.json())["output"][0]["content"][0]["text"] == "It stands."
    assert api.sent == {
        "model": "cloud-model", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.5,
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}],
        "max_completion_tokens": 9, "user": "me", "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
    }


def refusals() -> list[tuple[str, int]]:
    """Each code of docs/SPEC.md section 11 with its status."""
    section = SPEC.read_text("utf-8").split("\n## 11.")[1].split("\n## ")[0]
    return [(code, int(status)) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE)]


@pytest.mark.parametrize("retryable", [False, True])
@pytest.mark.parametrize(("code", "status"), refusals())
async def test_each_refusal_of_the_gateway_keeps_its_code_and_status(
    api: Api, code: str, status: int, retryable: bool
) -> None:
    kind = ProviderFailed if code.startswith("provider_") else GatewayRefused
    api.relay.error = kind("the gateway said no", hint="do this", reason=code, status=status, retryable=retryable)
    for stream in (False, True):
        answer = await api.ask(stream=stream)
        error = (await answer.json())["error"]
        assert answer.status == (403 if status == 401 else status), "401 is about this machine's own token"
        assert error["code"] == code and error["message"] == "the gateway said no (do this)"
        assert set(error) == {"message", "type", "param", "code"}
        assert answer.headers["x-should-retry"] == ("true" if retryable else "false")


def test_the_table_of_refusals_is_there() -> None:
    assert len(refusals()) > 30 and ("model_not_allowed", 403) in refusals()


async def test_a_status_that_is_none_and_a_reason_that_is_none_are_not_repeated(api: Api) -> None:
    api.relay.error = GatewayRefused("no", reason="SECRET TEXT", status=403)
    assert (await (await api.ask()).json())["error"]["code"] == "gateway_refused"
    api.relay.error = ProviderFailed("no", reason="provider_error", status=200)
    assert (await api.ask()).status == 502


async def test_what_may_have_been_billed_is_never_tried_again_by_a_client(api: Api) -> None:
    for error, status in ((Interrupted("lost"), 409), (GaveUp("ab12", 60, sent=False), 503), (NotJoined(), 403)):
        api.relay.error = error
        answer = await api.ask()
        assert (answer.status, answer.headers["x-should-retry"]) == (status, "false")
        assert (await answer.json())["error"]["code"] == error.code


async def test_an_answer_that_breaks_off_ends_in_an_error_and_no_done(api: Api) -> None:
    api.relay = FakeRelay(sse("half")[:1])
    found = events(await (await api.ask(stream=True)).text())
    assert found[-1]["error"]["code"] == "provider_failed" and "[DONE]" not in found
    assert (await api.ask()).status == 502


async def test_the_gateway_is_asked_for_its_models_once_a_minute(api: Api) -> None:
    asked: list[float] = []
    now = [0.0]

    async def granted() -> list[str]:
        asked.append(now[0])
        if now[0] >= 60:
            raise GaveUp("", 5, sent=False)
        return ["cloud-model", "local"]

    async def auto() -> Assistant:
        raise AssertionError

    alone = Assistant(chat=api.chat, retrieval=None, relay=None, tracing=telemetry.start("edge"))
    names = Names(alone=alone, auto=auto, granted=granted, clock=lambda: now[0])
    assert await names.names() == ["local", "auto", "cloud-model"], "ours come first, and once"
    now[0] = 59.9
    assert await names.names() == ["local", "auto", "cloud-model"] and asked == [0.0]
    now[0] = 60.0
    assert await names.names() == ["local", "auto", "cloud-model"], "the last list holds where there is no way"
    assert asked == [0.0, 60.0]


async def test_a_client_that_goes_while_a_relay_is_asked_cancels_it(api: Api) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    class Slow(FakeRelay):
        async def request(self, method: str, route: str, body: bytes) -> Any:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    api.relay = Slow()
    request = asyncio.ensure_future(api.ask(stream=True))
    await began.wait()
    request.cancel()
    async with asyncio.timeout(60):
        await ended.wait()
