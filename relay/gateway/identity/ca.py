"""The embedded certificate authority: a sealed root that signs intermediates, an online intermediate that signs SVIDs.

A serving gateway opens the intermediate only. The root's key has a passphrase of its own and is used a few times a
year, so that a compromise of the serving host ends when its intermediate does. There are no URI name constraints: path
verification in common libraries refuses every chain that has them.
"""

import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.gateway.errors import AuthorityExpired, ConfigError, KeysUnavailable, SetupRefused
from relay.gateway.identity.custody import SOFTWARE, Custody, Result, aside, certificate_key
from store.errors import StoreCorrupt, StoreMissing
from store.files import write_private
from store.keys import HeldKey, Unlock
from store.sealed import open_file, seal_file
from transport.identity.svid import CERTIFICATE_MAX, SpiffeId, Svid, TrustBundle
from transport.primitives import Signer, SigningKey, VerifyKey, random_bytes, same_bytes

ROOT_FILE: Final = "root.sealed"
ROOT_CERTIFICATE_FILE: Final = "root.pem"
INTERMEDIATE_FILE: Final = "intermediate.sealed"

ROOT_LIFETIME_S: Final = 3650 * 86_400
INTERMEDIATE_LIFETIME_S: Final = 30 * 86_400
SVID_LIFETIME_S: Final = 3_600  # notBefore to notAfter, so 55 minutes from issue
DAY_S: Final = 86_400
BACKDATE_S: Final = 300  # for clocks that are behind
ROOT_DEPTH: Final = 2  # intermediates below a root: what SPIRE has, and its own; roots of before had 1
ORGANISATION: Final = "Causeway"  # in the names of authorities that are made here, and of no others

ROOT_PURPOSE: Final = "causeway gateway root"
INTERMEDIATE_PURPOSE: Final = "causeway gateway intermediate"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lifetimes:
    """The longest that certificates may live, in seconds from notBefore to notAfter; new ones are made for that."""

    svid_s: int = SVID_LIFETIME_S
    intermediate_s: int = INTERMEDIATE_LIFETIME_S
    root_s: int = ROOT_LIFETIME_S


LIFETIMES: Final = Lifetimes()


class SealedAuthority(msgspec.Struct, forbid_unknown_fields=True):
    """What a sealed file of an authority holds. `key` is what its custody keeps; `roots` and `sequence` are the trust
    bundle.
    """

    trust_domain: str
    key: bytes
    certificate: bytes
    roots: list[bytes]
    sequence: int

    def __repr__(self) -> str:  # it holds the key
        return "<SealedAuthority>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


@dataclass(frozen=True)
class Issued:
    """A certificate just issued: chain (DER, leaf and intermediate), validity in unix seconds."""

    id: SpiffeId
    chain: tuple[bytes, ...]
    serial: int
    not_before: float
    not_after: float


def create_authority(
    directory: Path, trust_domain: str, *, passphrase: Unlock, root_passphrase: Unlock, now: float,
    lifetimes: Lifetimes = LIFETIMES, custody: Custody = SOFTWARE,
) -> bytes:
    """Makes root and first intermediate in `directory`; returns the root certificate (DER). What a held key unlocks
    needs no passphrase.

    Raises SetupRefused if both passphrases are the same, BadInput for a bad trust domain, StoreError.
    """
    SpiffeId(trust_domain, "/gateway/check")
    by_people = not isinstance(passphrase, HeldKey) and not isinstance(root_passphrase, HeldKey)
    if by_people and same_bytes(passphrase.expose(), root_passphrase.expose()):
        raise SetupRefused(
            "root and gateway need different passphrases",
            hint="the gateway's is on the serving host; the root's is kept away from it",
        )
    key, root = make_root(trust_domain, now=now, lifetimes=lifetimes, custody=custody)
    held = SealedAuthority(trust_domain, key, root, [root], 1)
    seal(directory / ROOT_FILE, held, root_passphrase, ROOT_PURPOSE)
    write_private(directory / ROOT_CERTIFICATE_FILE, [pem_of(root)], replace=False)
    renew_intermediate(
        directory, passphrase=passphrase, root_passphrase=root_passphrase, now=now, lifetimes=lifetimes,
        custody=custody,
    )
    return root


def renew_intermediate(
    directory: Path, *, passphrase: Unlock, root_passphrase: Unlock, now: float,
    lifetimes: Lifetimes = LIFETIMES, custody: Custody = SOFTWARE,
) -> float:
    """Signs a new intermediate with the sealed root and replaces the online one; returns its end (unix seconds).

    Raises WrongKey, StoreMissing, StoreCorrupt; AuthorityExpired if the root has run out.
    """
    held = unseal(directory / ROOT_FILE, root_passphrase, ROOT_PURPOSE)
    try:  # whichever of the two files a rotation that was cut off has reached
        held_online = unseal(directory / INTERMEDIATE_FILE, passphrase, INTERMEDIATE_PURPOSE)
    except (StoreMissing, StoreCorrupt):
        held_online = held
    latest = max(held, held_online, key=lambda one: one.sequence)
    online = sign_intermediate(held, latest.roots, latest.sequence, now=now, lifetimes=lifetimes, custody=custody)
    seal(directory / INTERMEDIATE_FILE, online, passphrase, INTERMEDIATE_PURPOSE)
    return x509.load_der_x509_certificate(online.certificate).not_valid_after_utc.timestamp()


def make_root(
    trust_domain: str, *, now: float, lifetimes: Lifetimes, custody: Custody = SOFTWARE
) -> tuple[bytes, bytes]:
    """A new key, as its custody keeps it, and its certificate (DER)."""
    (key, kept), name = custody.make("root"), _name(trust_domain, "root")
    certificate = _authority(
        trust_domain, name, name, key.public, key, depth=ROOT_DEPTH, now=now, lifetime=lifetimes.root_s
    )
    return kept, _der(certificate)


def sign_intermediate(
    root: SealedAuthority, roots: list[bytes], sequence: int, *, now: float, lifetimes: Lifetimes,
    custody: Custody = SOFTWARE,
) -> SealedAuthority:
    """A new intermediate of `root`, with a bundle. Raises AuthorityExpired if the root has run out."""
    key, kept = custody.make("intermediate")
    made = certify(root, key.public, "intermediate", 0, now=now, lifetimes=lifetimes, custody=custody)
    return SealedAuthority(root.trust_domain, kept, made, roots, sequence)


def certify(
    root: SealedAuthority, key: VerifyKey, kind: str, depth: int, *, now: float, lifetimes: Lifetimes,
    custody: Custody = SOFTWARE,
) -> bytes:
    """A certificate (DER) of an authority under `root`, with at most `depth` more below it, as long as intermediates
    live. Raises AuthorityExpired if the root has run out.
    """
    certificate = x509.load_der_x509_certificate(root.certificate)
    end = certificate.not_valid_after_utc.timestamp()
    if now > end:
        raise AuthorityExpired("the root certificate has expired", hint="make a new trust domain, or set the clock")
    return _der(_authority(
        root.trust_domain, _name(root.trust_domain, kind), certificate.subject, key, custody.open(root.key),
        depth=depth, now=now, lifetime=min(lifetimes.intermediate_s, int(end - now) + BACKDATE_S),
    ))


class Authority:
    """The online intermediate: issues SVIDs of one trust domain. Who may have one is for `enrolment` to say."""

    def __init__(
        self, held: SealedAuthority, lifetimes: Lifetimes = LIFETIMES, custody: Custody = SOFTWARE
    ) -> None:
        """Use `open`."""
        self._lifetimes = lifetimes
        self._key = custody.open(held.key)
        self._certificate = x509.load_der_x509_certificate(held.certificate)
        self._der = held.certificate
        self.trust_domain = held.trust_domain
        self.bundle = TrustBundle(held.trust_domain, tuple(held.roots), held.sequence)
        self.serial = self._certificate.serial_number
        self.not_after = self._certificate.not_valid_after_utc.timestamp()
        self.root = self._root_in(self.bundle)  # what invitations name

    @classmethod
    def open(
        cls, directory: Path, passphrase: Unlock, lifetimes: Lifetimes = LIFETIMES, *, custody: Custody = SOFTWARE
    ) -> "Authority":
        """Raises ConfigError if a certificate lives longer than it may, WrongKey, StoreMissing, StoreCorrupt."""
        held = unseal(directory / INTERMEDIATE_FILE, passphrase, INTERMEDIATE_PURPOSE)
        _check_lifetime("intermediate", held.certificate, lifetimes.intermediate_s)
        for root in held.roots:
            _check_lifetime("root", root, lifetimes.root_s)
        return cls(held, lifetimes, custody)

    def trust(self, bundle: TrustBundle) -> None:
        """Takes another bundle of this trust domain. Raises ConfigError if no root of it has signed the intermediate:
        what is issued here would be believed by nobody.
        """
        self.root = self._root_in(bundle)
        self.bundle = bundle

    def _root_in(self, bundle: TrustBundle) -> bytes:
        for der in bundle.roots:
            if bundle.trust_domain == self.trust_domain and _issued_by(self._certificate, der):
                return der
        raise ConfigError(
            "identity: no root of the trust bundle has signed this gateway's intermediate",
            hint="one root signs it and what SPIRE has: `relay gateway rotate-key upstream` makes that (docs/SPIRE.md)",
        )

    @property
    def is_slow(self) -> bool:
        """Whether `issue` would hold up the event loop: then it is for `issue_aside` alone."""
        return self._key.slow

    async def issue_aside(
        self, identity: SpiffeId, key: VerifyKey, *, now: float, lifetime_s: int | None = None
    ) -> Issued:
        """`issue`, in a thread if the key is one that takes long to sign."""
        return await self.aside(lambda: self.issue(identity, key, now=now, lifetime_s=lifetime_s))

    def try_key(self) -> None:
        """Signs nothing that means anything. Raises KeysUnavailable if whoever holds the key does not do it."""
        self._key.sign(b"causeway: is this key there?")

    async def aside(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, which issues something: in a thread if the key is one that takes long to sign."""
        return await aside(self._key, work)

    def issue(self, identity: SpiffeId, key: VerifyKey, *, now: float, lifetime_s: int | None = None) -> Issued:
        """An X.509-SVID (X509-SVID sections 2 to 4) for `key`, valid from 5 minutes ago for at most an hour in all.

        `lifetime_s`, from notBefore, makes it shorter. It never outlives the intermediate. Raises AuthorityExpired once
        that has less than a minute left.
        """
        if identity.trust_domain != self.trust_domain or not identity.name:
            raise SetupRefused("an SVID needs an ID of this trust domain, of the form role/name")
        start = now - BACKDATE_S
        longest = self._lifetimes.svid_s
        end = min(start + (longest if lifetime_s is None else min(lifetime_s, longest)), self.not_after)
        if end < now + 60:
            raise AuthorityExpired(
                "the gateway's intermediate certificate has expired",
                hint="run `relay gateway rotate-key` with the root's passphrase, or set the clock",
            )
        serial = x509.random_serial_number()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(serialization.load_der_public_key(key.spki))  # type: ignore[arg-type]  # P-256 by its type
            .serial_number(serial)
            .not_valid_before(_when(start))
            .not_valid_after(_when(end))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._certificate.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
        )
        leaf = _der(builder.sign(certificate_key(self._key), hashes.SHA256()))
        if len(leaf) > CERTIFICATE_MAX:
            raise SetupRefused(f"the certificate would be over {CERTIFICATE_MAX} bytes", hint="use a shorter name")
        return Issued(identity, (leaf, self._der), serial, float(int(start)), float(int(end)))


def root_ends(authority: Authority) -> list[float]:
    """When the bundle's roots end (unix seconds): first the one in use, then those that are published beside it."""
    ends = {der: x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() for der in authority.bundle.roots}
    return [ends.pop(authority.root), *ends.values()]


class OwnIdentity:
    """The gateway's own SVID, in memory alone; renewed when half of what was left of it at issue has passed."""

    def __init__(self, authority: Authority, name: str, *, clock: Callable[[], float] = time.time) -> None:
        self._authority = authority
        self._id = SpiffeId(authority.trust_domain, f"/gateway/{name}")
        self._clock = clock
        self._renew_at = 0.0
        self._svid = self._renew()

    def svid(self) -> Svid:
        """The current SVID. Once the intermediate has run out the last one is kept; peers then see it expire."""
        if self._clock() >= self._renew_at and not self._authority.is_slow:  # else `tend` sees to it
            try:
                self._svid = self._renew()
            except AuthorityExpired:
                self._renew_at = self._clock() + 60
        return self._svid

    async def tend(self) -> None:
        """Renews what is due. To be awaited now and then: with a slow signer this alone does it, in a thread."""
        if self._clock() >= self._renew_at:
            try:
                self._svid = await self._authority.aside(self._renew)
            except (AuthorityExpired, KeysUnavailable) as error:
                _log.error("the gateway's own identity is not renewed: %s", error)
                self._renew_at = self._clock() + 60

    @property
    def renew_in(self) -> float:
        """Seconds until `svid` makes a new one; at least 1."""
        return max(1.0, self._renew_at - self._clock())

    def _renew(self) -> Svid:
        now = self._clock()
        key = SigningKey.generate()
        issued = self._authority.issue(self._id, key.public, now=now)
        self._renew_at = now + (issued.not_after - now) / 2
        return Svid(issued.id, issued.chain, key, issued.not_before, issued.not_after)


def _check_lifetime(kind: str, der: bytes, longest: int) -> None:
    certificate = x509.load_der_x509_certificate(der)
    lives = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()
    if lives > longest:
        raise ConfigError(
            f"identity.{kind}_max_days: a certificate of this gateway lives {lives / DAY_S:g} days",
            hint=f"run `relay gateway rotate-key {kind}` for a new one, or allow it that long",
        )


def _issued_by(certificate: x509.Certificate, der: bytes) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(der))
    except (InvalidSignature, ValueError):  # another key; another name
        return False
    return True


def sealed_path(path: Path, unlocks: Unlock) -> Path:
    """Where an authority is under a held key: beside what a passphrase opens, so that a change from one to the other
    can be cut off anywhere.
    """
    return path.with_suffix(".held") if isinstance(unlocks, HeldKey) else path


def seal(path: Path, held: SealedAuthority, passphrase: Unlock, purpose: str) -> None:
    seal_file(sealed_path(path, passphrase), msgspec.msgpack.encode(held), passphrase, purpose=purpose)


def unseal(path: Path, passphrase: Unlock, purpose: str) -> SealedAuthority:
    plaintext = open_file(sealed_path(path, passphrase), passphrase, purpose=purpose)
    try:
        return msgspec.msgpack.decode(plaintext, type=SealedAuthority)
    except msgspec.MsgspecError:
        raise StoreCorrupt("a sealed authority is of an unknown form", hint="restore it from a backup") from None


def _name(trust_domain: str, kind: str) -> x509.Name:
    # The random part keeps two authorities of one trust domain apart; names of theirs are at most 64 characters.
    return x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
        x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain[:36]} {kind} {random_bytes(4).hex()}"),
    ])


def _authority(
    trust_domain: str, subject: x509.Name, issuer: x509.Name, key: VerifyKey, signer: Signer, *, depth: int,
    now: float, lifetime: int,
) -> x509.Certificate:
    """A CA certificate; as an SVID of the trust domain itself it has a SPIFFE ID without path (X509-SVID 3.2)."""
    public = serialization.load_der_public_key(key.spki)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_when(now - BACKDATE_S))
        .not_valid_after(_when(now - BACKDATE_S + lifetime))
        .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(certificate_key(signer).public_key()), critical=False
        )
        .sign(certificate_key(signer), hashes.SHA256())
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=not sign, crl_sign=not sign, encipher_only=False, decipher_only=False,
    )


def _when(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def serial_of(der: bytes) -> tuple[int, float]:
    """A certificate's serial number and its end (unix seconds)."""
    certificate = x509.load_der_x509_certificate(der)
    return certificate.serial_number, certificate.not_valid_after_utc.timestamp()


def pem_ends(data: bytes) -> float:
    """When the first of the certificates in a PEM file ends, unix seconds. Raises ValueError."""
    return min(one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(data))


def pem_of(der: bytes) -> bytes:
    """A certificate for people and their tools."""
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
