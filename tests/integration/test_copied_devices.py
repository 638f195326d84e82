"""A device's keys in two places raise one alert; a device that is only on its way, or has several programs, none."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway import app
from relay.gateway.admin import Admin
from relay.gateway.config import parse
from relay.gateway.errors import AuditUnavailable, EnrolmentRefused
from relay.gateway.identity import clones
from relay.gateway.identity.alerts import WORDS
from relay.gateway.identity.clones import OVERLAP_S, RACE_S
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, Clock, audit_lines
from tests.support.session_lab import Lab, gateway
from transport.edge_session import EdgeSession
from transport.identity.svid import Svid, make_csr
from transport.identity.tls import client_context
from transport.messages import RequestHeader, encode_header
from transport.primitives import SigningKey, random_bytes, sha256

CONFIG = """
trust_domain = "field.example"
[listen]
https = "127.0.0.1:0"
[provider]
base_url = "http://127.0.0.1:1/v1"
key_file = "provider.key"
"""
A, B = f"spiffe://{DOMAIN}/hop/a", f"spiffe://{DOMAIN}/hop/b"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "gateway"))


@pytest.fixture
def ticking() -> Clock:
    return Clock(0.0)


@pytest.fixture
async def lab(folder: Path, ticking: Clock) -> AsyncIterator[Lab]:
    async with asyncio.timeout(60), gateway(folder, ticking=ticking) as lab:
        yield lab


class Device:
    """What a disk holds, and what of it can be copied."""

    def __init__(self, lab: Lab, name: str = "lap-1") -> None:
        self.lab, self.name, self.key = lab, name, SigningKey.generate()
        self.svid: Svid

    async def join(self) -> "Device":
        invitation, key = await self.lab.enrolment.invite(f"edge/{self.name}"), SigningKey.generate()
        joined = await self.lab.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(key), self.key.public.spki, roles=("edge",)
        )
        self.svid = Svid.from_chain(joined.issued.chain, key)
        return self

    async def renew(self, *, lost: bool = False) -> None:
        key = SigningKey.generate()
        joined = await self.lab.enrolment.renew(sha256(self.key.public.spki), make_csr(key), roles=("edge",))
        if not lost:
            self.svid = Svid.from_chain(joined.issued.chain, key)

    def copy(self) -> "Device":
        copied = Device(self.lab, self.name)
        copied.key, copied.svid = self.key, self.svid
        return copied

    async def session(self, via: str = A, **options: Any) -> EdgeSession:
        return await self.lab.session(self.svid, via=via, **options)


async def ask(session: EdgeSession) -> None:
    header = encode_header(RequestHeader("GET", "/v1/models", "application/json", "", 0, 4_000_000_000))
    with pytest.raises(Exception, match="expiry"):  # too far ahead, which is an answer as well
        await session.request(random_bytes(16), header, b"").started()


async def visit(device: Device, via: str = A) -> None:
    """A session from its beginning to its end, which the gateway has seen, too."""
    before = len(device.lab.audit("session.closed"))
    await (await device.session(via)).close()
    while len(device.lab.audit("session.closed")) == before:  # noqa: ASYNC110 - what is waited for is in a file
        await asyncio.sleep(0)


def alerts(lab: Lab) -> list[tuple[str, str, str]]:
    return [(line["sign"], line["here"], line["there"]) for line in lab.audit("alert.copied")]


async def test_M22_an_older_line_is_alerted_once(lab: Lab, ticking: Clock, caplog: pytest.LogCaptureFixture) -> None:
    device = await Device(lab).join()
    other = await Device(lab, "lap-2").join()
    thief = device.copy()
    await visit(device)
    await device.renew()
    await visit(device)
    ticking.now += RACE_S / 2
    await visit(thief, B)
    assert alerts(lab) == [], "so late a handshake can be"
    ticking.now += RACE_S
    for _ in range(3):
        await visit(thief, B)
        await visit(other)
    assert alerts(lab) == [("older line", B, A)]
    told = [record.message for record in caplog.records if "copied" in record.message]
    assert told == [f"{device.svid.id} (enrolment 1): {WORDS['copied']}"]
    listed = (await admin(lab).devices())["devices"]
    assert [one["alert"] for one in listed] == [WORDS["copied"], ""]
    assert [one["status"] for one in listed] == ["active", "active"], "an alert ends nothing"


async def test_M22_two_places_in_turns_are_alerted(lab: Lab, ticking: Clock) -> None:
    device = await Device(lab).join()
    thief = device.copy()
    mine, theirs = await device.session(A), await thief.session(B)
    for session in (mine, theirs, mine, theirs):
        await ask(session)
    assert alerts(lab) == [], "not yet: a device may have moved a moment ago"
    ticking.now += OVERLAP_S
    for session in (mine, theirs, mine, theirs):
        await ask(session)
    ticking.now += OVERLAP_S
    await ask(mine)
    assert alerts(lab) == [], "what comes at once may have waited somewhere"
    await ask(theirs)
    assert alerts(lab) == [("two places", B, A)]
    await ask(mine)
    assert len(alerts(lab)) == 1
    for session in (mine, theirs):
        await session.close()
    while lab.sessions.watch._clones._live:  # noqa: ASYNC110 - what has ended is forgotten
        await asyncio.sleep(0)


def admin(lab: Lab) -> Admin:
    unused: Any = None
    return Admin(lab.enrolment, lab.traces, lab.revocation, unused, unused, lab.guard)


@pytest.mark.parametrize("how", ["reinstated", "joined anew"])
async def test_an_alert_ends_with_its_enrolment_and_not_before(folder: Path, ticking: Clock, how: str) -> None:
    async with gateway(folder, ticking=ticking) as lab:
        device = await Device(lab).join()
        await lab.enrolment.alerts.give("copied", str(device.svid.id), 1)
    async with gateway(folder, ticking=ticking) as lab:
        device.lab = lab
        await lab.enrolment.alerts.give("copied", str(device.svid.id), 1)
        assert len(lab.audit("alert.copied")) == 1, "it outlives a restart"
        assert lab.enrolment.alerts.of(1) == WORDS["copied"]
        if how == "reinstated":
            await lab.revocation.revoke("1", "is it two?")
            await lab.revocation.reinstate("edge/lap-1")
        else:
            await device.join()
        assert lab.enrolment.alerts.of(2) == ""
        await lab.enrolment.alerts.give("copied", str(device.svid.id), 2)
        assert len(lab.audit("alert.copied")) == 2


async def test_an_alert_that_could_not_be_written_is_given_with_the_next_sign(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await Device(lab).join()

    async def full(*_: Any, **__: Any) -> None:
        raise AuditUnavailable("the audit log cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr(lab.enrolment.alerts._audit, "append", full)
        with pytest.raises(AuditUnavailable):
            await lab.enrolment.alerts.give("copied", str(device.svid.id), 1)
    assert lab.enrolment.alerts.of(1) == ""
    await lab.enrolment.alerts.give("copied", str(device.svid.id), 1)
    assert len(lab.audit("alert.copied")) == 1


# --- what is no copy -------------------------------------------------------------------------------------------------


async def test_a_device_that_roams_and_resumes(lab: Lab, ticking: Clock) -> None:
    device = await Device(lab).join()
    session = await device.session(A)
    for hop in (B, A, B, A, B):
        await ask(session)
        tickets, old = session.tickets, session
        ticking.now += 2 * OVERLAP_S
        session = await device.session(hop, ticket=tickets[0])
        await ask(session)
        ticking.now += RACE_S
        if hop == A:
            await old.close()  # of the others the gateway does not hear that they are over
    assert alerts(lab) == []


async def test_a_renewal_whose_answer_was_lost(lab: Lab, ticking: Clock) -> None:
    device = await Device(lab).join()
    for lost in (True, False, True, True, False):
        await device.renew(lost=lost)
        await visit(device, B if lost else A)
        ticking.now += 2 * RACE_S
    assert alerts(lab) == []


async def test_several_programs_of_a_device_by_one_hop(lab: Lab, ticking: Clock) -> None:
    device = await Device(lab).join()
    served, asked = await device.session(), await device.session()
    for _ in range(4):
        await ask(served)
        await ask(asked)
        ticking.now += OVERLAP_S
    before = device.svid
    await device.renew()  # by one; the other finds it in the store with its next handshake
    await ask(renewed := await device.session())
    await ask(served)
    ticking.now += 2 * RACE_S
    await ask(again := await device.session())
    await ask(resumed := await lab.session(before, served.tickets[0], via=A))  # which shows no certificate
    assert alerts(lab) == []
    for session in (served, asked, renewed, again, resumed):
        await session.close()


async def test_a_gateway_that_was_started_anew(folder: Path, ticking: Clock) -> None:
    async with gateway(folder, ticking=ticking) as lab:
        device = await Device(lab).join()
        thief = device.copy()
        await visit(device)
        await device.renew()
        await visit(device)
    ticking.now += RACE_S * 2
    async with gateway(folder, ticking=ticking) as lab:
        device.lab = thief.lab = lab
        await visit(device, B)
        assert alerts(lab) == []
        ticking.now += RACE_S * 2
        await visit(thief, A)
        assert alerts(lab) == [("older line", A, B)], "it knows the order of what was issued before"


# --- joining ---------------------------------------------------------------------------------------------------------


async def test_an_invitation_that_another_device_tries_as_well(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    invitation = await lab.enrolment.invite("edge/lap-1")
    device, key = SigningKey.generate(), SigningKey.generate()

    async def join(who: SigningKey) -> None:
        await lab.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(key), who.public.spki, roles=("edge",), via=B
        )

    await join(device)
    await join(device)
    assert lab.audit("alert.invitation") == []
    for _ in range(3):
        with pytest.raises(EnrolmentRefused):
            await join(SigningKey.generate())
    (alert,) = lab.audit("alert.invitation")
    assert (alert["enrolment"], alert["via"], alert["token"]) == (1, B, invitation.token_id.hex())
    assert len(lab.audit("join.refused")) == 3
    assert sum(WORDS["invitation"] in record.message for record in caplog.records) == 1
    assert (await admin(lab).devices())["devices"][0]["alert"] == WORDS["invitation"]


# --- hops ------------------------------------------------------------------------------------------------------------


async def test_a_hop_s_key_in_two_places_is_seen_at_its_tunnels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "RACE_S", -1.0)
    lines, device = list[Svid](), SigningKey.generate()
    async with gateway(folder) as lab:
        invitation, bundle = await lab.enrolment.invite("hop/pi"), lab.authority.bundle
        for number in range(2):
            key = SigningKey.generate()
            spki, csr = device.public.spki, make_csr(key)
            joined = await (
                lab.enrolment.renew(sha256(spki), csr, roles=("hop",)) if number else
                lab.enrolment.join(invitation.token_id, invitation.secret, csr, spki, roles=("hop",))
            )
            lines.append(Svid.from_chain(joined.issued.chain, key))
    (folder / "provider.key").write_text("sk-none")
    config = parse(CONFIG.encode(), folder)
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(app.serve(config, PASSPHRASE, ready=told.set_result, stop=stop))
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    try:
        counts = []
        for svid in (lines[0], lines[1], lines[1], lines[0]):
            connector = aiohttp.TCPConnector(ssl=client_context(bundle, svid))
            async with aiohttp.ClientSession(connector=connector) as client, client.ws_connect(
                f"https://{told.result().https}/v1/tunnel"
            ):
                found = [line for line in audit_lines(folder / app.AUDIT_FILE) if line["event"] == "alert.copied"]
                counts.append(len(found))
        assert counts == [0, 0, 0, 1]
        assert (found[0]["id"], found[0]["sign"]) == (f"spiffe://{DOMAIN}/hop/pi", "older line")
    finally:
        stop.set()
        await task
