"""The gateway's state on one machine: an encrypted database that one process at a time holds."""

import contextlib
import fcntl
import importlib.resources
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from relay.gateway.errors import Busy, NotReady
from store.database import Database
from store.keys import DatabaseKey, Passphrase, Unlock, create_key, unlock

KEY_FILE: Final = "state.key"
DATABASE_FILE: Final = "state.db"
LOCK_FILE: Final = "lock"
_SCHEMA: Final = importlib.resources.files("relay.gateway.state") / "schema"


def create_state(directory: Path, passphrase: Passphrase) -> DatabaseKey:
    """A new key file and an empty database in `directory`; the key. Raises StoreError."""
    key = create_key(directory / KEY_FILE, passphrase)
    _open(directory, key).close()
    return key


def _open(directory: Path, key: DatabaseKey) -> Database:
    return Database.open(directory / DATABASE_FILE, key, schema=_SCHEMA)


@contextlib.contextmanager
def open_state(directory: Path, passphrase: Unlock) -> Iterator[Database]:
    """The database of a gateway folder, held by this process alone: registrations are also kept in memory, and two
    holders would not see each other's changes.

    Raises NotReady where there is no gateway, Busy if another process holds it, WrongKey and other StoreErrors.
    """
    if not (directory / KEY_FILE).is_file():
        raise NotReady("there is no gateway in this folder", hint="run `relay gateway init DIR --trust-domain NAME`")
    with _held(directory / LOCK_FILE):
        key = unlock(directory / KEY_FILE, passphrase)
        with _open(directory, key) as database:
            yield database


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "stop the gateway if it runs, else wait"
            raise Busy("another process holds this gateway's state", hint=hint) from None
        yield
    finally:
        os.close(descriptor)  # and with it the lock
