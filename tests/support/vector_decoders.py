"""The decoders that the list of `vector_refusals` is for, each in the state it needs, and what they must take."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tests.support.connection_pair import verifier
from tests.support.scripted_sessions import (
    BUNDLE,
    CHAINS,
    DEVICE,
    INVITATION,
    KEYS,
    NOW,
    RECORDED,
    csr_of,
)
from tests.support.vector_refusals import FRAMES, GOOD, HEAD, KEY, framed, seal
from transport.connection import SignatureNeeded
from transport.errors import BadInput, DecryptFailed, IdentityRefused, ProtocolViolation, TicketRefused
from transport.handshake import (
    FrameType,
    ResponderHandshake,
    pad_payload,
    unpad_payload,
)
from transport.identity.join import Invitation
from transport.identity.svid import parse_csr
from transport.initiator import EdgeConnection, SvidLogin
from transport.messages import decode, decode_header
from transport.noise import PRODUCT_SUITE, CipherState, SystemEphemerals
from transport.primitives import P256Private, VerifyKey, encapsulate
from transport.records import RecordOpener
from transport.responder import GatewayConnection
from transport.tickets import TicketStore


def _fresh_gateway() -> GatewayConnection:
    return GatewayConnection(
        CHAINS["gateway"], NOW + 600, BUNDLE.roots[0], verifier(BUNDLE, "edge"), SystemEphemerals(), NOW,
        TicketStore(),
    )


def _frame_1(data: bytes) -> None:
    gateway = _fresh_gateway()
    try:
        gateway.receive_data(data, NOW)
    finally:
        answer = gateway.data_to_send(NOW)
        assert len(answer) in (0, 2) and gateway.next_event() is None


def _frame_2(data: bytes) -> None:
    edge = EdgeConnection(
        SvidLogin(CHAINS["edge"], NOW + 600), verifier(BUNDLE, "gateway"), RECORDED.for_edge(), NOW
    )
    assert edge.data_to_send(NOW) == FRAMES[0]
    try:
        edge.receive_data(data, NOW)
    finally:
        assert edge.data_to_send(NOW) == b"" and not isinstance(edge.next_event(), SignatureNeeded)


def _credential(kind: FrameType, data: bytes) -> None:
    gateway = ResponderHandshake(kind, RECORDED.for_gateway(), verifier(BUNDLE, "edge"))
    gateway.read_first(FRAMES[0][3:], CHAINS["gateway"][0])
    gateway.second_frame(CHAINS["gateway"], bytes(64))
    gateway.read_credential(data, NOW)


def _record(data: bytes) -> None:
    opener = RecordOpener(CipherState(PRODUCT_SUITE, KEY), NOW)
    opener.feed(data)
    while opener.next_messages(NOW) is not None:
        pass


_CLOSED_FOR: Final = {"credential, type 1": "close refused", "credential, type 3": "close refused", "frame 2": "link"}


def ends(kind: str, data: bytes) -> str:
    """How a link ends on which these bytes come; "" where that depends on what they come in."""
    if kind == "record":
        try:
            _record(data)
        except DecryptFailed:
            return "link"
        except ProtocolViolation:
            return "close protocol_error"
    if kind == "frame 1":
        with suppress(ProtocolViolation, TicketRefused):
            gateway = _fresh_gateway()
            gateway.receive_data(data, NOW)
        answer = gateway.data_to_send(NOW)
        return f"hint {answer[1]}" if answer else "link"
    return _CLOSED_FOR.get(kind, "")


DECODERS: dict[str, Callable[[bytes], object]] = {
    "message": decode,
    "header": decode_header,
    "record": _record,
    "frame 1": _frame_1,
    "frame 2": _frame_2,
    "payload": unpad_payload,
    "credential, type 1": lambda data: _credential(FrameType.FULL, data),
    "credential, type 3": lambda data: _credential(FrameType.FULL_WITH_ROOT, data),
    "device key": VerifyKey.from_spki,
    "CSR": parse_csr,
    "point": P256Private.from_scalar(RECORDED.edge_scalar).exchange,
    "encapsulation key": encapsulate,
    "invitation": lambda data: Invitation.parse(data.decode()),
}
TAKEN: dict[str, bytes] = {
    "message": GOOD["Body"], "header": HEAD, "record": seal(framed(b"\x91\x10")), "frame 1": FRAMES[0],
    "frame 2": FRAMES[1], "payload": pad_payload(b"\x91\x10"), "device key": DEVICE.public.spki,
    "CSR": csr_of(KEYS["edge"]), "point": DEVICE.public.spki[-65:], "encapsulation key": FRAMES[0][68:],
    "invitation": INVITATION.encode().encode(),
}


def refused(kind: str, data: bytes) -> bool:
    """Whether the decoder of that kind refuses, in one of the documented ways; other exceptions are not caught."""
    try:
        DECODERS[kind](data)
    except (ProtocolViolation, IdentityRefused, BadInput) as error:
        return bool(str(error))
    except TicketRefused:
        return True
    return False
