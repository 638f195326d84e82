"""Connections to the HTTPS listener, before and while a protocol above reads them: places, TLS, and an end.

Whoever connects holds one of a few places, of which one source has a share, until the connection ends or turns out to
be a hop's tunnel; and it ends after a while unless it is one. So slowness, at any step, wins nobody more than that.
TLS handshakes are done so many times a second, of which one address has a quarter: a hop makes one for each link.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import AuditUnavailable
from relay.places import Places, source_of
from relay.rates import Rate, SourceBuckets, TokenBucket, take_all
from transport.identity.tls import client_refusal

_BACKLOG: Final = 1_024  # connections that the kernel holds until they are accepted
_AT_ONCE: Final = 64  # of them accepted before the loop goes on
_PAUSE_S: Final = 1.0  # where none can be accepted
_HELD_MAX: Final = 65_536  # bytes of further requests that wait while one is answered


@dataclass(frozen=True)
class HttpsLimits:
    """`strangers`: connections that are no tunnel, in all and per source. TLS handshakes begun, in all and per source;
    a burst is what comes in three seconds. Seconds for: the TLS handshake, a request's body, the head of a request (so,
    too, keep-alive), and a connection in all unless it is a tunnel. `clients`: connections of those who ask, in all and
    per identity.
    """

    strangers: int = 256
    per_source: int = 64
    per_second: float = 400.0
    per_second_of_source: float = 100.0
    handshake_s: float = 10.0
    body_s: float = 10.0
    idle_s: float = 10.0
    life_s: float = 30.0
    clients: int = 1_024
    per_client: int = 64


# All strangers come from one address there, and who they are it does not say: what each may do is the proxy's to limit.
BEHIND_A_PROXY: Final = HttpsLimits(per_source=HttpsLimits.strangers)


class Gate:
    """All connections of one listener."""

    def __init__(self, limits: HttpsLimits, refusals: Refusals | None = None) -> None:
        """`refusals` is told whose certificate was refused, and why; the other side learns nothing."""
        self.limits = limits
        self._refusals = refusals
        self.places = Places(limits.strangers, limits.per_source)
        self.kept = Places(limits.clients, limits.per_client)
        self._all = TokenBucket(Rate.of(limits.per_second), 0.0)
        self._sources = SourceBuckets(Rate.of(limits.per_second_of_source), 0.0)
        self.connections: dict[object, Connection] = {}  # by the protocol that reads them
        self.waiting: set[Connection] = set()  # their handshake is not over

    def take_handshake(self, source: str, now: float) -> bool:
        """Whether a TLS handshake may begin for `source`. `now`: seconds by a clock that nobody sets."""
        return take_all(self._sources.of(source, now), self._all, now=now)

    def settled(self, protocol: object) -> None:
        """The connection that `protocol` reads is one of ours and may stay; its place is free again."""
        if (connection := self.connections.get(protocol)) is not None:
            connection.settle()

    def keeps(self, protocol: object, identity: str) -> bool:
        """As `settled`, for a client that has a share of all such connections; False if it has no more of it."""
        connection = self.connections.get(protocol)
        return connection is None or connection.keep(identity)

    def watch(self, protocol: object, lost: Callable[[], None]) -> bool:
        """Calls `lost` if the connection that `protocol` reads is gone, until `unwatch`; False if it is gone already.

        What the client sends meanwhile waits in front of `protocol`: one that has enough requests to do reads no more,
        and would not see its client go.
        """
        if (connection := self.connections.get(protocol)) is not None:
            connection.hold(lost)
        return connection is not None

    def unwatch(self, protocol: object) -> None:
        """Nobody is to be told any more."""
        if (connection := self.connections.get(protocol)) is not None:
            connection.release()

    async def refused(self, source: str, error: OSError) -> None:
        """A handshake failed. Leaves a record if the client had a certificate or spoke an old TLS."""
        refusal = client_refusal(error)
        if refusal is not None and self._refusals is not None:
            with contextlib.suppress(AuditUnavailable):  # the log has said so
                await self._refusals.append("https.refused", reason=refusal.rule, peer=source)

    def close(self) -> None:
        """Ends what is still shaking hands."""
        for connection in list(self.waiting):
            connection.abort()


class Door:
    """Accepts what connects to one socket.

    The sockets are accepted here and given to the loop afterwards: a loop whose server accepts them may read the first
    of a client's bytes before TLS is there to take them.
    """

    def __init__(
        self, gate: Gate, make: Callable[[], asyncio.Protocol], context: Callable[[], ssl.SSLContext | None],
        listening: socket.socket,
    ) -> None:
        """Accepts until `close`. `make` makes the protocol that reads a connection, `context` says by which TLS."""
        self._gate, self._make, self._context, self._socket = gate, make, context, listening
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        self._wait()

    def close(self) -> None:
        """Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _wait(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                raw, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors or no memory left: some connections must end first
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(_PAUSE_S, self._wait)
                return
            raw.setblocking(False)
            Connection(self._gate, self._make, self._context()).begin(raw, str(address[0]))


class Connection(asyncio.Protocol):
    """One accepted socket: takes a place, does the TLS handshake, then passes everything to a protocol of `make`."""

    def __init__(self, gate: Gate, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None) -> None:
        self._gate, self._make, self._context = gate, make, context
        self._transport: asyncio.Transport | None = None
        self._source: str | None = None  # while it holds a place
        self._kept_for: str | None = None  # in whose share it is
        self._end: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._inner: asyncio.Protocol | None = None
        self._lost = False
        self._watching: Callable[[], None] | None = None  # to be told when it is gone
        self._held = bytearray()  # what has come meanwhile
        self._stopped = False  # `_inner` wants no more for now

    def begin(self, raw: socket.socket, host: str) -> None:
        """Owns `raw`, which `host` has connected to, from here on."""
        source, loop = source_of(host), asyncio.get_running_loop()
        if not self._gate.places.take(source):
            raw.close()
            return
        self._source = source
        if self._context is not None and not self._gate.take_handshake(source, loop.time()):
            self.settle()
            raw.close()
            return
        self._end = loop.call_later(self._gate.limits.life_s, self.abort)
        self._gate.waiting.add(self)
        self._opening = loop.create_task(self._open(raw, source))

    def settle(self) -> None:
        """Frees the place and lifts the time limit."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._source is not None:
            self._gate.places.leave(self._source)
            self._source = None

    def keep(self, identity: str) -> bool:
        """Settles it in the share of whoever asks by it first."""
        if self._kept_for is None:
            if self._lost or not self._gate.kept.take(identity):
                return self._lost
            self._kept_for = identity
        self.settle()
        return True

    def hold(self, lost: Callable[[], None]) -> None:
        """See `Gate.watch`."""
        self._watching = lost
        self._stopped = self._transport is not None and not self._transport.is_reading()
        if self._transport is not None:
            self._transport.resume_reading()

    def release(self) -> None:
        """Passes on what has waited."""
        self._watching = None
        if self._stopped and self._transport is not None:
            self._transport.pause_reading()
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            self.data_received(held)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        elif self._opening is not None:
            self._opening.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # libuv's is none by its class
        self._gate.waiting.discard(self)
        inner = self._inner = self._make()
        self._gate.connections[inner] = self
        inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._watching is not None:
            self._held += data
            if len(self._held) > _HELD_MAX:
                self.abort()
        elif self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._watching is not None:
            self._watching()
        self.settle()
        if self._kept_for is not None:
            self._gate.kept.leave(self._kept_for)
            self._kept_for = None
        if self._inner is not None:
            self._gate.connections.pop(self._inner, None)
            self._inner.connection_lost(exc)

    async def _open(self, raw: socket.socket, source: str) -> None:
        limit = None if self._context is None else self._gate.limits.handshake_s
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: self, raw, ssl=self._context, ssl_handshake_timeout=limit
            )
        except OSError as error:  # refused, too slow, or gone; `connection_lost` is not called for these
            if self._transport is None:
                self.settle()
                await self._gate.refused(source, error)
        finally:
            self._gate.waiting.discard(self)
            if self._transport is None:
                self.settle()
                raw.close()
