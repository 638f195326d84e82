"""That a device key lies in a TPM: credential activation (TPM 2.0 Library, part 1, section 24).

A device tells its TPM's endorsement key and the public area of its device key. It is given a secret, encrypted so that
only the TPM with that endorsement key decrypts it, and only while an object of that very Name is loaded in it; the Name
is a hash of the public area, attributes included. Whoever returns the secret has the device key in that TPM. Both areas
have to be as `edge` makes them, byte for byte up to the point: P-256, and fixed to the TPM.

Without `ek_roots` anybody's endorsement key will do, also one that a program made up: then this keeps honest devices'
keys in their TPMs, and proves nothing of a dishonest one. With them its certificate has to be issued by one of those.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.gateway.errors import ConfigError
from transport.errors import IdentityRefused
from transport.messages import Attest, Challenge, Proof
from transport.primitives import VerifyKey, random_bytes, same_bytes, sha256

__all__ = ["Attestation", "Attested", "Pending", "make_credential"]

# TPMT_PUBLIC (part 2, section 12.2.4) up to the point. Endorsement key: EK Credential Profile 2.5, B.3.4.
_EK: Final = bytes.fromhex(
    "0023" "000b"  # ECC, Name by SHA-256
    "000300b2"  # fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt
    "0020" "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"  # PolicySecret of the endorsement
    "0006" "0080" "0043" "0010" "0003" "0010"  # AES-128-CFB, no scheme, P-256, no KDF
)
_KEY: Final = bytes.fromhex(
    "0023" "000b"
    "00040472"  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign
    "0000" "0010" "0018" "000b" "0003" "0010"  # no policy, no inner cipher, ECDSA with SHA-256, P-256, no KDF
)
_NAME_ALGORITHM: Final = b"\0\x0b"  # SHA-256, as both areas say
_EK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_ROOTS_MAX: Final = 1 << 20


@dataclass(frozen=True)
class Attested:
    """`certified`: the endorsement key has a certificate that leads to the configured roots; else any TPM, or none.

    `ek_sha256` is of the endorsement key's SubjectPublicKeyInfo, in hexadecimal.
    """

    tpm: Literal["any", "certified"]
    ek_sha256: str


@dataclass(frozen=True, eq=False)
class Pending:
    """A challenge that is under way."""

    challenge: Challenge
    _secret: bytes
    _attested: Attested

    def check(self, proof: Proof | Attest) -> Attested:
        """Raises IdentityRefused."""
        if not isinstance(proof, Proof) or not same_bytes(proof.secret, self._secret):
            raise IdentityRefused("the challenge was not answered", rule="attestation: wrong secret")
        return self._attested


class Attestation:
    """What this gateway believes of TPMs. `ek_roots`: who issues certificates of endorsement keys; none: anybody."""

    def __init__(self, ek_roots: Sequence[x509.Certificate] = ()) -> None:
        self._roots = tuple(ek_roots)

    @classmethod
    def load(cls, files: Sequence[Path]) -> Self:
        """From PEM files, each certificate of which is trusted to issue. Raises ConfigError."""
        roots: list[x509.Certificate] = []
        for path in files:
            try:
                with path.open("rb") as stream:
                    found = x509.load_pem_x509_certificates(stream.read(_ROOTS_MAX))
            except OSError as error:
                raise ConfigError(
                    f"attestation.ek_roots: cannot read {path}: {(error.strerror or '').lower()}",
                    hint="the makers of TPMs publish these certificates",
                ) from None
            except ValueError:
                raise ConfigError(
                    f"attestation.ek_roots: {path} holds no PEM certificates", hint="-----BEGIN CERTIFICATE-----"
                ) from None
            if not all(_is_authority(one) for one in found):
                raise ConfigError(
                    f"attestation.ek_roots: {path} holds a certificate that may issue none",
                    hint="name the maker's certificate authorities, not a device's own certificate",
                )
            roots += found
        return cls(roots)

    def begin(self, evidence: Attest | Proof, device_key: VerifyKey, now: float) -> Pending:
        """Checks what a device says of its TPM. Raises IdentityRefused, whose rule is for the audit."""
        if not isinstance(evidence, Attest):
            raise IdentityRefused("attestation out of order", rule="attestation: out of order")
        point = _point(evidence.key_public, _KEY, "attestation: device key not of the required kind")
        if point != device_key.spki[-len(point):]:
            raise IdentityRefused("the area is of another key", rule="attestation: area of another key")
        rule = "attestation: endorsement key not of the P-256 template"
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), _point(evidence.ek_public, _EK, rule))
        except ValueError:
            raise IdentityRefused("not a point of P-256", rule=rule) from None
        if self._roots:
            self._check_certificate(evidence.ek_certificate, key, now)
        secret = random_bytes(32)
        name = _NAME_ALGORITHM + sha256(evidence.key_public)
        challenge = Challenge(*make_credential(key, name, secret, ec.generate_private_key(ec.SECP256R1())))
        return Pending(challenge, secret, Attested("certified" if self._roots else "any", sha256(_spki(key)).hex()))

    def _check_certificate(self, der: bytes, key: ec.EllipticCurvePublicKey, now: float) -> None:
        if not der:
            raise IdentityRefused("the TPM has no certificate", rule="attestation: no EK certificate")
        try:
            certificate = x509.load_der_x509_certificate(der)
            same = _spki(certificate.public_key()) == _spki(key)
            purposes = _purposes(certificate)
            authority = _is_authority(certificate)
        except Exception:  # the library raises several unrelated types on hostile DER
            raise IdentityRefused("this is no certificate", rule="attestation: EK certificate malformed") from None
        if not same:
            raise IdentityRefused("for another key", rule="attestation: EK certificate of another key")
        if authority or (purposes is not None and _EK_PURPOSE not in purposes):
            raise IdentityRefused("not for an endorsement key", rule="attestation: certificate for another purpose")
        if not any(_issued(certificate, root) and _within(root, now) for root in self._roots):
            raise IdentityRefused("no trusted maker issued it", rule="attestation: EK certificate of no trusted issuer")
        if not _within(certificate, now):
            raise IdentityRefused("outside its validity", rule="attestation: EK certificate outside its validity")


def make_credential(
    ek: ec.EllipticCurvePublicKey, name: bytes, secret: bytes, ephemeral: ec.EllipticCurvePrivateKey
) -> tuple[bytes, bytes]:
    """(TPM2B_ID_OBJECT's inside, TPM2B_ENCRYPTED_SECRET's): part 1, sections 24.4 and 24.5, and annex C.6.1.

    For an endorsement key of P-256 with AES-128-CFB and SHA-256. `secret` has 32 bytes, `ephemeral` is used once.
    """
    mine, theirs = (_spki(key)[-64:] for key in (ephemeral.public_key(), ek))
    shared = ephemeral.exchange(ec.ECDH(), ek)
    seed = sha256(b"\0\0\0\1", shared, b"IDENTITY\0", mine[:32], theirs[:32])  # KDFe, part 1, section 11.4.10.3
    encryptor = Cipher(AES128(_kdfa(seed, b"STORAGE", name, 128)), CFB(bytes(16))).encryptor()
    hidden = encryptor.update(len(secret).to_bytes(2, "big") + secret) + encryptor.finalize()
    outer = hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 256), hidden + name, hashlib.sha256)
    return b"\0\x20" + outer + hidden, b"\0\x20" + mine[:32] + b"\0\x20" + mine[32:]


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa by SHA-256 for up to 256 bits, part 1, section 11.4.10.2."""
    counted = b"\0\0\0\1" + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.digest(key, counted, hashlib.sha256)[: bits // 8]


def _point(area: bytes, kind: bytes, rule: str) -> bytes:
    """The point (65 bytes, SEC1 2.3.3) of a public area of that kind; coordinates may lack leading zeros."""
    x, rest = _coordinate(area.removeprefix(kind))
    y, rest = _coordinate(rest)
    if not area.startswith(kind) or not x or not y or rest:
        raise IdentityRefused("a public area is not as it should be", rule=rule)
    return b"\x04" + x.rjust(32, b"\0") + y.rjust(32, b"\0")


def _coordinate(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:2], "big")
    return (data[2:2 + length], data[2 + length:]) if 0 < length <= 32 and len(data) >= 2 + length else (b"", data)


def _spki(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier] | None:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return None


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _within(certificate: x509.Certificate, now: float) -> bool:
    return certificate.not_valid_before_utc <= datetime.fromtimestamp(now, UTC) <= certificate.not_valid_after_utc
