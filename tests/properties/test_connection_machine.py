"""Both connection cores and a hostile wire: an edge that comes back over link after link, and a wire that may do all.

The wire drops, repeats, swaps, alters, cuts, inserts and reflects flights, and replays old ones to the gateway. Then:
no (key, nonce) seals twice; nothing of an edge is told before it is admitted, nor what it did not send, nor twice on
one link; an answer that ended is what was sent; closed stays closed; buffers are bounded; only TransportErrors come
out, never LocalMisuse, which would make the peer's bytes our fault, and no violation where the wire was honest.
"""

import hashlib
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.ca import Ca
from tests.support.connection_pair import EPOCH, header, verifier
from tests.support.seal_log import SealLog
from transport.connection import AckReceived, CredentialReceived, Phase, SignatureNeeded, SpansReceived
from transport.errors import LocalMisuse, Overloaded, ProtocolViolation, TransportError
from transport.handshake import FRAME_HEADER_LEN, RESUME_BODY_MAX, SECOND_BODY_MAX
from transport.initiator import EdgeConnection, Resumption, SvidLogin
from transport.messages import Padding, Welcome, request_digest
from transport.mux import (
    AnswerBytes,
    AnswerEnded,
    AnswerStarted,
    RequestCancelled,
    RequestReceived,
    ResumeRequested,
    StreamRefused,
)
from transport.noise import SystemEphemerals
from transport.primitives import sha256
from transport.records import RECORD_MAX
from transport.responder import UNVERIFIED_MAX, GatewayConnection
from transport.stream import Progress
from transport.tickets import Ticket, TicketStore

NOW = 1_790_000_000.0
CA = Ca(now=NOW)
EDGE, GATEWAY = CA.issue("edge/lap-1"), CA.issue("gateway/main")
VERIFY_EDGE, VERIFY_GATEWAY = verifier(CA.bundle(), "edge"), verifier(CA.bundle(), "gateway")
PATTERN = hashlib.shake_128(b"pattern").digest(200_000)
QUEUED_MAX = 256
_FROM_AN_EDGE = (RequestReceived, ResumeRequested, RequestCancelled, AckReceived, SpansReceived)


class Request:
    def __init__(self, number: int, size: int) -> None:
        self.id = number.to_bytes(16, "big")
        self.body = PATTERN[number : number + size]
        self.header = header(self.body)
        self.answer = PATTERN[number + 1 : number + 1 + (0, 3, 900, 60_000)[number % 4]]
        self.sent_on = 0  # links on which the edge has sent it
        self.progress = Progress()
        self.came = bytearray()
        self.over = False


class Side:
    """A core, and whether it has been seen closed."""

    def __init__(self, core: EdgeConnection | GatewayConnection) -> None:
        self.core = core
        self.closed = False

    def check_closed(self) -> None:
        if self.closed:
            assert self.core.phase is Phase.CLOSED and self.core.next_deadline() is None
        self.closed = self.core.phase is Phase.CLOSED

    def feed(self, data: bytes, now: float, *, honest: bool = False) -> None:
        was_closed = self.core.phase is Phase.CLOSED
        left = bytes(self.core._out), len(self.core._events)
        try:
            self.core.receive_data(data, now)
        except LocalMisuse:
            raise
        except TransportError as error:
            assert not was_closed and self.core.phase is Phase.CLOSED
            assert not (honest and isinstance(error, ProtocolViolation))
        if was_closed:
            assert (bytes(self.core._out), len(self.core._events)) == left


class ConnectionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log = SealLog()
        self.log.start()
        self.now = NOW
        self.store = TicketStore()
        self.wallet: list[Ticket] = []
        self.used: list[Ticket] = []
        self.requests: list[Request] = []
        self.delivered: Counter[bytes] = Counter()
        self.flights: list[bytes] = []  # every flight an edge has sent, for replays
        self.padding = Padding.BUCKET
        self.connect_by(None)

    def teardown(self) -> None:
        self.log.stop()

    # --- links

    def connect_by(self, ticket: Ticket | None, *, early: bool = True) -> None:
        purpose = Resumption(ticket, early) if ticket else SvidLogin(EDGE.chain, EDGE.not_after)
        self.edge_core = EdgeConnection(purpose, VERIFY_GATEWAY, SystemEphemerals(), self.now, self.padding)
        self.gateway_core = self.new_gateway()
        self.edge, self.gateway = Side(self.edge_core), Side(self.gateway_core)
        self.to_gateway: list[bytes] = []
        self.to_edge: list[bytes] = []
        self.honest = True  # the wire has carried this link's bytes as they were
        self.admitted = False
        self.pending_credential = False
        self.here: Counter[bytes] = Counter()  # requests told on this link
        self.streams: dict[int, Request] = {}  # the edge's
        self.answering: dict[int, tuple[Request, int]] = {}  # the gateway's: request, bytes written

    def new_gateway(self) -> GatewayConnection:
        return GatewayConnection(
            GATEWAY.chain, GATEWAY.not_after, CA.root_der, VERIFY_EDGE, SystemEphemerals(), self.now, self.store
        )

    @initialize(padding=st.sampled_from(Padding), rounds=st.sampled_from([0, 3, 8]), resumed=st.booleans())
    def begin(self, padding: Padding, rounds: int, resumed: bool) -> None:
        self.padding = padding
        self.connect_by(None)
        self.ask(3_000)
        self.carry(rounds)
        if resumed and self.wallet:
            self.swap_links("ticket", True, True)

    @rule(how=st.sampled_from(["full", "ticket", "ticket", "used"]), early=st.booleans(), lost=st.booleans())
    def swap_links(self, how: str, early: bool, lost: bool) -> None:
        if lost:
            for side in (self.edge, self.gateway):
                try:
                    side.core.receive_eof()
                except TransportError:
                    assert side.core.phase is Phase.CLOSED
        ticket = None
        if how == "ticket" and self.wallet:
            ticket = self.wallet.pop(0)
            self.used.append(ticket)
        elif how == "used" and self.used:
            ticket = self.used[-1]
        self.connect_by(ticket, early=early)
        for request in self.requests:
            if not request.over and len(self.streams) < 8:
                self.ask_on_this_link(request)

    def ask_on_this_link(self, request: Request) -> None:
        if request.came:
            stream = self.edge_core.resume(request.id, request.progress)
        else:
            stream = self.edge_core.request(request.id, request.header, request.body, request.progress)
            request.sent_on += 1
        self.streams[stream] = request

    # --- the edge's application

    @rule(size=st.sampled_from([0, 10, 3_000, 9_000, 70_000]))
    def ask(self, size: int) -> None:
        if self.edge_core.phase is Phase.CLOSED or len(self.requests) >= 12:
            return
        self.requests.append(Request(len(self.requests), size if self.padding is not Padding.CONSTANT else size // 9))
        try:
            self.ask_on_this_link(self.requests[-1])
        except Overloaded:
            self.requests.pop()

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if self.streams:
            stream = data.draw(st.sampled_from(sorted(self.streams)))
            self.edge_core.cancel(stream)
            self.streams.pop(stream).over = True

    @rule(number=st.integers(0, 11), offset=st.integers(0, 1 << 40))
    def acknowledge(self, number: int, offset: int) -> None:
        self.edge_core.acknowledge(number.to_bytes(16, "big"), offset)

    def edge_application(self) -> None:
        while (event := self.edge_core.next_event()) is not None:
            if isinstance(event, SignatureNeeded):
                if self.edge_core.phase is Phase.SIGNING:
                    self.edge_core.signed(EDGE.key.sign(event.message), self.now)
            elif isinstance(event, AnswerStarted | AnswerBytes | AnswerEnded | StreamRefused):
                assert event.stream in self.streams, "an event for a stream that is over"
                self.answered(event)
        if self.edge_core.phase is Phase.OPEN and self.edge_core.tickets:
            self.wallet, self.edge_core.tickets = self.edge_core.tickets, []

    def answered(self, event: AnswerStarted | AnswerBytes | AnswerEnded | StreamRefused) -> None:
        request = self.streams[event.stream]
        if isinstance(event, AnswerBytes):
            request.came += event.data
            assert request.came == request.answer[: len(request.came)]
            self.edge_core.consumed(event.stream, len(event.data))
        elif isinstance(event, AnswerEnded):
            assert request.came == request.answer
        if isinstance(event, AnswerEnded | StreamRefused):
            self.streams.pop(event.stream).over = True

    # --- the gateway's application

    def gateway_application(self) -> None:
        while (event := self.gateway_core.next_event()) is not None:
            assert self.admitted or not isinstance(event, _FROM_AN_EDGE), "told before it was admitted"
            if isinstance(event, SignatureNeeded):
                if self.gateway_core.phase is Phase.SIGNING:
                    self.gateway_core.signed(GATEWAY.key.sign(event.message), self.now)
            elif isinstance(event, CredentialReceived):
                self.pending_credential = True
            elif isinstance(event, RequestReceived):
                request = self.requests[int.from_bytes(event.request_id, "big")]
                assert (event.body, event.header_bytes) == (request.body, request.header)
                assert event.digest == request_digest(request.header, request.body)
                self.here[event.request_id] += 1
                self.delivered[event.request_id] += 1
                self.answering[event.stream] = request, 0
            elif isinstance(event, ResumeRequested):
                request = self.requests[int.from_bytes(event.request_id, "big")]
                assert event.offset <= len(request.answer)
                self.gateway_core.streams.answer(event.stream, 200, "t", streamed=True, offset=event.offset)
                self.answering[event.stream] = request, event.offset
            elif isinstance(event, RequestCancelled):
                self.answering.pop(event.stream, None)

    @rule(accept=st.sampled_from([True, True, True, False]))
    def decide(self, accept: bool) -> None:
        if not self.pending_credential or self.gateway_core.phase is not Phase.ADMISSION:
            return
        self.pending_credential = False
        if not accept:
            self.gateway_core.refuse(self.now)
            return
        self.admitted = True
        try:
            self.gateway_core.admit(Welcome(EPOCH, "", 1), self.now)
        except LocalMisuse:
            raise
        except TransportError:
            assert not self.honest and self.gateway_core.phase is Phase.CLOSED

    @rule(streamed=st.booleans(), refuse=st.integers(0, 9), count=st.integers(1, 8))
    def answer(self, streamed: bool, refuse: int, count: int) -> None:
        streams = self.gateway_core.streams
        for stream, (request, written) in list(self.answering.items())[:count]:
            if refuse == 0:
                streams.refuse(stream, 503, "later", "try later", retryable=True)
                del self.answering[stream]
                continue
            streams.answer(stream, 200, "t", streamed=streamed)
            piece = request.answer[written : written + 20_000]
            streams.write(stream, piece)
            self.answering[stream] = request, written + len(piece)
            if written + len(piece) == len(request.answer):
                streams.end(stream, len(request.answer), sha256(request.answer))
                del self.answering[stream]

    # --- time

    @rule(seconds=st.sampled_from([0.1, 1.0, 9.0, 31.0, 3_000.0]))
    def wait(self, seconds: float) -> None:
        if seconds > 31 and self.now > NOW + 400:
            return  # the SVIDs last for an hour
        self.now += seconds
        for side in (self.edge, self.gateway):
            try:
                side.core.handle_time(self.now)
            except TransportError:
                assert side.core.phase is Phase.CLOSED

    # --- the wire

    def edge_sends(self) -> None:
        if data := self.edge_core.data_to_send(self.now):
            self.to_gateway.append(data)
            self.flights = [*self.flights[-20:], data]

    def gateway_sends(self) -> None:
        if data := self.gateway_core.data_to_send(self.now):
            self.to_edge.append(data)

    def gateway_hears(self) -> None:
        if self.to_gateway:
            self.gateway.feed(self.to_gateway.pop(0), self.now, honest=self.honest)

    def edge_hears(self) -> None:
        if self.to_edge:
            self.edge.feed(self.to_edge.pop(0), self.now, honest=self.honest)

    @rule(steps=st.lists(st.integers(0, 5), min_size=1, max_size=12))
    def move(self, steps: list[int]) -> None:
        """In any order, so that flights pile up, and applications are late."""
        actions = (self.edge_sends, self.gateway_hears, self.gateway_application,
                   self.gateway_sends, self.edge_hears, self.edge_application)  # fmt: skip
        for step in steps:
            actions[step]()

    @rule(rounds=st.integers(1, 12))
    def carry(self, rounds: int) -> None:
        """The wire behaves for a while."""
        for _ in range(rounds):
            self.edge_application()
            self.edge_sends()
            self.gateway_hears()
            self.gateway_application()
            self.decide(True)
            self.gateway_application()
            self.answer(True, 1, 8)
            self.gateway_sends()
            self.edge_hears()
            self.wait(0.1)
        self.edge_application()

    @rule(data=st.data(), to_gateway=st.booleans())
    def bend(self, data: Any, to_gateway: bool) -> None:
        wire = self.to_gateway if to_gateway else self.to_edge
        if not wire:
            return
        self.honest = False
        at = data.draw(st.integers(0, len(wire) - 1))
        flight = bytearray(wire[at])
        where = data.draw(st.integers(0, len(flight) - 1))
        how = data.draw(st.sampled_from(["flip", "drop", "repeat", "later", "cut", "insert", "reflect"]))
        if how == "flip":
            flight[where] ^= 1 << data.draw(st.integers(0, 7))
            wire[at] = bytes(flight)
        elif how == "drop":
            del wire[at]
        elif how == "repeat":
            wire.insert(at, wire[at])
        elif how == "later":
            wire.append(wire.pop(at))
        elif how == "cut":
            wire[at] = bytes(flight[: where + 1])
        elif how == "insert":
            wire.insert(at, data.draw(st.binary(min_size=1, max_size=60)))
        else:
            (self.to_edge if to_gateway else self.to_gateway).append(bytes(flight))

    @rule(count=st.integers(1, 3), start=st.integers(0, 20))
    def replay_on_a_link_of_its_own(self, count: int, start: int) -> None:
        """Somebody else connects and says what an edge once said, to a gateway that admits whoever proves who he is.

        Only a first flight whose ticket never arrived is believed, and that is not more than a late delivery.
        """
        gateway = self.new_gateway()
        side = Side(gateway)
        for flight in self.flights[start : start + count]:
            side.feed(flight, self.now)
            while (event := gateway.next_event()) is not None:
                if isinstance(event, SignatureNeeded):
                    gateway.signed(GATEWAY.key.sign(event.message), self.now)
                elif isinstance(event, CredentialReceived):
                    assert gateway._resuming, "a replay was believed"
                    gateway.admit(Welcome(EPOCH, "", 1), self.now)
                elif isinstance(event, RequestReceived):
                    self.delivered[event.request_id] += 1
                else:
                    assert isinstance(event, ResumeRequested | AckReceived | RequestCancelled)

    # --- what must hold

    @invariant()
    def no_nonce_twice(self) -> None:
        assert self.log.repeats == 0

    @invariant()
    def told_once_a_link_and_no_more_often_than_sent(self) -> None:
        assert all(count == 1 for count in self.here.values())
        for request in self.requests:
            assert self.delivered[request.id] <= request.sent_on

    @invariant()
    def closed_stays_closed(self) -> None:
        self.edge.check_closed()
        self.gateway.check_closed()

    @invariant()
    def an_honest_wire_keeps_the_session(self) -> None:
        if self.honest and self.edge_core.phase is Phase.OPEN and self.gateway_core.phase is Phase.OPEN:
            assert self.edge_core.session_hash == self.gateway_core.session_hash
            assert self.edge_core.link_id == self.gateway_core.link_id

    @invariant()
    def memory_is_bounded(self) -> None:
        for core in (self.edge_core, self.gateway_core):
            if core._opener is not None:
                bound = RECORD_MAX + 2 if core.phase is Phase.OPEN else UNVERIFIED_MAX
                assert core._opener.buffered <= bound
            assert len(core._inbox) <= FRAME_HEADER_LEN + max(SECOND_BODY_MAX, RESUME_BODY_MAX)
            assert core._mux.queued <= QUEUED_MAX


TestConnectionMachine = ConnectionMachine.TestCase
TestConnectionMachine.settings = settings(stateful_step_count=40)
