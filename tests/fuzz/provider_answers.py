"""What a provider says to our HTTP client, whole and in pieces: the same comes of it, and no undocumented error."""

import asyncio
import functools
from collections.abc import Iterable
from typing import Any, cast

from relay.gateway.errors import ProviderFailure
from relay.gateway.upstream.base import Timeouts
from relay.gateway.upstream.connection import Connection, Limits
from tests.support.scripted_http import chunked, whole


class _Wire:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.over = False

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.over = True

    def is_closing(self) -> bool:
        return self.over

    def get_write_buffer_size(self) -> int:
        return 0


class _Pool:
    """Remembers whether the connection was given back."""

    def __init__(self) -> None:
        self.timeouts, self.limits, self.given_back = Timeouts(), Limits(head=2_048), False

    def made(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...
    def watch(self, by: float) -> None: ...

    def back(self, connection: Connection) -> None:
        self.given_back = True


async def _outcome(data: bytes, size: int) -> tuple[Any, ...]:
    """Status, body, kind of failure, and whether the connection may be used again."""
    pool, wire = _Pool(), _Wire()
    connection = Connection(pool)
    connection.connection_made(cast(asyncio.Transport, wire))
    response = connection.ask(b"", 1e9)
    assert response is not None
    for begin in range(0, len(data), size):
        if wire.over:
            break
        connection.data_received(data[begin:begin + size])
    kept = pool.given_back and not wire.over  # not if more came behind it
    if not wire.over:
        connection.eof_received()
    connection.connection_lost(None)
    body, kind = b"", ""
    try:
        await response.head()
        while piece := await response.chunk():
            body += piece
    except ProviderFailure as failure:
        kind = failure.kind
    if response.status and not kind:
        assert 200 <= response.status <= 599 and len(response.fields) <= pool.limits.fields
    return response.status, body, kind, kept


_loop = functools.cache(asyncio.new_event_loop)


def run_provider_answer(data: bytes) -> None:
    size, data = (data[0] or 1, data[1:]) if data else (1, b"")
    at_once = _loop().run_until_complete(_outcome(data, len(data) or 1))
    in_pieces = _loop().run_until_complete(_outcome(data, size))
    assert at_once == in_pieces, (at_once, in_pieces)


def provider_answer_seeds() -> Iterable[bytes]:
    head = b"HTTP/1.1 200 OK\r\n"
    for wire in (
        whole(b"hello"), whole(b"x", fields="Connection: close\r\n") + b"more", chunked(b"one", b"two"),
        head + b"\r\nto the end", b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b""), b"HTTP/1.1 204 No Content\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\nX: y\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nhi",
        head + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ):
        yield b"\x01" + wire
        yield b"\x07" + wire
