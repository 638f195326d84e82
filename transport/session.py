"""The asyncio driver of a connection over a link: one reader, one writer, one alarm, no protocol of its own.

The writer owns the back-pressure; both only move bytes between the link and the sans-IO `connection`, which is touched
from this one event loop alone. The alarm rings at the connection's deadlines, ten times a second where it keeps ticks,
so it interrupts neither.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, Protocol

from transport.connection import Event, PeerClosed, Phase, SignatureNeeded
from transport.errors import LinkLost, TransportError
from transport.initiator import EdgeConnection
from transport.links.base import Link
from transport.primitives import SigningKey
from transport.responder import GatewayConnection

FLUSH_S: Final = 2.0  # for what a closing connection still has to say
SEND_STALL_S: Final = 60.0  # one burst of at most 64 KiB takes no longer, or the link has failed


class Clock(Protocol):
    def __call__(self) -> float: ...


def session_clock() -> Clock:
    """Unix seconds that run on through suspension and never jump: the wall clock at the start, the boot clock since."""
    wall, boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: wall + time.clock_gettime(time.CLOCK_BOOTTIME) - boot


class Driver:
    """Runs a connection until it ends. `failure` holds why, None after an orderly close."""

    def __init__(
        self, link: Link, connection: EdgeConnection | GatewayConnection, key: SigningKey | None, clock: Clock
    ) -> None:
        self._link, self._key, self.clock = link, key, clock
        self.connection = connection
        self.failure: TransportError | None = None
        self.ended = asyncio.Event()
        self.on_event: Callable[[Event], None] = lambda event: None
        self._output = asyncio.Event()
        self._output.set()
        self._flushed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = 0.0  # the alarm, by `clock`
        self._overdue: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """To be called after anything that may have made output, or moved the deadline."""
        self._output.set()
        self._keep_time()

    def _keep_time(self) -> None:
        deadline = self.connection.next_deadline()
        if deadline is None or self._overdue.done():
            return
        if self._alarm is not None:
            if deadline >= self._rings_at:  # an alarm that rings too early is harmless
                return
            self._alarm.cancel()
        self._rings_at = deadline
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, deadline - self.clock()), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        try:
            self.connection.handle_time(self.clock())
        except TransportError as error:
            self._overdue.set_exception(error)
        self.dispatch()  # what waited for a tick, a ping, or a last close; and the next alarm

    async def close(self, code: str) -> None:
        """Says `close` to the peer, gives that two seconds to leave, and gives the link back."""
        self.connection.close(code, self.clock())
        self.wake()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=FLUSH_S)
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        self.wake()
        try:
            await asyncio.wait({reader, writer, self._overdue}, return_when=asyncio.FIRST_COMPLETED)
            self.wake()
            await asyncio.wait({writer}, timeout=FLUSH_S)  # what a closing connection still has to say
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            for task in (reader, writer, self._overdue):
                task.cancel()
            results = await asyncio.gather(reader, writer, self._overdue, return_exceptions=True)
            self.failure = next((error for error in results if isinstance(error, TransportError)), None)
            with contextlib.suppress(LinkLost):
                self.connection.receive_eof()  # the link may have failed without the connection knowing
            await self._link.close()
            self.ended.set()
            self.on_event(PeerClosed("link"))
        for error in results:
            if isinstance(error, Exception) and not isinstance(error, TransportError):
                raise error  # a bug of ours: loud, not silent

    async def _read(self) -> None:
        while self.connection.phase is not Phase.CLOSED:
            if self.connection.congested:
                self._flushed.clear()
                await self._flushed.wait()
                continue
            try:
                data = await self._link.receive()
            except LinkLost:
                with contextlib.suppress(LinkLost):
                    self.connection.receive_eof()  # from here on nobody takes the session for alive
                raise
            try:
                if data:
                    self.connection.receive_data(data, self.clock())
                else:
                    self.connection.receive_eof()
            finally:
                del data  # an idle session does not keep what it read last
                self.dispatch()

    def dispatch(self) -> None:
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, SignatureNeeded) and self._key is not None:
                self.connection.signed(self._key.sign(event.message), self.clock())
            else:
                self.on_event(event)
        self.wake()

    async def _write(self) -> None:
        while True:
            self._output.clear()
            data = self.connection.data_to_send(self.clock())
            self._keep_time()  # something may wait for the next tick now
            while (event := self.connection.next_event()) is not None:
                self.on_event(event)
            if data:
                try:
                    async with asyncio.timeout(SEND_STALL_S):
                        await self._link.send(data)
                except TimeoutError:
                    raise LinkLost("the peer takes nothing from this link any more") from None
                self._flushed.set()
            elif self.connection.phase is Phase.CLOSED:
                return
            else:
                await self._output.wait()
