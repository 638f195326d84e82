"""A call on record: where the pipeline writes its answer, and how readers get it. See `relay.gateway.journal`."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from relay.gateway.pipeline import Refusal
from relay.gateway.state import calls
from relay.gateway.state.calls import Key, Row
from transport.errors import StreamEnded

if TYPE_CHECKING:
    from relay.gateway.journal import Journal

READ_MAX: Final = 64 * 1024
SUPERSEDED: Final = Refusal(409, "superseded", "a newer stream took over this answer")
ACKNOWLEDGED: Final = Refusal(410, "acknowledged", "the device has acknowledged this answer; it is no longer kept")


@dataclass(frozen=True)
class JournalLimits:
    """Per identity: calls that run, those and answers not acknowledged, outcomes on record, answer bytes kept. Per
    call: bytes in memory, bytes written at a time, seconds to wait for room before an answer is cut.
    """

    live: int = 32
    waiting: int = 1_000
    rows: int = 20_000
    kept: int = 16 << 20
    memory: int = 1 << 20
    batch: int = 64 << 10
    pause_s: float = 60.0


class CallRefused(Exception):
    """To a reader: there is no answer, or no more of it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(frozen=True)
class Head:
    status: int
    content_type: str
    streamed: bool


class Pulse:
    """Wakes everyone who waits at this moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def give(self) -> None:
        self._event, event = asyncio.Event(), self._event
        event.set()

    async def wait(self) -> None:
        await self._event.wait()


class Usage:
    """What one identity takes of its limits."""

    def __init__(self, rows: int = 0, waiting: int = 0, kept: int = 0) -> None:
        self.live, self.rows, self.waiting, self.kept = 0, rows, waiting, kept
        self.freed = Pulse()

    def free(self, count: int) -> None:
        self.kept -= count
        self.freed.give()


class Call:
    """One request that was accepted: where its answer is written (a `Sink` of the pipeline), and what came of it."""

    def __init__(self, journal: "Journal", key: Key, row: Row, usage: Usage) -> None:
        """Use `Journal.claim` and `find`."""
        self.key, self.digest, self.generation, self.expires = key, row.digest, row.generation, row.expires
        self.number, self.usage = row.number, usage
        self.length, self.sha256 = row.length, row.sha256
        self.head: Head | None = None
        self.refusal: Refusal | None = None
        self.whole = row.state == "answered"
        self.released = False  # as if it had never come; only those who read it already are told why
        self.trace_id = self.link_id = ""  # of the run that made it, once that is known
        if self.whole:
            self.head = Head(row.status, row.content_type, bool(row.streamed))
        if row.state == "refused":
            self.refusal = Refusal(row.status, row.code, row.message)
        self.task: asyncio.Task[None] | None = None
        self.reader: Reader | None = None
        self.changed = Pulse()
        self._journal = journal
        self.called = False
        self._hash = hashlib.sha256()
        self._memory = bytearray()  # the answer from `_start` on
        self._start = self._stored = row.length  # and up to where it is in the database

    @property
    def over(self) -> bool:
        return self.whole or self.refusal is not None

    @property
    def in_memory(self) -> int:
        """Answer bytes held here."""
        return len(self._memory)

    # --- the pipeline's side ----------------------------------------------------------------------------------------

    async def calling(self) -> None:
        self.called = True

    async def begin(self, status: int, content_type: str, *, streamed: bool) -> None:
        self.head = Head(status, content_type, streamed)
        self.changed.give()

    async def write(self, data: bytes) -> None:
        """Waits while the identity has no room, and with it the reading from the provider. Raises JournalFull after
        `pause_s` of that, StoreError.
        """
        limits = self._journal.limits
        for start in range(0, len(data), limits.batch):
            piece = data[start : start + limits.batch]
            await self._journal.reserve(self.usage, len(piece))
            self._memory += piece
            self._hash.update(piece)
            self.length += len(piece)
            self.changed.give()
            if self.length - self._stored >= limits.batch:
                await self._store()
            self.trim()

    async def end(self) -> None:
        """The answer is whole. On stable storage, with all of its bytes, before any reader hears of it."""
        assert self.head is not None
        head, parts = (self.head.status, self.head.content_type, self.head.streamed), self._unstored()
        length, sha256 = self.length, self._hash.digest()
        if await self._journal.writer.run(
            lambda connection: calls.answered(connection, self.number, parts, head, length, sha256)
        ):
            self.sha256, self.whole, self._stored = sha256, True, length
            self._ended()

    async def refuse(self, refusal: Refusal) -> None:
        """Ends the call without an answer. It is forgotten if nobody can have accepted it, else that is its outcome."""
        if not self.called or (refusal.retryable and self.head is None):
            if await self._journal.writer.run(lambda connection: calls.release(connection, self.number)):
                self.usage.rows -= 1
                self.released = True
                self.give_up(refusal)
        else:
            await self.settle(Refusal(refusal.status, refusal.code, refusal.message))

    # --- inside -----------------------------------------------------------------------------------------------------

    async def settle(self, refusal: Refusal) -> bool:
        """Makes that the outcome, on stable storage; False if there was one already."""
        status, code, message, length = refusal.status, refusal.code, refusal.message, self.length
        won = await self._journal.writer.run(
            lambda connection: calls.refused(connection, self.number, status, code, message, length)
        )
        if won:
            self.give_up(refusal)
        return won

    def give_up(self, refusal: Refusal) -> None:
        """Ends the call in memory alone, with that for its readers."""
        if not self.over:
            self.refusal = refusal
            self._forget()
            self.usage.free(self.length)
            self._ended()

    async def part(self, offset: int) -> bytes:
        """Some bytes from `offset` on, from memory or the database; empty if they are kept no more."""
        if offset >= self._start:
            at = offset - self._start
            return bytes(self._memory[at : at + READ_MAX])
        return (await self._journal.read_part(self.number, offset))[:READ_MAX]

    def trim(self) -> None:
        """Keeps in memory what is nowhere else, and what the reader comes to next if that is not too much."""
        wanted = self._stored if self.reader is None else self.reader.offset
        keep_from = min(self._stored, max(wanted, self.length - self._journal.limits.memory))
        if keep_from > self._start:
            del self._memory[: keep_from - self._start]
            self._start = keep_from

    def erased(self) -> None:
        """Its bytes have gone from the database."""
        self._forget()
        self.changed.give()

    def _forget(self) -> None:
        self._memory.clear()
        self._start = self._stored = self.length

    async def _store(self) -> None:
        parts = self._unstored()
        await self._journal.writer.run(lambda connection: calls.append(connection, self.number, parts))
        self._stored = self.length

    def _unstored(self) -> list[tuple[int, bytes]]:
        data = bytes(self._memory[self._stored - self._start :])
        return [(self._stored, data)] if data else []

    def _ended(self) -> None:
        self.usage.live -= 1
        if not (self.whole and self.length):
            self.usage.waiting -= 1
        self.changed.give()
        self._journal.let_go(self)


class Reader:
    """One stream's place in an answer. The newest reader of a call is its only one; older ones are told so."""

    def __init__(self, call: Call, offset: int) -> None:
        """Use `Journal.read`."""
        self.call, self.offset = call, offset
        self._left = False

    async def head(self) -> Head:
        """Raises CallRefused and StreamEnded, as does `next`."""
        while True:
            self._check()
            if self.call.head is not None:
                return self.call.head
            await self.call.changed.wait()

    async def next(self) -> bytes:
        """The next bytes, at most 64 KiB, as soon as there are any; empty once that was the whole answer."""
        while True:
            self._check()
            if self.offset < self.call.length:
                data = await self.call.part(self.offset)
                self._check()
                if not data:
                    raise CallRefused(ACKNOWLEDGED)
                self.offset += len(data)
                self.call.trim()
                return data
            if self.call.whole:
                return b""
            await self.call.changed.wait()

    def leave(self) -> None:
        """Whoever reads wants no more: `head` or `next` raises, even if it waits now."""
        self._left = True
        self.call.changed.give()

    def close(self) -> None:
        if self.call.reader is self:
            self.call.reader = None
            self.call.trim()
            self.call._journal.let_go(self.call)

    def _check(self) -> None:
        if self._left:
            raise StreamEnded("nobody waits for this answer any more")
        if self.call.reader is not self:
            raise CallRefused(SUPERSEDED)
        if self.call.refusal is not None:
            raise CallRefused(self.call.refusal)
