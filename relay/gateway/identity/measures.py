"""What follows when a device comes to another state: what runs of it ends, and an administrator hears of it."""

from collections.abc import Awaitable, Callable
from typing import Final

from relay.gateway.anomaly.guard import Change
from relay.gateway.anomaly.ladder import Level
from relay.gateway.audit.log import AuditLog
from relay.gateway.identity.alerts import Kind
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.revocation import REASON_MAX, Revocation

Stop = Callable[[int], Awaitable[None]]
_KINDS: Final[dict[Level, Kind]] = {
    Level.WARNED: "warned", Level.THROTTLED: "throttled", Level.QUARANTINED: "quarantined", Level.REVOKED: "revoked",
}


class Measures:
    """One for a gateway; to be given to `Guard` as `act`. Doing the same again does no harm."""

    def __init__(self, enrolment: Enrolment, audit: AuditLog, revocation: Callable[[], Revocation], stop: Stop) -> None:
        """`stop` ends what runs of an enrolment, at once."""
        self._enrolment, self._audit, self._revocation, self._stop = enrolment, audit, revocation, stop

    async def __call__(self, change: Change) -> None:
        """Raises AuditUnavailable, StoreError; then it is to be done again."""
        found = self._enrolment.find(str(change.enrolment))
        if not found or (found[0].status != "active" and change.level is not Level.REVOKED):
            return
        reasons = ", ".join(f"{kind} {score}" for kind, score in change.reasons.items())
        alerts, level, device = self._enrolment.alerts, change.level, found[0].id
        if level < change.before:
            await self._audit.append("device.eased", id=device, enrolment=change.enrolment, state=level.word)
            await alerts.withdraw(change.enrolment, [_KINDS[change.before]])
            return
        if level is Level.QUARANTINED:
            await self._stop(change.enrolment)
        if level is Level.REVOKED:
            await self._revocation().revoke(str(change.enrolment), f"anomaly: {reasons}"[:REASON_MAX])
        await alerts.give(_KINDS[level], device, change.enrolment, reasons=reasons)
