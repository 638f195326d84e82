"""Backups that somebody made up, a restore that is cut short, and a wipe that is refused on the way."""

import fcntl
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import store.database
from store import backups
from store.backups import back_up, finish, put_in_place, unpacked
from store.errors import StoreBusy, StoreCorrupt, StoreUnwritable
from store.key_file import locked
from store.keys import DatabaseKey, HeldKey, Passphrase, add_held, by_passphrase, create_key, unlock_held, unlock_key
from store.rekey import rekey
from store.wiping import wipe
from tests.support.stores import open_store

WORDS = Passphrase("correct horse")
Harm = Callable[[bytearray], bytearray]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with open_store(home / "store.db", create_key(home / "store.key", WORDS)):
        return home


def planted(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytearray:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return bytearray(out.getvalue())


def sparse(data: bytearray) -> bytearray:
    """A file of 10 kB that says it has 1 GB, nearly all of it holes."""
    member = tarfile.TarInfo("store.db")
    member.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,4096", "GNU.sparse.numblocks": "1",
        "GNU.sparse.size": str(10**9),
    }
    return planted([(tarfile.TarInfo("store.key"), bytes(200)), (member, bytes(4096))])


def extended(size: int) -> Harm:
    """Its first header is one of extended attributes, of that size."""

    def harm(data: bytearray) -> bytearray:
        data[156:157] = b"x"
        data[124:136] = (b"\x80" if size > 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        return data

    return harm


def nested(data: bytearray) -> bytearray:
    """Nothing but headers of extended attributes, each of which is read before the next."""
    return extended(512)(data[:512]) * 3000


HARMS: list[Harm] = [sparse, nested, *(extended(size) for size in (2**40, 2**62, 2**70, -512))]


@pytest.mark.parametrize("harm", HARMS)
def test_a_planted_backup_is_refused_before_it_costs_anything(home: Path, tmp_path: Path, harm: Harm) -> None:
    good = [(tarfile.TarInfo(name), (home / name).read_bytes()) for name in ("store.key", "store.db")]
    written: list[int] = []
    (tmp_path / "planted").write_bytes(harm(planted(good)))
    source, tell = tmp_path / "planted", lambda done, total: written.append(done)
    with pytest.raises(StoreCorrupt), unpacked(source, home / "store.db", tell):
        raise AssertionError("it was taken")
    assert max(written, default=0) < 10**6
    assert sorted(path.name for path in home.iterdir()) == ["store.db", "store.key"]


def test_a_store_that_was_made_while_a_restore_lay_unfinished_is_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key_file = home / "store.db", home / "store.key"
    back_up(path, key_file, unlock_key(key_file, WORDS), tmp_path / "backup")
    move = backups._move

    def killed(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(backups, "_move", killed)
    with pytest.raises(KeyboardInterrupt), unpacked(tmp_path / "backup", path) as work:
        put_in_place(work, path, key_file, replace=True)
    monkeypatch.undo()
    with open_store(path, create_key(key_file, Passphrase("of another"))) as made:  # by who knows of no restore
        made.run_sync(lambda c: c.execute("INSERT INTO settings VALUES ('a', 'b', x'00')").rowcount)
    former = finish(path, key_file)
    assert former is not None
    (since,) = [one for one in former.iterdir() if one.is_dir()]
    with open_store(since / "store.db", unlock_key(since / "store.key", Passphrase("of another"))) as kept:
        assert kept.run_sync(lambda c: c.execute("SELECT key FROM settings").fetchall()) == [("b",)]
    for folder in (home, former):
        open_store(folder / "store.db", unlock_key(folder / "store.key", WORDS)).close()


def test_what_is_held_elsewhere_is_dropped_though_a_file_resists(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring: dict[bytes, HeldKey] = {}
    add_held(home / "store.key", unlock_key(home / "store.key", WORDS), ring.__setitem__)
    assert isinstance(unlock_held(home / "store.key", *ring.values()), DatabaseKey)
    unlink = Path.unlink

    def resists(self: Path, missing_ok: bool = False) -> None:
        if self.name in ("store.key", "store.db"):
            raise PermissionError(1, "not permitted")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", resists)
    with pytest.raises(StoreUnwritable):
        wipe(home / "store.db", home / "store.key", ring.__delitem__)
    assert ring == {}


def free(folder: Path, lock: int) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_files_are_not_exchanged_while_somebody_opens_them_by_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is moved in between would have the log of the one in its place folded into it."""
    path, key_file = home / "store.db", home / "store.key"
    key, seen = unlock_key(key_file, WORDS), list[tuple[str, bool]]()
    back_up(path, key_file, key, tmp_path / "backup")
    connected, move = store.database._connected, backups._move

    def connects(database: Path, key: DatabaseKey) -> Any:
        seen.append(("opened", free(database.parent, fcntl.LOCK_EX) or not free(database.parent, fcntl.LOCK_SH)))
        return connected(database, key)

    def moves(source: Path, target: Path) -> None:
        seen.append(("moved", free(home, fcntl.LOCK_SH)))
        move(source, target)

    monkeypatch.setattr(store.database, "_connected", connects)
    monkeypatch.setattr(backups, "_move", moves)
    open_store(path, key).close()
    rekey(path, key_file, key, [by_passphrase(WORDS)])
    with unpacked(tmp_path / "backup", path) as work:
        put_in_place(work, path, key_file, replace=True)
    assert {what for what, _ in seen} == {"opened", "moved"} and not any(wrong for _, wrong in seen)
    assert free(home, fcntl.LOCK_EX)


def test_a_key_that_is_being_changed_is_not_moved(home: Path, tmp_path: Path) -> None:
    path, key_file = home / "store.db", home / "store.key"
    back_up(path, key_file, unlock_key(key_file, WORDS), tmp_path / "backup")
    before = key_file.read_bytes()
    with unpacked(tmp_path / "backup", path) as work:
        with locked(key_file), pytest.raises(StoreBusy):
            put_in_place(work, path, key_file, replace=True)
        assert key_file.read_bytes() == before and sorted(work.iterdir())
        assert put_in_place(work, path, key_file, replace=True) is not None
