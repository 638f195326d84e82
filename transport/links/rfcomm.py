"""Links over RFCOMM, Bluetooth's serial port: a byte stream of the radio's older kind (BR/EDR), on Linux.

An edge connects with a platform socket (`RfcommDialer`), and asks the hop's record for the channel unless it is told
one. A hop is given its connections by BlueZ (`rfcomm_bluez`).

RFCOMM has one word for an end, DISC, which the kernel shows as a reset: here it is the end of the file, as with a Unix
socket. What the radio loses is told apart from it.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from transport.errors import BadInput, CloseReason, LinkLost, LostReason, ProtocolViolation
from transport.links import sdp
from transport.links.base import RECEIVE_MAX, Endpoint

SERVICE: Final = "6c550005-36dd-42eb-b94f-13d310764f09"
REDIAL_S: Final = 2.0

Open = Callable[[str, int | None], Awaitable[socket.socket]]


class RfcommLink:
    """A link over one connected stream socket, which it owns. `ended` is called once, when it is closed.

    Not on asyncio's streams: what has come before a reset is still to be read, and there it would be dropped.
    """

    def __init__(self, sock: socket.socket, peer: str, ended: Callable[[], None] = lambda: None) -> None:
        self.peer = peer
        sock.setblocking(False)
        self._sock, self._ended = sock, ended
        self._loop = asyncio.get_running_loop()
        self._inbox = bytearray()  # at most RECEIVE_MAX bytes
        self._reading = False
        self._some, self._room = asyncio.Event(), asyncio.Event()  # something to receive; room to send, or never again
        self._over = False  # the end of the file has come
        self._lost = ""  # why nothing works any more
        self._closed = False

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while True:
            self._check()
            if self._over:
                raise LinkLost("the peer has closed the link")
            if not view:
                return
            try:
                view = view[self._sock.send(view):]
            except BlockingIOError:
                pass
            except OSError as error:
                self._break(error)
                continue
            if view:
                self._room.clear()
                self._loop.add_writer(self._sock, self._write)
                await self._room.wait()

    async def receive(self) -> bytes:
        while self._closed or not self._inbox:
            self._check()
            if self._over:
                return b""
            if not self._reading:
                self._reading = True
                self._loop.add_reader(self._sock, self._read)
            self._some.clear()
            await self._some.wait()
        data = bytes(self._inbox)
        self._inbox.clear()
        return data

    async def close(self, reason: CloseReason = "done") -> None:
        """As Link.close; RFCOMM cannot carry a reason. The kernel sends what it has taken before it says goodbye."""
        if self._closed:
            return
        self._closed, self._lost = True, "the link is closed at this end"
        self._stop()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # BlueZ holds the socket, too: closing ours alone would end nothing
        self._sock.close()
        self._ended()

    def _read(self) -> None:
        """The socket stays watched until the inbox is full: it is given a frame at a time, a thousand bytes, and to ask
        the system to watch it for each one takes longer than to read it.
        """
        room = RECEIVE_MAX - len(self._inbox)
        if not room:
            self._reading = not self._loop.remove_reader(self._sock)
            return
        try:
            data = self._sock.recv(room)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        except OSError as error:
            self._break(error)
            return
        self._inbox += data
        if not data:
            self._over = True
            self._stop()
        self._some.set()

    def _write(self) -> None:
        self._loop.remove_writer(self._sock)
        self._room.set()

    def _stop(self) -> None:
        """Nothing comes or goes any more."""
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._some.set()
        self._room.set()

    def _check(self) -> None:
        if self._lost:
            raise LinkLost(self._lost)

    def _break(self, error: OSError) -> None:
        self._lost = f"the connection was lost: {os.strerror(error.errno or errno.EIO).lower()}"
        self._stop()


class RfcommDialer:
    """Connects to hops, to none of them within `redial_s` of an end of the last link or attempt: systems keep the
    radio's connection for about as long, and who dials meanwhile is refused, or is given a connection that ends.
    """

    def __init__(self, open_socket: Open | None = None, *, redial_s: float = REDIAL_S) -> None:
        self._open, self._redial_s = open_socket or _open_socket, redial_s
        self._not_before: dict[str, float] = {}  # by address

    async def connect(self, endpoint: Endpoint, *, timeout_s: float) -> RfcommLink:
        """`timeout_s` is for the connection and the channel's number, without the pause. Raises LinkLost, BadInput."""
        address, channel = address_of(endpoint)
        if not address:
            raise BadInput("an edge needs a hop's Bluetooth address", hint="as in rfcomm:00:11:22:33:44:55")
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before.get(address, 0.0) - loop.time()))

        def ended() -> None:
            now = loop.time()
            self._not_before = {each: until for each, until in self._not_before.items() if until > now}
            self._not_before[address] = now + self._redial_s

        try:
            async with asyncio.timeout(timeout_s):
                return RfcommLink(await self._open(address, channel), str(endpoint), ended)
        except TimeoutError:
            ended()
            raise LinkLost(
                f"no answer from {endpoint} within {timeout_s:g} s", reason="out_of_range", hint="is it in reach?"
            ) from None
        except ProtocolViolation as error:
            ended()
            raise LinkLost(str(error), hint="name the channel, as in rfcomm:00:11:22:33:44:55?channel=22") from error
        except OSError as error:
            ended()
            why, reason, hint = _EXPLAINED.get(error.errno or 0, (os.strerror(error.errno or errno.EIO).lower(),
                                                                 "lost", "is it running, and in reach?"))
            raise LinkLost(f"cannot reach {endpoint}: {why}", reason=reason, hint=hint) from error
        except BaseException:
            ended()
            raise


_EXPLAINED: Final[dict[int, tuple[str, LostReason, str]]] = {
    errno.EHOSTDOWN: ("it does not answer", "out_of_range", "is it in reach, and its Bluetooth on?"),
    errno.EHOSTUNREACH: ("there is no Bluetooth radio that is on", "unavailable", "plug one in, or switch it on"),
    errno.EACCES: ("this program may not use Bluetooth", "refused", "allow it Bluetooth sockets"),
    errno.EPERM: ("this program may not use Bluetooth", "refused", "allow it Bluetooth sockets"),
    errno.EAFNOSUPPORT: ("this system has no Bluetooth", "unavailable", "is its kernel module there?"),
    errno.EPROTONOSUPPORT: ("this system has no RFCOMM", "unavailable", "is its kernel module there?"),
    errno.ECONNREFUSED: ("no hop listens there", "lost", "does it serve rfcomm:, and is the channel right?"),
}


def address_of(endpoint: Endpoint) -> tuple[str, int | None]:
    """Address, "" for none, and channel of an rfcomm endpoint."""
    address, _, number = endpoint.address.partition("?channel=")
    return address, int(number) if number else None


async def _open_socket(address: str, channel: int | None) -> socket.socket:
    """Raises LinkLost, ProtocolViolation, OSError."""
    family = getattr(socket, "AF_BLUETOOTH", None)
    if family is None or not hasattr(socket, "BTPROTO_L2CAP"):
        raise LinkLost(
            "this Python has no Bluetooth sockets", reason="unavailable",
            hint="use your Linux distribution's own Python, or build one where Bluetooth's headers are installed",
        )
    if channel is None:
        channel = await _ask_channel(address, family)
    return await _connected(socket.socket(family, socket.SOCK_STREAM, socket.BTPROTO_RFCOMM), address, channel)


async def _ask_channel(address: str, family: int) -> int:
    sock = await _connected(
        socket.socket(family, socket.SOCK_SEQPACKET, getattr(socket, "BTPROTO_L2CAP")), address, sdp.PSM)  # noqa: B009
    with sock:
        number = secrets.randbelow(1 << 16)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, sdp.question(SERVICE, number))
        found = sdp.channel(await loop.sock_recv(sock, 4096), number)
    if found is None:
        raise LinkLost("the device is no hop for RFCOMM", hint="does it serve rfcomm: now?")
    return found


async def _connected(sock: socket.socket, address: str, port: int) -> socket.socket:
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


_dialer: Final = RfcommDialer()  # one for the process: the pause is between any two of its links


async def connect_rfcomm(endpoint: Endpoint, *, timeout_s: float) -> RfcommLink:
    """See `transport.links.base.connect`; `endpoint` is `rfcomm:ADDRESS[?channel=N]`. Raises LinkLost, BadInput."""
    return await _dialer.connect(endpoint, timeout_s=timeout_s)
