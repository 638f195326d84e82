"""What is asked arrives once and whole: links cut anywhere, tickets refused, journals lost, processes killed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.errors import BadUse, GaveUp, Interrupted, ProviderFailed, RequestExpired
from edge_client.gateway_client import REQUEST_LIFETIME_S
from edge_client.identity import DeviceIdentity
from edge_client.outbox import CANCELLED
from store.database import Connection
from tests.support.ca import Ca
from tests.support.edge_lab import Edge, edge_lab, read, until
from tests.support.fake_gateway import Call, FakeGateway, say_hello
from tests.support.memory_link import memory_links
from transport.errors import PeerRefused
from transport.links.base import Endpoint, Link
from transport.messages import Padding
from transport.tickets import TicketStore

TEXT = bytes(range(256)) * 40  # of an answer
PART = 2048


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_lab(tmp_path) as edge:
        await edge.join()
        yield edge


async def in_parts(call: Call) -> None:
    await call.begin()
    for start in range(0, len(TEXT), PART):
        await call.write(TEXT[start : start + PART])
        await asyncio.sleep(0)
    await call.end()


class Steps:
    """A provider that goes on when it is told to."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(0)

    async def __call__(self, call: Call) -> None:
        await self.turns.acquire()
        await call.begin()
        for start in range(0, len(TEXT), len(TEXT) // 2):
            await self.turns.acquire()
            await call.write(TEXT[start : start + len(TEXT) // 2])
        await self.turns.acquire()
        await call.end()

    def go(self, turns: int = 10) -> None:
        for _ in range(turns):
            self.turns.release()


async def whole_once(edge: Edge, got: bytes, calls: int = 1) -> None:
    assert got == TEXT
    assert len(edge.gateway.called) == calls
    assert [state for state, *_ in await edge.states()] == ["done"] * calls


# --- a cut at every point -------------------------------------------------------------------------------------------


async def test_link_cut_before_the_request_arrives(edge: Edge) -> None:
    edge.gateway.handle = in_parts
    edge.gateway.lose_requests = 1
    await whole_once(edge, await edge.ask())
    assert edge.gateway.asked == ["resume 0", "open"], "it is sent again only after the gateway said it never came"
    assert edge.notes == ["link lost, resuming ..."]


async def test_link_cut_after_the_request_was_accepted(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    await edge.gateway.cut()
    await until(lambda: "resume 0" in edge.gateway.asked)
    steps.go()
    await whole_once(edge, await asked)
    assert edge.gateway.asked == ["open", "resume 0"]


async def test_link_cut_in_mid_answer(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    asked = asyncio.create_task(edge.request())
    steps.go(2)
    answer = await asked
    chunks = answer.chunks()
    got = bytearray()
    while len(got) < len(TEXT) // 2:
        got += await anext(chunks)
    await edge.gateway.cut()
    steps.go()
    async for chunk in chunks:
        got += chunk
    await whole_once(edge, bytes(got))
    assert edge.gateway.asked == ["open", f"resume {len(TEXT) // 2}"]
    assert edge.gateway.resumed_sessions == 1, "by ticket"


@pytest.mark.parametrize("who", ["a hint", "another gateway"])
async def test_an_impostor_may_delay_an_answer_but_not_end_it(edge: Edge, who: str) -> None:
    """Whoever poses as a hop can say anything but what the session's keys say."""
    edge.gateway.handle = steps = Steps()
    impostor, real = FakeGateway(Ca(), say_hello), edge.client._sessions._dial
    visits = 0

    async def dial(endpoint: Endpoint) -> Link:
        nonlocal visits
        visits += 1
        if visits > 3:
            return await real(endpoint)
        if who == "another gateway":
            return await impostor.dial(endpoint)
        ours, theirs = memory_links()
        await theirs.send(bytes([0, 1]))
        await theirs.close()
        return ours

    asked = asyncio.create_task(edge.request())
    steps.go(2)
    chunks = (await asked).chunks()
    got = bytearray(await anext(chunks))
    edge.client._sessions._dial = dial
    edge.gateway.tickets = TicketStore()  # or a ticket would find its gateway out at once
    edge.client._sessions._wallet.clear()
    await edge.gateway.cut()
    steps.go()
    async for chunk in chunks:
        got += chunk
    assert visits > 3
    await whole_once(edge, bytes(got))
    await asyncio.gather(*impostor.tasks, return_exceptions=True)


async def test_link_cut_before_the_end_marker(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    asked = asyncio.create_task(edge.request())
    steps.go(3)
    answer = await asked
    chunks = answer.chunks()
    got = bytearray()
    while len(got) < len(TEXT):
        got += await anext(chunks)
    await edge.gateway.cut()
    rest = asyncio.create_task(anext(chunks, b""))
    await until(lambda: len(edge.gateway.asked) == 2)
    assert await edge.outbox.unsettled()
    steps.go()
    assert await rest == b""
    await whole_once(edge, bytes(got))
    assert edge.gateway.asked[1] == f"resume {len(TEXT)}"


async def test_link_cut_after_the_end_before_the_acknowledgement(edge: Edge) -> None:
    edge.gateway.handle = in_parts
    answer = await edge.request()
    got = bytearray()
    async for chunk in answer.chunks():
        got += chunk
        if len(got) == len(TEXT):
            await until(lambda: edge.gateway.calls[answer.request_id].whole)
            for _ in range(50):
                await asyncio.sleep(0)  # the end marker is on its way
            await edge.gateway.cut()
    await whole_once(edge, bytes(got))
    assert edge.gateway.acks == {}
    edge.gateway.handle = say_hello
    await edge.ask()
    await until(lambda: edge.gateway.acks.get(answer.request_id) == len(TEXT))


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_link_cut_after_any_number_of_bytes(edge: Edge, direction: str) -> None:
    edge.gateway.handle = in_parts
    points = [0, 1, 99, 100, 101, *range(300, 16_000, 2_200)]
    for count, point in enumerate(points, 1):
        edge.gateway.cuts.extend({direction: point + extra} for extra in (0, 700))
        assert await edge.ask() == TEXT
        assert len(edge.gateway.called) == count
        if count % 2:  # from a fresh session, and from one by ticket
            await edge.client.close()
            edge.start()
        else:
            await edge.gateway.cut()
    assert {state for state, *_ in await edge.states()} == {"done"}


async def test_many_at_once_over_a_link_that_keeps_breaking(edge: Edge) -> None:
    edge.gateway.handle = in_parts
    edge.gateway.cuts.extend({"received": 4_000 * n} for n in range(1, 9))
    answers = await asyncio.gather(*(edge.ask(bytes([n])) for n in range(8)))
    assert answers == [TEXT] * 8
    assert sorted(edge.gateway.called) == sorted(edge.gateway.calls) and len(edge.gateway.called) == 8


async def test_acknowledged_only_after_it_is_on_record(edge: Edge) -> None:
    seen: list[str] = []
    answer = await edge.request()
    real = edge.client._sessions.acknowledge

    def acknowledge(request_id: bytes, offset: int) -> None:
        rows = edge.queue._database.run_sync(lambda c: c.execute("SELECT state FROM queue").fetchall())
        seen.append(rows[0][0])
        real(request_id, offset)

    edge.client._sessions.acknowledge = acknowledge  # type: ignore[method-assign]
    assert await read(answer) == b"hello"
    assert seen == ["done"]
    await until(lambda: edge.gateway.acks == {answer.request_id: 5})


# --- tickets, epochs, hops ------------------------------------------------------------------------------------------


async def test_ticket_refused_leads_to_a_full_handshake(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    edge.gateway.tickets = TicketStore()
    await edge.gateway.cut()
    await until(lambda: len(edge.gateway.asked) == 2)
    steps.go()
    await whole_once(edge, await asked)
    assert edge.gateway.resumed_sessions == 0


async def test_request_is_early_data_after_the_first_session(edge: Edge) -> None:
    edge.gateway.handle = in_parts
    assert await edge.ask() == TEXT
    await edge.gateway.cut()
    await until(lambda: not edge.client._sessions.current.alive)  # type: ignore[union-attr]
    assert await edge.ask() == TEXT
    assert edge.gateway.resumed_sessions == 1
    first_flight = edge.gateway.links[-1].sent
    assert int.from_bytes(first_flight[1:3], "big") > 97, "ticket, key and early data"


async def test_early_data_can_be_switched_off(edge: Edge) -> None:
    edge.gateway.handle = in_parts
    edge.client._sessions._early_data = False
    assert await edge.ask() == TEXT
    await edge.gateway.cut()
    await until(lambda: not edge.client._sessions.current.alive)  # type: ignore[union-attr]
    assert await edge.ask() == TEXT
    assert edge.gateway.resumed_sessions == 1
    assert int.from_bytes(edge.gateway.links[-1].sent[1:3], "big") == 97


async def test_gateway_that_died_in_the_call_is_told_as_interrupted(edge: Edge) -> None:
    edge.gateway.handle = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    await edge.gateway.restart()
    with pytest.raises(Interrupted):
        await asked
    assert await edge.states() == [("interrupted", "interrupted", True)]
    assert len(edge.gateway.called) == 1


async def test_lost_journal_is_told_as_interrupted_and_nothing_is_sent_again(edge: Edge) -> None:
    edge.gateway.handle = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    await edge.gateway.restart(journal_lost=True)
    with pytest.raises(Interrupted):
        await asked
    assert await edge.states() == [("interrupted", "unknown_request", True)]
    assert edge.gateway.asked == ["open", "resume 0"]


async def test_journal_lost_between_two_processes_of_the_edge_harms_nothing(edge: Edge) -> None:
    edge.gateway.handle = in_parts
    assert await edge.ask() == TEXT
    await edge.client.close()
    await edge.gateway.restart(journal_lost=True)
    edge.start()
    answer = await edge.request()
    (row,) = [row for row in await edge.queue.list() if row.id == answer.request_id]
    assert row.mark == edge.gateway.epoch, "corrected once the gateway had told"
    assert await read(answer) == TEXT


async def test_H5_early_data_before_a_lost_journal_is_not_sent_again(edge: Edge) -> None:
    """The refusal of a ticket is two unauthenticated bytes: whoever wrote them may have passed the request on."""
    edge.gateway.handle = in_parts
    assert await edge.ask() == TEXT
    await edge.gateway.restart(journal_lost=True)
    await until(lambda: not edge.client._sessions.current.alive)  # type: ignore[union-attr]
    with pytest.raises(Interrupted):
        await edge.ask()
    assert len(edge.gateway.called) == 1


@pytest.mark.parametrize("restarted", [False, True], ids=["by ticket", "full handshake"])
@pytest.mark.parametrize("off", ["early data off", "constant"])
async def test_H5_what_waits_for_welcome_survives_a_lost_journal(edge: Edge, restarted: bool, off: str) -> None:
    """What was sent under a known epoch alone is interrupted by the loss of its journal, and nothing was yet."""

    constant = off == "constant"

    def start() -> None:
        edge.start(early_data=constant, padding=Padding.CONSTANT if constant else Padding.BUCKET)

    start()
    assert await edge.ask() == b"hello"
    if restarted:
        await edge.client.close()
        start()
    await edge.gateway.restart(journal_lost=True)
    await until(lambda: restarted or not edge.client._sessions.current.alive)  # type: ignore[union-attr]
    edge.gateway.asked.clear()
    edge.gateway.cuts.append({"received": 2_500})  # by ticket the hint comes first; else it falls behind frame 2
    assert await edge.ask() == b"hello"
    assert edge.gateway.asked == ["open"], "nothing had left that would have to be asked for"
    assert len(edge.gateway.called) == 2


async def test_two_hops_with_the_first_dead(edge: Edge) -> None:
    first, second = (Endpoint.parse(f"tcp:127.0.0.1:{port}") for port in (1, 2))
    client = edge.start((first, second))
    edge.gateway.handle = steps = Steps()
    asked = asyncio.create_task(client.request("POST", "/v1/chat/completions", b"x"))
    await until(lambda: edge.gateway.called)
    edge.gateway.dead.add(str(first))
    await edge.gateway.cut()
    steps.go()
    await whole_once(edge, await read(await asked))
    edge.gateway.dead.clear()
    dials = edge.gateway.dials
    await edge.gateway.cut()
    await until(lambda: not client._sessions.current.alive)  # type: ignore[union-attr]
    edge.gateway.handle = in_parts
    await edge.ask()
    assert edge.gateway.dialled[dials] == str(second), "the one that worked last goes first"


# --- identity -------------------------------------------------------------------------------------------------------


async def test_H8_renewal_in_mid_stream_without_a_gap(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    steps.go(2)
    answer = await edge.request()
    chunks = answer.chunks()
    got = bytearray(await anext(chunks))
    old = edge.client._sessions.current
    edge.clock.ahead += 40 * 60  # past the half
    edge.gateway.lifetime = 9_000.0
    await asyncio.sleep(0)
    edge.clock.wake()
    await until(lambda: edge.client._sessions.current is not old)
    steps.go()
    async for chunk in chunks:
        got += chunk
    await whole_once(edge, bytes(got))
    assert edge.notes == [] and edge.clock.pauses == [], "nothing was lost, and nobody was told so"
    assert edge.gateway.resumed_sessions == 0, "a renewed SVID takes a full handshake"


async def test_H8_renewal_that_fails_leaves_the_old_session(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    steps.go(2)
    answer = await edge.request()
    edge.clock.ahead += 40 * 60
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    dials = edge.gateway.dials
    await asyncio.sleep(0)
    edge.clock.wake()
    await until(lambda: edge.gateway.dials > dials)
    steps.go()
    await whole_once(edge, await read(answer))
    assert edge.gateway.asked == ["open"]


async def test_revoked_device_is_told_once_and_asks_no_more(edge: Edge) -> None:
    edge.gateway.handle = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    edge.gateway.refuse_everybody = True
    dials = edge.gateway.dials
    await edge.gateway.cut()
    with pytest.raises(PeerRefused):
        await asked
    assert edge.gateway.dials == dials + 2, "a session, and the one renewal that may follow its refusal"
    assert [state for state, *_ in await edge.states()] == ["interrupted"]


# --- killed processes -----------------------------------------------------------------------------------------------


async def test_killed_edge_takes_up_what_was_sent(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    steps.go(2)
    answer = await edge.request()
    chunks = answer.chunks()
    await anext(chunks)
    await edge.kill()
    client = edge.start()
    (left,) = await client.unsettled()
    assert (left.state, left.epoch, left.id) == ("sent", edge.gateway.epoch, answer.request_id)
    steps.go()
    await whole_once(edge, await read(await client.take_up(left.id)))
    assert edge.gateway.asked == ["open", "resume 0"]
    with pytest.raises(BadUse):
        await client.take_up(left.id)


async def test_killed_edge_whose_request_never_arrived(edge: Edge) -> None:
    await edge.ask()  # the epoch is known from now on
    await edge.client.close()
    edge.start()
    edge.gateway.handle = in_parts
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    with pytest.raises(GaveUp):
        await edge.ask()
    (left,) = await edge.client.unsettled()
    await edge.outbox.sent(left.id, edge.gateway.epoch, now=int(edge.clock.now()))  # and was killed right then
    await edge.kill()
    edge.gateway.dead.clear()
    assert await read(await edge.start().take_up(left.id)) == TEXT
    assert edge.gateway.asked[1:] == ["resume 0", "open"] and len(edge.gateway.called) == 2


async def test_killed_edge_and_a_lost_journal(edge: Edge) -> None:
    edge.gateway.handle = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    await edge.kill()
    with contextlib.suppress(Exception):
        await asked
    await edge.gateway.restart(journal_lost=True)
    client = edge.start()
    (left,) = await client.unsettled()
    with pytest.raises(Interrupted):
        await client.take_up(left.id)
    assert len(edge.gateway.called) == 1
    edge.gateway.handle = in_parts
    assert await read(await client.retry(left.id)) == TEXT, "the user decides to ask again"
    assert len(edge.gateway.called) == 2 and len(set(edge.gateway.called)) == 2
    assert await edge.states() == [("interrupted", "unknown_request", False), ("done", "", False)]
    with pytest.raises(BadUse):
        await client.retry(left.id)


# --- cancel, retry, expiry ------------------------------------------------------------------------------------------


async def test_reader_that_leaves_while_the_link_is_gone_cancels_with_the_next_session(edge: Edge) -> None:
    edge.gateway.handle = steps = Steps()
    steps.go(2)
    answer = await edge.request()
    chunks = answer.chunks()
    await anext(chunks)
    await edge.gateway.cut()
    await until(lambda: not edge.client._sessions.current.alive)  # type: ignore[union-attr]
    await chunks.aclose()
    assert await edge.states() == [("interrupted", CANCELLED, False)]
    call = edge.gateway.calls[answer.request_id]
    assert not call.cancelled.is_set()
    edge.gateway.handle = say_hello
    await edge.ask()
    await until(lambda: call.cancelled.is_set())
    await asyncio.gather(*edge.client._tasks)
    assert await edge.outbox.cancelled(now=0) == []


async def test_cancel_by_another_process_reaches_the_provider_and_is_idempotent(edge: Edge) -> None:
    edge.gateway.handle = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    await edge.kill()
    with contextlib.suppress(Exception):
        await asked
    client = edge.start()
    (left,) = await client.unsettled()
    assert await client.cancel(left.id)
    assert edge.gateway.calls[left.id].cancelled.is_set()
    assert await client.cancel(left.id)
    assert await edge.states() == [("interrupted", CANCELLED, False)]
    assert edge.gateway.asked[0] == "open" and set(edge.gateway.asked[1:]) <= {"resume 0"}


async def test_cancel_without_a_link_is_kept_and_told_later(edge: Edge) -> None:
    edge.gateway.handle = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    await edge.kill()
    with contextlib.suppress(Exception):
        await asked
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    client = edge.start()
    (left,) = await client.unsettled()
    assert not await client.cancel(left.id)
    assert await edge.states() == [("interrupted", CANCELLED, False)]
    edge.gateway.dead.clear()
    assert await client.cancel(left.id)
    assert edge.gateway.calls[left.id].cancelled.is_set()


async def test_cancel_of_what_never_left(edge: Edge) -> None:
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    with pytest.raises(GaveUp):
        await edge.ask()
    (left,) = await edge.client.unsettled()
    assert await edge.client.cancel(left.id)
    assert await edge.states() == [("failed", CANCELLED, False)]


async def test_retry_of_what_failed(edge: Edge) -> None:
    async def refuse(call: Call) -> None:
        await call.refuse(429, "provider_rate_limited", retryable=True)

    edge.gateway.handle = refuse
    with pytest.raises(ProviderFailed):
        await edge.ask(b"question")
    (left,) = await edge.outbox.entries()
    edge.gateway.handle = in_parts
    assert await read(await edge.client.retry(left.id)) == TEXT
    assert edge.gateway.calls[edge.gateway.called[-1]].body == b"question"


async def test_expiry_while_there_is_no_link(edge: Edge) -> None:
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    with pytest.raises(GaveUp):
        await edge.ask()
    edge.clock.ahead += REQUEST_LIFETIME_S
    assert await edge.client.unsettled() == []
    assert await edge.states() == [("expired", "", False)]


async def test_expiry_in_the_middle_of_an_outage(edge: Edge) -> None:
    edge.gateway.handle = Steps()
    asked = asyncio.create_task(edge.ask())
    await until(lambda: edge.gateway.called)
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    edge.clock.ahead += REQUEST_LIFETIME_S + 1
    await edge.gateway.cut()
    with pytest.raises(RequestExpired):
        await asked
    assert [state for state, *_ in await edge.states()] == ["expired"]


async def test_garbling_hop_is_left_in_time(edge: Edge) -> None:
    """A peer that lets no session bring a byte is given up like a dead one, however often sessions open."""
    edge.gateway.cuts.extend({"received": 3_000} for _ in range(1_000))

    async def silent(call: Call) -> None:
        await asyncio.Event().wait()

    edge.gateway.handle = silent
    edge.gateway.lose_requests = 10_000
    with pytest.raises(GaveUp):
        await edge.ask()
    assert edge.gateway.dials < 60, "the pauses grow"


async def test_models_of_last_time_serve_while_there_is_no_link(edge: Edge) -> None:
    async def models(call: Call) -> None:
        await call.give(b'{"data": [{"id": "a"}]}')

    edge.gateway.handle = models
    assert await edge.client.models() == ["a"]
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    await edge.gateway.cut()
    assert await edge.client.models() == ["a"]
    assert await edge.outbox.unsettled() == []


async def test_H3_no_ticket_is_ever_in_the_store(tmp_path: Path) -> None:
    """The disk of an edge, opened with its key, holds no ticket: early data that was recorded stays closed."""
    async with edge_lab(tmp_path) as edge:
        await edge.join()
        assert await edge.ask() == b"hello"
        session = edge.client._sessions.current
        assert session is not None and session.tickets
        secrets = [secret for ticket in session.tickets for secret in (ticket.id, ticket.psk.expose())]

        def everything(connection: Connection) -> bytes:
            names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = [row for name in names for row in connection.execute(f"SELECT * FROM \"{name}\"")]
            return b"\0".join(value for row in rows for value in row if isinstance(value, bytes))

        stored = await edge.settings._database.run(everything, read_only=True)
        identity = await DeviceIdentity.load(edge.settings)
        assert identity is not None
        assert identity.device_key.to_pkcs8().expose() in stored, "the search could not find"
        assert not [secret for secret in secrets if secret in stored]
