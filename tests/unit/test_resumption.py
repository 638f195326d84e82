"""Tickets, NNpsk0, early data, and streams that go on over another link; with the review's attacks on each."""

import contextlib

import pytest

from tests.support.ca import Ca
from tests.support.connection_pair import Pair, answer, header, make_pair
from transport.connection import IDLE_S, SILENCE_S, AckReceived, PeerClosed, Phase, Welcomed
from transport.errors import DecryptFailed, LinkLost, Overloaded, PeerRefused, ProtocolViolation, TicketRefused
from transport.handshake import Hint, ResumingInitiator
from transport.messages import Ack, Answer, AnswerData, Cancel, Credit, End, Open, Posture, encode, request_digest
from transport.mux import AnswerBytes, AnswerEnded, RequestReceived, ResumeRequested
from transport.noise import SystemEphemerals
from transport.primitives import sha256
from transport.records import pack, pad
from transport.stream import Progress
from transport.tickets import Ticket, TicketStore, Wallet


class World:
    """One gateway with its ticket store, and an edge that comes back."""

    def __init__(self) -> None:
        self.ca = Ca()
        self.store = TicketStore()
        self.edge, self.gateway = self.ca.issue("edge/lap-1"), self.ca.issue("gateway/main")

    def pair(self, ticket: Ticket | None = None, **more: object) -> Pair:
        return make_pair(
            self.ca, edge_svid=self.edge, gateway_svid=self.gateway, tickets=self.store, ticket=ticket,
            **more,  # type: ignore[arg-type]
        )

    def first(self) -> Pair:
        pair = self.pair()
        pair.pump()
        return pair


def received(pair: Pair) -> list[bytes]:
    return [event.body for event in pair.gateway_events if isinstance(event, RequestReceived)]


def answered(pair: Pair) -> bytes:
    return b"".join(event.data for event in pair.edge_events if isinstance(event, AnswerBytes))


def test_both_sides_derive_the_same_four_tickets() -> None:
    pair = World().first()
    assert [t.id for t in pair.edge.tickets] == [t.id for t in pair.gateway.tickets]
    assert [t.psk.expose() for t in pair.edge.tickets] == [t.psk.expose() for t in pair.gateway.tickets]
    assert len({t.id for t in pair.edge.tickets}) == 4
    assert "psk" not in repr(pair.edge.tickets[0].psk) and pair.edge.tickets[0].psk.expose().hex() not in repr(
        pair.edge.tickets
    )


def test_resumption_takes_184_bytes_and_one_round_trip() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    pair.step()
    assert len(pair.to_gateway[0]) == 100
    assert pair.to_edge[0][:3] == b"\x02" + (81).to_bytes(2, "big")
    assert pair.edge.phase is pair.gateway.phase is Phase.OPEN, "the welcome came in the same flight"
    assert pair.edge.session_hash == pair.gateway.session_hash
    assert pair.edge.link_id == pair.gateway.link_id
    assert pair.gateway.peer is not None and pair.gateway.peer.id.path == "/edge/lap-1"
    assert pair.edge.peer is not None and pair.edge.peer.id.path == "/gateway/main"


def test_a_request_travels_as_early_data() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    stream = pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")
    pair.step()
    assert received(pair) == [b"prompt"] and len(pair.to_gateway) == 1
    assert len(pair.to_gateway[0]) == 100 + 512
    answer(pair, stream, b"answer")
    pair.pump()
    assert answered(pair) == b"answer"


def test_early_data_holds_whole_requests_only() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    bodies = [b"0" * 100, b"1" * 3_000, b"2" * 20_000, b"3" * 50]
    for i, body in enumerate(bodies):
        pair.edge.request(bytes([i]) * 16, header(body), body)
    pair.step()
    assert received(pair) == bodies[:2], "in order, and nothing behind the one that does not fit"
    assert len(pair.to_gateway[0]) <= 100 + 16_384
    pair.pump()
    assert sorted(received(pair)) == sorted(bodies)


def test_a_request_cancelled_before_it_left_is_no_early_data() -> None:
    """Its body is gone, and a part of a request may not be early data."""
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    pair.edge.cancel(pair.edge.request(b"q" * 16, header(b"cancelled"), b"cancelled"))
    pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")
    pair.pump()
    assert received(pair) == [b"prompt"] and pair.edge.phase is Phase.OPEN


def test_early_data_can_be_switched_off() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0], early_data=False)
    pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")
    pair.step()
    assert len(pair.to_gateway[0]) == 100
    pair.pump()
    assert received(pair) == [b"prompt"]


def test_H4_a_ticket_works_once() -> None:
    world = World()
    ticket = world.first().edge.tickets[0]
    world.pair(ticket).pump()
    again = world.pair(ticket)
    with pytest.raises(TicketRefused):
        again.pump()
    with pytest.raises(TicketRefused):
        again.edge.receive_data(again.gateway.data_to_send(again.now), again.now)


def test_H4_a_replayed_first_message_is_refused() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")
    pair.pump()
    replay = world.pair()
    with pytest.raises(TicketRefused):
        replay.gateway.receive_data(pair.to_gateway[0], replay.now)
    assert received(replay) == []


def test_H4_a_forged_message_burns_no_ticket() -> None:
    world = World()
    ticket = world.first().edge.tickets[0]
    victim = world.pair(ticket)
    genuine = victim.edge.data_to_send(victim.now)
    for position in range(3, len(genuine)):
        forged = bytearray(genuine)
        forged[position] ^= 1
        attack = world.pair()
        with pytest.raises((DecryptFailed, ProtocolViolation, TicketRefused)):
            attack.gateway.receive_data(bytes(forged), attack.now)
    victim.gateway.receive_data(genuine, victim.now)
    victim.pump()
    assert victim.edge.phase is Phase.OPEN


def test_every_byte_of_the_gateways_answer_counts() -> None:
    world = World()
    for position in range(84):
        pair = world.pair(world.first().edge.tickets[0])
        pair.gateway.receive_data(pair.edge.data_to_send(pair.now), pair.now)
        pair._events()
        bent = bytearray(pair.gateway.data_to_send(pair.now))
        bent[position] ^= 1
        with contextlib.suppress(ProtocolViolation, PeerRefused):
            pair.edge.receive_data(bytes(bent), pair.now)
        assert pair.edge.phase is not Phase.OPEN


def test_H4_lost_answer_leaves_the_siblings() -> None:
    """Message 2 never arrives: the edge comes back with the next ticket of the same session."""
    world = World()
    tickets = world.first().edge.tickets
    lost = world.pair(tickets[0])
    lost.gateway.receive_data(lost.edge.data_to_send(lost.now), lost.now)
    lost._events()
    again = world.pair(tickets[1])
    again.pump()
    assert again.edge.phase is Phase.OPEN


def test_H4_siblings_die_with_the_resumed_sessions_first_record() -> None:
    world = World()
    tickets = world.first().edge.tickets
    pair = world.pair(tickets[0])
    pair.pump()
    before = len(world.store)
    pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    assert len(world.store) == before - 3
    with pytest.raises(TicketRefused):
        world.pair(tickets[1]).pump()


def test_H4_any_first_record_ends_the_siblings() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    pair.pump()
    before = len(world.store)
    pair.edge.handle_time(pair.now + IDLE_S)  # a ping
    pair.now += IDLE_S
    pair.pump()
    assert len(world.store) == before - 3


def test_H3_resumed_sessions_give_new_tickets_but_never_outlive_the_svids() -> None:
    world = World()
    world.edge = world.ca.issue("edge/lap-1", start=-10, lifetime=600)
    pair = world.first()
    end = pair.edge.tickets[0].not_after
    for _ in range(3):
        pair = world.pair(pair.edge.tickets[0])
        pair.pump()
        assert pair.edge.tickets[0].not_after == end == pair.gateway.tickets[0].not_after
    late = world.pair(pair.edge.tickets[1])
    late.now = end + 1
    with pytest.raises(TicketRefused):
        late.pump()
    wallet = Wallet()
    wallet.put(pair.edge.tickets)
    assert wallet.take(end + 1) is None


def test_H5_tickets_of_another_gateway_process_are_unknown() -> None:
    world = World()
    ticket = world.first().edge.tickets[0]
    world.store = TicketStore()
    pair = world.pair(ticket)
    with pytest.raises(TicketRefused):
        pair.pump()


def test_refused_at_use_is_told_like_every_refusal() -> None:
    """Revocation is the shell's decision, asked at each use; the ticket is gone either way."""
    world = World()
    pair = world.pair(world.first().edge.tickets[0], admit=False)
    pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.step()
    assert received(pair) == []
    pair.gateway.refuse(pair.now)
    with pytest.raises(PeerRefused) as caught:
        pair.pump()
    assert caught.value.reason == "refused"


@pytest.mark.parametrize("messages", [
    [Cancel(0)],
    [Credit(0, 9)],
    [Ack(b"r" * 16, 0)],
    [Posture("unknown", "unknown", "")],
    [Open(0, b"r" * 16, header(b"ab"), request_digest(header(b"ab"), b"ab"))],  # a part of a request
])
def test_M6_early_data_may_be_nothing_else(messages: list[object]) -> None:
    world = World()
    ticket = world.first().edge.tickets[0]
    frame = ResumingInitiator(ticket, SystemEphemerals()).first_frame(
        pad(pack([encode(message) for message in messages]), control=False)[0]  # type: ignore[arg-type]
    )
    pair = world.pair()
    pair.gateway.receive_data(frame, pair.now)
    with pytest.raises(ProtocolViolation):
        pair._events()
    assert pair.gateway.phase is Phase.CLOSED


@pytest.mark.parametrize("length", [0, 96, 16_482, 65_535])
def test_first_resumption_frame_is_bounded_before_it_is_buffered(length: int) -> None:
    pair = make_pair()
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(b"\x02" + length.to_bytes(2, "big") + bytes(min(length, 200)), pair.now)


def test_downgrade_from_resumption_is_refused() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    pair.bend_to_gateway = lambda data: b"\x01" + data[1:]
    with pytest.raises(ProtocolViolation):
        pair.pump()


# --- streams over several links -------------------------------------------------------------------------------------


def test_an_answer_goes_on_where_it_stopped() -> None:
    world, whole = World(), bytes(i % 253 for i in range(50_000))
    pair, progress = world.pair(), Progress()
    stream = pair.edge.request(b"r" * 16, header(b"x"), b"x", progress)
    pair.pump()
    pair.gateway.streams.answer(stream, 200, "text/plain", streamed=True)
    pair.gateway.streams.write(stream, whole[:20_000])
    pair.pump()
    first = answered(pair)
    with pytest.raises(LinkLost):
        pair.edge.receive_eof()
    again = world.pair(pair.edge.tickets[0])
    again.edge.resume(b"r" * 16, progress)
    again.step()
    (asked,) = [event for event in again.gateway_events if isinstance(event, ResumeRequested)]
    assert (asked.request_id, asked.generation, asked.offset) == (b"r" * 16, 0, len(first))
    again.gateway.streams.answer(asked.stream, 200, "text/plain", streamed=True, offset=asked.offset)
    again.gateway.streams.write(asked.stream, whole[asked.offset :])
    again.gateway.streams.end(asked.stream, len(whole), sha256(whole))
    again.pump()
    assert first + answered(again) == whole
    assert any(isinstance(event, AnswerEnded) for event in again.edge_events)


@pytest.mark.parametrize("messages", [
    [Answer(0, 1, 200, "t", True)],  # another generation than the bytes that are here
    [Answer(0, 0, 200, "t", True), AnswerData(0, 0, b"x")],  # from the beginning again
    [Answer(0, 0, 200, "t", True), AnswerData(0, 5, b"x")],  # a gap
    [Answer(0, 0, 200, "t", True), End(0, 4, sha256(b"half"[:3]))],
])
def test_H7_a_gateway_cannot_splice_another_answer(messages: list[object]) -> None:
    world, progress = World(), Progress()
    progress.offset = 4
    progress.digest.update(b"half")
    pair = world.pair()
    pair.edge.resume(b"r" * 16, progress)
    pair.pump()
    assert pair.gateway._sealer is not None
    record = pair.gateway._sealer.seal_burst([encode(m) for m in messages], pair.now)  # type: ignore[arg-type]
    with pytest.raises(ProtocolViolation):
        pair.edge.receive_data(record, pair.now)


def test_acknowledgement_reaches_the_gateway() -> None:
    pair = World().first()
    pair.edge.acknowledge(b"r" * 16, 12)
    pair.pump()
    assert AckReceived(b"r" * 16, 12) in pair.gateway_events


# --- heartbeat ------------------------------------------------------------------------------------------------------


def test_idle_sides_ping_and_stay() -> None:
    pair = World().first()
    for _ in range(5):
        pair.now += IDLE_S
        for core in (pair.edge, pair.gateway):
            core.handle_time(pair.now)
        pair.pump()
    assert pair.edge.phase is pair.gateway.phase is Phase.OPEN
    assert len(pair.to_gateway[-1]) == 64 + 18, "a padded control record"


def test_half_open_link_is_found() -> None:
    pair = World().first()
    pair.edge.handle_time(pair.now + IDLE_S)
    pair.edge.data_to_send(pair.now)  # into the void
    pair.edge.handle_time(pair.now + SILENCE_S - 0.1)
    with pytest.raises(LinkLost):
        pair.edge.handle_time(pair.now + SILENCE_S)
    assert pair.edge.phase is Phase.CLOSED


def test_orderly_close_of_a_resumed_session() -> None:
    world = World()
    pair = world.pair(world.first().edge.tickets[0])
    pair.pump()
    pair.edge.close("normal", pair.now)
    pair.gateway.receive_data(pair.edge.data_to_send(pair.now), pair.now)
    pair.pump()
    assert PeerClosed("normal") in pair.gateway_events
    assert any(isinstance(event, Welcomed) for event in pair.edge_events)


def test_H15_full_handshakes_leave_room_for_those_who_resume() -> None:
    """Where no full handshake is taken, the hint comes before any work, and a ticket still opens a session."""
    world = World()
    ticket = world.first().edge.tickets[0]
    full = world.pair()
    full.gateway._take_full = lambda: False
    with pytest.raises(Overloaded):
        full.pump()
    assert full.gateway.data_to_send(full.now) == bytes([0, Hint.OVERLOADED])
    back = world.pair(ticket)
    back.gateway._take_full = lambda: False
    back.pump()
    assert back.edge.phase is Phase.OPEN


# --- the stores -----------------------------------------------------------------------------------------------------


def test_ticket_store_is_bounded_and_drops_the_oldest_session() -> None:
    world = World()
    world.store = TicketStore(families_max=3)
    pairs = [world.first() for _ in range(5)]
    assert len(world.store) == 12
    with pytest.raises(TicketRefused):
        world.pair(pairs[0].edge.tickets[0]).pump()
    world.pair(pairs[4].edge.tickets[0]).pump()


def test_ticket_store_counts_sessions_however_their_tickets_go() -> None:
    world = World()
    world.store = store = TicketStore(families_max=2)
    used_up, forgotten = [world.first().edge.tickets for _ in range(2)]
    for ticket in used_up:
        siblings = store.consume(ticket.id)
        assert siblings is not None and store.find(ticket.id, 0) is None and store.consume(ticket.id) is None
    store.forget(siblings)
    siblings = store.consume(forgotten[0].id)
    assert siblings is not None
    store.forget(siblings)
    store.forget(siblings)
    assert len(store) == 0
    others = [world.first().edge.tickets for _ in range(3)]
    assert [len([t for t in tickets if store.find(t.id, 0)]) for tickets in others] == [0, 4, 4]
    store.drop(lambda peer: True)
    assert len(store) == 0


def test_wallet_gives_each_ticket_once() -> None:
    pair = World().first()
    wallet = Wallet()
    wallet.put(pair.edge.tickets)
    taken = [wallet.take(pair.now) for _ in range(5)]
    assert taken[:4] == pair.edge.tickets and taken[4] is None
