"""The only door to the crypto library on the wire: P-256, ML-KEM-768, AES-256-GCM, HKDF and SHA-256 as small functions.

Secrets are wrapped where they enter: a `Secret` and the key classes never print, compare, hash, pickle or copy. Python
cannot wipe memory reliably; docs/THREAT_MODEL.md lists the copies that stay.
"""

import hashlib
import hmac
import os
from typing import ClassVar, Final, NoReturn, Protocol, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from transport.errors import BadInput, DecryptFailed, IdentityRefused, LocalMisuse, ProtocolViolation

__all__ = [
    "DH_LEN", "KEM_CIPHERTEXT_LEN", "KEM_PUBLIC_LEN", "POINT_LEN", "SIGNATURE_LEN", "TAG_LEN", "AesGcm", "KemPrivate",
    "P256Private", "Secret", "Signer", "SigningKey", "VerifyKey", "encapsulate", "hkdf_expand", "hmac_sha256",
    "random_bytes", "same_bytes", "sha256",
]

POINT_LEN: Final = 65  # SEC1 2.3.3, uncompressed
DH_LEN: Final = 32  # the x coordinate, SEC1 3.3.1
TAG_LEN: Final = 16
SIGNATURE_LEN: Final = 64  # r || s, fixed: DER would show in the sizes
KEM_PUBLIC_LEN: Final = 1184  # FIPS 203, table 3
KEM_CIPHERTEXT_LEN: Final = 1088

_ECDSA = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)  # RFC 6979: a cloned VM's RNG cannot leak the key
_ECDSA_VERIFY = ec.ECDSA(hashes.SHA256())
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class _Sealed:
    """Refuses every accidental way for a secret to leave: printing, comparing, hashing, copying, pickling."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are compared with same_bytes() only")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled or copied")


class Secret(_Sealed):
    """Secret bytes. `expose()` is the one way out, so that every use can be found by searching for it."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def expose(self) -> bytes:
        return self._value


def random_bytes(count: int) -> bytes:
    """`count` bytes from the operating system."""
    return os.urandom(count)


def same_bytes(a: bytes, b: bytes) -> bool:
    """Whether a equals b, in time that depends on the lengths only."""
    return hmac.compare_digest(a, b)


def sha256(*parts: bytes) -> bytes:
    """SHA-256 over the concatenation of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104); with `key` as salt this is HKDF-Extract (RFC 5869 section 2.2)."""
    return hmac.digest(key, data, "sha256")


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 section 2.3). Raises ValueError over 8,160 bytes."""
    return HKDFExpand(hashes.SHA256(), length, info).derive(key)


class P256Private(_Sealed):
    """A P-256 key pair for Diffie-Hellman; `public` is the 65-byte uncompressed point (SEC1 2.3.3)."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )

    @classmethod
    def generate(cls) -> Self:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_scalar(cls, scalar: bytes) -> Self:
        """From a 32-byte big-endian scalar, for test vectors. Raises BadInput outside 1..n-1."""
        value = int.from_bytes(scalar, "big")
        if len(scalar) != 32 or not 0 < value < _P256_ORDER:
            raise BadInput("not a P-256 scalar")
        return cls(ec.derive_private_key(value, ec.SECP256R1()))

    def exchange(self, point: bytes) -> bytes:
        """ECDH with a peer's 65-byte point: the 32-byte x coordinate (NIST SP 800-56A 5.7.1.2).

        Raises ProtocolViolation for any other length or form, or a point that is not on the curve.
        """
        return self._key.exchange(ec.ECDH(), _load_point(point))


def _load_point(point: bytes) -> ec.EllipticCurvePublicKey:
    # The library would also take the compressed form; one encoding means one meaning for the handshake hash.
    if len(point) != POINT_LEN or point[0] != 0x04:
        raise ProtocolViolation("public key is not an uncompressed P-256 point")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise ProtocolViolation("public key is not an uncompressed P-256 point") from None


class KemPrivate(_Sealed):
    """An ML-KEM-768 decapsulation key (FIPS 203); `public` is the 1,184-byte encapsulation key."""

    __slots__ = ("_key", "public")

    def __init__(self, key: mlkem.MLKEM768PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Self:
        return cls(mlkem.MLKEM768PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """From the 64-byte seed d || z (FIPS 203 algorithm 16), for test vectors. Raises BadInput."""
        try:
            return cls(mlkem.MLKEM768PrivateKey.from_seed_bytes(seed))
        except ValueError:
            raise BadInput("not an ML-KEM-768 seed") from None

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The 32-byte shared secret; wrong ciphertexts of the right length give a pseudorandom one (FIPS 203 7.3)."""
        if len(ciphertext) != KEM_CIPHERTEXT_LEN:
            raise ProtocolViolation("KEM ciphertext has the wrong length")
        return self._key.decapsulate(ciphertext)


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """(shared secret, ciphertext) for an ML-KEM-768 encapsulation key, after FIPS 203 7.2's length and modulus checks.

    Raises ProtocolViolation when either check fails.
    """
    if len(public) != KEM_PUBLIC_LEN:
        raise ProtocolViolation("KEM public key has the wrong length")
    try:
        secret, ciphertext = mlkem.MLKEM768PublicKey.from_public_bytes(public).encapsulate()
    except ValueError:
        raise ProtocolViolation("KEM public key is not valid") from None
    return secret, ciphertext


class AesGcm(_Sealed):
    """AES-256-GCM under one key (NIST SP 800-38D). The caller owns the nonces; `transport.noise` is the only caller.

    `seal(nonce, plaintext, associated)` gives ciphertext and 16-byte tag. It is the library's own function: a layer
    around it would cost a twentieth of what sealing a small record does.
    """

    __slots__ = ("_aead_open", "seal")

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise LocalMisuse("AES-256 takes a key of 32 bytes")
        aead = AESGCM(key)
        self.seal = aead.encrypt
        self._aead_open = aead.decrypt

    def open(self, nonce: bytes, ciphertext: bytes, associated: bytes, /) -> bytes:
        """Plaintext. Raises DecryptFailed, whatever was wrong."""
        try:
            return self._aead_open(nonce, ciphertext, associated)
        except InvalidTag:
            raise DecryptFailed from None


class VerifyKey:
    """An ECDSA P-256 public key."""

    __slots__ = ("_key", "_point")

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key: ec.EllipticCurvePublicKey | None = key
        self._point = b""

    def rest(self) -> None:
        """Keeps its 65 bytes and gives the library's 2.2 kB back; the next use takes 10 µs to make them again."""
        if self._key is not None:
            self._point = self._key.public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
            )
            self._key = None

    def _loaded(self) -> ec.EllipticCurvePublicKey:
        key = self._key or _load_point(self._point)
        self._key = key
        return key

    @property
    def spki(self) -> bytes:
        """Its DER SubjectPublicKeyInfo (RFC 5280 4.1.2.7)."""
        return self._loaded().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def from_spki(cls, spki: bytes) -> Self:
        """Raises ProtocolViolation unless `spki` is the canonical DER of a P-256 key."""
        try:
            key = serialization.load_der_public_key(spki)
        except Exception:  # the library raises several unrelated types on hostile DER
            raise ProtocolViolation("not a P-256 public key") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ProtocolViolation("not a P-256 public key")
        verify_key = cls(key)
        if verify_key.spki != spki:  # a second encoding of one key would hash to a second device id
            raise ProtocolViolation("not a P-256 public key")
        return verify_key

    def verify(self, signature: bytes, message: bytes) -> None:
        """Checks 64 bytes r || s over SHA-256 of the message (FIPS 186-5 6.4). Raises IdentityRefused."""
        if len(signature) != SIGNATURE_LEN:
            raise IdentityRefused("signature is not valid", rule="signature length")
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        try:
            self._loaded().verify(utils.encode_dss_signature(r, s), message, _ECDSA_VERIFY)
        except InvalidSignature:
            raise IdentityRefused("signature is not valid", rule="signature") from None


class Signer(Protocol):
    """Whoever signs by an ECDSA P-256 key. One that is `slow` (a TPM) is asked in a thread, not in the event loop."""

    @property
    def public(self) -> VerifyKey: ...
    @property
    def slow(self) -> bool: ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes r || s over SHA-256 of the message. Raises SignerFailed."""
        ...


class SigningKey(_Sealed):
    """An ECDSA P-256 key held in software. `private_key` is for X.509 builders behind the identity doors."""

    __slots__ = ("private_key", "public")
    slow: ClassVar[bool] = False

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self.private_key = key
        self.public = VerifyKey(key.public_key())

    @classmethod
    def generate(cls) -> Self:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pkcs8(cls, der: Secret) -> Self:
        """Raises BadInput unless `der` is an unencrypted PKCS#8 P-256 key (RFC 5958)."""
        try:
            key = serialization.load_der_private_key(der.expose(), password=None)
        except Exception:  # the library raises several unrelated types
            raise BadInput("not a P-256 private key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadInput("not a P-256 private key")
        return cls(key)

    def to_pkcs8(self) -> Secret:
        return Secret(self.private_key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ))

    def sign(self, message: bytes) -> bytes:
        """64 bytes r || s over SHA-256 of the message, deterministic (RFC 6979)."""
        r, s = utils.decode_dss_signature(self.private_key.sign(message, _ECDSA))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
