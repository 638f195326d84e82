"""Whether a store is whole: every page's authenticity, SQLite's own checks, and what our tables promise each other."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store.database import STORE_SCHEMA, Connection, Database
from store.errors import StoreCorrupt, StoreMissing
from store.files import file_errors
from store.keys import DatabaseKey

__all__ = ["Problem", "Report", "check", "who_may_read"]

_RESTORE: Final = "`edge store restore` brings back a backup; without one, move the store away and ingest again"
_AGAIN: Final = "`edge documents forget` and `edge ingest` store it anew"
_TOLD: Final = 20  # of SQLite's own findings

# Each gives how many documents break it, and one of them.
_PROMISES: Final = (
    (
        "passages", "a document has not the number of passages that was stored",
        "FROM documents d WHERE d.chunks IS NOT (SELECT count(*) FROM chunks c WHERE c.document_id = d.id)",
    ),
    (
        "vectors", "a document has passages without their vector, or with one of another size",
        "FROM documents d JOIN collections k ON k.id = d.collection_id JOIN chunks c ON c.document_id = d.id"
        " LEFT JOIN vectors v ON v.chunk_id = c.id WHERE length(v.value) IS NOT 2 * k.dimension",
    ),
    (
        "codes", "a document has passages that the search by meaning cannot find",
        "FROM documents d JOIN collections k ON k.id = d.collection_id"
        " LEFT JOIN codes e ON e.collection_id = k.id AND e.document_id = d.id"  # three bits a component
        " JOIN (SELECT document_id, min(id) AS first, count(*) AS held FROM chunks GROUP BY document_id) c"
        " ON c.document_id = d.id WHERE (k.coded OR e.code IS NOT NULL)"
        " AND (e.first_chunk IS NOT c.first OR length(e.code) IS NOT c.held * 3 * ((k.dimension + 7) / 8))",
    ),
    (
        "words", "a document has passages that the search by words cannot find",
        "FROM documents d JOIN chunks c ON c.document_id = d.id"
        " WHERE NOT EXISTS (SELECT 1 FROM words_docsize w WHERE w.id = c.id)",
    ),
)
_ORPHANS: Final = "SELECT count(*) FROM words_docsize w WHERE NOT EXISTS (SELECT 1 FROM chunks c WHERE c.id = w.id)"
_TABLES: Final = "SELECT type, name, tbl_name, sql FROM sqlite_master"  # triggers and indexes as well


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, in words for a person, with what to do about it. `code` stays as it is."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class Report:
    """What `check` saw. The numbers are 0 where the database could not be read; `size` in bytes."""

    problems: tuple[Problem, ...]
    schema: int = 0
    documents: int = 0
    chunks: int = 0
    size: int = 0


def check(path: Path, key: DatabaseKey, tell: Callable[[str], None] = lambda step: None) -> Report:
    """Reads all of the database at `path`: some seconds a gigabyte. Others may go on reading and writing it.

    Opening it applies outstanding schema steps, as always. `tell` is told each step. Damage is in the report; raises
    StoreMissing, WrongKey, StoreTooNew, StoreBusy, StoreUnwritable.
    """
    if not path.exists():
        raise StoreMissing(f"{path} does not exist", hint="there is a key, and no database for it: restore a backup")
    size = path.stat().st_size
    try:
        with Database.open(path, key, schema=STORE_SCHEMA) as database:
            return database.run_sync(lambda connection: _look(connection, size, tell), read_only=True)
    except StoreCorrupt:
        return Report((Problem("pages", "the database is damaged so that it cannot be opened or read", _RESTORE),))


def who_may_read(paths: Iterable[Path]) -> list[Problem]:
    """Of those that exist: belonging to somebody else, or open to others. Nothing where a system has no such modes."""
    found: list[Problem] = []
    if os.name == "nt":
        return found
    for path in paths:
        with file_errors(path), contextlib.suppress(FileNotFoundError):
            mode = path.stat()
            if mode.st_uid != os.geteuid():
                found.append(Problem("owner", f"{path} belongs to another user", "make it yours, with chown"))
            elif stat.S_IMODE(mode.st_mode) & 0o077:
                right = "700" if stat.S_ISDIR(mode.st_mode) else "600"
                found.append(Problem("permissions", f"others may use {path}", f"chmod {right} {path}"))
    return found


def _look(connection: Connection, size: int, tell: Callable[[str], None]) -> Report:
    tell("authenticity of every page")
    bad = _pages(connection)
    if bad:  # a page that is just being written over is read as bad, once
        bad &= _pages(connection)
    if bad:
        message = f"pages of the database are damaged or were altered, {len(bad)} of them"
        return Report((Problem("pages", message, _RESTORE),), size=size)
    if set(connection.execute(_TABLES)) != _as_made():  # what stands in them could do anything: not looked at
        return Report((Problem("schema", "tables are not as this program makes them", _RESTORE),), size=size)
    problems = []
    tell("tables and indexes")
    connection.execute("SELECT rowid FROM words LIMIT 1").fetchone()  # else SQLite would pass its index over
    for (said,) in connection.execute(f"PRAGMA integrity_check({_TOLD})"):
        if said != "ok":
            code = "words" if "fts5" in said.lower() else "tables"
            problems.append(Problem(code, f"the database contradicts itself: {said}", _RESTORE))
    for table, *_ in connection.execute("PRAGMA foreign_key_check"):
        problems.append(Problem("tables", f"a row of {table} belongs to nothing", _RESTORE))
    tell("documents, passages, vectors")
    for code, what, statement in _PROMISES:
        count, example = _row(connection, f"SELECT count(DISTINCT d.id), min(d.source) {statement}")
        if count:
            which = f"{example}, and {count - 1} more" if count > 1 else example
            problems.append(Problem(code, f"{what}: {which}", _AGAIN))
    (orphans,) = _row(connection, _ORPHANS)
    if orphans:
        message = f"entries of the search by words lead to no passage, {orphans} of them"
        problems.append(Problem("words", message, _RESTORE))
    (schema,) = _row(connection, "PRAGMA user_version")
    documents, chunks = _row(connection, "SELECT count(*), ifnull(sum(chunks), 0) FROM documents")
    return Report(tuple(problems[:_TOLD]), schema, documents, chunks, size)


def _as_made() -> set[tuple[str, ...]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Database.open(Path(folder) / "empty", DatabaseKey.generate(), schema=STORE_SCHEMA) as empty,
    ):
        return set(empty.run_sync(lambda connection: connection.execute(_TABLES).fetchall(), read_only=True))


def _pages(connection: Connection) -> set[str]:
    """What SQLCipher says of pages whose authentication fails."""
    return {str(row[0]) for row in connection.execute("PRAGMA cipher_integrity_check")}


def _row(connection: Connection, statement: str) -> tuple[int, ...]:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row
