"""One connection to a provider, and the answers that come by it: HTTP/1.1, read by llhttp, framed strictly.

What an answer may look like is less than RFC 9112 lets a client take (`docs/adr/0030-own-http-client.md`). A connection
is used again only if the answer was read to its end, ended exactly with the last byte that came, and the request was
written whole.
"""

import asyncio
import math
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools

from relay.gateway.errors import ProviderFailure
from relay.gateway.upstream.base import Timeouts
from relay.gateway.upstream.formats import garbled

_LOOK_AFTER_S: Final = 1.0  # a connection idle for so long is looked at before it is written to
_FRAMING_MAX: Final = 65_536  # bytes of chunk sizes, extensions and trailers beyond four times what they frame
_PIECE: Final = 48  # bytes of memory that a piece takes beside what it holds
_CHUNKED: Final = -1
_UNTIL_EOF: Final = -2


@dataclass(frozen=True)
class Limits:
    """Connections; bytes and fields of an answer's head, informational ones included; seconds that a connection is kept
    for the next request; bytes of an answer that are read ahead of its reader, or a little more.
    """

    connections: int = 100
    head: int = 32_768
    fields: int = 128
    keep_s: float = 15.0
    ahead: int = 65_536


def unreachable() -> ProviderFailure:
    return ProviderFailure("the provider cannot be reached", kind="provider_unreachable", status=502, again=True)


def unreached() -> ProviderFailure:
    return ProviderFailure(
        "the provider could not be reached in time", kind="provider_timeout", status=504, again=True
    )


def timed_out() -> ProviderFailure:
    """The request may have been accepted."""
    return ProviderFailure("the provider did not answer in time", kind="provider_timeout", status=504)


def too_large() -> ProviderFailure:
    return ProviderFailure("the provider's answer is too large", kind="provider_garbled", status=502, well=True)


class Garbage(Exception):
    """What came is no answer."""


class Pool(Protocol):
    """Whose a connection is."""

    timeouts: Timeouts
    limits: Limits

    def made(self, connection: "Connection") -> None: ...
    def back(self, connection: "Connection") -> None: ...
    def lost(self, connection: "Connection") -> None: ...
    def watch(self, by: float) -> None: ...


class Response:
    """An answer, from its head on. Whoever has it closes it."""

    def __init__(self, connection: "Connection", first_byte_by: float) -> None:
        self.status = 0
        self.fields: dict[bytes, bytes] = {}  # names in lower case
        self.unframed = False  # ends where the connection does, so that nobody sees a cut
        self._connection: Connection | None = connection  # until its last byte
        self._first_byte_by = first_byte_by
        self._held: list[bytes] = []
        self._size = 0
        self._failure: Callable[[], ProviderFailure] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: str) -> str:
        """By its name in lower case; "" if there is none, joined by commas if there are several."""
        return self.fields.get(name.encode(), b"").decode("latin-1")

    @property
    def content_type(self) -> str:
        """The media type alone, in lower case; "" if there is none."""
        return self.header("content-type").partition(";")[0].strip().lower()

    async def chunk(self, within: float | None = None) -> bytes:
        """What has come since the last time; b"" at the end. Waits at most `within` seconds (default: `idle`, and for
        the first piece what is left of `first_byte`, if that is more). Raises ProviderFailure.
        """
        while not self._held:
            if (connection := self._connection) is None:
                if self._failure is not None:
                    raise self._failure()
                return b""
            by = connection.loop.time() + (connection.idle_s if within is None else within)
            await self._wait(connection, max(by, self._first_byte_by) if within is None else by)
        self._first_byte_by = 0.0
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        self._size = 0
        if self._connection is not None:
            self._connection.go_on()
        return data

    async def read(self, limit: int) -> bytes:
        """The whole body of at most `limit` bytes. Raises ProviderFailure, also where a cut would not be seen."""
        if self.unframed:
            raise garbled()
        parts, size = [], 0
        while data := await self.chunk():
            parts.append(data)
            size += len(data)
            if size > limit:
                raise too_large()
        return b"".join(parts)

    def close(self) -> None:
        """Ends it; what has not been read to its end takes its connection with it."""
        self._held.clear()
        if self._connection is not None:
            self._connection.fail(garbled)

    async def head(self) -> None:
        """Waits until the head is there. Raises ProviderFailure."""
        while self._connection is not None and not self.status:
            await self._wait(self._connection, self._first_byte_by)
        if not self.status:
            raise garbled() if self._failure is None else self._failure()

    def take(self, data: bytes) -> int:
        """A piece of the body has come; how much waits for the reader, in bytes of memory."""
        if data:
            self._held.append(data)
            self._size += len(data) + _PIECE
            self.wake()
        return self._size

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, failure: Callable[[], ProviderFailure] | None = None) -> None:
        """Nothing more will come."""
        self._connection, self._failure = None, failure
        self.wake()

    async def _wait(self, connection: "Connection", by: float) -> None:
        self._waiter = connection.loop.create_future()
        connection.watch(by)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._connection is connection:
                connection.deadline = math.inf  # nobody waits; a slow reader is not the provider's fault


class Connection(asyncio.Protocol):
    """Asked one thing at a time."""

    def __init__(self, pool: Pool) -> None:
        self.loop = asyncio.get_running_loop()
        self.deadline = math.inf
        self.idle_s = pool.timeouts.idle
        self.placed = True  # it holds a place in the pool
        self._pool, self._limits = pool, pool.limits
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._paused = False
        self._early = b""  # of a head that is not there yet
        self._headed = self._ended = self._kept = False
        self._heads = self._count = self._left = self._framing = 0
        self._tail = b""
        self._idle_since: float | None = None

    # --- for the pool and the answer --------------------------------------------------------------------------------

    def ask(self, data: bytes, by: float) -> Response | None:
        """Writes a request. None if nothing was written, since the connection has ended."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._said_something():
            self.drop()
            return None
        self._heads = self._count = self._framing = 0
        self._headed = self._ended = self._kept = False
        self._early = self._tail = b""
        response = self._response = Response(self, by)
        transport.write(data)
        return response

    @property
    def used(self) -> bool:
        """Whether it has brought an answer."""
        return self._idle_since is not None

    def rest(self) -> None:
        """Waits for its next request."""
        self._idle_since = self.loop.time()
        self.watch(self._idle_since + self._limits.keep_s)

    def watch(self, by: float) -> None:
        self.deadline = by
        self._pool.watch(by)

    def expire(self) -> None:
        self.fail(timed_out)

    def go_on(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def fail(self, failure: Callable[[], ProviderFailure]) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.end(failure)
        self.drop()

    def drop(self) -> None:
        self._parser = None
        if self._transport is not None:
            self._transport.abort()

    def _said_something(self) -> bool:
        """Whether a connection that has been idle for a while has an end, or a word, that the loop has not seen yet."""
        assert self._transport is not None
        if self._idle_since is None or self.loop.time() - self._idle_since < _LOOK_AFTER_S:
            return False
        look = select.poll()
        look.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(look.poll(0))

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not so by its class, of other event loops and for TLS
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        if (response := self._response) is None:
            self.drop()  # said without being asked
            return
        try:
            rest = data if response.status else self._head(response, data)
            if response.status:
                self._body(response, rest)
        except (Garbage, httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(garbled)

    def eof_received(self) -> None:
        response = self._response
        if response is not None and response.status and self._left == _UNTIL_EOF:
            self._finish(response)
        else:
            self.fail(garbled)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.fail(garbled)
        self._pool.lost(self)

    # --- the head ---------------------------------------------------------------------------------------------------

    def _head(self, response: Response, data: bytes) -> bytes:
        """What follows the head, once that is whole; `response.status` is 0 until then."""
        at = max(0, len(self._early) - 3)
        data = self._early + data
        while (end := data.find(b"\r\n\r\n", at) + 4) > 3:
            self._heads += end
            if self._heads > self._limits.head:
                raise Garbage
            head, data, at = data[:end], data[end:], 0
            if self._read_head(response, head):
                response.wake()
                return data
        if self._heads + len(data) > self._limits.head:
            raise Garbage
        self._early = data
        return b""

    def _read_head(self, response: Response, head: bytes) -> bool:
        """False for an informational one (RFC 9110 section 15.2), which says nothing that we need; 101 is none."""
        self._headed = self._ended = False
        response.fields.clear()
        parser = self._parser = httptools.HttpResponseParser(self)
        parser.feed_data(head)
        version, status = head[:9], parser.get_status_code()
        if not self._headed or version not in (b"HTTP/1.1 ", b"HTTP/1.0 ") or status > 599:
            raise Garbage
        if status < 200:
            return False
        fields, newer = response.fields, version == b"HTTP/1.1 "
        coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        if status in (204, 304):
            self._left = 0
        elif coding is not None:
            if coding.lower() != b"chunked" or not newer:
                raise Garbage
            self._left = _CHUNKED
        else:
            self._left = _UNTIL_EOF if length is None else int(length)
        self._ended = self._left == 0
        self._kept = newer and fields.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        response.unframed = self._left == _UNTIL_EOF
        response.status = status
        return True

    def on_message_begin(self) -> None:
        if self._ended:
            raise Garbage  # another answer, behind this one

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > self._limits.fields:
            raise Garbage
        if not self._headed and (response := self._response) is not None:  # trailers are for nobody
            name, fields = name.lower(), response.fields
            fields[name] = fields[name] + b", " + value if name in fields else value

    def on_headers_complete(self) -> None:
        self._headed = True

    # --- the body ---------------------------------------------------------------------------------------------------

    def _body(self, response: Response, data: bytes) -> None:
        if self._left == _CHUNKED:
            self._chunks(data)
        elif self._left == _UNTIL_EOF:
            response.take(data)
        else:
            if len(data) >= self._left:
                self._kept = self._kept and len(data) == self._left
                data, self._ended = data[:self._left], True
            self._left -= len(data)
            response.take(data)
        if self._ended:
            self._finish(response)
        elif response.take(b"") > self._limits.ahead and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _chunks(self, data: bytes) -> None:
        """Whether the answer ended with the last byte that came is seen by that alone: empty lines behind it pass the
        parser unnoticed. An end with trailers or extensions is none to go on from.
        """
        assert self._parser is not None
        self._framing += len(data)
        self._tail = (self._tail + data[-5:])[-5:]
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._ended:
                raise
            self._kept = False
        if self._framing > _FRAMING_MAX:
            raise Garbage
        if self._ended:
            self._kept = self._kept and self._tail == b"0\r\n\r\n"

    def on_body(self, data: bytes) -> None:
        response = self._response
        if response is None or not response.status:
            raise Garbage
        self._framing -= 5 * len(data)
        response.take(data)

    def on_message_complete(self) -> None:
        self._ended = True

    def _finish(self, response: Response) -> None:
        self._response = self._parser = None
        self.go_on()
        response.end()
        transport = self._transport
        whole = transport is not None and not transport.get_write_buffer_size()  # so was the request
        if self._kept and whole:
            self._pool.back(self)
        else:
            self.drop()
