"""Invitations and registrations; attacks C2 and C3 of the protocol review at the gateway's side."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import AuditUnavailable, EnrolmentRefused, SetupRefused
from relay.gateway.identity.attestation import Attested
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.enrolment import Enrolment, Joined
from relay.gateway.identity.registrations import IDLE_MAX_S
from relay.gateway.identity.serials import LIVE_MAX, PRUNE_EVERY_S
from relay.gateway.state.sqlcipher import DATABASE_FILE, open_state
from store.database import Database
from store.errors import DiskFull
from tests.support.gateway_lab import PASSPHRASE, Clock, audit_lines
from transport.errors import BadInput, IdentityRefused
from transport.identity.join import Invitation
from transport.identity.svid import make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.primitives import Secret, SigningKey, sha256

EDGE = ("edge",)


@dataclass
class Lab:
    directory: Path
    database: Database
    authority: Authority
    enrolment: Enrolment
    clock: Clock
    audit: AuditLog

    async def join(self, invitation: Invitation, device: SigningKey, *, roles: tuple[str, ...] = EDGE) -> Joined:
        return await self.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(SigningKey.generate()), device.public.spki, roles=roles
        )

    def peer(self, joined: Joined, role: str = "edge") -> VerifiedPeer:
        return verify_svid(joined.issued.chain, self.authority.bundle, role=role, now=self.clock())

    def events(self) -> list[str]:
        return [f"{line['event']} {line.get('reason', '')}".strip() for line in audit_lines(self.directory / "a.jsonl")]


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    clock = Clock()
    with open_state(directory, PASSPHRASE) as database:
        audit = AuditLog(directory / "a.jsonl", clock=clock)
        authority = Authority.open(directory, PASSPHRASE)
        enrolment = Enrolment(database, authority, audit, clock=clock)
        await enrolment.load()
        yield Lab(directory, database, authority, enrolment, clock, audit)
        await audit.close()


async def test_an_invitation_names_the_root_and_its_secret_is_kept_as_a_hash_only(lab: Lab) -> None:
    invitation = await lab.enrolment.invite("edge/lap-1", hints=["unix:/run/hop.sock"])
    assert invitation.root_sha256 == sha256(lab.authority.root)
    rows = await lab.database.run(lambda c: c.execute("SELECT * FROM invitations").fetchall())
    flat = [value for row in rows for value in row]
    assert sha256(invitation.secret.expose()) in flat
    assert invitation.secret.expose() not in flat
    assert invitation.secret.expose().hex() not in (lab.directory / "a.jsonl").read_text()


async def test_C3_same_key_may_repeat_and_gets_the_same_registration(lab: Lab) -> None:
    invitation, device = await lab.enrolment.invite("edge/lap-1"), SigningKey.generate()
    first = await lab.join(invitation, device)
    lab.clock.now += 3000  # the link was lost before the answer arrived; still inside the invitation's time
    second = await lab.join(invitation, device)
    assert first.enrolment == second.enrolment
    assert first.issued.serial != second.issued.serial
    lab.enrolment.admit(lab.peer(second))
    assert len(lab.enrolment.registrations()) == 1


async def test_C3_another_key_is_refused_and_audited(lab: Lab) -> None:
    invitation = await lab.enrolment.invite("edge/lap-1")
    await lab.join(invitation, SigningKey.generate())
    with pytest.raises(EnrolmentRefused) as refusal:
        await lab.join(invitation, SigningKey.generate())
    assert "another" not in str(refusal.value)  # outward it is like every other refusal
    assert "join.refused invitation used with another device key" in lab.events()


@pytest.mark.parametrize("what", ["secret", "token", "expired", "role"])
async def test_C3_what_does_not_fit_is_refused_alike(lab: Lab, what: str) -> None:
    invitation, device = await lab.enrolment.invite("edge/lap-1", ttl_s=60), SigningKey.generate()
    token_id, secret, roles = invitation.token_id, invitation.secret, EDGE
    if what == "secret":
        secret = Secret(b"\1" * 16)
    elif what == "token":
        token_id = b"\1" * 8
    elif what == "expired":
        lab.clock.now += 60
    else:
        roles = ("hop",)
    with pytest.raises(EnrolmentRefused) as refusal:
        await lab.enrolment.join(token_id, secret, make_csr(SigningKey.generate()), device.public.spki, roles=roles)
    assert str(refusal.value) == "the gateway does not issue an identity for this"
    assert lab.enrolment.registrations() == []
    assert any(event.startswith("join.refused") for event in lab.events())


@pytest.mark.parametrize("broken", ["csr", "device key", "same key"])
async def test_malformed_join_material_is_refused(lab: Lab, broken: str) -> None:
    invitation, device = await lab.enrolment.invite("edge/lap-1"), SigningKey.generate()
    csr, spki = make_csr(SigningKey.generate()), device.public.spki
    if broken == "csr":
        csr = csr[:-1] + bytes([csr[-1] ^ 1])
    elif broken == "device key":
        spki = b"\x30" + spki
    else:
        csr = make_csr(device)
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.join(invitation.token_id, invitation.secret, csr, spki, roles=EDGE)
    assert lab.enrolment.registrations() == []


async def test_C2_a_device_comes_back_after_weeks_with_its_device_key(lab: Lab) -> None:
    device = SigningKey.generate()
    joined = await lab.join(await lab.enrolment.invite("edge/lap-1"), device)
    lab.clock.now += 21 * 86_400
    device_id = sha256(device.public.spki)
    assert lab.enrolment.device_key(device_id).spki == device.public.spki
    again = await lab.enrolment.renew(device_id, make_csr(SigningKey.generate()), roles=EDGE)
    assert again.enrolment == joined.enrolment
    lab.enrolment.admit(lab.peer(again))


async def test_C2_ninety_idle_days_end_a_registration(lab: Lab) -> None:
    device = SigningKey.generate()
    await lab.join(await lab.enrolment.invite("edge/lap-1"), device)
    lab.clock.now += IDLE_MAX_S + 1
    with pytest.raises(IdentityRefused) as refusal:
        lab.enrolment.device_key(sha256(device.public.spki))
    assert refusal.value.rule == "registration idle"
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.renew(sha256(device.public.spki), make_csr(SigningKey.generate()), roles=EDGE)


async def test_an_unknown_device_cannot_renew(lab: Lab) -> None:
    with pytest.raises(IdentityRefused):
        lab.enrolment.device_key(b"\2" * 32)
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.renew(b"\2" * 32, make_csr(SigningKey.generate()), roles=EDGE)


async def test_a_new_holder_of_an_id_ends_the_old_one_at_once(lab: Lab) -> None:
    old, new = SigningKey.generate(), SigningKey.generate()
    first = await lab.join(await lab.enrolment.invite("edge/lap-1"), old)
    second = await lab.join(await lab.enrolment.invite("edge/lap-1"), new)
    assert second.enrolment > first.enrolment
    lab.enrolment.admit(lab.peer(second))
    with pytest.raises(IdentityRefused):  # its certificate is good for most of an hour, its registration is not
        lab.enrolment.admit(lab.peer(first))
    with pytest.raises(IdentityRefused):
        lab.enrolment.device_key(sha256(old.public.spki))
    assert [one.status for one in lab.enrolment.registrations()] == ["replaced", "active"]


async def test_a_replaced_device_cannot_use_its_old_invitation_again(lab: Lab) -> None:
    invitation, old = await lab.enrolment.invite("edge/lap-1"), SigningKey.generate()
    await lab.join(invitation, old)
    await lab.join(await lab.enrolment.invite("edge/lap-1"), SigningKey.generate())
    with pytest.raises(EnrolmentRefused):
        await lab.join(invitation, old)


async def test_a_certificate_that_is_not_on_record_is_not_admitted(lab: Lab) -> None:
    from transport.identity.svid import SpiffeId

    issued = lab.authority.issue(
        SpiffeId(lab.authority.trust_domain, "/edge/ghost"), SigningKey.generate().public, now=lab.clock()
    )
    stray = verify_svid(issued.chain, lab.authority.bundle, role="edge", now=lab.clock())
    with pytest.raises(IdentityRefused) as refusal:
        lab.enrolment.admit(stray)
    assert refusal.value.rule == "serial"


async def test_registrations_survive_a_restart(lab: Lab) -> None:
    device = SigningKey.generate()
    joined = await lab.join(await lab.enrolment.invite("edge/lap-1"), device)
    fresh = Enrolment(lab.database, lab.authority, lab.audit, clock=lab.clock)
    await fresh.load()
    fresh.admit(lab.peer(joined))
    assert fresh.device_key(sha256(device.public.spki)).spki == device.public.spki


async def test_a_device_holds_few_certificates_and_the_oldest_goes(lab: Lab) -> None:
    device, other = SigningKey.generate(), SigningKey.generate()
    device_id = sha256(device.public.spki)
    theirs = await lab.join(await lab.enrolment.invite("edge/other"), other)
    issued = [await lab.join(await lab.enrolment.invite("edge/lap-1"), device)]
    for _ in range(LIVE_MAX + 1):
        issued.append(await lab.enrolment.renew(device_id, make_csr(SigningKey.generate()), roles=EDGE))
    fresh = Enrolment(lab.database, lab.authority, lab.audit, clock=lab.clock)
    await fresh.load()
    for enrolment in (lab.enrolment, fresh):  # in memory, and after a restart
        for joined in (theirs, *issued[-LIVE_MAX:]):
            enrolment.admit(lab.peer(joined))
        for joined in issued[:-LIVE_MAX]:
            with pytest.raises(IdentityRefused):
                enrolment.admit(lab.peer(joined))
        assert len(enrolment._serials) == LIVE_MAX + 1
    await fresh.renew(device_id, make_csr(SigningKey.generate()), roles=EDGE)  # it knows which is the oldest
    with pytest.raises(IdentityRefused):
        fresh.admit(lab.peer(issued[-LIVE_MAX]))
    fresh.admit(lab.peer(issued[-LIVE_MAX + 1]))
    rows = await lab.database.run(lambda c: c.execute("SELECT count(*) FROM serials").fetchone())
    assert rows == (LIVE_MAX + 1,)


async def test_renewals_at_the_same_time_are_bounded_as_well(lab: Lab) -> None:
    device = SigningKey.generate()
    await lab.join(await lab.enrolment.invite("edge/lap-1"), device)
    csr = make_csr(SigningKey.generate())
    renewals = [lab.enrolment.renew(sha256(device.public.spki), csr, roles=EDGE) for _ in range(3 * LIVE_MAX)]
    await asyncio.gather(*renewals)
    assert len(lab.enrolment._serials) <= LIVE_MAX


async def test_what_has_run_out_is_looked_for_once_a_minute(lab: Lab) -> None:
    device = SigningKey.generate()
    await lab.join(await lab.enrolment.invite("edge/lap-1"), device)
    start = lab.clock.now

    class Counting(dict[int, tuple[int, int]]):
        looks = 0

        def items(self) -> Any:
            Counting.looks += 1
            return super().items()

    lab.enrolment._serials._good = Counting(lab.enrolment._serials._good)
    for lab.clock.now in (start + 1, start + PRUNE_EVERY_S - 1, start + PRUNE_EVERY_S, start + PRUNE_EVERY_S + 1):
        await lab.enrolment.renew(sha256(device.public.spki), make_csr(SigningKey.generate()), roles=EDGE)
    assert Counting.looks == 1
    lab.clock.now = start + 7200
    await lab.enrolment.renew(sha256(device.public.spki), make_csr(SigningKey.generate()), roles=EDGE)
    assert Counting.looks == 2
    assert len(lab.enrolment._serials) == 1


async def test_being_seen_moves_the_idle_end(lab: Lab) -> None:
    joined = await lab.join(await lab.enrolment.invite("edge/lap-1"), SigningKey.generate())
    lab.clock.now += 86_400
    await lab.enrolment.seen(joined.enrolment)
    fresh = Enrolment(lab.database, lab.authority, lab.audit, clock=lab.clock)
    await fresh.load()
    assert fresh.registrations()[0].last_seen == int(lab.clock())


@pytest.mark.parametrize("path", ["gateway/two", "admin/root", "workload/admin/x"])
async def test_privileged_invitations_have_to_be_asked_for(lab: Lab, path: str) -> None:
    with pytest.raises(SetupRefused):
        await lab.enrolment.invite(path)
    assert (await lab.enrolment.invite(path, allow_gateway=True)).role_path == path


@pytest.mark.parametrize("path", [
    "", "edge", "edge/", "/edge/a", "laptop/a", "edge/a b", "edge/../gateway/x", "EDGE/a",
])
async def test_an_invitation_for_no_id_is_refused(lab: Lab, path: str) -> None:
    with pytest.raises(BadInput):
        await lab.enrolment.invite(path)


@pytest.mark.parametrize("ttl", [0, -1, 3601])
async def test_an_invitation_lasts_an_hour_at_most(lab: Lab, ttl: int) -> None:
    with pytest.raises(SetupRefused):
        await lab.enrolment.invite("edge/a", ttl_s=ttl)


async def test_without_audit_nobody_joins(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    invitation = await lab.enrolment.invite("edge/lap-1")

    async def broken(*_: object, **__: object) -> None:
        raise AuditUnavailable("the audit log cannot be written")

    monkeypatch.setattr(lab.audit, "append", broken)
    with pytest.raises(AuditUnavailable):
        await lab.join(invitation, SigningKey.generate())
    assert lab.enrolment.registrations() == []


async def test_many_who_join_at_once_share_commits(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    invitations = [await lab.enrolment.invite(f"edge/lap-{number}") for number in range(20)]
    commits, run = 0, Database.run

    async def counted(self: Database, work: Any, *, read_only: bool = False) -> Any:
        nonlocal commits
        commits += not read_only
        return await run(self, work, read_only=read_only)

    monkeypatch.setattr(Database, "run", counted)
    joined = await asyncio.gather(*(lab.join(one, SigningKey.generate()) for one in invitations))
    assert commits < 20, "each by itself would need two"
    assert len({one.enrolment for one in joined}) == 20
    for one in joined:
        lab.enrolment.admit(lab.peer(one))


async def test_who_shares_a_commit_that_fails_has_not_joined(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    invitations = [await lab.enrolment.invite(f"edge/lap-{number}") for number in range(3)]
    devices, run = [SigningKey.generate() for _ in invitations], Database.run

    async def full(self: Database, work: Any, *, read_only: bool = False) -> Any:
        if not read_only:
            raise DiskFull("no space left for the store")
        return await run(self, work, read_only=read_only)

    monkeypatch.setattr(Database, "run", full)
    everyone = [lab.join(*one) for one in zip(invitations, devices, strict=True)]
    failed = await asyncio.gather(*everyone, return_exceptions=True)
    assert [type(one) for one in failed] == [DiskFull] * 3
    assert lab.enrolment.registrations() == []
    monkeypatch.undo()
    joined = await asyncio.gather(*(lab.join(*one) for one in zip(invitations, devices, strict=True)))
    assert [lab.enrolment.enrolment_of(lab.peer(one)) for one in joined] == [one.enrolment for one in joined]


async def test_two_devices_that_join_under_one_id_at_once_leave_one(lab: Lab) -> None:
    invitations = [await lab.enrolment.invite("edge/lap-1") for _ in range(2)]
    before = lab.enrolment.endings
    joined = await asyncio.gather(
        *(lab.join(one, SigningKey.generate()) for one in invitations), return_exceptions=True
    )
    assert sorted(one.status for one in lab.enrolment.registrations()) == ["active", "replaced"]
    assert lab.enrolment.endings == before + 1
    holder = lab.enrolment.holder("edge/lap-1")
    assert holder is not None and holder.status == "active"
    good = [one for one in joined if isinstance(one, Joined) and one.enrolment == holder.enrolment]
    lab.enrolment.admit(lab.peer(good[0]))
    rows = await lab.database.run(
        lambda c: c.execute("SELECT enrolment FROM registrations WHERE status = 'active'").fetchall(), read_only=True
    )
    assert rows == [(holder.enrolment,)]


async def test_state_on_disk_shows_no_name(lab: Lab) -> None:
    await lab.join(await lab.enrolment.invite("edge/canary-laptop"), SigningKey.generate())
    for name in (DATABASE_FILE, DATABASE_FILE + "-wal"):
        file = lab.directory / name
        assert not file.exists() or b"canary-laptop" not in file.read_bytes()
    assert "canary-laptop" in (lab.directory / "a.jsonl").read_text()  # the search can find


async def test_what_a_device_showed_of_its_tpm_stays_with_its_registration(lab: Lab) -> None:
    invitation, device = await lab.enrolment.invite("edge/lap-1", tpm=True), SigningKey.generate()
    with pytest.raises(EnrolmentRefused):
        await lab.join(invitation, device)
    assert lab.events()[-1] == "join.refused invitation is for a device whose key lies in a TPM"
    name = await lab.enrolment.check_invitation(
        invitation.token_id, invitation.secret, device.public, roles=EDGE
    )
    assert name == "spiffe://field.example/edge/lap-1" and lab.enrolment.registrations() == []
    attested = Attested("certified", "ab" * 32)
    first = await lab.enrolment.join(
        invitation.token_id, invitation.secret, make_csr(SigningKey.generate()), device.public.spki, roles=EDGE,
        attested=attested,
    )
    assert lab.enrolment.attested_tpm(first.enrolment) == "certified"
    assert lab.enrolment.attested_tpm(first.enrolment + 1) == "none"
    await lab.enrolment.load()
    [kept] = lab.enrolment.registrations()
    assert (kept.tpm, kept.ek_sha256) == ("certified", "ab" * 32)
    await lab.enrolment.end([kept], "lost")
    again = await lab.enrolment.again(kept)
    assert lab.enrolment.attested_tpm(again.enrolment) == "certified"
    other = await lab.join(await lab.enrolment.invite("edge/lap-2"), SigningKey.generate())
    assert lab.enrolment.attested_tpm(other.enrolment) == "none"


async def test_another_key_that_attests_by_a_used_invitation_is_refused_before_it_is_challenged(lab: Lab) -> None:
    invitation, device = await lab.enrolment.invite("edge/lap-1"), SigningKey.generate()
    await lab.join(invitation, device)
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.check_invitation(
            invitation.token_id, invitation.secret, SigningKey.generate().public, roles=EDGE
        )
    assert lab.events()[-1] == "join.refused invitation used with another device key"
    assert any(event.startswith("alert") for event in lab.events())
    await lab.enrolment.check_invitation(invitation.token_id, invitation.secret, device.public, roles=EDGE)
