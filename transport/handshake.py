"""Causeway's handshake on top of Noise NNhfs: one signature over the transcript each way. docs/SPEC.md section 4.

    edge -> gateway   type(1) || length(2) || e(65) || e1(1184)
    gateway -> edge   type(1) || length(2) || e(65) || ekem1(1104) || payload: chain and signature of the gateway
    edge -> gateway   record 0: the edge's credential: an SVID, or what joins or renews one

or, with a ticket of an earlier session (transport.tickets), one round trip and no certificates:

    edge -> gateway   2 || length(2) || ticket(16) || e(65) || early data(n + 16)
    gateway -> edge   2 || length(2) || e(65) || 16

There are no Noise static keys; identity is ECDSA P-256 over the handshake hash (SIGMA-I, TLS 1.3 section 4.4.3). The
edge sends nothing of itself before the gateway has passed. Both payloads are padded to a multiple of 512, so that the
length of a name does not show. Each class is one side, used once, in the order of its methods; any exception ends it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from transport.errors import IdentityRefused, LocalMisuse, ProtocolViolation
from transport.identity.join import DEVICE_LABEL, EDGE_LABEL, GATEWAY_LABEL, signed_input
from transport.identity.verify import VerifiedPeer
from transport.messages import Bytes16, Bytes32, Chain, decode_canonical
from transport.noise import (
    NN_HFS,
    NN_PSK0,
    PRODUCT_SUITE,
    RESUMPTION_SUITE,
    TAG_LEN,
    CipherState,
    Ephemerals,
    HandshakeState,
)
from transport.primitives import KEM_CIPHERTEXT_LEN, KEM_PUBLIC_LEN, POINT_LEN, Secret, VerifyKey, sha256
from transport.tickets import TICKET_ID_LEN, Ticket

FRAME_HEADER_LEN: Final = 3
FIRST_BODY_LEN: Final = POINT_LEN + KEM_PUBLIC_LEN
PAYLOAD_BLOCK: Final = 512
PAYLOAD_MAX: Final = 8_192
_SECOND_FIXED: Final = POINT_LEN + KEM_CIPHERTEXT_LEN + TAG_LEN + TAG_LEN
SECOND_BODY_MAX: Final = _SECOND_FIXED + PAYLOAD_MAX
EARLY_MAX: Final = 16_384
RESUME_BODY_MIN: Final = TICKET_ID_LEN + POINT_LEN + TAG_LEN
RESUME_BODY_MAX: Final = RESUME_BODY_MIN + EARLY_MAX
RESUMED_SECOND_LEN: Final = POINT_LEN + TAG_LEN

Verify = Callable[[Sequence[bytes], float], VerifiedPeer]  # (chain, now); raises IdentityRefused
_Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
_Csr = Annotated[bytes, Meta(min_length=1, max_length=1_024)]


class FrameType(IntEnum):
    """First byte of a link, in both directions."""

    HINT = 0
    FULL = 1
    RESUME = 2
    FULL_WITH_ROOT = 3


class Hint(IntEnum):
    """Second byte of an unauthenticated refusal. Never acted upon beyond giving up or trying later."""

    NOT_SPOKEN_HERE = 1
    OVERLOADED = 2
    UNKNOWN_TICKET = 3  # try a full handshake


class _Wire(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Shown by its type alone: a join credential holds the invitation's secret."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class GatewayHello(_Wire, frozen=True):
    chain: Chain
    signature: _Signature


class SvidOffer(_Wire, frozen=True, tag=1):
    """Kind 1: the edge's SVID chain, and the leaf key's signature."""

    chain: Chain
    signature: _Signature


class RenewOffer(_Wire, frozen=True, tag=2):
    """Kind 2: a registered device asks for an SVID; `device_id` is SHA-256 of its SubjectPublicKeyInfo."""

    device_id: Bytes32
    csr: _Csr
    signature: _Signature


class JoinOffer(_Wire, frozen=True, tag=3):
    """Kind 3: an invitation is redeemed for `device_spki`, and an SVID asked for."""

    token_id: Annotated[bytes, Meta(min_length=8, max_length=8)]
    secret: Bytes16
    csr: _Csr
    device_spki: Annotated[bytes, Meta(min_length=1, max_length=128)]
    signature: _Signature


class AttestedJoinOffer(JoinOffer, frozen=True, tag=4):
    """Kind 4: the same, and the message `attest` follows, which tells the TPM that holds the device key."""


Offer = SvidOffer | RenewOffer | JoinOffer | AttestedJoinOffer
_hello_decoder = msgspec.msgpack.Decoder(GatewayHello)
_offer_decoder: "msgspec.msgpack.Decoder[Offer]" = msgspec.msgpack.Decoder(Offer)


@dataclass(frozen=True, eq=False)
class JoinCredential:
    """Record 0 of a join; the device key's signature over the transcript has been verified, the secret has not."""

    token_id: bytes
    secret: Secret
    csr: bytes
    device_key: VerifyKey
    attests: bool = False  # it goes on to show that the device key lies in a TPM


@dataclass(frozen=True, eq=False)
class RenewCredential:
    """Record 0 of a renewal. `verify` must be called with the registered key before anything is issued."""

    device_id: bytes
    csr: bytes
    _signed: bytes
    _signature: bytes

    def verify(self, key: VerifyKey) -> None:
        """Raises IdentityRefused unless the device signed this very transcript with `key`."""
        if sha256(key.spki) != self.device_id:
            raise IdentityRefused("signature is not valid", rule="device id")
        key.verify(self._signature, self._signed)


Credential = VerifiedPeer | JoinCredential | RenewCredential


def prologue(kind: FrameType, ticket_id: bytes = b"") -> bytes:
    """Noise prologue: version, frame type, and for a resumption the ticket's id, so that a change of any fails."""
    return b"causeway/1" + bytes([kind]) + ticket_id


def pad_payload(message: bytes) -> bytes:
    """length(2) || message || zeros, to a multiple of 512."""
    framed = len(message).to_bytes(2, "big") + message
    padded = framed.ljust(-(-len(framed) // PAYLOAD_BLOCK) * PAYLOAD_BLOCK, b"\0")
    if len(padded) > PAYLOAD_MAX:
        raise LocalMisuse("handshake payload is too long")
    return padded


def unpad_payload(payload: bytes) -> bytes:
    """Raises ProtocolViolation for anything `pad_payload` would not have made."""
    length = int.from_bytes(payload[:2], "big")
    message = payload[2 : 2 + length]
    if not message or len(payload) > PAYLOAD_MAX or pad_payload(message) != payload:
        raise ProtocolViolation("handshake payload is not well formed")
    return message


def frame(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(2, "big") + body


class InitiatorHandshake:
    """The edge's side. `verify_gateway` checks the chain it is shown and returns who that is."""

    def __init__(self, kind: FrameType, ephemerals: Ephemerals, verify_gateway: Verify) -> None:
        if kind not in (FrameType.FULL, FrameType.FULL_WITH_ROOT):
            raise LocalMisuse("not a full handshake")
        self.kind = kind
        self._verify = verify_gateway
        self._noise = HandshakeState(
            NN_HFS, PRODUCT_SUITE, initiator=True, prologue=prologue(kind), ephemerals=ephemerals
        )

    def first_frame(self) -> bytes:
        return frame(self.kind, self._noise.write_message(b""))

    def read_second(self, body: bytes, now: float) -> VerifiedPeer:
        """The gateway, once its AEAD tag, chain, role and signature have passed."""
        check_second_length(len(body))
        rest = self._noise.read_tokens(body)
        signed_hash = self._noise.handshake_hash
        hello = decode_canonical(_hello_decoder, unpad_payload(self._noise.read_payload(rest)), PAYLOAD_MAX)
        gateway = self._verify(hello.chain, now)
        gateway.key.verify(hello.signature, signed_input(GATEWAY_LABEL, signed_hash, gateway.leaf_sha256))
        return gateway

    def svid_input(self, leaf: bytes) -> bytes:
        """What the SVID key must sign, for a leaf certificate (DER)."""
        return signed_input(EDGE_LABEL, self._noise.handshake_hash, sha256(leaf))

    def device_input(self, spki: bytes) -> bytes:
        """What the device key must sign in record 0 of a join or a renewal."""
        return signed_input(DEVICE_LABEL, self._noise.handshake_hash, sha256(spki))

    @property
    def transcript(self) -> bytes:
        """h after message 2."""
        return self._noise.handshake_hash

    def split(self) -> "Split":
        """What the session goes on with. Ends the handshake."""
        return _split(self._noise)


@dataclass(frozen=True, eq=False)
class Split:
    """The two record ciphers, and the chaining key that tickets are derived from."""

    sending: CipherState
    receiving: CipherState
    chaining_key: Secret


def _split(noise: HandshakeState) -> Split:
    chaining_key = noise.chaining_key
    return Split(*noise.split(), chaining_key)


def encode_offer(offer: Offer) -> bytes:
    """Record 0's plaintext."""
    return pad_payload(msgspec.msgpack.encode(offer))


def check_second_length(length: int) -> None:
    payload = length - _SECOND_FIXED
    if not 0 < payload <= PAYLOAD_MAX or payload % PAYLOAD_BLOCK:
        raise ProtocolViolation("second handshake message has a bad length")


class ResponderHandshake:
    """The gateway's side. `verify_edge` checks the chain of an SVID credential."""

    def __init__(self, kind: FrameType, ephemerals: Ephemerals, verify_edge: Verify) -> None:
        self.kind = kind
        self._verify = verify_edge
        self._noise = HandshakeState(
            NN_HFS, PRODUCT_SUITE, initiator=False, prologue=prologue(kind), ephemerals=ephemerals
        )
        self._tokens = b""

    def read_first(self, body: bytes, leaf: bytes) -> bytes:
        """What the gateway's SVID key must sign (its leaf is DER). Costs one key agreement and one encapsulation."""
        if len(body) != FIRST_BODY_LEN or self._noise.read_message(body) != b"":
            raise ProtocolViolation("first handshake message has a bad length")
        self._tokens = self._noise.write_tokens()
        return signed_input(GATEWAY_LABEL, self._noise.handshake_hash, sha256(leaf))

    def second_frame(self, chain: Sequence[bytes], signature: bytes) -> bytes:
        """`chain` leaf first; with the root at its end for type 3."""
        hello = msgspec.msgpack.encode(GatewayHello(list(chain), signature))
        return frame(self.kind, self._tokens + self._noise.write_payload(pad_payload(hello)))

    @property
    def transcript(self) -> bytes:
        """h after message 2."""
        return self._noise.handshake_hash

    def split(self) -> Split:
        """What the session goes on with."""
        return _split(self._noise)

    def read_credential(self, plaintext: bytes, now: float) -> Credential:
        """From record 0's plaintext. Raises ProtocolViolation or IdentityRefused.

        SVIDs are only taken in type 1, joins and renewals only in type 3, as the edge has asked for.
        """
        offer = decode_canonical(_offer_decoder, unpad_payload(plaintext), PAYLOAD_MAX)
        if isinstance(offer, SvidOffer) != (self.kind is FrameType.FULL):
            raise ProtocolViolation("credential does not fit the handshake type")
        h = self._noise.handshake_hash
        match offer:
            case SvidOffer():
                edge = self._verify(offer.chain, now)
                edge.key.verify(offer.signature, signed_input(EDGE_LABEL, h, edge.leaf_sha256))
                return edge
            case JoinOffer():
                key = VerifyKey.from_spki(offer.device_spki)
                key.verify(offer.signature, signed_input(DEVICE_LABEL, h, sha256(key.spki)))
                attests = isinstance(offer, AttestedJoinOffer)
                return JoinCredential(offer.token_id, Secret(offer.secret), offer.csr, key, attests)
            case RenewOffer():
                signed = signed_input(DEVICE_LABEL, h, offer.device_id)
                return RenewCredential(offer.device_id, offer.csr, signed, offer.signature)


class ResumingInitiator:
    """The edge's side of a resumption: `Noise_NNpsk0_P256_AESGCM_SHA256`, one round trip, no certificates.

    For one ticket and one link; always with a fresh ephemeral.
    """

    kind = FrameType.RESUME

    def __init__(self, ticket: Ticket, ephemerals: Ephemerals) -> None:
        self._ticket_id = ticket.id
        self._noise = _resumption(ticket, ephemerals, initiator=True)

    def first_frame(self, early: bytes) -> bytes:
        """`early` is a record's inside, padded as a burst, at most 16 KiB; or empty."""
        if len(early) > EARLY_MAX:
            raise LocalMisuse("early data is too long")
        return frame(self.kind, self._ticket_id + self._noise.write_message(early))

    def read_second(self, body: bytes) -> None:
        """Raises ProtocolViolation unless the gateway holds the same secret."""
        if len(body) != RESUMED_SECOND_LEN or self._noise.read_message(body) != b"":
            raise ProtocolViolation("second handshake message has a bad length")

    @property
    def transcript(self) -> bytes:
        return self._noise.handshake_hash

    def split(self) -> Split:
        return _split(self._noise)


class ResumedResponder:
    """The gateway's side of a resumption. The ticket is consumed by the caller once `read_first` has passed."""

    kind = FrameType.RESUME

    def __init__(self, ticket: Ticket, ephemerals: Ephemerals) -> None:
        self._noise = _resumption(ticket, ephemerals, initiator=False)

    def read_first(self, body: bytes) -> bytes:
        """Early data. `body` is frame 1's without the ticket id. Raises DecryptFailed; then nothing is consumed."""
        return self._noise.read_message(body)

    def second_frame(self) -> bytes:
        return frame(self.kind, self._noise.write_message(b""))

    @property
    def transcript(self) -> bytes:
        return self._noise.handshake_hash

    def split(self) -> Split:
        return _split(self._noise)


def _resumption(ticket: Ticket, ephemerals: Ephemerals, *, initiator: bool) -> HandshakeState:
    return HandshakeState(
        NN_PSK0, RESUMPTION_SUITE, initiator=initiator, prologue=prologue(FrameType.RESUME, ticket.id),
        ephemerals=ephemerals, psks=(ticket.psk.expose(),),
    )
