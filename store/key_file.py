"""The key file as bytes, and the one change that it cannot make alone: that of the database key.

Integers big-endian:

    "cwkeys\\0\\1"  8 bytes, magic and format 1
    store id      16 bytes, random
    count         1 byte, wrappings that follow, 1..8
    wrapping      kind (1 byte) || length of the body (2 bytes) || body
    checksum      32 bytes, SHA-256 of everything before: tells damage from a wrong passphrase, nothing more

Kinds and bodies are those of store.keys; a reader skips kinds it does not know. While the database gets another key,
the file holds the wrappings of both: those of the new one have 128 added to their kind, and kind 64 is the change:

    salt of the old key (16) || salt of the new key (16) || name of the database file, in this folder

Two files cannot be exchanged at once, but the database alone changes its key in one step, and shows which one it has:
by its first 16 bytes, which are the key's salt, unless a rollback journal lies beside it that is still to be played
back: then it has the old one. Whoever changes the key holds a lock on the key file, which the kernel drops with the
process. Who reads the file once nobody holds it takes the wrappings that fit, and drops the others. Kind 65, which is
there from then on, is the salt of the key (16): a wrapping of the one before is not added any more.
"""

import contextlib
import glob
import hashlib
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from store.errors import StoreBusy, StoreCorrupt, StoreMissing, StoreMisuse, StoreUnwritable, WrongKey
from store.files import file_errors, read_bounded, write_private

if sys.platform != "win32":
    import fcntl

__all__ = [
    "DAMAGED_HINT", "MAX_WRAPPINGS", "SALT_LEN", "STORE_ID_LEN", "Wrapping", "changing", "leftovers", "locked", "read",
    "update", "write",
]

Wrapping = tuple[int, bytes]  # kind and body

SALT_LEN: Final = 16
STORE_ID_LEN: Final = 16
MAX_WRAPPINGS: Final = 8
DAMAGED_HINT: Final = "restore the key file from a backup; without it the store cannot be opened"
_MAGIC: Final = b"cwkeys\x00\x01"
_CHECKSUM_LEN: Final = 32
_MAX_FILE: Final = 64 * 1024
_KIND_CHANGE: Final = 64
_KIND_SALT: Final = 65
_COMING: Final = 128  # added to the kind
_COMING_KINDS: Final = range(_COMING + 1, _COMING + _KIND_CHANGE)
_BUSY_HINT: Final = "try again when it is done"


def read(path: Path) -> tuple[bytes, list[Wrapping]]:
    """The store id, and the wrappings of the key that the database has.

    Raises StoreMissing, StoreCorrupt; StoreBusy while the key is being changed.
    """
    store_id, wrappings = _parse(read_bounded(path, _MAX_FILE))
    if _record(wrappings, _KIND_CHANGE) is not None:
        with locked(path):
            store_id, wrappings = _settled(path)
    return store_id, _ways(wrappings)


def update(
    path: Path, salt: bytes | None, change: Callable[[bytes, list[Wrapping]], list[Wrapping]]
) -> bytes:
    """Writes what `change` makes of what `read` would return; nobody else writes the file meanwhile. The store id.

    `salt` is that of the key that `change` wraps, if it does. Raises WrongKey if the database has another one by now,
    as `read` and `write`, what `change` raises.
    """
    with locked(path):
        store_id, wrappings = _settled(path)
        known = _record(wrappings, _KIND_SALT)
        if known is not None and salt not in (None, known):
            raise WrongKey("the key of the store was changed meanwhile", hint="try again")
        records = [] if known is None else [(_KIND_SALT, known)]
        changed = [*records, *change(store_id, _ways(wrappings))]
        with file_errors(path):
            path.stat()  # what was wiped meanwhile stays so
        _replace(path, store_id, changed)
    return store_id


def leftovers(path: Path) -> list[Path]:
    """What processes that were killed while they wrote the key file left of it: with wrappings, as it has them."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


def write(path: Path, store_id: bytes, wrappings: Sequence[Wrapping], *, replace: bool) -> None:
    """Atomic. Raises StoreMisuse for a ninth wrapping, StoreExists, StoreMissing, DiskFull, StoreUnwritable."""
    if len(wrappings) > MAX_WRAPPINGS:
        raise StoreMisuse("a key file holds at most eight ways to unlock")
    parts = [struct.pack(">BH", kind, len(body)) + body for kind, body in wrappings]
    content = _MAGIC + store_id + bytes([len(wrappings)]) + b"".join(parts)
    write_private(path, [content, hashlib.sha256(content).digest()], replace=replace)


@contextlib.contextmanager
def changing(path: Path, old: bytes, new: bytes, database: str, coming: Sequence[Wrapping]) -> Iterator[None]:
    """While this lasts the file has the wrappings of both keys, known by their salts; then of that the database has.

    The caller has the database for itself, but has closed it when this ends. Raises StoreBusy if another one reads the
    file at this moment, and as `write`.
    """
    marked = [(kind + _COMING, body) for kind, body in coming]
    with locked(path):
        store_id, wrappings = _parse(read_bounded(path, _MAX_FILE))
        record = (_KIND_CHANGE, old + new + os.fsencode(database))
        _replace(path, store_id, [record, *_ways(wrappings), *marked])
    with locked(path):
        if _record(_parse(read_bounded(path, _MAX_FILE))[1], _KIND_CHANGE) is None:  # somebody took it for given up
            raise StoreBusy("somebody is opening the store", hint="try again")
        try:
            yield
        finally:
            _settled(path)


def _settled(path: Path) -> tuple[bytes, list[Wrapping]]:
    """The file without a change. Whoever calls this holds the lock; nobody is changing the key."""
    store_id, wrappings = _parse(read_bounded(path, _MAX_FILE))
    change = _record(wrappings, _KIND_CHANGE)
    if change is None:
        return store_id, wrappings
    if _has_come(path, change):
        kept = [(kind - _COMING, body) for kind, body in wrappings if kind in _COMING_KINDS]
        salt = change[SALT_LEN : 2 * SALT_LEN]
    else:
        kept = [(kind, body) for kind, body in _ways(wrappings) if kind not in _COMING_KINDS]
        salt = change[:SALT_LEN]
    kept.insert(0, (_KIND_SALT, salt))
    with contextlib.suppress(StoreUnwritable):  # a full disk: the next reader does it
        _replace(path, store_id, kept)
    return store_id, kept


def _replace(path: Path, store_id: bytes, wrappings: Sequence[Wrapping]) -> None:
    for stale in leftovers(path):  # whoever wrote them is dead, or would hold the lock
        stale.unlink(missing_ok=True)
    write(path, store_id, wrappings, replace=True)


def _record(wrappings: Sequence[Wrapping], kind: int) -> bytes | None:
    return next((body for one, body in wrappings if one == kind), None)


def _ways(wrappings: Sequence[Wrapping]) -> list[Wrapping]:
    return [wrapping for wrapping in wrappings if wrapping[0] not in (_KIND_CHANGE, _KIND_SALT)]


def _has_come(path: Path, change: bytes) -> bool:
    old, new, name = change[:SALT_LEN], change[SALT_LEN : 2 * SALT_LEN], os.fsdecode(change[2 * SALT_LEN :])
    if not name or "/" in name or "\0" in name:
        raise StoreCorrupt("the key file is damaged", hint=DAMAGED_HINT)
    database = path.with_name(name).resolve()  # SQLite has its journal beside the file itself, not beside a link to it
    with contextlib.suppress(StoreMissing):
        # Looked at first: by when the journal has been played back, the database shows the old key.
        if _start(database.with_name(database.name + "-journal"), 1).strip(b"\0"):
            return False
    salt = _start(database, SALT_LEN)
    if salt not in (old, new):
        raise StoreCorrupt("key file and database belong to different stores", hint="restore both from one backup")
    return salt == new


def _start(path: Path, length: int) -> bytes:
    with file_errors(path), path.open("rb") as file:
        return file.read(length)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """While this lasts nobody else writes the file, or changes the key. Raises StoreBusy rather than wait."""
    if sys.platform == "win32":
        yield
        return
    with file_errors(path), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.path.samestat(os.fstat(file.fileno()), path.stat())  # else it was replaced in between
        except BlockingIOError:
            alone = False
        if not alone:
            raise StoreBusy("the key of the store is being changed", hint=_BUSY_HINT)
        yield


def _parse(data: bytes) -> tuple[bytes, list[Wrapping]]:
    if not data.startswith(_MAGIC[:6]):
        raise StoreCorrupt("this is not a key file", hint=DAMAGED_HINT)
    if not data.startswith(_MAGIC):
        raise StoreCorrupt("the key file has an unknown format", hint="it may come from a later version")
    content, checksum = data[:-_CHECKSUM_LEN], data[-_CHECKSUM_LEN:]
    at = len(_MAGIC) + STORE_ID_LEN + 1
    damaged = StoreCorrupt("the key file is damaged", hint=DAMAGED_HINT)
    if len(content) < at or hashlib.sha256(content).digest() != checksum:
        raise damaged
    count = content[at - 1]
    if not 1 <= count <= MAX_WRAPPINGS:
        raise damaged
    wrappings = []
    for _ in range(count):
        if len(content) < at + 3:
            raise damaged
        kind, length = struct.unpack_from(">BH", content, at)
        body = content[at + 3 : at + 3 + length]
        at += 3 + length
        wrappings.append((kind, body))
    if at != len(content):
        raise damaged
    return content[len(_MAGIC) : len(_MAGIC) + STORE_ID_LEN], wrappings
