"""The signed revocation list: which enrolments are over for good, and which certificates nobody may believe any more.

A gateway signs it, hops carry it, edges and hops refuse gateways by it, and a gateway whose memory is older than the
list (one that was restored) learns from it. It names nobody: an enrolment number tells a hop nothing. docs/SPEC.md
section 8.5.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from transport.errors import IdentityExpired, IdentityRefused
from transport.identity.join import signed_input
from transport.identity.svid import CERTIFICATE_MAX, CHAIN_MAX, Svid, TrustBundle
from transport.identity.verify import LEEWAY_S, VerifiedPeer, verify_svid
from transport.primitives import sha256

LIST_MAX: Final = 12_000  # bytes with signature and chain: one message of a session, one body by HTTPS
ENROLMENTS_MAX: Final = 1_700
SERIALS_MAX: Final = 64
FRESH_S: Final = 3_600  # from this update to the next, at the latest
SIGNER_ROLE: Final = "authority"  # nobody can join under it
SIGNER_PATH: Final = "/authority/revocation"
_ISSUERS_MAX: Final = 2  # intermediate and root
LABEL: Final = b"Causeway 1 revocation list"

_Number = Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
_Serial = Annotated[bytes, Meta(min_length=1, max_length=20)]


class _Content(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is signed. Times in unix seconds; both arrays ascend."""

    version: Annotated[int, Meta(ge=1, le=1)]
    trust_domain: Annotated[str, Meta(max_length=255)]
    sequence: _Number
    this_update: _Number
    next_update: _Number
    enrolments: Annotated[list[_Number], Meta(max_length=ENROLMENTS_MAX)]
    serials: Annotated[list[_Serial], Meta(max_length=SERIALS_MAX)]


class _Signed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    content: Annotated[bytes, Meta(min_length=1, max_length=LIST_MAX)]
    chain: Annotated[
        list[Annotated[bytes, Meta(min_length=1, max_length=CERTIFICATE_MAX)]], Meta(min_length=1, max_length=CHAIN_MAX)
    ]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


_encoder = msgspec.msgpack.Encoder()
_contents = msgspec.msgpack.Decoder(_Content)
_signed = msgspec.msgpack.Decoder(_Signed)


@dataclass(frozen=True)
class RevocationList:
    """A list that was believed. `data` is what travels; an empty one, sequence 0, stands for never having seen any."""

    sequence: int = 0
    this_update: int = 0
    next_update: int = 0
    enrolments: frozenset[int] = frozenset()
    serials: frozenset[int] = frozenset()
    data: bytes = field(default=b"", repr=False)

    def check(self, peer: VerifiedPeer) -> None:
        """Raises IdentityRefused if a certificate of the peer's path is on the list."""
        if not self.serials.isdisjoint((peer.serial, *peer.issuers)):
            raise IdentityRefused(
                "the peer's certificate was revoked", rule="revoked",
                hint="a gateway that was taken out of service answers here; try another way",
            )

    def stale(self, now: float) -> bool:
        """Whether a newer one is due. It is enforced all the same."""
        return bool(self.sequence) and now > self.next_update


def sign_list(
    signer: Svid, sequence: int, enrolments: Iterable[int], serials: Iterable[int], *, now: float
) -> RevocationList:
    """A new list of `now` (unix seconds). `enrolments` newest last: above the limit the first are left out."""
    kept = sorted(list(enrolments)[-ENROLMENTS_MAX:])
    listed = sorted(serial.to_bytes((serial.bit_length() + 7) // 8, "big") for serial in serials)[-SERIALS_MAX:]
    content = _encoder.encode(_Content(
        1, signer.id.trust_domain, sequence, int(now), int(now) + FRESH_S, kept, listed
    ))
    signature = signer.key.sign(signed_input(LABEL, sha256(content), sha256(signer.chain[0])))
    return _believed(_contents.decode(content), _encoder.encode(_Signed(content, list(signer.chain), signature)))


def read_list(data: bytes, bundle: TrustBundle, *, now: float, held: RevocationList) -> RevocationList:
    """The list in `data`, if it is newer than the one held; the one held, if that has the same sequence number.

    Verified as section 8.5 says: form, the signer's chain by `bundle` at `now` (unix seconds, 60 s of leeway) and by
    the list held, signature, trust domain. Raises IdentityRefused, whose rule is "revocation list rollback" for an
    older one.
    """
    content, peer = _verified(data, bundle, now)
    held.check(peer)
    if content.sequence == held.sequence:
        return held
    if content.sequence < held.sequence or content.this_update < held.this_update:
        raise IdentityRefused(
            "the revocation list is older than the one held", rule="revocation list rollback",
            hint="the gateway was perhaps restored from a backup, or somebody replays an old list",
        )
    return _believed(content, data)


def stored_list(data: bytes) -> RevocationList:
    """One that was believed before and kept where nobody else writes. Raises IdentityRefused if it cannot be read."""
    return _believed(_contents_of(data)[1], data)


def read_carried(data: bytes, bundle: TrustBundle, *, now: float, held: RevocationList) -> RevocationList:
    """A list of any age, as evidence of what has ended once: its signer's chain need have been good then only.

    Raises IdentityRefused.
    """
    content, peer = _verified(data, bundle, min(now, _contents_of(data)[1].this_update))
    held.check(peer)
    return _believed(content, data)


def _contents_of(data: bytes) -> tuple[_Signed, _Content]:
    try:
        if len(data) > LIST_MAX:
            raise ValueError
        signed = _signed.decode(data)
        content = _contents.decode(signed.content)
        for value, encoded in ((signed, data), (content, signed.content)):
            if _encoder.encode(value) != encoded:
                raise ValueError
        for numbers in (content.enrolments, content.serials):
            if sorted(set(numbers)) != numbers:  # type: ignore[type-var]
                raise ValueError
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise IdentityRefused("the revocation list cannot be read", rule="revocation list form") from None
    return signed, content


def _verified(data: bytes, bundle: TrustBundle, now: float) -> tuple[_Content, VerifiedPeer]:
    signed, content = _contents_of(data)
    peer = verify_svid(signed.chain, bundle, role=SIGNER_ROLE, now=now)
    # A gateway's own intermediate signs the signer. What is further down is no gateway's: SPIRE's, below the same root.
    if peer.id.path != SIGNER_PATH or len(peer.issuers) > _ISSUERS_MAX or content.trust_domain != bundle.trust_domain:
        raise IdentityRefused("the revocation list is not signed by who may", rule="revocation list signer")
    peer.key.verify(signed.signature, signed_input(LABEL, sha256(signed.content), peer.leaf_sha256))
    if content.this_update > now + LEEWAY_S:
        raise IdentityExpired(
            "the revocation list is from the future", rule="revocation list time", hint="is a clock wrong?"
        )
    return content, peer


def _believed(content: _Content, data: bytes) -> RevocationList:
    return RevocationList(
        content.sequence, content.this_update, content.next_update, frozenset(content.enrolments),
        frozenset(int.from_bytes(serial, "big") for serial in content.serials), data,
    )
