"""Who may join and who has joined: invitations, registrations and the certificates issued to them.

A registration ties a device key to one SPIFFE ID under an enrolment number that is never used again. It may obtain
SVIDs until it is replaced, revoked, or unseen for 90 days. All registrations are held in memory as well, so that a
handshake or a request asks nobody; every change is in the database first.

An ID whose holder proves itself elsewhere (a program on this host, a node of SPIRE) has a registration without a device
key. It is made when that source first vouches for the ID, never for one that a device holds, nor for one that was
revoked: since there is no key to bar, a revocation bars the ID.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import EnrolmentRefused, SetupRefused
from relay.gateway.identity.alerts import Alerts
from relay.gateway.identity.attestation import Attested
from relay.gateway.identity.ca import Authority, Issued
from relay.gateway.identity.serials import Serials
from relay.gateway.state.writer import Writer
from store.database import Connection, Database
from transport.errors import BadInput, IdentityRefused, ProtocolViolation
from transport.identity.join import SECRET_LEN, TOKEN_ID_LEN, Invitation
from transport.identity.svid import SpiffeId, parse_csr
from transport.identity.verify import VerifiedPeer
from transport.primitives import Secret, VerifyKey, random_bytes, same_bytes, sha256

INVITATION_MAX_S: Final = 3_600
IDLE_MAX_S: Final = 90 * 86_400
SEEN_EVERY_S: Final = 300  # `last_seen` is a day's matter; not every session needs a write
ORDINARY_ROLES: Final = ("edge", "hop", "workload")
PRIVILEGED_ROLES: Final = ("gateway", "admin")  # an invitation for these needs to be asked for explicitly
PROBE_NAME: Final = "relay-doctor"  # nobody else's, in any role; see `probes`


@dataclass(frozen=True)
class Registration:
    """A device that has joined. Times in unix seconds, `ended` 0 while `status` is active; else replaced or revoked.

    One that `source` vouches for has no key; its `device_id` stands for the ID and belongs to no key there could be.
    """

    enrolment: int
    id: str
    device_id: bytes
    device_key: VerifyKey | None
    status: str
    created: int
    last_seen: int
    ended: int = 0
    reason: str = ""
    source: str = ""  # "" for a device that has joined by its key
    tpm: str = ""  # whether that key was shown to lie in a TPM: "", "any" or "certified"
    ek_sha256: str = ""  # and which; see Attested

    def ends(self) -> int:
        """When it ends by itself unless the device shows up."""
        return self.last_seen + IDLE_MAX_S


def _nobody(peer: VerifiedPeer) -> str:
    return ""


@dataclass(frozen=True)
class Joined:
    """What a device gets: its certificate and under which enrolment."""

    issued: Issued
    enrolment: int


class Enrolment:
    """Owns the tables of 0001_identity.sql. Await `load` before anything else."""

    def __init__(
        self, database: Database, authority: Authority, audit: AuditLog, *, refusals: Refusals | None = None,
        elsewhere: Callable[[VerifiedPeer], str] = _nobody, clock: Callable[[], float] = time.time,
    ) -> None:
        """`elsewhere` names the source that issued a verified certificate which is not on record here, "" if none did.

        A gateway without such a source leaves it out; then every certificate is one of ours, or refused.
        """
        self._database = database
        self._writer = Writer(database)  # for what many devices do at once
        self._authority = authority
        self._audit = audit
        self._refusals = refusals or Refusals(audit, clock=clock)
        self._clock = clock
        self._by_enrolment: dict[int, Registration] = {}
        self._by_device: dict[bytes, int] = {}  # active registrations only, with a device key
        self._by_source: dict[tuple[str, str], int] = {}  # (source, ID): the others that are active
        self._by_id: dict[str, int] = {}  # all active ones: an ID has one at a time
        self.endings = 0  # grows with every registration that is replaced or revoked
        self._elsewhere = elsewhere
        self._serials = Serials()
        self.alerts = Alerts(database, audit, clock=clock)

    async def load(self) -> None:
        """Reads registrations and unexpired serials into memory."""
        now = int(self._clock())

        def work(connection: Connection) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
            connection.execute("DELETE FROM serials WHERE not_after < ?", (now - 120,))
            connection.execute("DELETE FROM invitations WHERE expires < ?", (now - 7 * 86_400,))
            return (
                connection.execute(
                    "SELECT enrolment, spiffe_id, device_id, device_spki, status, created, last_seen, ended, reason,"
                    " source, tpm, ek_sha256 FROM registrations ORDER BY enrolment"
                ).fetchall(),
                connection.execute("SELECT serial, enrolment, not_after FROM serials ORDER BY rowid").fetchall(),
            )

        rows, serials = await self._database.run(work)
        self._by_enrolment.clear()
        self._by_device.clear()
        self._by_source.clear()
        self._by_id.clear()
        for enrolment, spiffe_id, device_id, spki, status, created, last_seen, ended, reason, source, tpm, ek in rows:
            assert isinstance(spki, bytes)
            self._keep(Registration(
                int(str(enrolment)), str(spiffe_id), bytes(device_id),  # type: ignore[call-overload]
                None if source else VerifyKey.from_spki(spki), str(status), int(str(created)), int(str(last_seen)),
                int(str(ended)), str(reason), str(source), str(tpm), str(ek),
            ))
        self._serials.clear()
        for text, enrolment, end in serials:
            serial, holder = int(str(text), 16), int(str(enrolment))
            self._serials.enter(holder, serial)
            self._serials.issued(holder, serial, int(str(end)))
        await self.alerts.load()

    def registrations(self) -> list[Registration]:
        """All of them, oldest first."""
        return list(self._by_enrolment.values())

    # --- inviting ---------------------------------------------------------------------------------------------------

    async def invite(
        self, role_path: str, *, hints: Sequence[str] = (), ttl_s: int = INVITATION_MAX_S, allow_gateway: bool = False,
        tpm: bool = False,
    ) -> Invitation:
        """A new invitation for one ID, `role/name`. Only a hash of its secret is kept. `tpm`: a device may use it only
        if it shows that its key lies in a TPM.

        Raises BadInput for an ID or hint that is none, SetupRefused for a lifetime outside 1..3,600 s, an unknown role
        or, without `allow_gateway`, a privileged one, for one that cannot show a TPM, and for an ID that is attested
        elsewhere; AuditUnavailable.
        """
        if not 1 <= ttl_s <= INVITATION_MAX_S:
            raise SetupRefused("an invitation is good for 1 second to 1 hour", hint="as in --ttl 600")
        identity = SpiffeId(self._authority.trust_domain, "/" + role_path)
        if identity.name == PROBE_NAME:
            raise SetupRefused("this name is that of the probes of `relay doctor`", hint="choose another name")
        if not _known(identity):
            raise BadInput(
                "an invitation is for edge/NAME, hop/NAME, workload/NAME or gateway/NAME",
                hint="for example: relay gateway invite edge/lap-1",
            )
        if _privileged(identity) and not allow_gateway:
            raise SetupRefused(
                "an invitation for a gateway or an administrator has to be asked for explicitly",
                hint="add --allow-gateway if that is what you mean; whoever holds it can pose as the gateway",
            )
        if tpm and identity.role != "edge":
            raise SetupRefused("only an edge can show its TPM", hint="as in: relay gateway invite edge/lap-1 --tpm")
        holder = self.holder(role_path)
        if holder is not None and holder.source and self._clock() <= holder.ends():
            raise SetupRefused(
                f"this ID is attested by {holder.source}; no device joins under it",
                hint="choose another name, or revoke it first",
            )
        secret = Secret(random_bytes(SECRET_LEN))
        invitation = Invitation(
            sha256(self._authority.root), random_bytes(TOKEN_ID_LEN), secret, identity.trust_domain, role_path,
            tuple(hints),
        )
        now = int(self._clock())
        await self._audit.append(
            "invitation.made", id=str(identity), token=invitation.token_id.hex(), ttl_s=ttl_s, tpm=tpm
        )
        await self._database.run(lambda connection: connection.execute(
            "INSERT INTO invitations (token_id, secret_sha256, spiffe_id, created, expires, tpm)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (invitation.token_id, sha256(secret.expose()), str(identity), now, now + ttl_s, int(tpm)),
        ) and None)
        return invitation

    def holder(self, role_path: str) -> Registration | None:
        """Who holds that ID at present."""
        return self._by_enrolment.get(self._by_id.get(f"spiffe://{self._authority.trust_domain}/{role_path}", 0))

    # --- joining and renewing ---------------------------------------------------------------------------------------

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
        tpm, ek_sha256 = (attested.tpm, attested.ek_sha256) if attested is not None else ("", "")

        def look(connection: Connection) -> tuple[str, int, str]:
            return _look(connection, token_id, secret, device_id, roles, now, in_tpm=attested is not None)

        def work(connection: Connection) -> tuple[str, int, str]:
            reason, enrolment, identity = look(connection)
            if reason or enrolment:
                return reason, enrolment, identity
            connection.execute(
                "UPDATE registrations SET status = 'replaced', ended = ?"
                " WHERE status = 'active' AND (spiffe_id = ? OR device_id = ?)",
                (now, identity, device_id),
            )
            made = _insert(connection, identity, device_key, now, "", tpm, ek_sha256)
            connection.execute(
                "UPDATE invitations SET device_id = ?, enrolment = ? WHERE token_id = ?",
                (device_id, made, token_id),
            )
            return "", made, identity

        # Whoever has no invitation costs no record of an attempt.
        reason, enrolment, identity = await self._database.run(look, read_only=True)
        if not reason and not enrolment:  # nor does whoever comes again: nothing will be bound
            # Intent before effect: were the audit full, nothing may be bound.
            await self._audit.append(
                "join.attempt", token=token, device=device_id.hex(), via=via, tpm=tpm, ek_sha256=ek_sha256
            )
            reason, enrolment, identity = await self._writer.run(work)
        if reason:
            raise await self.refused_join(reason, token_id, identity, device_key, via, enrolment)
        if enrolment not in self._by_enrolment:
            self._replace_in_memory(identity, device_id, now)
            self._keep(Registration(
                enrolment, identity, device_id, device_key, "active", now, now, tpm=tpm, ek_sha256=ek_sha256
            ))
        return self._by_enrolment[enrolment]

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

    def attested_tpm(self, enrolment: int) -> str:
        """What a device has shown of its TPM: "none", "any" or "certified"."""
        registration = self._by_enrolment.get(enrolment)
        return (registration.tpm if registration is not None else "") or "none"

    def device_key(self, device_id: bytes) -> VerifyKey:
        """The key that must have signed a renewal. Raises IdentityRefused as `registration` does."""
        key = self.registration(device_id).device_key
        assert key is not None
        return key

    def registration(self, device_id: bytes) -> Registration:
        """The device's current one. Raises IdentityRefused if there is none, or it has ended."""
        registration = self._by_enrolment.get(self._by_device.get(device_id, 0))
        if registration is None:
            raise IdentityRefused("the device is not registered", rule="registration")
        self._check(registration)
        return registration

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
        if identity.trust_domain != self._authority.trust_domain or not _known(identity) or _privileged(identity):
            raise await self._refused("attested", "not an ID for this source", id=name, source=source)

        def look(connection: Connection) -> tuple[str, int]:
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
            reason, enrolment = look(connection)
            if reason or enrolment:
                return reason, enrolment
            connection.execute(
                "UPDATE registrations SET status = 'replaced', ended = ? WHERE status = 'active' AND spiffe_id = ?",
                (now, name),
            )
            return "", _insert(connection, name, None, now, source)

        reason, enrolment = await self._database.run(look, read_only=True)
        if not reason and not enrolment:
            await self._audit.append("attested.attempt", id=name, source=source)
            reason, enrolment = await self._database.run(work)
        if reason:
            raise await self._refused("attested", reason, id=name, source=source)
        if enrolment not in self._by_enrolment:
            device_id = _stand_in(name)
            self._replace_in_memory(name, device_id, now)
            self._keep(Registration(enrolment, name, device_id, None, "active", now, now, source=source))
        return self._by_enrolment[enrolment]

    async def meet(self, peer: VerifiedPeer) -> None:
        """Registers who comes with a verified certificate of a source elsewhere; others are known or not.

        Raises IdentityRefused, AuditUnavailable, StoreError.
        """
        if source := self._elsewhere(peer):
            try:
                await self.attested(peer.id, source)
            except EnrolmentRefused as refusal:
                raise IdentityRefused(f"not admitted: {refusal.reason}", rule="registration") from None

    def vouched(self, identity: SpiffeId, source: str) -> Registration | None:
        """The registration in force of an ID that `source` has vouched for."""
        held = self._by_enrolment.get(self._by_source.get((source, str(identity)), 0))
        return None if held is None or self._clock() > held.ends() else held

    async def issue_attested(self, registration: Registration, key: VerifyKey) -> Joined:
        """An SVID of ours for `key`, whose holder was attested just now, on record as any other.

        Raises EnrolmentRefused if the registration has ended, AuditUnavailable, AuthorityExpired, StoreError.
        """
        assert registration.source
        return await self._issue("attested", registration.enrolment, key, registration.source)

    # --- ending -----------------------------------------------------------------------------------------------------

    def find(self, who: str) -> list[Registration]:
        """Those meant by `role/name`, a whole SPIFFE ID or an enrolment number, oldest first. Raises BadInput."""
        if who.isascii() and who.isdecimal():
            found = self._by_enrolment.get(int(who))
            return [] if found is None else [found]
        return [one for one in self._by_enrolment.values() if one.id == str(self.identity(who))]

    def identity(self, who: str) -> SpiffeId:
        """Of this trust domain, from `role/name` or the whole. Raises BadInput."""
        identity = SpiffeId.parse(who if "://" in who else f"spiffe://{self._authority.trust_domain}/{who}")
        if identity.trust_domain != self._authority.trust_domain or not identity.name:
            raise BadInput("this is no ID of this trust domain", hint="as in edge/lap-1; `relay gateway devices` lists")
        return identity

    async def open_invitations(self, identity: str) -> int:
        """How many invitations for an ID wait for their first use. Raises StoreError."""
        now = int(self._clock())
        row = await self._database.run(lambda connection: connection.execute(
            "SELECT count(*) FROM invitations"
            " WHERE spiffe_id = ? AND voided = 0 AND device_id IS NULL AND expires > ?",
            (identity, now),
        ).fetchone(), read_only=True)
        assert row is not None
        return int(row[0])

    async def end(self, ended: Collection[Registration], reason: str, *, void: str = "") -> None:
        """Revokes registrations for good, and every invitation for the ID `void`.

        On stable storage when it returns, and true for every check from then on. Raises StoreError.
        """
        now = int(self._clock())

        def work(connection: Connection) -> None:
            for one in ended:
                connection.execute(
                    "UPDATE registrations SET status = 'revoked', ended = ?, reason = ? WHERE enrolment = ?",
                    (now, reason, one.enrolment),
                )
                if SpiffeId.parse(one.id).role == "gateway":  # whom this gateway is not the only one to meet
                    connection.execute(
                        "INSERT OR IGNORE INTO revoked_certificates"
                        " SELECT serial, not_after FROM serials WHERE enrolment = ?", (one.enrolment,)
                    )
            connection.execute("UPDATE invitations SET voided = 1 WHERE spiffe_id = ?", (void,))

        await self._database.run(work)
        for one in ended:
            self._by_enrolment[one.enrolment] = replace(
                self._by_enrolment[one.enrolment], status="revoked", ended=now, reason=reason
            )
            self._forget(one)

    def check_gone(self, ended: Registration) -> None:
        """Raises SetupRefused if the ID, or the device, has another registration by now."""
        if ended.id in self._by_id or ended.device_id in self._by_device:
            raise SetupRefused("this ID or this device has joined anew", hint="`relay gateway devices` lists them")

    async def again(self, ended: Registration) -> Registration:
        """A new registration for the same device and ID. Raises SetupRefused as `check_gone` does, StoreError."""
        self.check_gone(ended)
        now = int(self._clock())
        enrolment = await self._database.run(lambda connection: _insert(
            connection, ended.id, ended.device_key, now, ended.source, ended.tpm, ended.ek_sha256
        ))
        made = Registration(
            enrolment, ended.id, ended.device_id, ended.device_key, "active", now, now, source=ended.source,
            tpm=ended.tpm, ek_sha256=ended.ek_sha256,
        )
        self._keep(made)
        return made

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

    def current(self, enrolment: int, identity: str) -> Registration:
        """The registration of that number, if it is that ID's. Raises IdentityRefused if not, or if it has ended."""
        registration = self._by_enrolment.get(enrolment)
        if registration is None or registration.id != identity:
            raise IdentityRefused("there is no such registration", rule="registration")
        self._check(registration)
        return registration

    async def seen(self, enrolment: int) -> None:
        """Notes that the device was here; written at most every five minutes."""
        registration = self._by_enrolment.get(enrolment)
        now = int(self._clock())
        if registration is None or now - registration.last_seen < SEEN_EVERY_S:
            return
        self._by_enrolment[enrolment] = replace(registration, last_seen=now)
        await self._writer.run(lambda connection: connection.execute(
            "UPDATE registrations SET last_seen = ? WHERE enrolment = ?", (now, enrolment)
        ) and None)

    async def check_writable(self) -> None:
        """Writes to the state and takes it back, for whoever wants to know that a device could join. StoreError."""
        token, now = random_bytes(TOKEN_ID_LEN), int(self._clock())

        def work(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO invitations (token_id, secret_sha256, spiffe_id, created, expires, voided)"
                " VALUES (?, ?, '', ?, ?, 1)", (token, sha256(random_bytes(SECRET_LEN)), now, now),
            )
            connection.execute("DELETE FROM invitations WHERE token_id = ?", (token,))

        await self._database.run(work)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _keep(self, registration: Registration) -> None:
        self._by_enrolment[registration.enrolment] = registration
        if registration.status != "active":
            return
        self._by_id[registration.id] = registration.enrolment
        if registration.source:
            self._by_source[registration.source, registration.id] = registration.enrolment
        else:
            self._by_device[registration.device_id] = registration.enrolment

    def _forget(self, ended: Registration) -> None:
        self.endings += 1
        if self._by_id.get(ended.id) == ended.enrolment:
            del self._by_id[ended.id]
        if self._by_device.get(ended.device_id) == ended.enrolment:
            del self._by_device[ended.device_id]
        if self._by_source.get((ended.source, ended.id)) == ended.enrolment:
            del self._by_source[ended.source, ended.id]

    def _replace_in_memory(self, identity: str, device_id: bytes, now: int) -> None:
        for enrolment in {self._by_id.get(identity, 0), self._by_device.get(device_id, 0)} - {0}:
            one = self._by_enrolment[enrolment]
            self._by_enrolment[enrolment] = replace(one, status="replaced", ended=now)
            self._forget(one)

    def _check(self, registration: Registration) -> None:
        if registration.status != "active":
            raise IdentityRefused(f"the registration was {registration.status}", rule="registration")
        if self._clock() > registration.ends():
            raise IdentityRefused("the registration ended after 90 idle days", rule="registration idle")

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
    """What an invitation allows a device: (reason, whose or 0, id) if it is refused, ("", enrolment, id) if it is bound
    to it already, ("", 0, id) if not yet.
    """
    row = connection.execute(
        "SELECT secret_sha256, spiffe_id, expires, device_id, enrolment, voided, tpm FROM invitations"
        " WHERE token_id = ?",
        (token_id,),
    ).fetchone()
    if row is None or not same_bytes(row[0], sha256(secret.expose())):
        return "unknown invitation or wrong secret", 0, ""
    identity = str(row[1])
    if SpiffeId.parse(identity).role not in roles:
        return "this role does not join this way", 0, identity
    if row[5]:
        return "invitation ended by a revocation", 0, identity
    if now >= row[2]:
        return "invitation expired", 0, identity
    if row[6] and not in_tpm:
        return "invitation is for a device whose key lies in a TPM", 0, identity
    if row[3] is not None:
        if not same_bytes(row[3], device_id):
            return "invitation used with another device key", int(row[4]), identity
        current = connection.execute("SELECT status FROM registrations WHERE enrolment = ?", (row[4],)).fetchone()
        if current is None or current[0] != "active":
            return "registration has ended", 0, identity
        return "", int(row[4]), identity
    other = connection.execute(
        "SELECT source FROM registrations"
        " WHERE spiffe_id = ? AND status = 'active' AND source <> '' AND last_seen >= ?",
        (identity, now - IDLE_MAX_S),
    ).fetchone()
    return "" if other is None else f"the ID is attested by {other[0]}", 0, identity


def _insert(
    connection: Connection, identity: str, key: VerifyKey | None, now: int, source: str, tpm: str = "", ek: str = ""
) -> int:
    """A new registration; its enrolment number."""
    device_id, spki = (sha256(key.spki), key.spki) if key else (_stand_in(identity), b"")
    made = connection.execute(
        "INSERT INTO registrations"
        " (spiffe_id, device_id, device_spki, status, created, last_seen, source, tpm, ek_sha256)"
        " VALUES (?, ?, ?, 'active', ?, ?, ?, ?, ?)",
        (identity, device_id, spki, now, now, source, tpm, ek),
    ).lastrowid
    assert made is not None
    return made


def _stand_in(identity: str) -> bytes:
    """What an ID without a device key has for a device's ID: no SPKI begins with these words."""
    return sha256(b"causeway attested ", identity.encode())


def _known(identity: SpiffeId) -> bool:
    return bool(identity.name) and identity.role in (*ORDINARY_ROLES, *PRIVILEGED_ROLES)


def _privileged(identity: SpiffeId) -> bool:
    return identity.role in PRIVILEGED_ROLES or (
        identity.role == "workload" and identity.name.partition("/")[0] == "admin"
    )
