"""Locking and unlocking one `App`: sessions and the queue end with the key, and go on with it."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.answering import Question, Routed
from edge_client.app import App
from edge_client.config import Config, RelaySettings
from edge_client.dialing import Dialer
from edge_client.engine.base import Message, Text
from edge_client.engine.llama import LlamaChat
from edge_client.errors import NoPassphrase, NoStore
from edge_client.sessions import Clock
from edge_client.while_open import store_is_locked
from store.errors import StoreBusy, StoreLocked, StoreMisuse, WrongKey
from store.keys import DatabaseKey, Passphrase, create_key, unlock_key
from tests.support.ca import Ca
from tests.support.edge_lab import join_gateway, until
from tests.support.fake_engine import FakeChat, FakeEmbedder, sse
from tests.support.fake_gateway import Call, FakeGateway
from transport.links.base import Endpoint, Link

PASSPHRASE = "correct horse"
CHAT = App.chat  # the real one


async def nobody_asks(call: Call) -> None:
    raise AssertionError("nothing is asked")


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeGateway]:
    made = FakeGateway(Ca(), nobody_asks)

    async def dial(self: Dialer, endpoint: Endpoint) -> Link:
        return await made.dial(endpoint)

    monkeypatch.setattr(Dialer, "__call__", dial)
    monkeypatch.setattr("edge_client.app.given", lambda: False)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


def ask(*, new: bool) -> Passphrase:
    assert not new
    return Passphrase(PASSPHRASE)


@pytest.fixture
async def edge(tmp_path: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[App]:
    """As `edge serve` opens it, joined."""
    create_key(tmp_path / "store.key", Passphrase(PASSPHRASE))
    embedder = FakeEmbedder()
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": FakeChat(endless=True))
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)
    config, told = Config(tmp_path, relay=RelaySettings(model="m")), list[str]()
    async with asyncio.timeout(120), App.open(
        config, store="if present", ask=ask, tell=told.append, serving=True
    ) as app:
        app.told = told  # type: ignore[attr-defined]
        await join_gateway(app.settings, gateway)
        yield app


def key_of(app: App) -> DatabaseKey:
    return unlock_key(app.config.key_path, Passphrase(PASSPHRASE))


def question(text: str, flag: str | None = None) -> Question:
    return Question((Message("user", text),), flag)  # type: ignore[arg-type]


async def test_a_relayed_answer_ends_with_its_session_and_can_be_taken_up(edge: App, gateway: FakeGateway) -> None:
    events, pieces, going_on = sse("It ", "stands."), list[str](), asyncio.Event()

    async def slowly(call: Call) -> None:
        await call.begin(200, "text/event-stream")
        await call.write(events[0])
        await going_on.wait()
        for part in events[1:]:
            await call.write(part)
        await call.end()

    async def deliver(event: Routed | Text) -> None:
        if isinstance(event, Text):
            pieces.append(event.text)

    gateway.handle = slowly
    assistant = await edge.assistant()
    asking = asyncio.create_task(assistant.answer(question("hello", "relay"), deliver))
    await until(lambda: pieces)
    session = edge.client._sessions.current
    assert session is not None and session.alive
    assert await edge.lock() is True
    with pytest.raises(StoreLocked):
        await asking
    assert not session.alive and edge.key is None and edge.store == "locked"
    with pytest.raises(StoreLocked):
        await assistant.answer(question("hello", "relay"), deliver)
    assert await edge.lock() is False
    await edge.unlock(key_of(edge))
    (row,) = await edge.outbox.unsettled()
    assert row.state == "sent", "locking did not cancel it at the gateway"
    going_on.set()
    answer = await edge.client.take_up(row.id)
    assert b"".join([chunk async for chunk in answer.chunks()]) == b"".join(events)
    assert edge.told == ["the store is locked", "the store is open"]  # type: ignore[attr-defined]


async def test_the_queue_stands_still_while_it_is_locked_and_goes_on_after(edge: App, gateway: FakeGateway) -> None:
    async def echo(call: Call) -> None:
        asked = json.loads(call.body)["messages"][-1]["content"]
        await call.begin(200, "text/event-stream")
        for part in sse("You asked ", asked):
            await call.write(part)
        await call.end()

    gateway.handle = echo
    edge.drain()
    draining = edge._drain
    assert draining is not None
    await edge.lock()
    assert draining._task is not None and draining._task.done() and edge._drain is None
    await edge.unlock(key_of(edge))
    assert edge._drain is not None and edge._drain is not draining
    with pytest.raises(Exception, match="queued as"):
        await (await edge.assistant(later=True)).answer(question("one", "relay"), ignore)
    await edge.lock()
    await edge.unlock(key_of(edge))  # looks at once
    async with asyncio.timeout(60):
        while not (found := await edge.promises.answers()):  # noqa: ASYNC110 - the store has no event
            await asyncio.sleep(0)
    assert found[0].kept.text == "You asked one"


async def ignore(event: object) -> None:
    pass


async def test_an_error_of_the_store_does_not_keep_a_drain_from_ending(edge: App) -> None:
    """A row that cannot be written while everything ends is no reason to wait a minute."""

    class Slow(Clock):
        async def sleep(self, seconds: float) -> None:
            raise AssertionError("it waits")

    edge.drain()
    drain = edge._drain
    assert drain is not None and drain._task is not None
    drain._task.cancel()
    await asyncio.wait({drain._task})

    async def step() -> float:
        drain._stopping = True
        raise StoreBusy("another process is writing")

    drain.step, drain._clock = step, Slow()  # type: ignore[method-assign]
    await drain._run()


async def test_nothing_holds_the_key_any_more(edge: App) -> None:
    value = key_of(edge).expose()

    def held() -> int:
        gc.collect()
        return sum(type(one) is DatabaseKey and one.expose() == value for one in gc.get_objects())

    assert held() == 1, "the control: what commands beside it are given"
    await edge.lock()
    assert held() == 0
    await edge.unlock(key_of(edge))
    assert held() == 1
    await edge.lock()
    assert held() == 0


async def test_what_models_were_read_leaves_memory_with_them(edge: App, monkeypatch: pytest.MonkeyPatch) -> None:
    unloaded: list[str] = []

    async def unload(chat: LlamaChat) -> None:
        unloaded.append(chat.name)

    monkeypatch.setattr(LlamaChat, "unload", unload)
    CHAT(edge)
    CHAT(edge, Path("other.gguf"), name="other")
    await edge.lock()
    await until(lambda: unloaded == ["local", "other"])


async def test_a_key_of_another_store_leaves_it_locked(edge: App) -> None:
    await edge.lock()
    with pytest.raises(WrongKey):
        await edge.unlock(DatabaseKey(bytes(48)))
    assert edge.store == "locked" and edge.key is None
    for needs in ("documents", "outbox", "promises", "settings", "client", "dial"):
        with pytest.raises(StoreLocked):
            getattr(edge, needs)
    for asks in (edge.relay, edge.assistant):
        with pytest.raises(StoreLocked):
            await asks()
    edge.drain()
    assert edge._drain is None, "until it is open"


async def test_who_still_had_the_database_is_told_why(edge: App) -> None:
    documents, database = edge.documents, edge.database
    await edge.lock()
    with pytest.raises(StoreLocked):
        await documents.count()
    database.close()
    with pytest.raises(StoreLocked):
        database.run_sync(lambda connection: None)
    assert str(store_is_locked()) == "the store is locked"


async def test_only_serve_keeps_a_key_or_begins_locked(tmp_path: Path, gateway: FakeGateway) -> None:
    def nobody(*, new: bool) -> Passphrase:
        raise NoPassphrase("nobody is there")

    told: list[str] = []
    async with App.open(Config(tmp_path), store="if present", ask=nobody, serving=True) as app:
        assert app.store == "none" and not await app.lock()
        with pytest.raises(NoStore):
            await app.unlock(DatabaseKey(bytes(48)))
    create_key(tmp_path / "store.key", Passphrase(PASSPHRASE))
    with pytest.raises(NoPassphrase):
        App.open(Config(tmp_path), store="if present", ask=nobody)
    async with App.open(Config(tmp_path), store="if present", ask=nobody, tell=told.append, serving=True) as app:
        assert app.store == "locked" and told == [
            "the store is locked (nobody is there); `edge store unlock` opens it"
        ]
    async with App.open(Config(tmp_path), store="if present", ask=ask) as app:
        assert app.store == "open" and app.key is None
    async with App.open(Config(tmp_path), store="none", ask=nobody, serving=True) as app:
        assert app.store == "none"
        with pytest.raises(NoStore):
            await app.unlock(key_of(app))
    with pytest.raises(StoreMisuse, match="closed"):
        app_closed = App.open(Config(tmp_path), store="if present", ask=ask)
        async with app_closed:
            pass
        await app_closed.documents.count()
