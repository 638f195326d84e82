"""Messages that are well formed and end the session all the same: wrong number, side, order or credit.

Each entry is played in the same state: a session in `bucket`, in which the edge has opened stream 0 for the first
vector's request and the gateway has all of it and has not begun to answer. Every message has a record of its own.
"""

from tests.support.connection_pair import header
from tests.support.scripted_sessions import NOW, Talk, login
from tests.support.vector_hex import shorten
from tests.support.vector_values import ID
from transport.connection import AckReceived, Event, PeerClosed
from transport.errors import ProtocolViolation
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
    Posture,
    Refuse,
    Resume,
    Welcome,
    encode,
    request_digest,
)
from transport.primitives import sha256
from transport.stream import Progress

TEXT = b"answer"
RESUMED = "edge that resumes"
OTHER = b"\x02" * 16


def _open(stream: int, length: int, digest: bytes | None = None, body: bytes = b"") -> Open:
    head = header(bytes(length), expires_at=int(NOW) + 86_400)
    return Open(stream, OTHER, head, request_digest(head, body) if digest is None else digest)


_HEAD = Answer(0, 0, 200, "text/plain", False)
_RESUMED_HEAD = Answer(0, 1, 200, "text/plain", False)
_DATA = AnswerData(0, 0, TEXT)
_PING = encode(Ping())


def _parts(encoded: bytes) -> list[Message]:
    return [Part(True, encoded[:2]), Part(False, encoded[2:])]



TO_GATEWAY: dict[str, list[Message]] = {
    "a stream number used before": [_open(0, 0)],
    "a stream number below the last": [_open(5, 1), _open(4, 0)],
    "`resume` of a number used before": [Resume(0, ID, 0, 0)],
    "a body for a stream never opened": [Body(1, 0, b"x")],
    "credit for a stream never opened": [Credit(1, 1)],
    "`cancel` of a stream never opened": [Cancel(1)],
    "a header that does not decode": [Open(1, OTHER, b"\x90", bytes(32))],
    "a wrong digest": [_open(1, 2), Body(1, 0, b"ab")],
    "a wrong digest of an empty body": [_open(1, 0, bytes(32))],
    "a gap in the body": [_open(1, 4), Body(1, 1, b"a")],
    "an overlap in the body": [_open(1, 4), Body(1, 0, b"ab"), Body(1, 1, b"b")],
    "more than the body's length": [_open(1, 2), Body(1, 0, b"abc")],
    "a 33rd open stream": [_open(1 + index, 1) for index in range(32)],
    "`answer` to the gateway": [_HEAD],
    "`welcome` to the gateway": [Welcome(bytes(16), "", 1)],
    "`issued` to the gateway": [Issued("", [b"x"], [b"x"], 0, 1)],
    "`pace` that is not the first message": [Pace(Padding.BUCKET)],
    "a message between parts": [Part(True, _PING[:1]), Ping()],
    "parts of a part": _parts(encode(Part(False, _PING))),
    "`ack` beyond the answer": [Ack(ID, 1)],
    "a fifth body of 1 MiB beyond its first credit": [
        *(_open(1 + index, 1 << 20) for index in range(5)), Body(5, 0, bytes(8_192)), Body(5, 8_192, b"x")
    ],
    "`pace` in parts that is not the first message": _parts(encode(Pace(Padding.OFF))),
    "parts of a `rekey`": [Part(True, b"\x91"), Part(False, b"\x0c")],
    "parts of 16,383 bytes": [Part(True, bytes(16_350)), Part(True, bytes(33))],
    "a part that does not decode": [Part(False, b"\xc1")],
}
TO_EDGE: dict[str, list[Message]] = {
    "an answer for a stream never opened": [Answer(1, 0, 200, "", False)],
    "data before the answer": [_DATA],
    "the end before the answer": [End(0, 0, sha256(b""))],
    "an answer that begins twice": [_HEAD, _HEAD],
    "a gap in the data": [_HEAD, AnswerData(0, 1, TEXT)],
    "an overlap in the data": [_HEAD, _DATA, _DATA],
    "more than the credit of an answer": [
        _HEAD, *[AnswerData(0, 16_000 * index, bytes(16_000)) for index in range(17)]
    ],
    "an end of another length": [_HEAD, _DATA, End(0, len(TEXT) + 1, sha256(TEXT))],
    "an end with another digest": [_HEAD, _DATA, End(0, len(TEXT), sha256(b""))],
    "data behind the end": [_HEAD, _DATA, End(0, len(TEXT), sha256(TEXT)), AnswerData(0, len(TEXT), b"x")],
    "`refuse` twice": [Refuse(0, 400, "no", "", False), Refuse(0, 400, "no", "", False)],
    "credit for a stream never opened": [Credit(1, 1)],
    "a second `welcome`": [Welcome(bytes(16), "", 1)],
    "`issued` in a session for requests": [Issued("", [b"x"], [b"x"], 0, 1)],
    "`open` to the edge": [_open(1, 0)],
    "`ack` to the edge": [Ack(ID, 0)],
    "`pace` to the edge": [Pace(Padding.BUCKET)],
    "`posture` to the edge": [Posture("unknown", "unknown", "")],
    "a message between parts": [Part(True, _PING[:1]), Ping()],
}
# The edge has sent no request, but `resume` for 12 bytes of generation 1 as stream 0.
TO_RESUMED_EDGE: dict[str, list[Message]] = {
    "an answer of another generation": [Answer(0, 2, 200, "text/plain", False)],
    "data from the answer's beginning": [_RESUMED_HEAD, AnswerData(0, 0, TEXT)],
    "data beyond offset + credit": [
        _RESUMED_HEAD, *[AnswerData(0, 12 + 16_000 * index, bytes(16_000)) for index in range(17)]
    ],
    "an end with the digest of what came alone": [_RESUMED_HEAD, AnswerData(0, 12, b"x"), End(0, 13, sha256(b"x"))],
}
ALLOWED_TO_RESUMED_EDGE: dict[str, list[Message]] = {
    "the rest of the answer": [
        _RESUMED_HEAD, AnswerData(0, 12, b"x"), End(0, 13, sha256(bytes(12) + b"x")),
    ],
    "credit for a body that there is not": [Credit(0, 9_000)],
    "`refuse` in place of the answer": [Refuse(0, 404, "unknown_request", "", False)],
}

ALLOWED_TO_GATEWAY: dict[str, list[Message]] = {
    "a `pong` nobody asked for": [Pong()],
    "`ping` twice": [Ping(), Ping()],
    "credit below what was granted": [Credit(0, 1)],
    "`cancel`, and what was under way": [Cancel(0), Credit(0, 300_000), Body(0, 6, b"x"), Cancel(0)],
    "stream numbers with a gap": [_open(7, 0), Resume(9, OTHER, 5, 9)],
    "`ack` of an unknown request": [Ack(OTHER, 5)],
    "a message in parts": [Part(True, _PING[:1]), Part(False, _PING[1:])],
    "`body` and `credit` for a stream of `resume`": [Resume(1, OTHER, 0, 0), Body(1, 0, b"x"), Credit(1, 300_000)],
    "`ack` of nothing, twice": [Ack(ID, 0), Ack(ID, 0)],
    "an empty request": [_open(1, 0)],
}
ALLOWED_TO_EDGE: dict[str, list[Message]] = {
    "credit for a stream that is over": [Refuse(0, 400, "no", "", False), Credit(0, 9_000)],
    "`refuse` behind `answer`": [_HEAD, _DATA, Refuse(0, 502, "provider_garbled", "", False)],
    "an empty answer": [_HEAD, End(0, 0, sha256(b""))],
    "a code of `refuse` that is not in the table": [Refuse(0, 418, "teapot", "", True)],
    "a message in parts": [
        Part(True, encode(_HEAD)[:5]), Part(True, encode(_HEAD)[5:6]), Part(False, encode(_HEAD)[6:])
    ],
    "`close` between parts": [Part(True, encode(_HEAD)[:5]), Close("shutdown")],
}


class _Beyond(Exception):
    """An `ack` beyond the answer, of which there is nothing: what the journal of `relay` calls a violation."""


def _journal(event: Event) -> None:
    if isinstance(event, AckReceived) and event.request_id == bytes([1]) * 16 and event.offset:
        raise _Beyond


def played(side: str, messages: list[bytes]) -> tuple[Talk, bool]:
    """(the session, whether the side that got `messages` has ended it by `close("protocol_error")`)."""
    talk = login()
    talk.reads = False  # so that credit is used up
    if side == RESUMED:
        progress = Progress()
        progress.offset, progress.generation = 12, 1
        progress.digest.update(bytes(12))
        talk.edge.resume(ID, progress)
    else:
        talk.request(1, b"prompt")
    talk.settle()
    talk.gateway_does = _journal
    source, sink = (talk.edge, talk.gateway) if side == "gateway" else (talk.gateway, talk.edge)
    sealer = source._sealer
    assert sealer is not None
    wire = [sealer.seal_burst([message], talk.now) for message in messages]
    try:
        for record in wire:
            sink.receive_data(record, talk.now)
            talk._events()
    except (ProtocolViolation, _Beyond) as error:
        if isinstance(error, _Beyond):
            sink.close("protocol_error", talk.now)
        source.receive_data(sink.data_to_send(talk.now), talk.now)
        return talk, source.next_event() == PeerClosed("protocol_error")
    return talk, False


def written() -> list[dict[str, object]]:
    """As it stands in the file."""
    return _listed(TO_GATEWAY, TO_EDGE, TO_RESUMED_EDGE)


def written_allowed() -> list[dict[str, object]]:
    """Likewise."""
    return _listed(ALLOWED_TO_GATEWAY, ALLOWED_TO_EDGE, ALLOWED_TO_RESUMED_EDGE)


def _listed(*entries_of: dict[str, list[Message]]) -> list[dict[str, object]]:
    sides = dict(zip(("gateway", "edge", RESUMED), entries_of, strict=True))
    return [
        {"to": side, "what": what, "messages": [shorten(encode(message)) for message in messages]}
        for side, entries in sides.items() for what, messages in entries.items()
    ]
