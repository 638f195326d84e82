"""Is the device under suspicion? What it has done before says whether it may ask now, and how often."""

from math import ceil

from relay.gateway.anomaly.guard import QUARANTINED, Guard
from relay.gateway.anomaly.ladder import Level
from relay.gateway.pipeline import Refusal, RequestContext


class Standing:
    """After authenticate, before anything that costs."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def check(self, context: RequestContext) -> Refusal | None:
        return self.of(context.enrolment)

    def barred(self, enrolment: int) -> Refusal | None:
        """Whether it may not even fetch an answer that waits."""
        return QUARANTINED if self._guard.level(enrolment) >= Level.QUARANTINED else None

    def of(self, enrolment: int) -> Refusal | None:
        level = self._guard.level(enrolment)
        if level < Level.THROTTLED:
            return None
        if level >= Level.QUARANTINED:
            return QUARANTINED
        wait = self._guard.wait_s(enrolment)
        return None if not wait else Refusal(
            429, "throttled", "the gateway has slowed this device down; see Retry-After", retryable=True,
            headers={"Retry-After": str(ceil(wait))},
        )
