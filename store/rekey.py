"""A new key for the database, and a key file that opens it: both or neither, whatever ends the process.

store.key_file says how the two are kept in step, store.database how the database is rewritten.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from store import backups, key_file
from store.database import reencrypt
from store.errors import StoreMisuse, StoreUnwritable
from store.keys import DatabaseKey, Way

__all__ = ["rekey"]


def rekey(database: Path, keys: Path, key: DatabaseKey, ways: Sequence[Way]) -> DatabaseKey:
    """Encrypts the database anew under a random key, which is returned, and which `ways` alone open in the key file.

    The old key opens nothing of either file afterwards. Killed at any moment it leaves a store that opens: by all ways
    of before, or by `ways`. Both files are in one folder. Blocks for about as long as the database takes to be copied,
    and needs as much free disk as that has. Raises StoreBusy while anybody has the database open, also in this process;
    what making a way raises, before anything is changed; WrongKey, StoreMissing, StoreCorrupt, DiskFull,
    StoreUnwritable: then nothing has changed either.
    """
    if not ways or database.parent.resolve() != keys.parent.resolve():
        raise StoreMisuse("a new key needs a way to it, and a key file beside its database")
    store_id, _ = key_file.read(keys)
    new = DatabaseKey.generate()
    coming = [way(new, store_id) for way in ways]
    with contextlib.ExitStack() as change:
        reencrypt(
            database, key, new,
            lambda: change.enter_context(key_file.changing(keys, key.salt, new.salt, database.name, coming)),
        )
    with contextlib.suppress(StoreUnwritable):
        backups.clear(database)  # copies under the former key, with what opens it
    return new
