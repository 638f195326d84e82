"""A new root for a trust domain, in three steps, none of which strands a device that may still come back.

A new root is *published* beside the one in use at least 90 days before it is *used*: a device that was not seen for as
long is registered no more, so each that is has got the new root with an SVID. Once what the old one stood for has run
out it is *retired*. Each step is a new bundle with the next sequence number; devices take it at their next renewal.

Files are written in an order in which each step, cut off anywhere, is done again by the next run. The bundle of the
online file is the published one; the root's file may lag behind it, never the other way round.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography import x509

from relay.gateway.errors import SetupRefused
from relay.gateway.identity.ca import (
    BACKDATE_S,
    DAY_S,
    INTERMEDIATE_FILE,
    INTERMEDIATE_PURPOSE,
    LIFETIMES,
    ROOT_CERTIFICATE_FILE,
    ROOT_FILE,
    ROOT_PURPOSE,
    SVID_LIFETIME_S,
    Lifetimes,
    SealedAuthority,
    make_root,
    pem_of,
    seal,
    sealed_path,
    sign_intermediate,
    unseal,
)
from relay.gateway.identity.custody import SOFTWARE, Custody
from relay.gateway.identity.held import name_of
from relay.gateway.identity.registrations import IDLE_MAX_S
from store.errors import StoreMissing
from store.files import write_private
from store.keys import Unlock

NEXT_ROOT_FILE: Final = "root-next.sealed"
PUBLISHED_S: Final = IDLE_MAX_S + SVID_LIFETIME_S  # who was last seen with an SVID of before the new root, too

Step = Literal["published", "used", "retired"]


@dataclass(frozen=True)
class Rotated:
    """What was done, the bundle's new sequence number, and when the next step may be taken (unix seconds), if any.
    `unused` are names of keys that this step has put out of use, where somebody holds them.
    """

    step: Step
    sequence: int
    next_at: float | None
    unused: tuple[str, ...] = ()


def rotate_root(
    directory: Path, *, passphrase: Unlock, root_passphrase: Unlock, now: float,
    lifetimes: Lifetimes = LIFETIMES, custody: Custody = SOFTWARE,
) -> Rotated:
    """Takes the next step, whichever that is.

    Raises SetupRefused if it is too early for it, AuthorityExpired, WrongKey, StoreMissing, StoreCorrupt.
    """
    held = unseal(directory / ROOT_FILE, root_passphrase, ROOT_PURPOSE)
    online = unseal(directory / INTERMEDIATE_FILE, passphrase, INTERMEDIATE_PURPOSE)
    try:
        coming = unseal(directory / NEXT_ROOT_FILE, root_passphrase, ROOT_PURPOSE)
    except StoreMissing:
        coming = None

    def write(root: SealedAuthority, intermediate: SealedAuthority, roots: list[bytes]) -> int:
        sequence = max(held.sequence, online.sequence) + 1
        for file, authority, unlocks, purpose in (
            (INTERMEDIATE_FILE, intermediate, passphrase, INTERMEDIATE_PURPOSE),
            (ROOT_FILE, root, root_passphrase, ROOT_PURPOSE),
        ):
            authority.roots, authority.sequence = roots, sequence
            seal(directory / file, authority, unlocks, purpose)
        return sequence

    if coming is not None and coming.certificate in online.roots:
        _not_before(_made(coming) + PUBLISHED_S, now, "devices that were away may not have seen the new root yet")
        intermediate = sign_intermediate(coming, [], 0, now=now, lifetimes=lifetimes, custody=custody)
        sequence = write(coming, intermediate, online.roots)
        write_private(directory / ROOT_CERTIFICATE_FILE, [pem_of(coming.certificate)], replace=True)
        sealed_path(directory / NEXT_ROOT_FILE, root_passphrase).unlink()
        unused = tuple(name for name in (name_of(online.key), name_of(held.key)) if name is not None)
        return Rotated("used", sequence, now + SVID_LIFETIME_S, unused)
    if len(online.roots) > 1:
        _not_before(_made(online) + SVID_LIFETIME_S, now, "identities under the old root are still in use")
        return Rotated("retired", write(held, online, [held.certificate]), None)
    key, certificate = make_root(held.trust_domain, now=now, lifetimes=lifetimes, custody=custody)
    fresh = SealedAuthority(held.trust_domain, key, certificate, [], 0)
    seal(directory / NEXT_ROOT_FILE, fresh, root_passphrase, ROOT_PURPOSE)
    return Rotated("published", write(held, online, [*online.roots, certificate]), now + PUBLISHED_S)


def _made(authority: SealedAuthority) -> float:
    start = x509.load_der_x509_certificate(authority.certificate).not_valid_before_utc
    return start.timestamp() + BACKDATE_S


def _not_before(when: float, now: float, why: str) -> None:
    if now < when:
        left = when - now
        wait = f"{left / DAY_S:.0f} days" if left > 2 * DAY_S else f"{left / 60:.0f} minutes"
        raise SetupRefused(f"it is too early: {why}", hint=f"nothing was changed; do this again in {wait}")
