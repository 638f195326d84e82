"""One-use resumption tickets: derived on both sides from a session, never sent, kept in memory alone. SPEC section 4.5.

    export   = HKDF-Extract(ck, "causeway 1 export" || session hash)
    ticket i = HKDF-Expand(export, "ticket" || i, 48) = id(16) || psk(32)        i = 0 to 3, one byte

A ticket carries the identity and the expiry of the full handshake it goes back to, so a chain of resumptions ends with
the SVIDs. Early data is forward secret only once its ticket's secret is gone from both sides: so tickets are used once,
are dropped with their siblings, and are in no file, backup or shared store that persists.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from transport.identity.verify import VerifiedPeer
from transport.primitives import Secret, hkdf_expand, hmac_sha256

TICKETS: Final = 4
TICKET_ID_LEN: Final = 16
FAMILIES_MAX: Final = 65_536  # sessions whose tickets a gateway keeps; about 1 KiB each


@dataclass(frozen=True, eq=False, slots=True)
class Ticket:
    """`not_after` (unix seconds) is the earlier expiry of the SVIDs behind it; `peer` is who was verified then."""

    id: bytes
    psk: Secret
    peer: VerifiedPeer
    not_after: float


def derive_tickets(chaining_key: Secret, session_hash: bytes, peer: VerifiedPeer, not_after: float) -> list[Ticket]:
    """The four tickets of a session; both sides derive the same ids and secrets."""
    export = hmac_sha256(chaining_key.expose(), b"causeway 1 export" + session_hash)
    tickets = []
    for index in range(TICKETS):
        raw = hkdf_expand(export, b"ticket" + bytes([index]), TICKET_ID_LEN + 32)
        tickets.append(Ticket(raw[:TICKET_ID_LEN], Secret(raw[TICKET_ID_LEN:]), peer, not_after))
    return tickets


class Wallet:
    """An edge's tickets for one gateway. Each is given out once, whatever becomes of it."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def put(self, tickets: Iterable[Ticket]) -> None:
        """Replaces what is left of an older session's: its siblings are dead once the newer session stands."""
        self._tickets = list(tickets)

    def take(self, now: float) -> Ticket | None:
        """A ticket that is still good at `now`, or None: then a full handshake is due."""
        while self._tickets:
            ticket = self._tickets.pop(0)
            if now < ticket.not_after:
                return ticket
        return None

    def clear(self) -> None:
        self._tickets.clear()


class TicketStore:
    """A gateway's tickets, in memory, oldest sessions out first. Dies with the process, and so does what it opens."""

    def __init__(self, families_max: int = FAMILIES_MAX) -> None:
        self._families_max = families_max
        self._families = 0
        self._tickets: dict[bytes, list[Ticket]] = {}  # id -> what is left of its session's, oldest sessions first

    def __len__(self) -> int:
        return len(self._tickets)

    def put(self, tickets: Iterable[Ticket], now: float) -> None:
        """The tickets of one session: siblings, which die together. The oldest go, as far as their time is over."""
        while self._tickets and now >= (oldest := next(iter(self._tickets.values())))[0].not_after:
            self.forget(oldest)
        siblings = list(tickets)
        for ticket in siblings:
            self._tickets[ticket.id] = siblings
        self._families += 1
        while self._families > self._families_max:
            self.forget(next(iter(self._tickets.values())))

    def find(self, ticket_id: bytes, now: float) -> Ticket | None:
        """A ticket that may be tried; nothing is consumed yet, so that a forged message burns none (H4)."""
        found = next((ticket for ticket in self._tickets.get(ticket_id, ()) if ticket.id == ticket_id), None)
        return None if found is None or now >= found.not_after else found

    def consume(self, ticket_id: bytes) -> list[Ticket] | None:
        """Takes the ticket out, and gives its siblings for `forget`; None if it is gone: what it opened is void."""
        siblings = self._tickets.pop(ticket_id, None)
        if siblings is not None:
            siblings[:] = [ticket for ticket in siblings if ticket.id != ticket_id]
            self._families -= not siblings
        return siblings

    def forget(self, siblings: list[Ticket]) -> None:
        """Drops what is left of a session's tickets: the resumed session's first record has authenticated."""
        self._families -= bool(siblings)
        for ticket in siblings:
            del self._tickets[ticket.id]
        siblings.clear()


    def drop(self, unwanted: Callable[[VerifiedPeer], bool]) -> None:
        """Drops the tickets of peers that may not come back. They would be refused at use anyway."""
        for siblings in list(self._tickets.values()):
            if siblings and unwanted(siblings[0].peer):
                self.forget(siblings)
