"""What passes the schema has one meaning; what does not is told so without a word of its content."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.checks import problems
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.schema import BODY_MAX, Schema
from relay.gateway.pipeline import Refusal
from tests.support.gateway_lab import allowing, chat, context, peer

ALLOWED = allowing({"/edge/*": ["small", "large"], "/edge/lap-1": ["special"]})


async def through(body: bytes, **changes: object) -> Refusal | None:
    """Authorise, then schema, as the pipeline does."""
    request = context(body, **changes)
    refusal = await Authorise(ALLOWED).check(request)
    if refusal is None:
        refusal = await Schema().check(request)
    assert (refusal is None) == request.parsed
    return refusal


async def code(body: bytes, **changes: object) -> str:
    refusal = await through(body, **changes)
    return "" if refusal is None else refusal.code


@pytest.mark.parametrize("fields", [
    {}, {"stream": True}, {"stream": False}, {"stream": None}, {"temperature": 0.5, "top_p": 1, "n": 1},
    {"max_tokens": 100, "stop": ["x"], "seed": 7}, {"stream": True, "stream_options": {"include_usage": True}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"A": 1, "a": 2}}}]},
    {"response_format": {"type": "json_object"}},
])
async def test_ordinary_requests_pass(fields: dict[str, object]) -> None:
    assert await code(chat(**fields)) == ""


async def test_content_parts_and_tool_messages_pass() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "x"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ]},
        {"role": "tool", "content": "12", "tool_call_id": "1"},
    ]
    assert await code(json.dumps({"model": "small", "messages": messages}).encode()) == ""


@pytest.mark.parametrize(("body", "expected"), [
    (b"", "malformed_json"), (b"{", "malformed_json"), (b"[]", "malformed_json"), (b"null", "malformed_json"),
    (b"\xff\xfe{}", "malformed_json"), (chat().decode().encode("utf-16"), "malformed_json"),
    (b'\xef\xbb\xbf{"model":"small","messages":[]}', "malformed_json"),
    (chat() + b"x", "malformed_json"), (chat()[:-1], "malformed_json"),
    (b'{"model":"small","messages":[{"role":"user","content":"x"}],"temperature":NaN}', "malformed_json"),
    (b'{"model":"small","messages":[{"role":"user","content":"x"}],"seed":1e999999}', "malformed_json"),
    (b'{"model":"small","messages":[]}', "invalid_request"), (b'{"model":"small"}', "invalid_request"),
    (b'{"messages":[{"role":"user","content":"x"}]}', "invalid_request"),
    (b'{"model":"","messages":[{"role":"user","content":"x"}]}', "invalid_request"),
    (chat(temperature="hot"), "invalid_request"), (chat(stream="yes"), "invalid_request"),
    (chat(n=1000), "invalid_request"), (chat(surprise=1), "unknown_field"), (chat(text=""), "empty_prompt"),
    (json.dumps({"model": "small", "messages": [{"role": "root", "content": "x"}]}).encode(), "invalid_request"),
    (chat(metadata=json.loads("[" * 40 + "]" * 40)), "json_too_deep"),
    (chat(metadata=[[]] * 100_001), "json_too_deep"),
    (b'{"model":"small","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_too_deep"),
    (chat(text="x" * BODY_MAX), "request_too_large"),
])
async def test_what_is_not_a_request_is_refused(body: bytes, expected: str) -> None:
    assert await code(body) == expected


@pytest.mark.parametrize("body", [
    b'{"model":"small","model":"large","messages":[{"role":"user","content":"x"}]}',
    b'{"model":"small","Model":"large","messages":[{"role":"user","content":"x"}]}',
    '{"model":"small","\u017ftream":true,"stream":false,"messages":[{"role":"user","content":"x"}]}'.encode(),
    b'{"model":"small","messages":[{"role":"user","content":"x","content":"y"}]}',
    b'{"model":"small","mo\\u0064el":"forbidden","messages":[{"role":"user","content":"x"}]}',
])
async def test_two_readings_of_one_body_are_refused(body: bytes) -> None:
    assert await code(body) in ("ambiguous_json", "model_not_allowed")


async def test_models_and_devices_that_are_not_allowed() -> None:
    assert await code(chat("forbidden")) == "model_not_allowed"
    assert await code(chat("special")) == ""
    assert await code(chat("special"), peer=peer("edge/lap-10")) == "model_not_allowed"
    assert await code(chat(), peer=peer("hop/lap-1")) == "not_allowed"
    assert await code(chat(), peer=peer("edge/a/b")) == "not_allowed"
    assert await code(chat(), route="/v1/images") == "unknown_route"
    assert await code(chat(), method="GET") == "unknown_route"
    assert await code(b"", method="GET", route="/v1/models") == ""
    assert await code(b"x", method="GET", route="/v1/models") == "unexpected_body"
    assert await code(chat(), content_type="text/plain") == "unsupported_content_type"


async def test_a_refusal_names_our_field_and_never_the_value() -> None:
    refusal = await through(chat(temperature="CANARY-9"))
    assert refusal is not None
    assert "temperature" in refusal.message
    for body in (chat(temperature="CANARY-9"), chat(**{"CANARY-9 field": 1}), b'{"model": CANARY-9'):
        refusal = await through(body)
        assert refusal is not None
        assert "CANARY-9" not in json.dumps(problems.body(refusal, "0" * 32))


@given(st.binary(max_size=200))
async def test_no_bytes_break_it(body: bytes) -> None:
    assert await through(body) is not None


@given(st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(
        st.sampled_from(["model", "messages", "role", "content", "stream", "x"]), inner, max_size=4)),
    max_leaves=12,
))
async def test_no_json_breaks_it(value: object) -> None:
    await through(json.dumps(value).encode())


@given(st.text(max_size=20))
async def test_only_allowed_models_pass_however_they_are_written(model: str) -> None:
    assert (await through(chat(model)) is None) == (model in ("small", "large", "special"))
