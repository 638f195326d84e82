"""What is read as JSON has one meaning; a slow parser, written for this alone, agrees on every body."""

import json
import math
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.checks.reading import DEPTH_MAX, DIGITS_MAX, NODES_MAX, read
from relay.gateway.pipeline import Refusal
from tests.support.json_cases import DEPTH, Case, cases, holding

CASES = cases()


def verdict(body: bytes) -> str:
    found = read(body)
    return found.code if isinstance(found, Refusal) else ""


class Twice(ValueError):
    pass


def slowly(body: bytes) -> str:
    """The same by Python's own parser, with each rule written out."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            twice.append(True)
        for name, _ in pairs:
            name.encode()  # UnicodeEncodeError for half a pair
        return dict(pairs)

    def integer(text: str) -> int:
        if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
            raise ValueError
        return int(text)

    def real(text: str) -> float:
        if len(text) > DIGITS_MAX or not math.isfinite(float(text)):
            raise ValueError
        return float(text)

    def constant(text: str) -> NoReturn:
        raise ValueError

    twice: list[bool] = []
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=unique, parse_int=integer, parse_float=real, parse_constant=constant
        )
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        return "json_too_deep"
    except ValueError:
        return "malformed_json"
    if not isinstance(value, dict):
        return "malformed_json"
    if measure(value)[0] > DEPTH_MAX or measure(value)[1] > NODES_MAX:
        return "json_too_deep"
    if twice or len({name.casefold() for name in value}) < len(value):
        return "ambiguous_json"
    return ""


def measure(value: Any) -> tuple[int, int]:
    """Levels and parts."""
    if not isinstance(value, dict | list):
        return 0, 0
    inside = [measure(one) for one in (value.values() if isinstance(value, dict) else value)]
    return 1 + max((one[0] for one in inside), default=0), 1 + sum(one[1] for one in inside)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_body_becomes_what_was_decided(case: Case) -> None:
    assert verdict(case.body) == case.code
    if "depth" not in case.name:  # where Python's stack ends is not the question
        assert slowly(case.body) == case.code


def test_what_is_read_is_what_python_reads() -> None:
    for case in CASES:
        if not case.code:
            assert read(case.body) == json.loads(case.body), case.name


def test_the_bounds_are_those_that_are_published() -> None:
    assert DEPTH == DEPTH_MAX == 32
    assert verdict(holding(b"[" * 31 + b"]" * 31)) == ""


texts = st.text(st.sampled_from('a:A{}[]",\\ \u00e9\U0001f600\x7f'), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False,
        allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(texts, inner), max_size=4).map(tuple),
    max_leaves=20,
)


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """JSON as it could be written, with names twice, escapes where none are needed, and blanks."""

    def text(value: str) -> str:
        plain = json.dumps(value, ensure_ascii=draw(st.booleans()))
        return plain.replace(":", draw(st.sampled_from([":", "\\u003a", "\\u003A"])))

    def write(value: Any) -> str:
        blank = draw(st.sampled_from(["", "", " ", "\n"]))
        if isinstance(value, str):
            return text(value)
        if isinstance(value, list):
            return "[" + f"{blank},".join(write(one) for one in value) + "]"
        if isinstance(value, tuple):
            return "{" + ",".join(f"{text(name)}{blank}:{write(one)}" for name, one in value) + "}"
        return json.dumps(value)

    pairs = draw(st.lists(st.tuples(texts, values), max_size=4))
    return write(tuple(pairs)).encode()


@given(written())
def test_both_agree_on_what_is_written(body: bytes) -> None:
    assert verdict(body) == slowly(body)


@given(written(), st.data())
def test_both_agree_on_what_was_damaged(body: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(body)))
    put = data.draw(st.sampled_from([b"", b":", b",", b'"', b"\\", b"{", b"]", b"0", b"e", b"\x00", b"\xff",
        b"\\u003a", b" "]))
    body = body[:at] + put + body[at + data.draw(st.integers(0, 2)) :]
    assert verdict(body) == slowly(body)


@given(st.binary(max_size=64))
def test_both_agree_on_any_bytes(body: bytes) -> None:
    assert verdict(body) == slowly(body)


@given(st.lists(st.tuples(st.sampled_from(["a", "A", "\\u0061", ":", "\\u003a", "b:", "\\\\u003a"]), st.sampled_from(
    ["1", '":"', '"\\u003a"', '"\\u003A:"', "{}", '{":":":"}', '[":"]', '"\\\\u003a"']
)), max_size=5))
def test_a_name_twice_is_seen_whatever_colons_are_about(pairs: list[tuple[str, str]]) -> None:
    body = ('{"in":{' + ",".join(f'"{name}":{value}' for name, value in pairs) + "}}").encode()
    names = [json.loads(f'"{name}"') for name, _ in pairs]
    assert verdict(body) == ("" if len(set(names)) == len(names) else "ambiguous_json")
