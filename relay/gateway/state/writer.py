"""One writer that commits for many callers at once."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from store.database import Connection, Database

T = TypeVar("T")


class Writer:
    """Runs pieces of work in order; what comes while a transaction is under way shares the next one.

    So one costs a wait for the disk, but a hundred at once do not cost a hundred waits.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Callable[[Connection], Any], asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work` must not raise by itself: it shares its transaction. Committed once this returns. Raises StoreError.

        Cancelling the caller does not stop it.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._task is None:
            self._task = asyncio.create_task(self._write())
        return await done

    async def close(self) -> None:
        """Waits for what is under way."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._commit(batch)
        finally:
            self._task = None

    async def _commit(self, batch: Sequence[tuple[Callable[[Connection], Any], asyncio.Future[Any]]]) -> None:
        try:
            results = await self._database.run(lambda connection: [work(connection) for work, _ in batch])
        except Exception as error:
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
            return
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)
