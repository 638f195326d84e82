"""Two connection cores over a perfect wire: who is let in, what sizes travel, what each side may send when."""

import pytest

from tests.support.ca import Ca
from tests.support.connection_pair import EPOCH, Pair, answer, header, make_pair, verifier
from transport.connection import (
    IDLE_S,
    REST_S,
    CredentialReceived,
    IssuedReceived,
    PeerClosed,
    Phase,
    SignatureNeeded,
    SpansReceived,
    Welcomed,
)
from transport.errors import (
    BadInput,
    DecryptFailed,
    HandshakeTimeout,
    IdentityExpired,
    IdentityRefused,
    LinkLost,
    LocalMisuse,
    Overloaded,
    PeerRefused,
    ProtocolViolation,
)
from transport.handshake import Hint, JoinCredential, RenewCredential
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.svid import make_csr
from transport.identity.verify import verify_svid
from transport.initiator import EdgeConnection, Joining, Renewing
from transport.messages import (
    Answer,
    AnswerData,
    Close,
    Credit,
    End,
    Issued,
    SpanRecord,
    Spans,
    Welcome,
    encode,
)
from transport.mux import AnswerBytes, AnswerEnded, AnswerStarted, RequestCancelled, RequestReceived, StreamRefused
from transport.noise import SystemEphemerals
from transport.primitives import Secret, SigningKey, sha256
from transport.responder import GatewayConnection
from transport.tickets import TicketStore


def answered(pair: Pair) -> bytes:
    return b"".join(event.data for event in pair.edge_events if isinstance(event, AnswerBytes))


def test_handshake_opens_both_sides() -> None:
    pair = make_pair()
    pair.pump()
    assert pair.edge.phase is pair.gateway.phase is Phase.OPEN
    assert pair.edge.session_hash == pair.gateway.session_hash != b""
    assert pair.edge.link_id == pair.gateway.link_id
    assert pair.edge.peer is not None and pair.edge.peer.id.path == "/gateway/main"
    assert pair.gateway.peer is not None and pair.gateway.peer.id.path == "/edge/lap-1"
    assert [e.welcome.epoch for e in pair.edge_events if isinstance(e, Welcomed)] == [EPOCH]


def test_handshake_sizes_are_those_of_the_specification() -> None:
    pair = make_pair()
    pair.pump()
    first, record0 = pair.to_gateway
    assert len(first) == 1 + 2 + 65 + 1184
    assert (len(pair.to_edge[0]) - 3 - 65 - 1104 - 16) % 512 == 0
    assert (len(record0) - 2 - 16) % 512 == 0
    assert len(first) + len(pair.to_edge[0]) + len(record0) <= 5_500


def test_H10_name_length_does_not_show_in_record_0() -> None:
    sizes = set()
    for name in ("edge/a", "edge/" + "b" * 60):
        ca = Ca()
        pair = make_pair(ca, edge_svid=ca.issue(name))
        pair.pump()
        sizes.add(len(pair.to_gateway[1]))
    assert len(sizes) == 1


def test_nothing_repeats_across_sessions() -> None:
    ca = Ca()
    edge, gateway = ca.issue("edge/lap-1"), ca.issue("gateway/main")
    flights: list[bytes] = []
    for _ in range(2):
        pair = make_pair(ca, edge_svid=edge, gateway_svid=gateway)
        pair.edge.request(b"i" * 16, header(b"same"), b"same")
        pair.pump()
        flights.append(b"".join(pair.to_gateway + pair.to_edge))
    windows = {flights[0][i : i + 12] for i in range(len(flights[0]) - 12)}
    assert not [i for i in range(len(flights[1]) - 12) if flights[1][i : i + 12] in windows]


@pytest.mark.parametrize("size", [0, 1, 8_192, 8_193, 300_000, 1 << 20])
def test_request_and_answer_arrive_whole(size: int) -> None:
    pair = make_pair()
    body = bytes(i % 251 for i in range(size))
    stream = pair.edge.request(b"r" * 16, header(body), body)
    pair.pump()
    (request,) = [e for e in pair.gateway_events if isinstance(e, RequestReceived)]
    assert (request.body, request.request_id, request.header.body_length) == (body, b"r" * 16, size)
    answer(pair, stream, body)
    consumed = 0
    while not any(isinstance(e, AnswerEnded) for e in pair.edge_events):
        pair.pump()
        pair.edge.consumed(stream, len(answered(pair)) - consumed)
        consumed = len(answered(pair))
    assert answered(pair) == body
    assert pair.gateway.streams.buffered(stream) == 0


def test_requests_interleave_and_a_short_one_overtakes() -> None:
    pair = make_pair()
    long, short = b"l" * 500_000, b"s"
    pair.edge.request(b"1" * 16, header(long), long)
    pair.edge.request(b"2" * 16, header(short), short)
    pair.pump()
    bodies = [e.body for e in pair.gateway_events if isinstance(e, RequestReceived)]
    assert bodies == [short, long]


def test_cancel_ends_the_stream_on_both_sides() -> None:
    pair = make_pair()
    stream = pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    pair.edge.cancel(stream)
    pair.pump()
    assert any(isinstance(e, RequestCancelled) for e in pair.gateway_events)
    pair.gateway.streams.write(stream, b"late")  # nothing happens
    pair.pump()
    assert answered(pair) == b""
    assert not any(isinstance(e, StreamRefused) for e in pair.edge_events)


def test_refusal_reaches_the_edge() -> None:
    pair = make_pair()
    stream = pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    pair.gateway.streams.refuse(stream, 403, "model_not_allowed", "not for you", retryable=False)
    pair.pump()
    (refused,) = [e for e in pair.edge_events if isinstance(e, StreamRefused)]
    assert (refused.status, refused.code, refused.retryable) == (403, "model_not_allowed", False)


def test_stream_limit() -> None:
    pair = make_pair()
    pair.pump()
    for i in range(32):
        pair.edge.request(bytes([i]) * 16, header(b"x"), b"x")
    with pytest.raises(Overloaded):
        pair.edge.request(b"z" * 16, header(b"x"), b"x")


def test_slow_reader_stops_the_answer_at_its_credit() -> None:
    pair = make_pair()
    stream = pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    pair.gateway.streams.answer(stream, 200, "text/plain", streamed=True)
    pair.gateway.streams.write(stream, bytes(1_000_000))
    pair.pump()
    assert len(answered(pair)) == 256 * 1024
    assert pair.gateway.streams.buffered(stream) == 1_000_000 - 256 * 1024


@pytest.mark.parametrize("size", [1, 1_000, 7_900, 8_000, 100_000])
def test_early_flight_is_bounded(size: int) -> None:
    """At most 8,192 bytes of messages behind record 0; the padded size of that many is 8,192 too."""
    pair = make_pair(admit=False)
    for i in range(30):
        pair.edge.request(bytes([i]) * 16, header(b"b" * size), b"b" * size)
    pair.pump()
    assert 0 < sum(map(len, pair.to_gateway)) - 1_252 - 1_042 <= 8_192 + 18
    assert not any(isinstance(e, RequestReceived) for e in pair.gateway_events)
    assert pair.gateway.phase is Phase.ADMISSION


def test_spans_too_long_for_a_record_are_the_callers_error() -> None:
    pair = make_pair()
    pair.pump()
    attributes = {f"gen_ai.{i}": "\N{SNOWMAN}" * 128 for i in range(16)}
    span = SpanRecord("a" * 32, "b" * 16, "", "n", "edge", 1.0, 2.0, attributes)
    pair.edge.send_spans(Spans([span]))
    with pytest.raises(BadInput):
        pair.edge.send_spans(Spans([span] * 32))
    pair.pump()
    assert pair.edge.phase is Phase.OPEN


def test_C1_gateway_without_the_leaf_key_is_refused() -> None:
    """The signature is over this transcript: a chain that was seen elsewhere is worth nothing."""
    ca = Ca()
    genuine, thief = ca.issue("gateway/main"), SigningKey.generate()
    pair = make_pair(ca, gateway_svid=genuine)
    object.__setattr__(pair.gateway_svid, "key", thief)
    with pytest.raises(IdentityRefused, match="signature"):
        pair.pump()
    assert len(pair.to_gateway) == 1, "the edge sent something of itself"


def test_C1_edge_without_the_leaf_key_is_refused() -> None:
    ca = Ca()
    pair = make_pair(ca)
    object.__setattr__(pair.edge_svid, "key", SigningKey.generate())
    with pytest.raises(IdentityRefused, match="signature"):
        pair.pump()
    assert pair.gateway.phase is Phase.CLOSED


@pytest.mark.parametrize("path", ["edge/other", "hop/h1", "workload/x", "gateways/main", "edge/gateway"])
def test_H1_only_a_gateway_id_may_answer(path: str) -> None:
    ca = Ca()
    pair = make_pair(ca, gateway_svid=ca.issue(path))
    with pytest.raises(IdentityRefused) as caught:
        pair.pump()
    assert caught.value.rule == "role"
    assert len(pair.to_gateway) == 1


@pytest.mark.parametrize("path", ["gateway/main", "hop/h1", "edges/x"])
def test_H1_only_an_edge_id_may_ask(path: str) -> None:
    ca = Ca()
    pair = make_pair(ca, edge_svid=ca.issue(path))
    with pytest.raises(IdentityRefused) as caught:
        pair.pump()
    assert caught.value.rule == "role"


def test_foreign_trust_domain_is_refused_both_ways() -> None:
    ours, theirs = Ca(), Ca("other.example")
    pair = make_pair(ours, gateway_svid=theirs.issue("gateway/main"))
    with pytest.raises(IdentityRefused):
        pair.pump()
    assert len(pair.to_gateway) == 1
    pair = make_pair(ours, edge_svid=theirs.issue("edge/lap-1"))
    with pytest.raises(IdentityRefused):
        pair.pump()
    same_name = Ca()  # another CA of the same name
    with pytest.raises(IdentityRefused):
        make_pair(ours, edge_svid=same_name.issue("edge/lap-1")).pump()


def test_expired_svid_is_refused_both_ways() -> None:
    ca = Ca()
    with pytest.raises(IdentityExpired):
        make_pair(ca, gateway_svid=ca.issue("gateway/main", start=-7200, lifetime=3600)).pump()
    with pytest.raises(IdentityExpired):
        make_pair(ca, edge_svid=ca.issue("edge/lap-1", start=-7200, lifetime=3600)).pump()


def test_refused_edge_is_told_so_and_no_more() -> None:
    ca = Ca()
    seen = set()
    for svid in (ca.issue("hop/h"), ca.issue("edge/e", start=-7200, lifetime=3600), Ca().issue("edge/e")):
        pair = make_pair(ca, edge_svid=svid)
        with pytest.raises(IdentityRefused):
            pair.pump()
        with pytest.raises(PeerRefused) as caught:
            pair.edge.receive_data(pair.gateway.data_to_send(pair.now), pair.now)
        seen.add((str(caught.value), caught.value.reason))
    assert len(seen) == 1


def test_H8_session_ends_with_the_earlier_svid() -> None:
    ca = Ca()
    pair = make_pair(ca, edge_svid=ca.issue("edge/e", start=-10, lifetime=100))
    pair.pump()
    assert pair.edge._deadline == pair.gateway._deadline == pytest.approx(pair.edge_svid.not_after)
    pair.gateway.handle_time(pair.edge_svid.not_after - 1)
    with pytest.raises(IdentityExpired):
        pair.gateway.handle_time(pair.edge_svid.not_after)
    pair.edge.receive_data(pair.gateway.data_to_send(pair.now), pair.now)
    pair.pump()
    assert PeerClosed("expired") in pair.edge_events


def test_handshake_deadline_is_per_step() -> None:
    pair = make_pair()
    with pytest.raises(HandshakeTimeout):
        pair.gateway.handle_time(pair.now + 10)
    pair.edge.handle_time(pair.now + 9.9)
    with pytest.raises(HandshakeTimeout):
        pair.edge.handle_time(pair.now + 10)


def test_M8_end_of_file_without_close_is_a_lost_link() -> None:
    pair = make_pair()
    pair.pump()
    with pytest.raises(LinkLost):
        pair.edge.receive_eof()
    pair.gateway.close("shutdown", pair.now)
    other = make_pair()
    other.pump()
    other.gateway.close("shutdown", other.now)
    other.edge.receive_data(other.gateway.data_to_send(other.now), other.now)
    other.edge.receive_eof()
    other.pump()
    assert PeerClosed("shutdown") in other.edge_events


def test_L4_unknown_first_byte_gets_a_hint() -> None:
    pair = make_pair()
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(b"GET / HTTP/1.1\r\n\r\n", pair.now)
    hint = pair.gateway.data_to_send(pair.now)
    assert hint == bytes([0, Hint.NOT_SPOKEN_HERE])
    with pytest.raises(PeerRefused) as caught:
        pair.edge.receive_data(hint, pair.now)
    assert caught.value.reason == "not_spoken_here"


def test_overload_hint() -> None:
    pair = make_pair()
    pair.gateway.refuse_unheard(Hint.OVERLOADED)
    with pytest.raises(Overloaded):
        pair.edge.receive_data(pair.gateway.data_to_send(pair.now), pair.now)


@pytest.mark.parametrize("length", [0, 1248, 1250, 65535])
def test_first_frame_has_exactly_one_length(length: int) -> None:
    pair = make_pair()
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(bytes([1]) + length.to_bytes(2, "big"), pair.now)


def test_edge_may_not_speak_before_frame_2() -> None:
    pair = make_pair()
    first = pair.edge.data_to_send(pair.now)
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(first + b"x", pair.now)


def test_byte_by_byte_gives_the_same_session() -> None:
    pair = make_pair()
    body = b"b" * 3_000
    pair.edge.request(b"r" * 16, header(body), body)
    while True:
        for core, key in ((pair.edge, pair.edge_svid.key), (pair.gateway, pair.gateway_svid.key)):
            while (event := core.next_event()) is not None:
                if isinstance(event, SignatureNeeded):
                    core.signed(key.sign(event.message), pair.now)
                elif isinstance(event, CredentialReceived):
                    pair.gateway.admit(Welcome(EPOCH, "", 1), pair.now)
                elif isinstance(event, RequestReceived):
                    assert event.body == body
                    return
        for source, sink in ((pair.edge, pair.gateway), (pair.gateway, pair.edge)):
            for byte in source.data_to_send(pair.now):
                sink.receive_data(bytes([byte]), pair.now)


def test_spans_reach_the_gateway() -> None:
    pair = make_pair()
    pair.pump()
    spans = Spans([SpanRecord("a" * 32, "b" * 16, "", "edge.ask", "edge", 1.0, 2.0, {"gen_ai.request.model": "m"})])
    pair.edge.send_spans(spans)
    pair.pump()
    assert SpansReceived(spans) in pair.gateway_events


# --- joining and renewing -----------------------------------------------------------------------------------------


def invitation(ca: Ca, *, root: bytes | None = None, domain: str | None = None) -> Invitation:
    return Invitation(
        sha256(root or ca.root_der), b"t" * 8, Secret(b"s" * 16), domain or ca.trust_domain, "edge/lap-1"
    )


def joining_pair(ca: Ca, invite: Invitation, key: SigningKey, gateway: GatewayConnection | None = None) -> Pair:
    svid_key = SigningKey.generate()
    pair = make_pair(ca)

    def verify(chain, now):  # type: ignore[no-untyped-def]
        return verify_svid(chain, bundle_from_joined_root(invite, chain), role="gateway", now=now)

    purpose = Joining(invite, key.public.spki, make_csr(svid_key))
    pair.edge = EdgeConnection(purpose, verify, SystemEphemerals(), ca.now)
    object.__setattr__(pair.edge_svid, "key", key)
    pair.admit = False
    return pair


def test_join_through_the_handshake() -> None:
    ca, key = Ca(), SigningKey.generate()
    pair = joining_pair(ca, invitation(ca), key)
    pair.pump()
    (received,) = [e for e in pair.gateway_events if isinstance(e, CredentialReceived)]
    credential = received.credential
    assert isinstance(credential, JoinCredential)
    assert credential.secret.expose() == b"s" * 16 and credential.device_key.spki == key.public.spki
    assert "ssss" not in repr(credential)
    issued = Issued("spiffe://field.example/edge/lap-1", list(ca.issue().chain), [ca.root_der], 1, 1)
    pair.gateway.issue(issued, pair.now)
    pair.pump()
    assert IssuedReceived(issued) in pair.edge_events
    with pytest.raises(LocalMisuse):
        pair.edge.request(b"r" * 16, header(b""), b"")


def test_C3_hop_with_its_own_authority_gets_no_secret() -> None:
    ours, rogue = Ca(), Ca()
    pair = joining_pair(rogue, invitation(ours), SigningKey.generate())
    with pytest.raises(IdentityRefused) as caught:
        pair.pump()
    assert caught.value.rule == "root hash"
    assert len(pair.to_gateway) == 1, "the edge went on"


def test_C3_genuine_root_behind_a_rogue_chain_gets_no_secret() -> None:
    """A rogue that appends the genuine root to its own chain still cannot answer."""
    ours, rogue = Ca(), Ca()
    pair = joining_pair(rogue, invitation(ours), SigningKey.generate())
    pair.gateway = GatewayConnection(
        pair.gateway_svid.chain, pair.gateway_svid.not_after, ours.root_der, verifier(ours.bundle(), "edge"),
        SystemEphemerals(), ours.now, TicketStore(),
    )
    with pytest.raises(IdentityRefused):
        pair.pump()
    assert len(pair.to_gateway) == 1


def test_C3_an_edge_svid_cannot_take_in_others() -> None:
    ca = Ca()
    pair = joining_pair(ca, invitation(ca), SigningKey.generate())
    edge = ca.issue("edge/evil")
    pair.gateway = GatewayConnection(
        edge.chain, edge.not_after, ca.root_der, verifier(ca.bundle(), "edge"), SystemEphemerals(), ca.now,
        TicketStore(),
    )
    pair.gateway_svid = edge
    with pytest.raises(IdentityRefused) as caught:
        pair.pump()
    assert caught.value.rule == "role"


def test_join_with_another_device_key_than_signed_is_refused() -> None:
    ca = Ca()
    pair = joining_pair(ca, invitation(ca), SigningKey.generate())
    object.__setattr__(pair.edge_svid, "key", SigningKey.generate())
    with pytest.raises(IdentityRefused):
        pair.pump()


def renewing_pair(ca: Ca, key: SigningKey) -> Pair:
    pair = make_pair(ca)
    purpose = Renewing(key.public.spki, make_csr(SigningKey.generate()))
    pair.edge = EdgeConnection(purpose, verifier(ca.bundle(), "gateway"), SystemEphemerals(), ca.now)
    object.__setattr__(pair.edge_svid, "key", key)
    pair.admit = False
    return pair


def test_C2_renewal_needs_the_device_key_and_no_svid() -> None:
    ca, key = Ca(), SigningKey.generate()
    pair = renewing_pair(ca, key)
    pair.pump()
    (received,) = [e for e in pair.gateway_events if isinstance(e, CredentialReceived)]
    credential = received.credential
    assert isinstance(credential, RenewCredential) and credential.device_id == sha256(key.public.spki)
    credential.verify(key.public)
    with pytest.raises(IdentityRefused):
        credential.verify(SigningKey.generate().public)


def test_renewal_signed_by_another_key_is_refused() -> None:
    ca, key = Ca(), SigningKey.generate()
    pair = renewing_pair(ca, key)
    object.__setattr__(pair.edge_svid, "key", SigningKey.generate())
    pair.pump()
    (received,) = [e for e in pair.gateway_events if isinstance(e, CredentialReceived)]
    assert isinstance(received.credential, RenewCredential)
    with pytest.raises(IdentityRefused):
        received.credential.verify(key.public)


def test_join_session_cannot_be_admitted_and_svid_session_cannot_be_issued() -> None:
    ca = Ca()
    pair = joining_pair(ca, invitation(ca), SigningKey.generate())
    pair.pump()
    with pytest.raises(LocalMisuse):
        pair.gateway.admit(Welcome(EPOCH, "", 1), pair.now)
    pair = make_pair(ca, admit=False)
    pair.pump()
    with pytest.raises(LocalMisuse):
        pair.gateway.issue(Issued("spiffe://x/edge/a", [b"c"], [b"r"], 1, 1), pair.now)


# --- what a peer inside the session may not do -----------------------------------------------------------------------


def send_raw(pair: Pair, *messages: object, to_edge: bool) -> None:
    """Seals messages past the mux, as a hostile but authenticated peer would."""
    source, sink = (pair.gateway, pair.edge) if to_edge else (pair.edge, pair.gateway)
    assert source._sealer is not None
    record = source._sealer.seal_burst([encode(message) for message in messages], pair.now)  # type: ignore[arg-type]
    sink.receive_data(record, pair.now)


@pytest.mark.parametrize("message", [
    Answer(5, 0, 200, "text/plain", True),
    AnswerData(5, 0, b"x"),
    End(5, 0, bytes(32)),
    Credit(5, 10),
    Welcome(EPOCH, "", 1),
    Issued("spiffe://x/edge/a", [b"c"], [b"r"], 1, 1),
    Spans([SpanRecord("a" * 32, "b" * 16, "", "n", "edge", 1.0, 2.0, {})]),
])
def test_gateway_out_of_turn_ends_the_session(message: object) -> None:
    pair = make_pair()
    pair.pump()
    with pytest.raises(ProtocolViolation):
        send_raw(pair, message, to_edge=True)
    assert pair.edge.phase is Phase.CLOSED


def test_answer_rules() -> None:
    for bad in (
        [AnswerData(0, 0, b"x")],
        [Answer(0, 0, 200, "t", True), Answer(0, 0, 200, "t", True)],
        [Answer(0, 0, 200, "t", True), AnswerData(0, 1, b"x")],
        [Answer(0, 0, 200, "t", True), AnswerData(0, 0, b"x"), AnswerData(0, 0, b"x")],
        [Answer(0, 0, 200, "t", True), AnswerData(0, 0, b"x"), End(0, 1, bytes(32))],
        [Answer(0, 0, 200, "t", True), AnswerData(0, 0, b"x"), End(0, 2, sha256(b"x"))],
        [Answer(0, 0, 200, "t", True), End(0, 0, sha256(b"")), AnswerData(0, 0, b"x")],
    ):
        pair = make_pair()
        pair.edge.request(b"r" * 16, header(b"x"), b"x")
        pair.pump()
        with pytest.raises(ProtocolViolation):
            send_raw(pair, *bad, to_edge=True)


def test_answer_beyond_credit_ends_the_session() -> None:
    pair = make_pair()
    pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    send_raw(pair, Answer(0, 0, 200, "t", True), to_edge=True)
    with pytest.raises(ProtocolViolation, match="credit"):
        for i in range(17):
            send_raw(pair, AnswerData(0, i * 16_000, bytes(16_000)), to_edge=True)


def test_message_after_close_is_refused() -> None:
    pair = make_pair()
    pair.pump()
    with pytest.raises(ProtocolViolation):
        send_raw(pair, Close("normal"), Credit(0, 1), to_edge=True)


def test_a_session_that_is_cut_gives_nothing_of_what_waits() -> None:
    """As of a device that was revoked while its answer came; one that is closed gets what is at hand."""
    got = {}
    for how in ("cut", "close"):
        pair = make_pair()
        pair.pump()
        stream = pair.edge.request(b"r" * 16, header(b"x"), b"x")
        pair.pump()
        pair.gateway.streams.answer(stream, 200, "text/plain", streamed=False)
        pair.gateway.streams.write(stream, bytes(1_000))
        getattr(pair.gateway, how)("revoked", pair.now)
        pair.edge.receive_data(pair.gateway.data_to_send(pair.now), pair.now)
        pair.pump()
        assert PeerClosed("revoked") in pair.edge_events
        got[how] = sum(len(event.data) for event in pair.edge_events if isinstance(event, AnswerBytes))
    assert got == {"cut": 0, "close": 1_000}


def test_M8_a_failed_tag_is_answered_with_silence_for_good() -> None:
    pair = make_pair()
    pair.pump()
    with pytest.raises(DecryptFailed):
        pair.gateway.receive_data(b"\x00\x20" + bytes(32), pair.now)
    assert pair.gateway.data_to_send(pair.now) == b"", "a failed tag is answered with silence"
    pair.gateway.receive_data(b"anything", pair.now)
    assert pair.gateway.next_deadline() is None


def test_an_idle_session_gives_memory_back_and_goes_on() -> None:
    pair = make_pair()
    pair.pump()
    for core in (pair.edge, pair.gateway):
        assert core.next_deadline() == pair.now + REST_S
        core.handle_time(pair.now + REST_S)
        assert core._sealer is not None and core._opener is not None and core.peer is not None
        held = (core._sealer._cipher._seal, core._opener._cipher._open, core.peer.key._key)  # type: ignore[union-attr]
        assert held == (None, None, None)
        assert core.next_deadline() == pair.now + IDLE_S, "it rests once"
    pair.now += REST_S
    stream = pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    answer(pair, stream, b"later")
    pair.pump()
    assert answered(pair) == b"later"
    assert pair.gateway.peer is not None and pair.gateway.peer.key.spki == pair.edge_svid.key.public.spki


def test_gateway_answers_nothing_before_admission() -> None:
    pair = make_pair(admit=False)
    pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    assert len(pair.to_edge) == 1
    assert not any(isinstance(e, RequestReceived | AnswerStarted) for e in pair.gateway_events)
    pair.gateway.refuse(pair.now)
    with pytest.raises(PeerRefused):
        pair.pump()


@pytest.mark.parametrize("form", ["compressed", "hybrid", "infinity", "off the curve", "short"])
def test_M1_one_form_of_a_point_and_no_other(form: str) -> None:
    """Frame 1 with another encoding of its ephemeral key, or none on the curve, is refused before any work for it."""
    pair = make_pair()
    first = pair.edge.data_to_send(pair.now)
    point = first[3:68]
    bent = {
        "compressed": bytes([2 + point[64] % 2]) + point[1:33] + bytes(32),
        "hybrid": bytes([6 + point[64] % 2]) + point[1:],
        "infinity": bytes(65),
        "off the curve": point[:-1] + bytes([point[-1] ^ 1]),
        "short": b"\x04" + bytes(64),
    }[form]
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(first[:3] + bent + first[68:], pair.now)
    assert pair.gateway.data_to_send(pair.now) == b""


def test_M12_both_ends_and_a_hop_name_a_link_alike() -> None:
    pair = make_pair()
    pair.pump()
    seen = sha256(b"causeway link", pair.to_gateway[0][:64])[:8].hex()
    assert pair.edge.link_id == pair.gateway.link_id == seen
