"""Time that passes only when nothing else is left to do."""

import asyncio
import socket
import threading
import time
from pathlib import Path

import pytest

from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.queue import Queue
from transport.errors import LocalMisuse
from transport.links import virtual_time
from transport.links.virtual_time import LOOP_START_S, UNIX_START_S, Deadlock


def test_a_day_passes_at_once_and_exactly() -> None:
    async def work() -> tuple[float, float]:
        await asyncio.sleep(86_400.0)
        return asyncio.get_running_loop().time(), virtual_time.wall()

    begun = time.process_time()
    ended, wall = virtual_time.run(work())
    assert ended == LOOP_START_S + 86_400.0
    assert wall == UNIX_START_S + 86_400.0
    assert time.process_time() - begun < 5.0


def test_the_wall_clock_begins_where_it_is_told_to() -> None:
    async def work() -> float:
        return virtual_time.wall()

    assert virtual_time.run(work(), start=12_345.0) == 12_345.0


def test_what_runs_takes_no_time_and_timers_keep_their_order() -> None:
    seen: list[tuple[str, float]] = []

    async def after(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for _ in range(1_000):
            await asyncio.sleep(0)
        seen.append((name, asyncio.get_running_loop().time() - LOOP_START_S))

    async def work() -> None:
        await asyncio.gather(after("late", 3.0), after("early", 1.0), after("between", 1.5))

    virtual_time.run(work())
    assert seen == [("early", 1.0), ("between", 1.5), ("late", 3.0)]


def test_a_timeout_strikes_at_its_time() -> None:
    async def work() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30.0):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(work()) == LOOP_START_S + 30.0


def test_a_deadlock_is_an_error_and_not_a_hang() -> None:
    tidied = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tidied.append(True)

    with pytest.raises(Deadlock) as raised:
        virtual_time.run(work())
    assert raised.value.hint and tidied == [True]


def test_work_in_a_thread_takes_no_virtual_time() -> None:
    async def work() -> tuple[float, int]:
        alarm = asyncio.get_running_loop().call_later(0.5, lambda: None)
        thread = await asyncio.to_thread(threading.get_ident)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        with pytest.raises(TimeoutError):  # its own, not that of the wait for it
            await asyncio.to_thread(_raise_timeout)
        alarm.cancel()
        return asyncio.get_running_loop().time(), thread

    now, thread = virtual_time.run(work())
    assert now == LOOP_START_S
    assert thread != threading.get_ident()


def test_others_run_while_a_thread_works() -> None:
    seen: list[str] = []

    async def other() -> None:
        seen.append("other")

    async def work() -> None:
        task = asyncio.create_task(other())
        await asyncio.to_thread(lambda: None)
        seen.append("back")
        await task

    virtual_time.run(work())
    assert seen == ["other", "back"]


def _raise_timeout() -> None:
    raise TimeoutError


def test_work_in_a_thread_that_waits_for_the_loop_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_time, "THREAD_LIMIT_S", 0.01)
    never = threading.Event()

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.0, never.set)
        await asyncio.to_thread(never.wait)

    try:
        with pytest.raises(LocalMisuse, match="does not end"):
            virtual_time.run(work())
    finally:
        never.set()


def test_the_store_is_waited_for_while_time_stands_still(tmp_path: Path) -> None:
    async def work() -> float:
        with Database.open(tmp_path / "x.db", DatabaseKey.generate(), schema=STORE_SCHEMA) as database:
            queue = Queue(database, "outbox")
            ticking = asyncio.get_running_loop().call_later(3_600.0, lambda: None)
            await queue.append(b"1" * 16, b"payload", 2_000_000_000, now=1)
            row = await queue.get(b"1" * 16)
            assert row is not None and row.payload == b"payload"
            ticking.cancel()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(work()) == LOOP_START_S


def test_sockets_within_the_process_work() -> None:
    async def work() -> tuple[bytes, float]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        _, other = await asyncio.open_connection(sock=theirs)
        other.write(b"over a socket")
        data = await reader.read(100)
        writer.close()
        other.close()
        await asyncio.gather(writer.wait_closed(), other.wait_closed())
        return data, asyncio.get_running_loop().time()

    assert virtual_time.run(work()) == (b"over a socket", LOOP_START_S)


def test_there_is_no_virtual_wall_clock_in_real_time() -> None:
    with pytest.raises(LocalMisuse):
        virtual_time.wall()

    async def work() -> None:
        virtual_time.wall()

    with pytest.raises(LocalMisuse):
        asyncio.run(work())
