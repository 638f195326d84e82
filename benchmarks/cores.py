"""Causeway's own cores, driven in memory without sockets or asyncio: both sides of a handshake, and records."""

import os
from collections.abc import Callable

import msgspec

from benchmarks.chains import Chains
from transport.connection import Connection, CredentialReceived, SignatureNeeded
from transport.handshake import GatewayHello, SvidOffer, Verify, encode_offer, pad_payload, unpad_payload
from transport.identity.join import EDGE_LABEL, GATEWAY_LABEL, signed_input
from transport.identity.svid import Svid
from transport.identity.verify import SvidVerifier, VerifiedPeer, verify_svid
from transport.initiator import EdgeConnection, Resumption, SvidLogin
from transport.messages import Welcome
from transport.noise import RESUMPTION_SUITE, HandshakeState, Pattern, SystemEphemerals
from transport.primitives import sha256
from transport.records import RecordOpener, RecordSealer
from transport.responder import GatewayConnection
from transport.tickets import Ticket, TicketStore

EPOCH = bytes(16)
_NN = Pattern("NN", (), (), (("e",), ("e", "ee")))  # the product's pattern without its KEM; for measuring alone


class Handshakes:
    """Handshakes of one edge with one gateway, up to a welcomed session with its tickets on both sides."""

    def __init__(self, chains: Chains) -> None:
        self._chains = chains
        self._edge, self._gateway = chains.issue("edge/bench"), chains.issue("gateway/bench")
        self._store = TicketStore(families_max=64)

    def full(self) -> EdgeConnection:
        """With the KEM; each chain is verified anew, by a verifier that has never seen it."""
        return self._run(SvidLogin(self._edge.chain, self._edge.not_after), self._verify_anew)

    def full_cached(self) -> EdgeConnection:
        """With the KEM, by the product's verifier, which remembers path validations."""
        return self._run(SvidLogin(self._edge.chain, self._edge.not_after), self._verify_cached)

    def resumed(self, ticket: Ticket) -> EdgeConnection:
        """One ticket is used up; the session that is returned holds the next ones."""
        return self._run(Resumption(ticket), self._verify_cached)

    def resumed_bytes(self) -> int:
        """Bytes of both frames, without early data and without the records that follow."""
        edge, gateway = self._sides(Resumption(self.full_cached().tickets[0]), self._verify_cached)
        first = edge.data_to_send(self._chains.now)
        gateway.receive_data(first, self._chains.now)
        return len(first) + len(gateway.data_to_send(self._chains.now))  # before `welcome`: nobody is admitted yet

    def without_kem(self) -> None:
        """Noise NN with a signature each way as in the product; path validation remembered; keys, and no session."""
        ephemerals, now = SystemEphemerals(), self._chains.now
        edge = HandshakeState(_NN, RESUMPTION_SUITE, initiator=True, prologue=b"bench", ephemerals=ephemerals)
        gateway = HandshakeState(_NN, RESUMPTION_SUITE, initiator=False, prologue=b"bench", ephemerals=ephemerals)
        gateway.read_message(edge.write_message(b""))
        tokens = gateway.write_tokens()
        hello = GatewayHello(list(self._gateway.chain), _sign(self._gateway, GATEWAY_LABEL, gateway.handshake_hash))
        second = tokens + gateway.write_payload(pad_payload(msgspec.msgpack.encode(hello)))

        rest, signed = edge.read_tokens(second), edge.handshake_hash
        shown = msgspec.msgpack.decode(unpad_payload(edge.read_payload(rest)), type=GatewayHello)
        peer = self._verify_cached("gateway")(shown.chain, now)
        peer.key.verify(shown.signature, signed_input(GATEWAY_LABEL, signed, peer.leaf_sha256))
        signature = _sign(self._edge, EDGE_LABEL, edge.handshake_hash)
        edge_ciphers = edge.split()
        record = RecordSealer(edge_ciphers[0], now).seal_record(
            encode_offer(SvidOffer(list(self._edge.chain), signature))
        )

        signed = gateway.handshake_hash
        opener = RecordOpener(gateway.split()[1], now)
        opener.feed(record)
        offer = msgspec.msgpack.decode(unpad_payload(opener.next_plaintext() or b""), type=SvidOffer)
        peer = self._verify_cached("edge")(offer.chain, now)
        peer.key.verify(offer.signature, signed_input(EDGE_LABEL, signed, peer.leaf_sha256))

    def _verify_cached(self, role: str) -> Verify:
        return lambda chain, now: verify_svid(chain, self._chains.bundle, role=role, now=now)

    def _verify_anew(self, role: str) -> Verify:
        def verify(chain: list[bytes], now: float) -> VerifiedPeer:
            return SvidVerifier().verify(chain, self._chains.bundle, role=role, now=now)

        return verify  # type: ignore[return-value]

    def _sides(
        self, purpose: SvidLogin | Resumption, verify: Callable[[str], Verify]
    ) -> tuple[EdgeConnection, GatewayConnection]:
        now, ephemerals = self._chains.now, SystemEphemerals()
        return EdgeConnection(purpose, verify("gateway"), ephemerals, now), GatewayConnection(
            self._gateway.chain, self._gateway.not_after, self._chains.root, verify("edge"), ephemerals, now,
            self._store,
        )

    def _run(self, purpose: SvidLogin | Resumption, verify: Callable[[str], Verify]) -> EdgeConnection:
        edge, gateway = self._sides(purpose, verify)
        now = self._chains.now
        while not edge.tickets:
            gateway.receive_data(edge.data_to_send(now), now)
            self._answer(gateway, self._gateway, now)
            edge.receive_data(gateway.data_to_send(now), now)
            self._answer(edge, self._edge, now)
        return edge

    @staticmethod
    def _answer(core: Connection, svid: Svid, now: float) -> None:
        while (event := core.next_event()) is not None:
            match event, core:
                case SignatureNeeded(), EdgeConnection() | GatewayConnection():
                    core.signed(svid.key.sign(event.message), now)
                case CredentialReceived(), GatewayConnection():
                    core.admit(Welcome(EPOCH, "", 1), now)


def _sign(svid: Svid, label: bytes, transcript: bytes) -> bytes:
    return svid.key.sign(signed_input(label, transcript, sha256(svid.chain[0])))


def record_pair() -> tuple[RecordSealer, RecordOpener]:
    """The two ends of one direction, after a handshake."""
    edge = HandshakeState(_NN, RESUMPTION_SUITE, initiator=True, prologue=b"", ephemerals=SystemEphemerals())
    gateway = HandshakeState(_NN, RESUMPTION_SUITE, initiator=False, prologue=b"", ephemerals=SystemEphemerals())
    gateway.read_message(edge.write_message(b""))
    edge.read_message(gateway.write_message(b""))
    return RecordSealer(edge.split()[0], 0.0), RecordOpener(gateway.split()[1], 0.0)


def record_carrier(size: int) -> Callable[[], bytes | None]:
    """One record of `size` bytes sealed, handed over as bytes, and opened."""
    sealer, opener = record_pair()
    data = os.urandom(size)

    def carry() -> bytes | None:
        opener.feed(sealer.seal_record(data))
        return opener.next_plaintext()

    return carry
