"""An edge that waits for a phone on BlueZ, against a stand-in for bluetoothd: what it says, when, and who is let in."""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from dbus_fast import MessageType, Variant

from tests.integration.test_bluez_listener import NOTIFY, Edge
from tests.support.fake_bluez import FakeBluez, device, fake_bluez
from transport.errors import LinkLost
from transport.links import bluez_bus, gatt_link, radio
from transport.links.base import Endpoint, Link, connect
from transport.links.gatt import SERVICE, WAITING, Info
from transport.links.radio import OpenRadio, open_radio

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon")


@dataclass
class Lab:
    fake: FakeBluez
    radio: OpenRadio

    def wait(self, name: str = "") -> asyncio.Task[Link]:
        return asyncio.create_task(connect(Endpoint("phone", name), radio=self.radio, timeout_s=60))

    async def shown(self, on: bool) -> None:
        """Until the edge can be found by both ways, or by none."""
        await self.fake.until(lambda: bool(self.fake.advertisement) is bool(self.fake.profile) is on)

    async def phone(self, number: int = 1) -> Edge:
        phone = Edge(self.fake, number)  # a device that has subscribed is one, whoever it is
        await phone.begin()
        return phone


@pytest.fixture
async def lab(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
    monkeypatch.setattr(bluez_bus, "RETRY_S", (0.01, 0.02))
    monkeypatch.setattr(gatt_link, "CLOSE_TIMEOUT_S", 0.05)  # nobody answers at the end of most tests
    async with fake_bluez() as fake:
        made = Lab(fake, await open_radio("system:hci0"))
        yield made
        for end in fake.ends:
            end.close()
        await made.radio.close()
        await fake.until(lambda: not (fake.application or fake.advertisement or fake.profile))


async def exchange(phone: Edge, link: Link) -> None:
    phone.pipe.send(b"there" * 200)
    answer = asyncio.create_task(link.send(b"back" * 200))
    assert await phone.carry(800) == b"back" * 200
    await answer
    got = b""
    while len(got) < 1000:
        got += await link.receive()
    assert got == b"there" * 200


async def cancelled(waiting: asyncio.Task[Link]) -> None:
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


async def test_what_bluez_is_told_and_for_how_long(lab: Lab) -> None:
    assert not lab.fake.application and not lab.fake.profile
    waiting = lab.wait()
    await lab.shown(True)
    told = await lab.fake.ask(
        "/causeway_advertisement", "org.freedesktop.DBus.Properties", "GetAll", "s", "org.bluez.LEAdvertisement1")
    assert {name: value.value for name, value in told.body[0].items()} == {
        "Type": "peripheral", "ServiceUUIDs": [WAITING], "LocalName": "Causeway", "Discoverable": True}
    objects = await lab.fake.ask("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    assert objects.body[0]["/causeway/service"]["org.bluez.GattService1"]["UUID"].value == SERVICE
    for mtu, size in ((517, 495), (185, 182), (23, 20)):
        options: dict[str, Any] = {"device": Variant("o", device(1)), "mtu": Variant("q", mtu)}
        read = await lab.fake.ask(
            "/causeway/service/info", "org.bluez.GattCharacteristic1", "ReadValue", "a{sv}", options)
        assert Info.decode(bytes(read.body[0])) == Info("edge", size, 1)
    phone = await lab.phone()
    link = await waiting
    assert link.peer == "phone:00:00:00:00:00:01"
    lab.radio.worked(link.peer)
    await lab.shown(False)
    await exchange(phone, link)
    assert lab.fake.application, "a phone that comes back finds the same service"
    await link.close("error")
    assert lab.fake.disconnected == [phone.path]


async def test_waiting_that_ends_takes_everything_back(lab: Lab) -> None:
    for name in ("", "van 3"):
        waiting = lab.wait(name)
        await lab.shown(True)
        await cancelled(waiting)
        await lab.shown(False)
    with pytest.raises(LinkLost) as lost:
        await lab.radio.wait_for_phone("", timeout_s=0.0)
    assert lost.value.reason == "out_of_range"
    await lab.shown(False)


async def test_a_second_phone_is_refused_and_comes_later(lab: Lab) -> None:
    waiting = lab.wait()
    await lab.shown(True)
    first = await lab.phone()
    link, second = await waiting, Edge(lab.fake, 2)
    with pytest.raises(PermissionError):
        await lab.fake.acquire(NOTIFY, second.path)
    await link.close("error")
    waiting = lab.wait()
    await lab.shown(True)
    await second.begin()
    await exchange(second, await waiting)
    assert first.path in lab.fake.disconnected


async def test_a_phone_that_begins_before_it_is_needed_is_held(lab: Lab) -> None:
    waiting = lab.wait()
    await lab.shown(True)
    phone = await lab.phone()
    link = await waiting
    phone.pipe.end("done")
    await asyncio.gather(phone.carry(0), link.close())
    again = await lab.phone()
    assert not lab.fake.advertisement
    await exchange(again, await lab.wait())


async def test_a_phone_comes_by_its_serial_port(lab: Lab) -> None:
    waiting = lab.wait()
    await lab.shown(True)
    near, far = socket.socketpair()
    near.setblocking(False)
    assert not await lab.fake.connect(device(2), far)
    link = await waiting
    assert link.peer == "phone:00:00:00:00:00:02"
    lab.radio.worked(link.peer)
    await lab.fake.until(lambda: not lab.fake.advertisement)
    await link.send(b"hello")
    assert await asyncio.get_running_loop().sock_recv(near, 100) == b"hello"
    assert lab.fake.profile, "it stays for as long as its link does"
    second, far = socket.socketpair()
    second.setblocking(False)
    assert not await lab.fake.connect(device(3), far)
    with pytest.raises(LinkLost, match="carries another link"):
        await lab.wait()
    await link.close()
    link = await lab.wait()
    assert link.peer == "phone:00:00:00:00:00:03"
    await link.close()
    assert await asyncio.get_running_loop().sock_recv(second, 100) == b""
    await lab.fake.until(lambda: not lab.fake.profile)
    near.close()
    second.close()


async def test_a_serial_port_waits_for_its_turn(lab: Lab) -> None:
    waiting = lab.wait()
    await lab.shown(True)
    phone = await lab.phone()
    link = await waiting
    near, far = socket.socketpair()
    near.setblocking(False)
    assert not await lab.fake.connect(device(2), far)
    await link.close("error")
    waiting = lab.wait()
    link = await waiting
    assert link.peer == "phone:00:00:00:00:00:02" and phone.path in lab.fake.disconnected
    await link.send(b"hello")
    assert await asyncio.get_running_loop().sock_recv(near, 100) == b"hello"
    await link.close()
    near.close()


async def test_without_rfcomm_there_is_low_energy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object) -> Any:
        raise LinkLost("the system's Bluetooth service refuses", reason="unavailable")

    monkeypatch.setattr(radio, "listen", refused)
    waiting = lab.wait()
    await lab.fake.until(lambda: lab.fake.advertisement)
    phone = await lab.phone()
    await exchange(phone, await waiting)


async def test_waiting_outlives_bluez(lab: Lab) -> None:
    waiting = lab.wait()
    await lab.shown(True)
    lab.fake.restart()
    await lab.shown(True)
    phone = await lab.phone()
    await exchange(phone, await waiting)


async def test_without_a_radio_that_is_on_it_says_so_at_once(lab: Lab) -> None:
    lab.fake.powered = False
    with pytest.raises(LinkLost, match="switched off") as lost:
        await lab.wait()
    assert (lost.value.reason, lost.value.hint) == ("unavailable", "switch it on")
    lab.fake.powered = True
    waiting = lab.wait()
    await lab.shown(True)
    await cancelled(waiting)
    await lab.fake.stop()
    with pytest.raises(LinkLost, match="does not run"):
        await lab.wait()
    await lab.fake.start()


async def test_closing_the_radio_ends_a_wait(lab: Lab) -> None:
    waiting = lab.wait()
    await lab.shown(True)
    await lab.radio.close()
    with pytest.raises(LinkLost, match="is gone"):
        await waiting
    await lab.shown(False)


async def test_a_strange_read_is_answered(lab: Lab) -> None:
    waiting = lab.wait()
    await lab.shown(True)
    read = await lab.fake.ask("/causeway/service/info", "org.bluez.GattCharacteristic1", "ReadValue", "a{sv}", {})
    assert read.message_type is MessageType.METHOD_RETURN
    assert Info.decode(bytes(read.body[0])) == Info("edge", 495, 1)
    await cancelled(waiting)
