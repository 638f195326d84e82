"""An event loop whose time jumps to the next timer when nothing else is left to do: an hour of link takes seconds.

Time moves in `select` alone, so that what runs takes none, and a run with the same seeds takes the same course. What is
handed to a thread (`to_thread`, the store) is waited for at once, in real time: virtual time stands still meanwhile.
Sockets work within this one process; nothing outside is waited for, since it would answer in another time.
"""

import asyncio
import concurrent.futures
import contextlib
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from transport.errors import LocalMisuse

T = TypeVar("T")

LOOP_START_S: Final = 1_000.0  # what loop.time() begins with
UNIX_START_S: Final = 1_800_000_000.0  # 2027-01-15: what wall() begins with unless told
THREAD_LIMIT_S: Final = 60.0  # real seconds that work in a thread may take


class Deadlock(LocalMisuse):
    """Every task waits for another one: no timer is left, and nothing is ready."""

    code = "deadlock"


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See above. `start` in unix seconds is what `wall()` begins with."""

    def __init__(self, start: float = UNIX_START_S) -> None:
        self._now = LOOP_START_S
        self._start = start
        super().__init__(_Jumping(self._jump))
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="virtual time")

    def time(self) -> float:
        """Seconds; begins with LOOP_START_S, and has nothing to do with the machine's clocks."""
        return self._now

    def wall(self) -> float:
        """Unix seconds in this loop's time, to be given to whatever takes a clock."""
        return self._start + (self._now - LOOP_START_S)

    def run_in_executor(  # type: ignore[override]  # typeshed's parameters are variadic generics
        self, executor: concurrent.futures.Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Waits for `func` before it returns, at most 60 s of real time (LocalMisuse).

        Work that waits for the loop itself would wait for ever, and ends so.
        """
        work = (executor or self._thread).submit(func, *args)
        done: asyncio.Future[T] = self.create_future()
        concurrent.futures.wait((work,), THREAD_LIMIT_S)
        if not work.done():
            raise LocalMisuse("work in a thread does not end", hint="it may wait for the loop, which waits for it")
        self.call_soon(_hand_over, work, done)  # others run in between, as they would in real time
        return done

    def close(self) -> None:
        if not self.is_running():
            self._thread.shutdown(wait=False)
        super().close()

    def _jump(self, seconds: float | None) -> None:
        if seconds is None:
            raise Deadlock(
                "nothing is left to wait for, and the work is not done", hint="every task waits for another one"
            )
        self._now += seconds


class _Jumping(selectors.DefaultSelector):
    """Looks at what is ready now, and lets time pass instead of waiting."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._jump(timeout)
        return ready


def _hand_over(work: concurrent.futures.Future[T], done: asyncio.Future[T]) -> None:
    if done.done():  # cancelled
        return
    if (error := work.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(work.result())


def run(work: Coroutine[Any, Any, T], *, start: float = UNIX_START_S) -> T:
    """Like `asyncio.run`, in virtual time. Raises Deadlock, what `work` raises."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start)) as runner:
        return runner.run(work)


def wall() -> float:
    """Unix seconds of the running virtual loop. Raises LocalMisuse outside of one."""
    loop: asyncio.AbstractEventLoop | None = None
    with contextlib.suppress(RuntimeError):
        loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        raise LocalMisuse("no loop with virtual time runs here")
    return loop.wall()
