"""Patterns, curves and ciphers of public Noise vectors, for the product's core to run. Data and test code only.

Patterns are those of Noise revision 34, sections 7.4, 7.5 and appendix 18.1, with any psk modifiers (section 9.4).
"""

import hashlib
import hmac
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import x448, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from transport import primitives
from transport.errors import DecryptFailed
from transport.noise import Pattern, Suite, gcm_nonce

_TEXT = """
N: ... <-s / e es
K: ->s ... <-s / e es ss
X: ... <-s / e es s ss
NN: / e / e ee
NK: ... <-s / e es / e ee
NX: / e / e ee s es
XN: / e / e ee / s se
XK: ... <-s / e es / e ee / s se
XX: / e / e ee s es / s se
KN: ->s ... / e / e ee se
KK: ->s ... <-s / e es ss / e ee se
KX: ->s ... / e / e ee se s es
IN: / e s / e ee se
IK: ... <-s / e es s ss / e ee se
IX: / e s / e ee se s es
NK1: ... <-s / e / e ee es
NX1: / e / e ee s / es
X1N: / e / e ee / s / se
X1K: ... <-s / e es / e ee / s / se
XK1: ... <-s / e / e ee es / s se
X1K1: ... <-s / e / e ee es / s / se
X1X: / e / e ee s es / s / se
XX1: / e / e ee s / es s se
X1X1: / e / e ee s / es s / se
K1N: ->s ... / e / e ee / se
K1K: ->s ... <-s / e es / e ee / se
KK1: ->s ... <-s / e / e ee se es
K1K1: ->s ... <-s / e / e ee es / se
K1X: ->s ... / e / e ee s es / se
KX1: ->s ... / e / e ee se s / es
K1X1: ->s ... / e / e ee s / se es
I1N: / e s / e ee / se
I1K: ... <-s / e es s / e ee / se
IK1: ... <-s / e s / e ee se es
I1K1: ... <-s / e s / e ee es / se
I1X: / e s / e ee s es / se
IX1: / e s / e ee se s / es
I1X1: / e s / e ee s / se es
"""


def _parse(line: str) -> Pattern:
    name, body = line.split(":")
    pre, *messages = body.split("/")
    return Pattern(
        name.strip(),
        ("s",) if "->s" in pre else (),
        ("s",) if "<-s" in pre else (),
        tuple(tuple(message.split()) for message in messages),
    )


BASE = {p.name: p for p in map(_parse, _TEXT.strip().splitlines())}


def pattern(name: str) -> Pattern:
    """A base pattern with its psk modifiers applied, e.g. XXpsk0+psk3."""
    base, modifiers = re.fullmatch(r"([NKXI1]+)(.*)", name).groups()  # type: ignore[union-attr]
    messages = [list(tokens) for tokens in BASE[base].messages]
    for modifier in filter(None, modifiers.split("+")):
        index = int(modifier.removeprefix("psk"))
        if index == 0:
            messages[0].insert(0, "psk")
        else:
            messages[index - 1].append("psk")
    return Pattern(name, BASE[base].initiator_pre, BASE[base].responder_pre, tuple(map(tuple, messages)))


@dataclass
class XKey:
    """An X25519 or X448 key pair in the core's shape."""

    key: x25519.X25519PrivateKey | x448.X448PrivateKey
    public_type: type

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def exchange(self, point: bytes) -> bytes:
        return self.key.exchange(self.public_type.from_public_bytes(point))


class ChaChaPoly:
    def __init__(self, key: bytes) -> None:
        self._key = key

    def _aead(self, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
        if len(nonce) == 12:
            return ChaCha20Poly1305(self._key), nonce
        # XChaCha20-Poly1305, draft-irtf-cfrg-xchacha-03 section 2.3
        return ChaCha20Poly1305(hchacha20(self._key, nonce[:16])), bytes(4) + nonce[16:]

    def seal(self, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
        aead, nonce = self._aead(nonce)
        return aead.encrypt(nonce, plaintext, associated)

    def open(self, nonce: bytes, ciphertext: bytes, associated: bytes) -> bytes:
        aead, nonce = self._aead(nonce)
        try:
            return aead.decrypt(nonce, ciphertext, associated)
        except InvalidTag:
            raise DecryptFailed from None


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """HChaCha20 (draft-irtf-cfrg-xchacha-03 section 2.2), straight from its definition."""
    state = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), *struct.unpack("<4I", nonce)]

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, shift in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            mixed = state[z] ^ state[x]
            state[z] = ((mixed << shift) | (mixed >> (32 - shift))) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<8I", *state[:4], *state[12:])


def _curve(name: str) -> tuple[int, Callable[[bytes], object]]:
    if name == "P256":
        return primitives.POINT_LEN, primitives.P256Private.from_scalar
    if name == "25519":
        return 32, lambda raw: XKey(x25519.X25519PrivateKey.from_private_bytes(raw), x25519.X25519PublicKey)
    return 56, lambda raw: XKey(x448.X448PrivateKey.from_private_bytes(raw), x448.X448PublicKey)


def suite(protocol: str) -> tuple[Suite, Callable[[bytes], object]]:
    """The suite of a full protocol name, and how its private keys load."""
    _, _, dh, cipher, hash_name = protocol.split("_")
    public_len, load = _curve(dh)
    algorithm = {"BLAKE2s": "blake2s", "BLAKE2b": "blake2b"}.get(hash_name, hash_name.lower())
    nonce = {
        "AESGCM": gcm_nonce,
        "ChaChaPoly": lambda n: bytes(4) + n.to_bytes(8, "little"),
        "XChaChaPoly": lambda n: bytes(16) + n.to_bytes(8, "little"),
    }[cipher]
    made = Suite(
        name=f"{dh}_{cipher}_{hash_name}",
        dh_public_len=public_len,
        aead=primitives.AesGcm if cipher == "AESGCM" else ChaChaPoly,
        nonce=nonce,
        hash=lambda data: hashlib.new(algorithm, data).digest(),
        hmac=lambda key, data: hmac.digest(key, data, algorithm),
        hash_len=hashlib.new(algorithm).digest_size,
    )
    return made, load
