"""The Unix socket of the Workload API: who may connect how often, and who is at the other end of each connection.

Any program on the host may connect; whether it is told anything is `service`'s to say. Until then it costs a place
among its user's connections, a few descriptors, and the bytes that its user may send. Users that no entry names count
as one, since one person may have many (user namespaces). What came is passed on in small parts, between which the rest
of the gateway goes on: a call that is begun and cancelled has 28 bytes and costs 200 microseconds.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextvars import ContextVar
from pathlib import Path
from typing import Final, cast

from grpclib.config import Configuration
from grpclib.const import Handler
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from relay.gateway.errors import ConfigError
from relay.gateway.identity.workloads.attest import Caller, NotAttested, PeerSocket

CONNECTIONS: Final = 256
CONNECTIONS_OF_USER: Final = 32
BYTES_BURST: Final = 131_072  # of one user; a request of ours has some hundred
BYTES_PER_S: Final = 16_384
BYTES_TO_CONNECT: Final = 512  # what a connection itself is counted as
BYTES_UNREAD: Final = 1 << 20  # of answers: whoever asks and never reads would have us keep them all
_PART: Final = 1_024  # bytes between which other work is done
_STRANGERS: Final = -1  # the user that stands for all without an entry
PATH_MAX: Final = 107  # bytes, sockaddr_un
_WINDOW: Final = 65_535  # the least that HTTP/2 allows: what a stream may hold that nobody has read
_running: ContextVar["_Connection"] = ContextVar("workload connection")


def current_caller() -> Caller | str:
    """Who is at the other end of the connection that the running call came by, or why nobody is."""
    return _running.get().caller


class WorkloadServer:
    """Serves calls by their path on a Unix socket."""

    def __init__(
        self, path: Path, handlers: dict[str, Handler], *, users: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`users`: those who have an entry, by number.

        Raises ConfigError where there is no such thing as the attestation that this needs.
        """
        if not hasattr(socket, "SO_PEERCRED") or not hasattr(os, "pidfd_open"):
            raise ConfigError("workload_api: only Linux tells who calls", hint="leave [workload_api] out")
        self._path, self._users, self._clock = path, frozenset(users), clock
        self._bytes: dict[int, tuple[float, float]] = {}  # by user: how many are left, and when they were counted
        self._server = _Server(self, handlers)
        self._inode: tuple[int, int] | None = None
        self._connections: set[_Connection] = set()
        self._of_user: Counter[int] = Counter()
        self._left = asyncio.Event()
        self._closing = False

    async def start(self) -> None:
        """Raises ConfigError if the socket cannot be made there, or others could put theirs in its place."""
        listening = await asyncio.to_thread(_bind, self._path)
        found = self._path.lstat()
        self._inode = (found.st_dev, found.st_ino)
        logging.getLogger("grpclib").setLevel(logging.CRITICAL)  # it logs a traceback for whatever a caller gets wrong
        await self._server.start(sock=listening)

    async def close(self) -> None:
        """Ends every stream and connection."""
        if self._inode is None:
            return
        self._closing = True
        self._server.close()
        await self._server.wait_closed()
        for connection in list(self._connections):
            connection.end()
        while self._connections:
            self._left.clear()
            await self._left.wait()
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._inode:  # not one that another process has put there since
                self._path.unlink()

    # --- of connections ---------------------------------------------------------------------------------------------

    def _enter(self, connection: "_Connection") -> bool:
        if self._closing:  # it was on its way in when `close` was called
            return False
        connection.user = connection.uid if connection.uid in self._users else _STRANGERS
        if len(self._connections) >= CONNECTIONS or self._of_user[connection.user] >= CONNECTIONS_OF_USER:
            return False
        if not self._spend(connection, BYTES_TO_CONNECT):
            return False
        self._connections.add(connection)
        self._of_user[connection.user] += 1
        return True

    def _spend(self, connection: "_Connection", count: int) -> bool:
        """Whether the connection's user may send so many bytes now."""
        now = self._clock()
        left, last = self._bytes.get(connection.user, (float(BYTES_BURST), now))
        left = min(BYTES_BURST, left + (now - last) * BYTES_PER_S) - count
        self._bytes[connection.user] = max(left, 0.0), now
        return left >= 0

    def _leave(self, connection: "_Connection") -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._of_user[connection.user] -= 1
            self._left.set()


class _Server(Server):
    """The library's, with a connection of our own before each of its own."""

    def __init__(self, door: WorkloadServer, handlers: dict[str, Handler]) -> None:
        super().__init__([_Handlers(handlers)], config=Configuration(
            http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW,
        ))
        self._door = door

    def _protocol_factory(self) -> H2Protocol:
        return cast(H2Protocol, _Connection(self._door, super()._protocol_factory()))


class _Handlers:
    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    def __mapping__(self) -> dict[str, Handler]:
        return self._handlers


class _Connection(asyncio.Protocol):
    """Knows the caller, counts its bytes, and leaves all else to the library."""

    def __init__(self, door: WorkloadServer, inner: H2Protocol) -> None:
        self._door, self._inner = door, inner
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()  # to be passed on
        self.uid = self.user = _STRANGERS
        self.caller: Caller | str = "caller is gone"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # libuv's is none by its class
        connection = cast(PeerSocket, transport.get_extra_info("socket"))
        try:
            self.caller = Caller.of(connection)
            self.uid = self.caller.uid
        except NotAttested as refused:
            self.caller = refused.reason
        except OSError:  # no descriptors left
            transport.abort()
            return
        if not self._door._enter(self):
            self._release()
            transport.abort()
            return
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        if not self._door._spend(self, len(data)):
            self._transport.abort()
            return
        self._waiting += data
        if len(self._waiting) == len(data):
            self._pass_on()

    def _pass_on(self) -> None:
        """A part of what waits; the rest in the loop's next rounds, until when nothing more is read."""
        if self._transport is None or self._transport.is_closing():
            return
        part, self._waiting = bytes(self._waiting[:_PART]), self._waiting[_PART:]
        _running.set(self)  # the library makes a task of a call in here, and tasks take the context with them
        try:
            self._inner.data_received(part)
        except Exception:  # the library raises what it likes for frames that it does not expect
            self._transport.abort()
            return
        if self._transport.get_write_buffer_size() > BYTES_UNREAD:
            self._transport.abort()
        elif self._waiting:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._pass_on)
        else:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door._leave(self)
        self._release()
        if self._transport is not None:
            self._transport = None
            self._inner.connection_lost(exc)

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _release(self) -> None:
        if isinstance(self.caller, Caller):
            self.caller.close()


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > PATH_MAX:
        raise ConfigError("workload_api.socket: the path is too long for a socket", hint=f"{PATH_MAX} bytes at most")
    try:
        _check_folder(path.parent)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if _answers(path):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            path.unlink()  # of an earlier run
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(path))
            path.chmod(0o666)  # any user's programs may ask
        except OSError:
            listening.close()
            raise
        return listening
    except OSError as error:
        raise ConfigError(
            f"workload_api.socket: cannot listen on {path}: {(error.strerror or '').lower()}",
            hint="its folder must be there, and nothing else at its place",
        ) from None


def _check_folder(folder: Path) -> None:
    """Raises ConfigError if others could take the socket away and put their own there, OSError."""
    found = folder.stat()
    shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if shared or found.st_uid not in (0, os.geteuid()):  # a folder's owner may do all that, sticky or not
        raise ConfigError(
            f"workload_api.socket: others may write in {folder}, so they could pose as the gateway there",
            hint="choose a folder that only the gateway's user may write in, as /run/causeway",
        )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
        return True
