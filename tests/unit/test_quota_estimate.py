"""Estimates of tokens: never under the bytes of text that a model reads, and images by the piece."""

import asyncio
import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.checks.schema import Schema
from relay.gateway.quota.estimate import FILE_TOKENS, LONGEST, at_most, likely, passed
from tests.support.gateway_lab import chat, context

IMAGE = "data:image/png;base64," + base64.b64encode(bytes(30_000)).decode()


def read(body: bytes, **changes: str) -> int:
    """By the schema check, which finds the texts."""
    request = context(body, model="small", **changes)
    assert asyncio.run(Schema().check(request)) is None
    return at_most(request.body, request.said)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_each_byte_of_text_may_be_a_token(texts: list[str]) -> None:
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": text} for text in texts]}).encode()
    assert read(body) >= sum(len(text.encode()) for text in texts)


def test_an_image_counts_by_the_piece_and_the_words_beside_it_in_full() -> None:
    parts = [{"type": "text", "text": "What is this?"}, *[{"type": "image_url", "image_url": {"url": IMAGE}}] * 2]
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": parts}]}).encode()
    rest = len(body) - 2 * len(IMAGE)
    assert 2 * FILE_TOKENS < read(body) <= 2 * FILE_TOKENS + rest + 2


def test_an_image_as_anthropic_has_it_too() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE.partition(",")[2]}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    body = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    assert FILE_TOKENS < read(json.dumps(body).encode(), route="/v1/messages") < FILE_TOKENS + 300


@pytest.mark.parametrize("numbers", [[7] * 50_000, [[12_345] * 8_000] * 20])
def test_token_numbers_are_no_file(numbers: list[Any]) -> None:
    """They have neither spaces nor quotes, and `base64` is how the vectors are asked for."""
    body = {"model": "small", "encoding_format": "base64", "input": numbers}
    packed = json.dumps(body, separators=(",", ":")).encode()
    assert read(packed, route="/v1/embeddings") == len(packed)


def test_text_that_looks_like_an_image_is_text() -> None:
    for text in (IMAGE, f'say "{IMAGE}"', f'"data:{"x" * 9_000}'):
        assert read(chat(text=text)) >= len(text)


@given(st.integers(0, 10_000), st.integers(0, 100_000), st.integers(1, 5_000))
def test_what_has_passed_is_at_least_the_events_and_a_third_of_the_bytes(events: int, size: int, cap: int) -> None:
    """Unless the provider was told a number, and what came can be within it."""
    found = max(events, likely(size))
    assert passed(events, size, None) == found
    credible = events <= cap and size <= cap * LONGEST
    assert passed(events, size, cap) == (min(found, cap) if credible else found)
    assert likely(size) * 3 >= size


def test_a_provider_that_sends_much_in_few_events_is_not_believed() -> None:
    assert passed(2, 100 * LONGEST, 100) == 100
    assert passed(2, 100 * LONGEST + 1, 100) == 534
