"""BlueZ on this machine with virtual adapters hci0 and hci1, which can be pulled out, and started anew at will."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from dbus_fast import Variant

from transport.errors import LinkLost
from transport.links.bluez_bus import ADAPTER, BluezBus

HOP, EDGE = 0, 1  # numbers of the adapters
DAEMON = "/usr/libexec/bluetooth/bluetoothd"
CONFIG = Path("/etc/bluetooth/main.conf")
LOG = Path("/tmp/bluetoothd.log")
AIR = "/tmp/air.sock"  # where a host of its own joins the virtual controllers
LIMIT_S = 30.0
_ATT, _DYNAMIC = 4, 0x40  # channels of L2CAP: the fixed one of the attribute protocol, the first that can be opened


class Stack:
    """Close it at the end: the machine's own life is short, but a test of the tests is not."""

    def __init__(self, phy: str = "instant", *options: str) -> None:
        self._phy, self._options = phy, options
        self.exits = contextlib.AsyncExitStack()
        self.lab: object = None  # of the steps with sessions
        self._bus = BluezBus(lambda _: None)

    async def start(self) -> None:
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        command = [sys.executable, "-m", "tests.bluez.radio", self._phy, AIR]
        self._radio = await asyncio.create_subprocess_exec(*command, **pipes)
        for number in (HOP, EDGE):
            await self.radio(f"add {number}")
        await self._bus.open()
        await self.start_daemon()

    async def radio(self, command: str) -> str:
        """What the virtual controllers answer, see tests/bluez/radio.py."""
        assert self._radio.stdin is not None and self._radio.stdout is not None
        self._radio.stdin.write(command.encode() + b"\n")
        answer = await asyncio.wait_for(self._radio.stdout.readline(), LIMIT_S)
        assert answer.startswith(b"done"), answer
        return answer[4:].strip().decode()

    async def count(self) -> tuple[int, dict[str, list[int]]]:
        """Since this was asked last: connections of Low Energy, and how many frames each controller's host has sent by
        each bearer of the attribute protocol, the fixed one first. A controller that joined is called "joined".
        """
        connections: int = 0
        frames: dict[str, list[int]] = {}
        for what, number in (word.split("=") for word in (await self.radio("count")).split()):
            controller, _, channel = what.partition(":")
            if not channel:
                connections = int(number)
            elif int(channel) == _ATT:
                frames.setdefault(controller, []).insert(0, int(number))
            elif int(channel) >= _DYNAMIC:
                frames.setdefault(controller, []).append(int(number))
        return connections, frames

    async def start_daemon(self, *, bearers: int = 1) -> None:
        """`bearers` of the attribute protocol on a connection: more than one is EATT."""
        CONFIG.write_text(f"[GATT]\nChannels={bearers}\n")  # noqa: ASYNC240
        with LOG.open("ab") as log:  # noqa: ASYNC230
            self._daemon = await asyncio.create_subprocess_exec(DAEMON, "-n", *self._options, stdout=log, stderr=log)
        for number in (HOP, EDGE):
            await self.switch_on(number)

    async def stop_daemon(self) -> None:
        self._daemon.terminate()
        await asyncio.wait_for(self._daemon.wait(), LIMIT_S)

    async def switch_on(self, number: int) -> None:
        """Waits until BlueZ has the adapter, and that it is on."""
        path = f"/org/bluez/hci{number}"
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    if (await self._bus.objects())[path][ADAPTER]["Powered"].value:
                        return
                    await self._bus.call(path, "org.freedesktop.DBus.Properties", "Set", "ssv", ADAPTER, "Powered",
                                         Variant("b", True))
                except (LinkLost, KeyError):
                    await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def classic(self) -> AsyncIterator[None]:
        """Adapters that can BR/EDR as well, instead of the others: with those, BlueZ may choose either for a device."""
        await self._replug(" classic")
        try:
            yield
        finally:
            await self._replug("")

    async def _replug(self, kind: str) -> None:
        for number in (HOP, EDGE):
            await self.radio(f"remove {number}")
        for number in (HOP, EDGE):
            await self.radio(f"add {number}{kind}")
            await self.switch_on(number)

    async def close(self) -> None:
        await self.exits.aclose()
        self._bus.close()
        for process in (self._daemon, self._radio):
            if process.returncode is None:
                process.kill()
                await process.wait()
