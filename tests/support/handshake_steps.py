"""The key schedule of a handshake step by step, worked out from its secrets and frames without the Noise core.

What the vectors say of intermediate values comes from here, so that they are a second opinion on `transport.noise` and
not its echo. Every AEAD tag of the frames is checked on the way.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any

from transport.noise import gcm_nonce
from transport.primitives import AesGcm, KemPrivate, P256Private, hkdf_expand

FRAME_HEAD = 3
FULL_NAME = b"Noise_NNhfs_P256+MLKEM768_AESGCM_SHA256"
RESUMED_NAME = b"Noise_NNpsk0_P256_AESGCM_SHA256"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass
class Steps:
    """Noise's symmetric state, with a note after each step: h, ck and, once there is one, k; all in hex."""

    h: bytes
    ck: bytes
    k: bytes = b""
    n: int = 0
    notes: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def named(cls, name: bytes) -> "Steps":
        start = name.ljust(32, b"\0") if len(name) <= 32 else sha256(name)
        steps = cls(start, start)
        steps.note("name")
        return steps

    def note(self, after: str, **more: bytes) -> None:
        values = {"h": self.h, "ck": self.ck, **({"k": self.k} if self.k else {}), **more}
        self.notes.append({"after": after, **{name: value.hex() for name, value in values.items()}})

    def mix_hash(self, data: bytes) -> None:
        self.h = sha256(self.h + data)

    def _hkdf(self, material: bytes, count: int) -> list[bytes]:
        secret, out, last = hmac.digest(self.ck, material, "sha256"), [], b""
        for index in range(1, count + 1):
            last = hmac.digest(secret, last + bytes([index]), "sha256")
            out.append(last)
        return out

    def mix_key(self, material: bytes) -> None:
        self.ck, self.k = self._hkdf(material, 2)
        self.n = 0

    def mix_key_and_hash(self, material: bytes) -> None:
        self.ck, mixed, self.k = self._hkdf(material, 3)
        self.mix_hash(mixed)
        self.n = 0

    def open(self, data: bytes) -> bytes:
        """DecryptAndHash: the plaintext; raises DecryptFailed."""
        plain = AesGcm(self.k).open(gcm_nonce(self.n), data, self.h) if self.k else data
        self.n += bool(self.k)
        self.mix_hash(data)
        return plain

    def split(self) -> tuple[bytes, bytes]:
        """The edge's sending key, the gateway's sending key."""
        edge, gateway = self._hkdf(b"", 2)
        return edge, gateway

    def tickets(self, session_hash: bytes) -> tuple[bytes, list[dict[str, str]]]:
        """(export, tickets) of a session whose handshake ended here."""
        export = hmac.digest(self.ck, b"causeway 1 export" + session_hash, "sha256")
        raw = [hkdf_expand(export, b"ticket" + bytes([index]), 48) for index in range(4)]
        return export, [{"id": one[:16].hex(), "psk": one[16:].hex()} for one in raw]


def full(
    kind: int, frames: tuple[bytes, bytes], edge_scalar: bytes, kem_seed: bytes, gateway_scalar: bytes
) -> tuple[Steps, bytes]:
    """(the state behind frame 2, h that the gateway signs) of a handshake of type 1 or 3."""
    first, second = (frame[FRAME_HEAD:] for frame in frames)
    steps = Steps.named(FULL_NAME)
    steps.mix_hash(b"causeway/1" + bytes([kind]))
    steps.note("prologue")
    steps.mix_hash(first[:65])
    steps.note("-> e")
    steps.mix_hash(first[65:])
    steps.note("-> e1")
    steps.mix_hash(b"")
    steps.note("-> payload (empty)")
    steps.mix_hash(second[:65])
    steps.note("<- e")
    shared = P256Private.from_scalar(gateway_scalar).exchange(first[:65])
    assert shared == P256Private.from_scalar(edge_scalar).exchange(second[:65])
    steps.mix_key(shared)
    steps.note("<- ee", shared=shared)
    ciphertext = steps.open(second[65 : 65 + 1104])
    steps.note("<- ekem1, ciphertext")
    secret = KemPrivate.from_seed(kem_seed).decapsulate(ciphertext)
    steps.mix_key(secret)
    steps.note("<- ekem1, secret", shared=secret)
    signed_h = steps.h
    payload = steps.open(second[65 + 1104 :])
    steps.note("<- payload", payload=payload)
    return steps, signed_h


def resumed(
    ticket: dict[str, str], frames: tuple[bytes, bytes], edge_scalar: bytes, gateway_scalar: bytes
) -> Steps:
    """The state behind frame 2 of a handshake of type 2, whose h is the session hash."""
    first, second = frames[0][FRAME_HEAD:], frames[1][FRAME_HEAD:]
    assert first[:16].hex() == ticket["id"]
    steps = Steps.named(RESUMED_NAME)
    steps.mix_hash(b"causeway/1\x02" + first[:16])
    steps.note("prologue")
    steps.mix_key_and_hash(bytes.fromhex(ticket["psk"]))
    steps.note("-> psk")
    steps.mix_hash(first[16:81])
    steps.mix_key(first[16:81])
    steps.note("-> e")
    early = steps.open(first[81:])
    steps.note("-> payload", payload=early)
    steps.mix_hash(second[:65])
    steps.mix_key(second[:65])
    steps.note("<- e")
    shared = P256Private.from_scalar(gateway_scalar).exchange(first[16:81])
    assert shared == P256Private.from_scalar(edge_scalar).exchange(second[:65])
    steps.mix_key(shared)
    steps.note("<- ee", shared=shared)
    assert steps.open(second[65:]) == b""
    steps.note("<- payload (empty)")
    return steps


def inside(plain: bytes, name: str) -> dict[str, Any]:
    """{size: of the plaintext, `name`: the messages in it}."""
    messages, at = [], 0
    while length := int.from_bytes(plain[at : at + 2], "big"):
        messages.append(plain[at + 2 : at + 2 + length].hex())
        at += 2 + length
    assert not any(plain[at:])
    return {"size": len(plain), name: messages}


class Reader:
    """One direction's records, opened with its key: what a session's flights hold, for people to read."""

    def __init__(self, key: bytes) -> None:
        self.keys = [key]
        self._n = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """(plaintext, rest) of the next record."""
        end = 2 + int.from_bytes(data[:2], "big")
        plain = AesGcm(self.keys[-1]).open(gcm_nonce(self._n), data[2:end], data[:2])
        self._n += 1
        return plain, data[end:]

    def records(self, data: bytes) -> list[dict[str, Any]]:
        """[{size: of the plaintext, messages}] of a flight; a `rekey` is carried out."""
        out: list[dict[str, Any]] = []
        while data:
            plain, data = self.take(data)
            out.append(inside(plain, "messages"))
            if inside(plain, "messages")["messages"][-1:] == ["910c"]:
                self.keys.append(AesGcm(self.keys[-1]).seal(gcm_nonce((1 << 64) - 1), bytes(32), b"")[:32])
        return out
