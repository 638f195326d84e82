"""One call and one answer over several links: cuts at every stage, a killed gateway, cancellation, acknowledgement."""

import asyncio
import pickle
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.gateway.call import JournalLimits
from relay.gateway.requests import ACKS_MAX, Acknowledgements, Asker, Requests
from store.database import Connection
from tests.support.gateway_lab import DOMAIN, chat
from tests.support.mock_provider import MockProvider
from tests.support.resuming_edge import HELD, STREAM, WHOLE, Edge, refused, until
from tests.support.session_lab import Lab, gateway
from transport.edge_session import RemoteAnswer
from transport.errors import LinkLost, PeerRefused, TicketRefused
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.primitives import random_bytes
from transport.stream import Progress


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


@pytest.mark.parametrize("cuts", [
    pytest.param([1], id="in the first piece"),
    pytest.param([HELD], id="before the provider goes on"),
    pytest.param([HELD, 70_000, 70_000, 200_000], id="again and again"),
    pytest.param([len(WHOLE)], id="before the end is told"),
])
async def test_C5_an_answer_over_several_links_is_whole_and_called_once(
    lab: Lab, provider: MockProvider, cuts: list[int]
) -> None:
    provider.mode = "stream_stall" if cuts[0] <= HELD else "ok"
    edge = await Edge.joined(lab)
    answer = await edge.ask()
    for upto in cuts:
        if upto > HELD:
            provider.release.set()
        if len(edge.got) < upto:
            await edge.take(answer, upto)
        await edge.cut()
        answer = await edge.come_back()
    provider.release.set()
    await edge.take(answer)
    assert edge.got == WHOLE
    assert provider.calls == 1
    await edge.finish()


async def test_C5_a_link_cut_before_any_answer(lab: Lab, provider: MockProvider) -> None:
    """The edge has no byte, so it may open again under the same id, or resume from 0."""
    provider.mode = "timeout"
    edge = await Edge.joined(lab)
    edge.body = chat()
    edge.__post_init__()
    await edge.ask()
    await provider.began.wait()
    await edge.cut()
    again = await edge.ask()
    await edge.cut()
    with pytest.raises(LinkLost):
        await again.started()
    answer = await edge.come_back()
    provider.mode = "ok"
    provider.release.set()
    await edge.take(answer)
    assert edge.got and provider.calls == 1


async def test_the_call_goes_on_while_the_edge_is_away(lab: Lab, provider: MockProvider) -> None:
    provider.mode = "stream_stall"
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask(), 1)
    await edge.cut()
    await until(lambda: not lab.sessions._live)
    provider.release.set()
    await until(lambda: len(lab.audit("request.outcome")) == 1)
    (outcome,) = lab.audit("request.outcome")
    assert outcome["result"] == "answered"
    await edge.take(await edge.come_back())
    assert edge.got == WHOLE and provider.calls == 1


async def test_early_data_that_was_answered_into_the_void_calls_nobody_again(
    lab: Lab, provider: MockProvider
) -> None:
    """Review H4: message 2 may be lost after the gateway has acted on early data."""
    edge = await Edge.joined(lab)
    await edge.connect()
    link = lab.link()
    lost = lab.unopened(link, edge.svid, edge.wallet.take(time.time()))
    edge.open(lost)
    opening = asyncio.create_task(lost.open())
    await provider.began.wait()
    await link.abort()
    await asyncio.wait({opening})
    edge.progress = Progress()
    await edge.take(await edge.ask())
    assert edge.got == WHOLE and provider.calls == 1


async def test_H5_a_cut_request_survives_a_restart_of_the_gateway_and_no_ticket_does(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with asyncio.timeout(60):
        async with gateway(directory, provider.base_url) as lab:
            edge = await Edge.joined(lab)
            await edge.take(await edge.ask(), 100_000)
            await edge.cut()
            await until(lambda: not lab.journal.running)
        async with gateway(directory, provider.base_url) as edge.lab:
            with pytest.raises(TicketRefused):  # tickets die with the process
                await edge.come_back()
            await edge.take(await _fully(edge))
            assert edge.got == WHOLE and provider.calls == 1


async def _fully(edge: Edge) -> RemoteAnswer:
    edge.wallet.clear()
    return await edge.come_back()


@pytest.mark.parametrize("bytes_first", [0, 1])
async def test_C5_a_gateway_killed_in_mid_call_tells_interrupted_and_calls_nobody(
    lab: Lab, provider: MockProvider, tmp_path: Path, bytes_first: int
) -> None:
    provider.mode = "stream_stall" if bytes_first else "timeout"
    edge = await Edge.joined(lab)
    if not bytes_first:
        edge.body = chat()
        edge.__post_init__()
    answer = await edge.ask()
    await provider.began.wait()
    if bytes_first:
        await edge.take(answer, 1)
    # What is on the disk at this moment is what a killed process leaves.
    shutil.copytree(lab.directory, tmp_path / "after", ignore=shutil.ignore_patterns("run"))
    async with gateway(tmp_path / "after", provider.base_url) as edge.lab:
        assert await refused(await _fully(edge)) == (409, "interrupted", False)
        if not bytes_first:
            assert await refused(await edge.ask()) == (409, "interrupted", False)
        assert provider.calls == 1
        await edge.finish()


async def test_H7_a_known_id_with_another_content_is_a_conflict(lab: Lab, provider: MockProvider) -> None:
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask())
    liar = Edge(lab, edge.svid, body=chat(text="Something else?", stream=True), request_id=edge.request_id)
    assert await refused(await liar.ask()) == (409, "id_conflict", False)
    assert provider.calls == 1


async def test_H7_another_device_can_neither_read_nor_take_an_id(lab: Lab, provider: MockProvider) -> None:
    edge, other = await Edge.joined(lab), await Edge.joined(lab, "lap-2")
    await edge.take(await edge.ask())
    other.request_id = edge.request_id
    assert await refused(await other.come_back()) == (404, "unknown_request", False)
    other.request_id = random_bytes(16)
    assert await refused(await other.come_back()) == (404, "unknown_request", False)
    other.request_id = edge.request_id
    await other.take(await other.ask())  # an id of its own, whoever else has the same
    assert other.got == WHOLE and provider.calls == 2


async def test_H7_a_resume_that_fits_no_answer_is_unknown(lab: Lab, provider: MockProvider) -> None:
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask())
    generation = edge.progress.generation
    for offset, other in ((len(WHOLE) + 1, generation), (5, generation ^ 1)):
        edge.progress = Progress()
        edge.progress.offset, edge.progress.generation = offset, other
        assert await refused(await edge.come_back()) == (404, "unknown_request", False)
    assert provider.calls == 1


async def test_H7_a_new_holder_of_a_name_has_nothing_of_the_old_one(lab: Lab, provider: MockProvider) -> None:
    old = await Edge.joined(lab)
    provider.mode = "stream_stall"
    await old.take(await old.ask(), 1)
    await old.cut()
    assert len(lab.tickets) == 4
    new = Edge(lab, await lab.device("lap-1"), request_id=old.request_id)
    await lab.sessions._forget_ended()  # what joining in a session does
    await provider.ended.wait()  # its running call has ended at the provider
    assert len(lab.tickets) == 0
    assert await refused(await new.come_back()) == (404, "unknown_request", False)
    old.wallet.clear()
    with pytest.raises(PeerRefused):
        await old.come_back()


async def test_who_joins_in_nobody_s_place_costs_no_look_at_everybody(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    async def counted(_: Requests) -> None:
        nonlocal looked
        looked += 1

    monkeypatch.setattr(Requests, "forget_ended", counted)
    for name, looks in (("lap-1", 0), ("lap-2", 0), ("lap-1", 1), ("lap-3", 1)):
        await lab.device(name)
        await lab.sessions._forget_ended()
        assert looked == looks, name


async def test_H3_no_ticket_is_ever_in_a_file_of_the_gateway(lab: Lab, tmp_path: Path) -> None:
    """Not in its database, opened with the key, nor in any file as it lies; and a ticket cannot be pickled into one."""
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask())
    assert edge.session is not None
    kept = [lab.tickets.find(ticket.id, time.time()) for ticket in edge.session.tickets]
    secrets = [secret for ticket in kept if ticket is not None for secret in (ticket.id, ticket.psk.expose())]
    assert len(secrets) == 8

    def everything(connection: Connection) -> bytes:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for name in names for row in connection.execute(f"SELECT * FROM \"{name}\"")]
        return b"\0".join(
            value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row
        )

    stored = await lab.journal._database.run(everything, read_only=True)
    files = b"\0".join(file.read_bytes() for file in lab.directory.rglob("*") if file.is_file())
    assert edge.request_id in stored and b"session.opened" in files, "the search could not find"
    for held in (stored, files):
        assert not [secret for secret in secrets if secret in held or secret.hex().encode() in held]
    for thing in (kept[0], lab.tickets, edge.wallet):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(thing)


async def test_H2_a_revoked_identity_cannot_resume_a_session(lab: Lab) -> None:
    edge = await Edge.joined(lab)
    await edge.connect()
    await edge.cut()
    await lab.device("lap-1")  # someone else has the name now; the ticket is still there
    assert len(lab.tickets) == 4
    with pytest.raises(PeerRefused):
        await edge.come_back()
    await until(lambda: bool(lab.audit("session.refused")))
    assert lab.audit("session.refused")[-1]["reason"] == "registration"


async def test_a_live_session_of_an_ended_registration_reads_nothing_more(lab: Lab) -> None:
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask())
    assert edge.session is not None
    await lab.device("lap-1")
    edge.progress = Progress()
    assert await refused(edge.resume(edge.session)) == (403, "identity_refused", False)


async def test_M9_acknowledged_answers_are_erased_and_their_outcome_kept(lab: Lab, provider: MockProvider) -> None:
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask())
    assert edge.session is not None
    owner = (f"spiffe://{DOMAIN}/edge/lap-1", 1)
    assert lab.journal._usage[owner].kept == len(WHOLE)
    edge.session.acknowledge(edge.request_id, len(WHOLE))
    await until(lambda: lab.journal._usage[owner].kept == 0)
    edge.progress = Progress()
    assert await refused(edge.open(edge.session)) == (410, "acknowledged", False)
    assert provider.calls == 1


async def test_M9_an_acknowledgement_beyond_the_answer_ends_the_session(lab: Lab) -> None:
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask())
    assert edge.session is not None
    edge.session.acknowledge(random_bytes(16), 1 << 40)  # of an unknown request: nothing
    edge.session.acknowledge(edge.request_id, len(WHOLE) + 1)
    await until(lambda: edge.session is not None and not edge.session.alive)
    edge.progress = Progress()
    edge.got = b""
    await edge.take(await edge.come_back())
    assert edge.got == WHOLE, "and changes nothing"


async def test_M9_acknowledgements_wait_in_a_bounded_room(lab: Lab) -> None:
    edge = await Edge.joined(lab)
    asker = Asker(_peer(lab, edge), 1, "", "0" * 16)
    violations = 0

    def violated() -> None:
        nonlocal violations
        violations += 1

    acks = Acknowledgements(lab.sessions._requests, asker, violated)
    for number in range(ACKS_MAX):
        acks.take(number.to_bytes(16, "big"), 1)
    acks.take(bytes(16), 2)  # one with what waits already
    assert violations == 0
    acks.take(b"x" * 16, 1)
    assert violations == 1
    await acks.settled()


def _peer(lab: Lab, edge: Edge) -> VerifiedPeer:
    return verify_svid(edge.svid.chain, lab.authority.bundle, role="edge", now=time.time())


async def test_M11_cancelling_ends_the_provider_s_call_for_good(lab: Lab, provider: MockProvider) -> None:
    provider.mode = "stream_stall"
    edge = await Edge.joined(lab)
    answer = await edge.ask()
    await edge.take(answer, 1)
    answer.cancel()
    await provider.ended.wait()
    edge.progress = Progress()
    assert await refused(await edge.ask()) == (499, "cancelled", False)
    assert provider.calls == 1
    await until(lambda: bool(lab.audit("request.outcome")))
    assert lab.audit("request.outcome")[-1]["result"] == "cancelled"


async def test_M11_a_lost_link_cancels_nothing_but_who_comes_back_can(lab: Lab, provider: MockProvider) -> None:
    provider.mode = "stream_stall"
    edge = await Edge.joined(lab)
    await edge.take(await edge.ask(), 1)
    await edge.cut()
    await until(lambda: not lab.sessions._live)
    assert not provider.ended.is_set()
    answer = await edge.come_back()
    await answer.started()
    answer.cancel()
    await provider.ended.wait()
    assert await refused(await edge.come_back()) == (499, "cancelled", False)


async def test_the_newest_stream_of_a_request_is_its_reader(lab: Lab, provider: MockProvider) -> None:
    provider.mode = "stream_stall"
    edge = await Edge.joined(lab)
    answer = await edge.ask()
    await edge.take(answer, HELD)
    old = edge.session
    again = await edge.come_back()
    assert await refused(answer) == (409, "superseded", False)
    assert old is not None and old.alive
    answer.cancel()  # what became of the older stream is nothing to the call
    provider.release.set()
    await edge.take(again)
    assert edge.got == WHOLE


@pytest.mark.parametrize("mode", ["429", "503"])
async def test_C5_a_provider_that_did_not_accept_may_be_asked_again_under_the_same_id(
    lab: Lab, provider: MockProvider, mode: str
) -> None:
    provider.mode = mode
    edge = await Edge.joined(lab)
    status, code, retryable = await refused(await edge.ask())
    assert retryable, (status, code)
    provider.mode = "ok"
    await edge.take(await edge.ask())
    assert edge.got == WHOLE


@pytest.mark.parametrize(("mode", "code"), [("500", "provider_error"), ("stream_cut", "provider_garbled")])
async def test_C5_a_provider_that_may_have_accepted_is_not_asked_again(
    lab: Lab, provider: MockProvider, mode: str, code: str
) -> None:
    provider.mode = mode
    edge = await Edge.joined(lab)
    assert await refused(await edge.ask()) == (502, code, False)
    provider.mode = "ok"
    edge.progress = Progress()
    assert await refused(await edge.ask()) == (502, code, False)
    assert await refused(await edge.come_back()) == (502, code, False)
    assert provider.calls == 1


async def test_M9_a_slow_edge_fills_its_share_and_is_cut(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    limits = JournalLimits(kept=150_000, pause_s=0.05)
    async with asyncio.timeout(60), gateway(directory, provider.base_url, journal_limits=limits) as lab:
        edge = await Edge.joined(lab)
        assert await refused(await edge.ask()) == (429, "journal_full", False)
        edge.progress = Progress()
        assert await refused(await edge.ask()) == (429, "journal_full", False)
        assert provider.calls == 1


async def test_a_check_s_refusal_leaves_no_claim(lab: Lab, provider: MockProvider) -> None:
    edge = await Edge.joined(lab)
    edge.body = chat("forbidden")
    edge.__post_init__()
    for _ in range(2):
        assert await refused(await edge.ask()) == (403, "model_not_allowed", False)
    assert provider.calls == 0
    assert await refused(await edge.come_back()) == (404, "unknown_request", False)
