"""A store as one file that can be carried away, and back.

A backup is a tar of two files: the key file, and the database as it was at one moment. Both are what they are in the
store, so that nothing in it is readable without what opens the key file, and any program can take it apart.

A restore puts both into a folder beside the database first, `store.new` for `store.db`. Once that is whole and has its
name, the restore will happen: `finish` moves the former files aside and these in, and goes on where it was cut short.
Until the database is in its place there is no key file, so that nobody opens one with the other's.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from store.database import STORE_SCHEMA, Connection, Database
from store.errors import StoreBusy, StoreCorrupt, StoreExists
from store.files import file_errors, in_folder, sync_folder
from store.key_file import locked
from store.keys import DatabaseKey, Passphrase, add_passphrase

if sys.platform != "win32":
    import fcntl

__all__ = ["back_up", "clear", "finish", "put_in_place", "unpacked"]

Tell = Callable[[int, int], None]

_KEY: Final = "store.key"
_DATABASE: Final = "store.db"
_PIECE: Final = 1024 * 1024
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_ENDINGS: Final = ("-wal", "-shm", "-journal")  # what SQLite would take for the new database's
_FORMER: Final = "former"
# Whoever has a database open holds one of these bytes of it (sqlite3, os.h: SHARED_FIRST, SHARED_SIZE).
_SHARED: Final = (510, 0x40000002)


def back_up(
    path: Path, key_file: Path, key: DatabaseKey, target: Path, *, passphrase: Passphrase | None = None,
    prepare: Callable[[Connection], None] = lambda connection: None, tell: Tell = lambda done, total: None,
) -> int:
    """Writes the store into a new file, whole or not at all (mode 0600); its size in bytes.

    Others may go on reading and writing the store, whose folder needs room for it once more until this is done.
    `prepare` changes the copy before it is written. A `passphrase` opens the backup in the place of the store's own.
    `tell(done, total)` is told bytes written. Blocks. Raises StoreExists, StoreMissing, DiskFull, StoreUnwritable, and
    as Database.open.
    """
    if target.exists():
        raise StoreExists(f"{target} exists already", hint="choose another name; nothing was changed")
    with file_errors(target.parent):
        target.parent.stat()
    with _folder(path, ".backup") as work:
        with Database.open(path, key, schema=STORE_SCHEMA) as database:
            database.copy_sync(work / _DATABASE)
            shutil.copyfile(key_file, work / _KEY)  # nobody changes the key while the database is open
        with Database.open(work / _DATABASE, key, schema=STORE_SCHEMA) as copy:
            copy.run_sync(prepare)
        if passphrase is not None:
            add_passphrase(work / _KEY, key, passphrase)
        return _pack(work, target, tell)


@contextlib.contextmanager
def unpacked(backup: Path, path: Path, tell: Tell = lambda done, total: None) -> Iterator[Path]:
    """A private folder beside the database at `path`, with `store.key` and `store.db` of a backup; gone at the end,
    unless `put_in_place` has taken it. Raises StoreMissing, StoreCorrupt, DiskFull, StoreUnwritable.
    """
    with _folder(path, ".restore") as work:
        _unpack(backup, work, tell)
        yield work


def put_in_place(work: Path, path: Path, key_file: Path, *, replace: bool) -> Path | None:
    """Makes what `unpacked` gave the store; where the former one is kept, if there was one.

    Killed at any point it leaves the former or the new store, which `finish` puts in its place. Raises StoreExists
    unless `replace`, StoreBusy while anybody has the former one open, StoreUnwritable.
    """
    finish(path, key_file)
    if not replace and (path.exists() or key_file.exists()):
        raise StoreExists("there is a store already", hint="`--replace` keeps it aside; nothing was changed")
    with in_folder(path.parent, alone=True), _nobody_else(path, key_file), file_errors(path):
        sync_folder(work)
        work.rename(_new(path))
        sync_folder(path.parent)
        return _finished(path, key_file)


def finish(path: Path, key_file: Path) -> Path | None:
    """Goes on with a restore that was cut short; nothing to do costs one look. Where the former store is kept.

    Raises StoreBusy while anybody has the database open or changes its key, StoreUnwritable.
    """
    if not _new(path).is_dir():
        return None
    with in_folder(path.parent, alone=True), _nobody_else(path, key_file):
        return _finished(path, key_file)


def _finished(path: Path, key_file: Path) -> Path | None:
    new = _new(path)
    if not new.is_dir():  # another process was quicker
        return None
    with file_errors(new):
        former = new / _FORMER
        if (new / _KEY).exists():
            former.mkdir(exist_ok=True, mode=0o700)
            if (new / _DATABASE).exists():
                aside = former
                if (former / path.name).exists():  # then what is there was made since, and may be a store
                    aside = former / secrets.token_hex(4)
                    aside.mkdir(mode=0o700)
                for old in (key_file, *(path.with_name(path.name + end) for end in _ENDINGS), path):
                    _move(old, aside / old.name)
                _move(new / _DATABASE, path)
            _move(new / _KEY, key_file)
        kept = None
        if former.is_dir() and any(former.iterdir()):
            kept = path.with_name(time.strftime(f"{path.stem}.before-%Y%m%d-%H%M%S-{secrets.token_hex(2)}"))
            former.rename(kept)
        shutil.rmtree(new)
        sync_folder(path.parent)
        return kept


def _new(path: Path) -> Path:
    return path.with_name(f"{path.stem}.new")


def _move(source: Path, target: Path) -> None:
    if source.exists():
        source.rename(target)
        sync_folder(source.parent)
        sync_folder(target.parent)


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether the folder is still there when nobody else works in it. Raises BlockingIOError unless it is to wait."""
    if sys.platform == "win32":
        yield True
        return
    descriptor, ours = os.open(folder, os.O_RDONLY), False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        with contextlib.suppress(FileNotFoundError):
            ours = os.path.samestat(os.fstat(descriptor), folder.stat())
        yield ours
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _nobody_else(path: Path, key_file: Path) -> Iterator[None]:
    """While this process alone may open the database, if there is one, or change its key. It must not have it open."""
    with contextlib.ExitStack() as stack:
        if key_file.exists():
            stack.enter_context(locked(key_file))
        if sys.platform != "win32" and path.exists():  # there a file in use cannot be moved
            with file_errors(path):
                file = stack.enter_context(path.open("r+b"))
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *_SHARED)
                    alone = os.path.samestat(os.fstat(file.fileno()), path.stat())  # else it was moved in between
                except (BlockingIOError, PermissionError):
                    alone = False
            if not alone:
                raise StoreBusy("another program has the store open", hint="end it, and try again")
        yield


@contextlib.contextmanager
def _folder(path: Path, suffix: str) -> Iterator[Path]:
    """A private folder in one beside `path` that is locked while it is in use."""
    work = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{suffix}")
    with file_errors(work), contextlib.ExitStack() as stack:
        clear(path)
        work.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        stack.enter_context(_locked(work))
        whole = work / "whole"
        whole.mkdir(mode=0o700)
        yield whole


def clear(path: Path) -> None:
    """Removes copies of the store that a killed backup or restore has left beside it. Raises StoreUnwritable."""
    with file_errors(path):
        for left in (*path.parent.glob(f".{path.stem}.*.backup"), *path.parent.glob(f".{path.stem}.*.restore")):
            # One that is empty may just have been made, one that is locked is in use, and one may go at any moment.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                if left.is_dir() and any(left.iterdir()):
                    with _locked(left, wait=False):
                        shutil.rmtree(left, ignore_errors=True)


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _silent(done: int, total: int) -> None:
    pass


class _Counted(io.RawIOBase):
    """A file that tells how much of all was read."""

    def __init__(self, file: IO[bytes], total: int, tell: Tell) -> None:
        super().__init__()
        self._file, self._total, self._tell, self._done = file, total, tell, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._done += len(data)
        self._tell(self._done, self._total)
        return data


def _pack(work: Path, target: Path, tell: Tell) -> int:
    import tarfile  # takes as long to load as all else here

    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    with file_errors(target):
        try:
            with _private(partial) as out:
                with tarfile.open(fileobj=out, mode="w") as tar:
                    for name in (_KEY, _DATABASE):
                        member = tarfile.TarInfo(name)
                        member.size, member.mode, member.mtime = (work / name).stat().st_size, 0o600, int(time.time())
                        with (work / name).open("rb") as file:
                            tar.addfile(member, _Counted(file, member.size, tell if name == _DATABASE else _silent))
                out.flush()
                os.fsync(out.fileno())
                size = out.tell()
            try:
                os.link(partial, target)  # fails if the name is taken, in one step; rename would overwrite
            except OSError as error:  # FAT, as on most sticks, has no links
                if error.errno not in _NO_LINKS or target.exists():
                    raise
                partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(target.parent)
        return size


def _unpack(backup: Path, work: Path, tell: Tell) -> None:
    import tarfile

    with file_errors(backup), backup.open("rb") as file:
        room = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for name in (_KEY, _DATABASE):
                    member = tar.next()
                    if member is None or member.name != name or not member.isreg() or member.size > room:  # sparse
                        raise StoreCorrupt("this is not a backup of a store", hint="which file is meant?")
                    _take(tar, member, work / name, tell if name == _DATABASE else _silent)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError):
            raise StoreCorrupt(
                "this is not a backup of a store, or only the beginning of one", hint="take another one"
            ) from None


def _take(tar: Any, member: Any, target: Path, tell: Tell) -> None:
    content, done = tar.extractfile(member), 0
    with file_errors(target), _private(target) as out:
        while piece := content.read(_PIECE):
            out.write(piece)
            done += len(piece)
            tell(done, member.size)
        out.flush()
        os.fsync(out.fileno())
    if done != member.size:
        raise StoreCorrupt("the backup is cut short", hint="take another one")
