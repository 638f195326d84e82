"""Cells, ticks, ladder, parts, and who may say `pace` when. What a watcher sees is in tests/properties."""

from functools import partial
from math import ceil
from statistics import mean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transport.records
from tests.support.ca import Ca
from tests.support.connection_pair import Pair, header, make_pair
from tests.support.timeline import stream_answer, timeline
from transport.connection import Phase, SpansReceived, Welcomed
from transport.errors import ProtocolViolation
from transport.handshake import ResumingInitiator
from transport.messages import (
    MESSAGE_MAX,
    Answer,
    AnswerData,
    Cancel,
    Credit,
    Message,
    Pace,
    Padding,
    Part,
    Ping,
    Rekey,
    SpanRecord,
    Spans,
    decode,
    encode,
)
from transport.mux import AnswerEnded, AnswerStarted, RequestReceived, StreamRefused
from transport.noise import CipherState, SystemEphemerals
from transport.pacing import (
    BUCKET_CELL,
    BUCKET_ROOM,
    CONSTANT_CELL,
    CONSTANT_ROOM,
    TICK_S,
    Joiner,
    Rhythm,
    TickClock,
    data_room,
    rung,
    split,
)
from transport.primitives import sha256
from transport.records import LENGTH_LEN, pack, pad
from transport.tickets import TicketStore

RECORD = 18  # bytes of a record around its plaintext
LONG_SPANS = Spans([SpanRecord("a" * 32, "b" * 16, "", "n" * 64, "edge", 1.0, 2.0, {"k" * 60: "v" * 128})] * 32)


def raw(pair: Pair, *messages: Message, to_edge: bool = False) -> None:
    source, sink = (pair.gateway, pair.edge) if to_edge else (pair.edge, pair.gateway)
    assert source._sealer is not None
    sink.receive_data(source._sealer.seal_burst([encode(message) for message in messages], pair.now), pair.now)
    pair._events()


def test_ladder() -> None:
    assert [rung(n) for n in (1, 16, 17, 24, 25, 33, 49, 65, 97, 129, 193, 257)] == [
        16, 16, 24, 24, 32, 48, 64, 96, 128, 192, 256, 384
    ]
    assert all(rung(n) >= n and rung(n) < 1.5 * n for n in range(16, 3_000))


@given(st.integers(0, (1 << 31) - 1), st.integers(0, 1 << 52), st.integers(64, CONSTANT_ROOM))
def test_data_fills_its_room_to_the_byte(stream: int, offset: int, room: int) -> None:
    size = data_room(stream, offset, room)
    taken = len(encode(AnswerData(stream, offset, bytes(size)))) + LENGTH_LEN
    assert room - 1 <= taken <= room, "bin 8 and bin 16 leave one length that none has"


@given(st.binary(min_size=1, max_size=MESSAGE_MAX - 32), st.sampled_from([BUCKET_ROOM, CONSTANT_ROOM]))
def test_parts_fit_cells_and_join_again(data: bytes, room: int) -> None:
    message = AnswerData(7, 1 << 40, data)
    parts, joiner = split(encode(message), room), Joiner()
    assert all(len(part) + LENGTH_LEN <= room for part in parts)
    if len(parts) == 1:
        assert decode(parts[0]) == message
        return
    joined: Message | None = None
    for encoded in parts:
        part = decode(encoded)
        assert isinstance(part, Part) and joined is None
        joined = joiner.add(part)
    assert joined == message and not joiner.busy


@pytest.mark.parametrize("parts", [
    [Part(True, bytes(MESSAGE_MAX - 32)), Part(True, bytes(33))],
    [Part(False, b"\xff")],
    [Part(False, encode(Part(False, encode(Ping()))))],
    [Part(False, encode(Rekey()))],
    [Part(True, b"\x91"), Ping(), Part(False, b"\x10")],
])
@pytest.mark.parametrize("to_edge", [True, False])
def test_bad_parts_end_the_session(parts: list[Message], to_edge: bool) -> None:
    pair = make_pair()
    pair.pump()
    with pytest.raises(ProtocolViolation):
        raw(pair, *parts, to_edge=to_edge)
    assert Phase.CLOSED in (pair.edge.phase, pair.gateway.phase)


@given(st.floats(1.7e9, 2e9), st.floats(0, 100_000))
def test_a_tick_is_the_next_phase_of_the_clock(start: float, after: float) -> None:
    clock, now = TickClock(start), start + after
    clock.arm(now)
    due = clock.deadline
    assert due is not None and now < due <= now + TICK_S + 1e-6
    assert (due - start) / TICK_S == pytest.approx(round((due - start) / TICK_S), abs=1e-4)
    assert not clock.due(now) and clock.due(due)
    clock.reach(due)
    assert clock.deadline is None and clock.due(due), "a tick that waits to be used wakes nobody"
    clock.used()
    assert not clock.due(due)


# --- pace -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", list(Padding))
@pytest.mark.parametrize("resumed", [False, True])
def test_both_sides_pad_as_the_edge_chose(padding: Padding, resumed: bool) -> None:
    ca, store = Ca(), TicketStore()
    first = make_pair(ca, tickets=store)
    first.pump()
    line = timeline(ca=ca, tickets=store, ticket=first.edge.tickets[0] if resumed else None, padding=padding)
    assert any(isinstance(event, Welcomed) for event in line.pair.edge_events)
    assert line.pair.gateway.streams.padding is padding
    assert line.pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt") == 0
    whole = stream_answer(line, 0, 2.0, [(2.0 + i / 20, bytes([i]) * 8) for i in range(10)], 2.6)
    line.run(10.0)
    assert [e.body for e in line.pair.gateway_events if isinstance(e, RequestReceived)] == [b"prompt"]
    assert line.bytes_of(0) == whole
    sizes = {seen.size - RECORD for seen in line.sent_by("gateway") if seen.at >= 2.0}
    if padding is Padding.OFF:
        assert max(sizes) < 64
    else:
        assert sizes == {BUCKET_CELL if padding is Padding.BUCKET else CONSTANT_CELL}


@pytest.mark.parametrize("messages", [
    [Pace(Padding.OFF), Pace(Padding.CONSTANT)],
    [Pace(Padding.BUCKET), Pace(Padding.BUCKET)],
    [Cancel(0), Pace(Padding.OFF)],
    [Credit(0, 1), Pace(Padding.OFF)],
])
def test_pace_comes_first_or_not_at_all(messages: list[Message]) -> None:
    pair = make_pair()
    pair.pump()
    with pytest.raises(ProtocolViolation):
        raw(pair, *messages)


def test_a_gateway_does_not_choose() -> None:
    pair = make_pair()
    pair.pump()
    with pytest.raises(ProtocolViolation):
        raw(pair, Pace(Padding.OFF), to_edge=True)


def test_M6_pace_is_no_early_data() -> None:
    ca, store = Ca(), TicketStore()
    first = make_pair(ca, tickets=store)
    first.pump()
    frame = ResumingInitiator(first.edge.tickets[0], SystemEphemerals()).first_frame(
        pad(pack([encode(Pace(Padding.OFF))]), control=False)[0]
    )
    pair = make_pair(ca, tickets=store)
    pair.gateway.receive_data(frame, pair.now)
    with pytest.raises(ProtocolViolation):
        pair._events()


@pytest.mark.parametrize("padding", [Padding.OFF, Padding.CONSTANT])
def test_answers_that_began_before_pace_go_on_the_new_way(padding: Padding) -> None:
    """A resumed session whose early data is answered before the edge's `pace` is here; also by an edge of ill will."""
    line = timeline()
    line.pair.edge.request(b"r" * 16, header(b"x"), b"x")
    line.run(0.0)
    line.pair.gateway._paced = False  # as if the request had been early data
    streams = line.pair.gateway.streams
    streams.answer(0, 200, "text/event-stream" + "x" * 110, streamed=True)
    streams.write(0, b"half")
    raw(line.pair, Pace(padding))
    streams.write(0, b" and half")
    streams.end(0, 13, sha256(b"half and half"))
    line.run(3.0)
    assert line.bytes_of(0) == b"half and half"
    assert any(isinstance(event, AnswerEnded) for event in line.pair.edge_events)
    assert not streams.cells_due


def test_bucket_says_nothing_of_itself() -> None:
    """The mode that sessions begin in costs no message."""
    assert [len(make_and_pump(padding).to_gateway[1]) for padding in (None, Padding.BUCKET)] == [1_042, 1_042]


def make_and_pump(padding: Padding | None) -> Pair:
    pair = make_pair() if padding is None else make_pair(padding=padding)
    pair.pump()
    return pair


# --- bucket ---------------------------------------------------------------------------------------------------------


def test_only_streamed_answers_wait_for_ticks() -> None:
    line = timeline()
    for i in range(2):
        line.pair.edge.request(bytes([i]) * 16, header(b"x"), b"x")
    line.run(0.01)
    streams = line.pair.gateway.streams
    streams.answer(0, 200, "text/plain", streamed=False)
    streams.write(0, b"whole")
    streams.end(0, 5, sha256(b"whole"))
    stream_answer(line, 1, 0.02, [(0.02, b"token")], 0.03)
    line.run(0.05)
    assert line.bytes_of(0) == b"whole" and line.bytes_of(1) == b""
    assert [seen.size for seen in line.sent_by("gateway")] == [512 + RECORD]
    line.run(0.1)
    assert line.bytes_of(1) == b"token"


def test_head_text_and_end_of_a_short_answer_take_one_cell_and_fifteen_dummies() -> None:
    line = timeline()
    line.pair.edge.request(b"r" * 16, header(b"x"), b"x")
    stream_answer(line, 0, 0.31, [(0.32, b"yes")], 0.33)
    line.run(0.45)
    assert any(isinstance(event, AnswerEnded) for event in line.pair.edge_events), "the application does not wait"
    line.run(20.0)
    cells = [seen for seen in line.sent_by("gateway") if seen.at > 0.3]
    assert [seen.at for seen in cells] == [pytest.approx(0.4 + i / 10, abs=1e-5) for i in range(16)]
    assert {seen.size for seen in cells} == {BUCKET_CELL + RECORD}
    assert not line.pair.gateway.streams.cells_due
    due = line.pair.gateway.next_deadline()
    assert due is not None and due > line.pair.now + 1, "no ticks are kept without a reason"


def tail_of(counts: dict[int, int], seed: bytes = b"seed") -> list[int]:
    """The tail of an answer with so many cells at these ticks, the last of which ends it."""
    rhythm = Rhythm()
    for tick, cells in counts.items():
        rhythm.add(cells)
        if tick != max(counts):
            rhythm.end_tick(tick)
    out, tail = [], rhythm.tail(seed)
    while tail is not None and not tail.over:
        out.append(tail.next_tick())
    return out


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.integers(1, 300), st.integers(1, 600), min_size=1, max_size=90), st.binary(max_size=4))
def test_H9_a_tail_comes_to_the_rung_has_no_long_lull_and_ends(counts: dict[int, int], seed: bytes) -> None:
    counts = dict(sorted(counts.items()))
    tail, cells = tail_of(counts, seed), sum(counts.values())
    assert cells + sum(tail) == rung(cells)
    assert "000" not in "".join("0" if count == 0 else "1" for count in tail)
    rate = int(cells / len(counts) + 0.5)
    assert len(tail) <= 3 * ceil(sum(tail) / rate)


def test_H9_a_tail_has_the_spread_of_its_answer_and_is_not_foreseen() -> None:
    pattern = [5, 7, 2, 10, 4, 5, 7, 9, 4, 12, 5, 2]
    counts = {tick: pattern[tick % 12] for tick in range(1, 180)}
    tail = tail_of(counts)[:-1]
    assert len(tail) > 60
    assert abs(mean(tail) - mean(counts.values())) < 1 and 0.8 < stdev(tail) / stdev(counts.values()) < 1.5
    assert set(tail) - set(pattern), "text brings numbers that were not there before, so its tail does"
    assert tail_of(counts, b"other seed")[:-1] != tail
    assert set(tail_of({tick: 3 for tick in range(1, 40)})[:-1]) == {3}, "an even answer has an even tail"


def test_H9_dice_for_tails_are_the_sessions_secret() -> None:
    seeds = {timeline().pair.gateway.streams.seed for _ in range(2)}
    assert len(seeds) == 2 and all(len(seed) == 32 for seed in seeds)


@pytest.mark.parametrize(("content_type", "text"), [("text/event-stream", "\N{SNOWMAN}" * 512), ("t" * 128, "short")])
def test_long_heads_and_refusals_travel_in_parts(content_type: str, text: str) -> None:
    line = timeline()
    line.pair.edge.request(b"r" * 16, header(b"x"), b"x")
    streams = line.pair.gateway.streams
    line.at(0.11, lambda: streams.answer(0, 200, content_type, streamed=True))
    line.at(0.12, lambda: streams.write(0, b"half"))
    line.at(0.25, lambda: streams.refuse(0, 502, "provider_failed", text, retryable=False))
    line.run(10.0)
    (head,) = [event for event in line.pair.edge_events if isinstance(event, AnswerStarted)]
    (refused,) = [event for event in line.pair.edge_events if isinstance(event, StreamRefused)]
    assert (head.content_type, refused.message) == (content_type, text)
    cells = [seen for seen in line.sent_by("gateway") if seen.at > 0.1]
    assert {seen.size for seen in cells} == {BUCKET_CELL + RECORD}
    assert len(cells) == rung(len(cells))


def test_a_cancelled_answer_ends_on_the_ladder_too() -> None:
    line = timeline()
    line.pair.edge.request(b"r" * 16, header(b"x"), b"x")
    streams = line.pair.gateway.streams
    line.at(0.11, lambda: streams.answer(0, 200, "t", streamed=True))
    line.at(0.12, lambda: streams.write(0, b"x" * 2_000))
    line.at(0.25, lambda: line.pair.edge.cancel(0))
    line.run(10.0)
    cells = [seen for seen in line.sent_by("gateway") if seen.at > 0.1]
    assert len(cells) == 24 and {seen.size for seen in cells} == {BUCKET_CELL + RECORD}


def test_credit_bounds_cells_and_a_waiting_answer_keeps_no_ticks() -> None:
    line = timeline()
    line.reads = False
    line.pair.edge.request(b"r" * 16, header(b"x"), b"x")
    whole = stream_answer(line, 0, 0.11, [(0.12, bytes(i % 256 for i in range(300_000)))], 0.13)
    line.run(5.0)
    assert line.bytes_of(0) == whole[: 256 * 1024]
    due = line.pair.gateway.next_deadline()
    assert due is not None and due > line.pair.now + 1
    line.reads = True
    line.pair.edge.consumed(0, 256 * 1024)
    line.run(500.0)
    assert line.bytes_of(0) == whole
    assert any(isinstance(event, AnswerEnded) for event in line.pair.edge_events)


def test_tails_are_bounded() -> None:
    """Answers that an edge begins and cancels over and over owe it no more than 64 dummy cells a tick."""
    line = timeline()
    streams = line.pair.gateway.streams
    for number in range(300):
        tick = number // 30 / 10  # the edge asks again when the refusals of the last thirty are there
        line.at(tick + 0.02, partial(line.pair.edge.request, bytes([number % 256]) * 16, header(b""), b""))
        line.at(tick + 0.04, partial(streams.answer, number, 200, "t", streamed=True))
        line.at(tick + 0.06, partial(line.pair.edge.cancel, number))
    line.run(20.0)
    per_tick: dict[float, int] = {}
    for seen in line.sent_by("gateway"):
        per_tick[seen.at] = per_tick.get(seen.at, 0) + (seen.size == BUCKET_CELL + RECORD)
    assert max(per_tick.values()) == 30 + 64, "the refusals of one tick, and the dummies"
    assert not streams.cells_due


def test_closing_sends_what_waits_for_a_tick() -> None:
    line = timeline()
    line.pair.edge.request(b"r" * 16, header(b"x"), b"x")
    stream_answer(line, 0, 0.11, [(0.12, b"last words")], 0.13)
    line.at(0.14, lambda: line.pair.gateway.close("shutdown", line.pair.now))
    line.run(0.15)
    assert line.bytes_of(0) == b"last words"
    assert any(isinstance(event, AnswerEnded) for event in line.pair.edge_events)


def test_a_late_machine_makes_up_for_ticks_once() -> None:
    line = timeline(padding=Padding.CONSTANT)
    line.run(1.05)
    before = len(line.sent_by("gateway"))
    line.pair.now += 3_600 * 0.5
    for core in (line.pair.edge, line.pair.gateway):
        core._heard = line.pair.now
        core.handle_time(line.pair.now)
    line._settle()
    assert len(line.sent_by("gateway")) == before + 1


# --- constant -------------------------------------------------------------------------------------------------------


def test_everything_goes_through_constant() -> None:
    line = timeline(padding=Padding.CONSTANT)
    body = bytes(i % 251 for i in range(9_000))
    line.at(0.5, lambda: line.pair.edge.request(b"r" * 16, header(body), body))
    line.at(0.5, lambda: line.pair.edge.send_spans(LONG_SPANS))
    line.at(9.0, lambda: line.pair.gateway.streams.refuse(0, 429, "slow_down", "\N{SNOWMAN}" * 512, retryable=True))
    line.run(15.0)
    assert [e.body for e in line.pair.gateway_events if isinstance(e, RequestReceived)] == [body]
    assert SpansReceived(LONG_SPANS) in line.pair.gateway_events
    (refused,) = [e for e in line.pair.edge_events if isinstance(e, StreamRefused)]
    assert refused.message == "\N{SNOWMAN}" * 512


def test_H9_rekey_rides_inside_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    rekeyed: list[CipherState] = []
    genuine = CipherState.rekey

    def rekey(cipher: CipherState) -> None:
        rekeyed.append(cipher)
        genuine(cipher)

    monkeypatch.setattr(transport.records, "REKEY_RECORDS", 150)
    monkeypatch.setattr(CipherState, "rekey", rekey)
    line = timeline(padding=Padding.CONSTANT)
    stream_answer(line, line.pair.edge.request(b"r" * 16, header(b"x"), b"x"), 1.0, [(1.0, b"a" * 100_000)], 1.1)
    line.run(50.05)
    assert len(rekeyed) == 2 * 2 * 3, "three times in each direction, at both ends"
    assert {seen.size for seen in line.wire} == {CONSTANT_CELL + RECORD}
    for sender in ("edge", "gateway"):
        assert [seen.at for seen in line.sent_by(sender)] == [
            pytest.approx(k * TICK_S, abs=1e-5) for k in range(1, 501)
        ]


def test_rekey_rides_inside_bucket_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.records, "REKEY_SECONDS", 11.0)
    line = timeline()
    line.pair.edge.request(b"r" * 16, header(b"x"), b"x")
    whole = stream_answer(line, 0, 0.11, [(0.2 + i / 10, b"x" * 200) for i in range(200)], 20.2)
    line.run(29.0)
    assert line.bytes_of(0) == whole
    assert {seen.size for seen in line.sent_by("gateway") if seen.at > 0.1} == {BUCKET_CELL + RECORD}


def test_answer_sizes_stay_those_of_the_encoding() -> None:
    """What a second implementation has to meet to send the same cells."""
    assert data_room(0, 0, BUCKET_ROOM) == 116
    assert data_room(0, 5_000, BUCKET_ROOM) == 114
    assert len(encode(Answer(0, 0, 200, "text/event-stream", True))) == 25
