"""Puts the Workload API together for a gateway that runs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.token_keys import TokenKeys
from relay.gateway.identity.workloads.documents import Documents
from relay.gateway.identity.workloads.entries import Workload
from relay.gateway.identity.workloads.server import WorkloadServer, current_caller
from relay.gateway.identity.workloads.service import WorkloadApi
from transport.identity.svid import TrustBundle


class Workloads:
    """Documents, service and socket. `start` it when all else is ready."""

    def __init__(
        self, socket: Path, entries: Sequence[Workload], *, enrolment: Enrolment, bundle: Callable[[], TrustBundle],
        keys: TokenKeys, audit: AuditLog, refusals: Refusals, clock: Callable[[], float] = time.time,
    ) -> None:
        """`keys`: for JWT-SVIDs, loaded. Raises ConfigError where there is no attestation."""
        self._api = WorkloadApi(
            entries, Documents(enrolment, bundle, keys, clock=clock), audit, refusals, caller=current_caller,
            clock=clock,
        )
        self._server = WorkloadServer(socket, self._api.handlers(), users={one.uid for one in entries})
        keys.changed.append(self.look_again)

    def look_again(self) -> None:
        """To be called when registrations have ended or the bundle is another: streams answer anew, or end."""
        self._api.look_again()

    async def start(self) -> None:
        """Raises ConfigError."""
        await self._server.start()

    async def close(self) -> None:
        await self._server.close()
        self._api.close()
