"""A maker of TPMs who certifies endorsement keys."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)


def ek_point(area: bytes) -> bytes:
    """The point (65 bytes) at the end of TPMT_PUBLIC of a P-256 key; of swtpm, with its leading zeros."""
    return b"\x04" + area[-66:-34] + area[-32:]


class EkAuthority:
    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._make(self._name, self._key.public_key(), "", ca=True, until=_UNTIL)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, point: bytes, *, purpose: str = "2.23.133.8.1", ca: bool = False, until: datetime.datetime = _UNTIL
    ) -> bytes:
        """DER. The subject is empty, as the EK Credential Profile has it."""
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        made = self._make(x509.Name([]), key, purpose, ca=ca, until=until)
        return made.public_bytes(serialization.Encoding.DER)

    def _make(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, purpose: str, *, ca: bool, until: datetime.datetime
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            self._name, subject, key, x509.random_serial_number(), _FROM, until,
        ).add_extension(x509.BasicConstraints(ca, None), critical=True)
        if purpose:
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())
