"""Certificate chains with one peculiarity each, and what a verifier must make of them. See `VERDICTS`.

They are drawn anew by each run of the script that writes them, since serial numbers and signatures are random; the file
is what counts.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.ca import DAY, der, key_usage

DOMAIN = "field.example"
GATEWAY = f"spiffe://{DOMAIN}/gateway/main"
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
ANY, CODE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, ExtendedKeyUsageOID.CODE_SIGNING


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Spec:
    """One certificate. Times in seconds from `now`; None leaves an extension out."""

    name: str = ""
    ca: bool | None = False
    depth: int | None = None
    usage: Sequence[str] | None = ("digital_signature",)
    eku: Sequence[x509.ObjectIdentifier] | None = (SERVER, CLIENT)
    san: Sequence[x509.GeneralName] | None = (x509.UniformResourceIdentifier(GATEWAY),)
    aki: bool = True
    ski: bool = False
    start: float = -300.0
    end: float = 3_600.0
    constraints: x509.NameConstraints | None = None
    unknown_critical: bool = False
    digest: Any = field(default_factory=hashes.SHA256)
    key: Callable[[], Any] = p256
    usage_critical: bool = True
    san_critical: bool = True


LEAF = Spec()
INTERMEDIATE = Spec(
    "field.example intermediate", True, 0, ("key_cert_sign", "crl_sign"), None, None, ski=True, start=-DAY, end=30 * DAY
)
ROOT = replace(INTERMEDIATE, name="field.example root", depth=1, start=-2 * DAY, end=3_650 * DAY)


@dataclass(frozen=True)
class Made:
    """A certificate with its key."""

    der: bytes
    key: Any
    subject: x509.Name


def make(spec: Spec, issuer: Made | None, now: float) -> Made:
    """Issued by `issuer`, or self-signed."""
    key = spec.key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, spec.name)] if spec.name else [])
    signer = issuer.key if issuer else key
    when = [datetime.datetime.fromtimestamp(int(now + at), datetime.UTC) for at in (spec.start, spec.end)]
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(when[0]).not_valid_after(when[1])
    )
    extensions: list[tuple[x509.ExtensionType | None, bool]] = [
        (None if spec.ca is None else x509.BasicConstraints(spec.ca, spec.depth), True),
        (None if spec.usage is None else key_usage(*spec.usage), spec.usage_critical),
        (None if spec.eku is None else x509.ExtendedKeyUsage(list(spec.eku)), False),
        (None if spec.san is None else x509.SubjectAlternativeName(list(spec.san)), spec.san_critical),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()) if spec.aki else None, False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()) if spec.ski else None, False),
        (spec.constraints, True),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\0")
         if spec.unknown_critical else None, True),
    ]
    for extension, critical in extensions:
        if extension is not None:
            builder = builder.add_extension(extension, critical=critical)
    return Made(der(builder.sign(signer, spec.digest)), key, subject)


def uri(text: str) -> tuple[x509.GeneralName, ...]:
    return (x509.UniformResourceIdentifier(text),)


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)


def _p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


_NAMED = x509.NameConstraints([x509.UniformResourceIdentifier(DOMAIN)], None)
_OF_DOMAIN = uri(f"spiffe://{DOMAIN}")
_DNS_BOUND = x509.NameConstraints([x509.DNSName("other.example")], None)

# (what is peculiar, leaf, intermediate or None, root, whether the chain shows the root, whether it is to be accepted:
# None where verifiers may differ)
Row = tuple[str, Spec, Spec | None, Spec, bool, bool | None]
VERDICTS: list[Row] = [
    ("nothing", LEAF, INTERMEDIATE, ROOT, False, True),
    ("no intermediate", LEAF, None, ROOT, False, True),
    ("the root is shown", LEAF, INTERMEDIATE, ROOT, True, True),
    ("the root is shown and has no AuthorityKeyIdentifier", LEAF, INTERMEDIATE, replace(ROOT, aki=False), True, True),
    ("the root has no SubjectKeyIdentifier", LEAF, INTERMEDIATE, replace(ROOT, ski=False), False, None),
    ("the leaf has no AuthorityKeyIdentifier", replace(LEAF, aki=False), INTERMEDIATE, ROOT, False, False),
    ("the intermediate has no AuthorityKeyIdentifier", LEAF, replace(INTERMEDIATE, aki=False), ROOT, False, None),
    ("the intermediate has no SubjectKeyIdentifier", LEAF, replace(INTERMEDIATE, ski=False), ROOT, False, None),
    ("a DNS name beside the URI", replace(LEAF, san=(*uri(GATEWAY), x509.DNSName("a.example"))), INTERMEDIATE, ROOT,
     False, True),
    ("two URIs", replace(LEAF, san=uri(GATEWAY) * 2), INTERMEDIATE, ROOT, False, False),
    ("no subject alternative name", replace(LEAF, san=None, name="x"), INTERMEDIATE, ROOT, False, False),
    ("another trust domain", replace(LEAF, san=uri("spiffe://other.example/gateway/main")), INTERMEDIATE, ROOT, False,
     False),
    ("a role that begins like the right one", replace(LEAF, san=uri(f"spiffe://{DOMAIN}/gateways/main")),
     INTERMEDIATE, ROOT, False, False),
    ("another role", replace(LEAF, san=uri(f"spiffe://{DOMAIN}/edge/main")), INTERMEDIATE, ROOT, False, False),
    ("an ID without a path", replace(LEAF, san=uri(f"spiffe://{DOMAIN}")), INTERMEDIATE, ROOT, False, False),
    ("a role without a name", replace(LEAF, san=uri(f"spiffe://{DOMAIN}/gateway")), INTERMEDIATE, ROOT, False, False),
    ("an ID with a dot segment", replace(LEAF, san=uri(f"spiffe://{DOMAIN}/gateway/../main")), INTERMEDIATE, ROOT,
     False, False),
    ("no extended key usage", replace(LEAF, eku=None), INTERMEDIATE, ROOT, False, True),
    ("clientAuth alone", replace(LEAF, eku=(CLIENT,)), INTERMEDIATE, ROOT, False, False),
    ("a third purpose beside serverAuth and clientAuth", replace(LEAF, eku=(SERVER, CODE, CLIENT)), INTERMEDIATE, ROOT,
     False, True),
    ("serverAuth alone", replace(LEAF, eku=(SERVER,)), INTERMEDIATE, ROOT, False, False),
    ("anyExtendedKeyUsage alone", replace(LEAF, eku=(ANY,)), INTERMEDIATE, ROOT, False, False),
    ("no key usage", replace(LEAF, usage=None), INTERMEDIATE, ROOT, False, False),
    ("key usage keyCertSign as well", replace(LEAF, usage=("digital_signature", "key_cert_sign")), INTERMEDIATE, ROOT,
     False, False),
    ("key usage cRLSign as well", replace(LEAF, usage=("digital_signature", "crl_sign")), INTERMEDIATE, ROOT, False,
     False),
    ("key usage that is not critical", replace(LEAF, usage_critical=False), INTERMEDIATE, ROOT, False, False),
    ("an empty subject and a name that is not critical", replace(LEAF, san_critical=False), INTERMEDIATE, ROOT, False,
     False),
    ("a subject, and a name that is not critical", replace(LEAF, san_critical=False, name="x"), INTERMEDIATE, ROOT,
     False, True),
    ("a subject, and a name that is critical", replace(LEAF, name="x"), INTERMEDIATE, ROOT, False, None),
    ("the ID of the trust domain in the intermediate", LEAF, replace(INTERMEDIATE, san=_OF_DOMAIN), ROOT, False, True),
    ("the ID of a workload in the intermediate", LEAF, replace(INTERMEDIATE, san=uri(GATEWAY)), ROOT, False, False),
    ("the ID of a workload in the root", LEAF, INTERMEDIATE, replace(ROOT, san=uri(GATEWAY)), False, False),
    ("key usage keyAgreement as well", replace(LEAF, usage=("digital_signature", "key_agreement")), INTERMEDIATE, ROOT,
     False, True),
    ("key usage keyAgreement alone", replace(LEAF, usage=("key_agreement",)), INTERMEDIATE, ROOT, False, False),
    ("the leaf is a CA", replace(LEAF, ca=True), INTERMEDIATE, ROOT, False, False),
    ("the leaf has no basic constraints", replace(LEAF, ca=None), INTERMEDIATE, ROOT, False, True),
    ("an unknown critical extension in the leaf", replace(LEAF, unknown_critical=True), INTERMEDIATE, ROOT, False,
     False),
    ("an RSA leaf", replace(LEAF, key=_rsa), INTERMEDIATE, ROOT, False, False),
    ("a P-384 leaf", replace(LEAF, key=_p384), INTERMEDIATE, ROOT, False, False),
    ("an Ed25519 leaf", replace(LEAF, key=ed25519.Ed25519PrivateKey.generate), INTERMEDIATE, ROOT, False, False),
    ("a leaf signed with SHA-384", replace(LEAF, digest=hashes.SHA384()), INTERMEDIATE, ROOT, False, True),
    ("an RSA intermediate of 2,048 bits", LEAF, replace(INTERMEDIATE, key=_rsa), ROOT, False, None),
    ("a P-384 intermediate", LEAF, replace(INTERMEDIATE, key=_p384), ROOT, False, True),
    ("a P-384 root", LEAF, INTERMEDIATE, replace(ROOT, key=_p384, digest=hashes.SHA384()), False, True),
    ("an RSA root of 2,048 bits", LEAF, INTERMEDIATE, replace(ROOT, key=_rsa), False, None),
    ("an Ed25519 root", LEAF, replace(INTERMEDIATE, digest=None),
     replace(ROOT, key=ed25519.Ed25519PrivateKey.generate, digest=None), False, None),
    ("the intermediate is no CA", LEAF, replace(INTERMEDIATE, ca=False, depth=None), ROOT, False, False),
    ("the intermediate may not sign certificates", LEAF, replace(INTERMEDIATE, usage=("digital_signature",)), ROOT,
     False, False),
    ("the intermediate has no key usage", LEAF, replace(INTERMEDIATE, usage=None), ROOT, False, False),
    ("the intermediate has extended key usage clientAuth", LEAF, replace(INTERMEDIATE, eku=(CLIENT,)), ROOT, False,
     True),
    ("the intermediate has extended key usage codeSigning alone", LEAF, replace(INTERMEDIATE, eku=(CODE,)), ROOT, False,
     False),
    ("the root has a path length of 0", LEAF, INTERMEDIATE, replace(ROOT, depth=0), False, False),
    ("the root has no path length", LEAF, INTERMEDIATE, replace(ROOT, depth=None), False, True),
    ("the intermediate has a name constraint on URIs", LEAF, replace(INTERMEDIATE, constraints=_NAMED), ROOT, False,
     None),
    ("the intermediate has a name constraint on DNS names alone", LEAF, replace(INTERMEDIATE, constraints=_DNS_BOUND),
     ROOT, False, True),
    ("expired 59 s ago", replace(LEAF, end=-59), INTERMEDIATE, ROOT, False, True),
    ("expired 61 s ago", replace(LEAF, end=-61), INTERMEDIATE, ROOT, False, False),
    ("valid in 59 s", replace(LEAF, start=59), INTERMEDIATE, ROOT, False, True),
    ("valid in 61 s", replace(LEAF, start=61), INTERMEDIATE, ROOT, False, False),
    ("the intermediate expired 61 s ago", LEAF, replace(INTERMEDIATE, end=-61), ROOT, False, False),
    ("the root expired 59 s ago", LEAF, INTERMEDIATE, replace(ROOT, end=-59), False, None),
    ("the root expired 61 s ago", LEAF, INTERMEDIATE, replace(ROOT, end=-61), False, False),
]
_WORDS = {True: "accept", False: "refuse", None: "either"}


def chains(now: float) -> list[dict[str, Any]]:
    """One entry for each of `VERDICTS`, and some whose peculiarity is the chain's."""
    out = []
    for what, leaf, intermediate, root, shown, accepted in VERDICTS:
        top = make(root, None, now)
        middle = make(intermediate, top, now) if intermediate else top
        chain = [make(leaf, middle, now).der, *([middle.der] if intermediate else []), *([top.der] if shown else [])]
        out.append(_entry(what, chain, top.der, accepted))
    first, other = make(ROOT, None, now), make(ROOT, None, now)
    issuer = make(INTERMEDIATE, first, now)
    end = make(LEAF, issuer, now).der
    out += [
        _entry("the intermediate is missing", [end], first.der, False),
        _entry("the root is another of the same name", [end, issuer.der], other.der, False),
        _entry("a certificate that the path does not need", [end, issuer.der, other.der], first.der, False),
        _entry("the wrong order", [issuer.der, end], first.der, False),
        _entry("a certificate twice", [end, issuer.der, issuer.der], first.der, False),
        _entry("a byte behind the leaf", [end + b"\0", issuer.der], first.der, False),
        _entry("no certificate", [], first.der, False),
    ]
    two = ("two intermediates", 1, True), ("two intermediates where one is allowed", 0, False)
    for what, depth, accepted in two:
        top = make(replace(ROOT, depth=None), None, now)
        upper = make(replace(INTERMEDIATE, name="field.example upper", depth=depth), top, now)
        lower = make(INTERMEDIATE, upper, now)
        out.append(_entry(what, [make(LEAF, lower, now).der, lower.der, upper.der], top.der, accepted))
    return out


def _entry(what: str, chain: list[bytes], root: bytes, accepted: bool | None) -> dict[str, Any]:
    return {"what": what, "chain": [one.hex() for one in chain], "root": root.hex(), "verdict": _WORDS[accepted]}
