"""HTTP/1.1 to one provider: a pool of connections to one configured scheme, host and port, and nowhere else.

No redirect is followed, no proxy asked, no cookie kept, nothing decompressed. A request goes out in one write and waits
for its answer; it is taken to another connection only where a pooled one turns out to be closed before a byte was
written, since whatever else breaks may have been accepted.

All deadlines of a pool have one timer: setting one costs an attribute, unless it is the earliest.
"""

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from relay.gateway.upstream.base import Timeouts, checked_base_url
from relay.gateway.upstream.connection import Connection, Limits, Response, unreachable, unreached
from relay.gateway.upstream.dial import dial, tls_context
from relay.gateway.upstream.formats import garbled


class Client:
    """A pool of connections to the host of one base URL. Made anywhere; used, and closed, inside one event loop."""

    def __init__(
        self, base_url: str, timeouts: Timeouts, *, limits: Limits | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """`tls`: instead of WebPKI. Raises ConfigError."""
        parts = urlsplit(checked_base_url(base_url))
        self.host = parts.hostname or ""
        self.timeouts, self.limits = timeouts, limits or Limits()
        self._tls = None if parts.scheme == "http" else tls or tls_context()
        usual = 80 if self._tls is None else 443
        self._port = parts.port or usual
        self._prefix = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._common = (
            f"Host: {host}{'' if self._port == usual else f':{self._port}'}\r\n"
            "User-Agent: causeway-gateway\r\nAccept-Encoding: identity\r\n"
        )
        self._places = 0  # taken by connections, or by somebody who makes one
        self._idle: dict[Connection, None] = {}  # the last used last
        self._all: set[Connection] = set()
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()  # None: for a place to make one in
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = math.inf
        self._closed = False
        self._ended = asyncio.Event()  # closed, and every connection gone

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """Asks for `path` below the base URL's. Returns with the answer's head; close what is returned.

        Raises ProviderFailure, with `again` if and only if nothing of the request was written, and ValueError for what
        cannot be a request, of which nothing is told.
        """
        data = self._written(method, path, headers, body)
        response: Response | None = None
        while response is None:
            connection = await self._take()
            response = connection.ask(data, connection.loop.time() + self.timeouts.first_byte)
            if response is None and not connection.used:
                raise unreachable()
        try:
            await response.head()
        except BaseException:
            response.close()
            raise
        return response

    async def close(self) -> None:
        """Ends everything; who waits is refused. It is not opened again."""
        self._closed = True
        if not self._all:
            self._ended.set()
        self._next()
        for connection in tuple(self._all):
            connection.fail(garbled)
        if self._timer is not None:
            self._timer.cancel()
        await self._ended.wait()  # transports end in one of the loop's next turns

    def _written(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        said = "".join((method, path, *headers.values()))
        if (
            not said.isascii() or not said.isprintable() or " " in path or path[:1] != "/"
            or not "".join((method, *headers)).replace("-", "").isalnum()
        ):
            raise ValueError("this cannot be a request")
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._common}{fields}{length}\r\n".encode()
        return head if body is None else head + body

    # --- places -----------------------------------------------------------------------------------------------------

    async def _take(self) -> Connection:
        if self._closed:
            raise unreachable()
        if self._idle:  # then nobody waits
            return self._idle.popitem()[0]
        try:
            async with asyncio.timeout(self.timeouts.connect):
                return await self._turn() or await self._made()
        except TimeoutError:
            raise unreached() from None
        except (OSError, UnicodeError):  # TLS, too, and names that do not resolve
            raise unreachable() from None

    async def _turn(self) -> Connection | None:
        """None for a place to make one in."""
        if self._places < self.limits.connections:  # then nobody waits, either
            self._places += 1
            return None
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                if turn in self._waiting:
                    self._waiting.remove(turn)
            elif (connection := turn.result()) is None:
                self._places -= 1
                self._next()
            else:
                self.back(connection)
            raise

    async def _made(self) -> Connection:
        connection = Connection(self)
        try:
            if self._closed:
                raise unreachable()
            await dial(lambda: connection, self.host, self._port, self._tls)
        except BaseException:
            self.lost(connection)
            raise
        return connection

    def _next(self) -> None:
        """Whoever has waited longest gets what is free."""
        while self._waiting:
            turn = self._waiting[0]
            if not turn.done():
                if self._idle:
                    turn.set_result(self._idle.popitem()[0])
                elif self._places < self.limits.connections or self._closed:
                    self._places += 1
                    turn.set_result(None)
                else:
                    return
            self._waiting.popleft()

    # --- what connections say ---------------------------------------------------------------------------------------

    def made(self, connection: Connection) -> None:
        self._all.add(connection)
        if self._closed or not connection.placed:
            connection.drop()

    def back(self, connection: Connection) -> None:
        """It may be asked again."""
        if connection in self._all and not self._closed:
            self._idle[connection] = None
            connection.rest()
            self._next()
        else:
            connection.drop()

    def lost(self, connection: Connection) -> None:
        """It has ended, or was never made."""
        self._all.discard(connection)
        if self._closed and not self._all:
            self._ended.set()
        self._idle.pop(connection, None)
        if connection.placed:
            connection.placed = False
            self._places -= 1
            self._next()

    def watch(self, by: float) -> None:
        """Has the timer look at `by`, in seconds of the loop's clock, or before."""
        if by < self._look_at:
            if self._timer is not None:
                self._timer.cancel()
            self._look_at = by
            self._timer = asyncio.get_running_loop().call_at(by, self._look)

    def _look(self) -> None:
        at, self._look_at, self._timer = self._look_at, math.inf, None
        for connection in tuple(self._all):
            if connection.deadline <= at:
                connection.deadline = math.inf
                connection.expire()
        if (by := min((connection.deadline for connection in self._all), default=math.inf)) < math.inf:
            self.watch(by)
