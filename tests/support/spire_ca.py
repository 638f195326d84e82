"""What a SPIRE server issues under an authority of ours, without SPIRE: its own authority below that, and SVIDs."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.gateway.identity.upstream import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tests.support.ca import Ca, der


class SpireCa(Ca):
    """`upstream`: the folder that `relay gateway rotate-key upstream` makes. Chains are leaf, SPIRE's, upstream."""

    def __init__(self, upstream: Path, *, lower: bool = False) -> None:
        """With `lower` there is one authority more, and the upstream takes the root's place, for chains have three."""
        super().__init__()
        key = serialization.load_pem_private_key((upstream / KEY_FILE).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        above = x509.load_pem_x509_certificate((upstream / CERTIFICATE_FILE).read_bytes())
        self.root = x509.load_pem_x509_certificate((upstream / BUNDLE_FILE).read_bytes())
        self.signer_key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIRE"),
        ])
        self.signer = self._authority(
            name, above.subject, self.signer_key, key, start=-10.0, lifetime=86_400.0, depth=None
        )
        self.intermediates = (der(self.signer), der(above))
        if lower:
            middle, signer = self.signer, self.signer_key
            self.signer_key = ec.generate_private_key(ec.SECP256R1())
            self.signer = self._authority(
                self._name("lower"), middle.subject, self.signer_key, signer, start=-10.0, lifetime=86_400.0, depth=0
            )
            self.intermediates, self.root = (der(self.signer), der(middle)), above
