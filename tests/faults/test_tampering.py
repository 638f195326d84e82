"""Every byte of every handshake message and of sample records, changed, cut, repeated, reordered, reflected."""

import pytest

from tests.support.ca import Ca
from tests.support.connection_pair import Pair, header, make_pair
from transport.connection import Phase
from transport.errors import DecryptFailed, IdentityRefused, LinkLost, PeerRefused, ProtocolViolation
from transport.mux import RequestReceived

REFUSALS = (ProtocolViolation, IdentityRefused, PeerRefused)


def flip(position: int, mask: int = 1):  # type: ignore[no-untyped-def]
    def bend(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= mask
        return bytes(changed)

    return bend


def assert_neither_open(pair: Pair, position: int) -> None:
    """A bent length may leave the receiver waiting for more, which its deadline ends; nothing may come through."""
    assert Phase.OPEN not in (pair.edge.phase, pair.gateway.phase), position
    assert not any(isinstance(e, RequestReceived) for e in pair.gateway_events), position


@pytest.fixture(scope="module")
def authority() -> tuple[Ca, object, object]:
    ca = Ca()
    return ca, ca.issue("edge/lap-1"), ca.issue("gateway/main")


def run_bent(authority, *, flight: int, to_gateway: bool, position: int) -> None:  # type: ignore[no-untyped-def]
    ca, edge, gateway = authority
    pair = make_pair(ca, edge_svid=edge, gateway_svid=gateway)
    seen = 0

    def bend(data: bytes) -> bytes:
        nonlocal seen
        seen += 1
        return flip(position)(data) if seen == flight else data

    if to_gateway:
        pair.bend_to_gateway = bend
    else:
        pair.bend_to_edge = bend
    try:
        pair.pump()
    except REFUSALS:
        pass
    else:
        # No refusal: then the receiver still waits for bytes that a bent length promised.
        assert position in (1, 2) if flight == 1 else position in (0, 1), position
    if to_gateway or flight > 1:
        assert pair.gateway.phase is not Phase.OPEN, position
    assert_neither_open(pair, position)


@pytest.mark.parametrize("part", range(8))
def test_every_byte_of_frame_1(authority, part: int) -> None:  # type: ignore[no-untyped-def]
    for position in range(part, 1_252, 8):
        run_bent(authority, flight=1, to_gateway=True, position=position)


@pytest.mark.parametrize("part", range(8))
def test_every_byte_of_frame_2(authority, part: int) -> None:  # type: ignore[no-untyped-def]
    for position in range(part, 2_212, 8):
        run_bent(authority, flight=1, to_gateway=False, position=position)


@pytest.mark.parametrize("part", range(4))
def test_every_byte_of_record_0(authority, part: int) -> None:  # type: ignore[no-untyped-def]
    for position in range(part, 1_042, 4):
        run_bent(authority, flight=2, to_gateway=True, position=position)


def test_every_byte_of_a_request_record() -> None:
    ca = Ca()
    edge, gateway = ca.issue("edge/lap-1"), ca.issue("gateway/main")
    pair = make_pair(ca, edge_svid=edge, gateway_svid=gateway)
    pair.pump()
    pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")
    length = len(pair.edge.data_to_send(pair.now))
    assert length == 512 + 18
    for position in range(length):
        pair = make_pair(ca, edge_svid=edge, gateway_svid=gateway)
        pair.pump()
        pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")
        pair.bend_to_gateway = flip(position)
        try:
            pair.pump()
        except ProtocolViolation:
            assert pair.gateway.phase is Phase.CLOSED
        else:
            assert position in (0, 1), position  # the length asks for more bytes; none come
        assert not any(isinstance(e, RequestReceived) for e in pair.gateway_events)


def opened() -> Pair:
    pair = make_pair()
    pair.pump()
    return pair


def request_flight(pair: Pair, tag: bytes) -> bytes:
    pair.edge.request(tag * 16, header(tag), tag)
    return pair.edge.data_to_send(pair.now)


def test_C4_a_record_opens_once_in_order_and_on_its_own_link() -> None:
    pair = opened()
    first, second = request_flight(pair, b"1"), request_flight(pair, b"2")
    with pytest.raises(DecryptFailed):
        pair.gateway.receive_data(second, pair.now)  # reordered, as after a lost one
    pair = opened()
    first = request_flight(pair, b"1")
    pair.gateway.receive_data(first, pair.now)
    with pytest.raises(DecryptFailed):
        pair.gateway.receive_data(first, pair.now)  # replayed
    other = opened()
    with pytest.raises(DecryptFailed):
        other.gateway.receive_data(first, other.now)  # on another link


def test_reflection_is_refused() -> None:
    pair = opened()
    mirrored = request_flight(pair, b"1")
    with pytest.raises(DecryptFailed):
        pair.edge.receive_data(mirrored, pair.now)
    fresh = make_pair()
    first = fresh.edge.data_to_send(fresh.now)
    with pytest.raises(ProtocolViolation):
        fresh.edge.receive_data(first, fresh.now)


def test_replayed_handshake_is_refused() -> None:
    """The edge's flights of one handshake do not open a second one: the gateway's ephemerals are in the transcript."""
    ca = Ca()
    pair = make_pair(ca)
    pair.pump()
    again = make_pair(ca, gateway_svid=pair.gateway_svid)
    again.gateway.receive_data(pair.to_gateway[0], again.now)
    again._events()
    again.gateway.data_to_send(again.now)
    with pytest.raises(DecryptFailed):
        again.gateway.receive_data(pair.to_gateway[1], again.now)


def test_downgrade_by_type_is_refused() -> None:
    """Type 1 changed to type 3 on the wire: the prologue differs, so the payload does not open."""
    pair = make_pair()
    pair.bend_to_gateway = lambda data: b"\x03" + data[1:] if data[0] == 1 else data
    pair.bend_to_edge = lambda data: b"\x01" + data[1:] if data[0] == 3 else data
    with pytest.raises(DecryptFailed):
        pair.pump()


def test_kem_stripped_or_swapped_is_refused() -> None:
    pair = make_pair()
    other = make_pair()
    foreign = other.edge.data_to_send(other.now)

    def swap_kem(data: bytes) -> bytes:
        return data[: 3 + 65] + foreign[3 + 65 :] if len(data) == 1_252 else data

    pair.bend_to_gateway = swap_kem
    with pytest.raises(DecryptFailed):
        pair.pump()
    pair = make_pair()
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(b"\x01" + (65).to_bytes(2, "big") + pair.edge.data_to_send(pair.now)[3:68], pair.now)


def test_misbinding_is_refused() -> None:
    """A man in the middle swaps the answers of two honest handshakes: each signature is over another transcript."""
    ca = Ca()
    left, right = make_pair(ca), make_pair(ca)
    answers = []
    for pair in (left, right):
        pair.gateway.receive_data(pair.edge.data_to_send(pair.now), pair.now)
        pair._events()
        answers.append(pair.gateway.data_to_send(pair.now))
    for pair, foreign in ((left, answers[1]), (right, answers[0])):
        with pytest.raises(DecryptFailed):
            pair.edge.receive_data(foreign, pair.now)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 700, 1_251])
def test_truncated_handshake_opens_nothing(cut: int) -> None:
    pair = make_pair()
    pair.gateway.receive_data(pair.edge.data_to_send(pair.now)[:cut], pair.now)
    assert pair.gateway.data_to_send(pair.now) == b""
    with pytest.raises(LinkLost):
        pair.gateway.receive_eof()
