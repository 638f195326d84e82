"""`/v1/responses`, `/v1/embeddings` and JSON mode of the loopback API, against OpenAI's shapes."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientResponse, ClientSession, web

from edge_client.answering import Assistant
from edge_client.api.names import Names
from edge_client.api.server import make_runner
from edge_client.errors import (
    EdgeError,
    EngineBusy,
    EngineFailed,
    MemoryShort,
    ModelMissing,
    ModelUnusable,
    PromptTooLong,
)
from tests.support.fake_engine import FakeChat, FakeEmbedder
from transport import telemetry

TOKEN = "t" * 43
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Api:
    def __init__(self, client: ClientSession, chat: FakeChat, embedder: FakeEmbedder) -> None:
        self.client, self.chat, self.embedder = client, chat, embedder

    async def post(self, path: str, **body: Any) -> ClientResponse:
        full = {"model": "local", **body}
        return await self.client.post(f"/v1/{path}", data=io.BytesIO(json.dumps(full).encode()), headers=BEARER)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    tracing = telemetry.start("edge")
    chat, embedder = FakeChat(), FakeEmbedder()
    alone = Assistant(chat=chat, retrieval=None, relay=None, tracing=tracing)

    async def auto() -> Assistant:
        return alone

    async def embed() -> FakeEmbedder:
        return embedder

    runner = make_runner(Names(alone=alone, auto=auto, embedder=embed), TOKEN)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            yield Api(client, chat, embedder)
    finally:
        await runner.cleanup()
        tracing.close()


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_a_whole_response(api: Api) -> None:
    parts = [{"type": "input_text", "text": "hel"}, {"type": "input_text", "text": "lo"}]
    answer = await api.post(
        "responses", input=[{"role": "developer", "content": "a"}, {"role": "user", "content": parts}],
        instructions="be kind", max_output_tokens=9, temperature=0.5, store=True,
    )
    body = await answer.json()
    assert answer.status == 200 and body["object"] == "response" and body["status"] == "completed"
    (item,) = body["output"]
    assert item["type"] == "message" and item["role"] == "assistant" and item["content"][0]["text"] == "Six bar."
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"], body["usage"]["total_tokens"]) == (7, 2, 9)
    assert body["store"] is False and body["causeway"]["route"] == "local"
    assert [(m.role, m.content) for m in api.chat.asked[0]] == [
        ("system", "be kind"), ("system", "a"), ("user", "hello"),
    ]
    assert (api.chat.sampled[0].max_tokens, api.chat.sampled[0].temperature) == (9, 0.5)


async def test_a_streamed_response(api: Api) -> None:
    answer = await api.post("responses", input="hello", stream=True)
    assert answer.content_type == "text/event-stream"
    found = events(await answer.text())
    assert [name for name, _ in found] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]
    assert all(data["type"] == name for name, data in found)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    assert "".join(data["delta"] for _, data in found if "delta" in data) == found[6][1]["text"] == "Six bar."
    assert found[-1][1]["response"]["usage"]["total_tokens"] == 9
    assert len({data["item_id"] for _, data in found if "item_id" in data} | {found[2][1]["item"]["id"]}) == 1


async def test_a_response_cut_at_its_limit_is_incomplete(api: Api) -> None:
    api.chat.reason = "length"
    body = await (await api.post("responses", input="hello")).json()
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    found = events(await (await api.post("responses", input="hello", stream=True)).text())
    assert found[-1][0] == "response.incomplete"


async def test_a_response_that_breaks_off_says_so(api: Api) -> None:
    api.chat.error = EngineFailed("the local model stopped")
    name, data = events(await (await api.post("responses", input="hello", stream=True)).text())[-1]
    assert name == "error" and data["code"] == "engine_failed" and data["message"] == "the local model stopped"


@pytest.mark.parametrize("body", [
    {}, {"input": []}, {"input": ""}, {"input": 7}, {"input": "hi", "tools": [{"type": "web_search"}]},
    {"input": "hi", "previous_response_id": "resp_1"}, {"input": "hi", "conversation": "c"},
    {"input": "hi", "background": True}, {"input": [{"type": "function_call_output", "output": "x"}]},
    {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, {"input": "hi", "max_output_tokens": 0},
    {"input": "hi", "text": {"format": {"type": "xml"}}}, {"input": "hi", "text": {"format": {"type": "json_schema"}}},
    {"input": "hi", "prompt": {"id": "pmpt_1"}}, {"input": "hi", "top_logprobs": 2},
])  # fmt: skip
async def test_responses_refuse_what_they_do_not_do(api: Api, body: dict[str, Any]) -> None:
    for stream in (False, True):
        answer = await api.post("responses", **body, stream=stream)
        assert answer.status == 400 and (await answer.json())["error"]["type"] == "invalid_request_error"
    assert api.chat.asked == []


async def test_responses_say_what_the_local_model_does_not_heed(api: Api) -> None:
    answer = await api.post("responses", input="hi", reasoning={"effort": "low"}, text={"verbosity": "low"}, user="me")
    notes = (await answer.json())["causeway"]["notes"]
    assert notes == ["the local model does not heed `reasoning_effort`, `verbosity`"]


@pytest.mark.parametrize(("format", "schema"), [
    (None, None), ({"type": "text"}, None), ({"type": "json_object"}, {}),
    ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, {"type": "object"}),
])  # fmt: skip
async def test_json_mode_reaches_the_model(api: Api, format: Any, schema: Any) -> None:
    messages = [{"role": "user", "content": "hello"}]
    assert (await api.post("chat/completions", messages=messages, response_format=format)).status == 200
    told = api.chat.sampled[0].json_schema
    assert (None if told is None else json.loads(told)) == schema


@pytest.mark.parametrize("format", [
    {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 7}}, "json",
    {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * (33 << 10)]}}},
])  # fmt: skip
async def test_json_mode_refuses_what_it_does_not_know(api: Api, format: Any) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = await api.post("chat/completions", messages=messages, response_format=format)
    if format == {}:
        assert answer.status == 200, "an empty format asks for nothing"
    else:
        assert answer.status == 400 and api.chat.asked == []


async def test_embeddings_as_numbers_and_as_base64(api: Api) -> None:
    texts = ["the pump", "the radio"]
    expected = await FakeEmbedder().embed(texts)
    body = await (await api.post("embeddings", input=texts)).json()
    assert body["object"] == "list" and body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert [entry["index"] for entry in body["data"]] == [0, 1]
    assert np.allclose([entry["embedding"] for entry in body["data"]], expected, atol=1e-7)
    coded = await (await api.post("embeddings", input=texts, encoding_format="base64", model="auto")).json()
    raw = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in coded["data"]]
    assert np.array_equal(raw, expected)
    assert len((await (await api.post("embeddings", input="one", dimensions=384)).json())["data"]) == 1


@pytest.mark.parametrize(("body", "status", "code"), [
    ({}, 400, "bad_use"), ({"input": []}, 400, "bad_use"), ({"input": ""}, 400, "bad_use"),
    ({"input": ["a", " "]}, 400, "bad_use"), ({"input": [1, 2]}, 400, "bad_use"), ({"input": [[1]]}, 400, "bad_use"),
    ({"input": ["a"] * 2049}, 400, "bad_use"), ({"input": "a", "dimensions": 256}, 400, "bad_use"),
    ({"input": "a", "encoding_format": "hex"}, 400, "bad_use"),
    ({"input": "word " * 251}, 400, "context_length_exceeded"),
    ({"input": "a", "model": "text-embedding-3-small"}, 404, "model_not_found"),
])  # fmt: skip
async def test_embeddings_refuse_in_words(api: Api, body: dict[str, Any], status: int, code: str) -> None:
    answer = await api.post("embeddings", **body)
    assert answer.status == status and (await answer.json())["error"]["code"] == code
    assert api.embedder.embedded == 0


@pytest.mark.parametrize("path", ["responses", "embeddings", "chat/completions"])
@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[1]", b"[" * 100_000])
async def test_what_is_not_json_is_told_so_everywhere(api: Api, path: str, raw: bytes) -> None:
    answer = await api.client.post(f"/v1/{path}", data=raw, headers=BEARER)
    assert answer.status == 400 and (await answer.json())["error"]["code"] == "bad_use"


async def test_a_client_that_goes_in_the_middle_of_a_response_stops_the_model(api: Api) -> None:
    api.chat.endless = True
    answer = await api.post("responses", input="hello", stream=True)
    await answer.content.readany()
    answer.close()
    async with asyncio.timeout(60):
        await api.chat.closed.wait()


@pytest.mark.parametrize(("error", "status", "code", "again"), [
    (PromptTooLong("the prompt has 9 tokens, the local model takes 8"), 400, "context_length_exceeded", "false"),
    (MemoryShort("the model needs about 9 MiB of memory, 8 MiB are free"), 503, "memory_short", "false"),
    (ModelMissing("no model"), 503, "model_missing", "false"),
    (ModelUnusable("m.gguf is cut short"), 503, "model_unusable", "false"),
    (EngineBusy(), 429, "engine_busy", "true"),
    (EngineFailed("the local model stopped"), 500, "engine_failed", "false"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_what_the_engine_does_not_take_is_a_status_also_for_a_stream(
    api: Api, error: EdgeError, status: int, code: str, again: str, stream: bool, path: str
) -> None:
    api.chat.words, api.chat.error = [], error
    asked = {"input": "hello"} if path == "responses" else {"messages": [{"role": "user", "content": "hello"}]}
    answer = await api.post(path, **asked, stream=stream)
    told = (await answer.json())["error"]
    assert (answer.status, told["code"], answer.headers["x-should-retry"]) == (status, code, again)
    assert str(error) in told["message"] and set(told) == {"message", "type", "param", "code"}


async def test_a_model_that_says_nothing_still_streams_an_answer(api: Api) -> None:
    api.chat.words = []
    found = events(await (await api.post("responses", input="hello", stream=True)).text())
    assert found[0][0] == "response.created" and found[-1][0] == "response.completed"


async def test_that_a_prompt_is_taken_is_no_piece_of_the_answer(api: Api) -> None:
    api.chat.words = ["", "Six", "", " bar."]
    found = events(await (await api.post("responses", input="hello", stream=True)).text())
    assert [data["delta"] for _, data in found if "delta" in data] == ["Six", " bar."]


async def test_notes_that_come_up_while_answering_are_told_at_the_end(api: Api) -> None:
    api.chat.dropped = 4
    messages = [{"role": "user", "content": "hello"}]
    whole = await (await api.post("chat/completions", messages=messages)).json()
    assert whole["causeway"]["notes"] == ["the 4 oldest messages did not fit into the local model and were left out"]
    text = await (await api.post("chat/completions", messages=messages, stream=True)).text()
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]
    assert chunks[0]["causeway"]["notes"] == [] and chunks[-1]["causeway"] == {
        **whole["causeway"], "trace_id": chunks[0]["causeway"]["trace_id"],
    }
