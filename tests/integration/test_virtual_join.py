"""A virtual radio that several processes join, and what happens when one of them dies, hangs or talks nonsense."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from bleak.exc import BleakBluetoothNotAvailableError, BleakError
from bumble import hci
from bumble.device import Connection

from tests.support.plain_gatt import DOWN, UP, Peripheral, connected, find, write_all
from transport.errors import LinkLost
from transport.links.base import RECEIVE_MAX
from transport.links.virtual_air import Phy
from transport.links.virtual_bleak import bleak_backend
from transport.links.virtual_device import RadioDevice
from transport.links.virtual_join import OUT_HIGH, RadioServer, _Out, join_radio, serve_radio
from transport.links.virtual_radio import DEVICES_MAX

LIMIT_S = 60.0  # real time, and only to end a test that hangs
QUICK = Phy(supervision_s=1.5)


class Lab:
    """A served radio, and devices that are closed in the end."""

    def __init__(self, path: Path, phy: Phy) -> None:
        self.path, self.phy = path, phy
        self.devices: list[RadioDevice] = []
        self.server: RadioServer

    async def __aenter__(self) -> "Lab":
        self.server = await serve_radio(self.path, self.phy, seed=1)
        return self

    async def __aexit__(self, *_: object) -> None:
        for device in self.devices:
            await device.close()
        await self.server.close()

    async def join(self, name: str) -> RadioDevice:
        self.devices.append(await join_radio(self.path, name))
        return self.devices[-1]

    async def hop(self) -> Peripheral:
        peripheral = Peripheral(await self.join("hop"))
        await peripheral.advertise("hop")
        return peripheral


def limited(phy: Phy = QUICK) -> Callable[[Callable[[Lab], Coroutine[Any, Any, None]]], Any]:
    """Gives the test a Lab, and ends it if it hangs."""

    def decorate(test: Callable[[Lab], Coroutine[Any, Any, None]]) -> Any:
        async def run(tmp_path: Path) -> None:
            async with asyncio.timeout(LIMIT_S), Lab(tmp_path / "radio", phy) as lab:
                await test(lab)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - of another process, which sets no event here
        await asyncio.sleep(0.005)


@limited()
async def test_devices_join_find_each_other_and_carry_bytes(lab: Lab) -> None:
    peripheral, edge = await lab.hop(), await lab.join("edge")
    hop = lab.devices[0]
    assert hop.public_address != edge.public_address and hop.random_address != edge.random_address
    async with connected(edge) as client:
        await write_all(client, bytes(49_500), 495)
        await peripheral.received(49_500)
        lab.server.radio.drop("edge")  # by the name that its host told
        await until(lambda: not client.is_connected)
        await client.connect()


@limited()
async def test_who_leaves_is_missed_and_may_come_back(lab: Lab) -> None:
    _, edge = await lab.hop(), await lab.join("edge")
    hop = lab.devices[0]
    async with connected(edge) as client:
        request = asyncio.create_task(client.read_gatt_char(DOWN))
        await hop.close()
        with pytest.raises(BleakError):
            await request
        await until(lambda: not client.is_connected)
    again = await lab.hop()
    async with connected(edge) as client:
        await client.write_gatt_char(UP, b"x", response=True)
    assert again.size == 1


@limited()
async def test_the_end_of_the_radio_is_told_to_everyone(lab: Lab) -> None:
    peripheral, edge = await lab.hop(), await lab.join("edge")
    hop = lab.devices[0]
    async with connected(edge) as client:
        scan = asyncio.create_task(find(bleak_backend(edge)))
        connect = asyncio.create_task(edge.connect("C0:00:00:00:77:77"))
        await asyncio.sleep(0)
        await lab.server.close()
        await until(lambda: edge.radio_lost and hop.radio_lost)
        assert peripheral.gone == [hci.HCI_ErrorCode.HARDWARE_FAILURE_ERROR]
        with pytest.raises(BleakBluetoothNotAvailableError):
            await client.write_gatt_char(UP, b"x", response=False)
        connect.cancel()
        scan.cancel()
        await asyncio.gather(scan, connect, return_exceptions=True)
    with pytest.raises(LinkLost):
        await lab.join("late")


@limited()
async def test_nonsense_on_the_socket_ends_that_one_alone(lab: Lab) -> None:
    edge, _ = await lab.join("edge"), await lab.hop()
    acl_too_long = b"\x02" + (1 << 12 | 0x001).to_bytes(2, "little") + b"\x01\x00x"  # continues nothing
    nonsense = [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\x01\x03\x0c\x05ab", b"\x01\x43\x20\x00" * 50,
                b"\x04\x0e\x00", acl_too_long, os.urandom(RECEIVE_MAX), b""]
    async with connected(edge) as client:
        for part in nonsense:
            reader, writer = await asyncio.open_unix_connection(lab.path)
            with contextlib.suppress(OSError):
                writer.write(part)
                writer.write_eof()
                await writer.drain()
                await reader.read()
            writer.close()
        reader, writer = await asyncio.open_unix_connection(lab.path)
        writer.write(b"\x04\x0e\x00")  # well framed, and no packet
        assert await reader.read() == b""
        writer.close()
        await client.write_gatt_char(UP, b"x", response=True)


class Sleeper:
    """A process that joined, and reads nothing while it is asleep."""

    def __init__(self, device: RadioDevice) -> None:
        self.awake = asyncio.Event()
        link = device.host.hci_sink._link  # type: ignore[union-attr]
        receive = link.receive

        async def when_awake() -> bytes:
            await self.awake.wait()
            return await receive()

        link.receive = when_awake


def of(peripheral: Peripheral, device: RadioDevice) -> Connection:
    return next(c for c in peripheral.connections if bytes(c.peer_address) == bytes(device.random_address))


@limited(Phy())
async def test_who_does_not_read_for_a_while_loses_nothing(lab: Lab) -> None:
    peripheral, edge = await lab.hop(), await lab.join("edge")
    sent = [number.to_bytes(2, "big") * 240 for number in range(1500)]
    reached: list[bytes] = []
    async with connected(edge) as client:
        await client.start_notify(DOWN, lambda _, value: reached.append(bytes(value)))
        sleeper = Sleeper(edge)

        async def flood() -> None:
            for value in sent:
                await peripheral.notify(of(peripheral, edge), value)

        flooding = asyncio.create_task(flood())
        await until(lambda: any(controller.antenna.full for controller in lab.server.radio._on_air))
        waiting = [controller.host._size for controller in lab.server.radio._on_air]  # type: ignore[union-attr]
        assert max(waiting) < 2 * RECEIVE_MAX
        assert not flooding.done()
        sleeper.awake.set()
        await flooding
        await until(lambda: len(reached) == len(sent))
        assert reached == sent


@limited()
async def test_who_never_reads_is_taken_for_gone_and_others_are_not_disturbed(lab: Lab) -> None:
    peripheral, edge, other = await lab.hop(), await lab.join("edge"), await lab.join("other")
    async with connected(edge) as client, connected(other) as client2:
        await client.start_notify(DOWN, lambda _, value: None)
        slow = of(peripheral, edge)
        sleeper = Sleeper(edge)

        async def flood() -> None:
            while True:
                await peripheral.notify(slow, bytes(480))

        flooding = asyncio.create_task(flood())
        await until(lambda: bool(peripheral.gone))
        assert peripheral.gone == [hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR]
        flooding.cancel()
        await client2.write_gatt_char(UP, bytes(495), response=True)
        assert client2.is_connected
        sleeper.awake.set()
        await until(lambda: not client.is_connected)


@limited()
async def test_no_more_devices_than_the_radio_takes(lab: Lab) -> None:
    for number in range(DEVICES_MAX):
        lab.server.radio.controller(f"c{number}")
    with pytest.raises(LinkLost, match="does not answer"):
        await lab.join("one more")


async def _start(role: str, path: Path, *before: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *before, sys.executable, "-W", "error", "-m", "tests.support.radio_process", role, str(path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def test_three_processes_and_the_radio_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "radio"
    async with asyncio.timeout(LIMIT_S):
        server = await _start("serve", path)
        assert await _line(server) == "serving"
        hop = await _start("hop", path)
        assert await _line(hop) == "advertising"
        edge = await _start("edge", path)
        assert await _line(edge) == "connected"
        assert await _line(edge) == "written"
        server.send_signal(signal.SIGKILL)
        await server.wait()
        assert edge.stdin is not None
        edge.stdin.write(b"\n")
        assert [await _line(edge) for _ in range(2)] == ["BleakBluetoothNotAvailableError"] * 2
        await edge.communicate(b"")
        await hop.communicate(b"")
        assert (edge.returncode, hop.returncode) == (0, 0)


async def test_it_needs_no_network(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        alone = await _start("alone", tmp_path / "radio", "unshare", "-Urn")
        assert (await alone.communicate(b""))[0] == b"4\n"
        assert alone.returncode == 0


async def test_who_is_gone_holds_up_nothing() -> None:
    """What was taken in for a process before it went is still answered, to nobody."""
    class Gone:
        peer = "gone"

        async def send(self, data: bytes) -> None:
            raise LinkLost("gone")

    out = _Out(Gone())  # type: ignore[arg-type]
    out.on_packet(b"x")
    await out.run()
    for _ in range(3):
        out.on_packet(bytes(OUT_HIGH))
    async with asyncio.timeout(LIMIT_S):
        await out.room()
    assert not out._parts
