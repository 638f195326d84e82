"""What a workload is given: X.509-SVIDs with their keys, JWT-SVIDs, and the bundles that both are verified by.

One X.509-SVID of an ID is in use at a time, whatever the number of processes and streams that ask: they get the same
one until half of what was left of it at issue has passed. So no caller can make the authority sign as often as it
likes.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from relay.gateway.identity.ca import Issued
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.jose import TokenRefused
from relay.gateway.identity.registrations import Registration
from relay.gateway.identity.spiffe_bundle import jwt_entries
from relay.gateway.identity.token_keys import TokenKeys
from relay.gateway.identity.workloads.entries import Workload
from transport.errors import BadInput
from transport.identity.svid import SpiffeId, TrustBundle
from transport.identity.verify import LEEWAY_S
from transport.primitives import SigningKey

SOURCE: Final = "workload"  # as `Enrolment.attested` is told
TYPE: Final = "JWT"  # JWT-SVID 2.3
JWT_LIFETIME_S: Final = 300


@dataclass(frozen=True)
class X509Svid:
    """An SVID of ours for a workload. `renew_at`: unix seconds."""

    entry: Workload
    issued: Issued
    key: SigningKey
    enrolment: int
    renew_at: float


class Claims(msgspec.Struct):
    """What a JWT-SVID says (JWT-SVID section 3); `aud` is one name or several."""

    sub: str
    aud: str | list[str]
    exp: int
    iat: int

    def audience(self) -> list[str]:
        return [self.aud] if isinstance(self.aud, str) else self.aud


class Documents:
    """Issues for entries whose process was attested just now; that it was, is the caller's to know."""

    def __init__(
        self, enrolment: Enrolment, bundle: Callable[[], TrustBundle], keys: TokenKeys, *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`keys` are of the purpose "jwt-svid", loaded."""
        self._enrolment, self._bundle, self._keys, self._clock = enrolment, bundle, keys, clock
        self._held: dict[str, X509Svid] = {}
        self._making: dict[str, asyncio.Lock] = {}

    @property
    def trust_domain(self) -> str:
        """The key of the bundles: a SPIFFE ID without a path."""
        return f"spiffe://{self._bundle().trust_domain}"

    def identity(self, entry: Workload) -> SpiffeId:
        return SpiffeId(self._bundle().trust_domain, entry.id)

    async def registered(self, entry: Workload) -> Registration:
        """Raises EnrolmentRefused if the ID was revoked or is somebody else's, AuditUnavailable, StoreError."""
        return await self._enrolment.attested(self.identity(entry), SOURCE)

    async def x509(self, entry: Workload) -> X509Svid:
        """The current one. Raises as `registered`, and AuthorityExpired."""
        async with self._making.setdefault(entry.id, asyncio.Lock()):
            registration = await self.registered(entry)
            held = self._held.get(entry.id)
            if held is not None and held.enrolment == registration.enrolment and self._clock() < held.renew_at:
                return held
            key = SigningKey.generate()
            issued = (await self._enrolment.issue_attested(registration, key.public)).issued
            now = self._clock()
            held = X509Svid(entry, issued, key, registration.enrolment, now + (issued.not_after - now) / 2)
            self._held[entry.id] = held
            return held

    async def jwt(self, entry: Workload, audience: Sequence[str]) -> str:
        """A JWT-SVID for these audiences, for 5 minutes. Raises as `registered`."""
        await self.registered(entry)
        now = int(self._clock())
        claims = {
            "sub": str(self.identity(entry)), "aud": list(audience), "iat": now, "exp": now + JWT_LIFETIME_S,
        }
        return await self._keys.sign(claims, TYPE)

    def validated(self, token: str, audience: str) -> Claims:
        """What a JWT-SVID of this gateway says (JWT-SVID section 4, appendix A), as long as its holder is not revoked.

        Raises TokenRefused: as `TokenKeys.verify`, and "audience", "expired", "not yet valid", "lifetime", "subject",
        "registration".
        """
        claims, now = self._keys.verify(token, TYPE, Claims), self._clock()
        if audience not in claims.audience():
            raise TokenRefused("audience")
        if now >= claims.exp + LEEWAY_S:
            raise TokenRefused("expired")
        if now < claims.iat - LEEWAY_S:
            raise TokenRefused("not yet valid")
        if claims.exp - claims.iat > JWT_LIFETIME_S:
            raise TokenRefused("lifetime")
        try:
            identity = SpiffeId.parse(claims.sub)
        except BadInput:
            raise TokenRefused("subject") from None
        holder = self._enrolment.vouched(identity, SOURCE)
        if holder is None or claims.iat < holder.created:  # it was revoked since, perhaps reinstated
            raise TokenRefused("registration")
        return claims

    def x509_bundle(self) -> bytes:
        """The roots, one DER after the other (Workload API 5.1)."""
        return b"".join(self._bundle().roots)

    def jwt_bundle(self) -> bytes:
        """A JWK Set of the keys that sign JWT-SVIDs, and no others (Workload API 6.2.2)."""
        return msgspec.json.encode({"keys": jwt_entries(self._keys)})
