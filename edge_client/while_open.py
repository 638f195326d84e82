"""Answers that need the open store end when it is locked, with the error that says so."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from edge_client.answering import Answer, Assistant, Deliver, Leaving, Question
from edge_client.router.policy import Decision
from store.errors import StoreLocked
from transport.errors import TransportError

__all__ = ["AssistantWhileOpen", "WhileOpen", "store_is_locked"]

_ENDING_S: Final = 10.0  # for what an answer still writes: which text was made from local-only documents


def store_is_locked() -> StoreLocked:
    return StoreLocked("the store is locked", hint="`edge store unlock`")


class WhileOpen:
    """From unlocking to locking: what is under way in between."""

    def __init__(self) -> None:
        self._locking = False
        self._under_way: set[asyncio.Timeout] = set()
        self._none = asyncio.Event()

    @contextlib.asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Raises StoreLocked if it is ended by locking, also by the end of its session to the gateway."""
        if self._locking:
            raise store_is_locked()
        try:
            async with asyncio.timeout(None) as until:
                self._under_way.add(until)
                try:
                    yield
                finally:
                    self._under_way.discard(until)
                    if not self._under_way:
                        self._none.set()
        except (TimeoutError, TransportError):
            if self._locking:
                raise store_is_locked() from None
            raise

    def locking(self) -> None:
        """Nothing new begins. What is being relayed ends with its session: to cancel it would be for good."""
        self._locking = True

    async def end(self) -> None:
        """Ends what is left, and waits for it, at most 10 s."""
        self._none.clear()
        for until in self._under_way:
            if not until.expired():
                until.reschedule(asyncio.get_running_loop().time())
        if self._under_way:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENDING_S):
                    await self._none.wait()


class AssistantWhileOpen(Assistant):
    """An assistant whose answers end when the store is locked; whoever makes it sets `while_open`."""

    while_open: WhileOpen

    async def answer(
        self, question: Question, deliver: Deliver, leaving: Callable[[Leaving], None] = lambda what: None,
        decided: Callable[[Decision], None] = lambda decision: None,
    ) -> Answer:
        async with self.while_open.under_way():
            return await super().answer(question, deliver, leaving, decided)
