"""A gateway's folder while no gateway runs on it: made whole or not at all, its authority's keys replaced."""

import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from relay.gateway.audit.log import AUDIT_FILE, AuditLog
from relay.gateway.config import CONFIG_FILE, EXAMPLE, Config, parse
from relay.gateway.errors import SetupRefused
from relay.gateway.identity.ca import (
    INTERMEDIATE_FILE,
    INTERMEDIATE_PURPOSE,
    Authority,
    create_authority,
    renew_intermediate,
    seal,
    serial_of,
    unseal,
)
from relay.gateway.identity.custody import Custody
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.held import name_of
from relay.gateway.identity.revocation import Revocation
from relay.gateway.identity.rotation import Rotated
from relay.gateway.identity.rotation import rotate_root as take_step
from relay.gateway.identity.upstream import made_before, write_upstream
from relay.gateway.keys import custody_of
from relay.gateway.state.sqlcipher import KEY_FILE, create_state, open_state
from store.database import Database
from store.files import write_private
from store.keys import Passphrase, Unlock, unlock
from transport.primitives import random_bytes


def create(
    directory: Path, trust_domain: str, *, passphrase: Passphrase, root_passphrase: Passphrase | None, now: float,
    keys: str = "",
) -> None:
    """Makes a gateway folder (mode 0700) whole or not at all. Takes about a second of key derivation.

    `keys` is a section [keys] as text. Unless its keys are in software, the passphrase is for backups, and the folder
    is opened by whoever holds the keys; `root_passphrase` is None unless the root's key is in software.
    Raises SetupRefused if the folder exists and is not empty or both passphrases are the same, BadInput, StoreError,
    KeysUnavailable: then keys that were made already stay where they are.
    """
    directory = directory.absolute()
    check_free(directory)
    text = (EXAMPLE.format(trust_domain=trust_domain) + keys).encode()
    partial = directory.with_name(f".{directory.name}.{random_bytes(4).hex()}.partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        config = parse(text, partial)  # also refuses a trust domain that is none, before anything is sealed
        custody, state = custody_of(config.keys), create_state(partial, passphrase)
        held = custody.hold(partial, partial / KEY_FILE, state) if custody.holds else None
        create_authority(
            partial, trust_domain, passphrase=held or passphrase, root_passphrase=root_passphrase or held or passphrase,
            now=now, custody=custody,
        )
        write_private(partial / CONFIG_FILE, [text], replace=False)
        partial.rename(directory)  # onto nothing or an empty folder, in one step
    except OSError as error:
        raise _cannot_make(directory, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(directory: Path) -> None:
    """Raises SetupRefused unless there is nothing there, or an empty folder."""
    try:
        taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    except OSError as error:
        raise _cannot_make(directory, error) from None
    if taken:
        raise SetupRefused(f"{directory} exists and is not empty", hint="choose another folder; nothing was changed")


def _cannot_make(directory: Path, error: OSError) -> SetupRefused:
    return SetupRefused(f"cannot make {directory}: {(error.strerror or '').lower()}", hint="choose another folder")


@asynccontextmanager
async def stopped(
    directory: Path, unlocks: Unlock, clock: Callable[[], float] = time.time
) -> AsyncIterator[tuple[Database, AuditLog]]:
    """State and audit of a gateway that does not run. Raises Busy if one does, WrongKey, AuditUnavailable."""
    with open_state(directory, unlocks) as database:
        audit = AuditLog(directory / AUDIT_FILE, clock=clock)
        try:
            yield database, audit
        finally:
            await audit.close()


async def opened(
    directory: Path, unlocks: Unlock, custody: Custody, database: Database, audit: AuditLog,
    clock: Callable[[], float] = time.time,
) -> tuple[Enrolment, Revocation]:
    """What ends registrations there, loaded. Raises as `Authority.open`, StoreError."""
    authority = Authority.open(directory, unlocks, custody=custody)
    enrolment = Enrolment(database, authority, audit, clock=clock)
    await enrolment.load()
    return enrolment, Revocation(directory, database, authority, enrolment, audit, clock=clock)


@dataclass(frozen=True)
class Renewed:
    """When the new intermediate ends (unix seconds), and what its holder calls the old one's key, if that is held."""

    not_after: float
    unused: str | None


async def renew_ca(
    config: Config, *, passphrase: Unlock, root_passphrase: Unlock, now: float, compromised: bool = False
) -> Renewed:
    """Replaces the online intermediate of a gateway that is stopped.

    SVIDs of the old one stay good until they run out, unless it is `compromised`: then the revocation list names it.
    Raises Busy, WrongKey, AuditUnavailable, AuthorityExpired, KeysUnavailable.
    """
    custody = custody_of(config.keys)
    async with stopped(config.directory, passphrase) as (database, audit):
        await audit.append("authority.renewal", compromised=compromised)
        old = unseal(config.directory / INTERMEDIATE_FILE, passphrase, INTERMEDIATE_PURPOSE)
        end = renew_intermediate(
            config.directory, passphrase=passphrase, root_passphrase=root_passphrase, now=now,
            lifetimes=config.identity.lifetimes(), custody=custody,
        )
        if compromised:
            _, revocation = await opened(config.directory, passphrase, custody, database, audit)
            await revocation.end_certificate(*serial_of(old.certificate))
        if custody.holds and isinstance(passphrase, Passphrase):  # [keys] is new: the holder takes the rest over
            online = unseal(config.directory / INTERMEDIATE_FILE, passphrase, INTERMEDIATE_PURPOSE)
            custody.hold(
                config.directory, config.directory / KEY_FILE, unlock(config.directory / KEY_FILE, passphrase),
                first=lambda held: seal(config.directory / INTERMEDIATE_FILE, online, held, INTERMEDIATE_PURPOSE),
            )
            (config.directory / INTERMEDIATE_FILE).unlink()
        return Renewed(end, name_of(old.key))


async def rotate_root(config: Config, *, passphrase: Unlock, root_passphrase: Unlock, now: float) -> Rotated:
    """Takes the next step towards a new root, for a gateway that is stopped. Raises SetupRefused if it is too early,
    Busy, WrongKey, AuditUnavailable, AuthorityExpired.
    """
    async with stopped(config.directory, passphrase) as (_, audit):
        await audit.append("authority.root_rotation")
        rotated = take_step(
            config.directory, passphrase=passphrase, root_passphrase=root_passphrase, now=now,
            lifetimes=config.identity.lifetimes(), custody=custody_of(config.keys),
        )
        await audit.append(f"authority.root_{rotated.step}", sequence=rotated.sequence)
        return rotated


async def make_upstream(
    config: Config, out: Path, *, passphrase: Unlock, root_passphrase: Unlock, now: float, compromised: bool = False
) -> float:
    """Makes `out` for a SPIRE server, with the gateway stopped; the end of what is in it (unix seconds).

    `compromised`: all that was made before goes on the revocation list, with all that it has signed.
    Raises Busy, WrongKey, AuditUnavailable, AuthorityExpired, KeysUnavailable, SetupRefused.
    """
    custody = custody_of(config.keys)
    async with stopped(config.directory, passphrase) as (database, audit):
        await audit.append("authority.upstream", compromised=compromised)
        old = made_before(config.directory, now=now)
        if compromised and not old:
            raise SetupRefused(
                "this folder knows of no upstream authority that is good yet, so none can be listed",
                hint="leave out --compromised; one of after the backup that this folder is from ends with its time",
            )
        made = write_upstream(
            config.directory, out, root_passphrase=root_passphrase, now=now,
            lifetimes=config.identity.lifetimes(), custody=custody,
        )
        if compromised:
            _, revocation = await opened(config.directory, passphrase, custody, database, audit)
            for one in old:
                await revocation.end_certificate(one.serial, one.not_after)
        await audit.append("authority.upstream_made", serial=f"{made.serial:x}", not_after=int(made.not_after))
        return made.not_after
