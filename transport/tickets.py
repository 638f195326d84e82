"""One-use resumption tickets: derived on both sides from a session, never sent, kept in memory alone. SPEC section 4.5.

    export   = HKDF-Extract(ck, "causeway 1 export" || session hash)
    ticket i = HKDF-Expand(export, "ticket" || i, 48) = id(16) || psk(32)        i = 0 to 3, one byte

A ticket carries the identity and the expiry of the full handshake it goes back to, so a chain of resumptions ends with
the SVIDs. Early data is forward secret only once its ticket's secret is gone from both sides: so tickets are used once,
are dropped with their siblings, and are in no file, backup or shared store that persists.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from transport.identity.verify import VerifiedPeer
from transport.primitives import Secret, hkdf_expand, hmac_sha256

TICKETS: Final = 4
TICKET_ID_LEN: Final = 16
FAMILIES_MAX: Final = 65_536  # sessions whose tickets a gateway keeps; about 1 KiB each


@dataclass(frozen=True, eq=False)
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
        self._tickets: dict[bytes, tuple[Ticket, bytes]] = {}  # id -> ticket, family
        self._families: OrderedDict[bytes, list[bytes]] = OrderedDict()  # a session's first id -> ids that are left

    def __len__(self) -> int:
        return len(self._tickets)

    def put(self, tickets: Iterable[Ticket]) -> None:
        """The tickets of one session: siblings, which die together."""
        tickets = list(tickets)
        family = tickets[0].id
        self._families[family] = [ticket.id for ticket in tickets]
        for ticket in tickets:
            self._tickets[ticket.id] = ticket, family
        while len(self._families) > self._families_max:
            self._drop(next(iter(self._families)))

    def find(self, ticket_id: bytes, now: float) -> Ticket | None:
        """A ticket that may be tried; nothing is consumed yet, so that a forged message burns none (H4)."""
        found = self._tickets.get(ticket_id)
        if found is None or now >= found[0].not_after:
            return None
        return found[0]

    def consume(self, ticket_id: bytes) -> bytes | None:
        """Takes the ticket out, and gives its siblings' name; None if it is gone: then what it opened is void."""
        found = self._tickets.pop(ticket_id, None)
        if found is None:
            return None
        self._families[found[1]].remove(ticket_id)
        return found[1]

    def forget(self, siblings: bytes) -> None:
        """Drops what is left of a session's tickets: the resumed session's first record has authenticated."""
        self._drop(siblings)

    def drop(self, unwanted: Callable[[VerifiedPeer], bool]) -> None:
        """Drops the tickets of peers that may not come back. They would be refused at use anyway."""
        found = {family for ticket, family in self._tickets.values() if unwanted(ticket.peer)}
        for family in found:
            self._drop(family)

    def _drop(self, family: bytes) -> None:
        for ticket_id in self._families.pop(family, []):
            self._tickets.pop(ticket_id, None)
