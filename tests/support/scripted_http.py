"""An HTTP server on loopback that says the very bytes it is told to, at whatever pace, whatever was asked.

    async with Scripted([[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", 5.0, b"hi"], [END]]) as server:
        ... server.url, server.requests, server.made ...

The first request gets the first script, the next one the next, on whatever connection; the last script is for all that
follow. A script's bytes are written, its seconds pass, END closes in order, RESET does not, HANG waits for ever.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Final, Literal, Self, cast

END: Final = "end"
RESET: Final = "reset"
HANG: Final = "hang"
Script = Sequence[bytes | float | Literal["end", "reset", "hang"]]
LINGER_NOT = struct.pack("ii", 1, 0)


def whole(body: bytes, *, status: str = "200 OK", fields: str = "") -> bytes:
    """A plain answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(*pieces: bytes, fields: str = "") -> bytes:
    """An answer in chunks, with its end."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


class Peer(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, server: "Scripted") -> None:
        self.server = server
        self.transport: asyncio.Transport
        self.asked: list[bytes] = []  # requests, whole
        self.busy = False  # with an answer
        self.lost = False
        self._unread = b""
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.made.append(self)
        self.server.greet(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._work is not None:
            self._work.cancel()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head, end, body = self._unread.partition(b"\r\n\r\n")
        length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0)
        if end and len(body) >= length:
            if self.busy or len(body) > length:
                self.server.mixed = True
            self.busy, self._unread = True, b""
            self.asked.append(head + end + body)
            self.server.requests.append(head + end + body)
            self.server.asked(self)

    def play(self, script: Script) -> None:
        self._work = asyncio.get_running_loop().create_task(self._play(script))

    def say(self, data: bytes) -> None:
        if not self.lost:
            self.transport.write(data)

    def reset(self) -> None:
        if (one := self.transport.get_extra_info("socket")) is not None and not self.lost:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.transport.abort()

    async def _play(self, script: Script) -> None:
        last = max((at for at, step in enumerate(script) if isinstance(step, bytes)), default=-1)
        for at, step in enumerate(script):
            if isinstance(step, bytes):
                self.busy = self.busy and at != last  # with the last of it the client may ask again
                self.say(step)
            elif step == END:
                self.transport.close()
            elif step == RESET:
                self.reset()
            elif step == HANG:
                await asyncio.get_running_loop().create_future()
            elif isinstance(step, float):
                await asyncio.sleep(step)


class Scripted:
    """See above. `requests` are those read whole, `made` all connections; `mixed`: something came before its turn."""

    def __init__(
        self, scripts: Sequence[Script] = ((HANG,),), *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1",
        name: str | None = None, answer: Callable[[Peer], None] | None = None, greeting: Script = (),
    ) -> None:
        """`answer` is told of each request instead of `scripts`; `greeting` is said when a connection
        is made.
        """
        self._scripts = list(scripts)
        self._tls, self._host, self._name = tls, host, name or host
        self._answer = answer
        self._greeting: Script = greeting
        self.requests: list[bytes] = []
        self.made: list[Peer] = []
        self.mixed = False
        self.url = ""
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Peer(self), self._host, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._name}]" if ":" in self._name else self._name
        self.url = f"{'http' if self._tls is None else 'https'}://{host}:{self.port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self.made:
            peer.transport.abort()
        await self._server.wait_closed()
        for _turn in range(3):
            await asyncio.sleep(0)

    @property
    def open(self) -> list[Peer]:
        return [peer for peer in self.made if not peer.lost]

    def greet(self, peer: Peer) -> None:
        if self._greeting:
            peer.play(self._greeting)

    def asked(self, peer: Peer) -> None:
        if self._answer is not None:
            self._answer(peer)
        else:
            peer.play(self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0])
