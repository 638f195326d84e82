"""Certificates for measuring: one trust domain, leaves straight under its root or under an intermediate.

The same chain serves Causeway and the TLS peers.
"""

import ssl
import tempfile
import time
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from transport.identity.svid import SpiffeId, Svid, TrustBundle
from transport.primitives import SigningKey

TRUST_DOMAIN = "bench.example"


class Chains:
    """A fresh trust domain whose certificates are valid for an hour."""

    def __init__(self, *, intermediate: bool) -> None:
        now = datetime.now(UTC)
        self._from, self._to = now - timedelta(minutes=5), now + timedelta(hours=1)
        root_key = ec.generate_private_key(ec.SECP256R1())
        self._root = self._authority("root", None, root_key, root_key)
        self._signer, self._signer_key = self._root, root_key
        self._between: tuple[bytes, ...] = ()
        if intermediate:
            self._signer_key = ec.generate_private_key(ec.SECP256R1())
            self._signer = self._authority("intermediate", self._root, self._signer_key, root_key)
            self._between = (_der(self._signer),)
        self.root = _der(self._root)
        self.bundle = TrustBundle(TRUST_DOMAIN, (self.root,), 1)
        self.now = time.time()

    def issue(self, path: str) -> Svid:
        key = SigningKey.generate()
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        name = x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/{path}")
        leaf = (
            self._builder(x509.Name([]), self._signer.subject, key.private_key, ca=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._signer_key.public_key()), critical=False
            )
            .sign(self._signer_key, hashes.SHA256())
        )
        return Svid(
            SpiffeId(TRUST_DOMAIN, f"/{path}"), (_der(leaf), *self._between), key,
            self._from.timestamp(), self._to.timestamp(),
        )

    def tls(self, svid: Svid, *, server: bool) -> ssl.SSLContext:
        """TLS 1.3 alone, with certificates on both sides, and every default otherwise."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the names are SPIFFE IDs
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.root)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(svid.key.private_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode())
            file.writelines(ssl.DER_cert_to_PEM_cert(der) for der in svid.chain)
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def _authority(
        self, name: str, issuer: x509.Certificate | None, key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{TRUST_DOMAIN} {name}")])
        return (
            self._builder(subject, issuer.subject if issuer else subject, key, ca=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.CertificateBuilder:
        usage = x509.KeyUsage(
            digital_signature=not ca, key_cert_sign=ca, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(self._from).not_valid_after(self._to)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
        )


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
