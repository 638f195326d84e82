"""What a watcher sees of sizes and times (review H9, H10), for token sequences of any sizes and times. Virtual time."""

from collections import Counter
from functools import partial
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ca import Ca
from tests.support.connection_pair import header, make_pair
from tests.support.timeline import Seen, Timeline, stream_answer, timeline
from transport.connection import AckReceived, Phase, SpansReceived
from transport.identity.svid import Svid
from transport.messages import Padding, SpanRecord, Spans
from transport.mux import AnswerEnded
from transport.pacing import BUCKET_CELL, CONSTANT_CELL, LULL_MAX, QUIET_S, TICK_S, rung
from transport.primitives import sha256
from transport.tickets import TicketStore

RECORD = 18  # bytes of a record around its plaintext
CA = Ca()
EDGE, GATEWAY = CA.issue("edge/lap-1"), CA.issue("gateway/main")
SPANS = Spans([SpanRecord("a" * 32, "b" * 16, "", "n" * 64, "edge", 1.0, 2.0, {"k" * 60: "v" * 128})] * 8)

tokens = st.lists(st.tuples(st.floats(0, 3), st.binary(min_size=1, max_size=400)), max_size=40).map(sorted)
in_tick = st.floats(0.001, TICK_S - 0.001)


def session(padding: Padding = Padding.BUCKET, *, edge: Svid = EDGE, resumed: bool = False) -> Timeline:
    tickets = TicketStore()
    ticket = None
    if resumed:
        first = timeline(ca=CA, edge_svid=edge, gateway_svid=GATEWAY, tickets=tickets)
        ticket = first.pair.edge.tickets[0]
    return timeline(
        ca=CA, edge_svid=edge, gateway_svid=GATEWAY, tickets=tickets, ticket=ticket, padding=padding
    )


def asked(line: Timeline) -> int:
    return line.pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")


def cells(line: Timeline) -> list[Seen]:
    return [seen for seen in line.sent_by("gateway") if seen.at > 0]


def on_a_tick(seen: Seen) -> bool:
    return abs(seen.tick - round(seen.tick)) < 1e-4


# --- bucket ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 0.4), tokens, st.floats(0, 1))
def test_H9_cells_leave_at_ticks_and_come_to_a_rung(
    begin: float, written: list[tuple[float, bytes]], pause: float
) -> None:
    line = session()
    stream = asked(line)
    writes = [(begin + at, data) for at, data in written]
    end = max([begin, *(at for at, _ in writes)]) + pause
    whole = stream_answer(line, stream, begin, writes, end)
    line.run(25.0)
    assert line.bytes_of(stream) == whole
    assert sum(isinstance(event, AnswerEnded) for event in line.pair.edge_events) == 1
    seen = cells(line)
    assert {record.size for record in seen} == {BUCKET_CELL + RECORD}
    assert all(on_a_tick(record) for record in seen)
    assert len(seen) == rung(len(seen)), "an answer's cells are as many as a rung of the ladder"
    dummies = Counter(round(record.tick) for record in seen if record.at > end + TICK_S + 1e-5)
    real = Counter(round(record.tick) for record in seen if record.at <= end + TICK_S + 1e-5)
    if dummies:
        assert all(b - a <= 1 + LULL_MAX for a, b in pairwise([max(real), *dummies])), "nothing tells that it is over"
        rate = int(sum(real.values()) / len(real) + 0.5)
        assert max(dummies) - max(real) <= 3 * ceil(sum(dummies.values()) / rate), "and it ends"


@settings(max_examples=40, deadline=None)
@given(tokens)
def test_nothing_is_delayed_by_more_than_a_tick(written: list[tuple[float, bytes]]) -> None:
    line = session()
    stream = asked(line)
    writes = [(0.2 + at, data) for at, data in written]
    stream_answer(line, stream, 0.2, writes, 4.0)
    line.run(5.0)
    arrived = 0
    due = [at for at, data in writes for _ in data]
    for at, data in line.got.get(stream, []):
        for _ in data:
            assert due[arrived] <= at + 1e-5 <= due[arrived] + TICK_S + 2e-5
            arrived += 1
    assert arrived == len(due)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.lists(st.integers(0, 500), min_size=1, max_size=25))
def test_H9_only_what_waited_at_each_tick_shows(data: st.DataObject, per_tick: list[int]) -> None:
    """Two answers with as much text in each tick, but other words, token lengths and times, look the same."""
    wires = []
    for letter in (b"a", b"b"):
        line, writes = session(), []
        line.pair.gateway.streams.seed = b"the same dice"
        stream = asked(line)
        for tick, amount in enumerate(per_tick, start=3):
            cuts = sorted(data.draw(st.lists(st.integers(0, amount), max_size=5)))
            times = sorted(data.draw(st.lists(in_tick, min_size=len(cuts) + 1, max_size=len(cuts) + 1)))
            writes += [
                (tick * TICK_S + at, letter * (stop - start))
                for at, start, stop in zip(times, [0, *cuts], [*cuts, amount], strict=True) if stop > start
            ]
        begin = 2 * TICK_S + data.draw(in_tick)
        whole = stream_answer(line, stream, begin, writes, (len(per_tick) + 3) * TICK_S + data.draw(in_tick))
        line.run(20.0)
        assert line.bytes_of(stream) == whole
        wires.append(line.wire)
    assert wires[0] == wires[1]


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 60))
def test_H9_token_lengths_do_not_show(data: st.DataObject, count: int) -> None:
    """A token a tick: two answers of as many cells give the same sizes at the same times, however long the tokens."""
    wires = []
    for _ in range(2):
        line = session()
        stream = asked(line)
        lengths = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
        writes = [(0.35 + i * TICK_S, bytes(length)) for i, length in enumerate(lengths)]
        stream_answer(line, stream, 0.31, writes, 0.35 + count * TICK_S)
        line.run(20.0)
        wires.append(line.wire)
    assert wires[0] == wires[1]


def test_H9_token_counts_show_to_a_rung_only() -> None:
    wires = []
    for count in (33, 40, 46):
        line = session()
        stream = asked(line)
        stream_answer(line, stream, 0.31, [(0.35 + i * TICK_S, b"word") for i in range(count)], 0.36 + count * TICK_S)
        line.run(20.0)
        wires.append(line.wire)
    assert wires[0] == wires[1] == wires[2] and len(cells(line)) == 48


def test_H9_what_follows_an_answer_does_not_show_where_it_ended() -> None:
    """Acknowledgement and spans wait until the tail is over; else the rung would be worth nothing."""
    wires = []
    for count in (33, 40, 46):
        line = session()
        stream, done = asked(line), 0.36 + count * TICK_S
        stream_answer(line, stream, 0.31, [(0.35 + i * TICK_S, b"word") for i in range(count)], done)
        line.at(done + 0.15, partial(line.pair.edge.acknowledge, b"r" * 16, 4 * count))
        line.at(done + 0.16, partial(line.pair.edge.send_spans, SPANS))
        line.run(20.0)
        assert AckReceived(b"r" * 16, 4 * count) in line.pair.gateway_events
        assert SpansReceived(SPANS) in line.pair.gateway_events
        wires.append(line.wire)
    assert wires[0] == wires[1] == wires[2]
    said = [seen.at for seen in line.sent_by("edge") if seen.at > 0.2]
    assert said and min(said) == pytest.approx(cells(line)[-1].at + QUIET_S, abs=1e-5)


def test_under_lasting_traffic_acknowledgements_leave_at_whole_minutes() -> None:
    line = session()
    first, second = asked(line), asked(line)
    stream_answer(line, first, 0.31, [(0.35, b"word")], 0.4)
    stream_answer(line, second, 0.31, [(0.35 + i * 0.3, b"word") for i in range(500)], 200.0)
    line.at(1.0, partial(line.pair.edge.acknowledge, b"r" * 16, 4))
    line.run(59.9)
    assert AckReceived(b"r" * 16, 4) not in line.pair.gateway_events
    line.run(60.0)
    assert AckReceived(b"r" * 16, 4) in line.pair.gateway_events


@pytest.mark.parametrize("padding", list(Padding))
def test_what_is_held_back_leaves_before_a_close(padding: Padding) -> None:
    line = session(padding)
    stream_answer(line, asked(line), 0.31, [(0.35, b"word")], 0.4)
    line.at(0.6, partial(line.pair.edge.acknowledge, b"r" * 16, 4))
    line.at(0.61, lambda: line.pair.edge.close("normal", line.pair.now))
    line.run(1.0)
    assert AckReceived(b"r" * 16, 4) in line.pair.gateway_events
    assert line.pair.gateway.phase is line.pair.edge.phase is Phase.CLOSED


def test_nothing_is_held_back_where_nothing_was_streamed() -> None:
    line = session()
    line.pair.edge.acknowledge(b"r" * 16, 4)
    line.run(0.0)
    assert AckReceived(b"r" * 16, 4) in line.pair.gateway_events


def test_the_watcher_of_these_tests_can_see() -> None:
    """Without padding the same comparison tells token lengths and times apart; else it would prove nothing."""
    wires = []
    for length, phase in ((3, 0.05), (4, 0.05), (4, 0.06)):
        line = session(Padding.OFF)
        stream = asked(line)
        stream_answer(line, stream, 0.31, [(0.3 + phase + i / 10, bytes(length)) for i in range(20)], 4.0)
        line.run(5.0)
        wires.append(line.wire)
    assert wires[0] != wires[1] != wires[2]
    assert [w.at for w in wires[0]] == [w.at for w in wires[1]] != [w.at for w in wires[2]]


@settings(max_examples=20, deadline=None)
@given(st.lists(tokens, min_size=2, max_size=4))
def test_answers_side_by_side_arrive_whole_and_come_to_rungs(answers: list[list[tuple[float, bytes]]]) -> None:
    line = session()
    wholes = {}
    for number, written in enumerate(answers):
        stream = asked(line)
        wholes[stream] = stream_answer(line, stream, 0.1 + number / 30, [(0.2 + at, data) for at, data in written], 3.5)
    line.run(60.0)
    assert {stream: line.bytes_of(stream) for stream in wholes} == wholes
    total = len([seen for seen in cells(line) if seen.size == BUCKET_CELL + RECORD])
    rungs = {rung(n) for n in range(1, 400)}
    sums = {0}
    for _ in answers:
        sums = {a + b for a in sums for b in rungs}
    assert total in sums


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150))
def test_H10_short_prompts_have_one_size(first: int, second: int) -> None:
    sizes = []
    for length in (first, second):
        line = session()
        line.pair.edge.request(b"r" * 16, header(b"p" * length), b"p" * length)
        line.run(0.05)
        sizes.append([seen.size for seen in line.sent_by("edge")])
    assert sizes[0] == sizes[1] == [512 + RECORD]


# --- constant -------------------------------------------------------------------------------------------------------


def busy(line: Timeline, data: st.DataObject) -> None:
    """A session in which things happen."""
    body = data.draw(st.binary(max_size=3_000))
    at = data.draw(st.floats(0, 1))
    streams = line.pair.gateway.streams
    line.at(at, lambda: line.pair.edge.request(b"q" * 16, header(body), body))
    if data.draw(st.booleans()):
        line.at(at + 0.3, lambda: line.pair.edge.send_spans(SPANS))
    begin = at + 3.0
    if data.draw(st.booleans()):
        stream_answer(line, 0, begin, [(begin + t, text) for t, text in data.draw(tokens)], begin + 3.1)
    else:
        line.at(begin, lambda: streams.answer(0, 200, "text/plain", streamed=False))
        line.at(begin + 0.01, lambda: streams.write(0, body * 3))
        line.at(begin + 0.02, lambda: streams.end(0, 3 * len(body), sha256(body * 3)))
    if data.draw(st.booleans()):
        line.at(begin + data.draw(st.floats(0, 3)), lambda: line.pair.edge.cancel(0))


@pytest.mark.parametrize("resumed", [False, True])
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_H9_constant_looks_the_same_whatever_happens(resumed: bool, data: st.DataObject) -> None:
    wires = []
    for happens in (False, True):
        line = session(Padding.CONSTANT, resumed=resumed)
        if happens:
            busy(line, data)
        line.run(7.95)
        wires.append(line.wire)
    assert wires[0] == wires[1]
    for sender in ("edge", "gateway"):
        seen = line.sent_by(sender)
        assert {record.size for record in seen} == {CONSTANT_CELL + RECORD}
        assert [round(record.tick) for record in seen] == list(range(1, 80))
        assert all(on_a_tick(record) for record in seen)


def flights(line: Timeline) -> tuple[list[int], list[int]]:
    return [len(flight) for flight in line.pair.to_gateway], [len(flight) for flight in line.pair.to_edge]


@pytest.mark.parametrize("resumed", [False, True])
def test_H9_requests_that_wait_for_a_constant_session_do_not_show(resumed: bool) -> None:
    """No early data, and no longer first flight."""
    seen = []
    for waiting in (0, 1, 20):
        tickets = TicketStore()
        first = timeline(ca=CA, edge_svid=EDGE, gateway_svid=GATEWAY, tickets=tickets)
        pair = make_pair(
            CA, edge_svid=EDGE, gateway_svid=GATEWAY, tickets=tickets, padding=Padding.CONSTANT,
            ticket=first.pair.edge.tickets[0] if resumed else None,
        )
        for number in range(waiting):
            pair.edge.request(bytes([number]) * 16, header(b"prompt" * 90), b"prompt" * 90)
        line = Timeline(pair)
        line.run(10.0)
        seen.append((flights(line), line.wire))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("waiting", [0, 100, 40_000])
def test_H9_the_end_of_a_constant_session_is_one_more_cell(waiting: int) -> None:
    line = session(Padding.CONSTANT)
    stream = asked(line)
    stream_answer(line, stream, 1.0, [(1.0, bytes(waiting))], 1.01)
    line.at(2.05, lambda: line.pair.edge.close("normal", line.pair.now))
    line.run(10.0)
    for sender, last in (("edge", 2.05), ("gateway", 2.0)):
        seen = line.sent_by(sender)
        assert {record.size for record in seen} == {CONSTANT_CELL + RECORD}
        assert seen[-1].at == pytest.approx(last, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=5_000), tokens)
def test_constant_delivers_everything(body: bytes, written: list[tuple[float, bytes]]) -> None:
    line = session(Padding.CONSTANT)
    stream = line.pair.edge.request(b"q" * 16, header(body), body)
    whole = stream_answer(line, stream, 2.0, [(2.0 + at, data) for at, data in written], 5.5)
    line.run(15.0)
    assert line.bytes_of(stream) == whole
    assert any(isinstance(event, AnswerEnded) for event in line.pair.edge_events)
