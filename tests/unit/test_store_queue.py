"""The durable queue: order, one owner a row, outcomes that stay."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.database import Database
from store.errors import StoreConflict, StoreMisuse
from store.queue import Queue
from tests.support.stores import open_store


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_store(tmp_path / "store.db") as database:
        yield database


async def test_a_row_from_arrival_to_outcome(database: Database) -> None:
    queue = Queue(database, "outbox")
    await queue.append(b"a", b"payload", 100, now=10)
    row = await queue.claim(now=20)
    assert row is not None
    assert (row.id, row.payload, row.state, row.attempts) == (b"a", b"payload", "sent", 1)
    assert (row.created_at, row.expires_at, row.settled_at) == (10, 100, None)
    assert await queue.claim(now=20) is None
    assert await queue.settle(b"a", "failed", now=30, note="refused", erase=True)
    assert not await queue.settle(b"a", "done", now=40)
    row = await queue.get(b"a")
    assert row is not None
    assert (row.payload, row.state, row.note, row.settled_at) == (None, "failed", "refused", 30)
    assert await queue.get(b"b") is None


async def test_the_same_id_is_the_same_row(database: Database) -> None:
    queue = Queue(database, "outbox")
    await queue.append(b"a", b"payload", 100)
    await queue.append(b"a", b"payload", 100)
    with pytest.raises(StoreConflict):
        await queue.append(b"a", b"other", 100)
    await queue.settle(b"a", "done", erase=True)
    await queue.append(b"a", b"payload", 100)  # settled stays settled, even without its payload
    with pytest.raises(StoreConflict):
        await queue.append(b"a", b"other", 100)
    assert [(row.id, row.state) for row in await queue.list()] == [(b"a", "done")]
    await Queue(database, "journal").append(b"a", b"other", 100)


async def test_order_and_choice(database: Database) -> None:
    queue = Queue(database, "outbox")
    for id in (b"c", b"a", b"b", b"d"):
        await queue.append(id, id, 100)
    chosen = await queue.claim(now=0, id=b"b")
    assert chosen is not None and chosen.id == b"b"
    assert await queue.claim(now=0, id=b"b") is None
    claimed = await asyncio.gather(*(queue.claim(now=0) for _ in range(5)))
    assert [row and row.id for row in claimed] == [b"c", b"a", b"d", None, None]
    assert await queue.release(b"a") == 1
    assert await queue.release(b"a") == 0
    assert await queue.release() == 3
    assert [row.id for row in await queue.list(["waiting"])] == [b"c", b"a", b"b", b"d"]
    again = await queue.claim(now=0)
    assert again is not None and (again.id, again.attempts) == (b"c", 2)


async def test_expiry(database: Database) -> None:
    queue = Queue(database, "outbox")
    for id, expires_at in ((b"sent", 10), (b"old", 20), (b"new", 30), (b"done", 10)):
        await queue.append(id, id, expires_at)
    await queue.claim(now=0, id=b"sent")
    await queue.settle(b"done", "done")
    claimed = await queue.claim(now=20)
    assert claimed is not None and claimed.id == b"new"  # at its expiry a row is not sent any more
    assert await queue.expire(now=20) == [b"sent", b"old"]
    assert await queue.expire(now=20) == []
    assert [(row.id, row.state, row.payload) for row in await queue.list()] == [
        (b"sent", "expired", None), (b"old", "expired", None), (b"new", "sent", b"new"), (b"done", "done", b"done"),
    ]
    assert await queue.forget(expired_before=31) == 3
    assert [row.id for row in await queue.list()] == [b"new"]


async def test_misuse(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(database, "outbox")
    with pytest.raises(StoreMisuse):
        await queue.settle(b"nobody", "done")
    with pytest.raises(StoreMisuse):
        await queue.settle(b"nobody", "waiting")  # type: ignore[arg-type]
    monkeypatch.setattr("store.queue.MAX_PAYLOAD", 3)
    with pytest.raises(StoreMisuse):
        await queue.append(b"a", b"four", 100)
    assert await queue.list() == []


async def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    with open_store(tmp_path / "again.db") as database:
        queue = Queue(database, "outbox")
        await queue.append(b"a", b"payload", 100)
        await queue.claim(now=0)
    with open_store(tmp_path / "again.db") as database:
        queue = Queue(database, "outbox")
        assert [row.state for row in await queue.list()] == ["sent"]
        assert await queue.release() == 1
        assert await queue.claim(now=0) is not None


async def test_mark_is_kept_with_a_claim_and_replaced_at_will(database: Database) -> None:
    queue = Queue(database, "outbox")
    await queue.append(b"a", b"payload", 100, now=10)
    row = await queue.claim(now=20, mark=b"one")
    assert row is not None and row.mark == b"one"
    await queue.release(b"a")
    row = await queue.claim(now=20)
    assert row is not None and row.mark == b"one"
    await queue.mark(b"a", b"two")
    await queue.mark(b"unknown", b"two")
    row = await queue.get(b"a")
    assert row is not None and row.mark == b"two"


async def test_only_a_settled_row_is_erased(database: Database) -> None:
    queue = Queue(database, "outbox")
    await queue.append(b"a", b"payload", 100, now=10)
    await queue.erase(b"a")
    assert [row.payload for row in await queue.list()] == [b"payload"]
    await queue.settle(b"a", "failed", now=30)
    await queue.erase(b"a")
    assert [(row.state, row.payload) for row in await queue.list()] == [("failed", None)]
