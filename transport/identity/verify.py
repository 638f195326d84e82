"""Whether a certificate chain is an SVID to believe, and if not, which rule it breaks.

Pure: `now` comes in. The library builds and checks the path; what it does not call by its name ("candidates exhausted")
is looked for afterwards, so that every refusal says what to mend. Only the path is cached, and our own roots as parsed:
expiry and role are checked each time, and the cache key covers the bundle, so a root that is taken out refuses at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from transport.errors import IdentityExpired, IdentityRefused
from transport.identity.rules import check_authority_rules, check_leaf_rules
from transport.identity.svid import CHAIN_MAX, SpiffeId, TrustBundle, key_of, load_certificate
from transport.primitives import VerifyKey, sha256

LEEWAY_S: Final = 60.0
CACHE_ENTRIES: Final = 512


@dataclass(frozen=True)
class VerifiedPeer:
    """What a believed chain says. Times are unix seconds and hold for the whole path, not only for the leaf."""

    id: SpiffeId
    key: VerifyKey
    leaf_sha256: bytes
    serial: int
    not_before: float
    not_after: float
    issuers: tuple[int, ...] = ()  # serial numbers of the other certificates of the path, where that was built here
    leaf: bytes = field(default=b"", repr=False)  # DER; empty where nobody was verified


class SvidVerifier:
    """`verify_svid` with a cache of path validations: at most `CACHE_ENTRIES`, least recently used out first."""

    def __init__(self) -> None:
        self._paths: OrderedDict[bytes, VerifiedPeer] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, chain: Sequence[bytes], bundle: TrustBundle, *, role: str, now: float) -> VerifiedPeer:
        """See `verify_svid`."""
        if not 1 <= len(chain) <= CHAIN_MAX:
            raise IdentityRefused("the certificate chain has the wrong length", rule="chain length")
        key = _cache_key(chain, bundle)
        with self._lock:
            peer = self._paths.get(key)
            if peer is not None:
                self._paths.move_to_end(key)
        if peer is None or not _current(peer, now):  # another root may still carry a path whose first root ran out
            peer = _validate_path(chain, bundle, now)
            with self._lock:
                self._paths[key] = peer
                while len(self._paths) > CACHE_ENTRIES:
                    self._paths.popitem(last=False)
        _check_times(peer, now)
        _check_role(peer.id, (role,))
        return peer


_verifier = SvidVerifier()


def verify_svid(chain: Sequence[bytes], bundle: TrustBundle, *, role: str, now: float) -> VerifiedPeer:
    """Verifies an X.509-SVID (X509-SVID section 5; RFC 5280 section 6): DER, leaf first, then intermediates.

    A root at the end is ignored if it is in the bundle. `role` must equal the ID's first path segment; `now` is unix
    seconds, with 60 s of leeway. At most 3 certificates of 2,048 bytes. Raises IdentityRefused, which names the broken
    rule, and IdentityExpired for a good path outside its validity.
    """
    return _verifier.verify(chain, bundle, role=role, now=now)


def check_leaf(der: bytes, trust_domain: str, roles: Collection[str]) -> VerifiedPeer:
    """An SVID's rules for the leaf alone, where TLS has verified path and validity. Raises IdentityRefused."""
    leaf = load_certificate(der)
    try:
        identity = check_leaf_rules(leaf, trust_domain)
        peer = VerifiedPeer(
            identity, key_of(leaf), sha256(der), leaf.serial_number,
            leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp(), leaf=der,
        )
    except IdentityRefused:
        raise
    except Exception:  # as in _validate_path
        raise IdentityRefused("a certificate cannot be read", rule="encoding") from None
    _check_role(identity, roles)
    return peer


def _check_role(identity: SpiffeId, roles: Collection[str]) -> None:
    if identity.role not in roles:
        raise IdentityRefused(
            f"the peer's identity is not one of role {' or '.join(sorted(roles))}", rule="role",
            hint="something else answers at this address, or an identity is used for what it was not made for",
        )


def _cache_key(chain: Sequence[bytes], bundle: TrustBundle) -> bytes:
    parts = [sha256(der) for der in chain]
    roots = [sha256(der) for der in bundle.roots]
    head = f"{len(parts)} {len(roots)} {bundle.sequence} {bundle.trust_domain}".encode()
    return sha256(*parts, *roots, head)


def _current(peer: VerifiedPeer, now: float) -> bool:
    return peer.not_before - LEEWAY_S <= now <= peer.not_after + LEEWAY_S


def _check_times(peer: VerifiedPeer, now: float) -> None:
    if now < peer.not_before - LEEWAY_S:
        raise clock_error(peer.id.role, late=False, when=peer.not_before, now=now)
    if now > peer.not_after + LEEWAY_S:
        raise clock_error(peer.id.role, late=True, when=peer.not_after, now=now)


def issuer_of(leaf: x509.Certificate) -> str:
    """The organisation that a leaf's issuer is named after, "" if none: whose authority has signed it.

    A verified path holds a leaf's issuer to the subject of the certificate above, so the leaf cannot lie about it.
    """
    named = leaf.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(named[0].value) if named else ""


def clock_error(role: str, *, late: bool, when: float | None = None, now: float | None = None) -> IdentityExpired:
    """A peer of `role` is outside its validity: `late` after its end, else before its start, which is `when`.

    The hint says whose clock is probably wrong. A gateway issues every identity, its own too, and renews that each half
    hour; a device takes an identity that has run out by its own clock to renewal, and does not show it.
    """
    if role == "gateway":
        whose = (
            "the clock here is probably ahead, unless the gateway's own authority has run out"
            if late else "the clock here is probably behind, unless the gateway's is ahead"
        )
    else:
        whose = (
            "the peer's clock is probably behind: it takes its identity for a valid one"
            if late else "the clock here was probably set back since the identity was issued here"
        )
    known = "" if when is None or now is None else (
        f"; {'it ended' if late else 'it begins'} at {_stamp(when)}, the clock here says {_stamp(now)}"
    )
    if late:
        return IdentityExpired("the peer's identity has expired", rule="expired", hint=whose + known)
    return IdentityExpired("the peer's identity is not valid yet", rule="not yet valid", hint=whose + known)


def check_floor(signed: float, now: float) -> None:
    """Raises IdentityExpired (rule "clock") where `now` is before a time that the gateway has signed: `signed`, the
    start of this device's own latest identity. A clock that was set back would make a stolen old key good again.
    """
    if now < signed - LEEWAY_S:
        raise IdentityExpired(
            "the clock of this device is behind", rule="clock",
            hint=f"it says {_stamp(now)}, but the gateway has signed at {_stamp(signed)}: set the clock",
        )


def _stamp(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _validate_path(chain: Sequence[bytes], bundle: TrustBundle, now: float) -> VerifiedPeer:
    certificates, roots = [load_certificate(der) for der in chain], _parsed(bundle.roots)
    try:
        return _checked(certificates, roots, chain, bundle, now)
    except IdentityRefused:
        raise
    except Exception:  # extension values are parsed when they are looked at; hostile ones raise anything
        raise IdentityRefused("a certificate cannot be read", rule="encoding") from None


@lru_cache(maxsize=16)  # parsing a root is a sixth of checking a leaf by it
def _parsed(roots: tuple[bytes, ...]) -> list[x509.Certificate]:
    return [load_certificate(der) for der in roots]


def _checked(
    certificates: list[x509.Certificate], roots: list[x509.Certificate], chain: Sequence[bytes], bundle: TrustBundle,
    now: float,
) -> VerifiedPeer:
    leaf = certificates[0]
    identity = check_leaf_rules(leaf, bundle.trust_domain)
    key = key_of(leaf)
    if len(chain) > 1 and chain[-1] in bundle.roots:
        certificates = certificates[:-1]
    start = max(one.not_valid_before_utc for one in certificates)
    end = min(one.not_valid_after_utc for one in certificates)
    # Validity is judged with leeway by the caller, every time; the path is built at the nearest moment they all share.
    moment = min(max(_datetime(now), start), end)
    verifier = (
        verification.PolicyBuilder().store(verification.Store(roots)).time(moment.replace(tzinfo=None))
        .max_chain_depth(CHAIN_MAX - 1).build_client_verifier()
    ) if roots else None
    try:
        path = verifier.verify(leaf, certificates[1:]).chain if verifier else []
    except verification.VerificationError:
        path = []
    # Nothing may ride along that the path does not need.
    if start > end or path[:-1] != certificates or not _covers(path[-1], moment):
        raise _what_is_wrong(certificates, roots, moment, now)
    for authority in path[1:]:
        check_authority_rules(authority)
    return VerifiedPeer(
        identity, key, sha256(chain[0]), leaf.serial_number,
        max(one.not_valid_before_utc for one in path).timestamp(),
        min(one.not_valid_after_utc for one in path).timestamp(),
        tuple(one.serial_number for one in path[1:]), chain[0],
    )


def _covers(certificate: x509.Certificate, moment: datetime) -> bool:
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _what_is_wrong(
    certificates: list[x509.Certificate], roots: list[x509.Certificate], moment: datetime, now: float
) -> IdentityRefused:
    """The rule that a path breaks, which the library does not call by its name. Names are slow to read: only now."""
    for child, parent in pairwise(certificates):
        if child.issuer != parent.subject:
            return IdentityRefused("the certificates do not follow each other", rule="chain order")
    issuers = [root for root in roots if root.subject == certificates[-1].issuer]
    if not issuers:
        return IdentityRefused(
            "the chain does not lead to a root of the trust bundle", rule="root",
            hint="an intermediate certificate is missing, the peer is of another trust domain, or the bundle is old",
        )
    if not all(_covers(one, moment) for one in certificates):
        return IdentityRefused("the certificates are never valid together", rule="validity")
    if not any(_covers(root, moment) for root in issuers):
        return IdentityExpired(
            "the root certificate is outside its validity", rule="root expired",
            hint=f"the trust bundle here is too old, or a clock is wrong; the clock here says {_stamp(now)}",
        )
    root = next((one for one in issuers if _signed(certificates[-1], one)), issuers[0])  # roots may share a name
    return IdentityRefused("the certificate path is not valid", rule=_broken_rule([*certificates, root]))


def _broken_rule(path: list[x509.Certificate]) -> str:
    """RFC 5280 section 6 and the profile of the library, as far as they have names; leaf first, root last."""
    for below, (child, parent) in enumerate(pairwise(path)):
        try:
            check_authority_rules(parent)
        except IdentityRefused as refusal:
            return refusal.rule
        if not _signed(child, parent):
            return "certificate signature"
        basic = parent.extensions.get_extension_for_class(x509.BasicConstraints).value
        if basic.path_length is not None and basic.path_length < below:
            return "path length"
    for certificate in path[:-1]:
        kinds = {one.oid: one for one in certificate.extensions}
        extended = kinds.get(x509.ExtendedKeyUsage.oid)
        if extended is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in extended.value:
            return "extended key usage"
        if any(one.critical and isinstance(one.value, x509.UnrecognizedExtension) for one in kinds.values()):
            return "critical extension"
        if x509.NameConstraints.oid in kinds:
            return "name constraints"
    leaf = path[0].extensions
    if x509.AuthorityKeyIdentifier.oid not in {one.oid for one in leaf}:
        return "authority key identifier"
    if path[0].subject and leaf.get_extension_for_class(x509.SubjectAlternativeName).critical:
        return "SAN critical"
    return "path"


def _signed(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _datetime(now: float) -> datetime:
    return datetime.fromtimestamp(min(max(now, 0.0), 253402300799.0), UTC)  # until the end of the year 9999
