"""An authority for a SPIRE server, under the root that signs this gateway's intermediate: one root, two signers.

SPIRE's plugin UpstreamAuthority "disk" reads key and certificate from files and signs its own, short-lived authority
with them. So the path from an SVID of SPIRE's to the root has two intermediates, for which the root must leave room.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from relay.gateway.errors import SetupRefused
from relay.gateway.identity.ca import (
    LIFETIMES,
    ROOT_DEPTH,
    ROOT_FILE,
    ROOT_PURPOSE,
    Lifetimes,
    certify,
    pem_of,
    unseal,
)
from relay.gateway.identity.custody import SOFTWARE, Custody
from store.files import write_private
from store.keys import Unlock
from transport.primitives import SigningKey

KEY_FILE: Final = "upstream.key"
CERTIFICATE_FILE: Final = "upstream.pem"
BUNDLE_FILE: Final = "bundle.pem"


@dataclass(frozen=True)
class Upstream:
    serial: int
    not_after: float  # unix seconds


def write_upstream(
    directory: Path, out: Path, *, root_passphrase: Unlock, now: float, lifetimes: Lifetimes = LIFETIMES,
    custody: Custody = SOFTWARE,
) -> Upstream:
    """Makes the folder `out` (0700): key (PKCS#8, not encrypted: SPIRE reads it so), certificate and roots, in PEM. A
    copy of the certificate stays in `directory`, beside those of before that are good yet.

    Raises SetupRefused if `out` exists, or if the root is of before there was room for two intermediates;
    AuthorityExpired, WrongKey, StoreMissing.
    """
    if out.exists():
        raise SetupRefused(f"{out} exists", hint="choose another folder; nothing was changed")
    root = unseal(directory / ROOT_FILE, root_passphrase, ROOT_PURPOSE)
    certificate = x509.load_der_x509_certificate(root.certificate)
    depth = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    if depth is not None and depth < ROOT_DEPTH:
        raise SetupRefused(
            "this root allows one intermediate below it, and SPIRE needs two",
            hint="`relay gateway rotate-key root` makes a new root that does, in use after 90 days",
        )
    key = SigningKey.generate()  # of its own, so that either can be ended without the other
    der = certify(root, key.public, "upstream", ROOT_DEPTH - 1, now=now, lifetimes=lifetimes, custody=custody)
    made = x509.load_der_x509_certificate(der)
    out.mkdir(mode=0o700, parents=True)
    private = key.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(out / KEY_FILE, [private], replace=False)
    write_private(out / CERTIFICATE_FILE, [pem_of(der)], replace=False)
    write_private(out / BUNDLE_FILE, [pem_of(one) for one in root.roots], replace=False)
    copies = [one for one in _copies(directory) if _upstream(one).not_after > now]
    write_private(directory / CERTIFICATE_FILE, [
        one.public_bytes(serialization.Encoding.PEM) for one in (*copies, made)
    ], replace=True)
    return _upstream(made)


def made_before(directory: Path, *, now: float) -> list[Upstream]:
    """All that was made for SPIRE servers and has not run out, by the copies of the certificates here."""
    return [one for one in map(_upstream, _copies(directory)) if one.not_after > now]


def _copies(directory: Path) -> list[x509.Certificate]:
    path = directory / CERTIFICATE_FILE
    return x509.load_pem_x509_certificates(path.read_bytes()) if path.exists() else []


def _upstream(certificate: x509.Certificate) -> Upstream:
    return Upstream(certificate.serial_number, certificate.not_valid_after_utc.timestamp())
