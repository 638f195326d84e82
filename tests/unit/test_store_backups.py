"""Backups as a library makes them: of one moment, whole or not at all, on whatever file system."""

import errno
import fcntl
import os
import sys
import tarfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import store.database
from store.backups import back_up, finish, put_in_place, unpacked
from store.database import Connection, Database
from store.documents import Documents
from store.errors import DiskFull, StoreBusy, StoreError, StoreExists, StoreMissing
from store.keys import DatabaseKey, Passphrase, create_key, unlock_key
from store.upkeep import check
from tests.support.stores import add_document, open_store

OWN, OTHER = Passphrase("correct horse"), Passphrase("battery staple")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


@pytest.fixture
def key(home: Path) -> DatabaseKey:
    return create_key(home / "store.key", OWN)


@pytest.fixture
async def database(home: Path, key: DatabaseKey) -> AsyncIterator[Database]:
    with open_store(home / "store.db", key) as database:
        await add_document(Documents(database), ["one", "two"], source="a.md")
        yield database


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def backed_up(home: Path, key: DatabaseKey, **how: object) -> Path:
    target = home.parent / "backup"
    back_up(home / "store.db", home / "store.key", key, target, **how)  # type: ignore[arg-type]
    return target


async def test_each_is_of_one_moment(home: Path, key: DatabaseKey, database: Database) -> None:
    """A writer adds two documents a transaction; a backup has both of them or neither."""
    stop, failed = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            with open_store(home / "store.db", key) as other:
                while not stop.is_set():
                    other.run_sync(lambda c: [
                        c.execute("INSERT INTO settings VALUES (?, hex(randomblob(8)), x'00')", (name,)).rowcount
                        for name in ("one", "two")
                    ])
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            target = home.parent / f"backup{number}"
            back_up(home / "store.db", home / "store.key", key, target)
            with unpacked(target, home / "store.db") as folder:
                assert check(folder / "store.db", key).problems == ()
                with open_store(folder / "store.db", key) as copy:
                    counts = copy.run_sync(
                        lambda c: c.execute("SELECT count(*) FROM settings GROUP BY namespace").fetchall()
                    )
                assert len({row[0] for row in counts}) <= 1
    finally:
        stop.set()
        writer.join()
    assert not failed and names(home) == ["store.db", "store.db-shm", "store.db-wal", "store.key"]


def test_a_passphrase_of_its_own_does_not_open_the_store(home: Path, key: DatabaseKey, database: Database) -> None:
    with unpacked(backed_up(home, key, passphrase=OTHER), home / "store.db") as folder:
        assert unlock_key(folder / "store.key", OTHER).expose() == key.expose()
        for path, secret in ((folder, OWN), (home, OTHER)):
            with pytest.raises(StoreError, match="passphrase is wrong"):
                unlock_key(path / "store.key", secret)


def test_where_there_are_no_links_as_on_a_stick(
    home: Path, key: DatabaseKey, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*arguments: object, **named: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    target = backed_up(home, key)
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["store.key", "store.db"]
    assert names(home.parent) == ["backup", "home"]
    before = target.read_bytes()
    with pytest.raises(StoreExists):
        backed_up(home, key)
    assert target.read_bytes() == before


@pytest.mark.parametrize("what", ["full", "prepare", "name", "folder"])
def test_what_fails_leaves_nothing_behind(
    home: Path, key: DatabaseKey, database: Database, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    target = home.parent / "stick" / "backup"
    if what != "folder":
        target.parent.mkdir()
    if what == "name":
        target.touch()
    before = names(home), names(home.parent)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fails(connection: Connection) -> None:
        raise StoreBusy("not now")

    if what == "full":
        monkeypatch.setattr(os, "fsync", full)
    expected = {"full": DiskFull, "prepare": StoreBusy, "name": StoreExists, "folder": StoreMissing}[what]
    with pytest.raises(expected):
        back_up(
            home / "store.db", home / "store.key", key, target,
            prepare=fails if what == "prepare" else lambda connection: None,
        )
    assert before == (names(home), names(home.parent))
    assert what == "folder" or names(target.parent) == (["backup"] if what == "name" else [])


def test_what_a_killed_one_left_is_removed_by_the_next(home: Path, key: DatabaseKey, database: Database) -> None:
    left = home / ".store.0123456789ab.backup"
    left.mkdir()
    (left / "store.db").touch()
    backed_up(home, key)
    assert not left.exists()


def test_progress_ends_at_the_whole(home: Path, key: DatabaseKey, database: Database) -> None:
    told: list[tuple[int, int]] = []
    target = backed_up(home, key, tell=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    told.clear()
    with unpacked(target, home / "store.db", lambda done, total: told.append((done, total))) as folder:
        assert told[-1] == ((folder / "store.db").stat().st_size,) * 2


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_nobody_moves_a_database_while_it_is_opened(
    home: Path, key: DatabaseKey, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that waits while a restore swaps the files would go on in the former one, with the new one's log."""
    database.close()
    connected, seen = store.database._connected, list[bool]()

    def free() -> bool:
        descriptor = os.open(home, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as a restore takes it
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def watched(path: Path, by: DatabaseKey) -> object:
        seen.append(free())
        return connected(path, by)

    monkeypatch.setattr(store.database, "_connected", watched)
    with open_store(home / "store.db", key):
        assert seen == [False] and free()


def test_what_somebody_made_while_nothing_was_there_hides_no_former_store(
    home: Path, key: DatabaseKey, database: Database
) -> None:
    """The former database was moved aside, the process killed, and another one made an empty database in its place."""
    target = backed_up(home, key)
    database.close()
    new, former = home / "store.new", home / "store.new" / "former"
    with unpacked(target, home / "store.db") as folder:
        folder.rename(new)
    former.mkdir()
    before = (home / "store.db").read_bytes()
    (home / "store.key").rename(former / "store.key")
    (home / "store.db").rename(former / "store.db")
    (home / "store.db").write_bytes(b"")
    (home / "store.db-wal").write_bytes(b"of nobody")
    kept = finish(home / "store.db", home / "store.key")
    assert kept is not None and (kept / "store.db").read_bytes() == before
    (made,) = set(names(kept)) - {"store.db", "store.key"}
    assert names(kept / made) == ["store.db", "store.db-wal"], "apart, since nobody knows whether it is worth anything"
    assert names(home) == sorted([kept.name, "store.db", "store.key"])
    assert check(home / "store.db", key).documents == 1
    assert finish(home / "store.db", home / "store.key") is None, "again does nothing"


def test_a_second_store_is_not_put_over_one(home: Path, key: DatabaseKey, database: Database) -> None:
    target = backed_up(home, key)
    database.close()
    with unpacked(target, home / "store.db") as folder, pytest.raises(StoreExists):
        put_in_place(folder, home / "store.db", home / "store.key", replace=False)
    assert names(home) == ["store.db", "store.key"]
