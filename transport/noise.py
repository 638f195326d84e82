"""The Noise Protocol Framework (revision 34) with the hybrid-forward-secrecy tokens `e1` and `ekem1`, sans-IO.

Patterns are data; DH, KEM, cipher and hash come in a `Suite`, so that public vectors for other curves and ciphers run
through the code that ships. What the product speaks is at the end: `NN_HFS` with `PRODUCT_SUITE`,
and `NN_PSK0` with `RESUMPTION_SUITE` to resume.

Theory of operation: `HandshakeState` holds one `SymmetricState`, which holds one `CipherState` (section 5). A message
is its tokens, then its payload; the two halves are separate calls, because a Causeway payload carries a signature over
the handshake hash as it stands between them (section 11.2). Any failure poisons the state: it never works again. There
is no way to set a nonce, and a cipher without a key cannot be called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final, Protocol, TypeVar

from transport import primitives
from transport.errors import LocalMisuse, ProtocolViolation

TAG_LEN: Final = primitives.TAG_LEN
MESSAGE_MAX: Final = 65_535  # section 3
T = TypeVar("T")
_AeadCall = Callable[[bytes, bytes, bytes], bytes]
_NONCE_LIMIT: Final = (1 << 64) - 1  # reserved for rekey (section 5.1)


class KeyPair(Protocol):
    """An ephemeral or static DH key pair."""

    @property
    def public(self) -> bytes: ...
    def exchange(self, point: bytes) -> bytes: ...


class KemKeyPair(Protocol):
    @property
    def public(self) -> bytes: ...
    def decapsulate(self, ciphertext: bytes) -> bytes: ...


class Aead(Protocol):
    def seal(self, nonce: bytes, plaintext: bytes, associated: bytes, /) -> bytes: ...
    def open(self, nonce: bytes, ciphertext: bytes, associated: bytes, /) -> bytes: ...


class Ephemerals(Protocol):
    """Where fresh key pairs and encapsulations come from; tests replace it by recorded ones."""

    def dh_key(self) -> KeyPair: ...
    def kem_key(self) -> KemKeyPair: ...
    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]: ...


class SystemEphemerals:
    """The operating system's randomness, through `primitives`."""

    def dh_key(self) -> KeyPair:
        return primitives.P256Private.generate()

    def kem_key(self) -> KemKeyPair:
        return primitives.KemPrivate.generate()

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        return primitives.encapsulate(public)


@dataclass(frozen=True)
class Suite:
    """Names and functions behind a protocol name (section 8). Lengths in bytes; `kem_*` only matter to hfs patterns."""

    name: str  # e.g. "P256+MLKEM768_AESGCM_SHA256"
    dh_public_len: int
    aead: Callable[[bytes], Aead]
    nonce: Callable[[int], bytes]
    hash: Callable[[bytes], bytes]
    hmac: Callable[[bytes, bytes], bytes]
    hash_len: int = 32
    kem_public_len: int = 0
    kem_ciphertext_len: int = 0


@dataclass(frozen=True)
class Pattern:
    """A handshake pattern (section 7): pre-messages of each side, then the messages' tokens, the initiator first."""

    name: str
    initiator_pre: tuple[str, ...]
    responder_pre: tuple[str, ...]
    messages: tuple[tuple[str, ...], ...]

    @property
    def uses_psk(self) -> bool:
        return any("psk" in tokens for tokens in self.messages)


class CipherState:
    """A key and its counter (section 5.1). One direction, in order; a failed decrypt leaves the counter as it was.

    The library's context takes 2.7 kB and a microsecond: it is made at the first use, and again after a `rest`.
    """

    __slots__ = ("_key", "_n", "_nonce", "_open", "_seal", "_suite")

    def __init__(self, suite: Suite, key: bytes) -> None:
        self._suite, self._nonce = suite, suite.nonce
        self._n = 0
        self._key = key[:32]
        self._seal: _AeadCall | None = None
        self._open: _AeadCall | None = None

    def rest(self) -> None:
        """Gives the context back; for a cipher that will not be used for a while."""
        self._seal = self._open = None

    def _wake(self) -> Aead:
        aead = self._suite.aead(self._key)
        self._seal, self._open = aead.seal, aead.open
        return aead

    def encrypt(self, associated: bytes, plaintext: bytes) -> bytes:
        n = self._n
        if n >= _NONCE_LIMIT:
            raise LocalMisuse("nonces are exhausted")
        sealed = (self._seal or self._wake().seal)(self._nonce(n), plaintext, associated)
        self._n = n + 1
        return sealed

    def decrypt(self, associated: bytes, ciphertext: bytes) -> bytes:
        """Raises DecryptFailed."""
        n = self._n
        if n >= _NONCE_LIMIT:
            raise ProtocolViolation("nonces are exhausted")
        plaintext = (self._open or self._wake().open)(self._nonce(n), ciphertext, associated)
        self._n = n + 1
        return plaintext

    def rekey(self) -> None:
        """Replaces the key one way (section 11.3); the counter goes on."""
        self._key = (self._seal or self._wake().seal)(self._nonce(_NONCE_LIMIT), bytes(32), b"")[:32]
        self.rest()


class SymmetricState:
    """Chaining key, handshake hash and the handshake's cipher (section 5.2)."""

    def __init__(self, suite: Suite, protocol_name: bytes) -> None:
        self._suite = suite
        padded = protocol_name.ljust(suite.hash_len, b"\0")
        self.h = padded if len(protocol_name) <= suite.hash_len else suite.hash(protocol_name)
        self.ck = self.h
        self._cipher: CipherState | None = None

    @property
    def has_key(self) -> bool:
        return self._cipher is not None

    def _hkdf(self, material: bytes, outputs: int) -> list[bytes]:
        temp = self._suite.hmac(self.ck, material)  # section 4.3
        out: list[bytes] = []
        last = b""
        for index in range(1, outputs + 1):
            last = self._suite.hmac(temp, last + bytes([index]))
            out.append(last)
        return out

    def mix_key(self, material: bytes) -> None:
        self.ck, key = self._hkdf(material, 2)
        self._cipher = CipherState(self._suite, key)

    def mix_hash(self, data: bytes) -> None:
        self.h = self._suite.hash(self.h + data)

    def mix_key_and_hash(self, material: bytes) -> None:
        self.ck, mixed, key = self._hkdf(material, 3)
        self.mix_hash(mixed)
        self._cipher = CipherState(self._suite, key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Encrypted once a key exists; before that the bytes as they are, as section 5.2 wants it."""
        out = plaintext if self._cipher is None else self._cipher.encrypt(self.h, plaintext)
        self.mix_hash(out)
        return out

    def decrypt_and_hash(self, data: bytes) -> bytes:
        out = data if self._cipher is None else self._cipher.decrypt(self.h, data)
        self.mix_hash(data)
        return out

    def split(self) -> tuple[CipherState, CipherState]:
        first, second = self._hkdf(b"", 2)
        self.ck, self._cipher = b"", None
        return CipherState(self._suite, first), CipherState(self._suite, second)


class HandshakeState:
    """One handshake (section 5.3). Not for concurrent use.

    `s` our static key pair, `rs` the peer's static public key where the pattern has it beforehand, `psks` 32-byte
    pre-shared keys in the pattern's order. Raises LocalMisuse where the pattern needs what was not given.
    """

    def __init__(
        self,
        pattern: Pattern,
        suite: Suite,
        *,
        initiator: bool,
        prologue: bytes,
        ephemerals: Ephemerals,
        s: KeyPair | None = None,
        rs: bytes | None = None,
        psks: Sequence[bytes] = (),
    ) -> None:
        self._pattern, self._suite, self._initiator, self._ephemerals = pattern, suite, initiator, ephemerals
        self._s, self._rs, self._psks = s, rs, list(psks)
        self._e: KeyPair | None = None
        self._re: bytes | None = None
        self._e1: KemKeyPair | None = None
        self._re1: bytes | None = None
        self._index = 0  # of the message that comes next
        self._in_message = False  # its tokens are done, its payload is not
        self._dead = False
        self._symmetric = SymmetricState(suite, f"Noise_{pattern.name}_{suite.name}".encode())
        self._symmetric.mix_hash(prologue)
        for is_ours, tokens in ((initiator, pattern.initiator_pre), (not initiator, pattern.responder_pre)):
            for token in tokens:
                self._symmetric.mix_hash(self._pre_message_key(token, ours=is_ours))

    def _pre_message_key(self, token: str, *, ours: bool) -> bytes:
        key = (self._s.public if self._s else None) if ours else self._rs
        if token != "s" or key is None:
            raise LocalMisuse(f"pattern {self._pattern.name} needs a static key it was not given")
        return key

    @property
    def handshake_hash(self) -> bytes:
        return self._symmetric.h

    @property
    def chaining_key(self) -> primitives.Secret:
        return primitives.Secret(self._symmetric.ck)

    @property
    def complete(self) -> bool:
        return self._index == len(self._pattern.messages)

    def write_message(self, payload: bytes) -> bytes:
        """Tokens and payload in one; at most 65,535 bytes, else LocalMisuse."""
        message = self.write_tokens() + self.write_payload(payload)
        if len(message) > MESSAGE_MAX:
            raise LocalMisuse("noise message is too long")
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload. Raises ProtocolViolation (DecryptFailed for a bad tag); then the state is dead."""
        return self.read_payload(self.read_tokens(message))

    def write_tokens(self) -> bytes:
        self._enter(writing=True, payload=False)
        out = b"".join(self._write_token(token) for token in self._pattern.messages[self._index])
        self._leave()
        return out

    def write_payload(self, payload: bytes) -> bytes:
        self._enter(writing=True, payload=True)
        out = self._symmetric.encrypt_and_hash(payload)
        self._leave()
        return out

    def read_tokens(self, message: bytes) -> bytes:
        """Consumes the tokens' bytes and returns the rest, which is the payload part."""
        self._enter(writing=False, payload=False)
        if len(message) > MESSAGE_MAX:
            raise ProtocolViolation("noise message is too long")
        for token in self._pattern.messages[self._index]:
            message = self._read_token(token, message)
        self._leave()
        return message

    def read_payload(self, data: bytes) -> bytes:
        self._enter(writing=False, payload=True)
        payload = self._symmetric.decrypt_and_hash(data)
        self._leave()
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """(sending, receiving) ciphers. Ends this state: it works once, and only the handshake hash is left of it."""
        if self._dead or not self.complete:
            raise LocalMisuse("handshake is not complete")
        self._dead = True
        self._e = self._e1 = self._s = None  # what could open recorded traffic goes now, not when the session ends
        self._psks.clear()
        first, second = self._symmetric.split()
        return (first, second) if self._initiator else (second, first)

    def _enter(self, *, writing: bool, payload: bool) -> None:
        ours = (self._index % 2 == 0) == self._initiator
        if self._dead or self.complete or ours != writing or self._in_message != payload:
            raise LocalMisuse("handshake is not at this step")
        self._dead = True  # until the step has succeeded

    def _leave(self) -> None:
        if self._in_message:
            self._index += 1
        self._in_message = not self._in_message
        self._dead = False

    def _write_token(self, token: str) -> bytes:
        symmetric = self._symmetric
        match token:
            case "e":
                self._e = self._ephemerals.dh_key()
                self._mix_ephemeral(self._e.public)
                return self._e.public
            case "s":
                return symmetric.encrypt_and_hash(_need(self._s).public)
            case "e1":
                self._e1 = self._ephemerals.kem_key()
                return symmetric.encrypt_and_hash(self._e1.public)
            case "ekem1":
                secret, ciphertext = self._ephemerals.encapsulate(_need(self._re1))
                out = symmetric.encrypt_and_hash(ciphertext)  # hfs draft: the ciphertext first, then its secret
                symmetric.mix_key(secret)
                return out
            case _:
                self._mix_secret(token)
                return b""

    def _read_token(self, token: str, message: bytes) -> bytes:
        symmetric = self._symmetric
        match token:
            case "e":
                self._re, rest = _take(message, self._suite.dh_public_len)
                self._mix_ephemeral(self._re)
                return rest
            case "s":
                part, rest = _take(message, self._suite.dh_public_len + self._tag_len)
                self._rs = symmetric.decrypt_and_hash(part)
                return rest
            case "e1":
                part, rest = _take(message, self._suite.kem_public_len + self._tag_len)
                self._re1 = symmetric.decrypt_and_hash(part)
                return rest
            case "ekem1":
                part, rest = _take(message, self._suite.kem_ciphertext_len + self._tag_len)
                symmetric.mix_key(_need(self._e1).decapsulate(symmetric.decrypt_and_hash(part)))
                return rest
            case _:
                self._mix_secret(token)
                return message

    @property
    def _tag_len(self) -> int:
        return TAG_LEN if self._symmetric.has_key else 0

    def _mix_ephemeral(self, public: bytes) -> None:
        self._symmetric.mix_hash(public)
        if self._pattern.uses_psk:
            self._symmetric.mix_key(public)  # section 9.2

    def _mix_secret(self, token: str) -> None:
        if token == "psk":
            if not self._psks:
                raise LocalMisuse("pattern needs a pre-shared key it was not given")
            self._symmetric.mix_key_and_hash(self._psks.pop(0))
            return
        # "es" is the initiator's e with the responder's s; read from our side the letters swap.
        ours, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        pair = _need(self._e if ours == "e" else self._s)
        self._symmetric.mix_key(pair.exchange(_need(self._re if theirs == "e" else self._rs)))


def _take(message: bytes, count: int) -> tuple[bytes, bytes]:
    if len(message) < count:
        raise ProtocolViolation("handshake message is too short")
    return message[:count], message[count:]


def _need(value: T | None) -> T:
    if value is None:
        raise LocalMisuse("pattern needs a key it was not given")
    return value


gcm_nonce: Final[Callable[[int], bytes]] = Struct(">4xQ").pack  # four zero bytes, the counter big-endian (section 12.3)

PRODUCT_SUITE: Final = Suite(
    name="P256+MLKEM768_AESGCM_SHA256",
    dh_public_len=primitives.POINT_LEN,
    aead=primitives.AesGcm,
    nonce=gcm_nonce,
    hash=primitives.sha256,
    hmac=primitives.hmac_sha256,
    kem_public_len=primitives.KEM_PUBLIC_LEN,
    kem_ciphertext_len=primitives.KEM_CIPHERTEXT_LEN,
)
RESUMPTION_SUITE: Final = replace(PRODUCT_SUITE, name="P256_AESGCM_SHA256")
NN_HFS: Final = Pattern("NNhfs", (), (), (("e", "e1"), ("e", "ee", "ekem1")))
NN_PSK0: Final = Pattern("NNpsk0", (), (), (("psk", "e"), ("e", "ee")))
