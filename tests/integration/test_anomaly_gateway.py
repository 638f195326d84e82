"""A gateway that finds a device doing what it does not usually do: what it still may, when it is cut, who undoes it."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.admin import Admin
from relay.gateway.anomaly.guard import TICK_S, Guard
from relay.gateway.anomaly.ladder import Level
from relay.gateway.anomaly.settings import Anomaly
from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import AuditUnavailable
from relay.gateway.pipeline import Answer, Refusal, RequestContext
from relay.gateway.state.sqlcipher import open_state
from store.errors import StoreError
from tests.support.gateway_lab import PASSPHRASE, Clock, chat, context
from tests.support.resuming_edge import Edge, refused, until
from tests.support.session_lab import Lab, gateway
from transport.errors import RequestRefused
from transport.identity.svid import make_csr
from transport.links import virtual_time
from transport.messages import RequestHeader, encode_header
from transport.primitives import SigningKey, random_bytes
from transport.stream import Progress

LOW = Anomaly(warn=1, throttle=2, quarantine=20, revoke_at=30)
BAD = b'{"nonsense": 1}'


class Dripping:
    """A provider that never comes to an end, with a word each 20 ms."""

    @asynccontextmanager
    async def answer(self, context: RequestContext) -> AsyncIterator[Answer]:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"word "
                await asyncio.sleep(0.02)

        yield Answer(200, "text/plain", True, chunks())


class Said:
    """A provider that is done at once."""

    @asynccontextmanager
    async def answer(self, context: RequestContext) -> AsyncIterator[Answer]:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"word"

        yield Answer(200, "text/plain", False, chunks())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def lab(made: Path, tmp_path: Path, clock: Clock) -> AsyncIterator[Lab]:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with asyncio.timeout(60), gateway(directory, judging=clock, anomaly=LOW, answerer=Dripping()) as lab:
        yield lab


def header(body: bytes) -> bytes:
    return encode_header(RequestHeader(
        "POST", "/v1/chat/completions", "application/json", "", len(body), int(time.time()) + 600
    ))


async def code_of(session: Any, body: bytes = BAD) -> str:
    with pytest.raises(RequestRefused) as told:
        async for _ in await session.request(random_bytes(16), header(body), body).started():
            pass
    return str(told.value.reason)


def noted(lab: Lab, enrolment: int, count: int) -> None:
    """So many requests that are none, as the pipeline tells of them."""
    for _ in range(count):
        lab.guard.refused(context(BAD, enrolment=enrolment), Refusal(400, "malformed_json", ""))


async def up_to(lab: Lab, clock: Clock, level: Level, enrolment: int = 1) -> None:
    while lab.guard.level(enrolment) < level:
        noted(lab, enrolment, 200)
        await lab.guard.tick()
        clock.now += 11


async def test_it_is_warned_of_then_slowed_down_then_cut_off_and_told_so(lab: Lab, clock: Clock) -> None:
    edge, other = await Edge.joined(lab), await Edge.joined(lab, "lap-2")
    session = await lab.session(edge.svid)
    assert await code_of(session) == "unknown_field"

    await up_to(lab, clock, Level.WARNED)
    assert await code_of(session) == "unknown_field", "a warning is for the administrator"
    await up_to(lab, clock, Level.THROTTLED)
    codes = [await code_of(session) for _ in range(8)]
    assert codes == ["unknown_field"] * 5 + ["throttled"] * 3
    clock.now += 2
    assert [await code_of(session) for _ in range(2)] == ["unknown_field", "throttled"], "one each two seconds"
    await up_to(lab, clock, Level.QUARANTINED)
    assert await code_of(session, chat()) == "quarantined"
    assert [line["code"] for line in lab.audit("request.refused")][-1] == "quarantined"
    assert session.alive, "who is in quarantine may hear that it is, and renew"
    again = await lab.session(edge.svid)
    assert await code_of(again) == "quarantined"
    theirs = await lab.session(other.svid)
    assert await code_of(theirs) == "unknown_field", "nobody else"

    names = [line["event"] for event in ("warned", "throttled", "quarantined") for line in lab.audit(f"alert.{event}")]
    assert names == ["alert.warned", "alert.throttled", "alert.quarantined"], "once each"
    assert "refused" in lab.audit("alert.quarantined")[0]["reasons"]


async def test_identity_only_remains_to_who_is_in_quarantine(lab: Lab, clock: Clock) -> None:
    invitation = await lab.enrolment.invite("edge/lap-1")
    device, key = SigningKey.generate(), SigningKey.generate()
    joined = await lab.enrolment.join(
        invitation.token_id, invitation.secret, make_csr(key), device.public.spki, roles=("edge",)
    )
    await up_to(lab, clock, Level.QUARANTINED)
    registration = lab.enrolment.find(str(joined.enrolment))[0]
    assert registration.status == "active"
    renewed = await lab.enrolment.renew(registration.device_id, make_csr(SigningKey.generate()), roles=("edge",))
    assert renewed.enrolment == joined.enrolment


async def test_a_running_answer_is_cut_and_what_waits_is_not_given_out(lab: Lab, clock: Clock) -> None:
    edge = await Edge.joined(lab)
    edge.body = chat(stream=True)
    answer = await edge.ask()
    await edge.take(answer, 20)
    await up_to(lab, clock, Level.QUARANTINED)
    assert edge.answer is not None
    with pytest.raises(RequestRefused) as told:
        await edge.take(edge.answer)
    assert (told.value.status, told.value.reason) == (403, "quarantined")
    await until(lambda: bool(lab.audit("request.outcome")))
    assert [line["result"] for line in lab.audit("request.outcome")] == ["cancelled"]
    assert edge.session is not None
    assert (await refused(edge.resume(edge.session)))[:2] == (403, "quarantined")


async def test_an_answer_that_waits_is_kept_for_when_it_is_over(made: Path, tmp_path: Path, clock: Clock) -> None:
    shutil.copytree(made, tmp_path / "gateway")
    async with gateway(tmp_path / "gateway", judging=clock, anomaly=LOW, answerer=Said()) as lab:
        edge = await Edge.joined(lab)
        answer = await (await edge.ask()).started()
        await until(lambda: [line["result"] for line in lab.audit("request.outcome")] == ["answered"])
        await up_to(lab, clock, Level.QUARANTINED)
        again = await lab.session(edge.svid)
        told = again.resume(edge.request_id, Progress())
        assert (await refused(told))[:2] == (403, "quarantined")
        await lab.guard.lift(1)
        assert answer.status == 200
        got = b""
        async for data in await again.resume(edge.request_id, Progress()).started():
            got += data
        assert got == b"word"


async def test_a_person_undoes_it_and_the_same_does_not_bring_it_back(lab: Lab, clock: Clock) -> None:
    edge = await Edge.joined(lab)
    await up_to(lab, clock, Level.QUARANTINED)
    unused: Any = None
    audit = AuditLog(lab.directory / "admin.jsonl")
    admin = Admin(lab.enrolment, lab.traces, lab.revocation, unused, audit, lab.guard)
    shown = (await admin.devices())["devices"][0]
    assert shown["state"] == "quarantined" and shown["score"] >= 20 and shown["reasons"]["refused"] > 5
    assert "quarantine" in shown["alert"]

    assert await admin.reinstate("edge/lap-1") == {"id": shown["id"], "enrolment": 1, "was": "quarantined"}
    shown = (await admin.devices())["devices"][0]
    assert (shown["state"], shown["reasons"], shown["alert"]) == ("normal", {}, "")
    session = await lab.session(edge.svid)
    assert await code_of(session) == "unknown_field"
    for _ in range(6):
        noted(lab, 1, 30)
        await lab.guard.tick()
        clock.now += 11
    assert lab.guard.level(1) < Level.QUARANTINED
    await audit.close()


async def test_all_of_it_survives_a_restart(made: Path, tmp_path: Path, clock: Clock) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with gateway(directory, judging=clock, anomaly=LOW) as lab:
        edge = await Edge.joined(lab)
        await up_to(lab, clock, Level.QUARANTINED)
        shown = lab.guard.state(1)
    async with gateway(directory, judging=clock, anomaly=LOW) as lab:
        session = await lab.session(edge.svid)
        assert await code_of(session) == "quarantined"
        assert lab.guard.state(1) == shown
        await lab.guard.lift(1)
    async with gateway(directory, judging=clock, anomaly=LOW) as lab:
        assert lab.guard.level(1) is Level.NORMAL
        noted(lab, 1, 1)
        await lab.guard.tick()
        assert lab.guard._profiles[1].kept.excused, "and so does the undo"


async def test_what_cannot_be_read_of_a_device_in_quarantine_does_not_free_it(
    made: Path, tmp_path: Path, clock: Clock
) -> None:
    shutil.copytree(made, tmp_path / "gateway")
    with open_state(tmp_path / "gateway", PASSPHRASE) as database:
        await database.run(lambda connection: connection.execute(
            "INSERT INTO profiles VALUES (7, ?, x'00')", (Level.QUARANTINED,)
        ) and None)
        guard = Guard(database, LOW, clock=clock)
        await guard.load()
        await guard.tick()
        assert guard.level(7) is Level.QUARANTINED


@pytest.mark.parametrize("allowed", [True, False])
async def test_revocation_only_where_the_configuration_says_so(
    made: Path, tmp_path: Path, clock: Clock, allowed: bool
) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    settings = Anomaly(warn=1, throttle=2, quarantine=20, revoke=allowed, revoke_at=30)
    async with gateway(directory, judging=clock, anomaly=settings) as lab:
        edge = await Edge.joined(lab)
        await up_to(lab, clock, Level.QUARANTINED)
        for _ in range(10):
            for _ in range(50):
                lab.guard.refused(context(BAD, enrolment=1), Refusal(403, "model_not_allowed", ""))
            await lab.guard.tick()
            clock.now += 31
        ended = lab.enrolment.find("1")[0]
        assert (ended.status == "revoked") == allowed
        if not allowed:
            assert lab.guard.level(1) is Level.QUARANTINED
            return
        assert ended.reason.startswith("anomaly: ") and lab.audit("device.revoked")
        assert len(lab.audit("alert.revoked")) == 1
        unused: Any = None
        audit = AuditLog(lab.directory / "admin.jsonl")
        again = await Admin(lab.enrolment, lab.traces, lab.revocation, unused, audit, lab.guard).reinstate("edge/lap-1")
        assert again["was"] == "revoked" and again["enrolment"] != 1
        assert lab.guard._profiles[again["enrolment"]].kept.excused, "what it was ended for does not end it at once"
        await audit.close()
    assert edge


async def test_what_could_not_be_done_is_done_later(lab: Lab, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    await Edge.joined(lab)
    append = AuditLog.append

    async def fail(log: AuditLog, event: str, *shared: bytes, **fields: Any) -> None:
        raise AuditUnavailable("the audit log cannot be written")

    await up_to(lab, clock, Level.THROTTLED)
    monkeypatch.setattr(AuditLog, "append", fail)
    await up_to(lab, clock, Level.QUARANTINED)
    assert not lab.audit("alert.quarantined")
    monkeypatch.setattr(AuditLog, "append", append)
    await lab.guard.tick()
    await lab.guard.tick()
    assert len(lab.audit("alert.quarantined")) == 1, "told once it can be, and once"


async def test_memory_holds_those_who_ask_and_the_database_the_rest(
    made: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "gateway")
    monkeypatch.setattr("relay.gateway.anomaly.guard.HELD_MAX", 50)
    with open_state(tmp_path / "gateway", PASSPHRASE) as database:
        guard = Guard(database, Anomaly(), clock=clock)
        for device in range(1, 301):
            for _ in range(3):
                guard.finished(context(chat(), enrolment=device, model="small"), "answered", "")
            clock.now += 1
            await guard.tick()
        await guard.tick()
        assert len(guard._profiles) <= 60
        guard.finished(context(chat(), enrolment=1, model="small"), "answered", "")
        await guard.tick()  # it is read
        await guard.tick()  # and judged
        assert guard._profiles[1].kept.hour.requests == 4, "who comes back is known again"
        await guard.close()


async def test_a_database_that_fails_stops_nothing(
    made: Path, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(made, tmp_path / "gateway")
    with open_state(tmp_path / "gateway", PASSPHRASE) as database:
        guard = Guard(database, LOW, clock=clock)
        guard.finished(context(chat(), enrolment=1), "answered", "")
        await guard.tick()
    clock.now += 60
    guard.finished(context(chat(), enrolment=1), "answered", "")
    await guard.tick()
    assert "not kept" in caplog.text
    with pytest.raises(StoreError):
        await guard.close()


def test_from_too_much_to_the_last_word_of_an_answer_is_a_second_at_most(made: Path, tmp_path: Path) -> None:
    """Counted in virtual time: words that arrive at the device, and requests of it that anybody takes."""
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    words: list[float] = []
    taken: list[float] = []

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with gateway(
            directory, clock=virtual_time.wall, ticking=loop.time, anomaly=LOW, answerer=Dripping()
        ) as lab:
            keeping = asyncio.create_task(lab.guard.keep())
            edge = await Edge.joined(lab)
            session = await lab.session(edge.svid)
            body = chat(stream=True)

            async def listen() -> None:
                async for _ in await session.request(random_bytes(16), header(body), body).started():
                    words.append(loop.time())

            noted(lab, 1, 30)
            await asyncio.sleep(25.0)
            assert lab.guard.level(1) is Level.THROTTLED
            listening = asyncio.create_task(listen())
            await asyncio.sleep(12.0)
            assert lab.guard.level(1) is Level.THROTTLED
            too_much = loop.time()
            for _ in range(10):
                await asyncio.gather(*(code_of(session) for _ in range(20)))
            for _ in range(30):
                if await code_of(session) != "quarantined":
                    taken.append(loop.time())
                await asyncio.sleep(0.1)
            with pytest.raises(RequestRefused):
                await listening
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            return too_much

    too_much = virtual_time.run(main(), start=time.time())
    assert len(words) > 100 and max(words) >= too_much, "it was being answered until then"
    assert max(words) - too_much <= TICK_S + 0.2 < 1.0
    assert max(taken, default=too_much) - too_much < 1.0
