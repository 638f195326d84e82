"""Revoking a device that is here: what it may still do is nothing, and when is at once."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import AuditUnavailable, EnrolmentRefused, NotFound, SetupRefused
from tests.support.gateway_lab import DOMAIN
from tests.support.memory_link import MemoryLink
from tests.support.mock_provider import MockProvider
from tests.support.resuming_edge import HELD, STREAM, Edge, until
from tests.support.session_lab import Lab, gateway
from transport.edge_session import EdgeSession
from transport.errors import IdentityRefused, LinkLost, PeerRefused, TicketRefused
from transport.identity.revocation import RevocationList, read_list
from transport.identity.svid import Svid, make_csr
from transport.initiator import SvidLogin
from transport.links import virtual_time
from transport.messages import Message
from transport.primitives import SigningKey, random_bytes, sha256
from transport.responder import GatewayConnection

HOP = f"spiffe://{DOMAIN}/hop/a"


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        provider.stream = STREAM
        yield provider


@pytest.fixture
async def lab(made: Path, tmp_path: Path, provider: MockProvider) -> AsyncIterator[Lab]:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with asyncio.timeout(60), gateway(directory, provider.base_url) as lab:
        yield lab


async def test_M11_a_live_answer_is_cut_its_call_cancelled_and_nothing_of_it_is_left(
    lab: Lab, provider: MockProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.mode = "stream_stall"
    edge, other = await Edge.joined(lab), await Edge.joined(lab, "lap-2")
    await edge.take(await edge.ask(), HELD)
    assert len(lab.tickets) == 4 and not provider.ended.is_set()
    theirs = await lab.session(other.svid)

    revoked = await lab.revocation.revoke("edge/lap-1", "left on a train")
    assert revoked.enrolments == (1,)
    assert edge.answer is not None
    with pytest.raises(PeerRefused) as told:
        await edge.take(edge.answer)
    assert told.value.reason == "revoked" and told.value.hint is not None and "administrator" in told.value.hint
    await provider.ended.wait()
    assert len(lab.tickets) == 4 and theirs.alive, "only the other device's"
    assert not [owner for owner in lab.journal.owners if owner[1] == 1]
    assert [line["reason"] for line in lab.audit("device.revoked")] == ["left on a train"]
    await until(lambda: bool(lab.audit("request.outcome")))
    assert [line["result"] for line in lab.audit("request.outcome")] == ["cancelled"]
    assert [record.message for record in caplog.records if "revoked" in record.message] == [
        f"revoked spiffe://{DOMAIN}/edge/lap-1: left on a train"
    ]

    assert (await lab.revocation.revoke("edge/lap-1", "again")).enrolments == ()
    assert len(lab.audit("device.revoked")) == 1, "the alert is sent once"
    assert sum("revoked" in record.message for record in caplog.records) == 1


async def test_H2_tickets_certificates_renewal_and_joining_of_a_revoked_device_are_dead(lab: Lab) -> None:
    invitation, late = await lab.enrolment.invite("edge/lap-1"), await lab.enrolment.invite("edge/lap-1")
    device, key = SigningKey.generate(), SigningKey.generate()

    async def join(invitation: Any, device: SigningKey) -> Any:
        return await lab.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(key), device.public.spki, roles=("edge",)
        )

    joined = await join(invitation, device)
    edge = Edge(lab, Svid.from_chain(joined.issued.chain, key))
    await edge.connect()
    ticket = edge.wallet.take(0.0)
    assert ticket is not None
    await lab.revocation.revoke("1", "lost")
    with pytest.raises(TicketRefused):
        await lab.session(edge.svid, ticket)
    with pytest.raises(PeerRefused) as refused:
        await lab.session(edge.svid)
    assert refused.value.reason == "refused", "before a session stands the wire says no more than that"
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.renew(sha256(device.public.spki), make_csr(key), roles=("edge",))
    for used in (invitation, late):
        for who in (device, SigningKey.generate()):
            with pytest.raises(EnrolmentRefused):
                await join(used, who)
    assert {line["reason"] for line in lab.audit("join.refused")} == {"invitation ended by a revocation"}
    assert (await join(await lab.enrolment.invite("edge/lap-1"), SigningKey.generate())).enrolment == 2


async def test_L11_a_revocation_outlives_a_restart_and_is_alerted_once(made: Path, tmp_path: Path) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with asyncio.timeout(60):
        async with gateway(directory) as lab:
            svid = await lab.device("lap-1")
            await lab.revocation.revoke("edge/lap-1", "lost")
            before = lab.revocation.list
        async with gateway(directory) as lab:
            with pytest.raises(PeerRefused):
                await lab.session(svid)
            assert lab.enrolment.registrations()[0].reason == "lost"
            assert lab.revocation.list.enrolments == {1} and lab.revocation.list.sequence > before.sequence
            assert (await lab.revocation.revoke("edge/lap-1", "lost")).enrolments == ()
            assert len(lab.audit("device.revoked")) == 1


class Deaf:
    """An edge's end that from some moment on hears nothing, and goes on sending."""

    def __init__(self, inner: MemoryLink) -> None:
        self._inner, self.deaf, self.peer = inner, False, inner.peer
        self.send, self.close = inner.send, inner.close

    async def receive(self) -> bytes:
        while True:
            data = await self._inner.receive()
            if not self.deaf or not data:
                return data


@pytest.mark.parametrize("slow_disk_s", [0.0, 0.4])
def test_the_last_frame_is_accepted_less_than_a_second_after_the_command(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_disk_s: float
) -> None:
    """A device that hears no `close` sends a message in each hundredth of a second, on three sessions and a hop's link,
    in virtual time. What counts is which of them the gateway's side still acts upon.
    """
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    accepted: list[tuple[float, str]] = []
    handle, append = GatewayConnection._handle, AuditLog.append

    def handling(connection: GatewayConnection, message: Message, now: float) -> None:
        assert connection.peer is not None
        accepted.append((asyncio.get_running_loop().time(), connection.peer.id.name))
        handle(connection, message, now)

    async def appending(log: AuditLog, event: str, *shared: bytes, **fields: Any) -> None:
        await append(log, event, *shared, **fields)
        if event == "device.revoked":
            await asyncio.sleep(slow_disk_s)

    monkeypatch.setattr(GatewayConnection, "_handle", handling)
    monkeypatch.setattr(AuditLog, "append", appending)

    async def chatter(session: EdgeSession) -> None:
        while True:
            await asyncio.sleep(0.01)
            session.acknowledge(random_bytes(16), 0)

    async def main() -> tuple[float, float]:
        ticking = asyncio.get_running_loop().time
        async with gateway(directory, ticking=ticking, clock=virtual_time.wall) as lab:
            talkers, deaf = [], []
            for name, where in (("lost", {}), ("lost", {}), ("lost", {"via": HOP}), ("kept", {})):
                svid = lost if name == "lost" and (lost := svids.get("lost")) else await lab.device(name)
                svids[name] = svid
                link = Deaf(lab.link(**where))
                login = SvidLogin(svid.chain, svid.not_after)
                talkers.append(await EdgeSession(
                    link, login, svid.key, lab.check_gateway, clock=virtual_time.wall
                ).open())
                deaf.append(link)
            tasks = [asyncio.create_task(chatter(one)) for one in talkers]
            await asyncio.sleep(0.5)
            for link in deaf[:3]:
                link.deaf = True
            await asyncio.sleep(0.5)
            began = asyncio.get_running_loop().time()
            await lab.revocation.revoke("edge/lost", "stolen")
            done = asyncio.get_running_loop().time()
            await asyncio.sleep(5.0)
            assert [one.alive for one in talkers] == [False, False, False, True]
            for task in tasks:
                task.cancel()
            return began, done

    svids: dict[str, Any] = {}
    began, done = virtual_time.run(main(), start=time.time())
    last = {name: max(at for at, who in accepted if who == name) for name in ("lost", "kept")}
    assert began - 0.05 < last["lost"], "it was talking until then"
    assert last["lost"] - began < 1.0
    assert not [at for at, who in accepted if who == "lost" and at > done], "none once the command has returned"
    assert last["kept"] > done + 4.0, "nobody else noticed"


async def test_a_session_that_opens_while_its_device_is_revoked_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the registration and `welcome` the audit is written, which takes its time."""
    svid, append = await lab.device("lap-1"), AuditLog.append

    async def revoking(log: AuditLog, event: str, *shared: bytes, **fields: Any) -> None:
        await append(log, event, *shared, **fields)
        if event == "session.opened":
            await lab.revocation.revoke("edge/lap-1", "just now")

    monkeypatch.setattr(AuditLog, "append", revoking)
    with pytest.raises(PeerRefused):
        await lab.session(svid)


async def test_no_certificate_is_issued_to_who_is_revoked_meanwhile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.device("lap-1")
    device, append = lab.enrolment.registrations()[0], AuditLog.append

    async def revoking(log: AuditLog, event: str, *shared: bytes, **fields: Any) -> None:
        await append(log, event, *shared, **fields)
        if event == "renew.issued":
            await lab.revocation.revoke("edge/lap-1", "just now")

    monkeypatch.setattr(AuditLog, "append", revoking)
    with pytest.raises(EnrolmentRefused):
        await lab.enrolment.renew(device.device_id, make_csr(SigningKey.generate()), roles=("edge",))
    assert len(lab.enrolment._serials) == 1


async def test_tunnels_of_a_revoked_hop_end_and_those_of_others_stay(lab: Lab) -> None:
    invitation = await lab.enrolment.invite("hop/a")
    await lab.enrolment.join(
        invitation.token_id, invitation.secret, make_csr(SigningKey.generate()), SigningKey.generate().public.spki,
        roles=("hop",),
    )
    svid = await lab.device("lap-1")
    through, other = await lab.session(svid, via=HOP), await lab.session(svid, via=f"spiffe://{DOMAIN}/hop/b")
    silent = lab.link(via=HOP)  # in its handshake
    await asyncio.sleep(0)
    await lab.revocation.revoke("hop/a", "stolen")
    await through.ended()
    assert isinstance(through.failure, LinkLost), "the edge is not revoked: it comes back by another hop"
    assert other.alive
    with pytest.raises(LinkLost):
        await silent.receive()
    await until(lambda: not lab.sessions._through.get(HOP))


async def test_H7_a_reinstated_device_is_another_enrolment_and_has_nothing_of_before(
    lab: Lab, provider: MockProvider
) -> None:
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask())
    assert edge.session is not None
    epoch = edge.session.welcome.epoch
    await lab.revocation.revoke("edge/lap-1", "found again, as it turned out")
    device = lab.enrolment.registrations()[0]
    assert (await lab.revocation.reinstate("edge/lap-1")).enrolment == 2
    with pytest.raises(PeerRefused):
        await lab.session(edge.svid)
    key = SigningKey.generate()
    joined = await lab.enrolment.renew(device.device_id, make_csr(key), roles=("edge",))
    again = await lab.session(Svid.from_chain(joined.issued.chain, key))
    assert again.welcome.epoch != epoch, "what was asked before is not asked again by itself"
    for wrong in ("edge/lap-1", "2"):
        with pytest.raises((SetupRefused, NotFound)):
            await lab.revocation.reinstate(wrong)
    assert [line["enrolment"] for line in lab.audit("device.reinstated")] == [1], "and the failed ones did nothing"


@pytest.mark.parametrize(("who", "error"), [
    ("99", NotFound), ("edge/nobody", NotFound), ("spiffe://other.example/edge/lap-1", Exception), ("lap-1", Exception),
])
async def test_who_is_not_there_cannot_be_revoked(lab: Lab, who: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await lab.revocation.revoke(who, "lost")
    assert not lab.audit("device.revoked")


@pytest.mark.parametrize("reason", ["", "  ", "x" * 201, "a\nb"])
async def test_a_reason_is_a_line_of_text(lab: Lab, reason: str) -> None:
    await lab.device("lap-1")
    with pytest.raises(SetupRefused):
        await lab.revocation.revoke("edge/lap-1", reason)


async def test_without_audit_nobody_is_revoked_and_that_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    svid = await lab.device("lap-1")

    async def failing(log: AuditLog, event: str, *shared: bytes, **fields: Any) -> None:
        raise AuditUnavailable("no")

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append", failing)
        with pytest.raises(AuditUnavailable):
            await lab.revocation.revoke("edge/lap-1", "lost")
    assert (await lab.session(svid)).alive


# --- the list -------------------------------------------------------------------------------------------------------


async def test_the_list_comes_in_the_session_once_and_only_if_it_is_newer(lab: Lab) -> None:
    svid = await lab.device("lap-1")
    session = await lab.session(svid)
    got: list[bytes] = []
    session.on_revocations = got.append
    session.tell_held(0)
    await _turns()
    assert not got, "nobody was ever revoked"
    await lab.device("lap-2")
    await lab.revocation.revoke("edge/lap-2", "lost")
    for _ in range(3):
        session.tell_held(0)
    await until(lambda: bool(got))
    await _turns()
    (data,) = got
    taken = read_list(data, lab.authority.bundle, now=lab.revocation._clock(), held=RevocationList())
    assert taken.enrolments == {2} and taken == lab.revocation.list
    assert (lab.directory / "revocations.list").read_bytes() == data
    other = await lab.session(svid)
    other.on_revocations = got.append
    other.tell_held(taken.sequence)
    await _turns()
    assert len(got) == 1


async def test_a_revoked_gateway_s_certificates_are_on_the_list_until_they_run_out(lab: Lab) -> None:
    invitation = await lab.enrolment.invite("gateway/two", allow_gateway=True)
    joined = await lab.enrolment.join(
        invitation.token_id, invitation.secret, make_csr(SigningKey.generate()), SigningKey.generate().public.spki,
        roles=("gateway",),
    )
    await lab.device("lap-1")
    await lab.revocation.revoke("gateway/two", "its host was broken into")
    await lab.revocation.revoke("edge/lap-1", "lost")
    assert lab.revocation.list.serials == {joined.issued.serial}, "an edge's certificate is refused by us alone"
    with pytest.raises(IdentityRefused) as refused:
        lab.revocation.list.check(lab.check_gateway(joined.issued.chain, joined.issued.not_before + 301))
    assert refused.value.rule == "revoked"
    lab.revocation._clock = lambda: joined.issued.not_after + 200
    await lab.revocation.refresh(changed=True)
    assert lab.revocation.list.serials == frozenset() and lab.revocation.list.enrolments == {1, 2}


async def test_an_edge_whose_certificate_hangs_from_a_revoked_intermediate_is_refused(lab: Lab) -> None:
    svid = await lab.device("lap-1")
    lab.revocation.list = RevocationList(1, serials=frozenset([lab.authority.serial]))
    with pytest.raises(PeerRefused):
        await lab.session(svid)
    await until(lambda: bool(lab.audit("session.refused")))
    assert lab.audit("session.refused")[0]["reason"] == "revoked"


async def _turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)
