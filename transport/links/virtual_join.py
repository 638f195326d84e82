"""One virtual radio for several processes: a server on a Unix socket, and devices that join it.

What goes over the socket is the standard's own host controller interface (HCI, H4 framing; Core 5.4, vol 4, part A), so
any Bluetooth host that speaks it may join. Who may is decided by the socket's permissions: this user alone.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Final, Protocol

from bumble.core import InvalidPacketError
from bumble.host import Host
from bumble.transport.common import PacketParser, TransportSink

from transport.errors import LinkLost
from transport.links.base import Endpoint, Link
from transport.links.tcp import StreamListener, connect_stream, listen_stream
from transport.links.virtual_air import Phy
from transport.links.virtual_controller import VirtualController
from transport.links.virtual_device import RadioDevice, RadioGone, fail_command, switch_on
from transport.links.virtual_radio import VirtualRadio

JOIN_TIMEOUT_S: Final = 10.0
OUT_HIGH: Final = 64 * 1024  # bytes that wait for a process that does not read; then its radio is full
OUT_LOW: Final = 16 * 1024


class RadioServer:
    """A virtual radio that others join. `radio` is where to drop connections or to take a device out of range."""

    def __init__(self, radio: VirtualRadio) -> None:
        self.radio = radio
        self._listener: StreamListener | None = None

    async def start(self, path: str | Path) -> None:
        """Raises LinkLost if the path cannot be had."""
        self._listener = await listen_stream(Endpoint("unix", str(path)), self._joined)

    async def close(self) -> None:
        """Everyone loses the radio."""
        if self._listener is not None:
            await self._listener.close()

    async def _joined(self, link: Link) -> None:
        try:
            controller = self.radio.controller("joined")
        except LinkLost:
            return
        out = _Out(link, controller)
        controller.host = out
        parser = PacketParser(inbox := _In(controller))
        writing = asyncio.create_task(out.run())
        try:
            while not inbox.broken and (data := await link.receive()):
                parser.feed_data(data)
                await out.room()
        except (LinkLost, InvalidPacketError):
            pass
        finally:
            writing.cancel()
            self.radio.remove(controller)
            await asyncio.gather(writing, return_exceptions=True)


async def serve_radio(path: str | Path, phy: Phy | str = "instant", seed: int = 0) -> RadioServer:
    """A virtual radio on a Unix socket at `path`. Raises BadInput, LinkLost if the path cannot be had."""
    server = RadioServer(VirtualRadio(phy, seed=seed))
    await server.start(path)
    return server


async def join_radio(path: str | Path, name: str) -> RadioDevice:
    """A device on the virtual radio that is served at `path`, switched on. Raises LinkLost."""
    try:
        link = await connect_stream(Endpoint("unix", str(path)), timeout_s=JOIN_TIMEOUT_S)
    except LinkLost as error:
        raise LinkLost(
            f"no virtual radio: {error}", reason="unavailable", hint=f"`relay sim radio {path}` serves one"
        ) from None
    wire = _Joined(link)
    try:
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            wire.device = await switch_on(name, wire, wire, wire.close)
            return wire.device
    except (RadioGone, TimeoutError):
        await wire.close()
        raise LinkLost("the virtual radio does not answer", hint="is it running, and is it full?") from None
    except BaseException:
        await wire.close()
        raise


class _HostReads(Protocol):
    def host_reads(self, reads: bool) -> None: ...


class _Out:
    """Packets on their way out, in order. Beyond OUT_HIGH, `controller` is told that its host does not read."""

    def __init__(self, link: Link, controller: _HostReads | None = None) -> None:
        self._link, self._controller = link, controller
        self._parts: list[bytes] = []
        self._size = 0
        self._lost = False
        self._some = asyncio.Event()
        self._less = asyncio.Event()
        self._less.set()

    def on_packet(self, packet: bytes) -> None:
        if self._lost:
            return
        self._parts.append(packet)
        self._size += len(packet)
        self._some.set()
        if self._size > OUT_HIGH and self._less.is_set():
            self._less.clear()
            if self._controller is not None:
                self._controller.host_reads(False)

    async def room(self) -> None:
        """Waits until what was taken in for the peer may be answered."""
        await self._less.wait()

    async def run(self) -> None:
        """Sends until it is cancelled or the link is lost."""
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                parts, self._parts = self._parts, []
                await self._link.send(b"".join(parts))
                self._size -= sum(map(len, parts))
                if self._size < OUT_LOW and not self._less.is_set():
                    self._less.set()
                    if self._controller is not None:
                        self._controller.host_reads(True)
        except LinkLost:
            self._lost = True
            self._parts.clear()
            self._less.set()  # whoever waits goes on, and meets the same


class _In:
    """Packets from a process that joined, which may be anything."""

    def __init__(self, controller: VirtualController) -> None:
        self.broken = False
        self._controller = controller

    def on_packet(self, packet: bytes) -> None:
        if self.broken:
            return
        try:
            self._controller.on_packet(packet)
        except Exception:  # bumble's parsers raise whatever they stumble on
            self.broken = True


class _Joined:
    """The socket as a device's host sees it: source and sink of HCI packets."""

    def __init__(self, link: Link) -> None:
        self.terminated: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.device: RadioDevice | None = None
        self._link = link
        self._out = _Out(link)
        self._parser = PacketParser()
        self._host: TransportSink | None = None
        self._tasks = [asyncio.create_task(self._out.run()), asyncio.create_task(self._read())]

    def set_packet_sink(self, sink: TransportSink) -> None:
        self._host = sink
        self._parser.set_packet_sink(sink)

    def on_packet(self, packet: bytes) -> None:
        if self.terminated.done():
            raise RadioGone("the virtual radio is gone")
        self._out.on_packet(packet)

    async def close(self) -> None:
        self._end()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    async def _read(self) -> None:
        with contextlib.suppress(LinkLost, InvalidPacketError):
            while data := await self._link.receive():
                self._parser.feed_data(data)
        self._end()
        await self._link.close()

    def _end(self) -> None:
        if self.terminated.done():
            return
        self.terminated.set_result(None)
        if self.device is not None:
            self.device.lose_radio()
        elif isinstance(self._host, Host):
            fail_command(self._host)
