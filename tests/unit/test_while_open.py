"""Answers under way when the store is locked: how they end, and that they may still write what they must."""

import asyncio

import pytest

from edge_client.while_open import WhileOpen
from store.errors import StoreLocked
from transport.errors import LinkLost


async def test_locking_ends_what_is_under_way_and_waits_for_its_last_words() -> None:
    open_, began, written = WhileOpen(), asyncio.Event(), list[str]()

    async def answer(name: str) -> None:
        async with open_.under_way():
            try:
                began.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                written.append(name)

    answers = [asyncio.create_task(answer(name)) for name in ("a", "b")]
    await began.wait()
    await asyncio.sleep(0)
    open_.locking()
    await open_.end()
    assert sorted(written) == ["a", "b"]
    for one in answers:
        with pytest.raises(StoreLocked, match="the store is locked") as caught:
            await one
        assert caught.value.hint == "`edge store unlock`"
    await open_.end()


async def test_nothing_begins_after_it() -> None:
    open_ = WhileOpen()
    open_.locking()
    with pytest.raises(StoreLocked):
        async with open_.under_way():
            raise AssertionError("it has begun")


@pytest.mark.parametrize("error", [LinkLost("the session has ended"), TimeoutError()])
async def test_the_end_of_a_session_is_the_locks_only_while_locking(error: Exception) -> None:
    open_ = WhileOpen()
    with pytest.raises(type(error)):
        async with open_.under_way():
            raise error
    with pytest.raises(StoreLocked):
        async with open_.under_way():
            open_.locking()
            raise error


async def test_who_gives_up_waiting_is_not_told_of_a_lock() -> None:
    open_, began = WhileOpen(), asyncio.Event()

    async def answer() -> None:
        async with open_.under_way():
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(answer())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    open_.locking()
    await open_.end()
