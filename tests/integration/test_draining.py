"""Offline first: what is queued is sent by itself and in order, its answer is kept, and a local answer stands in."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.answering import Assistant, Question
from edge_client.draining import LOOK_S, SELDOM_S, Drain
from edge_client.engine.base import Message
from edge_client.errors import BadUse, GaveUp, PromptTooLong
from edge_client.offline import IfReachable, Later, Queued
from edge_client.promises import ANSWERS, PROMISES, Kept, Promises
from store.errors import DiskFull
from store.settings import Settings
from tests.support.edge_lab import ENDPOINT, Edge, edge_lab, until
from tests.support.fake_engine import FakeChat, sse
from tests.support.fake_gateway import Call

ROUTE = "/v1/chat/completions"
HARD = "Explain step by step why the tides come twice a day, and compare them"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_lab(tmp_path) as edge:
        edge.gateway.handle = echo
        await edge.join()
        yield edge


async def echo(call: Call) -> None:
    question = json.loads(call.body)["messages"][-1]["content"]
    await call.begin(200, "text/event-stream")
    for part in sse("You asked ", question):
        await call.write(part)
    await call.end()


def promises(edge: Edge) -> Promises:
    database = edge.settings._database
    return Promises(Settings(database, PROMISES), Settings(database, ANSWERS))


def drain(edge: Edge) -> Drain:
    return Drain(edge.client, promises(edge), clock=edge.clock, tell=edge.notes.append)


def body(question: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": question}]}).encode()


async def queue(edge: Edge, *questions: str) -> list[bytes]:
    ids = []
    for question in questions:
        with pytest.raises(Queued) as queued:
            await Later(edge.client, promises(edge), int(edge.clock.now())).request("POST", ROUTE, body(question))
        ids.append(queued.value.request_id)
    return ids


async def answers(edge: Edge) -> list[tuple[bytes, str]]:
    return [(one.id, one.kept.text) for one in await promises(edge).answers()]


async def test_what_is_queued_is_sent_in_order_and_its_answers_are_kept(edge: Edge) -> None:
    dials = edge.gateway.dials
    ids = await queue(edge, "one", "two", "three")
    assert edge.gateway.dials == dials, "queueing dials nobody"
    assert [state for state, *_ in await edge.states()] == ["waiting"] * 3
    edge.start()
    assert await drain(edge).step() == LOOK_S
    assert edge.gateway.called == ids
    assert dict(await answers(edge)) == dict(
        zip(ids, ["You asked one", "You asked two", "You asked three"], strict=True)
    )
    assert await edge.states() == [("done", "", False)] * 3
    assert await promises(edge).promised() == {}
    found = await promises(edge).find(ids[0].hex()[:8])
    assert found is not None
    kept = found.kept
    assert (kept.question, kept.via, kept.finish_reason, kept.failure) == (
        "one", "spiffe://field.example/hop/h", "stop", ""
    )
    await until(lambda: set(edge.gateway.acks) == set(ids))


async def test_while_nobody_answers_it_comes_back_as_the_policy_says(edge: Edge) -> None:
    edge.gateway.dead.add(str(ENDPOINT))
    await queue(edge, "one")
    edge.clock.dice = lambda: 0.999  # type: ignore[method-assign]
    draining, pauses = drain(edge), []
    for _ in range(12):
        pauses.append(await draining.step())
    assert pauses == sorted(pauses) and pauses[0] < 0.21 and 29 < pauses[-1] <= 30
    assert edge.notes == [] and [state for state, *_ in await edge.states()] == ["waiting"]
    edge.gateway.dead.clear()
    assert await draining.step() == LOOK_S
    assert [text for _, text in await answers(edge)] == ["You asked one"]
    edge.gateway.dead.add(str(ENDPOINT))
    await edge.gateway.cut()
    await queue(edge, "two")
    await until(lambda: edge.client.link[0] != "up")
    assert await draining.step() < 0.21, "an outage that has ended is not counted on"


async def test_it_runs_by_itself_and_sees_what_comes_later(edge: Edge) -> None:
    edge.gateway.dead.add(str(ENDPOINT))
    draining = drain(edge)
    draining.start()
    (first,) = await queue(edge, "one")
    await until(lambda: edge.gateway.dials >= 5)
    edge.gateway.dead.clear()
    await until(lambda: edge.gateway.called)
    (second,) = await queue(edge, "two")
    await until(lambda: len(edge.gateway.called) == 2)
    await until(lambda: any("answer" in note and second.hex()[:8] in note for note in edge.notes))
    draining.stop()
    await draining.ended()
    assert edge.gateway.called == [first, second]


async def test_stopping_in_mid_answer_leaves_it_for_the_next_process(edge: Edge) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> None:
        await call.begin(200, "text/event-stream")
        await call.write(sse("half")[0])
        begun.set()
        await go.wait()
        for part in sse(" and half")[0:]:
            await call.write(part)
        await call.end()

    edge.gateway.handle = slow
    ids = await queue(edge, "one")
    draining = drain(edge)
    draining.start()
    await begun.wait()
    draining.stop()
    await edge.client.close()
    await draining.ended()
    assert [state for state, *_ in await edge.states()] == ["sent"] and await answers(edge) == []
    go.set()
    edge.start()
    await drain(edge).step()
    assert await answers(edge) == [(ids[0], "half and half")]
    assert edge.gateway.called == ids, "the provider is called once"


async def test_an_answer_is_kept_before_the_gateway_may_forget_it(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies(self: Promises, request_id: bytes, answer: Kept) -> None:
        raise DiskFull("the disk is full")

    ids = await queue(edge, "one")
    with monkeypatch.context() as patch:
        patch.setattr(Promises, "keep", dies)
        with pytest.raises(DiskFull):
            await drain(edge).step()
    assert [state for state, *_ in await edge.states()] == ["sent"] and edge.gateway.acks == {}
    edge.start()
    await drain(edge).step()
    assert await answers(edge) == [(ids[0], "You asked one")] and edge.gateway.called == ids


async def test_a_refusal_is_told_and_the_next_one_goes_on(edge: Edge) -> None:
    async def choosy(call: Call) -> None:
        if b'"bad"' in call.body:
            await call.refuse(403, "model_not_allowed")
        else:
            await echo(call)

    edge.gateway.handle = choosy
    bad, good = await queue(edge, "bad", "good")
    draining = drain(edge)
    await draining.step()
    assert await answers(edge) == [(good, "You asked good")]
    assert await edge.states() == [("failed", "model_not_allowed", True), ("done", "", False)]
    assert any(bad.hex()[:8] in note and "came to no answer" in note for note in edge.notes)
    edge.clock.ahead += 3600
    await draining.step()
    assert await promises(edge).promised() == {} and len(edge.gateway.called) == 2


async def test_an_answer_that_is_an_error_is_kept_as_one(edge: Edge) -> None:
    async def failing(call: Call) -> None:
        await call.begin(500, "application/json", streamed=False)
        await call.write(b'{"error": {"code": "overloaded_model"}}')
        await call.end()

    edge.gateway.handle = failing
    await queue(edge, "one")
    await drain(edge).step()
    (one,) = await promises(edge).answers()
    assert one.kept.text == "" and one.kept.failure == "the provider failed with status 500 (overloaded_model)"
    assert await edge.states() == [("done", "", False)]


async def test_what_was_not_promised_is_left_alone(edge: Edge) -> None:
    now = int(edge.clock.now())
    await edge.outbox.accept(b"x" * 16, b"", b"", now=now, expires_at=now + 900)
    dials = edge.gateway.dials
    assert await drain(edge).step() == LOOK_S
    assert edge.gateway.dials == dials and [state for state, *_ in await edge.states()] == ["waiting"]


async def test_where_only_a_person_can_help_it_comes_back_seldom_and_says_so_once(edge: Edge) -> None:
    edge.gateway.refuse_everybody = True
    await queue(edge, "one")
    draining = drain(edge)
    assert [await draining.step() for _ in range(3)] == [SELDOM_S] * 3
    assert len(edge.notes) == 1 and edge.notes[0].startswith("1 questions wait: ")
    assert [state for state, *_ in await edge.states()] == ["waiting"]


async def test_a_promise_before_its_row_is_not_taken_for_an_old_one(edge: Edge) -> None:
    kept = promises(edge)
    await kept.promise(b"p" * 16, now=int(edge.clock.now()))
    draining = drain(edge)
    await draining.step()
    assert list(await kept.promised()) == [b"p" * 16]
    edge.clock.ahead += 61
    await draining.step()
    assert await kept.promised() == {}


async def test_answers_and_promises_are_bounded(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.promises._ANSWERS_MAX", 3)
    monkeypatch.setattr("edge_client.promises._QUEUED_MAX", 2)
    kept = promises(edge)
    for number in range(5):
        await kept.keep(bytes([number]) * 16, Kept(1000 + number, "q" * 9999, "é" * (1 << 20)))
    found = await kept.answers()
    assert [one.id[0] for one in found] == [2, 3, 4]
    assert len(found[0].kept.text.encode()) == 900 << 10 and found[0].kept.finish_reason == "length"
    assert len(found[0].kept.question) == 400
    await kept.keep(b"n" * 16, Kept(1004 + 31 * 24 * 3600, "", ""))
    assert [one.id for one in await kept.answers()] == [b"n" * 16], "and old ones go"
    await queue(edge, "one", "two")
    with pytest.raises(BadUse):
        await queue(edge, "three")
    assert len(await edge.states()) == 2


async def test_too_long_leaves_nothing(edge: Edge) -> None:
    with pytest.raises(PromptTooLong):
        await Later(edge.client, promises(edge), 0).request("POST", ROUTE, b"x" * ((1 << 20) + 1))
    assert await edge.states() == [] and await promises(edge).promised() == {}


async def test_models_are_those_of_last_time_when_queueing(edge: Edge) -> None:
    later = Later(edge.client, promises(edge), 0)
    with pytest.raises(BadUse, match="not known yet"):
        await later.models()

    async def listing(call: Call) -> None:
        await call.give(b'{"data": [{"id": "cloud-1"}]}')

    edge.gateway.handle = listing
    assert await edge.client.models() == ["cloud-1"] == await later.models()


def assistant(edge: Edge, chat: FakeChat) -> Assistant:
    return Assistant(
        chat=chat, retrieval=None, relay=edge.client, tracing=edge.tracing, relay_model="m",
        if_reachable=IfReachable(edge.client),
    )


async def ignore(event: object) -> None:
    pass


async def test_without_a_way_the_local_model_answers_and_says_so(edge: Edge) -> None:
    edge.gateway.dead.add(str(ENDPOINT))
    asked = Question((Message("user", HARD),))
    answer = await assistant(edge, FakeChat()).answer(asked, ignore)
    decision = answer.routed.decision
    assert (answer.text, decision.route, decision.rule) == ("Six bar.", "local", "unreached")
    assert decision.reasons[0].startswith("there is no way to the gateway now")
    assert await edge.states() == [], "and nothing is left to be sent later"
    edge.gateway.dead.clear()
    answer = await assistant(edge, FakeChat()).answer(asked, ignore)
    assert answer.routed.decision.route == "relay" and answer.text.startswith("You asked Explain")


async def test_whoever_asks_to_relay_gets_no_local_answer(edge: Edge) -> None:
    edge.gateway.dead.add(str(ENDPOINT))
    with pytest.raises(GaveUp):
        await assistant(edge, FakeChat()).answer(Question((Message("user", HARD),), "relay"), ignore)
    assert [state for state, *_ in await edge.states()] == ["waiting"]


async def test_an_endpoint_that_never_answers_is_waited_for_ten_seconds(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(edge.client, "reach", silent)
    monkeypatch.setattr("edge_client.offline.LOOK_S", 0.0)
    answer = await assistant(edge, FakeChat()).answer(Question((Message("user", HARD),)), ignore)
    assert answer.routed.decision.rule == "unreached"


