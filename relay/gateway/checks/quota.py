"""Is there enough left of what this device may spend? If so, what the call may cost is set aside for it."""

from typing import Final

from relay.gateway.pipeline import Refusal, RequestContext
from relay.gateway.quota.quotas import CallHold, Quotas

UNCOUNTED: Final = ("infer",)  # its answers have no tokens; it is counted as a request


class Quota:
    """The last check: nothing is set aside for what another refuses. Nobody is exempt, by role, token or listener.

    Sets `context.hold`. Waits for nothing.
    """

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def check(self, context: RequestContext) -> Refusal | None:
        target = context.target
        assert target is not None and context.parsed
        if not target.bodied:
            return None  # calls nobody
        counted = target.operation not in UNCOUNTED
        wanted = context.output_max if counted else 0
        found = self._quotas.admit(context, counted, wanted)
        if not isinstance(found, CallHold):
            return found
        context.hold = found
        return None
