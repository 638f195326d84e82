"""Typed messages: round trip, canonical form, limits, and nothing but documented errors on garbage."""

import contextlib

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

from transport.errors import BadInput, ProtocolViolation, TransportError
from transport.handshake import FRAME_HEADER_LEN, pad_payload, unpad_payload
from transport.messages import (
    Ack,
    Answer,
    AnswerData,
    Body,
    Cancel,
    Close,
    Credit,
    End,
    Issued,
    Message,
    Open,
    Pace,
    Padding,
    Part,
    Ping,
    Pong,
    Refuse,
    Rekey,
    RequestHeader,
    Resume,
    SpanRecord,
    Spans,
    Welcome,
    decode,
    decode_header,
    encode,
    encode_header,
    request_digest,
)

SPAN = SpanRecord("a" * 32, "b" * 16, "", "edge.ask", "edge", 1.5, 2.5, {"gen_ai.request.model": "m", "n": 1})
SAMPLES: list[Message] = [
    Open(0, b"i" * 16, b"header", b"d" * 32),
    Body(1, 0, b"data"),
    Credit(1, 4096),
    Cancel(2),
    Answer(1, 0, 200, "text/event-stream", True),
    AnswerData(1, 5, b"data"),
    End(1, 9, b"s" * 32),
    Refuse(1, 429, "provider_rate_limited", "wait", True),
    Welcome(b"e" * 16, "spiffe://x/hop/h", 3),
    Issued("spiffe://x/edge/e", [b"c"], [b"r"], 1, 1),
    Spans([SPAN]),
    Rekey(),
    Close("normal"),
    Resume(3, b"i" * 16, 1, 70_000),
    Ack(b"i" * 16, 70_000),
    Ping(),
    Pong(),
    Pace(Padding.CONSTANT),
    Part(True, b"piece"),
]


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_round_trip(message: Message) -> None:
    assert decode(encode(message)) == message


def test_every_type_number_is_used_once() -> None:
    numbers = [msgspec.msgpack.decode(encode(message))[0] for message in SAMPLES]
    assert numbers == list(range(1, 20))


@pytest.mark.parametrize("raw", [
    b"",
    b"\x91\xcc\x0c",  # Rekey with its number in two bytes
    b"\x92\x0c\x00",  # Rekey with a field too many
    b"\x81\xa4type\x0c",  # a map
    b"\x91\x63",  # an unknown number
    b"\x93\x03\x01",  # cut short
    encode(Rekey()) + b"\0",  # something behind it
    b"\x91" * 5_000,  # deep nesting
    msgspec.msgpack.encode([3, 1, 1 << 31]),  # credit over 2^31-1
    msgspec.msgpack.encode([3, -1, 1]),
    msgspec.msgpack.encode([2, 1, 0, b""]),  # empty data
    msgspec.msgpack.encode([2, 1, 0, bytes(16_353)]),  # data over the limit
    msgspec.msgpack.encode([1, 1, b"i" * 15, b"h", b"d" * 32]),
    msgspec.msgpack.encode([13, "Not A Code"]),
    msgspec.msgpack.encode([13, "refused\n"]),
    msgspec.msgpack.encode([11, [["a" * 32, "b" * 16, "", "n", "edge\n", 1.0, 2.0, {}]]]),
    msgspec.msgpack.encode([11, [["a" * 32, "b" * 16, "", "n", "edge", 1.0, 2.0, {"n": float("nan")}]]]),
    msgspec.msgpack.encode([8, 1, 200, "x" * 49, "m", False]),
    msgspec.msgpack.encode([18, "loud"]),
    msgspec.msgpack.encode([18, 1]),
    msgspec.msgpack.encode([19, True, b""]),
    msgspec.msgpack.encode([19, 1, b"x"]),
    msgspec.msgpack.encode([11, [["a" * 32, "b" * 16, "", "n", "edge", float("nan"), 1.0, {}]]]),
    msgspec.msgpack.encode([11, [["a" * 32, "b" * 16, "", "n", "edge", 1.0, float("inf"), {}]]]),
])
def test_malformed_messages_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode(raw)


@given(st.binary(max_size=300))
@example(b"\xdc\xff\xff")
@example(b"\xdd\xff\xff\xff\xff")
def test_garbage_gives_documented_errors_only(raw: bytes) -> None:
    for decoder in (decode, decode_header, unpad_payload):
        with contextlib.suppress(TransportError):
            decoder(raw)


@given(st.sampled_from(SAMPLES), st.integers(0, 10_000), st.integers(0, 255))
def test_mutated_messages_stay_canonical_or_are_refused(message: Message, position: int, value: int) -> None:
    raw = bytearray(encode(message))
    raw[position % len(raw)] = value
    with contextlib.suppress(ProtocolViolation):
        assert encode(decode(bytes(raw))) == bytes(raw)


def test_header_is_strict() -> None:
    header = RequestHeader("POST", "/v1/chat/completions", "application/json", "", 3, 1_900_000_000)
    assert decode_header(encode_header(header)) == header
    for change in (
        {"method": "post"}, {"route": "v1"}, {"route": "/v1/../x y"}, {"method": "POST\n"},
        {"body_length": (1 << 20) + 1}, {"traceparent": "x" * 56}, {"expires_at": -1},
    ):
        with pytest.raises(ProtocolViolation):
            encode_header(msgspec.structs.replace(header, **change))


def test_digest_covers_header_and_body() -> None:
    assert len({request_digest(b"h", b"b"), request_digest(b"h", b"c"), request_digest(b"i", b"b")}) == 3


def test_oversized_message_is_refused_before_it_is_sent() -> None:
    with pytest.raises(BadInput):
        encode(Refuse(1, 400, "c", "x" * 20_000, False))


@given(st.binary(min_size=1, max_size=4_000))
def test_handshake_payloads_are_padded_to_512(message: bytes) -> None:
    padded = pad_payload(message)
    assert len(padded) % 512 == 0
    assert unpad_payload(padded) == message


@pytest.mark.parametrize("payload", [
    b"", bytes(512), b"\0\1a" + bytes(508), b"\0\1a" + bytes(508) + b"x", b"\0\1a" + bytes(1021),
    b"\xff\xff" + bytes(510),
])
def test_malformed_handshake_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        unpad_payload(payload)


def test_frame_header_is_type_and_length() -> None:
    assert FRAME_HEADER_LEN == 3
