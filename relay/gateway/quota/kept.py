"""Quotas that outlive the process: counts in the encrypted state, and the audit for what is not in it yet.

No request waits for this. About once a second what has changed is copied and written by the database's own thread, with
the audit's sequence number of that moment. At start the audit is read from there on: a call whose outcome is on record
is charged what it came to, and one without an outcome what it had reserved, since nobody knows what became of it.
"""

import asyncio
import contextlib
import logging
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from relay.gateway.quota.ledger import Slot
from relay.gateway.quota.quotas import Quotas
from relay.gateway.quota.window import Window
from store.database import Connection, Database
from store.errors import StoreError

FLUSH_S: Final = 1.0
Amounts = tuple[int, int, int]
_log = logging.getLogger(__name__)


class _Line(msgspec.Struct):
    """Of the audit, what is needed."""

    seq: int
    event: str
    id: str = ""
    request: str = ""
    model: str = ""
    reserved_tokens: int | None = None
    reserved: int = 0
    attempts: int = 0
    charged_tokens: int | None = None
    charged: int = 0


_line = msgspec.json.Decoder(_Line)


class Kept:
    """Keeps `quotas` in the tables of 0009_quotas.sql. Await `load` before anything else, `flush` at the end."""

    def __init__(self, quotas: Quotas, database: Database, audit: Path, end: Callable[[], tuple[int, str]]) -> None:
        """`audit`: the file; `end`: number and hash of its last record."""
        self._quotas, self._database, self._audit, self._end = quotas, database, audit, end
        self._reserved: list[Any] = []  # as it was last written

    async def load(self) -> None:
        """Raises StoreError."""
        quotas = self._quotas
        counts, reserved, (clock, sequence) = await self._database.run(_read, read_only=True)
        quotas.not_before(clock)
        now = quotas.now()
        for rule, who, blob in counts:
            quotas.ledger.restore(rule, who, msgspec.msgpack.decode(blob, type=dict[int, list[tuple[int, int]]]), now)
        under_way: dict[tuple[str, str], tuple[str, Amounts]] = {
            (who, request): (model, (1, tokens, money)) for who, request, model, tokens, money in reserved
        }
        for line in await asyncio.to_thread(lambda: list(_since(self._audit, sequence))):
            key = "/" + line.id.split("/", 3)[-1], line.request
            if line.event == "request.intent" and line.reserved_tokens is not None:
                under_way.setdefault(key, (line.model, (1, line.reserved_tokens, line.reserved)))
            elif line.event == "request.outcome" and (found := under_way.pop(key, None)) is not None:
                came_to = found[1] if line.charged_tokens is None else (
                    line.attempts, line.charged_tokens, line.charged)
                quotas.ledger.charge(key[0], line.model, came_to, now)
        if under_way:
            _log.warning("%d calls were under way when the gateway ended; they count as what they had reserved",
                         len(under_way))
        for (who, _), (model, amounts) in under_way.items():
            quotas.ledger.charge(who, model, amounts, now)
        await self.flush(always=True)  # also where the audit has lost its end, or been moved away

    async def flush(self, *, always: bool = False) -> None:
        """Writes what has changed, if anything has. Raises StoreError; then it is written the next time."""
        ledger = self._quotas.ledger
        reserved = [
            (who, request.hex(), one.context.model, *one.hold.amounts[1:])
            for (who, request), one in self._quotas.running.items()
        ]
        if not always and not ledger.changed and reserved == self._reserved:
            return
        changed, ledger.changed = ledger.changed, set()
        now, sequence = self._quotas.now(), self._end()[0]
        copies = [(slot.rule.name, slot.who, _copies(slot)) for slot in changed]
        try:
            await self._database.run(lambda connection: _write(connection, copies, reserved, now, sequence))
        except StoreError:
            ledger.changed |= changed
            raise
        self._reserved = reserved

    async def keep(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except StoreError as error:
                _log.error("what was spent is not written yet: %s", error)

    async def close(self) -> None:
        """The last flush. What it cannot write, the audit has."""
        with contextlib.suppress(StoreError):
            await self.flush()


def _copies(slot: Slot) -> dict[int, Window]:
    return {kind: window.copy() for kind, window in slot.windows.items()}


def _read(connection: Connection) -> tuple[list[Any], list[Any], tuple[int, int]]:
    state = connection.execute("SELECT clock, audit_sequence FROM quota_state").fetchone()
    assert state is not None
    return (
        connection.execute("SELECT rule, who, counts FROM quota_counts").fetchall(),
        connection.execute("SELECT who, request, model, tokens, money FROM quota_reserved").fetchall(),
        (state[0], state[1]),
    )


def _write(
    connection: Connection, copies: list[tuple[str, str, dict[int, Window]]], reserved: list[Any], now: int,
    sequence: int,
) -> None:
    rows = []
    for rule, who, windows in copies:
        counts = {kind: list(window.counts()) for kind, window in windows.items()}
        gone = max((at + 2 * window.seconds for kind, window in windows.items() for at, _ in counts[kind]), default=now)
        rows.append((rule, who, msgspec.msgpack.encode(counts), gone))
    connection.executemany("INSERT OR REPLACE INTO quota_counts VALUES (?, ?, ?, ?)", rows)
    connection.execute("DELETE FROM quota_counts WHERE gone <= ?", (now,))
    connection.execute("DELETE FROM quota_reserved")
    connection.executemany("INSERT INTO quota_reserved VALUES (?, ?, ?, ?, ?)", reserved)
    connection.execute("UPDATE quota_state SET clock = ?, audit_sequence = ?", (now, sequence))


def _since(path: Path, sequence: int) -> Iterator[_Line]:
    """The audit's lines behind that one, in order. The log has been opened, and with it what is torn cut off."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found, end = [], len(data) - 1
            while end > 0:
                start = data.rfind(b"\n", 0, end) + 1
                line = _line.decode(data[start:end])
                if line.seq <= sequence:
                    break
                found.append(line)
                end = start - 1
    yield from reversed(found)
