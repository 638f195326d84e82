"""Private files: whole or not there, readable by their owner alone, and read with a bound."""

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from store.errors import DiskFull, StoreCorrupt, StoreError, StoreExists, StoreMissing, StoreUnwritable

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turns an OSError about `path` into the StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _translated(error, path) from error


def _translated(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no space left to write {path.name}", hint="free some space and try again; nothing was lost")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return StoreMissing(f"{path} or its folder does not exist")
    if error.errno == errno.EEXIST:
        return StoreExists(f"{path} exists already", hint="move it away first if you really mean to start anew")
    return StoreUnwritable(
        f"cannot use {path}: {os.strerror(error.errno or 0).lower()}", hint="check the owner and permissions"
    )


def write_private(path: Path, parts: Iterable[bytes], *, replace: bool) -> None:
    """Writes the parts to `path` with mode 0600: after a crash it holds all of them or what it held before.

    With `replace=False` an existing file is kept and StoreExists raised. Raises StoreMissing for a missing folder,
    DiskFull, StoreUnwritable.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with file_errors(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # fails if the name is taken, in one step; rename would overwrite
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def in_folder(folder: Path, *, alone: bool) -> Iterator[None]:
    """While this lasts the names in it mean the same files, to whoever asks so, too; `alone`, they may be changed.

    SQLite finds a database's log by its name: who opens it while it is moved would have another one's. Waits. Raises
    StoreMissing, StoreUnwritable.
    """
    if sys.platform == "win32":
        yield
        return
    with file_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with file_errors(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Names in it are on stable storage afterwards. Raises OSError."""
    if os.name == "nt":
        return  # folders cannot be opened there; the rename itself is durable
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit: int) -> bytes:
    """The whole file. Raises StoreMissing, StoreUnwritable, or StoreCorrupt if it is longer than `limit` bytes."""
    with file_errors(path), path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise StoreCorrupt(f"{path.name} is too large to be what it claims", hint="restore the file from a backup")
    return data
