"""The three formats of answers: where a stream ends, what was written and what it cost, how one is ended by us."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.errors import ProviderFailure
from relay.gateway.taps.meter import Meter
from relay.gateway.upstream.formats import CHAT, MESSAGES, RESPONSES, TEXT_MAX, AnswerFormat, Told, payloads
from tests.support.answer_streams import (
    FORMATS,
    TOOL,
    closed,
    delta,
    ends_whole,
    event,
    events,
    opening,
    stream,
    whole,
    written,
)
from tests.support.gateway_lab import chat, context

OF: dict[str, AnswerFormat] = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES}
WORDS = ["The ", "pump: ", "response.completed ", '"message_stop" ', 'an "error"?', " [DONE]"]


def code(failed: Any) -> str:
    return str(failed.value.kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_stream_ends_where_its_api_says_and_nowhere_else(kind: str) -> None:
    data = b"".join(stream(kind, WORDS))
    ended = [OF[kind].ends(payload) for payload in payloads(data)]
    assert ended == [False] * (len(ended) - 1) + [True]


def test_a_response_that_is_cut_for_its_length_is_whole_too() -> None:
    assert RESPONSES.ends(b'{"type":"response.incomplete","response":{"error":null}}')


@pytest.mark.parametrize(("kind", "payload"), [
    ("chat", b'{"error":{"message":"x"}}'), ("chat", b'{"error":"x"}'),
    ("responses", b'{"type":"error","code":"server_error","message":"x"}'),
    ("responses", b'{"type":"response.failed","response":{"error":{"code":"server_error"}}}'),
    ("messages", b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}'),
])
def test_an_error_in_a_stream_is_a_failure(kind: str, payload: bytes) -> None:
    with pytest.raises(ProviderFailure) as failed:
        OF[kind].ends(payload)
    assert code(failed) == "provider_error"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b'{"a":', b"\xff", b"[" * 5_000])
def test_what_is_no_answer_is_garbled(kind: str, body: bytes) -> None:
    with pytest.raises(ProviderFailure) as failed:
        OF[kind].check(body)
    assert code(failed) == "provider_garbled"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_answer_passes_and_an_error_does_not(kind: str) -> None:
    answer = whole(kind, "x")
    OF[kind].check(json.dumps(answer).encode())
    errors: list[dict[str, Any]] = [answer | {"error": {"message": "x"}}, {"type": "error", "error": {"type": "x"}}]
    for error in [*errors, *([answer | {"status": "failed"}] if kind == "responses" else [])]:
        with pytest.raises(ProviderFailure):
            OF[kind].check(json.dumps(error).encode())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("what", ["text", TOOL])
def test_what_was_written_is_what_a_client_reads(kind: str, what: str) -> None:
    data = opening(kind) + b"".join(delta(kind, word, what=what) for word in WORDS)
    assert "".join(map(OF[kind].text, payloads(data))) == "".join(WORDS) == written(kind, data, what=what)
    followed = OF[kind].follow()
    assert "".join(map(followed.feed, payloads(data))) == "".join(WORDS)


def test_thoughts_and_refusals_count_and_so_does_what_cannot_be_read() -> None:
    thought = b'{"choices":[{"index":0,"delta":{"reasoning_content":"a","refusal":"b","content":null}}]}'
    assert sorted(CHAT.text(thought)) == ["a", "b"]
    block = b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"a"}}'
    assert MESSAGES.text(block) == "a"
    odd = b'{"type":7,"choices":[{"delta":{"content":["hidden"]}}],"delta":["hidden"]}'
    for form in OF.values():
        assert "hidden" in form.text(odd)
        assert "hidden" in form.follow().feed(odd)
    assert CHAT.text(b"[DONE]") == RESPONSES.text(b"[DONE]") == ""


@pytest.mark.parametrize("kind", FORMATS)
def test_the_meter_reads_what_each_api_says_of_tokens(kind: str) -> None:
    routes = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
    for streamed in (True, False):
        request = context(chat(), route=routes[kind])
        request.stream = streamed
        if request.target is None or request.target.format is not OF[kind]:
            pytest.fail("this route has another format")
        tap = Meter(request)
        chunks = stream(kind, WORDS) if streamed else [json.dumps(whole(kind, "x")).encode()]
        assert [tap.feed(chunk) for chunk in chunks] == chunks
        tap.finish()
        assert (request.usage.input_tokens, request.usage.output_tokens, request.usage.model) == (11, 5, "mock-1")


def test_embeddings_say_what_went_in() -> None:
    assert CHAT.told(b'{"model":"e","data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}') == Told("e", 3, None)
    assert CHAT.told(b'{"usage":{"prompt_tokens":"3"}}') is None


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("pieces", [[], ["The "], WORDS])
def test_a_stream_that_we_cut_is_whole_and_says_why(kind: str, pieces: list[str]) -> None:
    followed = OF[kind].follow()
    data = opening(kind) + b"".join(delta(kind, piece) for piece in pieces)
    for payload in payloads(data):
        followed.feed(payload)
    data += followed.cut(17)
    assert ends_whole(kind, data)
    assert [OF[kind].ends(payload) for payload in payloads(data)][-1]
    assert written(kind, data) == "".join(pieces)
    if kind == "chat":
        last = events(data)[-1]
        assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
        assert last["id"] == ("c1" if pieces else "") and last["object"] == "chat.completion.chunk"
    elif kind == "responses":
        last = events(data)[-1]
        response = last["response"]
        assert (response["id"], response["status"]) == ("r1", "incomplete")
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        (item,) = response["output"]
        assert item["status"] == "incomplete"
        assert "".join(part["text"] for part in item["content"]) == "".join(pieces)
        assert last["sequence_number"] == (4 if pieces else 2)
    else:
        stop, last, _ = events(data)[-3:]
        assert stop == {"type": "content_block_stop", "index": 0}
        assert last["delta"]["stop_reason"] == "max_tokens" and last["usage"] == {"output_tokens": 17}


def test_only_what_is_open_is_ended() -> None:
    followed = MESSAGES.follow()
    for payload in payloads(opening("messages") + closed("messages")):
        followed.feed(payload)
    assert b"content_block_stop" not in followed.cut()
    chats = CHAT.follow()
    for finish in (None, "stop"):
        chats.feed(json.dumps({"id": "x", "choices": [
            {"index": 0, "delta": {}, "finish_reason": finish}, {"index": 1, "delta": {}, "finish_reason": None},
        ]}).encode())
    (last,) = events(chats.cut())
    assert [choice["index"] for choice in last["choices"]] == [1]
    done = RESPONSES.follow()
    item = {"id": "i0", "type": "message", "status": "completed", "content": [{"type": "output_text", "text": "All."}]}
    for payload in payloads(opening("responses") + delta("responses", "All.") + event("responses", {
        "type": "response.output_item.done", "output_index": 0, "item": item, "sequence_number": 5,
    })):
        done.feed(payload)
    assert events(done.cut())[0]["response"]["output"] == [item]


odd = st.sampled_from([
    None, True, 7, -1, 2**70, 0.5, "", "x", "error", "response.completed", "content_block_start", [], ["x"], {},
    {"id": 3}, {"type": 7, "delta": ["x"]}, [{"index": -3, "delta": {"content": 5}}],
    [{"index": 2, "delta": {"content": "t"}}],
])
names_ = st.sampled_from(["type", "delta", "choices", "response", "item", "message", "usage", "error", "index", "model",
                          "output_index", "sequence_number", "content_block", "status", "id"])
lines = st.dictionaries(names_, odd, max_size=5).map(lambda event: json.dumps(event).encode()) | st.binary(max_size=40)


@given(st.lists(lines | st.sampled_from([b"[DONE]", b"[" * 3_000, b'{"choices":' + b"[" * 3_000]), max_size=6))
def test_whatever_a_provider_sends_is_an_end_an_error_or_neither(data: list[bytes]) -> None:
    for form in OF.values():
        followed = form.follow()
        for payload in data:
            for judge in (form.ends, form.check):
                with contextlib.suppress(ProviderFailure):
                    judge(payload)
            form.told(payload)
            assert isinstance(form.text(payload), str) and isinstance(followed.feed(payload), str)
        assert ends_whole(form.name, followed.cut(3))


def test_what_is_kept_of_a_response_is_bounded() -> None:
    followed = RESPONSES.follow()
    for payload in payloads(opening("responses")):
        followed.feed(payload)
    (piece,) = payloads(delta("responses", "x" * 1_000))
    for _ in range(TEXT_MAX // 1_000 + 500):
        assert followed.feed(piece) == "x" * 1_000
    assert len(followed.cut()) < TEXT_MAX + 2_000


@pytest.mark.parametrize("kind", FORMATS)
def test_an_error_of_ours_is_an_event_that_no_client_takes_for_an_end(kind: str) -> None:
    body: dict[str, Any] = {"error": {"message": "why", "type": "server_error", "code": "provider_error"}}
    if kind == "messages":
        body = {"type": "error", "error": {"type": "api_error", "message": "why"}}
    data = OF[kind].error(body)
    assert data.startswith(b"\n\n") and data.endswith(b"\n\n")
    (one,) = events(data)
    assert one["error"]["message"] == "why" and not ends_whole(kind, data)
    assert (b"event: error\n" in data) == (kind != "chat")
    if kind == "responses":
        assert (one["type"], one["code"], one["message"]) == ("error", "provider_error", "why")
    with pytest.raises(ProviderFailure):
        list(map(OF[kind].ends, payloads(data)))
