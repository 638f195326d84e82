"""One static token on a plain loopback listener, for benchmarks and first steps: whoever has it is one identity.

That identity is registered, decided upon by policy, audited and revoked as any other. The token proves nothing but that
its holder could read a file; so this exists only where a flag asks for it, and never beside the network.
"""

import math
from pathlib import Path
from typing import Final

from aiohttp import web

from relay.gateway.errors import ConfigError, EnrolmentRefused
from relay.gateway.identity.callers import Caller, Callers, only
from relay.gateway.identity.denials import TOKEN, Denied
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.upstream.keys import key_from_file
from transport.identity.svid import SpiffeId
from transport.identity.verify import VerifiedPeer
from transport.primitives import Secret, SigningKey, same_bytes

ID_PATH: Final = "/edge/insecure-loopback"
SOURCE: Final = "loopback"  # who vouches for it, in `relay gateway devices`
_TOKEN_MIN: Final = 16  # bytes


def token_from_file(path: Path) -> Secret:
    """One word of at least 16 bytes of ASCII. Raises ConfigError."""
    token = key_from_file(path, "the loopback token")
    if len(token.expose()) < _TOKEN_MIN:
        raise ConfigError(f"the loopback token has less than {_TOKEN_MIN} bytes",
                          hint="make one: head -c 24 /dev/urandom | base64 > FILE")
    return token


class LoopbackCallers(Callers):
    """Knows one caller."""

    def __init__(self, token: Secret, trust_domain: str, enrolment: Enrolment) -> None:
        super().__init__(enrolment)
        self._token = token
        # Nobody has this key, and there is no certificate: the registration alone is looked at with each request.
        self.peer = VerifiedPeer(
            SpiffeId(trust_domain, ID_PATH), SigningKey.generate().public, b"", 0, 0.0, math.inf
        )
        self._caller = Caller(self.peer, 0)

    async def of(self, request: web.Request) -> Caller:
        """Raises Denied, AuditUnavailable, StoreError."""
        scheme, _, text = only(request, "Authorization").partition(" ")
        given = text.encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not same_bytes(given, self._token.expose()):
            raise Denied(TOKEN, "loopback")
        held = self._enrolment.vouched(self.peer.id, SOURCE)
        if held is None:
            try:
                held = await self._enrolment.attested(self.peer.id, SOURCE)
            except EnrolmentRefused as refused:
                raise Denied(TOKEN, refused.reason, str(self.peer.id)) from None
        if held.enrolment != self._caller.enrolment:
            self._caller = Caller(self.peer, held.enrolment)
        return self._caller
