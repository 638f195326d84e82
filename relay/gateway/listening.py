"""Connections to the HTTPS listener, before and while a protocol above reads them: places, TLS, and an end.

Whoever connects holds one of a few places, of which one source has a share, until the connection ends or turns out to
be a hop's tunnel; and it ends after a while unless it is one. So slowness, at any step, wins nobody more than that.
TLS handshakes are done so many times a second, of which one address has a quarter: a hop makes one for each link.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import AuditUnavailable
from relay.places import Places, source_of
from relay.rates import Rate, SourceBuckets, TokenBucket, take_all
from transport.identity.tls import client_refusal


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

    async def lost(self, protocol: object) -> None:
        """Returns once the connection that `protocol` reads is gone."""
        if (connection := self.connections.get(protocol)) is not None:
            await connection.ended.wait()

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


class Connection(asyncio.Protocol):
    """One accepted socket: takes a place, does the TLS handshake, then passes everything to a protocol of `make`."""

    def __init__(self, gate: Gate, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None) -> None:
        self._gate, self._make, self._context = gate, make, context
        self._raw: asyncio.Transport | None = None
        self._source: str | None = None  # while it holds a place
        self._kept_for: str | None = None  # in whose share it is
        self._end: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._inner: asyncio.Protocol | None = None
        self._early = bytearray()  # what came with the last message of the handshake
        self._lost = False
        self.ended = asyncio.Event()

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

    def abort(self) -> None:
        if self._raw is not None:
            self._raw.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._raw = transport
        name = transport.get_extra_info("peername")
        source = source_of(str(name[0])) if isinstance(name, tuple) else "local"
        if not self._gate.places.take(source):
            transport.abort()
            return
        self._source = source
        loop = asyncio.get_running_loop()
        if self._context is not None and not self._gate.take_handshake(source, loop.time()):
            self.settle()
            transport.abort()
            return
        self._end = loop.call_later(self._gate.limits.life_s, self.abort)
        if self._context is None:
            self._open(transport)
            return
        transport.pause_reading()
        self._gate.waiting.add(self)
        self._handshake = loop.create_task(self._shake_hands(transport, self._context))

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            self._early += data
        else:
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
        self.ended.set()
        self.settle()
        if self._kept_for is not None:
            self._gate.kept.leave(self._kept_for)
            self._kept_for = None
        if self._inner is not None:
            self._gate.connections.pop(self._inner, None)
            self._inner.connection_lost(exc)

    async def _shake_hands(self, raw: asyncio.Transport, context: ssl.SSLContext) -> None:
        limit = self._gate.limits.handshake_s
        failure: OSError | None = None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                raw, self, context, server_side=True, ssl_handshake_timeout=limit
            )
        except OSError as error:  # refused, too slow, or gone; `connection_lost` is not called for these
            transport, failure = None, error
        finally:
            self._gate.waiting.discard(self)
        if transport is None or self._lost:
            source = self._source
            raw.abort()
            self.settle()
            if failure is not None and source is not None:
                await self._gate.refused(source, failure)
        else:
            self._open(transport)

    def _open(self, transport: asyncio.Transport) -> None:
        inner = self._inner = self._make()
        self._gate.connections[inner] = self
        inner.connection_made(transport)
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            inner.data_received(early)
