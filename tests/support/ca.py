"""A certificate authority for tests: root, intermediate, and leaves with any defect.

    ca = Ca("field.example")
    svid = ca.issue("edge/lap-1")                 # transport.identity.svid.Svid, chain = leaf + intermediate
    bundle = ca.bundle()
    old = ca.issue("edge/lap-1", start=-7200, lifetime=3600)
"""

import datetime
import time
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from transport.identity.svid import SpiffeId, Svid, TrustBundle
from transport.primitives import SigningKey

DAY = 86400.0


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def key_usage(*granted: str) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: name in granted for name in names})


def _when(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


class Ca:
    """One trust domain. `now` (unix seconds) is what validity is counted from; default: the clock."""

    def __init__(
        self, trust_domain: str = "field.example", *, now: float | None = None, intermediate: bool = True,
        intermediate_start: float = -DAY, intermediate_lifetime: float = 30 * DAY, root_lifetime: float = 3650 * DAY,
        name: str = "",
    ) -> None:
        self.trust_domain = trust_domain
        self.now = time.time() if now is None else now
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        root_name = self._name(name or f"{trust_domain} root")
        self.root = self._authority(
            root_name, root_name, self.root_key, self.root_key, start=-2 * DAY, lifetime=root_lifetime, depth=1)
        self.signer_key, self.signer = self.root_key, self.root
        self.intermediates: tuple[bytes, ...] = ()
        if intermediate:
            self.signer_key = ec.generate_private_key(ec.SECP256R1())
            self.signer = self._authority(
                self._name(f"{trust_domain} intermediate"), root_name, self.signer_key, self.root_key,
                start=intermediate_start, lifetime=intermediate_lifetime, depth=0)
            self.intermediates = (der(self.signer),)

    @property
    def root_der(self) -> bytes:
        return der(self.root)

    def bundle(self, *, sequence: int = 1, also: Sequence[bytes] = ()) -> TrustBundle:
        return TrustBundle(self.trust_domain, (self.root_der, *also), sequence)

    def issue(
        self, path: str = "edge/lap-1", *, start: float = -300.0, lifetime: float = 3900.0,
        key: SigningKey | None = None, uris: Sequence[str] | None = None, usage: x509.KeyUsage | None = None,
        with_usage: bool = True, ca: bool = False, foreign_key: Any = None, padding: int = 0, extended: bool = True,
        with_aki: bool = True, dns: Sequence[str] = (), serial: int | None = None,
    ) -> Svid:
        """A leaf and the intermediates. `start` is seconds from `now`; by default valid for an hour from now.

        `uris` replaces the URI SANs (empty: none), `dns` adds names to them, `usage` replaces the key usage,
        `foreign_key` puts a public key of another kind into the certificate, `padding` adds bytes of a harmless
        extension.
        """
        key = key or SigningKey.generate()
        uris = [f"spiffe://{self.trust_domain}/{path}"] if uris is None else uris
        public = foreign_key if foreign_key is not None else key.private_key.public_key()
        builder = (
            x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(self.signer.subject).public_key(public)
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(_when(self.now + start)).not_valid_after(_when(self.now + start + lifetime))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if with_aki:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.signer_key.public_key()), critical=False)
        if with_usage:
            builder = builder.add_extension(usage or key_usage("digital_signature"), critical=True)
        if extended:
            both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        names = [*(x509.UniformResourceIdentifier(uri) for uri in uris), *(x509.DNSName(name) for name in dns)]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if padding:
            oid = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, b"\x04" * padding), critical=False)
        leaf = builder.sign(self.signer_key, hashes.SHA256())
        return Svid(
            SpiffeId(self.trust_domain, "/" + path), (der(leaf), *self.intermediates), key,
            leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp(),
        )

    def issue_for(self, spki: bytes, path: str, *, lifetime: float = 3600.0) -> tuple[bytes, ...]:
        """A chain for a public key that came in a request: what a gateway answers to /v1/join."""
        public = serialization.load_der_public_key(spki)
        return self.issue(path, foreign_key=public, start=-300.0, lifetime=300.0 + lifetime).chain

    @staticmethod
    def _name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])

    def _authority(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey, *, start: float, lifetime: float, depth: int | None,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_when(self.now + start)).not_valid_after(_when(self.now + start + lifetime))
            .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
            .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        return builder.sign(signer, hashes.SHA256())
