"""Access tokens (RFC 9068): for ten minutes at most, of one enrolment, worth nothing without the key they are bound to.

They are signed so that others could check them; who asks here is looked up at each request all the same, so that a
token ends with the registration that it was given to.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.jose import TokenRefused, Unverified
from relay.gateway.identity.registrations import Registration
from relay.gateway.identity.token_keys import ACCESS_S, TokenKeys
from transport.errors import IdentityRefused
from transport.identity.verify import LEEWAY_S
from transport.primitives import random_bytes

TYP: Final = "at+jwt"
Seconds = Annotated[int, Meta(ge=0, le=1 << 40)]


class Bound(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a token is bound to (RFC 7800): a certificate by its SHA-256 (RFC 8705), or a key by its thumbprint."""

    certificate: str = msgspec.field(name="x5t#S256", default="")
    key: str = msgspec.field(name="jkt", default="")


class Claims(Struct, frozen=True, forbid_unknown_fields=True):
    iss: str
    sub: str
    aud: str
    exp: Seconds
    iat: Seconds
    jti: str
    client_id: str
    cnf: Bound
    enrolment: Annotated[int, Meta(ge=1, le=1 << 53)]


@dataclass(frozen=True)
class Access:
    """A token that is good, as far as it can be without what it is bound to."""

    claims: Claims
    kid: str


class AccessTokens:
    """Gives out and checks those of one gateway."""

    def __init__(
        self, issuer: str, keys: TokenKeys, enrolment: Enrolment, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`issuer`: the gateway's URL, which is its tokens' audience too."""
        self._issuer, self.keys, self._enrolment, self.clock = issuer, keys, enrolment, clock

    async def give(self, registration: Registration, bound: Bound, *, until: float) -> tuple[str, Claims]:
        """A token, that ends no later than `until`, nor than the registration would of idleness. Raises StoreError."""
        now = int(self.clock())
        claims = Claims(
            iss=self._issuer, sub=registration.id, aud=self._issuer, iat=now, client_id=registration.id,
            exp=int(min(now + ACCESS_S, until, registration.ends())), jti=random_bytes(16).hex(), cnf=bound,
            enrolment=registration.enrolment,
        )
        return await self.keys.sign(msgspec.to_builtins(claims), TYP), claims

    def check(self, text: str) -> Access:
        """Raises TokenRefused: by a rule of the form or the signature (`TokenKeys.verify`), or "issuer", "audience",
        "expired", "not yet valid", "binding", "registration".
        """
        claims, now = self.keys.verify(text, TYP, Claims), self.clock()
        if claims.iss != self._issuer:
            raise TokenRefused("issuer")
        if claims.aud != self._issuer:
            raise TokenRefused("audience")
        if claims.exp <= now:
            raise TokenRefused("expired")
        if claims.iat > now + LEEWAY_S:
            raise TokenRefused("not yet valid")
        if bool(claims.cnf.certificate) == bool(claims.cnf.key) or claims.client_id != claims.sub:
            raise TokenRefused("binding")
        try:
            self._enrolment.current(claims.enrolment, claims.sub)
        except IdentityRefused:
            raise TokenRefused("registration") from None
        return Access(claims, Unverified(text).kid)
