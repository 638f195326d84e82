"""The asyncio driver of a connection over a link: a reader, a writer at times, one alarm, no protocol of its own.

The writer owns the back-pressure; both only move bytes between the link and the sans-IO `connection`, which is touched
from this one event loop alone. The alarm rings at the connection's deadlines, ten times a second where it keeps ticks,
so it interrupts neither.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from transport.connection import Event, PeerClosed, Phase, SignatureNeeded
from transport.errors import LinkLost, TransportError
from transport.initiator import EdgeConnection
from transport.links.base import Link
from transport.primitives import Signer
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
    """Runs a connection until it ends. `failure` holds why, None after an orderly close.

    An idle session has one task, the reader; a writer lives as long as there is something to send.
    """

    __slots__ = (
        "_alarm", "_aside", "_error", "_flushed", "_joining_key", "_key", "_link", "_muted", "_reader", "_rings_at",
        "_stopped",
        "_writer", "clock", "connection", "failure", "on_event",
    )

    def __init__(
        self, link: Link, connection: EdgeConnection | GatewayConnection, key: Signer | None, clock: Clock,
        joining_key: Signer | None = None,
    ) -> None:
        self._link, self._key, self._joining_key, self.clock = link, key, joining_key or key, clock
        self.connection = connection
        self.failure: TransportError | None = None
        self.on_event: Callable[[Event], None] = lambda event: None
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._aside: asyncio.Task[None] | None = None
        self._flushed: asyncio.Event | None = None  # while a congested reader waits for the writer
        self._error: Exception | None = None
        self._stopped = False  # nothing more is read
        self._muted = False  # nothing more is sent
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = 0.0  # the alarm, by `clock`

    def start(self) -> None:
        self._reader = asyncio.create_task(self._run())

    async def ended(self) -> None:
        """Waits until it has ended, after `start`; the link is closed by then."""
        if self._reader is not None:
            await asyncio.wait({self._reader})

    def wake(self) -> None:
        """To be called after anything that may have made output, or moved the deadline."""
        if self._writer is None and self._reader is not None and not self._muted:
            self._writer = asyncio.create_task(self._write())
        self._keep_time()

    def _keep_time(self) -> None:
        deadline = self.connection.next_deadline()
        if deadline is None or self._stopped:
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
            self._stop(error)
        self.dispatch()  # what waited for a tick, a ping, or a last close; and the next alarm

    async def close(self, code: str) -> None:
        """Says `close` to the peer, gives that two seconds to leave, and gives the link back."""
        self.connection.close(code, self.clock())
        self.wake()
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=FLUSH_S)
            self._reader.cancel()
            await asyncio.wait({self._reader})

    def _stop(self, error: Exception | None) -> None:
        """Ends the reader from outside of it. The first reason counts."""
        if not self._stopped and self._reader is not None:
            self._stopped, self._error = True, error
            self._reader.cancel()

    async def _run(self) -> None:
        self.wake()
        try:
            await self._read()
            self.wake()
            if self._writer is not None:
                await asyncio.wait({self._writer}, timeout=FLUSH_S)  # what a closing connection still has to say
        finally:
            self._stopped = self._muted = True
            if self._alarm is not None:
                self._alarm.cancel()
            for task in (self._writer, self._aside):
                if task is not None:
                    task.cancel()
                    await asyncio.wait({task})
            if isinstance(self._error, TransportError):
                self.failure = self._error
            with contextlib.suppress(LinkLost):
                self.connection.receive_eof()  # the link may have failed without the connection knowing
            await self._link.close()
            self.on_event(PeerClosed("link"))
        if self._error is not None and self.failure is None:
            raise self._error  # a bug of ours: loud, not silent

    async def _read(self) -> None:
        try:
            while self.connection.phase is not Phase.CLOSED:
                if self.connection.congested:
                    self._flushed = asyncio.Event()
                    await self._flushed.wait()
                    self._flushed = None
                else:
                    await self._read_some()
        except asyncio.CancelledError:
            if not self._stopped:
                raise
        except Exception as error:
            self._error = error
        self._stopped = True

    async def _read_some(self) -> None:
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
            self.dispatch()

    def dispatch(self) -> None:
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, SignatureNeeded) and (key := self._joining_key if event.joining else self._key):
                if key.slow:
                    self.aside(partial(key.sign, event.message), self.connection.signed)
                else:
                    self.connection.signed(key.sign(event.message), self.clock())
            else:
                self.on_event(event)
        self.wake()

    def aside(self, work: Callable[[], bytes], then: Callable[[bytes, float], None]) -> None:
        """Does slow work in a thread, one at a time; `then` has its result and the time, unless all is over by then.

        A TransportError of the work is why the connection ends.
        """
        self._aside = asyncio.create_task(self._do_aside(work, then))

    async def _do_aside(self, work: Callable[[], bytes], then: Callable[[bytes, float], None]) -> None:
        try:
            done = await asyncio.to_thread(work)
        except Exception as error:
            self._stop(error)
            return
        if self.connection.phase is not Phase.CLOSED:
            then(done, self.clock())
            self.dispatch()

    async def _write(self) -> None:
        try:
            while data := self._output():
                async with asyncio.timeout(SEND_STALL_S):
                    await self._link.send(data)
                if self._flushed is not None:
                    self._flushed.set()
            if self.connection.phase is Phase.CLOSED:
                self._stop(None)
        except TimeoutError:
            self._muted = True
            self._stop(LinkLost("the peer takes nothing from this link any more"))
        except Exception as error:
            self._muted = True
            self._stop(error)
        finally:
            self._writer = None

    def _output(self) -> bytes:
        data = self.connection.data_to_send(self.clock())
        self._keep_time()  # something may wait for the next tick now
        while (event := self.connection.next_event()) is not None:
            self.on_event(event)
        return data
