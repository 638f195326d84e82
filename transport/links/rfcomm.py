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
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from transport.errors import BadInput, CloseReason, LinkLost, LostReason, ProtocolViolation
from transport.links import sdp
from transport.links.base import RECEIVE_MAX, Endpoint, Link

SERVICE: Final = "6c550005-36dd-42eb-b94f-13d310764f09"
REDIAL_S: Final = 2.0

Open = Callable[[Endpoint, Callable[[], None]], Awaitable[Link]]  # the link calls the function once it is closed


class SerialLink:
    """What links over RFCOMM have in common, whoever speaks it. `ended` is called once, when it is closed."""

    def __init__(self, peer: str, ended: Callable[[], None]) -> None:
        self.peer = peer
        self._ended = ended
        self._inbox = bytearray()
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
            view = view[await self._give(view):]

    async def receive(self) -> bytes:
        while self._closed or not self._inbox:
            self._check()
            if self._over:
                return b""
            self._some.clear()
            self._wants()
            await self._some.wait()
        data = bytes(self._inbox[:RECEIVE_MAX])
        del self._inbox[:RECEIVE_MAX]
        self._wants()
        return data

    async def _give(self, view: memoryview) -> int:
        """How many bytes were taken, perhaps after a while; 0 if none were, or never will be."""
        raise NotImplementedError

    def _wants(self) -> None:
        """There is room in the inbox."""

    def _check(self) -> None:
        if self._lost:
            raise LinkLost(self._lost)


class RfcommLink(SerialLink):
    """A link over one connected stream socket, which it owns.

    Not on asyncio's streams: what has come before a reset is still to be read, and there it would be dropped.
    """

    def __init__(self, sock: socket.socket, peer: str, ended: Callable[[], None] = lambda: None) -> None:
        super().__init__(peer, ended)
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._reading = False

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

    async def _give(self, view: memoryview) -> int:
        sent = 0
        try:
            sent = self._sock.send(view)
        except BlockingIOError:
            pass
        except OSError as error:
            self._break(error)
            return 0
        if sent < len(view):
            self._room.clear()
            self._loop.add_writer(self._sock, self._write)
            await self._room.wait()
        return sent

    def _wants(self) -> None:
        if not self._reading and not self._over and not self._lost:
            self._reading = True
            self._loop.add_reader(self._sock, self._read)

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

    def _break(self, error: OSError) -> None:
        self._lost = f"the connection was lost: {os.strerror(error.errno or errno.EIO).lower()}"
        self._stop()


class RfcommDialer:
    """Connects to hops, to none of them within REDIAL_S of an end of the last link or attempt: systems keep the
    radio's connection for about as long, and who dials meanwhile is refused, or is given a connection that ends.
    """

    def __init__(self, open_link: Open | None = None) -> None:
        self._open = open_link or _open_link
        self._not_before: dict[str, float] = {}  # by address

    async def connect(self, endpoint: Endpoint, *, timeout_s: float) -> Link:
        """`timeout_s` is for the connection and the channel's number, without the pause. Raises LinkLost, BadInput."""
        address, _ = address_of(endpoint)
        if not address:
            raise BadInput("an edge needs a hop's Bluetooth address", hint="as in rfcomm:00:11:22:33:44:55")
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before.get(address, 0.0) - loop.time()))

        def ended() -> None:
            self._not_before[address] = loop.time() + REDIAL_S

        try:
            return await self._connect(endpoint, ended, timeout_s)
        except BaseException:
            ended()
            raise

    async def _connect(self, endpoint: Endpoint, ended: Callable[[], None], timeout_s: float) -> Link:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._open(endpoint, ended)
        except TimeoutError:
            raise LinkLost(
                f"no answer from {endpoint} within {timeout_s:g} s", reason="out_of_range", hint="is it in reach?"
            ) from None
        except ProtocolViolation as error:
            raise LinkLost(str(error), hint="name the channel, as in rfcomm:00:11:22:33:44:55?channel=22") from error
        except OSError as error:
            why, reason, hint = _EXPLAINED.get(error.errno or 0, (os.strerror(error.errno or errno.EIO).lower(),
                                                                 "lost", "is it running, and in reach?"))
            raise LinkLost(f"cannot reach {endpoint}: {why}", reason=reason, hint=hint) from error


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


async def _open_link(endpoint: Endpoint, ended: Callable[[], None]) -> RfcommLink:
    """By the system's sockets. Raises LinkLost, ProtocolViolation, OSError."""
    address, channel = address_of(endpoint)
    family = getattr(socket, "AF_BLUETOOTH", None)
    if family is None or not hasattr(socket, "BTPROTO_L2CAP"):  # Windows has the one without the other
        raise LinkLost(
            "this Python has no Bluetooth sockets", reason="unavailable",
            hint="use your distribution's own Python, or build one where libbluetooth-dev is installed"
            if sys.platform == "linux" else 'use ble:, or a dongle for this program alone: radio "hci:usb:0"',
        )
    if channel is None:
        channel = await _ask_channel(address, family)
    kind = socket.SOCK_STREAM, socket.BTPROTO_RFCOMM
    return RfcommLink(await _connected(socket.socket(family, *kind), address, channel), str(endpoint), ended)


async def _ask_channel(address: str, family: int) -> int:
    sock = await _connected(
        socket.socket(family, socket.SOCK_SEQPACKET, getattr(socket, "BTPROTO_L2CAP")), address, sdp.PSM)  # noqa: B009
    with sock:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, sdp.question(SERVICE, 1))
        found = sdp.channel(await loop.sock_recv(sock, 4096), 1)
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


DIALER: Final = RfcommDialer()  # one for the process: the pause is between any two of its links
