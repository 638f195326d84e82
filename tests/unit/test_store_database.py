"""The encrypted database: keys, damage, transactions, threads, other processes, schema steps, imports."""

import asyncio
import os
import stat
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Literal

import pytest

import store.database
from store.database import STORE_SCHEMA, Connection, Database
from store.errors import (
    DiskFull,
    StoreBusy,
    StoreConflict,
    StoreCorrupt,
    StoreError,
    StoreMissing,
    StoreMisuse,
    StoreTooNew,
    StoreUnwritable,
    WrongKey,
)
from store.keys import DatabaseKey
from tests.support.outside import ROOT
from tests.support.stores import KEY, open_store

PUT = "INSERT INTO settings VALUES ('n', ?, ?)"


def count(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM settings").fetchone()
    assert row is not None
    return int(row[0])


def put(database: Database, key: str, value: bytes = b"v") -> None:
    database.run_sync(lambda c: c.execute(PUT, (key, value)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_survives_closing_and_is_private(path: Path) -> None:
    with open_store(path) as database:
        put(database, "k", b"value" * 1000)
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
        assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert path.read_bytes()[:16] == KEY.salt
    with open_store(path) as database:
        assert database.run_sync(count) == 1


def test_pragmas_hold(path: Path) -> None:
    wanted = {
        "journal_mode": "wal", "synchronous": 2, "temp_store": 2, "secure_delete": 1, "foreign_keys": 1,
        "busy_timeout": 5000, "cipher_page_size": "4096",
    }

    def read(connection: Connection) -> dict[str, object]:
        return {name: (connection.execute(f"PRAGMA {name}").fetchone() or [None])[0] for name in wanted}

    with open_store(path) as database:
        assert database.run_sync(read) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="what is locked is asked of /proc")
def test_the_key_is_in_locked_memory_and_nothing_else_is(path: Path) -> None:
    """Locked pages and the switch for wiping are of a process: so one of its own is asked.

    SQLCipher has a heap for keys, which it locks as it is loaded. Rows do not make it longer (ADR 0039).
    """
    asked = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from store.database import STORE_SCHEMA, Database\n"
        "from store.keys import DatabaseKey\n"
        "def locked(): return int(re.search(r'VmLck:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "key = DatabaseKey(bytes(range(48)))\n"
        "with Database.open(Path(sys.argv[1]), key, schema=STORE_SCHEMA) as database:\n"
        "    before = locked()\n"
        "    database.run_sync(lambda c: c.execute('INSERT INTO settings VALUES (1, 2, ?)', (bytes(1 << 20),)))\n"
        "    print(before > 0, locked() - before, database.run_sync("
        "lambda c: c.execute('PRAGMA cipher_memory_security').fetchone()))"
    )
    done = subprocess.run([sys.executable, "-c", asked, path], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True 0 ('0',)\n", done.stderr


def test_a_wrong_key_is_an_error_and_no_noise(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_store(path) as database:
        put(database, "k")
    before = path.read_bytes()
    for key, error in ((DatabaseKey.generate(), WrongKey), (DatabaseKey(bytes(32) + KEY.salt), StoreCorrupt)):
        with pytest.raises(error) as caught:
            open_store(path, key)
        assert caught.value.hint
        assert key.expose().hex() not in repr(caught.value) + repr(caught.value.__cause__)
    assert path.read_bytes() == before
    assert capfd.readouterr() == ("", "")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("store ")]


class _Refusing:
    """A connection whose errors quote the statement, as a library's may."""

    def execute(self, sql: str) -> None:
        raise store.database.dbapi2.OperationalError(f"near: {sql}")


@pytest.mark.parametrize("pragma", ["key", "rekey"])
def test_M19_no_error_shows_the_raw_key(pragma: Literal["key", "rekey"]) -> None:
    """The one statement that holds key material fails without a word of it, however the error is printed."""
    key = DatabaseKey(bytes(range(48)))
    with pytest.raises(StoreError) as caught:
        store.database._hand_over(_Refusing(), pragma, key)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert key.expose().hex()[:16] not in shown.lower()
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_M19_key_material_meets_a_statement_in_one_place_and_nothing_traces_it() -> None:
    sources = [path for name in ("store", "relay", "edge_client") for path in (ROOT / name).rglob("*.py")]
    text = "".join(path.read_text() for path in sources)
    assert "PRAGMA key" not in text and "PRAGMA rekey" not in text
    assert text.count("PRAGMA {pragma}") == text.count("key.expose().hex()") == 1
    assert text.count("PRAGMA cipher_log") == text.count("PRAGMA cipher_log = off") == 1
    assert "trace_callback" not in text and "cipher_profile" not in text


def test_damage_anywhere_is_found_and_never_answered(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_store(path) as database:
        for number in range(40):
            put(database, str(number), os.urandom(3000))
    whole = path.read_bytes()

    def read_all(connection: Connection) -> str:
        connection.execute("SELECT sum(length(value)) FROM settings").fetchall()
        return str((connection.execute("PRAGMA integrity_check").fetchone() or [""])[0])

    for page in range(len(whole) // 4096):
        for offset in (20 if page == 0 else 0, 4095):
            damaged = bytearray(whole)
            damaged[page * 4096 + offset] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(StoreCorrupt), open_store(path) as database:
                found = database.run_sync(read_all)
                assert found != "ok", f"page {page} was altered and nobody noticed"
                raise StoreCorrupt("found by the check")
    for length in (1, 15, 100, 4095, 5 * 4096 + 7):
        path.write_bytes(whole[:length])
        with pytest.raises((StoreCorrupt, WrongKey)), open_store(path) as database:
            database.run_sync(read_all)
    assert capfd.readouterr() == ("", "")


def test_places_that_do_not_serve(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        open_store(tmp_path / "none" / "store.db")
    with pytest.raises(StoreUnwritable):
        open_store(tmp_path)


async def test_work_is_one_transaction(path: Path) -> None:
    class Boom(Exception):
        pass

    def half(connection: Connection) -> None:
        connection.execute(PUT, ("a", b""))
        raise Boom

    with open_store(path) as database:
        with pytest.raises(Boom):
            await database.run(half)
        assert await database.run(count, read_only=True) == 0
        with pytest.raises(StoreConflict):
            await database.run(lambda c: c.executemany(PUT, [("a", b""), ("a", b"")]))
        with pytest.raises(StoreMisuse):
            await database.run(lambda c: c.execute("SELEC"))
        assert await database.run(count) == 0
        await asyncio.gather(*(database.run(lambda c, n=n: c.execute(PUT, (str(n), b""))) for n in range(20)))
        assert await database.run(count) == 20


async def test_cancelled_before_it_began_means_it_never_ran(path: Path) -> None:
    gate = threading.Event()
    with open_store(path) as database:
        first = asyncio.create_task(database.run(lambda c: gate.wait(10)))
        second = asyncio.create_task(database.run(lambda c: c.execute(PUT, ("late", b""))))
        await asyncio.sleep(0)  # both are handed over
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        await first
        assert await database.run(count) == 0


def test_after_close_and_inside_work(path: Path) -> None:
    database = open_store(path)
    with pytest.raises(StoreMisuse):
        database.run_sync(lambda c: database.run_sync(count))
    database.close()
    database.close()
    with pytest.raises(StoreMisuse):
        database.run_sync(count)


def test_another_writer_is_waited_for_and_then_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.database, "_BUSY_TIMEOUT_S", 0.02)
    held, done = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        held.set()
        assert done.wait(10)

    with open_store(path) as one, open_store(path) as two:
        holder = threading.Thread(target=lambda: one.run_sync(hold))
        holder.start()
        assert held.wait(10)
        try:
            with pytest.raises(StoreBusy) as caught:
                put(two, "k")
            assert caught.value.retryable
            assert two.run_sync(count, read_only=True) == 0  # readers do not wait
        finally:
            done.set()
            holder.join()
        put(two, "k")
        assert one.run_sync(count) == 1


def test_a_full_disk_leaves_what_was_stored(path: Path) -> None:
    with open_store(path) as database:
        put(database, "kept")

        def cap(connection: Connection) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()
            assert pages is not None
            connection.execute(f"PRAGMA max_page_count = {pages[0] + 2}")

        database.run_sync(cap)
        with pytest.raises(DiskFull):
            put(database, "big", os.urandom(100_000))
        assert database.run_sync(count) == 1
        put(database, "small")
    with open_store(path) as database:
        assert database.run_sync(count) == 2


def steps(folder: Path, *scripts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number, script in enumerate(scripts, 1):
        (folder / f"{number:04}_step.sql").write_text(script)
    return folder


TRIGGER = "CREATE TRIGGER t AFTER INSERT ON a BEGIN INSERT INTO b VALUES (new.x);\n DELETE FROM b WHERE x = 0; END;\n"


def test_schema_steps_run_once_and_forward(path: Path, tmp_path: Path) -> None:
    first = steps(tmp_path / "one", "CREATE TABLE a (x); -- one\nCREATE TABLE b (x);\n" + TRIGGER)
    Database.open(path, KEY, schema=first).close()
    second = steps(tmp_path / "two", "CREATE TABLE a (x);", "INSERT INTO a VALUES (7);")
    for _ in range(2):
        with Database.open(path, KEY, schema=second) as database:
            assert database.run_sync(lambda c: c.execute("SELECT x FROM b").fetchall()) == [(7,)]
    with pytest.raises(StoreTooNew):
        Database.open(path, KEY, schema=first)


def test_a_failing_step_leaves_nothing(path: Path, tmp_path: Path) -> None:
    good = steps(tmp_path / "good", "CREATE TABLE a (x);")
    Database.open(path, KEY, schema=good).close()
    for bad in ("CREATE TABLE b (x);\nCREATE TABLE a (x);\n", "CREATE TABLE b (x);\nCREATE TABLE c (x)"):
        with pytest.raises(StoreMisuse):
            Database.open(path, KEY, schema=steps(tmp_path / "bad", "", bad))
    with Database.open(path, KEY, schema=good) as database:
        assert database.run_sync(lambda c: c.execute("SELECT name FROM sqlite_master").fetchall()) == [("a",)]
    (tmp_path / "good" / "0003_gap.sql").write_text("")
    with pytest.raises(StoreMisuse):
        Database.open(path, KEY, schema=tmp_path / "good")


OPEN = """
import sys
from pathlib import Path
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
with Database.open(Path(sys.argv[1]), DatabaseKey(bytes(range(48))), schema=STORE_SCHEMA) as database:
    database.run_sync(lambda c: c.execute("INSERT INTO settings VALUES ('n', ?, x'00')", (sys.argv[2],)))
"""


def test_processes_may_create_and_use_it_at_once(path: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(path)]
    processes = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in range(4)]
    for process in processes:
        assert process.communicate(timeout=60) == (None, b"") and process.returncode == 0
    with open_store(path) as database:
        assert database.run_sync(count) == 4


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("store.errors, store.keys, store.sealed, store.files", "sqlcipher3"),
        ("store.database, store.settings, store.queue, store.documents, store.keys, store.sealed", "numpy"),
    ],
)
def test_light_parts_load_no_heavy_ones(modules: str, unwanted: str) -> None:
    code = f"import sys, {modules}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_error_says_whose_fault_it_is() -> None:
    found = list(StoreError.__subclasses__())
    for kind in found:
        found += kind.__subclasses__()
    codes = [kind.code for kind in [StoreError, *found]]
    assert len(set(codes)) == len(codes)
    assert {kind.fault for kind in found} == {"store", "local", "user"}
    assert STORE_SCHEMA.is_dir()
