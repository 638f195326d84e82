"""Attacks of the protocol review on the handshake, its keys and the session around it that no other file owns.

The table "Attacks of the protocol review" in docs/THREAT_MODEL.md leads from each finding to its tests.
"""

import ast
import contextlib
import hashlib
import hmac
import json
import os
import random
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import transport.handshake
from tests.support.ca import Ca, der
from tests.support.connection_pair import Pair, header, make_pair, verifier
from tests.support.outside import ROOT
from tests.support.recorded import Recorded, run_session
from transport import primitives
from transport.connection import IDLE_S, SILENCE_S, Phase, SignatureNeeded
from transport.errors import DecryptFailed, IdentityRefused, LinkLost, ProtocolViolation
from transport.handshake import FrameType, ResponderHandshake, frame, prologue
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import EdgeConnection, Renewing, SvidLogin
from transport.messages import Ack, Credit, Pong, encode
from transport.mux import RequestReceived
from transport.noise import NN_HFS, PRODUCT_SUITE, HandshakeState, KemKeyPair, KeyPair, SystemEphemerals
from transport.primitives import KemPrivate, P256Private, SigningKey
from transport.records import pack
from transport.responder import UNVERIFIED_MAX

VECTOR: dict[str, Any] = json.loads((ROOT / "tests" / "vectors" / "causeway.json").read_text())["vectors"][0]
BODY = bytes.fromhex(VECTOR["request_body"])
SHIPPED = [path for name in ("transport", "store", "edge_client", "relay") for path in (ROOT / name).rglob("*.py")]


def flight(index: int) -> bytes:
    return bytes.fromhex(VECTOR["flights"][index]["bytes"])


# --- C1: what a signature is worth -----------------------------------------------------------------------------------


def signature_needed(pair: Pair, *, of_gateway: bool) -> SignatureNeeded:
    """Goes on until that side asks for its signature."""
    pair.gateway.receive_data(pair.edge.data_to_send(pair.now), pair.now)
    event = pair.gateway.next_event()
    assert isinstance(event, SignatureNeeded)
    if of_gateway:
        return event
    pair.gateway.signed(pair.gateway_svid.key.sign(event.message), pair.now)
    pair.edge.receive_data(pair.gateway.data_to_send(pair.now), pair.now)
    event = pair.edge.next_event()
    assert isinstance(event, SignatureNeeded)
    return event


@pytest.mark.parametrize("of_gateway", [True, False])
def test_C1_a_signature_of_another_handshake_is_worth_nothing(of_gateway: bool) -> None:
    """A genuine chain with a genuine signature, both taken from an earlier handshake of the same peer."""
    ca = Ca()
    edge, gateway = ca.issue("edge/lap-1"), ca.issue("gateway/main")
    key = (gateway if of_gateway else edge).key
    old = signature_needed(make_pair(ca, edge_svid=edge, gateway_svid=gateway), of_gateway=of_gateway)
    for message, good in ((old.message, False), (b"", True)):
        pair = make_pair(ca, edge_svid=edge, gateway_svid=gateway)
        event = signature_needed(pair, of_gateway=of_gateway)
        signer, other = (pair.gateway, pair.edge) if of_gateway else (pair.edge, pair.gateway)
        signer.signed(key.sign(event.message if good else message), pair.now)
        with contextlib.nullcontext() if good else pytest.raises(IdentityRefused, match="signature"):
            other.receive_data(signer.data_to_send(pair.now), pair.now)


def test_C1_a_signature_names_its_certificate() -> None:
    """The next certificate of the same key does not inherit what was signed under the last one."""
    ca, key = Ca(), SigningKey.generate()
    shown, signed = ca.issue("gateway/main", key=key), ca.issue("gateway/main", key=key)
    pair = make_pair(ca, gateway_svid=signed)
    event = signature_needed(pair, of_gateway=True)
    pair.gateway._chain = tuple(shown.chain)
    pair.gateway.signed(key.sign(event.message), pair.now)
    with pytest.raises(IdentityRefused, match="signature"):
        pair.edge.receive_data(pair.gateway.data_to_send(pair.now), pair.now)


# --- M2: the order of the hybrid tokens ------------------------------------------------------------------------------


def test_M2_the_ciphertext_is_encrypted_before_its_secret_is_mixed_in() -> None:
    """ekem1 opens under the key that `ee` gave, worked out here from Noise's formulas alone."""
    recorded, name = Recorded.from_json(VECTOR), b"Noise_NNhfs_P256+MLKEM768_AESGCM_SHA256"
    e, e1 = flight(0)[3:68], flight(0)[68:]
    their_e, ekem1 = flight(1)[3:68], flight(1)[68 : 68 + 1_104]
    assert len(name) == 39 and len(e1) == 1_184
    chaining = h = hashlib.sha256(name).digest()
    for part in (b"causeway/1\x01", e, e1, b"", their_e):  # b"": the payload of message 1
        h = hashlib.sha256(h + part).digest()
    temp = hmac.digest(chaining, P256Private.from_scalar(recorded.edge_scalar).exchange(their_e), "sha256")
    key = hmac.digest(temp, hmac.digest(temp, b"\1", "sha256") + b"\2", "sha256")
    assert AESGCM(key).decrypt(bytes(12), ekem1, h) == recorded.kem_ciphertext


class Swapped(HandshakeState):
    """The other order: the secret first, then the ciphertext under the new key."""

    def _write_token(self, token: str) -> bytes:
        if token != "ekem1":
            return super()._write_token(token)
        assert self._re1 is not None
        secret, ciphertext = self._ephemerals.encapsulate(self._re1)
        self._symmetric.mix_key(secret)
        return self._symmetric.encrypt_and_hash(ciphertext)


def test_M2_a_swapped_order_fails_against_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_session(VECTOR, BODY)["flights"] == VECTOR["flights"]
    monkeypatch.setattr(transport.handshake, "HandshakeState", Swapped)
    with pytest.raises(DecryptFailed):  # the edge reads it the right way round
        run_session(VECTOR, BODY)


# --- M3: ML-KEM's inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 576, 1_149])
def test_M3_encapsulation_key_out_of_range_is_refused_alike(at: int) -> None:
    """A coefficient of 4,095, beyond the modulus, ends the link as a point off the curve does: without a byte."""
    ends = set()
    for start, bent in ((68 + at, b"\xff\xff\xff"), (3, b"\x05")):
        pair = make_pair()
        first = bytearray(pair.edge.data_to_send(pair.now))
        first[start : start + len(bent)] = bent
        with pytest.raises(ProtocolViolation) as caught:
            pair.gateway.receive_data(bytes(first), pair.now)
        assert "modulus" not in str(caught.value) and not isinstance(caught.value, DecryptFailed)
        ends.add((caught.value.code, pair.gateway.phase, pair.gateway.data_to_send(pair.now)))
    assert ends == {("protocol_violation", Phase.CLOSED, b"")}


class OtherSecret(SystemEphemerals):
    """Encapsulates to a key that nobody has."""

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        assert len(public) == 1_184
        return primitives.encapsulate(KemPrivate.generate().public)


def test_M3_nothing_is_released_before_the_tag_that_the_secret_protects() -> None:
    """Decapsulation never fails. A gateway that sends a ciphertext for another key is found by the payload's tag."""
    asked: list[Sequence[bytes]] = []
    pair = make_pair()
    pair.edge = EdgeConnection(
        SvidLogin(pair.edge_svid.chain, pair.edge_svid.not_after),
        lambda chain, now: asked.append(chain) or pytest.fail("a chain was looked at"),  # type: ignore[func-returns-value]
        SystemEphemerals(), pair.now,
    )
    pair.gateway._ephemerals = OtherSecret()
    with pytest.raises(DecryptFailed):
        pair.pump()
    assert (asked, pair.edge.peer, pair.edge.phase, len(pair.to_gateway)) == ([], None, Phase.CLOSED, 1)


# --- M4: where randomness comes from ---------------------------------------------------------------------------------


def test_M4_entropy_and_time_come_in_by_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every other source of chance and time broken, a session and its resumption run, byte for byte as ever."""

    def broken(*_: object) -> Any:
        raise AssertionError("a core asked for entropy or the time by itself")

    with monkeypatch.context() as patch:
        for module, name in (
            (os, "urandom"), (secrets, "token_bytes"), (random, "random"), (time, "time"), (time, "monotonic"),
            (primitives, "random_bytes"), (primitives, "encapsulate"), (P256Private, "generate"),
            (KemPrivate, "generate"), (SigningKey, "generate"),
        ):
            patch.setattr(module, name, broken)
        result = run_session(VECTOR, BODY)
    assert result == {name: VECTOR[name] for name in result}


# --- M5: what may follow record 0 ------------------------------------------------------------------------------------


def test_M5_sixteen_kib_wait_behind_record_0_and_not_a_byte_more() -> None:
    pair = make_pair(admit=False)
    pair.pump()
    assert pair.gateway.phase is Phase.ADMISSION
    pair.gateway.receive_data(bytes(UNVERIFIED_MAX), pair.now)
    assert UNVERIFIED_MAX == 16_384 and pair.gateway.phase is Phase.ADMISSION
    with pytest.raises(ProtocolViolation, match="before the credential"):
        pair.gateway.receive_data(b"\0", pair.now)
    assert pair.gateway.phase is Phase.CLOSED and pair.gateway._opener is None


def test_M5_sixteen_kib_are_the_bound_of_record_0_itself() -> None:
    """The longest record that could be promised is held no further than that either."""
    pair = make_pair()
    pair.gateway.receive_data(pair.edge.data_to_send(pair.now), pair.now)
    pair._events()
    assert pair.gateway.data_to_send(pair.now) and pair.gateway.phase is Phase.HANDSHAKE
    pair.gateway.receive_data((16_400).to_bytes(2, "big") + bytes(UNVERIFIED_MAX - 2), pair.now)
    with pytest.raises(ProtocolViolation, match="before the credential"):
        pair.gateway.receive_data(b"\0", pair.now)


def test_M5_what_waits_is_not_looked_at_before_the_credential_has_passed() -> None:
    """A request that came in the same flight is opened once its sender is admitted, and never if it is not."""
    pair = make_pair(admit=False)
    pair.edge.request(b"r" * 16, header(b"prompt"), b"prompt")
    pair.pump()
    assert pair.gateway._opener is not None and pair.gateway._opener.buffered > 500
    pair.gateway.refuse(pair.now)
    pair._events()
    assert not any(isinstance(event, RequestReceived) for event in pair.gateway_events)


# --- M9: credit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", [
    encode(Credit(7, 1)),  # for a stream that nobody opened
    encode(Credit(0, 1)).replace(b"\x01", b"\xce\x80\x00\x00\x00"),  # 2^31: one more than there is
    encode(Credit(0, 1)).replace(b"\x01", b"\xff"),  # -1
])
@pytest.mark.parametrize("to_edge", [True, False])
def test_M9_credit_for_nothing_or_without_end_ends_the_session(hostile: bytes, to_edge: bool) -> None:
    pair = opened()
    pair.edge.request(b"r" * 16, header(b"x"), b"x")
    pair.pump()
    source, sink = (pair.gateway, pair.edge) if to_edge else (pair.edge, pair.gateway)
    assert source._sealer is not None and len(hostile) in (3, 4, 8)
    with pytest.raises(ProtocolViolation):
        sink.receive_data(source._sealer.seal_burst([hostile], pair.now), pair.now)
    assert sink.phase is Phase.CLOSED


def opened() -> Pair:
    pair = make_pair()
    pair.pump()
    return pair


# --- M21: what a stranger is shown -----------------------------------------------------------------------------------


class Noted(SystemEphemerals):
    """Keeps the public keys it gave out."""

    def __init__(self) -> None:
        self.public: list[bytes] = []

    def dh_key(self) -> KeyPair:
        key = super().dh_key()
        self.public.append(key.public)
        return key

    def kem_key(self) -> KemKeyPair:
        key = super().kem_key()
        self.public.append(key.public)
        return key


def test_M21_a_prober_sees_the_gateway_s_chain_and_nothing_of_an_edge() -> None:
    """Who completes a key exchange is shown whose gateway this is; who poses as one is shown two fresh public keys."""
    ca = Ca()
    shown: list[bytes] = []

    def believe(chain: Sequence[bytes], now: float) -> VerifiedPeer:
        shown.extend(chain)
        return verify_svid(chain, ca.bundle(), role="gateway", now=now)

    prober = make_pair(ca, edge_svid=Ca("stranger.example").issue("edge/x"))
    purpose = SvidLogin(prober.edge_svid.chain, prober.edge_svid.not_after)
    prober.edge = EdgeConnection(purpose, believe, SystemEphemerals(), prober.now)
    prober.gateway.receive_data(prober.edge.data_to_send(prober.now), prober.now)
    prober._events()
    prober.edge.receive_data(prober.gateway.data_to_send(prober.now), prober.now)
    names = {
        name for one in shown
        for name in _uris(x509.load_der_x509_certificate(one))
    }
    assert names == {"spiffe://field.example/gateway/main"}
    assert prober.gateway.data_to_send(prober.now) == b"" and prober.gateway.peer is None

    edge, noted = make_pair(ca), Noted()
    edge.edge = EdgeConnection(purpose, verifier(ca.bundle(), "gateway"), noted, edge.now)
    assert edge.edge.data_to_send(edge.now) == b"\x01" + (1_249).to_bytes(2, "big") + b"".join(noted.public)
    assert edge.edge.data_to_send(edge.now) == b"" and [len(key) for key in noted.public] == [65, 1_184]


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


# --- H13: what travels of the authority ------------------------------------------------------------------------------


@pytest.mark.parametrize("joining", [False, True])
def test_H13_the_intermediate_travels_and_the_root_only_to_who_asks_for_it(joining: bool) -> None:
    ca, key = Ca(), SigningKey.generate()
    shown: list[tuple[bytes, ...]] = []

    def note(chain: Sequence[bytes], now: float) -> VerifiedPeer:
        shown.append(tuple(chain))
        return verify_svid(chain, ca.bundle(), role="gateway", now=now)

    pair = make_pair(ca)
    purpose = Renewing(key.public.spki, b"csr") if joining else SvidLogin(pair.edge_svid.chain, pair.now + 60)
    pair.edge = EdgeConnection(purpose, note, SystemEphemerals(), pair.now)
    pair.gateway.receive_data(pair.edge.data_to_send(pair.now), pair.now)
    pair._events()
    pair.edge.receive_data(pair.gateway.data_to_send(pair.now), pair.now)
    leaf, *rest = shown[0]
    assert leaf == pair.gateway_svid.chain[0]
    assert rest == [der(ca.signer), *([ca.root_der] if joining else [])]


# --- L3 to L8 --------------------------------------------------------------------------------------------------------


def test_L3_the_edge_is_the_initiator_whoever_opened_the_link() -> None:
    """A gateway never speaks first, and two of a kind come to nothing."""
    one, other = make_pair(), make_pair()
    assert one.gateway.data_to_send(one.now) == b""
    assert one.gateway.next_event() is None
    with pytest.raises(ProtocolViolation):
        other.edge.receive_data(one.edge.data_to_send(one.now), one.now)
    assert other.edge.phase is Phase.CLOSED


def test_L4_every_unknown_first_byte_gets_the_same_hint() -> None:
    known = {FrameType.FULL, FrameType.RESUME, FrameType.FULL_WITH_ROOT}
    for first in set(range(256)) - known:
        pair = make_pair()
        with pytest.raises(ProtocolViolation):
            pair.gateway.receive_data(bytes([first]), pair.now)
        assert pair.gateway.data_to_send(pair.now) == b"\x00\x01", first
        assert pair.gateway.phase is Phase.CLOSED


def test_L5_no_suite_without_a_kem_can_be_chosen() -> None:
    """The product builds handshakes in one module, from two fixed pairs; only resumption, by its ticket, has no KEM."""
    built = []
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("HandshakeState"):
                built.append((path.name, *(ast.unparse(argument) for argument in node.args)))
    assert set(built) == {
        ("handshake.py", "NN_HFS", "PRODUCT_SUITE"), ("handshake.py", "NN_PSK0", "RESUMPTION_SUITE"),
    }
    assert NN_HFS.messages == (("e", "e1"), ("e", "ee", "ekem1")) and PRODUCT_SUITE.kem_public_len == 1_184
    pair, stripped = make_pair(), P256Private.generate().public
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(frame(FrameType.FULL, stripped), pair.now)
    pair = make_pair()
    pair.gateway.receive_data(frame(FrameType.FULL, stripped + KemPrivate.generate().public), pair.now)
    assert pair.gateway.phase is Phase.SIGNING, "with a KEM key the same bytes are a handshake"


@pytest.mark.parametrize("payload", [b"\0", b"early", bytes(512)])
def test_L6_message_1_has_no_payload(payload: bytes) -> None:
    kind = FrameType.FULL
    body = HandshakeState(
        NN_HFS, PRODUCT_SUITE, initiator=True, prologue=prologue(kind), ephemerals=SystemEphemerals()
    ).write_message(payload)
    pair = make_pair()
    with pytest.raises(ProtocolViolation):
        pair.gateway.receive_data(frame(kind, body), pair.now)
    assert pair.gateway.data_to_send(pair.now) == b"" and pair.gateway._handshake is None
    with pytest.raises(ProtocolViolation):
        ResponderHandshake(kind, SystemEphemerals(), verifier(Ca().bundle(), "edge")).read_first(body, b"leaf")


def test_L7_nothing_on_the_wire_is_compressed() -> None:
    """Documents and what an attacker wrote share a request; a compressor would let sizes tell one from the other."""
    packers = re.compile(r"(zlib|gzip|bz2|lzma|brotli|zstandard|zstd|lz4|snappy)\b")
    found = [
        f"{path.name}: {name}" for path in SHIPPED if path.parts[len(ROOT.parts)] in ("transport", "relay")
        for node in ast.walk(ast.parse(path.read_text())) for name in _imported(node) if packers.match(name)
    ]
    assert found == []
    sizes = set()
    for body in (b"a" * 4_000, random.Random(7).randbytes(4_000)):
        pair = make_pair()
        pair.pump()
        pair.edge.request(b"r" * 16, header(body), body)
        sizes.add(len(pair.edge.data_to_send(pair.now)))
    assert len(sizes) == 1


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_L8_the_heartbeat_is_a_padded_record_every_thirty_idle_seconds() -> None:
    pair = opened()
    begun = pair.now
    pair.edge.handle_time(begun + IDLE_S - 0.001)
    assert IDLE_S == 30.0 and pair.edge.data_to_send(begun + IDLE_S - 0.001) == b""
    pair.edge.handle_time(begun + IDLE_S)
    ping = pair.edge.data_to_send(begun + IDLE_S)
    pair.edge.handle_time(begun + SILENCE_S - 0.001)
    assert pair.edge.data_to_send(begun + SILENCE_S - 0.001) == b"", "one is enough"
    assert pair.gateway._sealer is not None
    like = [
        pair.gateway._sealer.seal_burst([encode(message)], begun, control=True)
        for message in (Pong(), Ack(b"r" * 16, 1 << 40))
    ]
    assert {len(ping), *map(len, like)} == {64 + 18}, "a watcher cannot tell it from an acknowledgement"
    assert len(pack([encode(Pong())])[0]) < 8
    with pytest.raises(LinkLost):
        pair.edge.handle_time(begun + SILENCE_S)


# --- L12, L16: keys and comparisons ----------------------------------------------------------------------------------

_SECRET = re.compile(r"expose\(|secret|\bpsk\b|passphrase\b|commitment|\bmac\b|\btag\b")
_HARMLESS = re.compile(r"len\(")


def _compared(source: str) -> list[str]:
    """Comparisons in `source` whose time could tell how much of a secret was right."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = [
                ast.unparse(side) for side in (node.left, *node.comparators) if not isinstance(side, ast.Constant)
            ]
            if any(_SECRET.search(side) and not _HARMLESS.search(side) for side in sides):
                found.append(ast.unparse(node))
    return found


def test_L12_no_secret_is_compared_byte_by_byte() -> None:
    """Secrets are looked up by their hash or compared in constant time; `Secret` itself refuses `==`."""
    assert _compared("if given == row.secret: pass") and _compared("if a.expose() != b: pass")
    assert {path.name: found for path in SHIPPED if (found := _compared(path.read_text()))} == {}
    with pytest.raises(TypeError):
        _ = primitives.Secret(b"a") == primitives.Secret(b"a")


@pytest.mark.parametrize(("message", "r", "s"), [
    (b"sample", "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716",
     "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"),
    (b"test", "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367",
     "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083"),
])
def test_L16_signatures_draw_no_nonce_that_a_cloned_machine_could_repeat(message: bytes, r: str, s: str) -> None:
    """RFC 6979 appendix A.2.5: P-256 with SHA-256."""
    scalar = int("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721", 16)
    key = SigningKey(ec.derive_private_key(scalar, ec.SECP256R1()))
    assert key.sign(message).hex().upper() == r + s
