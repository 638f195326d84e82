"""The relayed request's body, and answers from bytes that a provider wrote."""

import json
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.completions import RELAY_MAX_BYTES, AnswerReader, failure, request_body
from edge_client.engine.base import Message, Sampling
from edge_client.errors import PromptTooLong, ProviderFailed
from tests.support.fake_engine import sse

SSE = "text/event-stream; charset=utf-8"


async def stream(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(parts: Sequence[bytes], content_type: str = SSE) -> tuple[str, AnswerReader]:
    reader = AnswerReader(content_type)
    return "".join([text async for text in reader.texts(stream(parts))]), reader


def test_body_is_openais() -> None:
    body = json.loads(request_body("m", [Message("user", "hi")], Sampling(max_tokens=9, stop=("x",))))
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 9, "stop": ["x"],
    }


def test_body_is_bounded() -> None:
    with pytest.raises(PromptTooLong, match="KiB"):
        request_body("m", [Message("user", "x" * RELAY_MAX_BYTES)], Sampling())


@given(st.lists(st.text(min_size=1, max_size=20), max_size=6), st.integers(1, 50))
async def test_text_arrives_whole_however_the_bytes_are_cut(texts: list[str], size: int) -> None:
    whole = b": keep-alive\n\n" + b"".join(sse(*texts)).replace(b"\n\n", b"\r\n\r\n")
    text, reader = await read([whole[start : start + size] for start in range(0, len(whole), size)])
    assert text == "".join(texts)
    assert (reader.finish_reason, reader.prompt_tokens, reader.answer_tokens) == ("stop", 5, len(texts))


async def test_a_whole_answer_is_read_too() -> None:
    body = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "length"}], "usage": {"prompt_tokens": 3}}
    text, reader = await read([json.dumps(body).encode()], "application/json")
    assert (text, reader.finish_reason, reader.prompt_tokens) == ("Yes.", "length", 3)
    assert reader.answer_tokens is None, "not counted is not zero"


@pytest.mark.parametrize(("parts", "content_type"), [
    (sse("half")[:1], SSE),
    ([], SSE),
    ([b"data: {nonsense}\n\n"], SSE),
    ([b"data: " + b"[" * 100_000 + b"\n\n"], SSE),
    ([b'data: {"choices": [{"delta": {"content": 7}}]}\n\n'], SSE),
    ([b"data: \xff\xff\n\n"], SSE),
    ([b'data: {"error": {"message": "SECRETTEXT", "code": "overloaded"}}\n\n'], SSE),
    ([b"x" * (1 << 20)] * 2, SSE),
    ([b"<html>SECRETTEXT</html>"], "text/html"),
    ([b"x" * (1 << 20)] * 2, "application/json"),
])  # fmt: skip
async def test_garbage_is_one_error_that_quotes_nothing(parts: Sequence[bytes], content_type: str) -> None:
    with pytest.raises(ProviderFailed) as caught:
        await read(parts, content_type)
    assert "SECRETTEXT" not in str(caught.value)


@pytest.mark.parametrize(("status", "says"), [(401, "key"), (429, "limit"), (500, "500"), (504, "too long")])
async def test_statuses_are_told_apart(status: int, says: str) -> None:
    error = await failure(status, stream([b'{"error": {"message": "SECRETTEXT", "code": "some_code"}}']))
    assert says in str(error) and "some_code" in str(error) and "SECRETTEXT" not in str(error)
    assert "SECRET" not in str(await failure(status, stream([b'{"error": {"code": "SECRET TEXT"}}'])))
    assert says in str(await failure(status, stream([b"\x00garbage"])))
