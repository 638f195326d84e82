"""The journal's rules: one call for a request, whoever asks how often; answers that wait; caps, expiry and restarts."""

import asyncio
import importlib.resources
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from relay.gateway import journal as module
from relay.gateway.call import ACKNOWLEDGED, SUPERSEDED, Call, CallRefused, JournalLimits, Reader
from relay.gateway.errors import JournalFull
from relay.gateway.journal import CANCELLED, CONFLICT, EXPIRED, FULL, INTERRUPTED, UNKNOWN, Journal
from relay.gateway.pipeline import Refusal
from relay.gateway.state.calls import Key
from relay.gateway.state.writer import Writer
from store.database import Connection, Database
from store.errors import StoreError
from tests.support.gateway_lab import Clock
from tests.support.stores import KEY
from transport.errors import ProtocolViolation

SCHEMA = importlib.resources.files("relay.gateway.state") / "schema"
OWNER = ("spiffe://field.example/edge/lap-1", 1)
DIGEST = b"d" * 32
DAY = 86_400


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "state.db", KEY, schema=SCHEMA) as database:
        yield database


def key(name: bytes = b"r", owner: tuple[str, int] = OWNER) -> Key:
    return Key(*owner, name * 16)


class World:
    """A journal, and calls that go on when told to."""

    def __init__(self, database: Database, limits: JournalLimits | None = None) -> None:
        self.database = database
        self.clock = Clock(1_000_000)
        self.journal = Journal(database, limits=limits, clock=self.clock)
        self.calls = 0
        self.hold = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.answer = b"the whole answer"

    async def run(self, call: Call) -> None:
        self.calls += 1
        try:
            await call.calling()
            await call.begin(200, "text/plain", streamed=True)
            await call.write(self.answer)
            await self.hold.wait()
            await call.end()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def claim(self, which: Key | None = None, digest: bytes = DIGEST, *, ttl: int = 600) -> Call:
        call = await self.try_claim(which, digest, ttl=ttl)
        assert isinstance(call, Call)
        return call

    async def try_claim(self, which: Key | None = None, digest: bytes = DIGEST, *, ttl: int = 600) -> Call | Refusal:
        return await self.journal.claim(which or key(), digest, int(self.clock()) + ttl, self.run)

    async def finished(self, which: Key | None = None) -> Call:
        call = await self.claim(which)
        self.hold.set()
        assert call.task is not None
        await call.task
        assert call.whole
        return call

    async def restarted(self) -> "World":
        """Another process, which finds what this one has left. Nothing is closed: it was killed."""
        other = World(self.database, self.journal.limits)
        await other.journal.load()
        return other

    async def rows(self, table: str = "calls") -> int:
        return await self.database.run(lambda c: c.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    world = World(database)
    await world.journal.load()
    yield world
    await world.journal.close()


async def read(reader: Reader) -> bytes:
    await reader.head()
    out = b""
    while data := await reader.next():
        out += data
    reader.close()
    return out


async def refusal_of(reader: Reader) -> Refusal:
    with pytest.raises(CallRefused) as refused:
        await read(reader)
    return refused.value.refusal


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- one call -------------------------------------------------------------------------------------------------------


async def test_a_request_from_claim_to_acknowledgement(world: World) -> None:
    call = await world.claim()
    reader = world.journal.read(call, 0)
    head = await reader.head()
    assert (head.status, head.content_type, head.streamed) == (200, "text/plain", True)
    assert await reader.next() == world.answer, "bytes are passed on before the answer is whole"
    end = asyncio.create_task(reader.next())
    await turns()
    assert not end.done()
    world.hold.set()
    assert await end == b""
    assert (call.length, call.sha256) == (len(world.answer), sha256(world.answer).digest())
    reader.close()
    await world.journal.ack({key(): call.length})
    assert (await world.rows(), await world.rows("answer_parts")) == (1, 0)
    assert world.calls == 1


async def test_the_same_request_again_is_the_same_call(world: World) -> None:
    first = await world.claim()
    again = await world.claim()
    assert again is first
    world.hold.set()
    assert await read(world.journal.read(again, 0)) == world.answer
    later = await world.claim()
    assert await read(world.journal.read(later, 4)) == world.answer[4:]
    assert (later.generation, later.length, later.sha256) == (first.generation, first.length, first.sha256)
    assert world.calls == 1


async def test_a_hundred_at_once_are_one_call(world: World) -> None:
    claimed = await asyncio.gather(*(world.try_claim() for _ in range(100)))
    assert all(call is claimed[0] for call in claimed)
    await turns()
    assert world.calls == 1


async def test_H7_another_content_under_a_known_id_calls_nobody(world: World) -> None:
    await world.claim()
    assert await world.try_claim(digest=b"e" * 32) == CONFLICT
    world.hold.set()
    await world.finished()
    assert await world.try_claim(digest=b"e" * 32) == CONFLICT
    await world.journal.ack({key(): len(world.answer)})
    assert await world.try_claim(digest=b"e" * 32) == CONFLICT
    assert world.calls == 1


@pytest.mark.parametrize("owner", [("spiffe://field.example/edge/lap-2", 1), (OWNER[0], 2)])
async def test_H7_another_device_s_request_is_unknown(world: World, owner: tuple[str, int]) -> None:
    await world.finished()
    assert await world.journal.find(key(owner=owner)) is None
    await world.journal.ack({key(owner=owner): 99_999})  # and nothing is said of it
    assert not await world.journal.cancel(key(owner=owner))
    mine = await world.claim(key(owner=owner), b"e" * 32)  # nor can an id be taken away from anybody
    assert await read(world.journal.read(mine, 0)) == world.answer
    assert world.calls == 2


async def test_M10_a_claim_is_on_stable_storage_before_the_call(world: World) -> None:
    seen: list[object] = []

    async def run(call: Call) -> None:
        seen.append(await world.database.run(
            lambda connection: connection.execute("SELECT state, digest FROM calls").fetchone()
        ))
        seen.append(await world.database.run(lambda c: c.execute("PRAGMA synchronous").fetchone()))

    call = await world.journal.claim(key(), DIGEST, int(world.clock()) + 9, run)
    assert isinstance(call, Call) and call.task is not None
    await call.task
    assert seen == [("running", DIGEST), (2,)]


async def test_M10_without_a_claim_nobody_is_called(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full_disk(*_: object, **__: object) -> None:
        raise StoreError("no space left")

    monkeypatch.setattr(world.database, "run", full_disk)
    with pytest.raises(StoreError):
        await world.try_claim()
    monkeypatch.undo()
    assert world.calls == 0
    await world.finished()  # and the limits have not been used up


async def test_end_is_told_only_once_all_is_on_stable_storage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = world.journal.read(await world.claim(), 0)
    await reader.head()
    assert await reader.next() == world.answer
    gate, run = asyncio.Event(), Writer.run

    async def slow(self: Writer, work: object) -> object:
        await gate.wait()
        return await run(self, work)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "run", slow)
    world.hold.set()
    end = asyncio.create_task(reader.next())
    await turns()
    assert not end.done()
    gate.set()
    assert await end == b""
    assert await world.rows("answer_parts") == 1


async def test_an_outcome_that_cannot_be_written_is_told_as_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = await world.claim()
    await turns()

    async def broken(*_: object) -> None:
        raise StoreError("no space left")

    monkeypatch.setattr(Writer, "run", broken)
    world.hold.set()
    assert await refusal_of(world.journal.read(call, 0)) == INTERRUPTED
    monkeypatch.undo()
    assert "no space left" in caplog.text
    assert await refusal_of(world.journal.read(await world.claim(), 0)) == INTERRUPTED
    assert world.calls == 1


async def test_many_callers_share_a_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    commits, run = 0, Database.run

    async def counted(self: Database, work: object, *, read_only: bool = False) -> object:
        nonlocal commits
        commits += not read_only
        return await run(self, work, read_only=read_only)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "run", counted)
    await asyncio.gather(*(world.claim(key(bytes([n]))) for n in range(30)))
    assert commits <= 3


# --- refusals -------------------------------------------------------------------------------------------------------


async def refuse_once(world: World, *, called: bool, retryable: bool) -> Refusal:
    async def run(call: Call) -> None:
        world.calls += called
        if called:
            await call.calling()
        await call.refuse(Refusal(429, "no_luck", "not now", retryable))

    call = await world.journal.claim(key(), DIGEST, int(world.clock()) + 600, run)
    assert isinstance(call, Call)
    return await refusal_of(world.journal.read(call, 0))


@pytest.mark.parametrize(("called", "retryable"), [(False, False), (False, True), (True, True)])
async def test_C5_a_call_that_nobody_can_have_accepted_is_released(
    world: World, called: bool, retryable: bool
) -> None:
    assert await refuse_once(world, called=called, retryable=retryable) == Refusal(
        429, "no_luck", "not now", retryable
    )
    assert await world.rows() == 0
    assert await world.journal.find(key()) is None
    await world.finished()  # the same id may be carried out now


async def test_C5_a_refusal_after_the_call_stays(world: World) -> None:
    refusal = Refusal(429, "no_luck", "not now")
    assert await refuse_once(world, called=True, retryable=False) == refusal
    assert await refusal_of(world.journal.read(await world.claim(), 0)) == refusal
    other = await world.restarted()
    assert await refusal_of(other.journal.read(await other.claim(), 0)) == refusal
    assert (world.calls, other.calls) == (1, 0)


async def test_C5_a_begun_answer_is_never_released(world: World) -> None:
    async def run(call: Call) -> None:
        await call.calling()
        await call.begin(200, "text/plain", streamed=True)
        await call.write(b"some")
        await call.refuse(Refusal(502, "provider_garbled", "cut short", retryable=True))

    call = await world.journal.claim(key(), DIGEST, int(world.clock()) + 600, run)
    assert isinstance(call, Call)
    assert await refusal_of(world.journal.read(call, 0)) == Refusal(502, "provider_garbled", "cut short")
    assert (await world.rows(), await world.rows("answer_parts")) == (1, 0)


async def test_a_pipeline_that_breaks_ends_the_call(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def run(call: Call) -> None:
        raise RuntimeError("a prompt could be in here")

    call = await world.journal.claim(key(), DIGEST, int(world.clock()) + 600, run)
    assert isinstance(call, Call)
    assert await refusal_of(world.journal.read(call, 0)) == INTERRUPTED
    assert "RuntimeError" in caplog.text and "prompt" not in caplog.text
    assert await refusal_of(world.journal.read(await world.claim(), 0)) == INTERRUPTED


# --- restarts -------------------------------------------------------------------------------------------------------


async def test_C5_a_running_call_is_interrupted_by_a_restart_and_never_made_again(world: World) -> None:
    world.answer = bytes(200_000)
    await world.claim()
    await until_written(world)
    other = await world.restarted()
    assert other.journal.epoch == world.journal.epoch
    assert await refusal_of(other.journal.read(await other.claim(), 0)) == INTERRUPTED
    found = await other.journal.find(key())
    assert found is not None and found.refusal == INTERRUPTED
    assert other.calls == 0
    assert await other.rows("answer_parts") == 0
    world.hold.set()  # what the killed process would still do comes too late
    await turns()
    assert await refusal_of(other.journal.read(await other.claim(), 0)) == INTERRUPTED


async def until_written(world: World) -> None:
    async with asyncio.timeout(60):
        while not await world.rows("answer_parts"):  # noqa: ASYNC110 - what is waited for is in a file
            await asyncio.sleep(0)


async def test_an_answer_outlives_its_process(world: World) -> None:
    world.answer = bytes(i % 251 for i in range(300_000))
    call = await world.finished()
    other = await world.restarted()
    again = await other.claim()
    assert (again.generation, again.sha256) == (call.generation, sha256(world.answer).digest())
    assert await read(other.journal.read(again, 0)) == world.answer
    assert await read(other.journal.read(await other.claim(), 123_457)) == world.answer[123_457:]
    assert other.calls == 0


async def test_epoch_is_of_the_state_not_of_the_process(world: World, tmp_path: Path) -> None:
    assert len(world.journal.epoch) == 16
    assert (await world.restarted()).journal.epoch == world.journal.epoch
    with Database.open(tmp_path / "new.db", KEY, schema=SCHEMA) as fresh:
        other = Journal(fresh)
        await other.load()
        assert other.epoch != world.journal.epoch


async def test_limits_survive_a_restart(database: Database) -> None:
    world = World(database, JournalLimits(rows=2))
    await world.journal.load()
    await world.finished(key(b"1"))
    await world.finished(key(b"2"))
    other = await world.restarted()
    assert await other.try_claim(key(b"3")) == FULL
    await world.journal.close()


# --- readers --------------------------------------------------------------------------------------------------------


async def test_the_newest_reader_is_the_only_one(world: World) -> None:
    call = await world.claim()
    old = world.journal.read(call, 0)
    await old.head()
    assert await old.next() == world.answer
    waiting = asyncio.create_task(old.next())
    await turns()
    new = world.journal.read(call, 4)
    with pytest.raises(CallRefused) as refused:
        await waiting
    assert refused.value.refusal == SUPERSEDED
    old.close()
    world.hold.set()
    assert await read(new) == world.answer[4:]


async def test_two_that_found_a_finished_call_at_once_are_not_both_readers(world: World) -> None:
    await world.finished()
    one, two = await world.journal.find(key()), await world.journal.find(key())
    assert one is not None and two is not None
    old, new = world.journal.read(one, 0), world.journal.read(two, 0)
    assert await refusal_of(old) == SUPERSEDED
    assert await read(new) == world.answer


async def test_the_call_goes_on_while_nobody_reads(world: World) -> None:
    world.answer = bytes(i % 249 for i in range(500_000))
    call = await world.claim()
    reader = world.journal.read(call, 0)
    await reader.head()
    part = await reader.next()
    reader.close()
    world.hold.set()
    assert call.task is not None
    await call.task
    again = await world.journal.find(key())
    assert again is not None
    assert part + await read(world.journal.read(again, len(part))) == world.answer
    assert not world.journal._calls, "nothing stays in memory"


async def test_M9_memory_is_bounded_without_a_reader_and_with_a_slow_one(database: Database) -> None:
    world = World(database, JournalLimits(memory=100_000, batch=10_000))
    await world.journal.load()
    peak = 0

    async def run(call: Call) -> None:
        nonlocal peak
        await call.calling()
        await call.begin(200, "text/plain", streamed=True)
        for number in range(500):
            await call.write(bytes([number % 251]) * 1_000)
            peak = max(peak, call.in_memory)
        await world.hold.wait()
        await call.end()

    for name, slow in ((b"1", False), (b"2", True)):
        peak = 0
        call = await world.journal.claim(key(name), DIGEST, int(world.clock()) + 600, run)
        assert isinstance(call, Call)
        reader = world.journal.read(call, 0) if slow else None
        while call.length < 500_000:  # noqa: ASYNC110 - the loop has only to turn
            await asyncio.sleep(0)
        assert peak <= 120_000 if slow else peak <= 12_000
        world.hold.set()
        reader = reader or world.journal.read(call, 0)
        assert await read(reader) == b"".join(bytes([number % 251]) * 1_000 for number in range(500))
        world.hold.clear()
    await world.journal.close()


# --- acknowledgements -----------------------------------------------------------------------------------------------


async def test_M9_an_acknowledgement_beyond_the_answer_is_a_violation(world: World) -> None:
    await world.claim()
    await turns()
    await world.journal.ack({key(): len(world.answer)})  # all there is so far; more may come
    with pytest.raises(ProtocolViolation):
        await world.journal.ack({key(): len(world.answer) + 1})
    await world.finished()
    with pytest.raises(ProtocolViolation):
        await world.journal.ack({key(): len(world.answer) + 1})
    assert await world.rows("answer_parts") == 1


async def test_acknowledgements_are_cumulative_and_idempotent(world: World) -> None:
    call = await world.finished()
    await world.journal.ack({key(): 3})
    again = await world.journal.find(key())
    assert again is not None
    assert await read(world.journal.read(again, 0)) == world.answer
    for offset in (call.length, call.length, 2):
        await world.journal.ack({key(): offset})
    assert call.usage.kept == 0
    await world.journal.ack({key(b"x"): 7})  # unknown: nothing happens


async def test_many_are_acknowledged_in_one_transaction_and_one_too_far_keeps_none_back(world: World) -> None:
    for name in (b"1", b"2", b"3"):
        await world.finished(key(name))
    size, wrote = len(world.answer), 0
    real = world.database.run

    async def run(work: Callable[[Connection], Any], *, read_only: bool = False) -> Any:
        nonlocal wrote
        wrote += not read_only
        return await real(work, read_only=read_only)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.database, "run", run)
        with pytest.raises(ProtocolViolation):
            await world.journal.ack({key(b"1"): size, key(b"2"): size + 1, key(b"3"): size})
    assert wrote == 1
    assert await world.rows("answer_parts") == 1 and await world.rows() == 3


async def test_an_answer_that_waits_is_found_without_a_read_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATELY", 2)
    made = [await world.finished(key(name)) for name in (b"1", b"2", b"3")]
    found = [await world.journal.find(key(name)) for name in (b"1", b"2", b"3")]
    assert found[0] is not made[0] and found[1:] == made[1:]
    assert all(call is not None and call.in_memory == 0 for call in found), "but not the answer itself"
    await world.journal.delete_identity(OWNER)
    assert [await world.journal.find(key(name)) for name in (b"1", b"2", b"3")] == [None, None, None]


async def test_an_acknowledged_answer_is_neither_given_nor_made_again(world: World) -> None:
    call = await world.finished()
    await world.journal.ack({key(): call.length})
    assert await refusal_of(world.journal.read(await world.claim(), 0)) == ACKNOWLEDGED
    again = await world.claim()
    assert await read(world.journal.read(again, call.length)) == b""  # who has all of it hears that it is whole
    assert again.sha256 == call.sha256
    assert world.calls == 1


# --- caps and expiry ------------------------------------------------------------------------------------------------


async def test_M9_calls_of_an_identity_are_capped(database: Database) -> None:
    world = World(database, JournalLimits(live=2))
    await world.journal.load()
    await world.claim(key(b"1"))
    await world.claim(key(b"2"))
    assert await world.try_claim(key(b"3")) == FULL
    assert isinstance(await world.try_claim(key(b"1")), Call), "known ones are answered all the same"
    assert isinstance(await world.try_claim(key(b"3", ("spiffe://field.example/edge/lap-2", 2))), Call)
    world.hold.set()
    await turns()
    await asyncio.gather(*world.journal.running)
    assert isinstance(await world.try_claim(key(b"3")), Call)
    await world.journal.close()


async def test_M9_answers_that_nobody_fetches_are_capped(database: Database) -> None:
    world = World(database, JournalLimits(waiting=2))
    await world.journal.load()
    call = await world.finished(key(b"1"))
    await world.finished(key(b"2"))
    assert await world.try_claim(key(b"3")) == FULL
    world = await world.restarted()
    assert await world.try_claim(key(b"3")) == FULL
    await world.journal.ack({key(b"1"): call.length})
    await world.finished(key(b"3"))
    assert await world.try_claim(key(b"4")) == FULL
    for name in (b"2", b"3"):
        await world.journal.ack({key(name): call.length})
    world.answer = b""
    for name in (b"4", b"5", b"6"):  # nothing to fetch
        await world.finished(key(name))
    for name in (b"7", b"8", b"9"):
        world.hold.clear()
        await world.claim(key(name))
        assert await world.journal.cancel(key(name))
    await world.journal.close()
    other = await world.restarted()
    usage = other.journal._usage[OWNER]
    assert (usage.live, usage.waiting, usage.rows, usage.kept) == (0, 0, 9, 0)


async def test_M9_rows_of_an_identity_are_capped(database: Database) -> None:
    world = World(database, JournalLimits(rows=2))
    await world.journal.load()
    for name in (b"1", b"2"):
        call = await world.finished(key(name))
        await world.journal.ack({key(name): call.length})
    assert await world.try_claim(key(b"3")) == FULL
    world.clock.now += 600 + module.KEPT_BEYOND_S + 1
    await world.journal.sweep()
    assert isinstance(await world.try_claim(key(b"3")), Call)
    await world.journal.close()


async def test_M9_a_full_journal_pauses_the_provider_then_cuts(database: Database) -> None:
    world = World(database, JournalLimits(kept=1_000, batch=100, pause_s=0.05))
    await world.journal.load()
    wrote = 0

    async def run(call: Call) -> None:
        nonlocal wrote
        await call.calling()
        await call.begin(200, "text/plain", streamed=True)
        try:
            for _ in range(30):
                await call.write(bytes(100))
                wrote += 1
        except JournalFull as full:
            await call.refuse(Refusal(429, full.code, str(full)))

    call = await world.journal.claim(key(), DIGEST, int(world.clock()) + 600, run)
    assert isinstance(call, Call) and call.task is not None
    await call.task
    assert wrote == 10
    assert call.refusal is not None and call.refusal.code == "journal_full"
    assert call.usage.kept == 0
    await world.finished(key(b"2"))  # what was cut has made room
    await world.journal.close()


async def test_M9_a_paused_provider_goes_on_when_there_is_room(database: Database) -> None:
    world = World(database, JournalLimits(kept=1_000, batch=100))
    await world.journal.load()
    world.answer = bytes(600)
    first = await world.finished(key(b"1"))
    second = await world.claim(key(b"2"))
    while second.length < 400:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await turns()
    assert second.length == 400, "it waits"
    await world.journal.ack({key(b"1"): first.length})
    assert await read(world.journal.read(second, 0)) == world.answer
    world.answer = bytes(400)
    await world.finished(key(b"3"))
    assert await world.try_claim(key(b"4")) == FULL
    await world.journal.close()


async def test_C5_an_outcome_is_kept_until_expiry_and_the_id_refused_after_it(world: World) -> None:
    await world.finished()
    world.clock.now += 600 + 30  # within the leeway that a late request has
    assert await world.journal.find(key()) is not None
    world.clock.now += 31
    assert await world.journal.find(key()) is None
    assert await world.try_claim() == EXPIRED
    await world.journal.sweep()
    assert await world.rows() == 1, "still there, should the clock go back"
    world.clock.now += module.KEPT_BEYOND_S
    await world.journal.sweep()
    assert (await world.rows(), await world.rows("answer_parts")) == (0, 0)


async def test_an_expiry_far_ahead_is_not_kept_for_ever(world: World) -> None:
    call = await world.claim(ttl=10_000 * DAY)
    assert call.expires <= world.clock() + 7 * DAY + 60


async def test_sweeping_leaves_running_calls(world: World) -> None:
    call = await world.claim()
    await turns()
    world.clock.now += 10 * DAY
    await world.journal.sweep()
    world.hold.set()
    assert call.task is not None
    await call.task
    assert call.whole
    await world.journal.sweep()
    assert (await world.rows(), call.usage.rows, call.usage.waiting, call.usage.kept) == (0, 0, 0, 0)


# --- cancelling -----------------------------------------------------------------------------------------------------


async def test_M11_cancel_is_persisted_and_ends_the_call(world: World) -> None:
    call = await world.claim()
    await turns()
    assert await world.journal.cancel(key())
    await world.cancelled.wait()
    assert await refusal_of(world.journal.read(call, 0)) == CANCELLED
    assert not await world.journal.cancel(key())
    other = await world.restarted()
    assert await refusal_of(other.journal.read(await other.claim(), 0)) == CANCELLED
    assert other.calls == 0


async def test_M11_cancel_after_completion_changes_nothing(world: World) -> None:
    await world.finished()
    assert not await world.journal.cancel(key())
    assert await read(world.journal.read(await world.claim(), 0)) == world.answer


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_M11_cancel_and_completion_have_one_winner(world: World, cancel_first: bool) -> None:
    call = await world.claim()
    await turns()
    if cancel_first:
        cancelling = asyncio.create_task(world.journal.cancel(key()))
        await asyncio.sleep(0)
        world.hold.set()
    else:
        world.hold.set()
        await asyncio.sleep(0)
        cancelling = asyncio.create_task(world.journal.cancel(key()))
    cancelled = await cancelling
    await asyncio.gather(call.task or asyncio.sleep(0), return_exceptions=True)
    other = await world.restarted()
    found = await other.journal.find(key())
    assert found is not None
    assert (found.refusal == CANCELLED) == (call.refusal == CANCELLED) == cancelled == cancel_first
    assert found.whole == call.whole == (not cancelled)


async def test_M11_a_deleted_identity_s_calls_end_and_its_answers_are_gone(world: World) -> None:
    await world.finished(key(b"1"))
    world.hold.clear()
    reader = world.journal.read(await world.claim(key(b"2")), 0)
    await reader.head()
    stranger = await world.claim(key(b"3", ("spiffe://field.example/edge/lap-2", 2)))
    await turns()
    await world.journal.delete_identity(OWNER)
    await world.cancelled.wait()
    assert await refusal_of(reader) == UNKNOWN
    assert await world.journal.find(key(b"1")) is None
    assert await world.rows() == 1
    assert not stranger.over


async def test_closing_ends_calls_and_leaves_them_for_the_next_process(world: World) -> None:
    call = await world.claim()
    await turns()
    await world.journal.close()
    assert call.refusal == INTERRUPTED
    other = await world.restarted()
    assert await refusal_of(other.journal.read(await other.claim(), 0)) == INTERRUPTED


def test_statements_are_indexed(tmp_path: Path) -> None:
    """A device with a thousand requests makes nobody wait."""
    with Database.open(tmp_path / "state.db", KEY, schema=SCHEMA) as database:
        def plan(connection: Connection) -> str:
            return str([
                connection.execute("EXPLAIN QUERY PLAN " + sql, parameters).fetchall() for sql, parameters in (
                    ("SELECT * FROM calls WHERE spiffe_id = ? AND enrolment = ? AND request_id = ?", ("", 0, b"")),
                    ("SELECT * FROM answer_parts WHERE call = ? AND start <= ? ORDER BY start DESC LIMIT 1", (0, 0)),
                    ("DELETE FROM calls WHERE expires < ? AND state != 'running'", (0,)),
                )
            ])
        assert "SCAN" not in database.run_sync(plan)
