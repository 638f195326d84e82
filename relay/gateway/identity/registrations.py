"""Who is registered: the rows, what is held of them in memory, and how a registration ends and begins again.

A registration ties a device key to one SPIFFE ID under an enrolment number that is never used again. It may obtain
SVIDs until it is replaced, revoked, or unseen for 90 days. All registrations are held in memory as well, so that a
handshake or a request asks nobody; every change is in the database first.

An ID whose holder proves itself elsewhere (a program on this host, a node of SPIRE) has a registration without a device
key; since there is no key to bar, a revocation bars the ID.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from relay.gateway.errors import SetupRefused
from relay.gateway.identity.invitations import void_all
from relay.gateway.state.writer import Writer
from store.database import Connection, Database
from transport.errors import BadInput, IdentityRefused
from transport.identity.svid import SpiffeId
from transport.primitives import VerifyKey, sha256

IDLE_MAX_S: Final = 90 * 86_400
SEEN_EVERY_S: Final = 300  # `last_seen` is a day's matter; not every session needs a write


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


class Registrations:
    """Owns the table `registrations`. `endings` grows with every one that is replaced or revoked."""

    def __init__(self, database: Database, trust_domain: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._writer = Writer(database)  # for what many devices do at once
        self._trust_domain = trust_domain
        self._clock = clock
        self._by_enrolment: dict[int, Registration] = {}
        self._by_device: dict[bytes, int] = {}  # active registrations only, with a device key
        self._by_source: dict[tuple[str, str], int] = {}  # (source, ID): the others that are active
        self._by_id: dict[str, int] = {}  # all active ones: an ID has one at a time
        self.endings = 0

    # --- asking -----------------------------------------------------------------------------------------------------

    def registrations(self) -> list[Registration]:
        """All of them, oldest first."""
        return list(self._by_enrolment.values())

    def holder(self, role_path: str) -> Registration | None:
        """Who holds that ID at present."""
        return self._by_enrolment.get(self._by_id.get(f"spiffe://{self._trust_domain}/{role_path}", 0))

    def find(self, who: str) -> list[Registration]:
        """Those meant by `role/name`, a whole SPIFFE ID or an enrolment number, oldest first. Raises BadInput."""
        if who.isascii() and who.isdecimal():
            found = self._by_enrolment.get(int(who))
            return [] if found is None else [found]
        return [one for one in self._by_enrolment.values() if one.id == str(self.identity(who))]

    def identity(self, who: str) -> SpiffeId:
        """Of this trust domain, from `role/name` or the whole. Raises BadInput."""
        identity = SpiffeId.parse(who if "://" in who else f"spiffe://{self._trust_domain}/{who}")
        if identity.trust_domain != self._trust_domain or not identity.name:
            raise BadInput("this is no ID of this trust domain", hint="as in edge/lap-1; `relay gateway devices` lists")
        return identity

    def registration(self, device_id: bytes) -> Registration:
        """The device's current one. Raises IdentityRefused if there is none, or it has ended."""
        registration = self._by_enrolment.get(self._by_device.get(device_id, 0))
        if registration is None:
            raise IdentityRefused("the device is not registered", rule="registration")
        self._check(registration)
        return registration

    def device_key(self, device_id: bytes) -> VerifyKey:
        """The key that must have signed a renewal. Raises IdentityRefused as `registration` does."""
        key = self.registration(device_id).device_key
        assert key is not None
        return key

    def current(self, enrolment: int, identity: str) -> Registration:
        """The registration of that number, if it is that ID's. Raises IdentityRefused if not, or if it has ended."""
        registration = self._by_enrolment.get(enrolment)
        if registration is None or registration.id != identity:
            raise IdentityRefused("there is no such registration", rule="registration")
        self._check(registration)
        return registration

    def vouched(self, identity: SpiffeId, source: str) -> Registration | None:
        """The registration in force of an ID that `source` has vouched for."""
        held = self._by_enrolment.get(self._by_source.get((source, str(identity)), 0))
        return None if held is None or self._clock() > held.ends() else held

    def attested_tpm(self, enrolment: int) -> str:
        """What a device has shown of its TPM: "none", "any" or "certified"."""
        registration = self._by_enrolment.get(enrolment)
        return (registration.tpm if registration is not None else "") or "none"

    # --- changing ---------------------------------------------------------------------------------------------------

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
            void_all(connection, void)

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
        new = replace(ended, status="active", created=now, last_seen=now, ended=0, reason="")
        made = replace(new, enrolment=await self._database.run(lambda connection: _insert(connection, new)))
        self._keep(made)
        return made

    # --- for those who let devices in -------------------------------------------------------------------------------

    def _restore(self, registrations: Iterable[Registration]) -> None:
        for index in (self._by_enrolment, self._by_device, self._by_source, self._by_id):
            index.clear()
        for one in registrations:
            self._keep(one)

    def _enter(self, made: Registration) -> Registration:
        """Holds what `insert_in_place` has written, unless it was held before."""
        if made.enrolment not in self._by_enrolment:
            for enrolment in {self._by_id.get(made.id, 0), self._by_device.get(made.device_id, 0)} - {0}:
                one = self._by_enrolment[enrolment]
                self._by_enrolment[enrolment] = replace(one, status="replaced", ended=made.created)
                self._forget(one)
            self._keep(made)
        return self._by_enrolment[made.enrolment]

    def _check(self, registration: Registration) -> None:
        if registration.status != "active":
            raise IdentityRefused(f"the registration was {registration.status}", rule="registration")
        if self._clock() > registration.ends():
            raise IdentityRefused("the registration ended after 90 idle days", rule="registration idle")

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


def read_all(connection: Connection) -> list[Registration]:
    """All rows, oldest first."""
    return [
        Registration(
            enrolment, spiffe_id, bytes(device_id), None if source else VerifyKey.from_spki(spki), status, created,
            last_seen, ended, reason, source, tpm, ek_sha256,
        )
        for enrolment, spiffe_id, device_id, spki, status, created, last_seen, ended, reason, source, tpm, ek_sha256
        in connection.execute(
            "SELECT enrolment, spiffe_id, device_id, device_spki, status, created, last_seen, ended, reason,"
            " source, tpm, ek_sha256 FROM registrations ORDER BY enrolment"
        )
    ]


def insert_in_place(connection: Connection, new: Registration) -> int:
    """Writes a registration in place of its ID's and its device's; its enrolment number, whatever `new` says."""
    connection.execute(
        "UPDATE registrations SET status = 'replaced', ended = ?"
        " WHERE status = 'active' AND (spiffe_id = ? OR device_id = ?)",
        (new.created, new.id, new.device_id),
    )
    return _insert(connection, new)


def _insert(connection: Connection, new: Registration) -> int:
    made = connection.execute(
        "INSERT INTO registrations"
        " (spiffe_id, device_id, device_spki, status, created, last_seen, source, tpm, ek_sha256)"
        " VALUES (?, ?, ?, 'active', ?, ?, ?, ?, ?)",
        (
            new.id, new.device_id, new.device_key.spki if new.device_key else b"", new.created, new.last_seen,
            new.source, new.tpm, new.ek_sha256,
        ),
    ).lastrowid
    assert made is not None
    return made


def stand_in(identity: str) -> bytes:
    """What an ID without a device key has for a device's ID: no SPKI begins with these words."""
    return sha256(b"causeway attested ", identity.encode())
