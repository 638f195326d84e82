"""Ending a device for good: on record first, then everything of it that lives, then the signed list that tells others.

What has ended stays so: a device that is reinstated gets another enrolment number, so certificates, tickets and answers
of the old one are dead whatever happens, and lists from different times never contradict each other.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import AuthorityExpired, NotFound, SetupRefused
from relay.gateway.identity.ca import INTERMEDIATE_LIFETIME_S, Authority
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.registrations import IDLE_MAX_S, Registration
from store.database import Connection, Database
from store.files import write_private
from transport.identity.revocation import (
    FRESH_S,
    SIGNER_PATH,
    RevocationList,
    read_carried,
    sign_list,
)
from transport.identity.svid import SpiffeId, Svid
from transport.primitives import SigningKey

LIST_FILE: Final = "revocations.list"
REASON_MAX: Final = 200  # characters
_CARRIED: Final = "a list that was carried here says so"
_log = logging.getLogger(__name__)

Cut = Callable[[Sequence[Registration]], Awaitable[None]]


@dataclass(frozen=True)
class Revoked:
    """What a revocation ended: registrations and open invitations; none of both if it had been revoked before."""

    id: str
    enrolments: tuple[int, ...]
    invitations: int


async def _nothing(ended: Sequence[Registration]) -> None:
    """Beside a gateway that does not run, nothing lives."""


class Revocation:
    """Owns revoked_certificates and revocation_list of 0004_revocation.sql. Await `refresh` before anything else."""

    def __init__(
        self, directory: Path, database: Database, authority: Authority, enrolment: Enrolment, audit: AuditLog, *,
        cut: Cut = _nothing, clock: Callable[[], float] = time.time,
    ) -> None:
        """`cut` ends what lives of registrations that have just ended: sessions, tunnels, tickets, calls."""
        self._path = directory / LIST_FILE
        self._database, self._authority, self._enrolment = database, authority, enrolment
        self._audit, self._clock, self._cut = audit, clock, cut
        self.list = RevocationList()

    async def revoke(self, who: str, reason: str) -> Revoked:
        """Ends a device: by enrolment number that one, by ID its holder, and every invitation for that ID.

        When it returns, no frame of the device is taken any more. Revoking again changes nothing and alerts nobody.
        Raises NotFound, BadInput, SetupRefused for a reason that is empty or over 200 characters; AuditUnavailable,
        StoreError: then nothing has ended.
        """
        reason = reason.strip()
        if not 1 <= len(reason) <= REASON_MAX or not reason.isprintable():
            raise SetupRefused(f"a reason has 1 to {REASON_MAX} printable characters", hint='as in --reason "lost"')
        found, numbered = self._enrolment.find(who), who.isdecimal()
        if numbered and not found:
            raise NotFound("no device has this enrolment number", hint="`relay gateway devices` lists them")
        identity = found[0].id if found else str(self._enrolment.identity(who))
        ending = [one for one in found if one.status == "active" or (numbered and one.status == "replaced")]
        holder = not numbered or any(one.status == "active" for one in ending)
        invitations = await self._enrolment.invitations.waiting(identity) if holder else 0
        if not found and not invitations:
            raise NotFound("nobody has joined under this ID, and nobody is invited to", hint="is it spelt right?")
        numbers = tuple(one.enrolment for one in ending)
        if ending or invitations:
            await self._audit.append(
                "device.revoked", id=identity, enrolments=" ".join(map(str, numbers)), invitations=invitations,
                reason=reason,
            )
            await self._enrolment.end(ending, reason, void=identity if holder else "")
        if ending:
            _log.warning("revoked %s: %s", identity, reason)  # the alert: once, for a second time there is none to end
            await self._cut(ending)
            await self.refresh(changed=True)
        return Revoked(identity, numbers, invitations)

    async def reinstate(self, who: str) -> Registration:
        """Registers a revoked device again, under a new enrolment number; it comes back by its device key.

        Raises NotFound, BadInput, SetupRefused if ID or device has been given anew; AuditUnavailable, StoreError.
        """
        revoked = [one for one in self._enrolment.find(who) if one.status == "revoked"]
        if not revoked:
            raise NotFound("no revoked device answers to this", hint="`relay gateway devices` lists them")
        again = revoked[-1]
        self._enrolment.check_gone(again)
        await self._audit.append("device.reinstated", id=again.id, enrolment=again.enrolment)
        return await self._enrolment.again(again)

    async def learn(self, data: bytes, source: str) -> list[str]:
        """Ends what a list that somebody carried here says is over, and is active here; the IDs of these.

        So a gateway that was restored from a backup hears of what happened after it. `source` is for the audit.
        Raises IdentityRefused for a list that is not ours, AuditUnavailable, StoreError.
        """
        carried = read_carried(data, self._authority.bundle, now=self._clock(), held=self.list)
        active = (one for one in self._enrolment.registrations() if one.status == "active")
        ending = [one for one in active if one.enrolment in carried.enrolments]
        for one in ending:
            await self._audit.append(
                "device.revoked", id=one.id, enrolments=str(one.enrolment), reason=_CARRIED, via=source
            )
            await self._enrolment.end([one], _CARRIED, void=one.id)
            _log.warning("revoked %s: %s", one.id, _CARRIED)
        if ending:
            await self._cut(ending)
        end = carried.this_update + INTERMEDIATE_LIFETIME_S  # nothing that is on a list lasts longer
        unknown = carried.serials - self.list.serials if end > self._clock() else frozenset[int]()
        await self._list_certificates([(serial, end) for serial in unknown])
        if ending or unknown or carried.sequence > self.list.sequence:
            await self.refresh(changed=True, above=carried.sequence)
        return [one.id for one in ending]

    async def refresh(self, *, changed: bool = False, above: int = 0) -> None:
        """Signs the list anew if it has changed, or half of its time has passed. Nothing was ever revoked: no list.

        Raises StoreError; without an authority that can sign, the list stays as it is.
        """
        now = self._clock()
        since = now - IDLE_MAX_S  # whoever ended earlier would have ended of idleness by now, in any backup
        enrolments = [one.enrolment for one in sorted(
            (one for one in self._enrolment.registrations() if one.status != "active" and one.ended > since),
            key=lambda one: one.ended,
        )]
        if not changed and self.list.sequence and now < self.list.this_update + FRESH_S / 2 and (
            set(enrolments) == self.list.enrolments
        ):
            return

        def work(connection: Connection) -> tuple[int, list[int]]:
            connection.execute("DELETE FROM revoked_certificates WHERE not_after < ?", (int(now) - 120,))
            serials = [
                int(str(row[0]), 16) for row in connection.execute("SELECT serial FROM revoked_certificates").fetchall()
            ]
            row = connection.execute("SELECT sequence FROM revocation_list").fetchone()
            sequence = max(int(now), (int(row[0]) if row else 0) + 1, above + 1)
            if enrolments or serials:
                connection.execute("UPDATE revocation_list SET sequence = ?", (sequence,))
            return sequence, serials

        sequence, serials = await self._database.run(work)
        if not enrolments and not serials:
            return
        try:
            self.list = sign_list(await self._signer(now), sequence, enrolments, serials, now=now)
        except AuthorityExpired:
            _log.error("the revocation list cannot be signed: the intermediate certificate has run out")
            return
        write_private(self._path, [self.list.data], replace=True)  # for a restore, and for whoever wants to look

    async def end_certificate(self, serial: int, not_after: float) -> None:
        """Puts a certificate on the list, an intermediate as a rule: nobody believes anything it has signed.

        Raises StoreError.
        """
        await self._list_certificates([(serial, int(not_after))])
        await self.refresh(changed=True)

    async def _list_certificates(self, serials: Sequence[tuple[int, int]]) -> None:
        await self._database.run(lambda connection: connection.executemany(
            "INSERT OR IGNORE INTO revoked_certificates VALUES (?, ?)", [(f"{one:x}", end) for one, end in serials]
        ) and None)

    async def _signer(self, now: float) -> Svid:
        key = SigningKey.generate()
        issued = await self._authority.issue_aside(
            SpiffeId(self._authority.trust_domain, SIGNER_PATH), key.public, now=now
        )
        return Svid(issued.id, issued.chain, key, issued.not_before, issued.not_after)


