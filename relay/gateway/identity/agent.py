"""A gateway whose own SVID and trust bundle come from a SPIFFE agent, and what it makes of others' that do.

Its intermediate, which signs for devices that no agent reaches, stays under a root of that same bundle. The bundle has
a number of our own, for agents tell none: new for each change, never lower, not even after a restore.
"""

from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

import msgspec

from relay.gateway.identity.ca import ORGANISATION, Authority
from store.files import write_private
from transport.errors import IdentityRefused
from transport.identity.source import SVID_MAX_S
from transport.identity.svid import Svid, TrustBundle, load_certificate
from transport.identity.verify import VerifiedPeer, issuer_of
from transport.primitives import sha256

SOURCE: Final = "spire"
NUMBER_FILE: Final = "bundle-number.json"  # in no backup: a restored gateway begins above all that was told before


class GatewayIdentity(Protocol):
    """Where a gateway's own SVID comes from."""

    def svid(self) -> Svid:
        """The one to show now."""


class _Number(msgspec.Struct, forbid_unknown_fields=True):
    sequence: int
    roots: str  # SHA-256 over those of the bundle with this number


def numbered(directory: Path, bundle: TrustBundle, *, above: int, now: float) -> TrustBundle:
    """The bundle with its number, which is kept in `directory`: that of last time for the same roots, else the time in
    unix seconds, or one more than the last and than `above`.

    Raises StoreError.
    """
    path, roots = directory / NUMBER_FILE, sha256(*sorted(map(sha256, bundle.roots))).hex()
    try:
        last = msgspec.json.decode(path.read_bytes(), type=_Number)
    except (OSError, msgspec.MsgspecError):
        last = _Number(0, "")
    if last.roots != roots or last.sequence < above:
        last = _Number(max(int(now), last.sequence + 1, above + 1), roots)
        write_private(path, [msgspec.json.encode(last)], replace=True)
    return TrustBundle(bundle.trust_domain, bundle.roots, last.sequence)


def follow(authority: Authority, directory: Path, bundle: TrustBundle, *, now: float) -> None:
    """Makes an agent's bundle the authority's. Raises ConfigError as `Authority.trust`, StoreError."""
    authority.trust(numbered(directory, bundle, above=authority.bundle.sequence, now=now))


def from_spire(peer: VerifiedPeer) -> str:
    """The source of a verified certificate that is not on record here: "spire", unless an authority made by a gateway
    has signed it, which only issues what is on record.

    Raises IdentityRefused (rule "lifetime") for one that lives longer than an hour.
    """
    return _source(peer.leaf) if peer.leaf else ""


@lru_cache(maxsize=512)  # asked for each request; reading a name takes as long as half a signature
def _source(der: bytes) -> str:
    leaf = load_certificate(der)
    if issuer_of(leaf) == ORGANISATION:
        return ""
    if (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() > SVID_MAX_S:
        raise IdentityRefused(f"the peer's identity lives longer than {SVID_MAX_S} seconds", rule="lifetime")
    return SOURCE

