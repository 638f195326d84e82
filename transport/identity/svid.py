"""SPIFFE IDs, X.509-SVIDs, trust bundles and the certificate requests that lead to an SVID.

Source: SPIFFE-ID section 2 and X509-SVID section 2; docs/SPIFFE.md lists their rules. Whether a chain is to be believed
is decided in `transport.identity.verify`; here is only what the words mean.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from transport.errors import BadInput, IdentityRefused, NotSpiffeId, ProtocolViolation
from transport.primitives import SigningKey, VerifyKey

ID_MAX: Final = 2048  # bytes of the whole ID, SPIFFE-ID 2.3
TRUST_DOMAIN_MAX: Final = 255  # bytes, SPIFFE-ID 2.3
CERTIFICATE_MAX: Final = 2048  # bytes of DER; an SVID of ours is about 600
CHAIN_MAX: Final = 3  # leaf, intermediate, and (for joining) the root
CSR_MAX: Final = 1024  # bytes of DER; a P-256 request without attributes is about 200

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_SCHEME: Final = "spiffe://"


@dataclass(frozen=True)
class SpiffeId:
    """A workload's name: `spiffe://<trust_domain><path>`. The path is empty or starts with a slash."""

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        if self.path:
            _check_path(self.path)
        if len(str(self)) > ID_MAX:
            raise _no_id(f"longer than {ID_MAX} bytes", "ID length", "use a shorter name")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From text, strictly: what is accepted has no second spelling. Raises NotSpiffeId, which names the rule.

        Scheme and trust domain are compared in any case elsewhere (SPIFFE-ID 2.4); here only lower case is an ID.
        """
        if not text.startswith(_SCHEME):
            raise _no_id(f"it does not start with {_SCHEME}", "ID scheme")
        rest = text.removeprefix(_SCHEME)
        for mark, part in (("#", "fragment"), ("?", "query")):
            if mark in rest:
                raise _no_id(f"it has a {part}", f"ID {part}")
        domain, slash, path = rest.partition("/")
        if "@" in domain:
            raise _no_id("it names a user", "ID user info")
        if ":" in domain and not domain.startswith("["):
            raise _no_id("it has a port", "ID port")
        return cls(domain, slash + path)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"

    @property
    def role(self) -> str:
        """First path segment, such as "edge"; "" for a trust domain's own ID."""
        return self.path[1:].partition("/")[0]

    @property
    def name(self) -> str:
        """What follows the role, such as "lap-1"; "" if nothing does."""
        return self.path[1:].partition("/")[2]


def check_trust_domain(name: str) -> None:
    """Raises NotSpiffeId unless `name` is a trust domain name (SPIFFE-ID 2.1): 1 to 255 of [a-z0-9._-]."""
    if len(name) <= TRUST_DOMAIN_MAX and _TRUST_DOMAIN.fullmatch(name):
        return
    if not name:
        rule = "empty"
    elif "%" in name:
        rule = "percent-encoding"
    elif not name.isascii() or not _TRUST_DOMAIN.fullmatch(name.lower()):
        rule = "characters"
    else:
        rule = "length" if name == name.lower() else "case"
    raise NotSpiffeId(
        "not a trust domain name: 1 to 255 characters of a-z, 0-9, dot, dash, underscore",
        rule=f"trust domain {rule}", hint='as in "field.example"',
    )


def _check_path(path: str) -> None:
    """SPIFFE-ID 2.2, for a path that is not empty."""
    lead, *segments = path.split("/")
    hint = "names are made of letters, digits, dot, dash and underscore"
    if "%" in path:
        raise _no_id("its path has percent-encoding", "path percent-encoding", hint)
    if segments and segments[-1] == "":
        raise _no_id("its path ends with a slash", "path trailing slash")
    if "" in segments:
        raise _no_id("its path has an empty segment", "path empty segment")
    if "." in segments or ".." in segments:
        raise _no_id("its path has a relative segment", "path relative segment")
    if lead or not all(_SEGMENT.fullmatch(part) for part in segments):
        raise _no_id("its path has characters that are not allowed", "path characters", hint)


def _no_id(what: str, rule: str, hint: str | None = None) -> NotSpiffeId:
    return NotSpiffeId(f"not a SPIFFE ID: {what}", rule=rule, hint=hint)


@dataclass(frozen=True)
class Svid:
    """An identity of our own: chain (DER, leaf first, never the root), its key, validity in unix seconds."""

    id: SpiffeId
    chain: tuple[bytes, ...]
    key: SigningKey
    not_before: float
    not_after: float

    @classmethod
    def from_chain(cls, chain: Sequence[bytes], key: SigningKey) -> Self:
        """Reads ID and validity from the leaf. Raises IdentityRefused if it is not an SVID, or not one for `key`.

        Checks no signature: that the chain leads to a bundle is `verify_svid`'s to say.
        """
        if not 1 <= len(chain) <= CHAIN_MAX:
            raise IdentityRefused("the certificate chain has the wrong length", rule="chain length")
        leaf = load_certificate(chain[0])
        if key_of(leaf).spki != key.public.spki:
            raise IdentityRefused("the certificate is for another key", rule="key")
        return cls(
            spiffe_id_of(leaf), tuple(chain), key,
            leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp(),
        )


@dataclass(frozen=True)
class TrustBundle:
    """The roots (DER) of one trust domain. `sequence` grows with every change and never goes back."""

    trust_domain: str
    roots: tuple[bytes, ...]
    sequence: int

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        if self.sequence < 0:
            raise BadInput("not a trust bundle: the sequence number is negative")


def load_certificate(der: bytes) -> x509.Certificate:
    """Parses one certificate of at most 2,048 bytes. Raises IdentityRefused on anything but exact DER."""
    if not 0 < len(der) <= CERTIFICATE_MAX:
        raise IdentityRefused("a certificate has the wrong size", rule="certificate size")
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.extensions  # parsed lazily otherwise, and then it raises in the caller's face
        whole = der.endswith(b"\0" + certificate.signature)  # the library also takes one bit fewer of it, if that is 0
        if whole and certificate.public_bytes(serialization.Encoding.DER) == der:
            return certificate
    except Exception:  # noqa: S110 - the library raises several unrelated types on hostile DER; refused below
        pass
    raise IdentityRefused("a certificate cannot be read", rule="encoding")


def spiffe_id_of(leaf: x509.Certificate) -> SpiffeId:
    """The ID a certificate names (X509-SVID section 2). Raises IdentityRefused unless it is exactly one URI SAN."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if len(uris) != 1:
        raise IdentityRefused("the certificate does not carry exactly one URI name", rule="exactly one URI SAN")
    try:
        return SpiffeId.parse(uris[0])
    except NotSpiffeId as error:
        raise IdentityRefused("the certificate's URI name is not a SPIFFE ID", rule=error.rule) from None


def make_csr(key: SigningKey) -> bytes:
    """A PKCS#10 request (RFC 2986, DER) with empty subject and no extensions: the CA decides the ID."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def parse_csr(der: bytes) -> VerifyKey:
    """The key a request asks a certificate for. Whatever else the request says is ignored.

    Raises ProtocolViolation unless it is at most 1,024 bytes of DER, for P-256, and signed by that very key.
    """
    if not 0 < len(der) <= CSR_MAX:
        raise ProtocolViolation("certificate request has the wrong size")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        genuine = isinstance(key, ec.EllipticCurvePublicKey) and request.is_signature_valid
    except Exception:  # as above
        genuine = False
    if not genuine:
        raise ProtocolViolation("certificate request is not valid")
    return VerifyKey.from_spki(_public_der(key))


def _public_der(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ProtocolViolation("not a P-256 public key")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_of(certificate: x509.Certificate) -> VerifyKey:
    """The certificate's P-256 key. Raises IdentityRefused for every other kind."""
    try:
        key = certificate.public_key()
    except Exception:  # as above: unknown key types, points off the curve
        raise IdentityRefused("the certificate's key cannot be read", rule="key type") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityRefused("the certificate's key is not a P-256 key", rule="key type")
    return VerifyKey(key)
