"""Events that are like the last one but for their text are not read: nothing else comes of that."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.gateway.taps.secrets import SecretFilter
from relay.gateway.taps.shapes import Shapes
from tests.support.gateway_lab import chat, context

OWN = b"sk-upstream-key"
SHAPES = Shapes([OWN])
LETTERS = "aB3dE5gH7jK9mN1pQ3sT5vX7zA9cD1fG3hJ5kM7nP9rS1tV3wY5bC7eF9gI1kL3mO5qR7uW9yA1c"
TEXTS = [
    " is", " a", "task", "sk-", "s", "ghp_" + LETTERS[:36], "xo", "xb-", "x\\ns", 'say "', "index", "\t", "größer", "",
    "\x7f", "A" * 9, LETTERS[:30], OWN.decode(), OWN.decode()[:7], OWN.decode()[7:], "u0041", "\\", ":", "content",
    "-----BEGIN PRIVATE KEY-----", "\u200b", "logprobs", "%0", "As", "n", "npm_", "\\n", "]}",
]
texts = st.lists(st.sampled_from(TEXTS) | st.text(max_size=4), max_size=24)


class Reading(SecretFilter):
    """Reads every event."""

    def _alike(self, line: bytes) -> None:
        return None


def made(kind: type[SecretFilter]) -> SecretFilter:
    request = context(chat())
    request.answer_type = "text/event-stream"
    return kind(request, SHAPES)


def chat_event(text: str, *, choice: int = 0, **more: Any) -> bytes:
    choices = [{"index": choice, "delta": {"content": text, **more}, "logprobs": {"content": ["t"]}}]
    return b"data: " + json.dumps({"id": "c", "choices": choices}, ensure_ascii=False).encode() + b"\n\n"


def message(text: str, **more: Any) -> bytes:
    body = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}, **more}
    return b"event: content_block_delta\ndata: " + json.dumps(body, ensure_ascii=False).encode() + b"\r\n\r\n"


def raw_event(text: str) -> bytes:
    """As a careless provider might write it, so that a text may end its string, or the event."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"' + text.encode() + b'"}}]}\n\n'


def outcome(filtering: SecretFilter, events: list[bytes]) -> tuple[list[bytes], dict[str, int]]:
    """What went on behind each event, and what was found."""
    out = [filtering.feed(event) for event in events]
    return [*out, filtering.finish()], filtering._context.filtered


@pytest.mark.parametrize("written", [chat_event, message, raw_event])
@settings(max_examples=150)
@given(pieces=texts, odd=st.lists(st.tuples(st.integers(0, 20), st.sampled_from([
    chat_event("other", choice=1), chat_event("two", refusal="no"), chat_event("x", extra="ghp_" + LETTERS[:36]),
    b": kept alive\n\n", b"data: not json\n\n", b'data: {"type":"content_block_stop","index":0}\n\n',
])), max_size=3))
def test_reading_every_event_gives_the_same_at_the_same_time(
    written: Any, pieces: list[str], odd: list[tuple[int, bytes]]
) -> None:
    events = [written(piece) for piece in pieces if "\r" not in piece and "\n" not in piece]
    for at, event in odd:
        events.insert(at, event)
    assert outcome(made(SecretFilter), events) == outcome(made(Reading), events)


def test_most_events_of_an_answer_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    real = SecretFilter._event

    def reading(self: SecretFilter, line: bytes, payload: bytes) -> None:
        read.append(payload)
        real(self, line, payload)

    monkeypatch.setattr(SecretFilter, "_event", reading)
    words = ["The", " pump", " is", " primed", " by", " water", " and", " takes", " a", " while", "."]
    for written in (chat_event, message):
        events = [written(word) for word in words]
        out, found = outcome(made(SecretFilter), events)
        assert b"".join(out) == b"".join(events) and not found
    assert len(read) == 2


def test_a_text_that_stands_elsewhere_too_is_not_taken_for_what_it_is_not() -> None:
    events = [chat_event("index"), chat_event("index").replace(b'"index"', b'"sk-"', 1), chat_event("x")]
    assert outcome(made(SecretFilter), events) == outcome(made(Reading), events)
