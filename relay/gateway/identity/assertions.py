"""Client assertions (RFC 7523, `private_key_jwt`): a client signs who it is, for a minute and once.

It signs by the key that it was registered with, or by that of its current SVID, which it then shows in `x5c`; the same
key must have made the proof of possession that comes along, so an assertion that is overheard is of no use to others.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta, Struct

from relay.gateway.identity.access import Seconds
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.dpop import Proof
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.jose import TokenRefused, Unverified
from relay.gateway.identity.once import UsedOnce
from relay.gateway.identity.registrations import Registration
from transport.errors import BadInput
from transport.identity.revocation import RevocationList
from transport.identity.svid import SpiffeId
from transport.identity.verify import LEEWAY_S, verify_svid
from transport.primitives import VerifyKey

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_MAX: Final = 8_192  # characters: with a chain of certificates
ASSERTION_S: Final = 60
USED_MAX: Final = 65_536
USED_BY_CLIENT_MAX: Final = 256
_TYPES: Final = (None, "JWT", "client-authentication+jwt")


class _Claims(Struct, frozen=True):
    """Others may be there, and mean nothing."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: Seconds
    jti: Annotated[str, Meta(min_length=8, max_length=128)]
    iat: Seconds = 0
    nbf: Seconds = 0


@dataclass(frozen=True)
class Asserted:
    """An accepted assertion: whose, and when what proves it ends (unix seconds)."""

    registration: Registration
    until: float
    jti: str


class Assertions:
    """Checks what clients sign to get tokens."""

    def __init__(
        self, audiences: tuple[str, ...], roles: tuple[str, ...], enrolment: Enrolment, authority: Authority,
        revocations: Callable[[], RevocationList], *, clock: Callable[[], float] = time.time,
    ) -> None:
        """`audiences`: names of ours. `roles`: whose IDs have tokens."""
        self._audiences, self._roles, self._enrolment = audiences, roles, enrolment
        self._authority, self._revocations, self._clock = authority, revocations, clock
        self._used = UsedOnce(clock, kept_s=ASSERTION_S + 1, total=USED_MAX, by_holder=USED_BY_CLIENT_MAX)

    async def check(self, text: str, proof: Proof) -> Asserted:
        """That it is signed by the key of `proof`, which is its client's. To be used up by `use`.

        Raises TokenRefused, by a rule of the form or "issuer", "role", "audience", "expired", "too long", "not yet
        valid", "replayed", "binding", "signature", "chain"; IdentityRefused for a certificate or a registration;
        AuditUnavailable, StoreError.
        """
        unverified, now = Unverified(text, longest=ASSERTION_MAX).of(*_TYPES), self._clock()
        claims = unverified.unproven(_Claims)
        role = _role(claims.sub)
        if claims.iss != claims.sub:
            raise TokenRefused("issuer")
        if role not in self._roles:
            raise TokenRefused("role")
        named = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        if len(named) != 1 or named[0] not in self._audiences:  # for us alone, or another could show it here
            raise TokenRefused("audience")
        if claims.exp <= now:
            raise TokenRefused("expired")
        if claims.exp > now + ASSERTION_S:
            raise TokenRefused("too long")
        if max(claims.nbf, claims.iat) > now + LEEWAY_S:
            raise TokenRefused("not yet valid")
        key, registration, until = await self._holder(unverified.chain(), role, proof, now)
        if registration.id != claims.sub:
            raise TokenRefused("subject")
        unverified.verified(key, _Claims)
        if self._used.used(registration.id, claims.jti):
            raise TokenRefused("replayed")
        return Asserted(registration, until, claims.jti)

    def use(self, asserted: Asserted) -> None:
        """Nobody can show it again. Raises TokenRefused: "replayed", "overloaded"."""
        if refused := self._used.use(asserted.registration.id, asserted.jti):
            raise TokenRefused(refused)

    async def _holder(
        self, chain: list[bytes], role: str, proof: Proof, now: float
    ) -> tuple[VerifyKey, Registration, float]:
        """The key that must have signed, which made the proof; whose it is, and until when."""
        if not chain:
            registration = self._enrolment.registration(proof.device_id)
            return proof.key, registration, registration.ends()
        peer = verify_svid(chain, self._authority.bundle, role=role, now=now)
        self._revocations().check(peer)
        if peer.key.spki != proof.key.spki:  # before anything is done for its holder: certificates are no secrets
            raise TokenRefused("binding")
        await self._enrolment.meet(peer)
        return peer.key, self._enrolment.current(self._enrolment.enrolment_of(peer), str(peer.id)), peer.not_after


def _role(subject: str) -> str:
    try:
        return SpiffeId.parse(subject).role
    except BadInput:
        raise TokenRefused("subject") from None
