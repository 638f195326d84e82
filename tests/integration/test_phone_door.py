"""An edge that waits for a phone, on a virtual radio and in virtual time: who is let in, when, and who is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from bleak import BleakScanner
from bleak.exc import BleakError

from tests.support.memory_link import memory_links
from tests.support.phone_central import PhoneCentral
from tests.support.virtually import in_virtual_time
from transport.errors import BadInput, LinkLost
from transport.links import ble_central, gatt_bumble, radio
from transport.links.base import Endpoint, Link, connect, listen
from transport.links.gatt import ADVERTISED, SERVICE, WAITING
from transport.links.phone import HELD_MAX
from transport.links.radio import OpenRadio
from transport.links.virtual_air import PHYS, Phy
from transport.links.virtual_bleak import bleak_backend
from transport.links.virtual_radio import VirtualRadio

ANY = Endpoint.parse("phone:")


class Lab:
    """An edge's radio on an air of its own, and whoever else is on it."""

    def __init__(self, phy: Phy | str) -> None:
        self.air = VirtualRadio(phy, seed=1)
        self.radios: list[OpenRadio] = []
        self.edge: OpenRadio

    async def radio(self, name: str) -> OpenRadio:
        device = await self.air.device(name)
        self.radios.append(OpenRadio(device, device.close))
        return self.radios[-1]

    async def phone(self, name: str = "phone") -> PhoneCentral:
        return PhoneCentral(await self.air.device(name))

    def wait(self, endpoint: Endpoint = ANY, *, timeout_s: float = 30.0) -> asyncio.Task[Link]:
        return asyncio.create_task(connect(endpoint, radio=self.edge, timeout_s=timeout_s))

    async def heard(self, seconds: float = 3.0) -> list[tuple[list[str], str | None]]:
        """UUIDs and name of everybody who advertises."""
        backend = bleak_backend(await self.air.device("listener"))
        async with BleakScanner(backend=backend.scanner) as scanner:
            await asyncio.sleep(seconds)
        heard = scanner.discovered_devices_and_advertisement_data.values()
        return [(data.service_uuids, data.local_name) for _, data in heard]


@asynccontextmanager
async def lab(phy: Phy | str = "2m") -> AsyncIterator[Lab]:
    made = Lab(phy)
    made.edge = await made.radio("edge")
    try:
        yield made
    finally:
        for one in made.radios:
            await one.close()


async def exchange(one: Link, two: Link, size: int = 5_000) -> None:
    """Bytes both ways."""
    for sender, receiver in ((one, two), (two, one)):
        sending, got = asyncio.create_task(sender.send(b"x" * size)), 0
        while got < size:
            got += len(await receiver.receive())
        await sending


@in_virtual_time
async def test_the_edge_is_found_while_it_waits_and_not_otherwise() -> None:
    async with lab() as made:
        assert await made.heard() == []
        waiting = made.wait()
        assert await made.heard() == [([WAITING], "Causeway")], "nothing that tells this edge from another"
        phone = await made.phone()
        await phone.connect()
        far, near = await phone.begin(), await waiting
        assert await made.heard() == [([WAITING], "Causeway")], "whoever has begun a pipe may be nobody's phone"
        made.edge.worked("phone:00:00:00:00:00:00")
        assert len(await made.heard()) == 1
        made.edge.worked(near.peer)
        assert await made.heard() == []
        await exchange(near, far)
        assert phone.info is not None and (phone.info.role, phone.info.value_size) == ("edge", 495)
        assert near.peer.startswith("phone:")
        await asyncio.gather(near.close(), far.close())
        assert await made.heard() == []


@in_virtual_time
async def test_a_name_is_shown_if_it_is_wanted() -> None:
    async with lab() as made:
        for name in ("van 3", "boat 4"):
            waiting = made.wait(Endpoint.parse(f"phone:{name}"))
            assert await made.heard() == [([WAITING], name)]
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


@in_virtual_time
async def test_waiting_ends_in_time_or_when_it_is_cancelled() -> None:
    loop = asyncio.get_running_loop()
    async with lab() as made:
        begun = loop.time()
        with pytest.raises(LinkLost) as lost:
            await made.wait(timeout_s=30.0)
        assert (lost.value.reason, lost.value.hint is not None) == ("out_of_range", True)
        assert 30.0 <= loop.time() - begun < 31.0
        assert await made.heard() == []
        waiting = made.wait()
        assert len(await made.heard()) == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await made.heard() == []
        phone, waiting = await made.phone(), made.wait()
        await phone.connect()
        await exchange(await phone.begin(), await waiting)


@in_virtual_time
async def test_a_wait_that_is_cancelled_anywhere_leaves_a_radio_that_works(caplog: pytest.LogCaptureFixture) -> None:
    async with lab() as made:
        phone = await made.phone()
        for turns in range(0, 120, 3):
            waiting = made.wait()
            coming = asyncio.create_task(phone.connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            waiting = made.wait()
            await coming
            far, near = await phone.begin(), await waiting
            await exchange(near, far, 100)
            await asyncio.gather(near.close(), far.close())
            await phone.client.disconnect()
        assert await made.heard() == []
    assert not caplog.records


@in_virtual_time
async def test_the_next_pipe_is_held_until_it_is_needed() -> None:
    async with lab() as made:
        phone, waiting = await made.phone(), made.wait()
        await phone.connect()
        far, near = await phone.begin(), await waiting
        await asyncio.gather(near.close(), far.close())
        second = await phone.begin()
        await asyncio.sleep(1000)
        assert phone.client.is_connected and await made.heard() == []
        near = await made.wait()
        await exchange(near, second)
        await asyncio.gather(near.close(), second.close())
        await asyncio.sleep(gatt_bumble.SUBSCRIBE_S + 1)
        assert not phone.client.is_connected, "one who begins no other is shown out"


@pytest.mark.parametrize("leaves", [True, False])
@in_virtual_time
async def test_a_held_phone_that_leaves_or_speaks_first_is_waited_for_anew(leaves: bool) -> None:
    async with lab() as made:
        phone, waiting = await made.phone(), made.wait()
        await phone.connect()
        far, near = await phone.begin(), await waiting
        await asyncio.gather(near.close(), far.close())
        held = await phone.begin()
        if leaves:
            await phone.client.disconnect()
        else:
            await held.send(b"GET / HTTP/1.1")
            assert await held.receive() == b""
            await held.close()
            await phone.client.disconnect()
        await asyncio.sleep(1)
        waiting = made.wait()
        await phone.connect()
        await exchange(await phone.begin(), await waiting)


@pytest.mark.parametrize("turns", range(4))
@in_virtual_time
async def test_a_phone_that_comes_as_one_that_left_is_found_out_is_used(turns: int) -> None:
    """In whichever turn of the loop."""
    async with lab() as made:
        first, second = await made.phone("first"), await made.phone("second")
        waiting = made.wait()
        await first.connect()
        await second.connect()
        far, near = await first.begin(), await waiting
        await asyncio.gather(near.close(), far.close())
        await first.begin()  # which is held
        await first.client.disconnect()
        await asyncio.sleep(1)
        door = made.edge._door
        assert door is not None
        waiting = made.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        one, other = memory_links()
        arriving = asyncio.create_task(door._arrived(one))
        near = await waiting
        await exchange(near, other)
        await near.close()
        await arriving


@in_virtual_time
async def test_one_phone_at_a_time_and_the_others_wait_for_it_to_leave() -> None:
    async with lab() as made:
        first, second, third = [await made.phone(name) for name in ("first", "second", "third")]
        waiting = made.wait()
        await first.connect()
        await second.connect()
        far, near = await first.begin(), await waiting
        made.edge.worked(near.peer)
        held = await second.begin()
        with pytest.raises(LinkLost) as lost:
            await made.wait()
        assert lost.value.reason == "limit"
        coming = asyncio.create_task(third.connect())
        await asyncio.sleep(100)
        assert not coming.done(), "the third finds nobody who waits"
        await exchange(near, far)
        await asyncio.gather(near.close(), far.close())
        far = await first.begin()
        await asyncio.sleep(1)
        near = await made.wait()
        await exchange(near, far)  # it has worked, and has not left
        await near.close("error")
        await far.close()
        near = await made.wait()
        await coming
        last = await third.begin()
        await exchange(near, held)
        await near.close("error")
        await exchange(await made.wait(), last)


async def nothing_but_begin(device: PhoneCentral) -> None:
    """One who stays, begins the next pipe as soon as the last one has ended, and says nothing."""
    while True:
        with suppress(BleakError, LinkLost):
            await device.connect()
            try:
                while True:
                    far = await device.begin()
                    with suppress(LinkLost):
                        while await far.receive():
                            pass
                    await far.close()
            finally:
                with suppress(BleakError):
                    await device.client.disconnect()
        await asyncio.sleep(0.1)


async def handshake(made: Lab) -> bool:
    """As an edge does: whether whoever has come answers within 15 s."""
    near = await made.wait()
    try:
        await near.send(b"hello")
        async with asyncio.timeout(15):
            return await near.receive() == b"answer"
    except (LinkLost, TimeoutError):
        return False
    finally:
        await near.close()


@pytest.mark.parametrize("strangers", [1, 3])
@in_virtual_time
async def test_devices_that_begin_pipes_for_ever_do_not_keep_a_phone_out(strangers: int) -> None:
    async with lab() as made:
        phone = await made.phone()
        tasks = [asyncio.create_task(nothing_but_begin(await made.phone(f"stranger {n}"))) for n in range(strangers)]
        assert not await handshake(made)

        async def answer() -> None:
            await phone.connect()
            far = await phone.begin()
            await far.receive()
            await far.send(b"answer")
            await far.receive()

        tasks.append(asyncio.create_task(answer()))
        assert [await handshake(made) for _ in range(strangers + 1)].count(True) == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@in_virtual_time
async def test_pipes_that_are_held_are_bounded_and_one_of_each_device() -> None:
    async with lab() as made:
        phone, waiting = await made.phone(), made.wait()
        await phone.connect()
        await phone.begin()
        near = await waiting
        door = made.edge._door
        assert door is not None
        arriving, ends = [], []
        for number in (*range(HELD_MAX), 0, HELD_MAX):
            one, other = memory_links()
            one.peer = f"ble:{number}"
            arriving.append(asyncio.create_task(door._arrived(one)))
            ends.append(other)
            await asyncio.sleep(1)
        assert [task.done() for task in arriving] == [True, *[False] * HELD_MAX, True]
        await near.close("error")
        turns = []
        for _ in range(HELD_MAX):
            near = await made.wait()
            turns.append(near.peer)
            await near.close()
        assert turns == [f"phone:{number}" for number in (*range(1, HELD_MAX), 0)]
        await asyncio.gather(*arriving)


@in_virtual_time
async def test_a_held_phone_is_not_lost_to_a_wait_that_is_cancelled() -> None:
    async with lab() as made:
        phone, waiting = await made.phone(), made.wait()
        await phone.connect()
        far, near = await phone.begin(), await waiting
        await asyncio.gather(near.close(), far.close())
        held = await phone.begin()
        await asyncio.sleep(1)
        for turns in range(1, 200):
            waiting = made.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            if waiting.done():
                break
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert 1 < turns < 199
        await exchange(held, await waiting)


@in_virtual_time
async def test_a_lost_phone_is_waited_for_again() -> None:
    async with lab(replace(PHYS["2m"], supervision_s=2.0)) as made:
        phone, waiting = await made.phone(), made.wait()
        await phone.connect()
        far, near = await phone.begin(), await waiting
        made.air.out_of_range("phone", True)
        with pytest.raises(LinkLost):
            await near.receive()
        await near.close()
        assert await made.heard() == [], "the edge decides whether it is found again"
        made.air.out_of_range("phone", False)
        waiting = made.wait()
        with suppress(BleakError):
            await phone.client.disconnect()
        await far.close()
        await phone.connect()
        await exchange(await phone.begin(), await waiting)


@in_virtual_time
async def test_one_who_connects_and_begins_nothing_is_shown_out() -> None:
    async with lab() as made:
        stranger, phone, waiting = await made.phone("stranger"), await made.phone(), made.wait(timeout_s=60)
        await stranger.connect()
        await phone.connect()
        await exchange(await phone.begin(), await waiting)
        await asyncio.sleep(gatt_bumble.SUBSCRIBE_S + 1)
        assert (stranger.client.is_connected, phone.client.is_connected) == (False, True)


@in_virtual_time
async def test_a_radio_is_central_and_peripheral_at_once() -> None:
    async with lab() as made:
        arrived: asyncio.Queue[Link] = asyncio.Queue()

        async def hold(link: Link) -> None:
            arrived.put_nowait(link)
            await asyncio.Event().wait()

        hop = await made.radio("hop")
        listener = await listen(Endpoint.parse("ble:"), hold, radio=hop)
        phone, waiting = await made.phone(), made.wait()
        up = await made.edge.connect("", timeout_s=20)
        await phone.connect()
        far, near = await phone.begin(), await waiting
        await asyncio.gather(exchange(up, await arrived.get(), 50_000), exchange(near, far, 50_000))
        await listener.close()


@in_virtual_time
async def test_a_hop_and_an_edge_that_waits_are_not_mistaken_for_each_other() -> None:
    async with lab() as made:
        other, phone, waiting = await made.radio("other"), await made.phone(), made.wait(timeout_s=300)
        with pytest.raises(LinkLost) as lost:
            await other.connect("", timeout_s=20)
        assert lost.value.reason == "out_of_range", "it saw no hop"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        async def nothing(link: Link) -> None:
            await link.receive()

        listener = await listen(Endpoint.parse("ble:"), nothing, radio=other)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20):
                await phone.connect()
        await listener.close()


@in_virtual_time
async def test_an_edge_that_looks_like_a_hop_is_found_out_and_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADVERTISED, "edge", SERVICE)
    loop = asyncio.get_running_loop()
    async with lab() as made:
        other, waiting = await made.radio("other"), made.wait(timeout_s=1000)
        with pytest.raises(LinkLost, match="is an edge") as lost:
            await other.connect("", timeout_s=20)
        assert lost.value.reason == "error"
        begun = loop.time()
        with pytest.raises(LinkLost) as lost:
            await other.connect("", timeout_s=20)
        assert lost.value.reason == "out_of_range" and not waiting.done()
        await asyncio.sleep(ble_central.EDGE_REST_S - (loop.time() - begun) + 1)
        with pytest.raises(LinkLost, match="is an edge"):
            await other.connect("", timeout_s=20)
        waiting.cancel()


@in_virtual_time
async def test_the_value_size_is_what_the_connection_carries() -> None:
    async with lab(replace(PHYS["2m"], mtu=185)) as made:
        phone, waiting = await made.phone(), made.wait()
        await phone.connect()
        assert phone.info is not None and phone.info.value_size == 182
        await exchange(await phone.begin(), await waiting)


@in_virtual_time
async def test_a_radio_that_goes_while_one_waits_is_told() -> None:
    async with lab() as made:
        waiting = made.wait()
        await asyncio.sleep(1)
        begun = asyncio.get_running_loop().time()
        await made.edge._peripheral._device.close()
        for attempt in (waiting, made.wait()):
            with pytest.raises(LinkLost, match="is gone") as lost:
                await attempt
            assert lost.value.reason == "unavailable"
        assert asyncio.get_running_loop().time() < begun + 5


@in_virtual_time
async def test_closing_the_radio_ends_a_wait() -> None:
    async with lab() as made:
        waiting = made.wait()
        await asyncio.sleep(1)
        await made.edge.close()
        with pytest.raises(LinkLost, match="is gone"):
            await waiting


def test_without_a_peripheral_role_it_says_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radio.sys, "platform", "darwin")

    async def wait() -> None:
        await connect(ANY, radio=OpenRadio())

    with pytest.raises(BadInput) as bad:
        asyncio.run(wait())
    assert "dongle" in (bad.value.hint or "")


async def test_nobody_listens_on_it_and_it_needs_a_radio() -> None:
    with pytest.raises(BadInput):
        await connect(ANY)
    with pytest.raises(BadInput):
        await listen(ANY, lambda link: link.close())
