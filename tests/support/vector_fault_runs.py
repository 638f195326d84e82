"""The handshakes and resumptions of `vector_faults` through the cores that ship: how each ends.

"link" (closed without a byte), "hint N", "close CODE", or "passes".
"""

from typing import Any, Final

from tests.support import handshake_steps
from tests.support.connection_pair import verifier
from tests.support.scripted_sessions import (
    BUNDLE,
    CHAINS,
    DEVICE,
    INVITATION,
    ISSUED,
    KEYS,
    NOW,
    RECORDED,
    csr_of,
)
from tests.support.vector_faults import (
    FULL,
    JOIN,
    LEAF_END,
    RESUMED,
    WELCOME,
    Entry,
    frame_1,
    frame_2,
    record_keys,
    resumed_keys,
    tickets_of_first,
)
from tests.support.vector_hex import lengthen
from transport.connection import CredentialReceived, SignatureNeeded
from transport.errors import (
    IdentityExpired,
    IdentityRefused,
    Overloaded,
    PeerRefused,
    ProtocolViolation,
    TicketRefused,
    TransportError,
)
from transport.handshake import (
    FrameType,
    JoinCredential,
    RenewCredential,
)
from transport.identity.join import (
    Invitation,
    bundle_from_joined_root,
)
from transport.identity.svid import parse_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import EdgeConnection, Joining, Purpose, Resumption, SvidLogin
from transport.messages import (
    Close,
    decode,
)
from transport.primitives import sha256
from transport.responder import GatewayConnection
from transport.tickets import TicketStore

_HINT_TAKEN: Final[dict[type, str]] = {PeerRefused: "hint 1", Overloaded: "hint 2", TicketRefused: "hint 3"}


def play(entry: Entry) -> str:
    """How a handshake of the list ends."""
    flights = [lengthen(one) for one in entry["flights"]]
    return (_edge if entry["to"] == "edge" else _gateway)(entry, flights, float(entry.get("now", NOW)))


def _edge(entry: Entry, flights: list[bytes], now: float) -> str:
    invitation = Invitation.parse(entry["invitation"]) if "invitation" in entry else INVITATION
    purposes: dict[int, Purpose] = {
        FULL: SvidLogin(CHAINS["edge"], LEAF_END), RESUMED: Resumption(tickets_of_first()[0]),
        JOIN: Joining(invitation, DEVICE.public.spki, csr_of(KEYS["edge"])),
    }

    def verify(chain: Any, at: float) -> VerifiedPeer:
        bundle = bundle_from_joined_root(invitation, chain) if entry["type"] == JOIN else BUNDLE
        return verify_svid(chain, bundle, role="gateway", now=at)

    side = RECORDED.for_resumption()[0] if entry["type"] == RESUMED else RECORDED.for_edge()
    edge = EdgeConnection(purposes[entry["type"]], verify, side, now)
    edge.data_to_send(now)
    passed = False
    try:
        for data in flights:
            passed = False
            edge.receive_data(data, now)
            while (event := edge.next_event()) is not None:
                passed = True
                if isinstance(event, SignatureNeeded):
                    edge.signed((DEVICE if entry["type"] == JOIN else KEYS["edge"]).sign(event.message), now)
                    edge.data_to_send(now)
        edge.handle_time(now)
    except IdentityExpired:
        return "close expired" if edge.data_to_send(now) else "link"
    except TransportError as error:
        assert edge.data_to_send(now) == b""
        return _HINT_TAKEN.get(type(error), "link") if flights[0][0] == FrameType.HINT else "link"
    return "passes" if passed else "something else"


def _gateway(entry: Entry, flights: list[bytes], now: float) -> str:
    gateway = GatewayConnection(
        CHAINS["gateway"], LEAF_END, BUNDLE.roots[0], verifier(BUNDLE, "edge"), RECORDED.for_gateway(), now,
        TicketStore(),
    )
    kind = FrameType(entry["type"])
    gateway.receive_data(frame_1(kind), now)
    event = gateway.next_event()
    assert isinstance(event, SignatureNeeded)
    gateway.signed(KEYS["gateway"].sign(event.message), now)
    assert gateway.data_to_send(now) == frame_2(kind)
    ends = _taken(gateway, flights, now)
    return ends if ends != "" else _told(gateway.data_to_send(now), record_keys(kind)[1])


def _taken(gateway: GatewayConnection, flights: list[bytes], now: float) -> str:
    """"passes", or "" where what the gateway sends says how it ends."""
    passed = False
    try:
        for data in flights:
            gateway.receive_data(data, now)
            while (event := gateway.next_event()) is not None:
                if isinstance(event, CredentialReceived):
                    passed = _decided(gateway, event, now)
        gateway.handle_time(now)
    except TransportError:
        return ""
    return "passes" if passed else ""


def _decided(gateway: GatewayConnection, event: CredentialReceived, now: float) -> bool:
    """What `relay` does with a credential, with one invitation and one registered device."""
    credential = event.credential
    if isinstance(credential, VerifiedPeer):
        gateway.admit(WELCOME, now)
        return True
    try:
        if isinstance(credential, RenewCredential):
            if credential.device_id != sha256(DEVICE.public.spki):
                raise IdentityRefused("the device is not registered", rule="registration")
            credential.verify(DEVICE.public)
            device = DEVICE.public.spki
        else:
            assert isinstance(credential, JoinCredential)
            device = credential.device_key.spki
            if (credential.token_id, credential.secret.expose()) != (INVITATION.token_id, INVITATION.secret.expose()):
                raise IdentityRefused("unknown invitation", rule="invitation")
        if parse_csr(credential.csr).spki == device:
            raise IdentityRefused("device key used as SVID key", rule="key")
    except (IdentityRefused, ProtocolViolation):
        gateway.refuse(now)
        return False
    gateway.issue(ISSUED, now)
    return True


def _told(data: bytes, key: bytes) -> str:
    """What the gateway's last bytes, records under `key`, say."""
    if not data:
        return "link"
    last = handshake_steps.Reader(key).records(data)[-1]["messages"]
    assert isinstance(last, list)
    message = decode(bytes.fromhex(last[-1]))
    return f"close {message.code}" if isinstance(message, Close) else "something else"


def play_links(entry: Entry) -> list[str]:
    """How each link of a resumption of the list ends."""
    store, now = TicketStore(), float(entry.get("now", NOW))
    store.put(tickets_of_first(), NOW)
    return [_link(store, [lengthen(one) for one in link["flights"]], now) for link in entry["links"]]


def _link(store: TicketStore, flights: list[bytes], now: float) -> str:
    gateway = GatewayConnection(
        CHAINS["gateway"], LEAF_END, BUNDLE.roots[0], verifier(BUNDLE, "edge"), RECORDED.for_resumption()[1], now,
        store,
    )
    if (ends := _taken(gateway, flights, now)) != "":
        return ends
    data = gateway.data_to_send(now)
    if not data or data[0] == FrameType.HINT:
        return f"hint {data[1]}" if data else "link"
    return _told(data[84:], resumed_keys(flights[0], data[:84])[1])
