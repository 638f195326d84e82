"""RFCOMM at both ends: the hop's profile against a stand-in for BlueZ, the edge's sockets against ones of its own."""

import asyncio
import errno
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.fake_bluez import FakeBluez, device, fake_bluez
from transport.errors import BadInput, LinkLost, ProtocolViolation
from transport.links import bluez_bus, rfcomm, sdp
from transport.links.base import RECEIVE_MAX, Endpoint, Link, connect, listen
from transport.links.rfcomm import REDIAL_S, SERVICE, RfcommDialer, RfcommLink
from transport.links.virtual_time import run

needs_bus = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon")
LIMIT_S = 30.0
HOP = Endpoint.parse("rfcomm:00:11:22:33:44:55")


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeBluez]:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
    monkeypatch.setattr(bluez_bus, "RETRY_S", (0.01, 0.1))
    async with fake_bluez() as made:
        yield made


async def echo(link: Link) -> None:
    while data := await link.receive():
        await link.send(data)


async def says(fake: FakeBluez, number: int = 1) -> bytes:
    """What comes back to a device that connects and sends a word."""
    near, far = socket.socketpair()
    with near:
        near.setblocking(False)
        assert not await fake.connect(device(number), far)
        near.send(b"pump")
        return await heard(near)


async def heard(near: socket.socket) -> bytes:
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.get_running_loop().sock_recv(near, 100)


@needs_bus
@pytest.mark.parametrize(("text", "channel"), [("rfcomm:", 0), ("rfcomm:?channel=17", 17)])
async def test_what_bluez_is_told_of_the_service(fake: FakeBluez, text: str, channel: int) -> None:
    listener = await listen(Endpoint.parse(text), echo)
    assert fake.profile_options == {
        "UUID": SERVICE, "Name": "Causeway", "Role": "server", "Channel": channel, "RequireAuthentication": False,
        "RequireAuthorization": False,
    }
    assert str(listener.endpoint) == text
    await listener.close()
    assert not fake.profile


@needs_bus
@pytest.mark.parametrize(("before", "meanwhile"), [
    ({"Discoverable": False, "DiscoverableTimeout": 180}, {"Discoverable": True, "DiscoverableTimeout": 0}),
    ({"Discoverable": False, "DiscoverableTimeout": 180, "Connectable": False},
     {"Discoverable": False, "DiscoverableTimeout": 180, "Connectable": True}),
], ids=["old BlueZ", "new BlueZ"])
async def test_the_adapter_lets_strangers_in_as_long_as_the_hop_listens(
    fake: FakeBluez, before: dict[str, object], meanwhile: dict[str, object]
) -> None:
    fake.set, fake.powered = dict(before), False
    listener = await listen(Endpoint.parse("rfcomm:"), echo)
    assert fake.set == before
    fake.switch(True)
    await fake.until(lambda: fake.set == meanwhile)
    await listener.close()
    assert fake.set == before


@needs_bus
async def test_several_edges_and_their_names(fake: FakeBluez) -> None:
    peers = []

    async def note(link: Link) -> None:
        peers.append(link.peer)
        await echo(link)

    listener = await listen(Endpoint.parse("rfcomm:"), note)
    assert [await says(fake, number) for number in (1, 2)] == [b"pump", b"pump"]
    assert peers == ["rfcomm:00:00:00:00:00:01", "rfcomm:00:00:00:00:00:02"]
    await listener.close()


@needs_bus
async def test_a_service_that_bluez_has_forgotten_is_registered_again(fake: FakeBluez) -> None:
    listener = await listen(Endpoint.parse("rfcomm:"), echo)
    fake.restart()
    await fake.until(lambda: fake.profile)
    assert await says(fake) == b"pump"
    await fake.stop()
    await fake.start()
    await fake.until(lambda: fake.profile)
    assert await says(fake) == b"pump"
    await listener.close()


@needs_bus
async def test_the_end_of_the_listener_is_the_end_of_its_links(fake: FakeBluez) -> None:
    listener = await listen(Endpoint.parse("rfcomm:"), echo)
    near, far = socket.socketpair()
    kept = os.dup(far.fileno())  # as BlueZ keeps the connection
    with near:
        near.setblocking(False)
        assert not await fake.connect(device(1), far)
        await listener.close()
        assert await heard(near) == b""
    os.close(kept)


@needs_bus
async def test_descriptors_that_nobody_asked_for_are_closed(fake: FakeBluez) -> None:
    listener = await listen(Endpoint.parse("rfcomm:"), echo)
    near, far = socket.socketpair()
    with near:
        near.setblocking(False)
        assert await fake.connect(device(1), far, member="NoSuchCall")
        assert await heard(near) == b""
    await listener.close()


@needs_bus
async def test_no_bluez(fake: FakeBluez) -> None:
    await fake.stop()
    with pytest.raises(LinkLost) as lost:
        await listen(Endpoint.parse("rfcomm:"), echo)
    assert lost.value.reason == "unavailable" and lost.value.hint


async def test_ends_that_cannot_be() -> None:
    with pytest.raises(BadInput):
        await listen(HOP, echo)
    with pytest.raises(BadInput):
        await connect(Endpoint.parse("rfcomm:"))


class Socket(socket.socket):
    """One end of a pair, which fails with `fault` where there is one."""

    fault = 0

    def send(self, data: memoryview, flags: int = 0) -> int:
        if self.fault:
            raise OSError(self.fault, "a fault")
        return super().send(data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.fault:
            raise OSError(self.fault, "a fault")
        return super().recv(size, flags)


def pair() -> tuple[Socket, socket.socket]:
    near, far = socket.socketpair()
    return Socket(fileno=near.detach()), far


async def test_a_reset_ends_the_file_after_its_last_byte() -> None:
    near, far = pair()
    link = RfcommLink(near, "rfcomm:x")
    await link.send(b"never read")
    far.sendall(b"the last")
    far.close()  # with bytes unread, which the other end is shown as a reset
    assert [await link.receive() for _ in range(3)] == [b"the last", b"", b""]
    with pytest.raises(LinkLost):
        await link.send(b"x")
    await link.close()


async def test_nothing_is_watched_after_the_end() -> None:
    near, far = pair()
    link = RfcommLink(near, "rfcomm:x")
    far.close()
    assert await link.receive() == b""
    assert not asyncio.get_running_loop().remove_reader(near)  # which would find it readable for ever
    await link.close()


async def test_what_nobody_takes_stays_in_the_system() -> None:
    near, far = pair()
    link, data = RfcommLink(near, "rfcomm:x"), os.urandom(3 * RECEIVE_MAX)
    far.setblocking(False)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(far, data))
    got = await link.receive()
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(link._inbox) == RECEIVE_MAX
    assert not asyncio.get_running_loop().remove_reader(near)
    while len(got) < len(data):
        got += await link.receive()
    await sending
    assert got == data
    far.send(b"too late")
    far.close()
    for _ in range(10):
        await asyncio.sleep(0)
    await link.close()
    with pytest.raises(LinkLost, match="closed at this end"):
        await link.receive()


async def test_what_is_lost_while_sending_is_lost_for_the_reader() -> None:
    near, far = pair()
    link = RfcommLink(near, "rfcomm:x")
    reading = asyncio.create_task(link.receive())
    await asyncio.sleep(0)
    near.fault = errno.ETIMEDOUT
    for waiting in (link.send(b"x"), reading):
        with pytest.raises(LinkLost, match="was lost"):
            await waiting
    await link.close()
    far.close()


async def test_what_the_radio_loses_is_no_end_of_the_file() -> None:
    near, far = pair()
    link = RfcommLink(near, "rfcomm:x")
    near.fault = errno.ETIMEDOUT
    far.sendall(b"what makes the system say that there is something")
    for _ in range(2):
        with pytest.raises(LinkLost):
            await link.receive()
    near.fault = 0
    with pytest.raises(LinkLost):
        await link.send(b"x")
    await link.close()
    far.close()


def test_the_same_hop_is_not_dialled_again_at_once() -> None:
    async def scenario() -> None:
        loop, dialled = asyncio.get_running_loop(), []

        async def opened(endpoint: Endpoint, ended: Callable[[], None]) -> Link:
            address, channel = rfcomm.address_of(endpoint)
            dialled.append((address[-2:], channel, loop.time() - begun))
            if len(dialled) == 3:
                raise OSError(errno.EHOSTDOWN, "down")
            near, far = socket.socketpair()
            far.close()
            return RfcommLink(near, str(endpoint), ended)

        dialer, begun = RfcommDialer(opened), loop.time()
        other, numbered = (Endpoint.parse(f"{HOP}"[:-2] + end) for end in ("66", "55?channel=3"))
        first = await dialer.connect(HOP, timeout_s=5)
        await asyncio.sleep(10)
        await first.close()
        await (await dialer.connect(other, timeout_s=5)).close()
        with pytest.raises(LinkLost) as lost:
            await dialer.connect(numbered, timeout_s=1)  # less than the pause, which is not counted
        assert lost.value.reason == "out_of_range"
        await (await dialer.connect(HOP, timeout_s=5)).close()
        assert dialled == [("55", None, 0), ("66", None, 10), ("55", 3, 10 + REDIAL_S), ("55", None, 10 + 2 * REDIAL_S)]

    run(scenario())


@pytest.mark.parametrize(("fault", "reason", "words"), [
    (OSError(errno.EHOSTDOWN, ""), "out_of_range", "does not answer"),
    (OSError(errno.EHOSTUNREACH, ""), "unavailable", "no Bluetooth radio"),
    (OSError(errno.EACCES, ""), "refused", "may not"), (OSError(errno.ECONNREFUSED, ""), "lost", "no hop"),
    (OSError(errno.EIO, ""), "lost", "input/output"), (TimeoutError(), "out_of_range", "no answer"),
    (ProtocolViolation("the answer makes no sense"), "lost", "makes no sense"),
])
async def test_what_is_said_of_a_hop_that_cannot_be_reached(fault: Exception, reason: str, words: str) -> None:
    async def opened(endpoint: Endpoint, ended: Callable[[], None]) -> Link:
        raise fault

    with pytest.raises(LinkLost) as lost:
        await RfcommDialer(opened).connect(HOP, timeout_s=5)
    assert lost.value.reason == reason and words in str(lost.value) and lost.value.hint


@pytest.mark.parametrize(("platform", "has", "to_do"), [
    ("linux", [], "libbluetooth-dev"),  # as built by pyenv or conda where its headers are not
    ("darwin", [], "hci:usb:0"),
    ("win32", ["AF_BLUETOOTH", "BTPROTO_RFCOMM"], "hci:usb:0"),  # since Python 3.9
])
async def test_a_python_without_bluetooth_sockets_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, platform: str, has: list[str], to_do: str
) -> None:
    for name in ("AF_BLUETOOTH", "BTPROTO_RFCOMM", "BTPROTO_L2CAP"):
        monkeypatch.delattr(socket, name, raising=False)
    for name in has:
        monkeypatch.setattr(socket, name, 32, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(LinkLost, match="no Bluetooth sockets") as lost:
        await RfcommDialer().connect(HOP, timeout_s=5)
    assert lost.value.reason == "unavailable" and to_do in lost.value.hint


async def test_a_hop_without_bluez_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BadInput, match="needs Linux") as refused:
        await listen(Endpoint.parse("rfcomm:"), echo)
    assert "hci:usb:0" in refused.value.hint


@pytest.mark.parametrize("found", [22, None])
async def test_the_channel_is_asked_of_the_hop(monkeypatch: pytest.MonkeyPatch, found: int | None) -> None:
    """Sockets of this system's own stand for Bluetooth's; `sdp`, which reads the record, has tests of its own."""
    asked, theirs_kept = [], []

    async def connected(sock: socket.socket, address: str, port: int) -> socket.socket:
        sock.close()
        asked.append((address, port))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if port == sdp.PSM:
            ours.setblocking(False)
            theirs.sendall(b"an answer")
        theirs_kept.append(theirs)
        return ours

    for name, value in (("AF_BLUETOOTH", socket.AF_UNIX), ("BTPROTO_L2CAP", 0), ("BTPROTO_RFCOMM", 0)):
        monkeypatch.setattr(socket, name, value, raising=False)
    monkeypatch.setattr(rfcomm, "_connected", connected)
    monkeypatch.setattr(sdp, "channel", lambda answer, number: found if answer == b"an answer" else 99)
    dialling = RfcommDialer().connect(HOP, timeout_s=5)
    if found is None:
        with pytest.raises(LinkLost):
            await dialling
    else:
        await (await dialling).close()
    assert asked == [(HOP.address, sdp.PSM), (HOP.address, 22)][:1 if found is None else 2]
    for theirs in theirs_kept:
        theirs.close()
