"""What makes a dropped link harmless: each request is carried out once, and its answer waits until it has arrived.

A request is known by (SPIFFE ID, enrolment, request id). Claiming it is on stable storage before the pipeline runs; the
pipeline then writes into the `Call`, whoever listens. Streams of sessions are readers of the call: the newest is the
only one, and begins where the device says. The answer is on stable storage before its end is told, and stays until the
device acknowledges the whole of it or the request expires; the outcome stays until then in any case.

    claim --> running --> answered --> (acknowledged: bytes gone, outcome kept) --> expired: forgotten
                 |------> refused     by the provider, for want of room, cancelled, interrupted by a restart
                 '------> released    nobody can have accepted it: as if it had never come

What becomes of a running call is decided by its row, in one statement: the first outcome stays, so that a cancellation
that comes too late changes nothing. A running row without a call in memory belongs to a process that is gone.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from relay.gateway.call import Call, JournalLimits, Reader, Usage
from relay.gateway.errors import JournalFull
from relay.gateway.pipeline import Refusal
from relay.gateway.state import calls
from relay.gateway.state.calls import Key, Owner, Row
from relay.gateway.state.writer import Writer
from store.database import Database
from store.errors import StoreError
from transport.errors import ProtocolViolation
from transport.identity.verify import LEEWAY_S
from transport.messages import REQUEST_LIFETIME_MAX_S
from transport.primitives import random_bytes

LATELY: Final = 1_000  # answers of which a note is kept in memory after their end, since they will be acknowledged soon
KEPT_BEYOND_S: Final = 3_600  # a row outlives its request, so that a clock set back within that calls nobody twice
_log = logging.getLogger(__name__)

CONFLICT: Final = Refusal(409, "id_conflict", "this request id was used for another request")
UNKNOWN: Final = Refusal(404, "unknown_request", "nothing is known of this request")
EXPIRED: Final = Refusal(410, "request_expired", "the request is past the time its sender set for it")
FULL: Final = Refusal(
    429, "journal_full", "too many requests of this device run, or too much of their answers waits to be fetched",
    retryable=True,
)
CANCELLED: Final = Refusal(499, "cancelled", "the device cancelled the request")
INTERRUPTED: Final = Refusal(*calls.INTERRUPTED)


class Journal:
    """Owns the tables of 0003_journal.sql. Await `load` before anything else, `close` at the end."""

    def __init__(
        self, database: Database, *, limits: JournalLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.limits = limits or JournalLimits()
        self.writer = Writer(database)
        self._database = database
        self._clock = clock
        self._epoch = b""
        self._usage: dict[Owner, Usage] = {}
        self._calls: dict[Key, Call] = {}  # that run or are being read
        self._lately: dict[Key, Call] = {}  # whole answers that wait in the database, the oldest first
        self._opening: dict[Key, asyncio.Task[Call | None]] = {}

    async def load(self) -> None:
        """Ends what an earlier process left running, as interrupted. Raises StoreError."""
        self._epoch, usage = await self.writer.run(calls.start)
        self._usage = {one.owner: Usage(one.rows, one.waiting, one.kept) for one in usage}

    @property
    def epoch(self) -> bytes:
        """16 random bytes, other ones whenever this journal may have forgotten something."""
        return self._epoch

    @property
    def running(self) -> set[asyncio.Task[None]]:
        """The calls that are under way, whether somebody reads them or not."""
        return {call.task for call in self._calls.values() if call.task is not None and not call.over}

    async def claim(
        self, key: Key, digest: bytes, expires_at: int, run: Callable[[Call], Coroutine[Any, Any, None]]
    ) -> Call | Refusal:
        """The call of a request; if it is a new one, `run` carries it out in a task of its own, once.

        `digest` is of the whole request and binds the id to it; `expires_at` in unix seconds. What is returned is on
        stable storage. Refuses with CONFLICT, EXPIRED or FULL. Raises StoreError: then nobody was called.
        """
        latest = int(self._clock() + REQUEST_LIFETIME_MAX_S + LEEWAY_S)
        call = await self._open(key, lambda: self._claim(key, digest, min(expires_at, latest), run))
        if call is None:
            return FULL
        if call.digest != digest:
            return CONFLICT
        return EXPIRED if self._late(call) else call

    async def find(self, key: Key) -> Call | None:
        """The call of a request that was claimed and has not expired. Raises StoreError."""
        call = await self._open(key, lambda: self._find(key))
        return None if call is None or self._late(call) else call

    def read(self, call: Call, offset: int) -> Reader:
        """A reader of the answer from `offset` on, at most its length; replaces the one there was."""
        if not call.released:
            call = self._calls.setdefault(call.key, call)
        call.reader = Reader(call, offset)
        call.changed.give()
        return call.reader

    async def ack(self, offsets: Mapping[Key, int]) -> None:
        """The device has everything before those offsets for good: whole answers' bytes go, their outcomes stay.

        Cumulative and idempotent; nothing for an unknown request, or where there is no answer. Raises
        ProtocolViolation for one beyond its answer, once the others are seen to.
        """
        beyond, done = False, []
        for key, offset in offsets.items():
            call = await self.find(key)
            if call is None or call.refusal is not None:
                continue
            beyond = beyond or offset > call.length
            if call.whole and offset == call.length:
                done.append(call)
        if done:
            numbers = [call.number for call in done]
            erased = await self.writer.run(lambda connection: calls.erase(connection, numbers))
            for call, had in zip(done, erased, strict=True):
                call.usage.waiting -= had
                call.usage.free(call.length if had else 0)
                call.erased()
                self._lately.pop(call.key, None)
        if beyond:
            raise ProtocolViolation("acknowledgement goes beyond the answer")

    async def cancel(self, key: Key) -> bool:
        """Ends a running call, on stable storage first and then at the provider; False if it was over or unknown."""
        call = await self.find(key)
        if call is None or call.over or not await call.settle(CANCELLED):
            return False
        if call.task is not None:
            call.task.cancel()
        return True

    async def stop(self, enrolment: int, why: Refusal) -> None:
        """Ends what runs of a device, at once for whoever reads it, and then on stable storage. Raises StoreError."""
        running = [call for call in self._calls.values() if call.key.enrolment == enrolment and not call.over]
        for call in running:
            if call.called:
                call.give_up(why)
            if call.task is not None:
                call.task.cancel()
        for call in running:
            await (call.settle(why) if call.called else call.refuse(why))

    async def delete_identity(self, owner: Owner) -> None:
        """Forgets everything of one holder of a name, who is revoked or replaced; its calls end at the provider."""
        opening = [task for key, task in self._opening.items() if key.owner == owner]
        if opening:
            await asyncio.wait(opening)
        for key in [key for key in self._lately if key.owner == owner]:
            del self._lately[key]
        for call in [call for call in self._calls.values() if call.key.owner == owner]:
            call.give_up(UNKNOWN)
            if call.task is not None:
                call.task.cancel()
        await self.writer.run(lambda connection: calls.delete_owner(connection, owner))
        self._usage.pop(owner, None)

    @property
    def owners(self) -> list[Owner]:
        """Everyone of whom something may be on record."""
        return list(self._usage)

    async def sweep(self) -> None:
        """Forgets what has expired. Raises StoreError."""
        before = int(self._clock()) - KEPT_BEYOND_S
        for gone in await self.writer.run(lambda connection: calls.sweep(connection, before)):
            if (usage := self._usage.get(gone.owner)) is not None:
                usage.rows -= gone.rows
                usage.waiting -= gone.waiting
                usage.free(gone.kept)

    async def close(self) -> None:
        """Ends what runs. Its rows stay as they are, and the next process says that it was interrupted."""
        running = self.running
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self.writer.close()

    # --- for calls --------------------------------------------------------------------------------------------------

    async def reserve(self, usage: Usage, count: int) -> None:
        """Counts bytes against an identity's limit. Raises JournalFull if there is no room for `pause_s`."""
        if usage.kept + count > self.limits.kept:
            try:
                async with asyncio.timeout(self.limits.pause_s):
                    while usage.kept + count > self.limits.kept:
                        await usage.freed.wait()
            except TimeoutError:
                raise JournalFull("the answer was cut: too much of this device's answers waits to be fetched") from None
        usage.kept += count

    async def read_part(self, number: int, offset: int) -> bytes:
        return await self._database.run(lambda connection: calls.part(connection, number, offset), read_only=True)

    def let_go(self, call: Call) -> None:
        """Forgets a call in memory once it is over and nobody reads it."""
        if call.over and (call.reader is None or call.released) and self._calls.get(call.key) is call:
            del self._calls[call.key]
            if call.whole and call.length:
                call.trim()
                self._lately[call.key] = call
                if len(self._lately) > LATELY:
                    del self._lately[next(iter(self._lately))]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _late(self, call: Call) -> bool:
        return self._clock() > call.expires + LEEWAY_S

    async def _open(self, key: Key, work: Callable[[], Coroutine[Any, Any, Call | None]]) -> Call | None:
        """One at a time for a key, so that a row is never read between its commit and its call's being here."""
        while (busy := self._opening.get(key)) is not None:
            await asyncio.wait({busy})
        if (call := self._calls.get(key) or self._lately.get(key)) is not None:
            return call
        task = self._opening[key] = asyncio.create_task(work())
        task.add_done_callback(lambda _: self._opened(key))
        return await asyncio.shield(task)  # what has begun is finished, whoever waits for it

    def _opened(self, key: Key) -> None:
        del self._opening[key]

    async def _find(self, key: Key) -> Call | None:
        row = await self._database.run(lambda connection: calls.find(connection, key), read_only=True)
        return None if row is None else self._known(key, row)

    async def _claim(
        self, key: Key, digest: bytes, expires: int, run: Callable[[Call], Coroutine[Any, Any, None]]
    ) -> Call | None:
        usage, limits = self._usage.setdefault(key.owner, Usage()), self.limits
        room = (
            usage.live < limits.live and usage.waiting < limits.waiting and usage.rows < limits.rows
            and usage.kept < limits.kept
        )
        usage.live, usage.waiting, usage.rows = usage.live + room, usage.waiting + room, usage.rows + room
        new = False
        try:
            generation = int.from_bytes(random_bytes(4), "big") >> 1
            row, new = await self.writer.run(
                lambda connection: calls.claim(connection, key, digest, expires, generation, room)
            )
        finally:
            if not new:
                usage.live, usage.waiting, usage.rows = usage.live - room, usage.waiting - room, usage.rows - room
        if row is None:
            return None
        if not new:
            return self._known(key, row)
        call = self._calls[key] = Call(self, key, row, usage)
        call.task = asyncio.create_task(self._run(call, run))
        return call

    def _known(self, key: Key, row: Row) -> Call:
        call = Call(self, key, row, self._usage.setdefault(key.owner, Usage()))
        if row.state == "running":  # and nobody runs it: its outcome could not be written
            call.refusal = INTERRUPTED
        return call

    async def _run(self, call: Call, run: Callable[[Call], Coroutine[Any, Any, None]]) -> None:
        try:
            await run(call)
        except StoreError as error:
            _log.error("an answer could not be journalled: %s", error)
        except Exception as error:  # the text could quote a prompt
            _log.error("a request failed in the gateway: %s", type(error).__name__)
        finally:
            call.give_up(INTERRUPTED)
