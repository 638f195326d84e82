"""Ephemerals and encapsulations that were recorded, and a session run with them."""

import hashlib
from dataclasses import dataclass
from typing import Any

from tests.support.connection_pair import EPOCH, header, verifier
from transport import primitives
from transport.connection import CredentialReceived, SignatureNeeded
from transport.identity.svid import TrustBundle
from transport.initiator import EdgeConnection, Resumption, SvidLogin
from transport.messages import Welcome
from transport.mux import AnswerBytes, RequestReceived
from transport.noise import KemKeyPair, KeyPair
from transport.primitives import Secret, SigningKey, sha256
from transport.responder import GatewayConnection
from transport.tickets import TicketStore

REQUEST_IDS = b"\x01" * 16, b"\x02" * 16  # of the first session and of the resumed one
LIFETIME_S = 86_400
ANSWER = b"the maximum pressure of the P-101 is 6 bar"


@dataclass(frozen=True)
class Recorded:
    """One side's or both sides' randomness; in tests only."""

    edge_scalar: bytes
    edge_kem_seed: bytes
    gateway_scalar: bytes
    kem_secret: bytes
    kem_ciphertext: bytes
    resuming_edge_scalar: bytes
    resuming_gateway_scalar: bytes

    @classmethod
    def fresh(cls, label: str) -> "Recorded":
        """Keys from SHA-512 of labels; the encapsulation from the library, which takes no seed."""

        def derive(what: str) -> bytes:
            return hashlib.sha512(f"causeway vector {label} {what}".encode()).digest()

        seed = derive("kem")
        secret, ciphertext = primitives.encapsulate(primitives.KemPrivate.from_seed(seed).public)
        return cls(
            derive("edge")[:32], seed, derive("gateway")[:32], secret, ciphertext, derive("resuming edge")[:32],
            derive("resuming gateway")[:32],
        )

    @classmethod
    def from_json(cls, vector: dict[str, Any]) -> "Recorded":
        return cls(*(bytes.fromhex(vector[name]) for name in cls.__dataclass_fields__))

    def as_json(self) -> dict[str, str]:
        return {name: getattr(self, name).hex() for name in self.__dataclass_fields__}

    def for_edge(self) -> "Side":
        return Side(self, self.edge_scalar)

    def for_gateway(self) -> "Side":
        return Side(self, self.gateway_scalar)

    def for_resumption(self) -> tuple["Side", "Side"]:
        """(edge, gateway)."""
        return Side(self, self.resuming_edge_scalar), Side(self, self.resuming_gateway_scalar)


@dataclass(frozen=True)
class Side:
    recorded: Recorded
    scalar: bytes

    def dh_key(self) -> KeyPair:
        return primitives.P256Private.from_scalar(self.scalar)

    def kem_key(self) -> KemKeyPair:
        return primitives.KemPrivate.from_seed(self.recorded.edge_kem_seed)

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        assert public == primitives.KemPrivate.from_seed(self.recorded.edge_kem_seed).public
        return self.recorded.kem_secret, self.recorded.kem_ciphertext


def run_session(vector: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Both product cores with the vector's keys; what crossed the wire, in order, and what came of it."""
    now, recorded = float(vector["now"]), Recorded.from_json(vector)
    bundle = TrustBundle(vector["trust_domain"], (bytes.fromhex(vector["root"]),), 1)
    keys = {
        side: SigningKey.from_pkcs8(Secret(bytes.fromhex(vector[side]["svid_key_pkcs8"])))
        for side in ("edge", "gateway")
    }
    chains = {side: [bytes.fromhex(part) for part in vector[side]["chain"]] for side in ("edge", "gateway")}
    store = TicketStore()
    edge = EdgeConnection(
        SvidLogin(chains["edge"], now + 600), verifier(bundle, "gateway"), recorded.for_edge(), now
    )
    gateway = GatewayConnection(
        chains["gateway"], now + 600, bundle.roots[0], verifier(bundle, "edge"), recorded.for_gateway(), now,
        store,
    )
    first, got = _carry(edge, gateway, keys, REQUEST_IDS[0], body, now)
    assert got == ANSWER
    tickets = edge.tickets
    resumed_edge, resumed_gateway = recorded.for_resumption()
    again, got = _carry(
        EdgeConnection(Resumption(tickets[0]), verifier(bundle, "gateway"), resumed_edge, now),
        GatewayConnection(
            chains["gateway"], now + 600, bundle.roots[0], verifier(bundle, "edge"), resumed_gateway, now, store
        ),
        keys, REQUEST_IDS[1], body, now,
    )
    assert got == ANSWER
    return {
        "epoch": EPOCH.hex(),
        "request_id": REQUEST_IDS[0].hex(),
        "request_header": header(body, expires_at=int(now) + LIFETIME_S).hex(),
        "request_body": body.hex(),
        "answer": ANSWER.hex(),
        **first,
        "resumed": {"request_id": REQUEST_IDS[1].hex(), **again},
    }


def _carry(
    edge: EdgeConnection, gateway: GatewayConnection, keys: dict[str, SigningKey], request_id: bytes, body: bytes,
    now: float,
) -> tuple[dict[str, Any], bytes]:
    """One request and its answer: (what crossed the wire and came of it, the answer)."""
    flights: list[dict[str, str]] = []
    got = b""

    def settle() -> None:
        nonlocal got
        for side, core in (("edge", edge), ("gateway", gateway)):
            while (event := core.next_event()) is not None:
                if isinstance(event, SignatureNeeded):
                    core.signed(keys[side].sign(event.message), now)
                elif isinstance(event, CredentialReceived):
                    gateway.admit(Welcome(EPOCH, "", 1), now)
                elif isinstance(event, RequestReceived):
                    assert event.body == body
                    gateway.streams.answer(event.stream, 200, "text/plain", streamed=False)
                    gateway.streams.write(event.stream, ANSWER)
                    gateway.streams.end(event.stream, len(ANSWER), sha256(ANSWER))
                elif isinstance(event, AnswerBytes):
                    got += event.data

    edge.request(request_id, header(body, expires_at=int(now) + LIFETIME_S), body)
    while True:
        settle()
        moved = False
        for side, source, sink in (("edge", edge, gateway), ("gateway", gateway, edge)):
            if data := source.data_to_send(now):
                flights.append({"from": side, "bytes": data.hex()})
                sink.receive_data(data, now)
                moved = True
            settle()
        if not moved:
            break
    tickets = [{"id": ticket.id.hex(), "psk": ticket.psk.expose().hex()} for ticket in edge.tickets]
    return {
        "flights": flights, "session_hash": edge.session_hash.hex(), "link_id": edge.link_id, "tickets": tickets,
    }, got
