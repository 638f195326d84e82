"""A new key for the database: what opens both files afterwards, who is in the way, and what a change cut short leaves.

That it may be cut short at any moment is tried by tests/faults/test_store_kills.py.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import store.database
import store.rekey
from store import key_file
from store.database import Database
from store.errors import (
    DiskFull,
    NoTpm,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreMissing,
    StoreMisuse,
    StoreUnwritable,
    WrongKey,
)
from store.keys import (
    DatabaseKey,
    HeldKey,
    Passphrase,
    add_held,
    add_passphrase,
    by_held,
    by_passphrase,
    by_tpm,
    create_key,
    remove_held,
    remove_passphrase,
    unlock_by_tpm,
    unlock_held,
    unlock_key,
    ways_in,
)
from store.rekey import rekey
from tests.support.outside import ROOT
from tests.support.stores import open_store

WORDS, HELD = Passphrase("correct horse"), HeldKey(bytes(range(32)))
PAGE = 4096


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store of 200 pages that a passphrase and a held key open."""
    key = create_key(tmp_path / "store.key", WORDS)
    add_held(tmp_path / "store.key", key, lambda store_id, held: None)
    store_id, wrappings = key_file.read(tmp_path / "store.key")
    key_file.write(tmp_path / "store.key", store_id, [wrappings[0], by_held(HELD)(key, store_id)], replace=True)
    with open_store(tmp_path / "store.db", key) as database:
        database.run_sync(lambda c: c.executemany("INSERT INTO settings VALUES ('n', ?, ?)", rows()))
        database.run_sync(lambda c: c.execute("DELETE FROM settings WHERE key > '150'"))  # pages that are free
    return tmp_path


def rows() -> list[tuple[str, bytes]]:
    return [(f"{number:03}", bytes([number]) * PAGE) for number in range(200)]


def held_rows(home: Path, key: DatabaseKey) -> list[tuple[str, bytes]]:
    with open_store(home / "store.db", key) as database:
        assert database.run_sync(lambda c: c.execute("PRAGMA cipher_integrity_check").fetchall()) == []
        assert database.run_sync(lambda c: c.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
        return database.run_sync(lambda c: c.execute("SELECT key, value FROM settings ORDER BY key").fetchall())


KEPT = rows()[:151]


def change(home: Path, key: DatabaseKey) -> DatabaseKey:
    return rekey(home / "store.db", home / "store.key", key, [by_passphrase(WORDS), by_held(HELD)])


def blocks(folder: Path) -> set[bytes]:
    """What the files hold, in pairs of the blocks that AES encrypts at once; the name of the store is no secret."""
    found = set()
    for path in folder.iterdir():
        data = path.read_bytes()
        found |= {data[at : at + 32] for at in range(0, len(data) - 31, 16)}
    return found - {(folder / "store.key").read_bytes()[:32]}


def test_every_way_opens_the_new_key_and_nothing_the_old_one(home: Path) -> None:
    old, before = unlock_held(home / "store.key", HELD), blocks(home)
    new = change(home, old)
    assert len({old.expose()[:32], new.expose()[:32]}) == len({old.salt, new.salt}) == 2
    assert ways_in(home / "store.key") == ["passphrase", "held"]
    assert unlock_key(home / "store.key", WORDS).expose() == unlock_held(home / "store.key", HELD).expose()
    assert sorted(path.name for path in home.iterdir()) == ["store.db", "store.key"]
    assert len(before) > 50_000  # free pages included
    assert len(before & blocks(home)) == 0, "something that the old key opens is still there"
    for key in (old, DatabaseKey(old.expose()[:32] + new.salt), DatabaseKey(new.expose()[:32] + old.salt)):
        with pytest.raises((WrongKey, StoreCorrupt)):
            open_store(home / "store.db", key)
    assert held_rows(home, new) == KEPT


def test_it_is_a_store_like_any_other_afterwards(home: Path) -> None:
    key = unlock_held(home / "store.key", HELD)
    for _ in range(3):
        key = change(home, key)
        with open_store(home / "store.db", key) as database:
            mode, pages = (database.run_sync(lambda c, n=n: c.execute(f"PRAGMA {n}").fetchone()) for n in (
                "journal_mode", "page_count"))
            assert (mode, pages[0] > 200) == (("wal",), True)
    add_passphrase(home / "store.key", key, Passphrase("another"))
    remove_held(home / "store.key")
    assert unlock_key(home / "store.key", Passphrase("another")).expose() == key.expose()
    assert held_rows(home, key) == KEPT


def test_only_the_ways_that_are_given_open_it(home: Path) -> None:
    sealed = list[bytes]()

    def seal(held: bytes) -> bytes:
        sealed.append(held)
        return b"sealed"

    key = unlock_held(home / "store.key", HELD)
    new = rekey(home / "store.db", home / "store.key", key, [by_tpm(seal)])
    assert ways_in(home / "store.key") == ["tpm"] and len(sealed) == 1
    assert unlock_by_tpm(home / "store.key", lambda blob: sealed[0]).expose() == new.expose()
    assert held_rows(home, new) == KEPT


def test_a_way_that_cannot_be_made_changes_nothing(home: Path) -> None:
    def seal(held: bytes) -> bytes:
        raise NoTpm("gone")

    before = contents(home)
    key = unlock_held(home / "store.key", HELD)
    with pytest.raises(NoTpm):
        rekey(home / "store.db", home / "store.key", key, [by_held(HELD), by_tpm(seal)])
    with pytest.raises(StoreMisuse):
        rekey(home / "store.db", home / "store.key", key, [])
    with pytest.raises(StoreMisuse):
        rekey(home / "elsewhere" / "store.db", home / "store.key", key, [by_held(HELD)])
    with pytest.raises(StoreMissing):
        rekey(home / "other.db", home / "store.key", key, [by_held(HELD)])
    for wrong in (DatabaseKey.generate(), DatabaseKey(bytes(32) + key.salt)):
        with pytest.raises((WrongKey, StoreCorrupt)):
            change(home, wrong)
    assert contents(home) == before


def contents(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir()}


OPEN = """
import sys
from pathlib import Path
from store.database import STORE_SCHEMA, Database
from store.keys import HeldKey, unlock_held
home = Path(sys.argv[1])
with Database.open(home / "store.db", unlock_held(home / "store.key", HeldKey(bytes(range(32)))), schema=STORE_SCHEMA) as d:
    print("open", flush=True)
    sys.stdin.read()
    print(d.run_sync(lambda c: c.execute("SELECT count(*) FROM settings").fetchone()[0]))
"""  # noqa: E501


def test_whoever_has_it_open_is_in_the_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.database, "_BUSY_TIMEOUT_S", 0.05)
    key = unlock_held(home / "store.key", HELD)
    with open_store(home / "store.db", key) as database:
        with pytest.raises(StoreBusy) as caught:
            change(home, key)
        assert caught.value.retryable and caught.value.hint
        assert database.run_sync(lambda c: c.execute("SELECT count(*) FROM settings").fetchone()) == (151,)
    other = subprocess.Popen(
        [sys.executable, "-c", OPEN, home], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(StoreBusy):
            change(home, key)
    finally:
        assert other.communicate(timeout=60)[0] == "151\n"
    assert unlock_held(home / "store.key", HELD).expose() == key.expose()
    assert held_rows(home, change(home, key)) == KEPT


def test_a_second_one_in_the_same_process_takes_no_lock_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX locks go when any descriptor of the file is closed: opening a store must not close one beside SQLite's."""
    monkeypatch.setattr(store.database, "_BUSY_TIMEOUT_S", 0.05)
    key = unlock_held(home / "store.key", HELD)
    asked = (
        "import sys; from pathlib import Path; from store.rekey import rekey\n"
        "from store.keys import HeldKey, by_held, unlock_held\n"
        "import store.database; store.database._BUSY_TIMEOUT_S = 0.05\n"
        "home, held = Path(sys.argv[1]), HeldKey(bytes(range(32)))\n"
        "key = unlock_held(home / 'store.key', held)\n"
        "rekey(home / 'store.db', home / 'store.key', key, [by_held(held)])"
    )
    with open_store(home / "store.db", key):
        open_store(home / "store.db", key).close()
        done = subprocess.run([sys.executable, "-c", asked, home], cwd=ROOT, capture_output=True, text=True)
    assert "StoreBusy" in done.stderr
    assert held_rows(home, unlock_held(home / "store.key", HELD)) == KEPT


class _Between:
    """A connection whose owner is interrupted behind one statement."""

    def __init__(self, connection: object, statement: str, interrupt: Callable[[], object]) -> None:
        self._connection, self._statement, self._interrupt = connection, statement, interrupt

    def execute(self, sql: str) -> object:
        result = self._connection.execute(sql)  # type: ignore[attr-defined]
        if sql == self._statement:
            self._interrupt()
        return result

    def close(self) -> None:
        self._connection.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("statement", ["PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = DELETE"])
def test_who_opens_it_at_the_last_moment(
    home: Path, monkeypatch: pytest.MonkeyPatch, statement: str, mode: str, stays: bool
) -> None:
    """Before it is locked. In rollback mode, as one change of the key leaves it, switching takes no lock."""
    monkeypatch.setattr(store.database, "_BUSY_TIMEOUT_S", 0.05)
    key = unlock_held(home / "store.key", HELD)
    if mode == "delete":
        key = change(home, key)
    connected, other = store.database._connected, list[Database]()

    def interrupt() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store.database, "_connected", connected)
            try:
                other.append(open_store(home / "store.db", key))
            except StoreBusy:
                assert mode == "wal" and statement.startswith("PRAGMA journal_mode"), "locked by then"
                return
            other[0].run_sync(lambda c: c.execute("INSERT INTO settings VALUES ('n', '999', x'00')"))
            if not stays:
                other.pop().close()

    with monkeypatch.context() as patch:
        patch.setattr(store.database, "_connected", lambda *given: _Between(connected(*given), statement, interrupt))
        try:
            new = change(home, key)
        except StoreBusy:
            new = key
    in_the_way = len(other) == 1
    for one in other:
        assert one.run_sync(lambda c: c.execute("SELECT count(*) FROM settings").fetchone()) == (152,)
        one.close()
    assert (new is key) or not in_the_way
    assert unlock_held(home / "store.key", HELD).expose() == new.expose()
    found = held_rows(home, new)
    assert found[:151] == KEPT and len(found) - 151 == (mode == "delete" or statement.startswith("PRAGMA locking"))


def test_while_it_goes_on_nobody_unlocks_or_opens(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried at the moment where both keys are in the key file, and the database is locked."""
    key, tried = unlock_held(home / "store.key", HELD), list[str]()
    hand_over = store.database._hand_over

    def look(connection: object, pragma: str, given: DatabaseKey) -> None:
        if pragma == "rekey":
            monkeypatch.setattr(store.database, "_hand_over", hand_over)
            monkeypatch.setattr(store.database, "_BUSY_TIMEOUT_S", 0.05)
            for attempt in (
                lambda: unlock_held(home / "store.key", HELD), lambda: ways_in(home / "store.key"),
                lambda: open_store(home / "store.db", key), lambda: change(home, key),
                lambda: add_passphrase(home / "store.key", key, WORDS),
            ):
                with pytest.raises(StoreBusy) as caught:
                    attempt()
                tried.append(str(caught.value))
        hand_over(connection, pragma, given)  # type: ignore[arg-type]

    monkeypatch.setattr(store.database, "_hand_over", look)
    new = change(home, key)
    assert len(tried) == 5
    assert held_rows(home, new) == KEPT


def cut(home: Path, monkeypatch: pytest.MonkeyPatch, *, rewritten: bool) -> tuple[DatabaseKey, DatabaseKey]:
    """(old key, new key) where a process ended before or after the database was rewritten; the key file has both."""

    class Killed(BaseException):
        pass

    keys = list[DatabaseKey]()
    hand_over, settled = store.database._hand_over, key_file._settled

    def dies(connection: object, pragma: str, key: DatabaseKey) -> None:
        keys.append(key)
        if pragma == "rekey" and not rewritten:
            raise Killed
        hand_over(connection, pragma, key)  # type: ignore[arg-type]

    def killed(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store.database, "_hand_over", dies)
        patch.setattr(key_file, "_settled", killed)
        with pytest.raises(Killed):
            change(home, unlock_held(home / "store.key", HELD))
    assert key_file._settled is settled
    assert len(key_file._parse((home / "store.key").read_bytes())[1]) == 5
    return keys[0], keys[-1]


READERS: list[Callable[[Path], object]] = [
    lambda path: unlock_key(path, WORDS), lambda path: unlock_held(path, HELD), ways_in, remove_held
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("rewritten", [False, True])
def test_who_reads_the_key_file_next_settles_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, rewritten: bool, read: Callable[[Path], object]
) -> None:
    key = cut(home, monkeypatch, rewritten=rewritten)[rewritten]
    read(home / "store.key")
    kinds = [kind for kind, _ in key_file._parse((home / "store.key").read_bytes())[1]]
    assert kinds == [65, 1, 2][: len(kinds)]
    assert unlock_key(home / "store.key", WORDS).expose() == key.expose()
    assert held_rows(home, key) == KEPT
    assert held_rows(home, change(home, key)) == KEPT


def test_a_full_disk_does_not_keep_it_from_being_unlocked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = cut(home, monkeypatch, rewritten=True)[1]

    def full(*_: object, **__: object) -> None:
        raise DiskFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(key_file, "write_private", full)
        assert unlock_key(home / "store.key", WORDS).expose() == key.expose()
        with pytest.raises(DiskFull):
            remove_held(home / "store.key")
    assert ways_in(home / "store.key") == ["passphrase", "held"]


def test_nothing_is_guessed_where_key_file_and_database_were_parted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = cut(home, monkeypatch, rewritten=False)
    before = (home / "store.key").read_bytes()
    database = (home / "store.db").read_bytes()
    (home / "store.db").unlink()
    with pytest.raises(StoreMissing):
        unlock_held(home / "store.key", HELD)
    for other in (b"", database[:15], os.urandom(16) + database[16:]):
        (home / "store.db").write_bytes(other)
        with pytest.raises(StoreCorrupt):
            unlock_held(home / "store.key", HELD)
    assert (home / "store.key").read_bytes() == before
    (home / "store.db").write_bytes(new.salt + database[16:])
    (home / "store.db-journal").write_bytes(b"\xd9 a journal that is to be played back")
    assert unlock_held(home / "store.key", HELD).expose() == old.expose()


@pytest.mark.parametrize("name", [b"", b"../store.db", b"a/b", b"nul\0"])
def test_a_planted_change_names_no_file_elsewhere(home: Path, name: bytes) -> None:
    store_id, wrappings = key_file.read(home / "store.key")
    key_file.write(home / "store.key", store_id, [(64, bytes(32) + name), *wrappings], replace=True)
    with pytest.raises(StoreCorrupt):
        ways_in(home / "store.key")


def test_a_disk_without_room_is_told_before_anything_is_changed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = (home / "store.db").stat().st_size

    key, before = unlock_held(home / "store.key", HELD), contents(home)["store.key"]
    with monkeypatch.context() as patch:
        patch.setattr(store.database.shutil, "disk_usage", lambda path: Usage)
        with pytest.raises(DiskFull, match="no space left to change the key") as caught:
            change(home, key)
        assert caught.value.hint and "MB" in caught.value.hint
    assert contents(home)["store.key"] == before
    assert held_rows(home, key) == KEPT


def test_a_library_that_refuses_is_an_error_without_the_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over = store.database._hand_over

    def refuses(connection: object, pragma: str, key: DatabaseKey) -> None:
        if pragma == "rekey":
            raise StoreError("it was " + key.expose().hex())
        hand_over(connection, pragma, key)  # type: ignore[arg-type]

    key = unlock_held(home / "store.key", HELD)
    with monkeypatch.context() as patch:
        patch.setattr(store.database, "_hand_over", refuses)
        with pytest.raises(StoreUnwritable) as caught:
            change(home, key)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__ and caught.value.hint
    assert unlock_held(home / "store.key", HELD).expose() == key.expose()
    assert held_rows(home, key) == KEPT


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    key = create_key(tmp_path / "store.key", WORDS)
    with pytest.raises(StoreMissing):
        change(tmp_path, key)
    assert [path.name for path in tmp_path.iterdir()] == ["store.key"]
    assert held_rows(tmp_path, unlock_key(tmp_path / "store.key", WORDS)) == []


def test_a_key_of_before_is_not_added_to_the_file_of_its_successor(home: Path) -> None:
    """Somebody unlocked, then thought about a passphrase while somebody else changed the key."""
    old = unlock_held(home / "store.key", HELD)
    new, before = change(home, old), contents(home)
    with pytest.raises(WrongKey, match="changed meanwhile"):
        add_passphrase(home / "store.key", old, Passphrase("another"))
    assert contents(home) == before
    add_passphrase(home / "store.key", new, Passphrase("another"))
    assert unlock_key(home / "store.key", Passphrase("another")).expose() == new.expose()


def test_ways_are_changed_by_one_at_a_time(home: Path) -> None:
    key = unlock_held(home / "store.key", HELD)

    def keep(store_id: bytes, held: HeldKey) -> None:
        for attempt in (lambda: change(home, key), lambda: add_passphrase(home / "store.key", key, WORDS)):
            with pytest.raises(StoreBusy):
                attempt()
        assert ways_in(home / "store.key") == ["passphrase", "held"]  # who only reads does not wait

    add_held(home / "store.key", key, keep)
    assert held_rows(home, unlock_key(home / "store.key", WORDS)) == KEPT


def test_what_a_killed_writer_left_goes_with_the_next_one(home: Path) -> None:
    key = unlock_held(home / "store.key", HELD)
    left = home / ".store.key.0123456789ab.tmp"
    (home / ".other.key.0123456789ab.tmp").write_bytes(b"not ours")
    for write in (lambda: add_passphrase(home / "store.key", key, WORDS), lambda: change(home, key)):
        left.write_bytes((home / "store.key").read_bytes())
        assert key_file.leftovers(home / "store.key") == [left]
        write()
        assert not left.exists()
    assert (home / ".other.key.0123456789ab.tmp").exists()


@pytest.mark.parametrize("which", ["in keep", "full disk", "killed after keep"])
def test_a_held_key_alone_is_never_given_up_for_one_that_opens_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """What holds it holds one key: when that is written over, the file must be opened by the new one already."""
    path, kept = home / "store.key", [HELD]
    key = unlock_held(path, HELD)
    remove_passphrase(path)

    def keep(store_id: bytes, held: HeldKey) -> None:
        if which == "in keep":
            raise NoTpm("nobody keeps it")
        kept[:] = [held]
        if which == "killed after keep":
            raise KeyboardInterrupt
        monkeypatch.setattr(key_file, "write_private", full)

    def full(*arguments: object, **named: object) -> None:
        raise DiskFull("no space left")

    for _ in range(10):  # what failed attempts leave does not fill the file
        with monkeypatch.context() as undone, pytest.raises((NoTpm, DiskFull, KeyboardInterrupt)):
            undone.setattr(key_file, "write_private", key_file.write_private)
            add_held(path, key, keep)
        monkeypatch.undo()
        assert unlock_held(path, kept[0]).expose() == key.expose()
    add_held(path, key, lambda store_id, held: kept.append(held))
    assert unlock_held(path, kept[-1]).expose() == key.expose() and len(key_file.read(path)[1]) == 1
    with pytest.raises(WrongKey):
        unlock_held(path, kept[0])


def test_what_is_wiped_while_a_way_is_made_stays_away(home: Path) -> None:
    path = home / "store.key"
    with pytest.raises(StoreMissing):
        add_held(path, unlock_held(path, HELD), lambda store_id, held: path.unlink())
    assert not path.exists() and key_file.leftovers(path) == []


def test_copies_that_a_killed_backup_left_go_with_the_former_key(home: Path) -> None:
    left = [home / f".store.0123456789ab{suffix}" for suffix in (".backup", ".restore")]
    for folder in left:
        folder.mkdir()
        for name in ("store.key", "store.db"):
            (folder / name).write_bytes((home / name).read_bytes())
    change(home, unlock_held(home / "store.key", HELD))
    assert not any(folder.exists() for folder in left)


def test_a_database_that_is_a_link_has_its_journal_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "large").mkdir()
    (home / "store.db").rename(home / "large" / "store.db")
    (home / "store.db").symlink_to(home / "large" / "store.db")
    old, _ = cut(home, monkeypatch, rewritten=True)
    (home / "large" / "store.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7 still to be played back")
    assert unlock_held(home / "store.key", HELD).expose() == old.expose()
