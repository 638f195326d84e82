"""The peripheral on BlueZ against a stand-in for bluetoothd: what it says, several edges, and each way it goes away."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice

from tests.support.fake_bluez import FakeBluez, device, fake_bluez
from transport.errors import BadInput, LinkLost
from transport.links import bluez_bus, gatt_bluez, gatt_link
from transport.links.base import Link
from transport.links.ble_central import BleCentral
from transport.links.gatt import INFO, RX, SERVICE, TX, GattPipe, Info
from transport.links.gatt_bluez import BluezPeripheral
from transport.links.radio import open_radio

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon")
NOTIFY, WRITE = "AcquireNotify", "AcquireWrite"


class Edge:
    """A device that has subscribed, at the sockets that BlueZ got."""

    def __init__(self, fake: FakeBluez, number: int) -> None:
        self.fake, self.path = fake, device(number)
        self.pipe = GattPipe(495, 0, 0, 0.0)
        self.rx: socket.socket

    async def subscribe(self) -> None:
        self.tx = await self.fake.acquire(NOTIFY, self.path)

    async def begin(self) -> None:
        await self.subscribe()
        self.rx = await self.fake.acquire(WRITE, self.path)

    async def carry(self, until: int) -> bytes:
        """Moves values both ways until that many bytes have come."""
        loop, data = asyncio.get_running_loop(), b""
        async with asyncio.timeout(60):
            while True:
                while (value := self.pipe.next_value(0.0)) is not None:
                    await loop.sock_sendall(self.rx, value)
                data += self.pipe.read(65536)
                if len(data) >= until and not self.pipe.buffered:
                    return data
                self.pipe.receive_value(await loop.sock_recv(self.tx, 512), 0.0)


class Lab:
    def __init__(self, fake: FakeBluez) -> None:
        self.fake = fake
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.peripheral = BluezPeripheral("hci0")

    async def hold(self, link: Link) -> None:
        self.links.put_nowait(link)
        await asyncio.Event().wait()

    async def edge(self, number: int = 1) -> tuple[Edge, Link]:
        edge = Edge(self.fake, number)
        await edge.begin()
        return edge, await asyncio.wait_for(self.links.get(), 60)


@pytest.fixture
async def lab(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
    monkeypatch.setattr(bluez_bus, "RETRY_S", (0.01, 0.02))
    monkeypatch.setattr(gatt_link, "CLOSE_TIMEOUT_S", 0.05)  # nobody answers at the end of most tests
    says(monkeypatch, "bluetoothctl: 5.66\n")
    async with fake_bluez() as fake:
        made = Lab(fake)
        await made.peripheral.listen(made.hold, name="")
        yield made
        for end in fake.ends:
            end.close()
        await made.peripheral.close()


def says(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    async def bluez_says() -> str:
        return version

    monkeypatch.setattr(gatt_bluez, "_bluez_says", bluez_says)


async def lost(link: Link) -> None:
    async with asyncio.timeout(60):
        with pytest.raises(LinkLost):
            await link.receive()


async def test_H17_what_bluez_is_told_is_the_service_and_nothing_of_this_hop(lab: Lab) -> None:
    assert lab.fake.application == lab.fake.advertisement != ""
    reply = await lab.fake.ask("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    told = {path: {name: value.value for name, value in next(iter(interfaces.values())).items()}
            for path, interfaces in reply.body[0].items()}
    assert told.pop("/causeway_advertisement") == {
        "Type": "peripheral", "ServiceUUIDs": [SERVICE], "LocalName": "Causeway", "Discoverable": True}
    assert {one["UUID"]: one.get("Flags") for one in told.values()} == {
        SERVICE: None, RX: ["write-without-response"], TX: ["notify"], INFO: ["read"]}
    again = await lab.fake.ask(
        "/causeway_advertisement", "org.freedesktop.DBus.Properties", "GetAll", "s", "org.bluez.LEAdvertisement1")
    assert again.body[0]["ServiceUUIDs"].value == [SERVICE]
    read = await lab.fake.ask("/causeway/service/info", "org.bluez.GattCharacteristic1", "ReadValue", "a{sv}", {})
    assert Info.decode(bytes(read.body[0])) == Info("hop", 495, 1)


async def test_bytes_go_both_ways_and_the_end_is_the_end(lab: Lab) -> None:
    edge, link = await lab.edge()
    edge.pipe.send(b"there" * 2_000)
    answer = asyncio.create_task(link.send(b"back" * 2_000))
    assert await edge.carry(8_000) == b"back" * 2_000
    await answer
    got = b""
    while len(got) < 10_000:
        got += await link.receive()
    assert got == b"there" * 2_000
    edge.pipe.end("done")
    assert await asyncio.gather(edge.carry(0), link.receive()) == [b"", b""]


async def test_nothing_is_granted_before_the_first_value_is_here(lab: Lab) -> None:
    edge, _ = await lab.edge()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.get_running_loop().sock_recv(edge.tx, 512)
    await asyncio.get_running_loop().sock_sendall(edge.rx, edge.pipe.next_value(0.0) or b"")
    async with asyncio.timeout(60):
        assert (await asyncio.get_running_loop().sock_recv(edge.tx, 512))[0] == 0x80


async def test_what_bluez_spoils_while_a_socket_is_acquired_does_no_harm(lab: Lab) -> None:
    edge, link = await lab.edge()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(edge.rx, b"\x12garbage")
    edge.pipe.send(b"whole")
    await edge.carry(0)
    assert await link.receive() == b"whole"


async def test_a_first_value_that_comes_by_two_sockets_came_once(lab: Lab) -> None:
    edge, link = await lab.edge()
    edge.rx.send(b"\0twice")
    second = await lab.fake.acquire(WRITE, edge.path)
    second.send(b"\0twice")
    assert await link.receive() == b"twice"
    second.send(b"\1once")
    assert await link.receive() == b"once"


@pytest.mark.parametrize("version", ["bluetoothctl: 5.66", ""])
async def test_an_old_bluez_serves_one_edge_at_a_time(lab: Lab, version: str) -> None:
    edge, link = await lab.edge(1)
    await lab.fake.until(lambda: not lab.fake.advertisement)
    for what in (NOTIFY, WRITE):
        with pytest.raises(PermissionError):
            await lab.fake.acquire(what, device(2))
    edge.tx.close()  # as BlueZ does when a device unsubscribes or disconnects
    await lost(link)
    await link.close()
    await lab.fake.until(lambda: lab.fake.advertisement)
    await lab.edge(2)


async def test_a_newer_bluez_serves_several(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    await lab.peripheral.close()
    says(monkeypatch, "bluetoothctl: 5.82\n")
    lab.peripheral = BluezPeripheral()
    await lab.peripheral.listen(lab.hold, name="kitchen")
    pairs = [await lab.edge(number) for number in range(gatt_bluez.CENTRALS_MAX)]
    await lab.fake.until(lambda: not lab.fake.advertisement)
    with pytest.raises(PermissionError):
        await lab.fake.acquire(NOTIFY, device(99))
    for number, (edge, link) in enumerate(pairs):
        edge.pipe.send(bytes([number]) * 5)
        await edge.carry(0)
        assert await link.receive() == bytes([number]) * 5 and link.peer.endswith(f"0{number}")


async def test_an_edge_that_subscribes_again_gets_a_new_pipe(lab: Lab) -> None:
    _, link = await lab.edge()
    again, other = await lab.edge()
    await lost(link)
    await link.close()
    again.pipe.send(b"new")
    await again.carry(0)
    assert await other.receive() == b"new"
    assert not lab.fake.disconnected


async def test_a_device_that_has_gone_is_a_lost_link(lab: Lab) -> None:
    edge, link = await lab.edge()
    lab.fake.leave(edge.path)
    await lost(link)


async def test_a_link_that_is_closed_for_no_good_end_takes_the_connection_away(lab: Lab) -> None:
    edge, link = await lab.edge()
    await asyncio.get_running_loop().sock_sendall(edge.rx, b"\x80" + bytes(8))
    await asyncio.get_running_loop().sock_sendall(edge.rx, b"\x7f not granted")
    await lost(link)
    await link.close()
    assert lab.fake.disconnected == [edge.path]


@pytest.mark.parametrize("quickly", [False, True])
async def test_it_comes_back_with_bluez_however_quickly_that_is_restarted(lab: Lab, quickly: bool) -> None:
    _, link = await lab.edge()
    if quickly:
        lab.fake.restart()
    else:
        await lab.fake.stop()
        await lab.fake.start()
    await lost(link)
    await link.close()
    await lab.fake.until(lambda: lab.fake.application and lab.fake.advertisement)
    await lab.edge()


async def test_it_comes_back_with_its_adapter(lab: Lab) -> None:
    _, link = await lab.edge()
    lab.fake.pull_out()
    await lost(link)
    await link.close()
    assert not lab.fake.application
    lab.fake.plug_in()
    await lab.fake.until(lambda: lab.fake.application and lab.fake.advertisement)
    await lab.edge()


async def test_it_comes_back_when_bluetooth_is_switched_on_again(lab: Lab) -> None:
    _, link = await lab.edge()
    lab.fake.switch(False)
    await lost(link)
    await link.close()
    lab.fake.advertisement = ""
    lab.fake.switch(True)
    await lab.fake.until(lambda: lab.fake.application and lab.fake.advertisement)
    await lab.edge()


async def test_closing_takes_everything_back(lab: Lab) -> None:
    edge, _ = await lab.edge()
    await lab.peripheral.close()
    assert not lab.fake.application and not lab.fake.advertisement
    assert lab.fake.disconnected == [edge.path]


async def test_without_an_adapter_or_bluez_the_reason_is_said(lab: Lab) -> None:
    with pytest.raises(BadInput):
        await lab.peripheral.listen(lab.hold, name="")
    for words, fault in (
        ("switched off", lambda: setattr(lab.fake, "powered", False)),
        ("no Bluetooth radio", lambda: lab.fake.adapters.clear()),
    ):
        fault()
        with pytest.raises(LinkLost, match=words) as caught:
            await BluezPeripheral().listen(lab.hold, name="")
        assert (caught.value.reason, bool(caught.value.hint)) == ("unavailable", True)
    await lab.fake.stop()
    with pytest.raises(LinkLost, match="does not run"):
        await BluezPeripheral().listen(lab.hold, name="")


async def test_an_adapter_is_named_or_the_first(lab: Lab) -> None:
    with pytest.raises(LinkLost, match="no Bluetooth radio"):
        await BluezPeripheral("hci1").listen(lab.hold, name="")
    for wrong in ("system:", "system:hci", "system:../hci0", "system:hci0 "):
        with pytest.raises(BadInput):
            await open_radio(wrong)
    await (await open_radio("system:hci0")).close()


async def test_a_central_asks_bluez_where_bleak_was_told_the_least(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rx(longest: int) -> Any:
        return SimpleNamespace(max_write_without_response_size=longest, obj=(f"{device(1)}/service0001/char0002", {}))

    assert await BleCentral()._longest(rx(20)) == 514
    assert await BleCentral()._longest(rx(182)) == 182
    assert await BleCentral(client=BaseBleakClient)._longest(rx(20)) == 20  # another's characteristic is no path
    lab.fake.mtu = 23
    assert await BleCentral()._longest(rx(20)) == 20
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nobody")
    assert await BleCentral()._longest(rx(20)) == 20


@pytest.mark.parametrize(("said", "kept"), [
    ({"Paired": False, "Trusted": False, "Blocked": False, "Connected": False}, False), ({}, False),
    ({"Paired": True}, True), ({"Trusted": True}, True), ({"Blocked": True}, True), ({"Connected": True}, True),
])
async def test_a_central_has_bluez_forget_a_hop_but_nobody_that_is_known(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: dict[str, bool], kept: bool
) -> None:
    lab.fake.devices = {device(1): {"Connected": False} | said, device(2): {"Connected": False}}
    hop = BLEDevice("00:00:00:00:00:01", None, {"path": device(1)})
    await BleCentral(client=BaseBleakClient)._forget(hop)  # another's device has no path
    assert device(1) in lab.fake.devices
    await BleCentral()._forget(hop)
    assert (device(1) in lab.fake.devices, device(2) in lab.fake.devices) == (kept, True)
    await BleCentral()._forget(hop)  # it is not known any more
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nobody")
    await BleCentral()._forget(hop)
