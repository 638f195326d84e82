"""Links over TCP and Unix sockets, on asyncio streams."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from transport.errors import CloseReason, LinkLost
from transport.links.base import CLOSE_TIMEOUT_S, RECEIVE_MAX, SEND_HIGH_WATER, Endpoint
from transport.links.served import OnLink, ServedLinks

_SOCKET_MODE: Final = 0o600  # who may use a unix endpoint: the user who made it (and root)
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))  # a vanished peer: 60 s


class StreamLink:
    """A link over one stream socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        self.peer = peer
        self._reader = reader
        self._writer = writer
        self._closed = False
        writer.transport.set_write_buffer_limits(high=SEND_HIGH_WATER)
        tune_socket(writer.get_extra_info("socket"))

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), SEND_HIGH_WATER):  # so that user space never holds a second whole copy
                self._check_open()
                self._writer.write(view[start:start + SEND_HIGH_WATER])
                await self._writer.drain()
        except OSError as error:
            raise LinkLost("the link broke while sending") from error
        self._check_open()

    async def receive(self) -> bytes:
        self._check_open()
        try:
            data = await self._reader.read(RECEIVE_MAX)
        except OSError as error:
            raise LinkLost("the link broke while receiving") from error
        if not data:
            self._check_open()
        return data

    async def close(self, reason: CloseReason = "done") -> None:
        """As Link.close. TCP has two words: FIN for "done", RST for everything else."""
        if self._closed:
            return
        self._closed = True
        if reason == "done":
            self._writer.close()
        else:
            _reset(self._writer.get_extra_info("socket"))
            self._writer.transport.abort()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()
        except asyncio.CancelledError:
            self._writer.transport.abort()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise LinkLost("the link is closed at this end")


class StreamListener:
    """Accepts stream sockets and runs a handler for each."""

    def __init__(self, endpoint: Endpoint, on_link: OnLink) -> None:
        self.endpoint = endpoint
        self._server: asyncio.Server | None = None
        self._links = ServedLinks(on_link)
        self._closing = False

    async def start(self) -> None:
        """Binds. Raises LinkLost."""
        try:
            if self.endpoint.scheme == "unix":
                await self._start_unix(Path(self.endpoint.address))
            else:
                await self._start_tcp(*self.endpoint.host_port())
        except OSError as error:
            raise LinkLost(
                f"cannot listen on {self.endpoint}: {_reason(error)}",
                hint="choose another address, or end what uses it",
            ) from error

    async def close(self) -> None:
        if self._server is None or self._closing:
            return
        self._closing = True
        self._server.close()
        await self._links.close()
        await self._server.wait_closed()
        if self.endpoint.scheme == "unix":
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.unlink, self.endpoint.address)

    async def _start_tcp(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._accepted, host, port)
        bound = self._server.sockets[0].getsockname()[1]
        self.endpoint = Endpoint("tcp", f"{f'[{host}]' if ':' in host else host}:{bound}")

    async def _start_unix(self, path: Path) -> None:
        # asyncio alone would take the name away from a process that still listens
        sock = await asyncio.to_thread(_bind_unix, path)
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:  # it was on its way in when close() was called
            writer.transport.abort()
            return
        peer = writer.get_extra_info("peername")
        name = f"tcp:{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(self.endpoint)
        self._links.serve(StreamLink(reader, writer, name))


async def connect_stream(endpoint: Endpoint, *, timeout_s: float) -> StreamLink:
    """Connects to a tcp or unix endpoint. Raises LinkLost."""
    try:
        async with asyncio.timeout(timeout_s):
            if endpoint.scheme == "unix":
                reader, writer = await asyncio.open_unix_connection(endpoint.address)
            else:
                reader, writer = await asyncio.open_connection(*endpoint.host_port())
    except TimeoutError:
        raise LinkLost(f"no answer from {endpoint} within {timeout_s:g} s", hint="is it in reach?") from None
    except OSError as error:
        raise LinkLost(f"cannot reach {endpoint}: {_reason(error)}", hint="is it running, and in reach?") from error
    return StreamLink(reader, writer, str(endpoint))


async def listen_stream(endpoint: Endpoint, on_link: OnLink) -> StreamListener:
    """See `transport.links.base.listen`."""
    listener = StreamListener(endpoint, on_link)
    await listener.start()
    return listener


def tune_socket(sock: socket.socket | None) -> None:
    """Small records leave at once, and a peer that vanished without a word is noticed within a minute."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError):  # a socket the peer has reset already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reset(sock: socket.socket | None) -> None:
    """Makes closing a TCP socket a reset, which the peer cannot take for the end of a file."""
    if sock is not None and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _bind_unix(path: Path) -> socket.socket:
    """A bound socket; a stale one of an earlier run is replaced, one that answers and any other file is left alone."""
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if _answers(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~_SOCKET_MODE)  # so that there is no moment in which others may connect
    try:
        sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # whoever listens has a full queue, or it is another user's
            pass
        return True


def _reason(error: OSError) -> str:
    """The system's words without addresses, in the house style."""
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    code = error.errno
    if code is None:  # several addresses were tried, and the loop made one error of all
        return "no address answered"
    return os.strerror(code).lower()
