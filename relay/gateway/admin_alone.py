"""The administrator's operations where no gateway runs. Apart from `app`, so that a command loads no web server."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from relay.gateway.admin import Admin
from relay.gateway.audit.log import AUDIT_FILE, AuditLog
from relay.gateway.backup import snapshot
from relay.gateway.config import Config
from relay.gateway.identity.ca import SVID_LIFETIME_S, Authority
from relay.gateway.identity.custody import Custody
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.revocation import Revocation
from relay.gateway.identity.token_keys import ACCESS, ACCESS_S, JWT_SVID, Rotation, TokenKeys
from relay.gateway.keys import custody_of
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.trace import TraceStore
from store.database import Database
from store.keys import Unlock


@asynccontextmanager
async def open_admin(config: Config, passphrase: Unlock) -> AsyncIterator[Admin]:
    """The administrator's operations without a running gateway. Raises Busy if one runs, WrongKey and the like."""
    with open_state(config.directory, passphrase) as database:
        audit = AuditLog(config.directory / AUDIT_FILE)
        try:
            custody = custody_of(config.keys)
            authority = Authority.open(config.directory, passphrase, custody=custody)
            enrolment = Enrolment(database, authority, audit)
            await enrolment.load()
            revocation = Revocation(config.directory, database, authority, enrolment, audit)
            await revocation.refresh()
            admin = Admin(
                enrolment, TraceStore(database), revocation, lambda: snapshot(config.directory, database), audit,
                origin=config.public.origin if config.public else None,
            )
            admin.offer("rotate_tokens", Rotation(await token_keys_of(database, custody, time.time), audit))
            yield admin
        finally:
            await audit.close()


async def token_keys_of(database: Database, custody: Custody, clock: Callable[[], float]) -> list[TokenKeys]:
    """Those for access tokens, then those for JWT-SVIDs."""
    made = [
        TokenKeys(database, ACCESS, longest_s=ACCESS_S, clock=clock, custody=custody),
        TokenKeys(database, JWT_SVID, longest_s=SVID_LIFETIME_S, clock=clock, custody=custody),
    ]
    for keys in made:
        await keys.load()
    return made
