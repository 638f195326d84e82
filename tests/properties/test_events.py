"""The compact form of streamed answers: the same bytes come out, whatever went in and however it was cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import ProtocolViolation
from transport.events import BODY_MAX, TEMPLATE_MAX, EventDecoder, EventEncoder


def event(text: str, separators: tuple[str, str] = (",", ":"), **more: object) -> bytes:
    delta = {"content": text, **more}
    body = {"id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012", "object": "chat.completion.chunk", "created": 1900000000,
            "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_0123456789",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
    return b"data: " + json.dumps(body, separators=separators).encode() + b"\n\n"


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def through(data: bytes, up: list[int], down: list[int]) -> tuple[bytes, bytes]:
    encoder, decoder = EventEncoder(), EventDecoder()
    entries = b"".join(map(encoder.feed, cut(data, up))) + encoder.finish()
    out = b"".join(piece for part in cut(entries, down) for piece in decoder.feed(part))
    decoder.finish()
    return entries, out


pieces = st.one_of(
    st.text(max_size=40).map(event),
    st.text(max_size=5).map(lambda text: event(text, role="assistant")),
    st.binary(max_size=60),
    st.sampled_from([b"\n", b"\r\n", b"data: [DONE]\n\n", b'"content":"', b'"arguments":"a\\"b"', b": comment\n\n",
                     b'data: {"content":"' + b"x" * 2_000 + b'"}\n\n']),
)


@given(st.lists(pieces, max_size=12).map(b"".join), st.lists(st.integers(0, 10_000), max_size=6),
       st.lists(st.integers(0, 10_000), max_size=6))
def test_what_went_in_comes_out(data: bytes, up: list[int], down: list[int]) -> None:
    assert through(data, up, down)[1] == data


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_entries_of_a_stranger_are_taken_or_refused(data: bytes, at: list[int]) -> None:
    decoder = EventDecoder()
    try:
        out = sum(len(piece) for part in cut(data, at) for piece in decoder.feed(part))
        decoder.finish()
    except ProtocolViolation:
        return
    assert out <= len(data) * TEMPLATE_MAX


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_token_costs_its_text_and_a_byte(separators: tuple[str, str]) -> None:
    texts = [" the", " pump", '\n"', "é", " is", ""] * 50
    data = b"".join(event(text, separators) for text in texts) + b"data: [DONE]\n\n"
    entries, out = through(data, [], [])
    written = sum(len(json.dumps(text)) - 2 for text in texts)
    assert out == data
    assert len(entries) < written + len(texts) + len(event("", separators)) + 30


def test_a_tool_call_is_text_too() -> None:
    line = b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"%s"}}]}}]}\n\n'
    data = b"".join(line % part for part in (b'{\\"a', b'\\":1', b"}")) * 10
    assert len(through(data, [], [])[0]) < len(data) / 5


@pytest.mark.parametrize("more", [
    {"reasoning_content": "%s"}, {"thinking": {"text": "%s"}}, {"token_ids": [1]}, {"tokens": ["%s"]},
    {"tool_calls": [{"index": 0, "function": {"name": "%s"}}]}, {"score": 0.5},
])
def test_no_length_tells_whether_a_second_text_is_as_before(more: dict[str, object]) -> None:
    """What stands beside the text may be text as well: it must not become part of a template that fits or does not."""
    def said(secret: str, guess: str) -> int:
        told = [json.loads(json.dumps(more).replace("%s", text).replace("1", digit).replace("0.5", f"0.{digit}"))
                for text, digit in ((secret, "1"), (guess, "1" if guess == secret else "2"))]
        data = b"".join(event("", **one) for one in told)
        entries, out = through(data, [], [])
        assert out == data
        return len(entries)

    assert said("hunter2", "hunter2") == said("hunter2", "hunterX")


def test_an_event_leaves_when_it_is_whole_and_not_before() -> None:
    encoder, decoder = EventEncoder(), EventDecoder()
    whole = event("a")
    assert encoder.feed(whole[:-1]) == b""
    assert b"".join(decoder.feed(encoder.feed(whole[-1:] + b"data"))) == whole
    assert b"".join(decoder.feed(encoder.finish())) == b"data"


def test_what_never_ends_is_not_held_for_ever() -> None:
    encoder = EventEncoder()
    out = b"".join(encoder.feed(b"x" * 1_000) for _ in range(200))
    assert len(out) > 200_000 - BODY_MAX - 1_000
    assert b"".join(EventDecoder().feed(out + encoder.finish())) == b"x" * 200_000


@pytest.mark.parametrize("entry", [
    b"\x03", b"\x80\x00", b"\x80\x80\x80", b"\x84\x80\x10", b"\x02\x81\x08" + b"s" * 1_025, b"\xff\xff\xff\x00",
])
def test_what_is_no_entry_is_refused(entry: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        list(EventDecoder().feed(entry))


@pytest.mark.parametrize("entry", [b"\x04", b"\x05a"[:1], b"\x02", b"\x06\x01p", b"\x80"])
def test_an_end_within_an_entry_is_refused(entry: bytes) -> None:
    decoder = EventDecoder()
    assert b"".join(decoder.feed(entry)) == b""
    with pytest.raises(ProtocolViolation):
        decoder.finish()
