"""A gateway's folder as one sealed file, and back: what a restored gateway must forget, and what it must not.

A backup is older than the gateway it brings back. So a restored one begins a new journal epoch (nothing is carried out
twice), gives no enrolment number a second time, voids all invitations, and has to be told what was revoked since: by
the latest signed list, from the old folder or from a hop, or by its administrator's word that there was nothing. Should
that word be wrong, hops bring the list, and what it says ends then. Tickets are in no backup; neither are the
provider's key and the audit log, of which the restored one's first record names the end as the backup knew it.
"""

import asyncio
import shutil
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from relay.gateway.config import CONFIG_FILE
from relay.gateway.errors import SetupRefused
from relay.gateway.folder import check_free, opened, stopped
from relay.gateway.identity.ca import INTERMEDIATE_FILE, ROOT_CERTIFICATE_FILE, ROOT_FILE
from relay.gateway.identity.held import HELD_FILE
from relay.gateway.identity.rotation import NEXT_ROOT_FILE
from relay.gateway.identity.upstream import CERTIFICATE_FILE as UPSTREAM_FILE
from relay.gateway.key_settings import keys_of
from relay.gateway.keys import custody_of
from relay.gateway.state.sqlcipher import DATABASE_FILE, KEY_FILE
from store.database import Connection, Database
from store.errors import StoreCorrupt
from store.files import file_errors, write_private
from store.keys import Passphrase, unlock_key
from store.sealed import open_file, seal_file
from transport.identity.revocation import FRESH_S, stored_list
from transport.primitives import random_bytes

PURPOSE: Final = "causeway gateway backup"
ENROLMENT_STEP: Final = 1_000_000  # no gateway gives out so many numbers between two backups
_AUTHORITIES: Final = (ROOT_FILE, NEXT_ROOT_FILE, INTERMEDIATE_FILE)
_FILES: Final = (
    CONFIG_FILE, ROOT_CERTIFICATE_FILE, UPSTREAM_FILE, KEY_FILE, HELD_FILE, *_AUTHORITIES,
    *(str(Path(name).with_suffix(".held")) for name in _AUTHORITIES),
)


class _Backup(msgspec.Struct, forbid_unknown_fields=True):
    """What the sealed file holds. `created` in unix seconds; the audit log's end by number and hash of its record."""

    version: Annotated[int, Meta(ge=1, le=1)]
    created: int
    audit_sequence: int
    audit_head: str
    files: dict[str, bytes]
    rules: dict[str, bytes]  # of policy, by their path in the folder

    def __repr__(self) -> str:
        return "<Backup>"


async def snapshot(directory: Path, database: Database) -> Path:
    """A copy of the database beside it, of one moment and under the same key. Raises StoreError."""
    path = directory / f".snapshot-{random_bytes(4).hex()}"
    await database.copy(path)
    return path


def write_backup(
    directory: Path, copy: Path, target: Path, passphrase: Passphrase, *, audit_sequence: int, audit_head: str,
    now: float, config: str = CONFIG_FILE,
) -> None:
    """Seals a folder, with `copy` as its database, into `target`. The passphrase is the gateway's own; `config` names
    its configuration. Files of rules outside of the folder are left out.

    Raises WrongKey for another one, SetupRefused if `target` exists, StoreError.
    """
    unlock_key(directory / KEY_FILE, passphrase)  # sealed under a mistyped passphrase, a backup would be none
    if target.exists():
        raise SetupRefused(f"{target} exists", hint="choose another name; nothing was changed")
    files = {}
    for name in (*_FILES, DATABASE_FILE):
        path = {DATABASE_FILE: copy, CONFIG_FILE: directory / config}.get(name, directory / name)
        if path.exists():  # roots may be kept elsewhere
            with file_errors(path):
                files[name] = path.read_bytes()
    backup = _Backup(1, int(now), audit_sequence, audit_head, files, _rules(directory, files[CONFIG_FILE]))
    seal_file(target, msgspec.msgpack.encode(backup), passphrase, purpose=PURPOSE)


async def restore(
    source: Path, directory: Path, passphrase: Passphrase, *, revocations: bytes | None, now: float
) -> list[str]:
    """Makes `directory` from a backup, whole or not at all; IDs that the list revoked. None: nothing was since.

    Raises SetupRefused if the folder is not empty or the list is older than the backup, IdentityRefused for a list that
    is not of this trust domain, WrongKey, StoreError.
    """
    check_free(directory)
    backup = await asyncio.to_thread(_read, source, passphrase)
    if revocations is not None and stored_list(revocations).this_update < backup.created - FRESH_S / 2:
        raise SetupRefused(
            "the revocation list is older than the backup, so it cannot say what was revoked since",
            hint="take the newest revocations.list, of the old folder or of a hop's home",
        )
    partial = directory.with_name(f".{directory.name}.{random_bytes(4).hex()}.partial")
    partial.mkdir(mode=0o700, parents=True)
    try:
        for name, data in (backup.files | backup.rules).items():
            (partial / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(partial / name, [data], replace=False)
        ended = await _renew(partial, passphrase, backup, revocations, now)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ended


def _rules(directory: Path, config: bytes) -> dict[str, bytes]:
    named = tomllib.loads(config.decode()).get("policy", {}).get("cedar", [])
    return {name: (directory / name).read_bytes() for name in named if _inside(name) and (directory / name).is_file()}


def _inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


async def _renew(
    directory: Path, passphrase: Passphrase, backup: _Backup, revocations: bytes | None, now: float
) -> list[str]:
    custody = custody_of(keys_of(backup.files[CONFIG_FILE]))
    unlocks = custody.unlock(directory, directory / KEY_FILE) or passphrase
    async with stopped(directory, unlocks, lambda: now) as (database, audit):
        await database.run(_forget)
        await audit.append(
            "gateway.restored", backup_of=backup.created, audit_sequence=backup.audit_sequence,
            audit_head=backup.audit_head, revocations="given" if revocations is not None else "none since",
        )
        _, revocation = await opened(directory, unlocks, custody, database, audit, lambda: now)
        await revocation.refresh()
        return [] if revocations is None else await revocation.learn(revocations, "restore")


def _forget(connection: Connection) -> None:
    connection.execute("UPDATE journal SET epoch = randomblob(16)")
    connection.execute("UPDATE invitations SET voided = 1")
    connection.execute(  # of a backup from before the first registration, too
        "INSERT INTO sqlite_sequence (name, seq) SELECT 'registrations', 0"
        " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'registrations')"
    )
    connection.execute(
        "UPDATE sqlite_sequence SET seq = (seq / ? + 1) * ? WHERE name = 'registrations'",
        (ENROLMENT_STEP, ENROLMENT_STEP),
    )


def _read(source: Path, passphrase: Passphrase) -> _Backup:
    try:
        backup = msgspec.msgpack.decode(open_file(source, passphrase, purpose=PURPOSE), type=_Backup)
    except msgspec.MsgspecError:
        raise StoreCorrupt("the backup is of an unknown form", hint="was it made by a later version?") from None
    needed, known = {CONFIG_FILE, KEY_FILE, DATABASE_FILE}, {*_FILES, DATABASE_FILE}
    if not needed <= backup.files.keys() <= known or not all(map(_inside, backup.rules)):
        raise StoreCorrupt("the backup is not whole", hint="take another one")
    return backup
