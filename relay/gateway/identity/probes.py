"""Identities for `relay doctor`: they show that the gateway issues and believes, and open nothing.

A probe has no registration and no row, so every door that asks who a certificate belongs to refuses it; the one of the
session role opens one session, in which nothing is asked. Both run out two minutes after they were made.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from relay.gateway.audit.log import AuditLog
from relay.gateway.identity.ca import BACKDATE_S, Authority, Issued
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.invitations import PROBE_NAME
from transport.errors import BadInput
from transport.identity.svid import SpiffeId, parse_csr
from transport.identity.verify import VerifiedPeer

PROBE_S: Final = 120  # from when it is issued
_ROLES: Final = ("edge", "hop")  # never one that others believe for its role alone, as edges do a gateway's


class Probes:
    """Issues probes, and knows those that are good for a session yet."""

    def __init__(
        self, authority: Authority, enrolment: Enrolment, audit: AuditLog, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._authority, self._enrolment, self._audit, self._clock = authority, enrolment, audit, clock
        self._good: dict[int, float] = {}  # by serial, until when

    async def issue(self, requests: Mapping[str, bytes]) -> dict[str, Issued]:
        """A probe for each role, by its certificate request. Does what issuing to a device does: record, state, key.

        Raises BadInput for another role, ProtocolViolation for what is no request of ours, AuditUnavailable,
        StoreError, AuthorityExpired.
        """
        if not set(requests) <= set(_ROLES):
            raise BadInput("there are probes of edges and hops alone")
        now = self._clock()
        domain = self._authority.trust_domain
        keys = {SpiffeId(domain, f"/{role}/{PROBE_NAME}"): parse_csr(csr) for role, csr in requests.items()}
        await self._audit.append("probe.issued", ids=" ".join(map(str, keys)), not_after=int(now) + PROBE_S)
        await self._enrolment.invitations.check_writable()
        made = [
            await self._authority.issue_aside(identity, key, now=now, lifetime_s=BACKDATE_S + PROBE_S)
            for identity, key in keys.items()
        ]
        self._good = {serial: end for serial, end in self._good.items() if end > now}
        self._good |= {one.serial: one.not_after for one in made}
        return {one.id.role: one for one in made}

    def take(self, peer: VerifiedPeer) -> bool:
        """Whether this is a probe that has not been used; from then on it has."""
        return self._good.pop(peer.serial, 0.0) > self._clock() and peer.id.name == PROBE_NAME
