"""One encrypted database: SQLCipher behind one owner thread. The only door to `sqlcipher3`.

SQLCipher encrypts each 4 KiB page with AES-256-CBC and authenticates it with HMAC-SHA512, the write-ahead log included;
what SQLite would put into temporary files stays in memory. All work runs as a function on the thread that owns the
connection, in a transaction of its own. Several processes may have the same database open.
"""

import asyncio
import concurrent.futures
import contextlib
import importlib.resources
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

from sqlcipher3 import dbapi2

from store.errors import (
    DiskFull,
    StoreBusy,
    StoreConflict,
    StoreCorrupt,
    StoreError,
    StoreMisuse,
    StoreTooNew,
    StoreUnwritable,
    WrongKey,
)
from store.files import file_errors, in_folder
from store.keys import SALT_LEN, DatabaseKey

__all__ = ["STORE_SCHEMA", "Connection", "Cursor", "Database", "SqlValue", "reencrypt"]

T = TypeVar("T")
SqlValue = int | float | str | bytes | None
Parameters = Sequence[SqlValue] | Mapping[str, SqlValue]

STORE_SCHEMA: Final[Traversable] = importlib.resources.files("store") / "schema"
_BUSY_TIMEOUT_S: Final = 5
_NO_ROOM: Final = 64 * 1024  # bytes, in which not even the index of a write-ahead log has its place
_RESTORE: Final = "restore the store from a backup, or move it away and start anew"


class Cursor(Protocol):
    """What a statement gives back (PEP 249)."""

    @property
    def rowcount(self) -> int: ...
    @property
    def lastrowid(self) -> int | None: ...
    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    def fetchone(self) -> tuple[Any, ...] | None: ...
    def fetchall(self) -> list[tuple[Any, ...]]: ...


class Connection(Protocol):
    """What work gets. It never begins, commits or rolls back: its whole run is one transaction."""

    def execute(self, sql: str, parameters: Parameters = ..., /) -> Cursor: ...
    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Cursor: ...


def _is_closed() -> StoreError:
    return StoreMisuse("the database is closed")


class Database:
    """An open database. Made by `open`; `run` and `run_sync` work in it; `close` at the end."""

    def __init__(self, path: Path, key: DatabaseKey, schema: Traversable) -> None:
        """Use `open`."""
        self._path = path
        self._connection: Any = None
        self._owner = 0
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=f"store {path.name}")
        self._closed: Callable[[], StoreError] | None = None
        try:
            self._executor.submit(self._start, key, schema).result()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path, key: DatabaseKey, *, schema: Traversable) -> "Database":
        """Opens the database at `path`, creates it (mode 0600) if there is none, and applies outstanding schema steps.

        `schema` is a folder of steps `NNNN_name.sql` from 0001 on without gaps; each runs once, in a transaction.
        SQLCipher keeps keys in locked memory and wipes them; the pages and statements that it frees are not wiped
        (ADR 0039).
        Blocks for milliseconds. Raises WrongKey, StoreCorrupt, StoreTooNew, StoreBusy, StoreMissing (no such folder),
        DiskFull, StoreUnwritable.
        """
        return cls(path, key, schema)

    async def run(self, work: Callable[[Connection], T], *, read_only: bool = False) -> T:
        """Runs `work` in one transaction on the owner thread; commits if it returns, rolls back if it raises.

        Write transactions lock out other writers from their start (BEGIN IMMEDIATE), so what they read stays true.
        `read_only=True` sees one snapshot and waits for nobody. Once work runs, cancelling the caller does not stop it.
        Raises what `work` raises; errors of the database as StoreBusy (after 5 s), StoreConflict (a constraint),
        StoreCorrupt, DiskFull, StoreUnwritable; StoreMisuse after `close`.
        """
        return await self._accepted(
            lambda: asyncio.get_running_loop().run_in_executor(self._executor, self._transaction, work, read_only)
        )

    def run_sync(self, work: Callable[[Connection], T], *, read_only: bool = False) -> T:
        """The same for plain threads. Blocks."""
        if threading.get_ident() == self._owner:
            raise StoreMisuse("work must not start other work and wait for it")
        return self._accepted(lambda: self._executor.submit(self._transaction, work, read_only)).result()

    async def copy(self, path: Path) -> None:
        """A copy of the database as it is at one moment, under the same key, in a new file (mode 0600).

        Raises StoreUnwritable, DiskFull, StoreMisuse if the file exists and is not empty.
        """
        await self._accepted(lambda: asyncio.get_running_loop().run_in_executor(self._executor, self._copy, path))

    def copy_sync(self, path: Path) -> None:
        """The same for plain threads. Blocks."""
        self._accepted(lambda: self._executor.submit(self._copy, path)).result()

    def close(self, why: Callable[[], StoreError] = _is_closed) -> None:
        """Waits for work begun, folds the log into the database and closes it. Idempotent.

        `why` makes the error of whoever comes later, such as StoreLocked where it may be opened anew.
        """
        if self._closed is not None:
            return
        self._closed = why
        self._executor.submit(self._stop)
        self._executor.shutdown(wait=True)

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _accepted(self, submit: Callable[[], T]) -> T:
        if self._closed is not None:
            raise self._closed()
        try:
            return submit()
        except RuntimeError:  # closed by another thread in between
            raise (self._closed or _is_closed)() from None

    # From here on everything runs on the owner thread.

    def _transaction(self, work: Callable[[Connection], T], read_only: bool) -> T:
        with _database_errors(self._path):
            self._connection.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")
            try:
                result = work(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(dbapi2.Error):  # a full disk has rolled back already; the first error counts
                    self._connection.execute("ROLLBACK")
                raise
            return result

    def _copy(self, path: Path) -> None:
        with file_errors(path):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))  # SQLite takes an empty file as it is
            was_empty = path.stat().st_size == 0
        try:
            with _database_errors(path):
                self._connection.execute("VACUUM INTO ?", (str(path),))
        except BaseException:
            if was_empty:
                path.unlink(missing_ok=True)
            raise

    def _start(self, key: DatabaseKey, schema: Traversable) -> None:
        self._owner = threading.get_ident()
        with _database_errors(self._path):
            with in_folder(self._path.parent, alone=False):  # until the log is in use, which keeps it from being moved
                _ensure_file(self._path)
                self._connection = _connected(self._path, key)
                self._connection.execute("PRAGMA temp_store = MEMORY")
                self._connection.execute("PRAGMA secure_delete = ON")
                with _told_apart(self._path, key):  # until then somebody may change the key as well
                    self._use_wal()
            self._connection.execute("PRAGMA synchronous = FULL")  # committed means on stable storage
            self._connection.execute("PRAGMA foreign_keys = ON")
        self._migrate(schema)

    def _use_wal(self) -> None:
        """Waits as long as any other statement: SQLite itself does not wait where several switch a new file at once."""
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens it: now it is in use
                return
            except dbapi2.OperationalError as error:
                if _primary_code(error) != dbapi2.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _migrate(self, schema: Traversable) -> None:
        steps = sorted((step for step in schema.iterdir() if step.name.endswith(".sql")), key=lambda step: step.name)
        for number, step in enumerate(steps, 1):
            if not step.name.startswith(f"{number:04}_"):
                raise StoreMisuse("schema steps are not numbered without gaps")

        def apply_missing(connection: Connection) -> None:
            done = _schema_version(connection)  # asked inside: another process may have been first
            for step in steps[done:]:
                for statement in _statements(step.read_text("utf-8")):
                    connection.execute(statement)
            if done < len(steps):
                connection.execute(f"PRAGMA user_version = {len(steps)}")

        version = self._transaction(_schema_version, True)
        if version > len(steps):
            raise StoreTooNew("a later version of this program wrote the store", hint="update this installation")
        if version < len(steps):
            self._transaction(apply_missing, False)

    def _stop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(dbapi2.Error):
                self._connection.close()
            self._connection = None


def reencrypt(path: Path, key: DatabaseKey, new: DatabaseKey, before: Callable[[], None]) -> None:
    """Gives the database that `key` opens another key, by rewriting each page in one transaction.

    `before` is called when nothing else is in the way. The salt in the file's first bytes changes with the key. Blocks
    for about as long as the file takes to be copied, and needs as much room again. Raises StoreBusy while anybody has
    the database open, also in this process; WrongKey, StoreCorrupt, StoreMissing, DiskFull, StoreUnwritable, what
    `before` raises; then it has its old key.
    """
    with file_errors(path):
        path.stat()
    with _database_errors(path), contextlib.ExitStack() as stack:
        opening = stack.enter_context(contextlib.ExitStack())
        opening.enter_context(in_folder(path.parent, alone=False))
        connection = stack.enter_context(contextlib.closing(_connected(path, key)))
        # Users of a write-ahead log hold locks as long as they have it open, so that it cannot be switched off under
        # them. In this locking mode the lock of a first transaction is kept; then nobody can have switched it on again.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
        with _told_apart(path, key):
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        if connection.execute("PRAGMA journal_mode").fetchone() != ("delete",):
            raise StoreBusy("somebody is opening the store", hint="try again")
        opening.close()
        needed = path.stat().st_size * 257 // 256 + 2**17  # the journal has each page, its number and checksum
        _check_room(path, needed)
        before()
        try:
            _hand_over(connection, "rekey", new)
        except StoreError:  # the library does not tell why
            _check_room(path, needed)
            raise StoreUnwritable(
                "the key of the store could not be changed", hint="it needs as much room as the store has again"
            ) from None


def _check_room(path: Path, needed: int) -> None:
    if _free(path) < needed:
        raise DiskFull(
            "no space left to change the key of the store",
            hint=f"it takes {-(-needed // 1_000_000)} MB, which are free again afterwards; nothing was changed",
        )


def _free(path: Path) -> int:
    with file_errors(path):
        return shutil.disk_usage(path.resolve().parent).free


def _ensure_file(path: Path) -> None:
    """Creates the file with private permissions; its -wal and -shm inherit them.

    One that exists is not opened: closing it again would drop the locks that SQLite holds on it in this process.
    """
    with file_errors(path):
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if 0 < path.stat().st_size < SALT_LEN:  # SQLite takes a single byte for an empty file
            raise StoreCorrupt("the store is damaged", hint=_RESTORE)


def _connected(path: Path, key: DatabaseKey) -> Any:
    """Raises WrongKey, StoreCorrupt, and the library's errors."""
    # isolation_level=None: transactions are ours alone; the module would begin and commit by itself.
    connection = dbapi2.connect(str(path), timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    try:
        # First of all: the C library would report a wrong key on stderr by itself.
        connection.execute("PRAGMA cipher_log = off")
        _hand_over(connection, "key", key)
        with _told_apart(path, key):
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _told_apart(path: Path, key: DatabaseKey) -> Iterator[None]:
    """Raises WrongKey for what SQLCipher cannot read if another key is needed, else StoreCorrupt.

    It has the salt as the first 16 bytes in the clear: another one means another key, the same one means damage.
    """
    try:
        yield
    except dbapi2.DatabaseError as error:
        if _primary_code(error) != dbapi2.SQLITE_NOTADB:
            raise
        with file_errors(path), path.open("rb") as file:
            start = file.read(SALT_LEN)
        if start == key.salt:
            raise StoreCorrupt("the store is damaged", hint=_RESTORE) from error
        raise WrongKey("the key does not open this store", hint="key file and database belong together") from error


def _hand_over(connection: Any, pragma: Literal["key", "rekey"], key: DatabaseKey) -> None:
    """The one place where key material meets a statement; nothing may trace statements or chain errors here."""
    try:
        connection.execute(f"PRAGMA {pragma} = \"x'{key.expose().hex()}'\"")
    except dbapi2.Error:
        raise StoreError("the key could not be handed to the database") from None


def _schema_version(connection: Connection) -> int:
    row = connection.execute("PRAGMA user_version").fetchone()
    assert row is not None
    return int(row[0])


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit the transaction around them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if dbapi2.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise StoreMisuse("a schema step ends in the middle of a statement")


def _primary_code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits are SQLite's extended codes


@contextlib.contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except dbapi2.IntegrityError as error:
        raise StoreConflict("the row contradicts what the store holds") from error
    except dbapi2.Error as error:
        code = _primary_code(error)
        if code in (dbapi2.SQLITE_CORRUPT, dbapi2.SQLITE_NOTADB):
            raise StoreCorrupt("the store is damaged", hint=_RESTORE) from error
        if code in (dbapi2.SQLITE_BUSY, dbapi2.SQLITE_LOCKED):
            raise StoreBusy("another process is writing to the store", hint="try again when it is done") from error
        # What SQLite maps into memory, and what a disk finds out late, fails as any other write does.
        if code == dbapi2.SQLITE_FULL or (code == dbapi2.SQLITE_IOERR and _free(path) < _NO_ROOM):
            raise DiskFull("no space left for the store", hint="free some space; what was stored is intact") from error
        if code in (dbapi2.SQLITE_IOERR, dbapi2.SQLITE_READONLY, dbapi2.SQLITE_CANTOPEN, dbapi2.SQLITE_PERM):
            raise StoreUnwritable(f"cannot use {path}", hint="check the disk, the owner and the permissions") from error
        raise StoreMisuse("the database refused a statement") from error
