"""The secret filter in each API's stream: a secret that is split over deltas stays in, whatever the format."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.taps.redaction import MARKER
from relay.gateway.taps.secrets import SecretFilter, secret_filter
from tests.support.answer_streams import (
    FORMATS,
    TOOL,
    closed,
    delta,
    ending,
    ends_whole,
    events,
    opening,
    stream,
    whole,
    written,
)
from tests.support.gateway_lab import chat, context

OWN = b"ke-y/with odd letters"
TAP = secret_filter(lambda: [OWN])
SECRETS = [
    "sk-proj-aB3dE5gH7jK9mN1pQ3sT5vX7zA9cD1fG3hJ5kM7nP9rS1tV3wY5bC7", "AKIAIOSFODNN7EXAMPLE",
    "ghp_aB3dE5gH7jK9mN1pQ3sT5vX7zA9cD1fG3hJ5", OWN.decode(),
]
ROUTE = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
words = st.text(max_size=12) | st.sampled_from(["sk", "the task-force", "AKIA", "xox", "größer 💡", "ghp"])


def tap(kind: str, type_: str = "text/event-stream") -> SecretFilter:
    request = context(chat(), route=ROUTE[kind])
    request.answer_type = type_
    return TAP(request)


def run(filtering: SecretFilter, chunks: list[bytes]) -> bytes:
    return b"".join(map(filtering.feed, chunks)) + filtering.finish()


def pieces(draw: st.DrawFn, text: Any) -> list[Any]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
def test_an_innocent_stream_passes_byte_for_byte(kind: str, data: st.DataObject) -> None:
    raw = b"".join(stream(kind, (word + " " for word in data.draw(st.lists(words, max_size=6)))))
    assert run(tap(kind), data.draw(st.composite(pieces)(raw))) == raw


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("what", ["text", TOOL])
@given(data=st.data())
def test_a_secret_split_over_deltas_stays_in(kind: str, what: str, data: st.DataObject) -> None:
    secret = data.draw(st.sampled_from(SECRETS))
    before, after = data.draw(words), data.draw(words)
    text = f"{before} {secret} {after}"
    deltas = data.draw(st.composite(pieces)(text))
    raw = opening(kind) + b"".join(delta(kind, one, what=what) + delta(kind, "other ", place=1) for one in deltas)
    raw += ending(kind, text)
    filtering = tap(kind)
    out = run(filtering, data.draw(st.composite(pieces)(raw)))
    assert secret[12:] not in out.decode()
    assert written(kind, out, what=what) == f"{before} {MARKER.decode()} {after}"
    assert written(kind, out, place=1) == "other " * len(deltas)
    assert filtering._context.filtered
    assert ends_whole(kind, out)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_answer_too(kind: str) -> None:
    for secret in SECRETS:
        body = json.dumps(whole(kind, f"use {secret} then")).encode()
        out = run(tap(kind, "application/json"), [body])
        assert json.loads(out) == whole(kind, f"use {MARKER.decode()} then")


@pytest.mark.parametrize("kind", ["responses", "messages"])
def test_a_text_that_is_over_holds_back_nothing_behind_it(kind: str) -> None:
    filtering = tap(kind)
    text, call = delta(kind, "plan s"), delta(kind, "{", place=1, what=TOOL)  # its last letter may begin a key
    out = filtering.feed(text) + filtering.feed(call)
    assert b"data:" not in out
    out += filtering.feed(closed(kind))
    assert out == text + call + closed(kind)
    assert filtering.feed(more := delta(kind, "}", place=1, what=TOOL)) == more


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_held_behind_the_end(kind: str) -> None:
    filtering = tap(kind)
    filtering.feed(opening(kind) + delta(kind, "plan s"))
    filtering.feed(ending(kind))
    assert filtering.finish() == b""


def test_the_tokens_beside_a_response_s_text_do_not_spell_it() -> None:
    secret = SECRETS[0]
    raw = delta("responses", secret[:12]) + delta("responses", secret[12:])
    out = events(run(tap("responses"), [raw]))
    assert [one["logprobs"] for one in out] == [[], []]
    answer = whole("responses", secret)
    answer["output"][0]["content"][0]["logprobs"] = [{"token": part} for part in (secret[:12], secret[12:])]
    out_whole = json.loads(run(tap("responses", "application/json"), [json.dumps(answer).encode()]))
    assert out_whole["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("indexes", [(0, None), (0, 0.0), (0, []), (0, "name"), (0, "0")])
def test_a_place_that_is_written_in_two_ways_is_one_place(indexes: tuple[Any, ...]) -> None:
    """Each half alone is none."""
    secret = SECRETS[0]
    halves = [(indexes[0], secret[:15]), (indexes[1], secret[15:])]
    chat_deltas = [{"choices": [{"index": at, "delta": {"content": text}}]} for at, text in halves]
    steps = [{"item_id": "m", "content_index": at, "delta": text} for at, text in halves]
    for kind, sent in (("chat", chat_deltas), ("responses", steps)):
        out = run(tap(kind), [b"data: " + json.dumps(one).encode() + b"\n\n" for one in sent])
        assert out.count(MARKER) == 1 and secret[20:].encode() not in out


def test_a_block_s_first_words_belong_to_those_that_follow() -> None:
    secret = SECRETS[0]
    raw = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": f"use {secret[:9]}"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"{secret[9:]} then"}},
        {"type": "content_block_stop", "index": 0},
    ))
    first, second, _ = events(run(tap("messages"), [raw]))
    assert first["content_block"]["text"] + second["delta"]["text"] == f"use {MARKER.decode()} then"
