"""An event loop in a thread of its own: the main one reads lines, which would stop a loop, and takes Ctrl-C."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["Beside"]

_T = TypeVar("_T")


class Beside:
    """Holds `within` open in that loop for as long as it is entered."""

    def __init__(self, within: AbstractAsyncContextManager[Any]) -> None:
        self._within = within
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="beside", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._loop is None:
            self.__exit__(None, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises what entering or leaving `within` raised."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What it returns or raises. Ctrl-C cancels it and waits for its end, then it is a KeyboardInterrupt."""
        assert self._loop is not None
        ended = threading.Event()

        async def begin() -> "asyncio.Task[_T]":
            task = asyncio.create_task(work)
            task.add_done_callback(lambda task: ended.set())
            return task

        task = asyncio.run_coroutine_threadsafe(begin(), self._loop).result()
        try:
            while not ended.wait(1):  # in pieces: not every system lets Ctrl-C end a wait
                pass
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(task.cancel)
            ended.wait()
            raise
        return task.result()

    def _live(self) -> None:
        try:
            asyncio.run(self._stay())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _stay(self) -> None:
        async with self._within:
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            await self._stop.wait()
