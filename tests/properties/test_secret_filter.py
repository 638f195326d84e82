"""The secret filter: no chunking changes what it says or lets a secret out, and innocent answers stay as they are."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.gateway.taps.redaction import MARKER
from relay.gateway.taps.secrets import QUEUE_MAX, SecretFilter, secret_filter
from relay.gateway.taps.shapes import WINDOW, Shapes
from tests.support.gateway_lab import chat, context

OWN = b'ke"y\\with odd/letters'
TAP = secret_filter(lambda: [OWN])
BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n{BODY[::-1]}\n-----END RSA PRIVATE KEY-----"
LETTERS = "aB3dE5gH7jK9mN1pQ3sT5vX7zA9cD1fG3hJ5kM7nP9rS1tV3wY5bC7eF9gI1kL3mO5qR7uW9yA1c" * 2
SECRETS = [
    ("openai-key", "sk-" + LETTERS[:48]), ("openai-key", "sk-proj-" + LETTERS[:60]),
    ("anthropic-key", "sk-ant-api03-" + LETTERS[:93]), ("openrouter-key", "sk-or-v1-" + "0a1b2c3d" * 8),
    ("aws-key", "AKIAIOSFODNN7EXAMPLE"), ("aws-key", 'aws_secret_access_key = "' + LETTERS[:40]),
    ("google-key", "AIza" + LETTERS[:35]), ("azure-key", "AccountKey=" + LETTERS[:86] + "=="),
    ("github-token", "ghp_" + LETTERS[:36]), ("github-token", "github_pat_" + LETTERS[:82]),
    ("gitlab-token", "glpat-" + LETTERS[:20]), ("slack-token", "xoxb-1234567890-" + LETTERS[:24]),
    ("stripe-key", "sk_live_" + LETTERS[:24]), ("huggingface-token", "hf_" + LETTERS[:34]),
    ("jwt", f"eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ{LETTERS}.{LETTERS}"), ("invitation", "cw1" + "ab2c3d4e5f" * 15),
    ("private-key", PEM), ("private-key", PEM.replace("\n", "\\n")), ("gateway-provider-key", OWN.decode()),
]
INNOCENT = [
    "", "s", "sk", "the task-force on risk-adjusted returns",
    "task-" + LETTERS[::-1][:40], "sk-folding-cube-loader-animation",
    "-----BEGIN PUBLIC KEY-----", "eyJ is how a JWT begins", "AKIA", "größer 💡", "cw1", 'a "quoted" \\n word', "xox",
    "ke\"y\\with odd", "-----BEGIN CERTIFICATE-----\n" + BODY,
]
words = st.lists(st.sampled_from(INNOCENT) | st.text(max_size=12), max_size=6).map(" ".join)


def cuts(draw: st.DrawFn, text: Any) -> list[Any]:
    """`text` in pieces of any size."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def tap(kind: str) -> SecretFilter:
    request = context(chat())
    request.answer_type = kind
    return TAP(request)


def run(filtering: SecretFilter, chunks: list[bytes]) -> bytes:
    return b"".join(map(filtering.feed, chunks)) + filtering.finish()


def found(filtering: SecretFilter) -> dict[str, int]:
    return filtering._context.filtered


def event(text: str, choice: int = 0, **more: Any) -> bytes:
    choices = [{"index": choice, "delta": {"content": text}, "finish_reason": None, **more}]
    return b"data: " + json.dumps({"id": "c-s", "choices": choices}, ensure_ascii=False).encode() + b"\n\n"


def contents(stream: bytes, choice: int = 0) -> str:
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    return "".join(c["delta"]["content"] for e in events for c in e["choices"] if c["index"] == choice)


def plain(text: str) -> str:
    return run(tap("text/plain"), [text.encode()]).decode("utf-8", "ignore")


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
@pytest.mark.parametrize("type_", ["text/plain", "application/json", "text/event-stream"])
def test_each_kind_is_found_and_counted(kind: str, secret: str, type_: str) -> None:
    text = f"here: {secret}\nso."
    whole = {"text/plain": text.encode(), "application/json": json.dumps({"a": [text], "n": 1}).encode(),
             "text/event-stream": event(text)}[type_]
    filtering = tap(type_)
    out = run(filtering, [whole])
    assert found(filtering) == {kind: 1}
    if type_ == "application/json":
        (got,) = json.loads(out)["a"]
    else:
        got = contents(out) if type_ == "text/event-stream" else out.decode()
    assert got.startswith("here: ")
    assert got.replace('"', "").endswith(MARKER.decode() + "\nso.")
    assert secret[12:] not in got


@given(st.data())
def test_an_innocent_answer_passes_byte_for_byte(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(words, max_size=6))
    raw = {
        "text/plain": " ".join(pieces).encode(), "application/json": json.dumps(pieces).encode(),
        "text/event-stream": b": hi\n\n" + b"".join(map(event, (p + " " for p in pieces))) + b"data: [DONE]\r\n\r\n",
    }
    for kind, whole in raw.items():
        filtering = tap(kind)
        assert run(filtering, data.draw(st.composite(cuts)(whole))) == whole
        assert not found(filtering)


@settings(max_examples=200)
@given(st.data())
def test_however_an_answer_is_cut_the_secret_stays_and_the_rest_goes(data: st.DataObject) -> None:
    kind, secret = data.draw(st.sampled_from(SECRETS))
    text = f"{data.draw(words)} {secret} {data.draw(words)}"
    expected = plain(text)
    assert secret[12:] not in expected
    filtering = tap("text/plain")
    assert run(filtering, data.draw(st.composite(cuts)(text.encode()))).decode("utf-8", "ignore") == expected
    assert kind in found(filtering)
    deltas = data.draw(st.composite(cuts)(text))
    raw = b"".join(event(piece) + event("other ", 1) for piece in deltas) + b"data: [DONE]\n\n"
    out = run(tap("text/event-stream"), data.draw(st.composite(cuts)(raw)))
    assert contents(out) == expected
    assert contents(out, 1) == "other " * len(deltas)


@given(st.data())
def test_only_what_could_become_a_secret_is_held(data: st.DataObject) -> None:
    text = data.draw(words).encode() + data.draw(st.sampled_from([s.encode() for _, s in SECRETS]))
    text = text[:data.draw(st.integers(0, len(text)))]
    filtering = tap("text/plain")
    out = filtering.feed(text)
    if found(filtering):
        return
    held = text[len(out):]
    assert out + held == text
    assert len(held) <= WINDOW
    assert held == b"" or any(tier.possible(held) for tier in Shapes([OWN]).tiers)


def test_a_word_that_could_be_no_secret_goes_on_at_once() -> None:
    filtering = tap("text/event-stream")
    assert filtering.feed(event("words and ")) == event("words and ")
    assert filtering.feed(event("sk-")) == b""
    assert filtering.feed(event("ating")) == b""
    assert filtering.feed(event(" is fun")) == event("sk-") + event("ating") + event(" is fun")


def test_a_private_key_that_never_ends_is_neither_shown_nor_kept() -> None:
    filtering = tap("text/plain")
    assert filtering.feed(b"-----BEGIN PRIVATE KEY-----") == MARKER
    for _ in range(500):
        assert filtering.feed(BODY.encode() + b"\n") == b""
        assert len(filtering._lines) == 0
    assert filtering.finish() == b""


def test_prose_behind_the_name_of_a_private_key_comes_back() -> None:
    out = plain("-----BEGIN PRIVATE KEY----- is the first line. " + "And so it goes on. " * 30)
    assert out.endswith("And so it goes on. " * 10)


def test_what_waits_for_one_text_is_bounded_and_the_doubtful_is_cut() -> None:
    filtering = tap("text/event-stream")
    assert filtering.feed(event("sk-abcde")) == b""
    out = b""
    while not out:
        out = filtering.feed(event("x " * 2000, 1))
        assert filtering._waiting <= QUEUE_MAX
    assert contents(out) == MARKER.decode()
    assert contents(filtering.feed(event("fghij next"))) == " next"
    assert found(filtering) == {"undecided": 1}


def test_tool_calls_names_escapes_and_the_tokens_beside_a_text_are_looked_at() -> None:
    key = "ghp_" + LETTERS[:36]
    calls = [
        {"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"arguments": part}}]},
         "logprobs": {"content": [{"token": part}]}} for part in ('{"k":"' + key[:9], key[9:] + '"}')
    ]
    raw = b"".join(b"data: " + json.dumps({"choices": [call]}).encode() + b"\n\n" for call in calls)
    out = run(tap("text/event-stream"), [raw])
    assert key[9:] not in out.decode()
    events = [json.loads(line[6:]) for line in out.splitlines() if line]
    assert "".join(e["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for e in events) == (
        '{"k":"' + MARKER.decode() + '"}'
    )
    assert all(e["choices"][0]["logprobs"] is None for e in events)
    escaped = json.dumps({key: {"x": 1}}).replace("ghp", "\\u0067hp").encode()
    assert json.loads(run(tap("application/json"), [escaped])) == {MARKER.decode(): {"x": 1}}
    for line in (b": " + key.encode(), b"event: " + key.encode(), b"data: not json " + key.encode()):
        out = run(tap("text/event-stream"), [line + b"\n\n"])
        assert key.encode()[9:] not in out
        assert out.endswith(b"\n\n")


def test_a_changed_key_is_found_and_so_is_the_one_before() -> None:
    keys = [b"the first one's letters"]
    make = secret_filter(lambda: keys)
    keys = [b"what came after it"]
    request = context(chat())
    assert run(make(request), [b"the first one's letters, what came after it."]) == MARKER + b", " + MARKER + b"."
    assert request.filtered == {"gateway-provider-key": 2}
