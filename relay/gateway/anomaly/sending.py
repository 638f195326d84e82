"""Alerts on their way to whoever is to be told: kept until taken, in order, each under one id, and tried again.

Each receiver has a queue of its own in the database, so that one that is dead holds up nobody and a restart loses none.
"""

import asyncio
import datetime
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from relay.gateway.identity.alerts import STATES, Alert
from store.database import Connection, Database
from store.errors import StoreError

QUEUE_MAX: Final = 1_000  # for each receiver; then the oldest go
KEEP_S: Final = 3 * 86_400
FIRST_S: Final = 5.0
PAUSE_MAX_S: Final = 300.0
_log = logging.getLogger(__name__)


class NotTaken(Exception):
    """The receiver has not taken an alert. The message has nothing of what it has said."""


class Receiver(Protocol):
    async def send(self, id: str, body: bytes, now: float) -> None:
        """Raises NotTaken; anything that a receiver does ends in that, and in bounded time."""
        ...


class Sending:
    """See `identity.alerts.Sender`. Owns the table `alerts_to_send`; `run` delivers until it is cancelled."""

    def __init__(
        self, database: Database, receivers: Mapping[str, Receiver], *, least: str = STATES[0], gateway: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """States below `least` are told nobody."""
        self._database, self._receivers, self._clock = database, receivers, clock
        self._silent, self._gateway = STATES[: STATES.index(least)], gateway
        self._woken = {name: asyncio.Event() for name in receivers}

    def put(self, connection: Connection, alert: Alert) -> None:
        """Into the queues, with the transaction that it is part of."""
        if alert.kind in self._silent:
            return
        body = msgspec.json.encode(as_object(alert, self._gateway)).decode()
        for name in self._receivers:
            connection.execute(
                "INSERT INTO alerts_to_send (id, target, body, raised) VALUES (?, ?, ?, ?)",
                (alert.id, name, body, alert.raised),
            )
            connection.execute(
                "DELETE FROM alerts_to_send WHERE target = ?1 AND number NOT IN (SELECT number FROM alerts_to_send"
                " WHERE target = ?1 ORDER BY number DESC LIMIT ?2)", (name, QUEUE_MAX),
            )

    def wake(self) -> None:
        for event in self._woken.values():
            event.set()

    async def run(self) -> None:
        await asyncio.gather(*(self._deliver(name, receiver) for name, receiver in self._receivers.items()))

    async def _deliver(self, name: str, receiver: Receiver) -> None:
        pause, taken = FIRST_S, 0
        while True:
            self._woken[name].clear()
            try:
                found = await self._database.run(partial(_next, name=name, taken=taken))
                if found is None:
                    taken = 0
                    await self._woken[name].wait()
                    continue
                await receiver.send(found.id, found.body, self._clock())
            except (NotTaken, StoreError) as error:
                if isinstance(error, StoreError) or found is None or self._clock() - found.raised <= KEEP_S:
                    _log.error("an alert waits: %s: %s; again in %g s", name, error, pause)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, PAUSE_MAX_S)
                    continue
                _log.error("alert %s was not taken in three days and is dropped: %s", found.id, name)
            pause, taken = FIRST_S, found.number


class _Row(NamedTuple):
    number: int
    id: str
    body: bytes
    raised: int


def _next(connection: Connection, name: str, taken: int) -> _Row | None:
    """The oldest of a queue, once that which was `taken` is gone from it."""
    connection.execute("DELETE FROM alerts_to_send WHERE number = ?", (taken,))
    row = connection.execute(
        "SELECT number, id, CAST(body AS BLOB), raised FROM alerts_to_send WHERE target = ? ORDER BY number LIMIT 1",
        (name,),
    ).fetchone()
    return None if row is None else _Row(*row)


def as_object(alert: Alert, gateway: str) -> dict[str, Any]:
    """What is told: no prompt, no answer, no key and no token."""
    stamp = datetime.datetime.fromtimestamp(alert.raised, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": f"device.{alert.kind}", "timestamp": stamp, "data": {
        "gateway": gateway, "device": alert.device, "enrolment": alert.enrolment, "message": alert.words,
        "reasons": alert.fields.get("reasons", ""),
    }}
