"""A Link over the pipe of GATT values: drives a `GattPipe` on what carries them. Shared by central and peripheral."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from transport.errors import CloseReason, LinkLost, ProtocolViolation
from transport.links.base import CLOSE_TIMEOUT_S, RECEIVE_MAX
from transport.links.gatt import GattPipe

QUEUE_HIGH: Final = 16 * 1024  # bytes waiting above which send() waits: half a second of a slow radio, not a minute
_IN_A_HURRY_S: Final = 1.0  # how long a close for a reason waits for the peer's answer


class GattLink:
    """One end, which begins to write with `start`. `take` is given what the carrier brings, `carrier_lost` its end;
    `write` hands it one value, waiting while it has no room, and raises LinkLost; `let_go` gives the carrier back,
    once, and never raises.
    """

    def __init__(
        self, pipe: GattPipe, peer: str, write: Callable[[bytes], Awaitable[None]],
        let_go: Callable[[], Awaitable[None]],
    ) -> None:
        self.peer = peer
        self._pipe, self._write, self._let_go = pipe, write, let_go
        self._failure: LinkLost | None = None
        self._closed = False
        self._ready = asyncio.Event()  # there is something to receive, or never will be
        self._room = asyncio.Event()  # there is room to send, or never will be
        self._output = asyncio.Event()  # there may be a value to write
        self._answered = asyncio.Event()  # the pipe has finished, or failed
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._pump: asyncio.Task[None] | None = None

    @property
    def finished(self) -> bool:
        """Whether both ends have said that they end: the peer need not be told by taking the carrier away."""
        return self._pipe.finished

    def start(self) -> None:
        """The carrier is ready in both directions."""
        if self._failure is None:
            self._pump = self._loop.create_task(self._run())

    def take(self, value: bytes) -> None:
        """A value has come."""
        if self._failure is not None:
            return
        try:
            self._pipe.receive_value(value, self._loop.time())
        except ProtocolViolation as error:
            self._fail(LinkLost(str(error), reason="error"))
            return
        self._moved()

    def carrier_lost(self, error: LinkLost) -> None:
        """Nothing comes or goes any more. An end that the peer has said before counts all the same."""
        self._fail(error)

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), QUEUE_HIGH):
            self._check_sending()
            self._pipe.send(data[start:start + QUEUE_HIGH])
            self._moved()
            while self._pipe.buffered > QUEUE_HIGH // 2:
                self._room.clear()
                await self._room.wait()
                self._check_sending()

    async def receive(self) -> bytes:
        while True:
            self._check_open()
            if data := self._pipe.read(RECEIVE_MAX):
                self._moved()
                return data
            if self._pipe.ended == "done":
                return b""
            if self._pipe.ended is not None:
                raise LinkLost(f"the peer ended the link: {self._pipe.ended}", reason=self._pipe.ended)
            if self._failure is not None:
                raise self._failure
            self._ready.clear()
            await self._ready.wait()

    async def close(self, reason: CloseReason = "done") -> None:
        if self._closed:
            return
        self._closed = True
        self._ready.set()
        self._room.set()
        try:
            if self._failure is None:
                self._pipe.end(reason)
                self._moved()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S if reason == "done" else _IN_A_HURRY_S):
                        await self._answered.wait()
        finally:
            self._fail(LinkLost("the link is closed at this end"))
            await self._let_go()

    async def _run(self) -> None:
        """Writes what the pipe has to say as fast as the carrier takes it."""
        pipe = self._pipe
        try:
            while True:
                self._output.clear()
                while (value := pipe.next_value(self._loop.time())) is not None:
                    if pipe.buffered <= QUEUE_HIGH // 2:
                        self._room.set()
                    await self._write(value)
                self._check_finished()
                self._keep_time()
                await self._output.wait()
        except LinkLost as error:
            self._fail(error)
        except Exception:
            self._fail(LinkLost("the link broke while sending"))
            raise  # a bug of ours: loud, not silent

    def _moved(self) -> None:
        self._output.set()
        self._ready.set()
        if self._pipe.ended is not None:
            self._room.set()
        self._keep_time()
        self._check_finished()

    def _check_finished(self) -> None:
        if self._pipe.finished:
            self._answered.set()

    def _keep_time(self) -> None:
        at = None if self._failure else self._pipe.next_deadline()
        if at is None:
            return
        if self._alarm is not None:
            if at >= self._rings_at:  # an alarm that rings too early is harmless
                return
            self._alarm.cancel()
        self._rings_at = at
        self._alarm = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._failure is not None:
            return
        try:
            self._pipe.handle_time(max(self._loop.time(), self._rings_at))  # a loop may ring a little too early
        except LinkLost as error:
            self._fail(error)
        else:
            self._moved()

    def _fail(self, error: LinkLost) -> None:
        if self._failure is None:
            self._failure = error
        for event in (self._ready, self._room, self._answered):
            event.set()
        if self._alarm is not None:
            self._alarm.cancel()
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkLost("the link is closed at this end")

    def _check_sending(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise self._failure
        if (ended := self._pipe.ended) is not None:
            raise LinkLost("the peer has ended the link", reason="lost" if ended == "done" else ended)
