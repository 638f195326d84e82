"""Is the caller, now, who the handshake said it was?"""

import time
from collections.abc import Callable
from typing import Final

from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.pipeline import Refusal, RequestContext
from transport.errors import IdentityRefused
from transport.identity.verify import LEEWAY_S

_EXPIRED: Final = Refusal(401, "identity_expired", "the device's certificate has expired; it renews it by itself",
                          retryable=True)
_REFUSED: Final = Refusal(403, "identity_refused", "the device is not admitted by this gateway")
_LATE: Final = Refusal(410, "request_expired", "the request is past the time its sender set for it")
_AHEAD: Final = Refusal(400, "bad_expiry", "the request's expiry is more than 7 days ahead; is a clock wrong?")
LIFETIME_MAX_S: Final = 7 * 24 * 3600


class Authenticate:
    """First of all. A session may outlast what its handshake saw: registration and validity are looked at each time."""

    def __init__(self, enrolment: Enrolment, *, clock: Callable[[], float] = time.time) -> None:
        self._enrolment = enrolment
        self._clock = clock

    async def check(self, context: RequestContext) -> Refusal | None:
        now = self._clock()
        if now > context.peer.not_after + LEEWAY_S:
            return _EXPIRED
        try:
            if not context.peer.leaf_sha256:  # it came by a token that is bound to a key, and shows no certificate
                self._enrolment.current(context.enrolment, str(context.peer.id))
            elif self._enrolment.enrolment_of(context.peer) != context.enrolment:
                return _REFUSED
        except IdentityRefused:
            return _REFUSED
        if now > context.expires_at + LEEWAY_S:
            return _LATE
        if context.expires_at > now + LIFETIME_MAX_S + LEEWAY_S:
            return _AHEAD
        return None
