"""The administrator's operations where no gateway runs. Apart from `app`, so that a command loads no web server."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from relay.gateway.admin import Admin
from relay.gateway.anomaly.guard import Guard
from relay.gateway.audit.log import AUDIT_FILE
from relay.gateway.backup import snapshot
from relay.gateway.config import Config
from relay.gateway.folder import opened, stopped
from relay.gateway.identity.ca import SVID_LIFETIME_S
from relay.gateway.identity.custody import Custody
from relay.gateway.identity.token_keys import ACCESS, ACCESS_S, JWT_SVID, Rotation, TokenKeys
from relay.gateway.keys import custody_of
from relay.gateway.quota.kept import Kept
from relay.gateway.quota.quotas import Quotas
from relay.gateway.trace import TraceStore
from store.database import Database
from store.keys import Unlock


@asynccontextmanager
async def open_admin(config: Config, passphrase: Unlock) -> AsyncIterator[Admin]:
    """The administrator's operations without a running gateway. Raises Busy if one runs, WrongKey and the like."""
    async with stopped(config.directory, passphrase) as (database, audit):
        custody = custody_of(config.keys)
        enrolment, revocation = await opened(config.directory, passphrase, custody, database, audit)
        await revocation.refresh()
        guard = Guard(database, config.anomaly)
        await guard.load()
        admin = Admin(
            enrolment, TraceStore(database), revocation, lambda: snapshot(config.directory, database), audit, guard,
            origin=config.public.origin if config.public else None,
        )
        admin.offer("rotate_tokens", Rotation(await token_keys_of(database, custody, time.time), audit))
        quotas = Quotas(config.quotas)
        await Kept(quotas, database, config.directory / AUDIT_FILE, lambda: audit.end).load()
        admin.offer("usage", quotas.usage)
        yield admin


async def token_keys_of(database: Database, custody: Custody, clock: Callable[[], float]) -> list[TokenKeys]:
    """Those for access tokens, then those for JWT-SVIDs."""
    made = [
        TokenKeys(database, ACCESS, longest_s=ACCESS_S, clock=clock, custody=custody),
        TokenKeys(database, JWT_SVID, longest_s=SVID_LIFETIME_S, clock=clock, custody=custody),
    ]
    for keys in made:
        await keys.load()
    return made
