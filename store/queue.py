"""Durable rows for an outbox or a journal: append, claim, settle, expire.

    append            claim              settle
    ------> waiting  ------->  sent  -------------> done | failed | interrupted | expired
               ^                 |
               +--- release -----+

A row is on stable storage when `append` returns. Claiming hands a row to one process only. A settled row stays as the
visible outcome until `forget`; its payload can go at once. Times are unix seconds; `now` is the database's clock where
it is left out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from store.database import Connection, Cursor, Database
from store.errors import StoreConflict, StoreMisuse

__all__ = ["FINAL_STATES", "MAX_PAYLOAD", "FinalState", "Queue", "Row", "State"]

State = Literal["waiting", "sent", "done", "failed", "interrupted", "expired"]
FinalState = Literal["done", "failed", "interrupted", "expired"]
FINAL_STATES: Final[tuple[FinalState, ...]] = get_args(FinalState)
MAX_PAYLOAD: Final = 64 * 1024 * 1024
_COLUMNS: Final = "id, payload, state, attempts, note, created_at, expires_at, settled_at, mark"


@dataclass(frozen=True)
class Row:
    id: bytes
    payload: bytes | None  # None once erased
    state: State
    attempts: int  # how often it was claimed
    note: str  # why it ended so, for a person
    created_at: int
    expires_at: int
    settled_at: int | None
    mark: bytes | None = None  # its owner's, see `claim`


class Queue:
    """The rows of one name, in order of arrival. All methods raise what `Database.run` raises."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name

    async def append(self, id: bytes, payload: bytes, expires_at: int, *, now: int | None = None) -> None:
        """Adds a waiting row. The same id with the same payload again changes nothing.

        Raises StoreConflict for the same id with another payload, StoreMisuse over 64 MiB.
        """
        if len(payload) > MAX_PAYLOAD:
            raise StoreMisuse("a queued payload holds at most 64 MiB")
        digest = hashlib.sha256(payload).digest()

        def work(connection: Connection) -> None:
            known = connection.execute(
                "SELECT digest FROM queue WHERE name = ? AND id = ?", (self._name, id)
            ).fetchone()
            if known is not None:
                if known[0] != digest:
                    raise StoreConflict("that id is in the queue with another payload")
                return
            connection.execute(
                "INSERT INTO queue (name, id, payload, digest, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ifnull(?, unixepoch()), ?)",
                (self._name, id, bytes(payload), digest, now, expires_at),
            )

        await self._database.run(work)

    async def claim(self, *, now: int, id: bytes | None = None, mark: bytes | None = None) -> Row | None:
        """The oldest waiting row that has not expired (or the one with `id`), now `sent`; None if there is none.

        `mark` is kept with it, for its owner to read after a restart.
        """
        chosen = "" if id is None else " AND id = :id"
        statement = (
            "UPDATE queue SET state = 'sent', attempts = attempts + 1, mark = ifnull(:mark, mark) WHERE sequence ="  # noqa: S608
            " (SELECT sequence FROM queue WHERE name = :name AND state = 'waiting' AND expires_at > :now"
            f"{chosen} ORDER BY sequence LIMIT 1) RETURNING {_COLUMNS}"
        )

        def work(connection: Connection) -> Row | None:
            row = connection.execute(statement, {"name": self._name, "now": now, "id": id, "mark": mark}).fetchone()
            return None if row is None else Row(*row)

        return await self._database.run(work)

    async def mark(self, id: bytes, mark: bytes | None) -> None:
        """Replaces a row's mark, in any state; does nothing for an id that is not in the queue."""
        statement = "UPDATE queue SET mark = ? WHERE name = ? AND id = ?"
        await self._database.run(lambda c: c.execute(statement, (mark, self._name, id)))

    async def erase(self, id: bytes) -> None:
        """Removes a settled row's payload; its outcome stays. Does nothing for a row that is not settled."""
        statement = "UPDATE queue SET payload = NULL WHERE name = ? AND id = ? AND settled_at IS NOT NULL"
        await self._database.run(lambda c: c.execute(statement, (self._name, id)))

    async def release(self, id: bytes | None = None) -> int:
        """Puts a claimed row back to `waiting` (all of them without `id`: after a restart); the number put back."""

        def work(connection: Connection) -> int:
            return connection.execute(
                "UPDATE queue SET state = 'waiting' WHERE name = ? AND state = 'sent' AND id = ifnull(?, id)",
                (self._name, id),
            ).rowcount

        return await self._database.run(work)

    async def settle(
        self, id: bytes, state: FinalState, *, now: int | None = None, note: str = "", erase: bool = False
    ) -> bool:
        """Ends a waiting or claimed row, and with `erase` removes its payload. False if it was settled before.

        The first outcome stays. Raises StoreMisuse for a state that is not final or an id that is not in the queue.
        """
        if state not in FINAL_STATES:
            raise StoreMisuse("a row is settled into a final state")

        def work(connection: Connection) -> bool:
            changed = connection.execute(
                "UPDATE queue SET state = ?, settled_at = ifnull(?, unixepoch()), note = ?,"
                " payload = iif(?, NULL, payload)"
                " WHERE name = ? AND id = ? AND state IN ('waiting', 'sent')",
                (state, now, note, erase, self._name, id),
            ).rowcount
            if changed:
                return True
            if _one(connection, self._name, id) is None:
                raise StoreMisuse("no such row in the queue")
            return False

        return await self._database.run(work)

    async def expire(self, *, now: int) -> list[bytes]:
        """Settles every unsettled row past its expiry as `expired`, without its payload; their ids in order."""

        def work(connection: Connection) -> list[bytes]:
            ids = _ids(connection.execute(
                "SELECT id FROM queue WHERE name = ? AND state IN ('waiting', 'sent') AND expires_at <= ?"
                " ORDER BY sequence", (self._name, now),
            ))
            connection.executemany(
                "UPDATE queue SET state = 'expired', settled_at = ?, payload = NULL WHERE name = ? AND id = ?",
                [(now, self._name, id) for id in ids],
            )
            return ids

        return await self._database.run(work)

    async def forget(self, *, expired_before: int) -> int:
        """Deletes settled rows whose `expires_at` lies before that time; how many."""
        states = ", ".join(f"'{state}'" for state in FINAL_STATES)
        statement = f"DELETE FROM queue WHERE name = ? AND expires_at < ? AND state IN ({states})"  # noqa: S608
        return await self._database.run(lambda c: c.execute(statement, (self._name, expired_before)).rowcount)

    async def get(self, id: bytes) -> Row | None:
        return await self._database.run(lambda c: _one(c, self._name, id), read_only=True)

    async def list(self, states: Sequence[State] = get_args(State)) -> list[Row]:
        """Rows in any of the given states, in order of arrival."""

        def work(connection: Connection) -> list[Row]:
            marks = ", ".join("?" * len(states))
            statement = f"SELECT {_COLUMNS} FROM queue WHERE name = ? AND state IN ({marks})"  # noqa: S608
            return [Row(*row) for row in connection.execute(statement + " ORDER BY sequence", (self._name, *states))]

        return await self._database.run(work, read_only=True)


def _one(connection: Connection, name: str, id: bytes) -> Row | None:
    statement = f"SELECT {_COLUMNS} FROM queue WHERE name = ? AND id = ?"  # noqa: S608
    row = connection.execute(statement, (name, id)).fetchone()
    return None if row is None else Row(*row)


def _ids(cursor: Cursor) -> list[bytes]:
    return [row[0] for row in cursor]
