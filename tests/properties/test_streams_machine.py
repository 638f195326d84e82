"""Streams of both sides, messages interleaved at will, several links, every padding mode: identical, bounded, no jam.

At the end of every run the messages are let through, and then whatever was asked must have been answered or refused.
"""

import contextlib
import hashlib
from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.connection_pair import header
from transport.edge_mux import EdgeMux
from transport.errors import Overloaded, ProtocolViolation
from transport.gateway_mux import BODIES_MAX, GatewayMux
from transport.messages import (
    REQUEST_BODY_MAX,
    STREAMS_MAX,
    Answer,
    AnswerData,
    Body,
    Cancel,
    Credit,
    End,
    Message,
    Open,
    Padding,
    Part,
    Refuse,
    Resume,
    decode,
    request_digest,
)
from transport.mux import (
    AnswerBytes,
    AnswerEnded,
    AnswerStarted,
    RequestCancelled,
    RequestReceived,
    ResumeRequested,
    StreamRefused,
)
from transport.pacing import BUCKET_ROOM, CONSTANT_ROOM, Joiner
from transport.primitives import sha256
from transport.stream import ANSWER_CREDIT, BODY_CREDIT, Progress

HIGH_WATER = 64 * 1024  # the gateway's application writes while less than this waits to leave
PATTERN = hashlib.shake_128(b"pattern").digest(1 << 20)
body_sizes = st.sampled_from([0, 1, 100, BODY_CREDIT, BODY_CREDIT + 1, 60_000, REQUEST_BODY_MAX])
answer_sizes = [0, 1, 5_000, 300_000, 700_000]
streams = st.integers(0, 5)
small = st.integers(0, 40_000)
data_bytes = st.binary(min_size=1, max_size=30)
HEADER = header(b"body")
hostile = st.one_of(
    st.builds(Open, streams, st.just(b"r" * 16), st.sampled_from([HEADER, b"\x00"]), st.just(bytes(32))),
    st.builds(Open, streams, st.just(b"r" * 16), st.just(HEADER), st.just(request_digest(HEADER, b"body"))),
    st.builds(Body, streams, small, data_bytes), st.builds(Credit, streams, small), st.builds(Cancel, streams),
    st.builds(Resume, streams, st.just(b"r" * 16), small, small),
    st.builds(Answer, streams, st.integers(0, 2), st.just(200), st.just("t"), st.booleans()),
    st.builds(AnswerData, streams, small, data_bytes), st.builds(End, streams, small, st.just(bytes(32))),
    st.builds(Refuse, streams, st.just(500), st.just("c"), st.just("m"), st.booleans()),
)  # fmt: skip


class Request:
    """What the edge's application knows of one request, over all links, and what its answer will be."""

    def __init__(self, number: int, size: int, most: int) -> None:
        self.id = number.to_bytes(16, "big")
        self.body = PATTERN[number:].ljust(REQUEST_BODY_MAX, b"!")[: min(size, most)]
        self.answer = PATTERN[number : number + min(most, answer_sizes[number % len(answer_sizes)])]
        self.progress = Progress()
        self.came = bytearray()
        self.unread = 0
        self.over = False  # whole, refused or cancelled
        self.ended = False


class StreamsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.padding = Padding.BUCKET
        self.new_link_objects()

    @initialize(padding=st.sampled_from(Padding))
    def choose(self, padding: Padding) -> None:
        self.padding = padding
        self.new_link_objects()

    def new_link_objects(self) -> None:
        self.edge, self.gateway = EdgeMux(), GatewayMux()
        self.edge_joiner, self.gateway_joiner = Joiner(), Joiner()
        for mux in (self.edge, self.gateway):
            if self.padding is not Padding.BUCKET:
                mux.pace(self.padding)
        self.to_gateway: deque[bytes] = deque()
        self.to_edge: deque[bytes] = deque()
        self.open: dict[int, Request] = {}  # the edge's streams
        self.answering: dict[int, tuple[Request, int]] = {}  # the gateway's streams: request, bytes written
        self.received: list[bytes] = []
        self.ticks = 0

    @property
    def most(self) -> int:
        """Bytes of a body or an answer: cells are many and small."""
        return 9_000 if self.padding is Padding.CONSTANT else REQUEST_BODY_MAX

    def output(self, mux: EdgeMux | GatewayMux, limit: int) -> list[bytes]:
        if self.padding is Padding.CONSTANT:
            cell = mux.cell()
            assert sum(len(message) + 2 for message in cell) <= CONSTANT_ROOM
            return cell
        burst, _ = mux.burst(limit)
        assert sum(len(message) + 2 for message in burst) <= limit
        for cell in mux.cells(limit):
            assert sum(len(message) + 2 for message in cell) <= BUCKET_ROOM
            burst += cell
        self.ticks += 1
        mux.dummies(self.ticks)
        return burst

    # --- the edge

    @rule(size=body_sizes)
    def ask(self, size: int) -> None:
        if sum(len(request.body) for request in self.open.values()) > 3 << 20:
            return  # enough for one example
        request = Request(len(self.requests), size, self.most)
        try:
            stream = self.edge.request(request.id, header(request.body), request.body, request.progress)
        except Overloaded:
            assert len(self.edge._streams) == STREAMS_MAX
            return
        self.requests.append(request)
        self.open[stream] = request

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if self.open:
            stream = data.draw(st.sampled_from(sorted(self.open)))
            self.edge.cancel(stream)
            self.open.pop(stream).over = True

    @rule()
    def read(self) -> None:
        for stream, request in self.open.items():
            taken, request.unread = request.unread, 0
            self.edge.consumed(stream, taken)

    @rule()
    def move_to_a_new_link(self) -> None:
        left = [request for request in self.requests if not request.over]
        self.new_link_objects()
        for request in left[:STREAMS_MAX]:
            request.unread = 0
            if request.came:
                self.open[self.edge.resume(request.id, request.progress)] = request
            else:
                stream = self.edge.request(request.id, header(request.body), request.body, request.progress)
                self.open[stream] = request

    # --- the wire

    @rule(limit=st.sampled_from([600, 2_000, 20_000, 64 * 1024]))
    def edge_sends(self, limit: int) -> None:
        self.to_gateway += self.output(self.edge, limit)

    @rule(limit=st.sampled_from([600, 2_000, 20_000, 64 * 1024]))
    def gateway_sends(self, limit: int) -> None:
        self.to_edge += self.output(self.gateway, limit)

    @rule(count=st.integers(1, 50))
    def gateway_hears(self, count: int) -> None:
        for _ in range(min(count, len(self.to_gateway))):
            message = decode(self.to_gateway.popleft())
            whole = self.gateway_joiner.add(message) if isinstance(message, Part) else message
            if whole is not None:
                self.gateway_takes(whole)

    @rule(count=st.integers(1, 50))
    def edge_hears(self, count: int) -> None:
        for _ in range(min(count, len(self.to_edge))):
            message = decode(self.to_edge.popleft())
            whole = self.edge_joiner.add(message) if isinstance(message, Part) else message
            if whole is not None:
                self.edge_takes(whole)

    @rule(message=hostile, to_gateway=st.booleans())
    def forge(self, message: Message, to_gateway: bool) -> None:
        """A peer that breaks the rules: it may end the session, and do nothing else."""
        with contextlib.suppress(ProtocolViolation):
            (self.gateway if to_gateway else self.edge).receive(message)
        self.move_to_a_new_link()

    # --- both applications

    def gateway_takes(self, message: Message) -> None:
        self.gateway.receive(message)
        while self.gateway.events:
            event = self.gateway.events.pop(0)
            if isinstance(event, RequestReceived):
                request = self.requests[int.from_bytes(event.request_id, "big")]
                assert event.body == request.body and event.request_id not in self.received
                self.received.append(event.request_id)
                self.answering[event.stream] = request, 0
            elif isinstance(event, ResumeRequested):
                request = self.requests[int.from_bytes(event.request_id, "big")]
                self.answering[event.stream] = request, event.offset
                self.gateway.answer(event.stream, 200, "t", streamed=True, offset=event.offset)
            elif isinstance(event, RequestCancelled):
                self.answering.pop(event.stream, None)  # it may be written to the end, and still waiting to leave

    def edge_takes(self, message: Message) -> None:
        self.edge.receive(message)
        while self.edge.events:
            event = self.edge.events.pop(0)
            request = self.open[event.stream]  # nothing comes for a stream that is over
            if isinstance(event, AnswerBytes):
                request.came += event.data
                request.unread += len(event.data)
            elif isinstance(event, AnswerEnded):
                assert bytes(request.came) == request.answer
                request.ended = request.over = True
                del self.open[event.stream]
            elif isinstance(event, StreamRefused):
                request.over = True
                del self.open[event.stream]
            else:
                assert isinstance(event, AnswerStarted)

    @rule(data=st.data(), refuse=st.integers(0, 9), streamed=st.booleans())
    def answer(self, data: Any, refuse: int, streamed: bool) -> None:
        if not self.answering:
            return
        stream = data.draw(st.sampled_from(sorted(self.answering)))
        if refuse == 0:
            self.gateway.refuse(stream, 503, "later", "try later", retryable=True)
            del self.answering[stream]
        else:
            self.write(stream, streamed)

    def write(self, stream: int, streamed: bool = True) -> None:
        request, written = self.answering[stream]
        self.gateway.answer(stream, 200, "t", streamed=streamed)
        piece = request.answer[written : written + max(0, HIGH_WATER - self.gateway.buffered(stream))]
        self.gateway.write(stream, piece)
        self.answering[stream] = request, written + len(piece)
        if written + len(piece) == len(request.answer):
            self.gateway.end(stream, len(request.answer), sha256(request.answer))
            del self.answering[stream]

    # --- what must hold

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.gateway._incoming) + len(self.gateway._answering) <= 2 * STREAMS_MAX
        held = sum(len(asking.body._data) for asking in self.gateway._incoming.values())
        assert held <= BODIES_MAX + STREAMS_MAX * BODY_CREDIT
        for request in self.open.values():
            assert request.unread <= ANSWER_CREDIT
        assert self.gateway.queued <= 20 * STREAMS_MAX and self.edge.queued <= 20 * STREAMS_MAX

    @invariant()
    def what_came_is_what_was_sent(self) -> None:
        for request in self.open.values():
            assert request.came == request.answer[: len(request.came)]

    def teardown(self) -> None:
        while True:
            self.read()
            for stream in list(self.answering):
                self.write(stream)
            for _ in range(20):
                self.edge_sends(64 * 1024)
                self.gateway_sends(64 * 1024)
            if not self.to_gateway and not self.to_edge:
                break
            self.gateway_hears(1 << 20)
            self.edge_hears(1 << 20)
        assert not self.open, "a stream waits although nothing is under way"
        assert not self.gateway._incoming and not self.gateway._senders and not self.gateway._answering


TestStreamsMachine = StreamsMachine.TestCase
TestStreamsMachine.settings = settings(stateful_step_count=40)
