"""A running `edge serve` holds the unlocked store, and gives its key to commands beside it: nobody types it again. They
also tell it whether it is to wait for a phone.

On a Unix socket in the home's `run` folder, which both ends reach through that folder's descriptor: a socket's path has
room for 107 bytes, a home may be longer. Each end asks the kernel who the other one is, and goes on only with its own
user. One connection is one request and one reply, each a packet of MessagePack.

It is the key that is given, and no question answered for another process: several may have the database open, and a
command is the same program with and without a server. Where a system has none of this (Linux has), there is no agent,
and every command unlocks the store for itself.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, Protocol

import msgspec

from edge_client.errors import BadUse, EdgeError, NotServing
from edge_client.one_serve import run_folder
from store.errors import StoreError
from store.keys import DatabaseKey

__all__ = [
    "Serving", "StoreState", "Unlockable", "key_from_serve", "lock_serve", "pair_serve", "serve_key", "state_of_serve",
    "unlock_serve", "unpair_serve",
]

StoreState = Literal["none", "locked", "open"]

_SOCKET: Final = "key"
_READ_S: Final = 10.0  # for a request, and for what is answered at once
_CHANGE_S: Final = 90.0  # sessions are ended in an orderly way before the store is closed
_AT_ONCE: Final = 32  # connections
_MESSAGE_MAX: Final = 4096  # bytes; a key has 48, the rest is words
_log = logging.getLogger(__name__)
_Key = Annotated[bytes, msgspec.Meta(min_length=48, max_length=48)]


class Wish(Protocol):
    """What it needs of pairing.Pairing."""

    @property
    def until(self) -> float: ...
    def begin(self, seconds: float | None, name: str) -> None: ...
    def end(self) -> None: ...


class Unlockable(Protocol):
    """What the agent needs of app.App."""

    @property
    def store(self) -> StoreState: ...
    @property
    def key(self) -> DatabaseKey | None: ...
    @property
    def pairing(self) -> "Wish": ...
    async def lock(self) -> bool: ...
    async def unlock(self, key: DatabaseKey) -> None: ...


class _Request(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    do: Literal["state", "key", "lock", "unlock", "pair", "unpair"]
    key: _Key | None = None
    seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""

    def __repr__(self) -> str:
        return "<key agent request>"


class _Reply(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    store: StoreState
    key: _Key | None = None
    failure: str = ""
    hint: str | None = None
    pairing: float = 0.0

    def __repr__(self) -> str:
        return "<key agent reply>"


class Serving(NamedTuple):
    """What a running `edge serve` says. `pairing`: until when it waits for a phone where there is no hop, in unix
    seconds; infinity until it is told otherwise, 0 not at all.
    """

    store: StoreState
    pairing: float


def key_from_serve(home: Path) -> DatabaseKey | None:
    """The key that a running `edge serve` holds; None if none runs or its store is locked. Raises nothing."""
    try:
        reply = _ask(home, _Request("key"), _READ_S)
    except NotServing:
        return None
    return None if reply.key is None else DatabaseKey(reply.key)


def state_of_serve(home: Path) -> Serving:
    """Its store is none also by --no-store. Raises NotServing."""
    return _said(_ask(home, _Request("state"), _READ_S))


def pair_serve(home: Path, seconds: float | None, name: str) -> Serving:
    """Has the running `edge serve` wait for a phone whenever it has no hop, for so long or until it is told otherwise.

    `name`, perhaps empty, is what phones see. Raises NotServing.
    """
    return _said(_ask(home, _Request("pair", None, seconds, name), _READ_S))


def unpair_serve(home: Path) -> Serving:
    """Raises NotServing."""
    return _said(_ask(home, _Request("unpair"), _READ_S))


def _said(reply: _Reply) -> Serving:
    return Serving(reply.store, reply.pairing)


def lock_serve(home: Path) -> None:
    """Returns when the running `edge serve` has forgotten the key. Raises NotServing."""
    _ask(home, _Request("lock"), _CHANGE_S)


def unlock_serve(home: Path, key: DatabaseKey) -> None:
    """Gives it the key. Raises NotServing; StoreError if the key does not open its store, or the store is none."""
    reply = _ask(home, _Request("unlock", key.expose()), _CHANGE_S)
    if reply.failure:
        raise StoreError(reply.failure, hint=reply.hint)


@contextlib.asynccontextmanager
async def serve_key(home: Path, app: Unlockable, used: Callable[[], None]) -> AsyncIterator[bool]:
    """Answers commands beside this process until the context ends; yields whether the system can do that.

    To be called by who holds `one_serve.claim`: a socket that lies there is a dead one's. `used` is told of commands.
    """
    can = False
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(AttributeError, OSError, BadUse):  # no such sockets on this system, or in this folder
            folder = stack.enter_context(run_folder(home, create=True))
            listener = stack.enter_context(_listen(folder))
            stack.callback(_unlink, folder)
            task = asyncio.create_task(_Agent(app, used).accept(listener))
            stack.push_async_callback(_ended, task)
            can = True
        yield can


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


class _Agent:
    def __init__(self, app: Unlockable, used: Callable[[], None]) -> None:
        self._app, self._used = app, used
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def accept(self, listener: socket.socket) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as connections:
            while True:
                await self._room.acquire()
                try:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:  # no file descriptor is left: others are about to be closed
                    self._room.release()
                    await asyncio.sleep(1)
                else:
                    connections.create_task(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        """One connection. Whoever says something else than a request hears nothing."""
        try:
            with connection:
                connection.setblocking(False)
                if not _is_ours(connection):
                    return
                async with asyncio.timeout(_READ_S):
                    said = await asyncio.get_running_loop().sock_recv(connection, _MESSAGE_MAX)
                reply = await self._reply(msgspec.msgpack.decode(said, type=_Request))
                connection.send(msgspec.msgpack.encode(reply))  # a packet fits whole
        except (OSError, TimeoutError, msgspec.MsgspecError):
            pass
        except Exception as error:  # the last door: one command's trouble is not the others'
            _log.error("a command's request ended in %s", type(error).__name__)
        finally:
            self._room.release()

    async def _reply(self, request: _Request) -> _Reply:
        key = None
        if request.do != "state":
            self._used()
        if request.do == "lock":
            await self._app.lock()
        elif request.do == "key":
            key = self._app.key
        elif request.do == "pair":
            self._app.pairing.begin(request.seconds, request.name)
        elif request.do == "unpair":
            self._app.pairing.end()
        elif request.do == "unlock" and request.key is not None:
            try:
                await self._app.unlock(DatabaseKey(request.key))
            except (StoreError, EdgeError) as error:
                return _Reply(self._app.store, None, str(error)[:256], (error.hint or "")[:256] or None)
        return _Reply(self._app.store, None if key is None else key.expose(), pairing=self._app.pairing.until)


def _ask(home: Path, request: _Request, limit_s: float) -> _Reply:
    """Blocks, for at most `limit_s` seconds each, to connect, send and receive. Raises NotServing, also for whoever is
    not of this user.
    """
    try:
        with run_folder(home, create=False) as folder, _socket() as connection:
            connection.settimeout(limit_s)
            connection.connect(_address(folder))
            if not _is_ours(connection):
                raise NotServing
            connection.send(msgspec.msgpack.encode(request))
            return msgspec.msgpack.decode(connection.recv(_MESSAGE_MAX), type=_Reply)
    except TimeoutError:
        raise NotServing("the running `edge serve` does not answer", hint="end it, and start it again") from None
    except BadUse as error:  # one may run, and hold the store open
        raise NotServing(str(error), hint=error.hint) from None
    except (AttributeError, OSError, msgspec.MsgspecError):
        raise NotServing from None


def _listen(folder: int) -> socket.socket:
    listener = _socket()
    try:
        _is_ours(listener)  # AttributeError where the kernel does not tell
        _unlink(folder)
        listener.bind(_address(folder))  # the folder lets nobody else in
        os.chmod(_SOCKET, 0o600, dir_fd=folder)
        listener.listen(_AT_ONCE)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps messages apart


def _unlink(folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_SOCKET, dir_fd=folder)


def _address(folder: int) -> str:
    return f"/proc/self/fd/{folder}/{_SOCKET}"


def _is_ours(connection: socket.socket) -> bool:
    """Whether this user is at the other end, as the kernel noted when it was connected (unix(7), SO_PEERCRED)."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return bool(struct.unpack("iII", told)[1] == os.geteuid())
