"""Public Noise vectors through the core that ships: 25519 and 448 with AES-GCM, P-256 with XChaChaPoly, every pattern.

No public vectors exist for P256 with AESGCM; the DH half is covered by P256 + XChaChaPoly, the cipher half by
25519 + AESGCM, and the hybrid tokens by our own vectors.
"""

from typing import Any

import pytest

from tests.support.noise_suites import BASE, pattern, suite
from tests.support.outside import load_vectors
from transport.errors import DecryptFailed, LocalMisuse
from transport.noise import CipherState, HandshakeState, KemKeyPair, KeyPair

# file -> vectors that must run; the Noise-C file also holds names of before revision 34 (NoisePSK), which are left out
FILES = {
    "noise_cacophony.json": 295,
    "noise_snow_25519.json": 102,
    "noise_snow_p256_xchachapoly.json": 204,
    "noise_c_basic_aesgcm_sha2.json": 60,
}


class RecordedEphemerals:
    def __init__(self, key: KeyPair | None) -> None:
        self._key = key

    def dh_key(self) -> KeyPair:
        assert self._key is not None
        return self._key

    def kem_key(self) -> KemKeyPair:
        raise AssertionError("no KEM in these vectors")

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        raise AssertionError("no KEM in these vectors")


def endpoint(vector: dict[str, Any], side: str, protocol: str) -> HandshakeState:
    made, load = suite(protocol)
    static, ephemeral = vector.get(f"{side}_static"), vector.get(f"{side}_ephemeral")
    remote = vector.get(f"{side}_remote_static")
    return HandshakeState(
        pattern(protocol.split("_")[1]),
        made,
        initiator=side == "init",
        prologue=bytes.fromhex(vector[f"{side}_prologue"]),
        ephemerals=RecordedEphemerals(load(bytes.fromhex(ephemeral)) if ephemeral else None),
        s=load(bytes.fromhex(static)) if static else None,
        rs=bytes.fromhex(remote) if remote else None,
        psks=[bytes.fromhex(psk) for psk in vector.get(f"{side}_psks") or []],
    )


def run(vector: dict[str, Any]) -> None:
    protocol = vector.get("protocol_name") or vector["name"]
    init, resp = endpoint(vector, "init", protocol), endpoint(vector, "resp", protocol)
    ciphers: dict[HandshakeState, tuple[CipherState, CipherState]] = {}
    one_way = len(pattern(protocol.split("_")[1]).messages) == 1
    for index, message in enumerate(vector["messages"]):
        payload, wire = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
        sender, receiver = (init, resp) if index % 2 == 0 or one_way else (resp, init)
        if not ciphers:
            assert sender.write_message(payload) == wire
            assert receiver.read_message(wire) == payload
            if init.complete:
                assert init.handshake_hash == resp.handshake_hash
                if "handshake_hash" in vector:
                    assert init.handshake_hash.hex() == vector["handshake_hash"]
                ciphers = {init: init.split(), resp: resp.split()}
        else:
            assert ciphers[sender][0].encrypt(b"", payload) == wire
            assert ciphers[receiver][1].decrypt(b"", wire) == payload
    assert ciphers, "the vector never finished its handshake"


@pytest.mark.parametrize("name", FILES)
def test_public_vectors(name: str) -> None:
    vectors = [
        v for v in load_vectors(name)["vectors"]
        if not (v.get("name", "").startswith("NoisePSK"))
    ]
    patterns = set()
    for vector in vectors:
        run(vector)
        patterns.add((vector.get("protocol_name") or vector["name"]).split("_")[1])
    assert len(vectors) == FILES[name]
    if "cacophony" in name or "snow" in name:
        assert set(BASE) <= {p.split("psk")[0] for p in patterns}


def test_a_changed_vector_is_noticed() -> None:
    vector = load_vectors("noise_snow_p256_xchachapoly.json")["vectors"][0]
    changed = dict(vector, init_prologue="00" + vector["init_prologue"])
    with pytest.raises((AssertionError, DecryptFailed)):
        run(changed)


def test_state_is_dead_after_a_failure() -> None:
    vector = next(
        v for v in load_vectors("noise_snow_25519.json")["vectors"] if v["protocol_name"].startswith("Noise_XX_")
    )
    init, resp = (endpoint(vector, side, vector["protocol_name"]) for side in ("init", "resp"))
    resp.read_message(init.write_message(b""))
    wire = bytearray(resp.write_message(b""))
    wire[-1] ^= 1
    with pytest.raises(DecryptFailed):
        init.read_message(bytes(wire))
    wire[-1] ^= 1
    with pytest.raises(LocalMisuse):
        init.read_message(bytes(wire))
