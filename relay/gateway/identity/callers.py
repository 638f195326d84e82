"""Whose HTTPS request it is: by the SVID of the connection that it comes on."""

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from relay.gateway.identity.enrolment import Enrolment
from transport.errors import IdentityRefused
from transport.identity.tls import peer_of
from transport.identity.verify import VerifiedPeer

ROLES: Final = ("edge", "workload")


class Unknown(Exception):
    """Nobody whom we know. `rule` is for the audit, and `id` what the certificate said, if there was one."""

    def __init__(self, rule: str, identity: str = "") -> None:
        super().__init__(rule)
        self.rule, self.id = rule, identity


@dataclass(frozen=True)
class Caller:
    """Who asks, under which enrolment."""

    peer: VerifiedPeer
    enrolment: int


class Callers:
    """One for a gateway."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    async def of(self, request: web.Request) -> Caller:
        """Raises Unknown, AuditUnavailable, StoreError."""
        peer = peer_of(request.transport)
        if peer is None:
            raise Unknown("certificate")
        if peer.id.role not in ROLES:
            raise Unknown("role", str(peer.id))
        try:
            await self._enrolment.meet(peer)
            return Caller(peer, self._enrolment.enrolment_of(peer))
        except IdentityRefused as refusal:
            raise Unknown(refusal.rule, str(peer.id)) from None
