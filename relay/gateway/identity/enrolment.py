"""How a device comes to be registered and stays so: joining, renewing, attestation elsewhere, admission.

Who is registered is in `registrations`, who was asked to join in `invitations`. An ID whose holder proves itself
elsewhere is registered when that source first vouches for it, never one that a device holds, nor one that was revoked.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import EnrolmentRefused, SetupRefused
from relay.gateway.identity.alerts import Alerts
from relay.gateway.identity.attestation import Attested
from relay.gateway.identity.ca import Authority, Issued
from relay.gateway.identity.invitations import INVITATION_MAX_S, Invitations, bind, known, look, privileged, prune
from relay.gateway.identity.registrations import (
    IDLE_MAX_S,
    Registration,
    Registrations,
    insert_in_place,
    read_all,
    stand_in,
)
from relay.gateway.identity.serials import Serials
from store.database import Connection, Database
from transport.errors import IdentityRefused, ProtocolViolation
from transport.identity.join import Invitation
from transport.identity.svid import SpiffeId, parse_csr
from transport.identity.verify import VerifiedPeer
from transport.primitives import Secret, VerifyKey, sha256


def _nobody(peer: VerifiedPeer) -> str:
    return ""


@dataclass(frozen=True)
class Joined:
    """What a device gets: its certificate and under which enrolment."""

    issued: Issued
    enrolment: int


class Enrolment(Registrations):
    """The registrations with the ways into them; owns the table `serials`. Await `load` before anything else."""

    def __init__(
        self, database: Database, authority: Authority, audit: AuditLog, *, refusals: Refusals | None = None,
        elsewhere: Callable[[VerifiedPeer], str] = _nobody, clock: Callable[[], float] = time.time,
    ) -> None:
        """`elsewhere` names the source that issued a verified certificate which is not on record here, "" if none did.

        A gateway without such a source leaves it out; then every certificate is one of ours, or refused.
        """
        super().__init__(database, authority.trust_domain, clock)
        self.invitations = Invitations(database, authority, audit, clock)
        self._authority = authority
        self._audit = audit
        self._refusals = refusals or Refusals(audit, clock=clock)
        self._elsewhere = elsewhere
        self._serials = Serials()
        self.alerts = Alerts(database, audit, clock=clock)

    async def load(self) -> None:
        """Reads registrations and unexpired serials into memory."""
        now = int(self._clock())

        def work(connection: Connection) -> tuple[list[Registration], list[tuple[object, ...]]]:
            connection.execute("DELETE FROM serials WHERE not_after < ?", (now - 120,))
            prune(connection, now)
            serials = connection.execute("SELECT serial, enrolment, not_after FROM serials ORDER BY rowid").fetchall()
            return read_all(connection), serials

        registrations, serials = await self._database.run(work)
        self._restore(registrations)
        self._serials.clear()
        for text, enrolment, end in serials:
            serial, holder = int(str(text), 16), int(str(enrolment))
            self._serials.enter(holder, serial)
            self._serials.issued(holder, serial, int(str(end)))
        await self.alerts.load()

    # --- joining and renewing ---------------------------------------------------------------------------------------

    async def invite(
        self, role_path: str, *, hints: Sequence[str] = (), ttl_s: int = INVITATION_MAX_S, allow_gateway: bool = False,
        tpm: bool = False,
    ) -> Invitation:
        """As `Invitations.make`, but for an ID that is attested elsewhere: that raises SetupRefused."""
        holder = self.holder(role_path)
        if holder is not None and holder.source and self._clock() <= holder.ends():
            raise SetupRefused(
                f"this ID is attested by {holder.source}; no device joins under it",
                hint="choose another name, or revoke it first",
            )
        return await self.invitations.make(role_path, hints=hints, ttl_s=ttl_s, allow_gateway=allow_gateway, tpm=tpm)

    async def join(
        self, token_id: bytes, secret: Secret, csr: bytes, device_spki: bytes, *, roles: Collection[str], via: str = "",
        attested: Attested | None = None,
    ) -> Joined:
        """Redeems an invitation for the device whose key's signature the caller has verified.

        First use binds the invitation to that key. The same key may come again while the invitation lasts and gets the
        same registration, so that a lost link strands nobody; any other key is refused and audited. An earlier holder
        of the ID, or an earlier ID of the device, is replaced. `roles` are those that may join by this way; `attested`
        is what the device has shown of its TPM, to be kept with a new registration.
        Raises EnrolmentRefused, AuditUnavailable, AuthorityExpired.
        """
        token = token_id.hex()
        try:
            device_key = VerifyKey.from_spki(device_spki)
            svid_key = parse_csr(csr)
        except ProtocolViolation as error:
            raise await self._refused("join", str(error), token=token, via=via) from None
        if svid_key.spki == device_key.spki:
            raise await self._refused("join", "device key used as SVID key", token=token, via=via)
        registration = await self.register(token_id, secret, device_key, roles=roles, via=via, attested=attested)
        return await self._issue("join", registration.enrolment, svid_key, via)

    async def check_invitation(
        self, token_id: bytes, secret: Secret, device_key: VerifyKey, *, roles: Collection[str], via: str = ""
    ) -> str:
        """The ID that a device which is about to show its TPM could join as. Binds nothing. Raises as `register`."""
        now, device_id = int(self._clock()), sha256(device_key.spki)
        reason, enrolment, identity = await self._database.run(
            lambda connection: _look(connection, token_id, secret, device_id, roles, now, in_tpm=True), read_only=True
        )
        if reason:
            raise await self.refused_join(reason, token_id, identity, device_key, via, enrolment)
        return identity

    async def refused_join(
        self, reason: str, token_id: bytes, identity: str, device_key: VerifyKey, via: str, whose: int = 0
    ) -> EnrolmentRefused:
        """Records a refusal, and alerts if the invitation is bound to `whose`; the error is the caller's to raise."""
        device = sha256(device_key.spki).hex()
        if whose:
            await self.alerts.give("invitation", identity, whose, token=token_id.hex(), device=device, via=via)
        return await self._refused("join", reason, token=token_id.hex(), id=identity, device=device, via=via)

    async def register(
        self, token_id: bytes, secret: Secret, device_key: VerifyKey, *, roles: Collection[str], via: str = "",
        attested: Attested | None = None,
    ) -> Registration:
        """The part of `join` that has no certificate in it: redeems an invitation for a key that was proven to be held.

        Raises EnrolmentRefused, AuditUnavailable.
        """
        now, token = int(self._clock()), token_id.hex()
        device_id = sha256(device_key.spki)
        new = Registration(0, "", device_id, device_key, "active", now, now)
        if attested is not None:
            new = replace(new, tpm=attested.tpm, ek_sha256=attested.ek_sha256)

        def allowed(connection: Connection) -> tuple[str, int, str]:
            return _look(connection, token_id, secret, device_id, roles, now, in_tpm=attested is not None)

        def work(connection: Connection) -> tuple[str, int, str]:
            reason, enrolment, identity = allowed(connection)
            if reason or enrolment:
                return reason, enrolment, identity
            made = insert_in_place(connection, replace(new, id=identity))
            bind(connection, token_id, device_id, made)
            return "", made, identity

        # Whoever has no invitation costs no record of an attempt.
        reason, enrolment, identity = await self._database.run(allowed, read_only=True)
        if not reason and not enrolment:  # nor does whoever comes again: nothing will be bound
            # Intent before effect: were the audit full, nothing may be bound.
            await self._audit.append(
                "join.attempt", token=token, device=device_id.hex(), via=via, tpm=new.tpm, ek_sha256=new.ek_sha256
            )
            reason, enrolment, identity = await self._writer.run(work)
        if reason:
            raise await self.refused_join(reason, token_id, identity, device_key, via, enrolment)
        return self._enter(replace(new, enrolment=enrolment, id=identity))

    async def renew(self, device_id: bytes, csr: bytes, *, roles: Collection[str], via: str = "") -> Joined:
        """A new SVID for a registered device whose signature the caller has verified with `device_key`.

        Raises EnrolmentRefused, AuditUnavailable, AuthorityExpired.
        """
        try:
            svid_key = parse_csr(csr)
            registration = self.registration(device_id)
        except (ProtocolViolation, IdentityRefused) as error:
            raise await self._refused("renew", str(error), device=device_id.hex(), via=via) from None
        assert registration.device_key is not None  # `registration` finds no other
        if svid_key.spki == registration.device_key.spki:
            raise await self._refused("renew", "device key used as SVID key", device=device_id.hex(), via=via)
        if SpiffeId.parse(registration.id).role not in roles:
            raise await self._refused("renew", "this role does not renew this way", id=registration.id, via=via)
        return await self._issue("renew", registration.enrolment, svid_key, via)

    # --- attested elsewhere ------------------------------------------------------------------------------------------

    async def attested(self, identity: SpiffeId, source: str) -> Registration:
        """The registration of an ID whose holder `source` has vouched for just now: made if there is none.

        `source` is a fixed word of ours. Raises EnrolmentRefused, after an audit record, for an ID that is not of this
        trust domain or privileged, that a device or another source holds, or that was revoked and not reinstated; so an
        administrator's word stands against every source. AuditUnavailable, StoreError.
        """
        name, now = str(identity), int(self._clock())
        held = self.vouched(identity, source)
        if held is not None:
            await self.seen(held.enrolment)
            return held
        if identity.trust_domain != self._authority.trust_domain or not known(identity) or privileged(identity):
            raise await self._refused("attested", "not an ID for this source", id=name, source=source)
        new = Registration(0, name, stand_in(name), None, "active", now, now, source=source)

        def found(connection: Connection) -> tuple[str, int]:
            """(reason, 0) if it is refused, ("", enrolment) if there is one by now, ("", 0) if not yet."""
            last = connection.execute(
                "SELECT enrolment, status, source, last_seen FROM registrations WHERE spiffe_id = ?"
                " ORDER BY status = 'active' DESC, enrolment DESC LIMIT 1",
                (name,),
            ).fetchone()
            attested = connection.execute(  # whatever device has held the ID in between
                "SELECT status FROM registrations WHERE spiffe_id = ? AND source <> '' ORDER BY enrolment DESC LIMIT 1",
                (name,),
            ).fetchone()
            if last is None or last[1] != "active":
                ends = [row[0] for row in (last and last[1:], attested) if row]
                return "registration was revoked" if "revoked" in ends else "", 0
            if not last[2]:
                return "a device has joined under this ID", 0
            if last[3] < now - IDLE_MAX_S:
                return "", 0
            return ("", int(last[0])) if last[2] == source else ("another source holds this ID", 0)

        def work(connection: Connection) -> tuple[str, int]:
            reason, enrolment = found(connection)
            if reason or enrolment:
                return reason, enrolment
            return "", insert_in_place(connection, new)

        reason, enrolment = await self._database.run(found, read_only=True)
        if not reason and not enrolment:
            await self._audit.append("attested.attempt", id=name, source=source)
            reason, enrolment = await self._database.run(work)
        if reason:
            raise await self._refused("attested", reason, id=name, source=source)
        return self._enter(replace(new, enrolment=enrolment))

    async def meet(self, peer: VerifiedPeer) -> None:
        """Registers who comes with a verified certificate of a source elsewhere; others are known or not.

        Raises IdentityRefused, AuditUnavailable, StoreError.
        """
        if source := self._elsewhere(peer):
            try:
                await self.attested(peer.id, source)
            except EnrolmentRefused as refusal:
                raise IdentityRefused(f"not admitted: {refusal.reason}", rule="registration") from None

    async def issue_attested(self, registration: Registration, key: VerifyKey) -> Joined:
        """An SVID of ours for `key`, whose holder was attested just now, on record as any other.

        Raises EnrolmentRefused if the registration has ended, AuditUnavailable, AuthorityExpired, StoreError.
        """
        assert registration.source
        return await self._issue("attested", registration.enrolment, key, registration.source)

    # --- admitting --------------------------------------------------------------------------------------------------

    def admit(self, peer: VerifiedPeer) -> None:
        """Raises IdentityRefused unless the certificate is one of ours for the current holder of its ID."""
        self.enrolment_of(peer)

    def enrolment_of(self, peer: VerifiedPeer) -> int:
        """The peer's enrolment number. Raises IdentityRefused as `admit` does.

        For a certificate of a source elsewhere it is that of the registration which `attested` has made for its ID.
        """
        if source := self._elsewhere(peer):  # first: it chooses its serial numbers, and could choose one of ours
            enrolment = self._by_source.get((source, str(peer.id)), 0)
            if not enrolment:
                raise IdentityRefused("nobody has vouched for this ID, or it was revoked", rule="registration")
        else:
            enrolment = self._serials.holder(peer.serial)
        registration = self._by_enrolment.get(enrolment)
        if registration is None or registration.id != str(peer.id):
            raise IdentityRefused("the certificate is not on record", rule="serial")
        self._check(registration)
        return enrolment

    def line(self, enrolment: int) -> tuple[int, ...]:
        """The good certificates of a device, oldest first; none where many programs may each have their own."""
        one = self._by_enrolment.get(enrolment)
        return self._serials.line(enrolment) if one is not None and not one.source else ()

    async def _issue(self, event: str, enrolment: int, key: VerifyKey, via: str) -> Joined:
        registration = self._by_enrolment[enrolment]
        now = self._clock()
        issued = await self._authority.issue_aside(SpiffeId.parse(registration.id), key, now=now)
        serial, end = f"{issued.serial:x}", int(issued.not_after)
        await self._audit.append(
            f"{event}.issued", id=registration.id, enrolment=enrolment, serial=serial, not_after=end, via=via
        )

        self._serials.prune(now)
        dropped = self._serials.enter(enrolment, issued.serial)

        def work(connection: Connection) -> bool:
            row = connection.execute("SELECT status FROM registrations WHERE enrolment = ?", (enrolment,)).fetchone()
            if row is None or row[0] != "active":
                return False  # it ended meanwhile
            connection.execute("DELETE FROM serials WHERE not_after < ?", (int(now) - 120,))
            connection.executemany("DELETE FROM serials WHERE serial = ?", [(f"{one:x}",) for one in dropped])
            connection.execute("INSERT INTO serials VALUES (?, ?, ?)", (serial, enrolment, end))
            connection.execute(
                "UPDATE registrations SET last_seen = ? WHERE enrolment = ?", (int(now), enrolment)
            )
            return True

        if not await self._writer.run(work):
            raise await self._refused(event, "registration has ended", id=registration.id, via=via)
        self._by_enrolment[enrolment] = replace(self._by_enrolment[enrolment], last_seen=int(now))
        self._serials.issued(enrolment, issued.serial, end)
        return Joined(issued, enrolment)

    async def _refused(self, event: str, reason: str, **fields: str) -> EnrolmentRefused:
        await self._refusals.append(f"{event}.refused", reason=reason, **fields)
        return EnrolmentRefused("the gateway does not issue an identity for this", reason=reason)


def _look(
    connection: Connection, token_id: bytes, secret: Secret, device_id: bytes, roles: Collection[str], now: int,
    *, in_tpm: bool,
) -> tuple[str, int, str]:
    """As `look` of the invitations, also refused where the registration has ended or the ID is attested elsewhere."""
    reason, enrolment, identity = look(connection, token_id, secret, device_id, roles, now, in_tpm=in_tpm)
    if reason:
        return reason, enrolment, identity
    if enrolment:
        current = connection.execute("SELECT status FROM registrations WHERE enrolment = ?", (enrolment,)).fetchone()
        if current is None or current[0] != "active":
            return "registration has ended", 0, identity
        return "", enrolment, identity
    other = connection.execute(
        "SELECT source FROM registrations"
        " WHERE spiffe_id = ? AND status = 'active' AND source <> '' AND last_seen >= ?",
        (identity, now - IDLE_MAX_S),
    ).fetchone()
    return "" if other is None else f"the ID is attested by {other[0]}", 0, identity
