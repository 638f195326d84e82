"""Tells `clones` what sessions and tunnels do, and gives the alarm for what it makes of it."""

from collections.abc import Callable, Hashable

from relay.gateway.identity.clones import Clones, Sign
from relay.gateway.identity.enrolment import Enrolment
from transport.identity.verify import VerifiedPeer


class Watch:
    """One for a gateway. What it raises is what `Alerts.give` does."""

    def __init__(self, enrolment: Enrolment, ticking: Callable[[], float]) -> None:
        """`ticking`: seconds by a clock that nobody sets."""
        self._enrolment, self._ticking = enrolment, ticking
        self._clones = Clones()

    async def shown(self, peer: VerifiedPeer, enrolment: int, place: str) -> None:
        """An SVID was shown in a full handshake, at `place`: a hop's ID, or an address."""
        line = self._enrolment.line(enrolment)  # empty for what is not a device with one store
        await self._give(enrolment, self._clones.shown(enrolment, peer.serial, line, place, self._ticking()))

    def opened(self, enrolment: int, session: Hashable, place: str) -> None:
        self._clones.opened(enrolment, session, place, self._ticking())

    async def asked(self, enrolment: int, session: Hashable) -> None:
        await self._give(enrolment, self._clones.asked(enrolment, session, self._ticking()))

    def closed(self, enrolment: int, session: Hashable) -> None:
        self._clones.closed(enrolment, session)

    async def _give(self, enrolment: int, sign: Sign | None) -> None:
        if sign is not None:
            for one in self._enrolment.find(str(enrolment)):
                await self._enrolment.alerts.give(
                    "copied", one.id, enrolment, sign=sign.kind, here=sign.here, there=sign.there
                )
