"""The rows of the journal: statements.

Everything here is a function of a connection; what the rows mean is said in `relay.gateway.journal`, which owns them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from store.database import Connection

T = TypeVar("T")
Owner = tuple[str, int]  # SPIFFE ID and enrolment number: a new holder of a name is another owner


@dataclass(frozen=True)
class Key:
    """Names a request. Two devices cannot have one key, whatever ids they choose (review H7)."""

    spiffe_id: str
    enrolment: int
    request_id: bytes

    @property
    def owner(self) -> Owner:
        return self.spiffe_id, self.enrolment


@dataclass(frozen=True)
class Row:
    number: int
    digest: bytes
    expires: int
    generation: int
    state: str
    status: int
    content_type: str
    streamed: int
    length: int
    sha256: bytes
    kept: int
    code: str
    message: str


_COLUMNS: Final = (
    "number, digest, expires, generation, state, status, content_type, streamed, length, sha256, kept, code, message"
)

INTERRUPTED: Final = (
    409, "interrupted",
    "the gateway stopped while this request was under way; it may have been carried out, and is not repeated",
)


@dataclass(frozen=True)
class Share:
    """What some of an owner's rows amount to: how many, of these how many with an answer, and its bytes."""

    owner: Owner
    rows: int
    waiting: int
    kept: int


_SHARES: Final = "SELECT spiffe_id, enrolment, count(*), sum(kept > 0), sum(kept) FROM calls"


def start(connection: Connection) -> tuple[bytes, list[Share]]:
    """What a new process finds: (epoch, what each owner has). Calls that were under way have ended with the
    process that made them: their outcome is not known, and nobody makes them again.
    """
    connection.execute("DELETE FROM answer_parts WHERE call IN (SELECT number FROM calls WHERE state = 'running')")
    connection.execute(
        "UPDATE calls SET state = 'refused', status = ?, code = ?, message = ? WHERE state = 'running'", INTERRUPTED
    )
    row = connection.execute("SELECT epoch FROM journal").fetchone()
    assert row is not None
    return bytes(row[0]), [
        Share((one[0], one[1]), *one[2:]) for one in connection.execute(_SHARES + " GROUP BY spiffe_id, enrolment")
    ]


def find(connection: Connection, key: Key) -> Row | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM calls WHERE spiffe_id = ? AND enrolment = ? AND request_id = ?",  # noqa: S608
        (key.spiffe_id, key.enrolment, key.request_id),
    ).fetchone()
    return None if row is None else Row(*row)


def claim(
    connection: Connection, key: Key, digest: bytes, expires: int, generation: int, room: bool
) -> tuple[Row | None, bool]:
    """(the row that was there, False), else (a new running one, True) if there is `room`."""
    made = room and connection.execute(
        "INSERT INTO calls (spiffe_id, enrolment, request_id, digest, expires, generation) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING number",
        (key.spiffe_id, key.enrolment, key.request_id, digest, expires, generation),
    ).fetchone()
    if not made:
        return find(connection, key), False
    return Row(made[0], digest, expires, generation, "running", 0, "", 0, 0, b"", 0, "", ""), True


def release(connection: Connection, number: int) -> bool:
    """Forgets a running call: nobody can have accepted it."""
    return connection.execute("DELETE FROM calls WHERE number = ? AND state = 'running'", (number,)).rowcount > 0


def append(connection: Connection, number: int, parts: Sequence[tuple[int, bytes]]) -> None:
    """Adds (offset, bytes) to the answer of a call, unless the call is over."""
    connection.executemany(
        "INSERT INTO answer_parts SELECT number, ?, ? FROM calls WHERE number = ? AND state = 'running'",
        [(offset, data, number) for offset, data in parts],
    )


def answered(
    connection: Connection, number: int, parts: Sequence[tuple[int, bytes]], head: tuple[int, str, bool], length: int,
    sha256: bytes,
) -> bool:
    """Ends a running call with a whole answer; False if it had ended before."""
    append(connection, number, parts)
    return connection.execute(
        "UPDATE calls SET state = 'answered', status = ?, content_type = ?, streamed = ?, length = ?, kept = ?,"
        " sha256 = ? WHERE number = ? AND state = 'running'",
        (*head, length, length, sha256, number),
    ).rowcount > 0


def refused(connection: Connection, number: int, status: int, code: str, message: str, length: int) -> bool:
    """Ends a running call without an answer; what there was of it goes. False if it had ended before."""
    ended = connection.execute(
        "UPDATE calls SET state = 'refused', status = ?, code = ?, message = ?, length = ?"
        " WHERE number = ? AND state = 'running'",
        (status, code, message, length, number),
    ).rowcount > 0
    if ended:
        connection.execute("DELETE FROM answer_parts WHERE call = ?", (number,))
    return ended


def erase(connection: Connection, numbers: Sequence[int]) -> list[bool]:
    """Forgets the bytes of answers and keeps their outcome; which of them had any."""
    connection.executemany("DELETE FROM answer_parts WHERE call = ?", [(number,) for number in numbers])
    return [
        connection.execute("UPDATE calls SET kept = 0 WHERE number = ? AND kept > 0", (number,)).rowcount > 0
        for number in numbers
    ]


def part(connection: Connection, number: int, offset: int) -> bytes:
    """Some bytes of an answer from `offset` on, empty if they are not there."""
    row = connection.execute(
        "SELECT start, data FROM answer_parts WHERE call = ? AND start <= ? ORDER BY start DESC LIMIT 1",
        (number, offset),
    ).fetchone()
    return b"" if row is None else bytes(row[1])[offset - int(row[0]):]


def sweep(connection: Connection, before: int) -> list[Share]:
    """Deletes calls that are over and expired before then: what went."""
    shares = [Share((one[0], one[1]), *one[2:]) for one in connection.execute(
        _SHARES + " WHERE expires < ? AND state != 'running' GROUP BY spiffe_id, enrolment", (before,)
    )]
    if shares:
        connection.execute("DELETE FROM calls WHERE expires < ? AND state != 'running'", (before,))
    return shares


def delete_owner(connection: Connection, owner: Owner) -> None:
    connection.execute("DELETE FROM calls WHERE spiffe_id = ? AND enrolment = ?", owner)
