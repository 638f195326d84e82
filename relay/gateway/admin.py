"""What an administrator asks of a gateway: the same operations beside a running one (over `control`) and without."""

import datetime
import inspect
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from relay.gateway.anomaly.guard import Guard
from relay.gateway.anomaly.ladder import Level
from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import NotFound, SetupRefused
from relay.gateway.identity.alerts import STATES
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.invitations import INVITATION_MAX_S
from relay.gateway.identity.revocation import Revocation
from relay.gateway.trace import TraceStore
from transport.errors import BadInput
from transport.telemetry import as_object

PAGE_ROLE = "hop"
PAGE_PATH = "/hop"
_NO_TRACE = "traces are kept for 7 days; of answers given on the device itself the gateway never hears"
_TRACE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Admin:
    """Answers are plain JSON objects, so that they can travel."""

    def __init__(
        self, enrolment: Enrolment, traces: TraceStore, revocation: Revocation, copy: Callable[[], Awaitable[Path]],
        audit: AuditLog, guard: Guard, *, origin: str | None = None,
    ) -> None:
        """`copy` makes a copy of the database in the gateway's folder; `origin`: of the public listener, if any."""
        self._origin = origin
        self._enrolment = enrolment
        self._traces = traces
        self._revocation, self._guard = revocation, guard
        self._copy, self._audit = copy, audit
        self._operations: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "invite": self.invite, "devices": self.devices, "trace": self.trace,
            "revoke": self.revoke, "reinstate": self.reinstate, "snapshot": self.snapshot,
        }

    def offer(self, operation: str, work: Callable[..., Awaitable[dict[str, Any]]]) -> None:
        """Takes one more operation, of a gateway that runs."""
        self._operations[operation] = work

    async def call(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """By name. Raises SetupRefused for an unknown operation or arguments, and what the operation raises."""
        work = self._operations.get(operation)
        if work is None:
            raise SetupRefused("the gateway does not know this operation", hint="are both of the same version?")
        try:
            inspect.signature(work).bind(**arguments)
        except TypeError:
            raise SetupRefused("the operation does not take these arguments") from None
        return await work(**arguments)

    async def invite(
        self, path: str, hints: list[str] | None = None, ttl_s: int = INVITATION_MAX_S, allow_gateway: bool = False,
        tpm: bool = False,
    ) -> dict[str, Any]:
        """`invitation` is the line to hand over; `replaces` the enrolment that joining with it would end; `url` the
        page that joins with it, the line in its fragment, which no browser sends to a server; None if there is none.
        """
        holder = self._enrolment.holder(path)
        invitation = await self._enrolment.invite(
            path, hints=hints or [], ttl_s=ttl_s, allow_gateway=allow_gateway, tpm=tpm
        )
        return {
            "invitation": invitation.encode(), "id": str(invitation.id), "ttl_s": ttl_s,
            "replaces": None if holder is None else holder.enrolment,
            "url": None if self._origin is None or invitation.id.role != PAGE_ROLE
            else f"{self._origin}{PAGE_PATH}#{invitation.encode()}",
        }

    async def devices(self) -> dict[str, Any]:
        return {"devices": [
            {
                "id": one.id, "enrolment": one.enrolment, "status": one.status,
                "device": "" if one.source else one.device_id.hex(), "source": one.source,
                "tpm": one.tpm, "ek_sha256": one.ek_sha256,
                "created": _stamp(one.created), "last_seen": _stamp(one.last_seen),
                "ends": _stamp(one.ended or one.ends()), "reason": one.reason,
                "alert": self._enrolment.alerts.of(one.enrolment), **self._guard.state(one.enrolment),
            }
            for one in self._enrolment.registrations()
        ]}

    async def revoke(self, who: str, reason: str) -> dict[str, Any]:
        """`enrolments` and `invitations` are what ended now; neither, if that had been done before."""
        revoked = await self._revocation.revoke(who, reason)
        return {"id": revoked.id, "enrolments": list(revoked.enrolments), "invitations": revoked.invitations}

    async def reinstate(self, who: str) -> dict[str, Any]:
        """Takes back what there is to take back: a state that a device is in, else its revocation. `was` says which."""
        found = self._enrolment.find(who)
        for one in found:
            if one.status == "active" and (level := self._guard.level(one.enrolment)):
                await self._audit.append(
                    "device.reinstated", id=one.id, enrolment=one.enrolment, state=level.word,
                    reasons=str(self._guard.state(one.enrolment)["reasons"]),
                )
                await self._guard.lift(one.enrolment)
                await self._enrolment.alerts.withdraw(one.enrolment, STATES)
                return {"id": one.id, "enrolment": one.enrolment, "was": level.word}
        again = await self._revocation.reinstate(who)
        before = [one.enrolment for one in found if one.status == "revoked"][-1]
        await self._guard.inherit(again.enrolment, before)
        return {"id": again.id, "enrolment": again.enrolment, "was": Level.REVOKED.word}

    async def snapshot(self) -> dict[str, Any]:
        """The name of a copy of the database, which the caller takes away; and where the audit log stands."""
        await self._audit.append("backup.made")
        sequence, head = self._audit.end
        return {"copy": (await self._copy()).name, "audit_sequence": sequence, "audit_head": head}

    async def trace(self, trace_id: str) -> dict[str, Any]:
        """Raises BadInput for what is no trace id, NotFound for one the gateway does not know."""
        if not _TRACE_ID.fullmatch(trace_id):
            raise BadInput("this is not a trace id", hint="a trace id is 32 hexadecimal digits; answers print it")
        spans = await self._traces.find(trace_id)
        if not spans:
            raise NotFound("the gateway knows no such trace", hint=_NO_TRACE)
        return {"trace_id": trace_id, "spans": [as_object(span) for span in spans]}


def error_object(error: Exception) -> dict[str, Any]:
    """An error in the shape `control` sends; what is not one of ours is told by its class alone."""
    if hasattr(error, "fault") and hasattr(error, "code"):
        known: Any = error
        return {
            "code": known.code, "fault": known.fault, "message": str(error), "hint": getattr(error, "hint", None)
        }
    return {"code": "internal_error", "fault": "local", "message": f"the gateway failed: {type(error).__name__}",
            "hint": None}


def _stamp(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
