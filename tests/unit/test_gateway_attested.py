"""Registrations without a device key: of IDs that something else than the gateway vouches for."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from relay.gateway.admin import Admin
from relay.gateway.anomaly.guard import Guard
from relay.gateway.anomaly.settings import AS_BUILT
from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import EnrolmentRefused, SetupRefused
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.invitations import PROBE_NAME
from relay.gateway.identity.registrations import IDLE_MAX_S
from relay.gateway.identity.revocation import Revocation
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.trace import TraceStore
from store.database import Database
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, Clock, audit_lines
from transport.errors import IdentityRefused
from transport.identity.svid import SpiffeId, make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.primitives import SigningKey, sha256

EDGE = ("edge",)
SOURCE = "spire"
OURS, THEIRS = 10, 1 << 100  # serials of peers that nobody verified; of the second kind none is on record here


def from_spire(peer: VerifiedPeer) -> str:
    return SOURCE if peer.serial >= THEIRS and not peer.leaf else ""


@dataclass
class Lab:
    directory: Path
    database: Database
    enrolment: Enrolment
    authority: Authority
    revocation: Revocation
    audit: AuditLog
    clock: Clock

    def peer(self, path: str, serial: int = THEIRS) -> VerifiedPeer:
        now = self.clock()
        return VerifiedPeer(identity(path), SigningKey.generate().public, bytes(32), serial, now, now + 3_600)

    async def again(self) -> Enrolment:
        """As a gateway that was started anew sees it."""
        fresh = Enrolment(self.database, self.authority, self.audit, elsewhere=from_spire, clock=self.clock)
        await fresh.load()
        return fresh

    async def refused(self, path: str, source: str = SOURCE) -> str:
        with pytest.raises(EnrolmentRefused) as refusal:
            await self.enrolment.attested(identity(path), source)
        assert self.events()[-1] == "attested.refused"
        return refusal.value.reason

    def events(self) -> list[str]:
        return [str(line["event"]) for line in audit_lines(self.directory / "a.jsonl")]

    async def join(self, path: str, device: SigningKey) -> int:
        invitation = await self.enrolment.invite(path)
        return (await self.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(SigningKey.generate()), device.public.spki, roles=EDGE
        )).enrolment


def identity(path: str) -> SpiffeId:
    return SpiffeId(DOMAIN, "/" + path)


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    clock = Clock()
    with open_state(directory, PASSPHRASE) as database:
        audit = AuditLog(directory / "a.jsonl", clock=clock)
        authority = Authority.open(directory, PASSPHRASE)
        enrolment = Enrolment(database, authority, audit, elsewhere=from_spire, clock=clock)
        await enrolment.load()
        revocation = Revocation(directory, database, authority, enrolment, audit, clock=clock)
        await revocation.refresh()
        yield Lab(directory, database, enrolment, authority, revocation, audit, clock)
        await audit.close()


async def test_it_is_made_once_however_often_and_however_many_at_once(lab: Lab) -> None:
    first, *others = await asyncio.gather(*(lab.enrolment.attested(identity("edge/a"), SOURCE) for _ in range(5)))
    assert all(one == first for one in others)
    assert await lab.enrolment.attested(identity("edge/a"), SOURCE) == first
    assert lab.enrolment.registrations() == [first]
    assert (first.device_key, first.source, first.status) == (None, SOURCE, "active")
    assert (await lab.again()).registrations() == [first]
    other = await lab.enrolment.attested(identity("edge/b"), SOURCE)
    assert other.device_id != first.device_id


async def test_a_certificate_of_the_source_has_the_enrolment_of_its_id(lab: Lab) -> None:
    with pytest.raises(IdentityRefused):
        lab.enrolment.enrolment_of(lab.peer("edge/a"))  # nobody has vouched for it yet
    made = await lab.enrolment.attested(identity("edge/a"), SOURCE)
    for enrolment in (lab.enrolment, await lab.again()):
        assert enrolment.enrolment_of(lab.peer("edge/a")) == made.enrolment
        with pytest.raises(IdentityRefused):
            enrolment.enrolment_of(lab.peer("edge/b"))
        with pytest.raises(IdentityRefused, match="not on record"):  # one that we should have issued, and have not
            enrolment.enrolment_of(lab.peer("edge/a", OURS))


async def test_a_gateway_without_such_a_source_believes_no_certificate_of_it(lab: Lab) -> None:
    await lab.enrolment.attested(identity("edge/a"), SOURCE)
    plain = Enrolment(lab.database, lab.authority, lab.audit, clock=lab.clock)
    await plain.load()
    with pytest.raises(IdentityRefused, match="not on record"):
        plain.enrolment_of(lab.peer("edge/a"))


async def test_one_source_does_not_speak_for_another(lab: Lab) -> None:
    await lab.enrolment.attested(identity("workload/a"), "workload")
    assert await lab.refused("workload/a") == "another source holds this ID"
    with pytest.raises(IdentityRefused):
        lab.enrolment.enrolment_of(lab.peer("workload/a"))


async def test_revoked_it_stays_revoked_after_somebody_else_has_held_the_id(lab: Lab) -> None:
    """A device may be invited to it; when that moves on to another ID, the one that was revoked does not come back."""
    await lab.enrolment.attested(identity("edge/a"), SOURCE)
    await lab.revocation.revoke("edge/a", "lost")
    device = SigningKey.generate()
    await lab.join("edge/a", device)
    await lab.join("edge/b", device)
    assert [one.status for one in lab.enrolment.registrations()] == ["revoked", "replaced", "active"]
    for source in (SOURCE, "workload"):
        assert await lab.refused("edge/a", source) == "registration was revoked"
    await lab.revocation.reinstate("edge/a")
    assert (await lab.enrolment.attested(identity("edge/a"), SOURCE)).enrolment == 4


async def test_revoked_it_stays_revoked_until_it_is_reinstated(lab: Lab) -> None:
    made = await lab.enrolment.attested(identity("edge/a"), SOURCE)
    await lab.revocation.revoke("edge/a", "lost")
    lab.clock.now += 2 * IDLE_MAX_S
    lab.enrolment = await lab.again()
    lab.revocation = Revocation(
        lab.directory, lab.database, lab.authority, lab.enrolment, lab.audit, clock=lab.clock
    )
    for source in (SOURCE, "workload"):
        assert await lab.refused("edge/a", source) == "registration was revoked"
    with pytest.raises(IdentityRefused):
        lab.enrolment.enrolment_of(lab.peer("edge/a"))
    again = await lab.revocation.reinstate("edge/a")
    assert again.enrolment != made.enrolment
    assert (again.source, again.device_key) == (SOURCE, None)
    assert await lab.enrolment.attested(identity("edge/a"), SOURCE) == again
    assert lab.enrolment.enrolment_of(lab.peer("edge/a")) == again.enrolment


async def test_a_revocation_while_it_is_vouched_for_wins(lab: Lab) -> None:
    made = await lab.enrolment.attested(identity("edge/a"), SOURCE)
    await asyncio.gather(
        lab.revocation.revoke("edge/a", "lost"), lab.enrolment.attested(identity("edge/a"), SOURCE),
        return_exceptions=True,
    )
    assert [one.status for one in lab.enrolment.registrations()] == ["revoked"]
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.issue_attested(made, SigningKey.generate().public)
    assert await lab.refused("edge/a") == "registration was revoked"


async def test_an_id_that_a_device_holds_is_never_taken_over(lab: Lab) -> None:
    device = SigningKey.generate()
    enrolment = await lab.join("edge/a", device)
    assert await lab.refused("edge/a") == "a device has joined under this ID"
    lab.clock.now += IDLE_MAX_S + 1  # ended by itself, but it is for an administrator to say that the name is free
    assert await lab.refused("edge/a") == "a device has joined under this ID"
    await lab.revocation.revoke("edge/a", "lost")
    assert await lab.refused("edge/a") == "registration was revoked"
    assert [one.enrolment for one in lab.enrolment.registrations()] == [enrolment]


async def test_no_device_joins_under_an_id_that_is_attested(lab: Lab) -> None:
    early = await lab.enrolment.invite("edge/a")
    made = await lab.enrolment.attested(identity("edge/a"), SOURCE)
    with pytest.raises(SetupRefused, match="attested by spire"):
        await lab.enrolment.invite("edge/a")
    with pytest.raises(EnrolmentRefused) as refusal:
        await lab.enrolment.join(
            early.token_id, early.secret, make_csr(SigningKey.generate()), SigningKey.generate().public.spki, roles=EDGE
        )
    assert refusal.value.reason == "the ID is attested by spire"
    assert lab.enrolment.registrations() == [made]
    await lab.revocation.revoke("edge/a", "becomes a device")
    await lab.join("edge/a", SigningKey.generate())  # by an invitation of after the revocation
    assert await lab.refused("edge/a") == "a device has joined under this ID"


async def test_no_key_renews_it(lab: Lab) -> None:
    made = await lab.enrolment.attested(identity("edge/a"), SOURCE)
    for device_id in (made.device_id, sha256(b"")):
        with pytest.raises(IdentityRefused):
            lab.enrolment.device_key(device_id)
        with pytest.raises(EnrolmentRefused):
            await lab.enrolment.renew(device_id, make_csr(SigningKey.generate()), roles=EDGE)


async def test_ninety_idle_days_end_it_and_the_source_may_begin_anew(lab: Lab) -> None:
    made = await lab.enrolment.attested(identity("edge/a"), SOURCE)
    lab.clock.now += IDLE_MAX_S - 10
    assert (await lab.enrolment.attested(identity("edge/a"), SOURCE)).enrolment == made.enrolment  # it was seen
    lab.clock.now += IDLE_MAX_S + 1
    with pytest.raises(IdentityRefused, match="90 idle days"):
        lab.enrolment.enrolment_of(lab.peer("edge/a"))
    anew = await lab.enrolment.attested(identity("edge/a"), SOURCE)
    assert [(one.enrolment, one.status) for one in lab.enrolment.registrations()] == [
        (made.enrolment, "replaced"), (anew.enrolment, "active"),
    ]


@pytest.mark.parametrize("path", [
    "gateway/main", "admin/eve", "workload/admin", "workload/admin/x", "stranger/x", f"edge/{PROBE_NAME}",
])
async def test_no_source_vouches_for_a_privileged_role(lab: Lab, path: str) -> None:
    assert await lab.refused(path) == "not an ID for this source"
    assert lab.enrolment.registrations() == []


async def test_nor_for_another_trust_domain(lab: Lab) -> None:
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.attested(SpiffeId("other.example", "/edge/a"), SOURCE)


async def test_what_we_issue_for_it_is_on_record_and_ends_with_it(lab: Lab) -> None:
    made = await lab.enrolment.attested(identity("workload/a"), "workload")
    key = SigningKey.generate()
    joined = await lab.enrolment.issue_attested(made, key.public)
    peer = verify_svid(joined.issued.chain, lab.authority.bundle, role="workload", now=lab.clock())
    assert (await lab.again()).enrolment_of(peer) == lab.enrolment.enrolment_of(peer) == made.enrolment
    stolen = replace(peer, serial=OURS)
    with pytest.raises(IdentityRefused):
        lab.enrolment.enrolment_of(stolen)
    await lab.revocation.revoke("workload/a", "stolen")
    with pytest.raises(IdentityRefused):
        lab.enrolment.enrolment_of(peer)
    assert made.enrolment in lab.revocation.list.enrolments


async def test_devices_lists_it_and_says_who_vouches(lab: Lab) -> None:
    await lab.enrolment.attested(identity("edge/a"), SOURCE)
    await lab.join("edge/b", SigningKey.generate())

    async def no_copy() -> Path:
        raise AssertionError

    admin = Admin(
        lab.enrolment, TraceStore(lab.database, clock=lab.clock), lab.revocation, no_copy, lab.audit,
        Guard(lab.database, AS_BUILT, clock=lab.clock),
    )
    a, b = (await admin.devices())["devices"]
    assert (a["source"], a["device"], a["status"]) == (SOURCE, "", "active")
    assert b["source"] == ""
    assert len(b["device"]) == 64


async def test_refusals_in_a_flood_are_counted(lab: Lab) -> None:
    for _ in range(50):
        with pytest.raises(EnrolmentRefused):
            await lab.enrolment.attested(identity("gateway/main"), SOURCE)
    assert lab.events().count("attested.refused") == 10
    assert "attested.attempt" not in lab.events()
