"""What an administrator has to look at: once for each enrolment and kind, on record, in the log, and beside the device.

An alert ends with its enrolment: a device that is reinstated, or joins anew, has another number. That of a state ends
with the state as well, and is given again when the device comes to it again.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from relay.gateway.audit.log import AuditLog
from store.database import Connection, Database
from transport.primitives import random_bytes

Kind = Literal["copied", "invitation", "warned", "throttled", "quarantined", "revoked"]
WORDS: Final[dict[Kind, str]] = {
    "copied": "may have been copied: its keys are used in two places",
    "invitation": "its invitation was tried by another device",
    "warned": "does what it does not usually do",
    "throttled": "is slowed down, for it does what it does not usually do",
    "quarantined": "is in quarantine and refused everything, for it does what it does not usually do",
    "revoked": "was revoked, for it did what it does not usually do",
}
STATES: Final[tuple[Kind, ...]] = ("warned", "throttled", "quarantined", "revoked")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """`id` is the same whoever is told and however often; `words` for a person; `raised` in unix seconds."""

    id: str
    kind: Kind
    device: str
    enrolment: int
    words: str
    raised: int
    fields: dict[str, str]


class Sender(Protocol):
    """Tells somebody elsewhere."""

    def put(self, connection: Connection, alert: Alert) -> None:
        """In the transaction that keeps the alert; raises nothing of its own."""
        ...

    def wake(self) -> None:
        """It is on stable storage."""
        ...


class Alerts:
    """Owns the table of 0007_alerts.sql. Await `load` before anything else."""

    def __init__(self, database: Database, audit: AuditLog, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._audit, self._clock = database, audit, clock
        self._raised: dict[int, set[Kind]] = {}
        self.senders: list[Sender] = []

    async def load(self) -> None:
        rows = await self._database.run(lambda connection: connection.execute(
            "SELECT enrolment, kind FROM alerts ORDER BY rowid"
        ).fetchall(), read_only=True)
        self._raised.clear()
        for enrolment, kind in rows:
            if kind in WORDS:
                self._raised.setdefault(int(str(enrolment)), set()).add(kind)

    def of(self, enrolment: int) -> str:
        """Words for a person, of states the latest alone; "" if there is nothing."""
        raised = self._raised.get(enrolment, set())
        passed = [kind for kind in STATES if kind in raised][:-1]
        return "; ".join(words for kind, words in WORDS.items() if kind in raised and kind not in passed)

    async def give(self, kind: Kind, identity: str, enrolment: int, **fields: str) -> None:
        """Alerts, unless that was done. Raises AuditUnavailable, StoreError; then the next sign alerts."""
        raised = self._raised.setdefault(enrolment, set())
        if kind in raised:
            return
        raised.add(kind)  # at once: another sign may come meanwhile
        now = int(self._clock())

        alert = Alert(f"msg_{random_bytes(16).hex()}", kind, identity, enrolment, WORDS[kind], now, fields)

        def work(connection: Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO alerts VALUES (?, ?, ?)", (enrolment, kind, now))
            for sender in self.senders:
                sender.put(connection, alert)

        try:
            await self._audit.append(f"alert.{kind}", id=identity, enrolment=enrolment, **fields)
            await self._database.run(work)
        except BaseException:
            raised.discard(kind)
            raise
        for sender in self.senders:
            sender.wake()
        _log.warning("%s (enrolment %d): %s", identity, enrolment, WORDS[kind])

    async def withdraw(self, enrolment: int, kinds: Collection[Kind]) -> None:
        """What they told of is over. Raises StoreError."""
        gone = self._raised.get(enrolment, set()) & set(kinds)
        if not gone:
            return
        await self._database.run(lambda connection: connection.executemany(
            "DELETE FROM alerts WHERE enrolment = ? AND kind = ?", [(enrolment, kind) for kind in gone]
        ) and None)
        self._raised[enrolment] -= gone
