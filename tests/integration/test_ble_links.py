"""Links over Bluetooth: the edge's and the hop's own code on a virtual radio, good and bad company, in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from bleak import BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import BaseBleakScanner
from bleak.backends.service import BleakGATTServiceCollection
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDBusError,
    BleakError,
)
from bumble.att import ATT_CID
from bumble.core import UUID, AdvertisingData
from bumble.gatt import Characteristic, Service

from tests.support.virtually import in_virtual_time
from transport.errors import BadInput, LinkLost
from transport.links import gatt_bumble
from transport.links.base import Endpoint, Link, connect, listen
from transport.links.ble_central import LOOK_S, BleCentral
from transport.links.gatt import INFO, RX, SERVICE, STARVED_S, TX, VALUE_MAX
from transport.links.radio import OpenRadio, open_radio
from transport.links.virtual_air import PHYS, Phy
from transport.links.virtual_bleak import Backend, bleak_backend
from transport.links.virtual_join import serve_radio
from transport.links.virtual_radio import VirtualRadio


class Lab:
    """A virtual radio and what is on it. `links` are the hop's ends of links, whose handlers wait until `over`, or read
    until there is nothing more if it `drains`.
    """

    def __init__(self, phy: Phy | str, seed: int) -> None:
        self.air = VirtualRadio(phy, seed=seed)
        self.radios: list[OpenRadio] = []
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.over = asyncio.Event()
        self.drains = False
        self.hop: OpenRadio

    async def radio(self, name: str) -> OpenRadio:
        device = await self.air.device(name)
        self.radios.append(OpenRadio(device, device.close))
        return self.radios[-1]

    async def hold(self, link: Link) -> None:
        self.links.put_nowait(link)
        if not self.drains:
            await self.over.wait()
            return
        with suppress(LinkLost):
            while await link.receive():
                pass

    async def arrival(self) -> Link:
        async with asyncio.timeout(60):
            return await self.links.get()

    async def pair(self, edge: OpenRadio) -> tuple[Link, Link]:
        return await edge.connect("", timeout_s=20), await self.arrival()

    @property
    def centrals(self) -> int:
        """How many connections the hop knows of."""
        return len(self.hop._peripheral._listener._centrals)

    async def stranger(self, name: str = "stranger") -> BleakClient:
        """Somebody else's program on a radio of its own, connected to the hop."""
        backend = bleak_backend(await self.air.device(name))
        return await self.meet(backend)

    async def meet(self, backend: Backend) -> BleakClient:
        async with BleakScanner(service_uuids=[SERVICE], backend=backend.scanner) as scanner:
            found, _ = await anext(scanner.advertisement_data())
        client = BleakClient(found, backend=backend.client)
        await client.connect()
        return client


@asynccontextmanager
async def lab(phy: Phy | str = "1m", *, seed: int = 1, name: str = "") -> AsyncIterator[Lab]:
    made = Lab(phy, seed)
    made.hop = await made.radio("hop")
    listener = await listen(Endpoint("ble", name), made.hold, radio=made.hop)
    try:
        yield made
    finally:
        made.over.set()
        await listener.close()
        for radio in made.radios:
            await radio.close()


async def read(link: Link, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await link.receive()
        assert part
        data += part
    return bytes(data)


async def rate(one: Link, two: Link, size: int) -> float:
    """Bytes a second from one end to the other."""
    begun = asyncio.get_running_loop().time()
    data = random.Random(size).randbytes(size)
    _, got = await asyncio.gather(one.send(data), read(two, size))
    assert got == data
    return size / (asyncio.get_running_loop().time() - begun)


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> float:
    """Waits for it; how long it took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not condition():
        assert loop.time() < begun + limit_s
        await asyncio.sleep(0.05)
    return loop.time() - begun


# --- how fast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phy", "ceiling"), [("1m", 100_000), ("2m", 178_000), ("ios", 24_200)])
@in_virtual_time
async def test_the_radio_is_used_to_its_limit(phy: str, ceiling: int) -> None:
    async with lab(phy) as made:
        near, far = await made.pair(await made.radio("edge"))
        for one, two in ((near, far), (far, near)):
            assert await rate(one, two, 200_000) >= 0.92 * ceiling
        await near.close()


@in_virtual_time
async def test_tiny_values_on_a_bad_radio_bring_everything() -> None:
    async with lab("bluez-worst") as made:
        near, far = await made.pair(await made.radio("edge"))
        assert await rate(near, far, 20_000) > 3_000  # ten values of 20 bytes in 50 ms, a loss in twenty
        await near.close()


@in_virtual_time
async def test_several_edges_share_the_radio_fairly() -> None:
    async with lab("1m") as made:
        pairs = [await made.pair(await made.radio(f"edge {number}")) for number in range(4)]
        assert len({far.peer for _, far in pairs}) == 4 and made.centrals == 4
        rates = await asyncio.gather(*(rate(far, near, 50_000) for near, far in pairs))
        assert min(rates) > 0.5 * max(rates) and sum(rates) > 60_000
        await asyncio.gather(*(near.close() for near, _ in pairs))


@in_virtual_time
async def test_an_edge_that_walks_away_does_not_hold_up_the_others() -> None:
    async with lab("1m") as made:
        gone_near, gone_far = await made.pair(await made.radio("walker"))
        near, far = await made.pair(await made.radio("edge"))
        stuck = asyncio.create_task(gone_far.send(bytes(100_000)))
        await asyncio.sleep(0.3)
        made.air.out_of_range("walker", True)
        await asyncio.sleep(0.2)
        assert await rate(far, near, 20_000) > 30_000  # while the walker's values are still in the controller
        assert not stuck.done()
        for end in (stuck, gone_near.receive()):
            with pytest.raises(LinkLost):
                while True:
                    await end
                    end = gone_near.receive()
        await asyncio.gather(near.close(), gone_near.close())


# --- how it ends ------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_drop_is_a_lost_link_at_both_ends_in_the_middle_of_everything() -> None:
    async with lab("1m") as made:
        edge = await made.radio("edge")
        near, far = await made.pair(edge)
        busy = [asyncio.create_task(work) for work in (
            near.send(bytes(500_000)), far.send(bytes(500_000)), read(near, 500_000), read(far, 500_000))]
        await asyncio.sleep(0.5)
        made.air.drop("edge")
        for result in await asyncio.gather(*busy, return_exceptions=True):
            assert isinstance(result, LinkLost) and result.reason == "lost"
        assert made.centrals == 0
        await asyncio.gather(near.close(), far.close())
        again, far = await made.pair(edge)
        assert await rate(again, far, 1_000)
        await again.close()


@in_virtual_time
async def test_bytes_before_the_end_are_read_though_the_radio_has_gone() -> None:
    async with lab("1m") as made:
        near, far = await made.pair(await made.radio("edge"))
        await near.send(b"last words")
        await near.close()
        await until(lambda: made.centrals == 0)
        assert await far.receive() == b"last words" and await far.receive() == b""
        with pytest.raises(LinkLost):
            await far.send(b"x")


@in_virtual_time
async def test_a_radio_that_is_taken_away_is_told_from_a_hop_that_is() -> None:
    async with lab("1m") as made:
        edge = await made.radio("edge")
        near, _ = await made.pair(edge)
        device = made.hop._peripheral._device
        await device.close()
        with pytest.raises(LinkLost):
            await near.receive()
        await near.close()
        with pytest.raises(LinkLost) as lost:
            await edge.connect("", timeout_s=3)
        assert lost.value.reason == "out_of_range" and lost.value.hint
        await edge.close()
        with pytest.raises(LinkLost) as lost:
            await edge.connect("", timeout_s=3)
        assert lost.value.reason == "unavailable" and lost.value.hint


@in_virtual_time
async def test_a_connect_that_is_cancelled_anywhere_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with lab("1m") as made:
        edge, made.drains = await made.radio("edge"), True
        await asyncio.sleep(1)
        before = len(asyncio.all_tasks())
        moments = 0
        for tenths in range(40):
            task = asyncio.create_task(edge.connect("", timeout_s=20))
            await asyncio.sleep(tenths * 0.07)
            if task.done():
                await (await task).close()
                moments += 1
            else:
                task.cancel()
                if tenths % 2:  # by somebody who is impatient
                    await asyncio.sleep(0.001)
                    task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            while not made.links.empty():
                made.links.get_nowait()
            await until(lambda: made.centrals == 0)
            await asyncio.sleep(0.5)
            assert not edge._central._links and not edge._central._leaving
            assert len(asyncio.all_tasks()) <= before
        assert 0 < moments < 30  # some were cancelled in time, some not
        assert not [record for record in caplog.records if record.levelname == "ERROR"]  # bumble and asyncio log faults
        made.drains = False
        near, far = await made.pair(edge)
        assert await rate(near, far, 1_000)
        await near.close()


@in_virtual_time
async def test_a_connection_is_given_back_though_nobody_waits_for_that() -> None:
    async with lab("1m") as made:
        backend = bleak_backend(await made.air.device("edge"))

        class Slow(backend.client):  # type: ignore[name-defined, misc]
            async def disconnect(self) -> None:
                await asyncio.sleep(1)
                await super().disconnect()

        central = BleCentral(backend.scanner, Slow)
        near = await central.connect("", timeout_s=20)
        await made.arrival()
        closing = asyncio.create_task(near.close("error"))
        await asyncio.sleep(0.5)  # both ends have said that they end, and the disconnection has begun
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert made.centrals == 1
        await central.close()
        await until(lambda: made.centrals == 0, 1.0)


@in_virtual_time
async def test_a_listen_that_is_cancelled_is_silent_and_can_be_tried_again() -> None:
    made = Lab("1m", 1)
    hop, edge = await made.radio("hop"), await made.radio("edge")
    for turns in range(12):
        task = asyncio.create_task(hop.listen(made.hold, name=""))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(LinkLost):
            await edge.connect("", timeout_s=1)
    made.hop, listener = hop, await hop.listen(made.hold, name="")
    near, far = await made.pair(edge)
    assert await rate(near, far, 1_000)
    await near.close()
    made.over.set()
    await listener.close()
    for radio in made.radios:
        await radio.close()


@in_virtual_time
async def test_closing_the_listener_ends_everything() -> None:
    async with lab("1m") as made:
        edge = await made.radio("edge")
        near, _ = await made.pair(edge)
        silent = await made.stranger()
        listener = made.hop._peripheral._listener
        await listener.close()
        with pytest.raises(LinkLost):
            await near.send(bytes(100_000))
        await near.close()
        await until(lambda: not silent.is_connected)
        assert made.centrals == 0
        with pytest.raises(LinkLost):
            await edge.connect("", timeout_s=2)
        again = await made.hop.listen(made.hold, name="")
        with pytest.raises(BadInput, match="listens already"):
            await made.hop.listen(made.hold, name="")
        near, far = await made.pair(edge)
        assert await rate(near, far, 1_000)
        await near.close()
        await again.close()


# --- which hop --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_hops_that_work_come_before_hops_that_are_near() -> None:
    made = Lab("1m", 1)
    reached: list[str] = []

    def hold(name: str) -> Callable[[Link], Awaitable[None]]:
        async def on_link(link: Link) -> None:
            reached.append(name)
            await link.receive()

        return on_link

    edge = await made.radio("edge")
    for name, dbm in (("far", -90), ("near", -40), ("nearest", -30)):
        hop = await made.radio(name)
        await hop.listen(hold(name), name=name)
        made.air.signal(name, dbm)

    async def once(*, worked: bool) -> str:
        link = await edge.connect("", timeout_s=20)
        if worked:
            edge.worked(link.peer)
        await link.close()
        await asyncio.sleep(1)
        return reached[-1]

    assert await once(worked=False) == "nearest"  # it leads nowhere
    assert await once(worked=False) == "near"
    assert await once(worked=True) == "far"
    assert await once(worked=True) == "far"  # what has worked is not left for a stronger signal
    made.air.out_of_range("far", True)
    assert await once(worked=True) == "nearest"
    made.air.out_of_range("far", False)
    assert await once(worked=True) == "nearest"  # both have worked: the signal decides
    for radio in made.radios:
        await radio.close()


@in_virtual_time
async def test_nobody_is_looked_for_beside_the_one_hop_that_is_known_to_work() -> None:
    made = Lab("1m", 1)
    edge, hop = await made.radio("edge"), await made.radio("hop")
    await hop.listen(made.hold, name="")
    clock = asyncio.get_running_loop().time
    took = []
    for worked in (True, False, False):
        begun = clock()
        link = await edge.connect("", timeout_s=20)
        took.append(clock() - begun)
        if worked:
            edge.worked(link.peer)
        await link.close()
        await asyncio.sleep(1)
    assert took[1] < took[0] - LOOK_S / 2
    assert took[1] < took[2] - LOOK_S / 2  # the last connection to it had led nowhere
    made.over.set()
    for radio in made.radios:
        await radio.close()


@in_virtual_time
async def test_a_hop_that_has_gone_leaves_time_for_another() -> None:
    made = Lab("1m", 1)
    edge = await made.radio("edge")
    for name, dbm in (("near", -40), ("far", -80)):
        await (await made.radio(name)).listen(made.hold, name=name)
        made.air.signal(name, dbm)
    connecting = asyncio.create_task(edge.connect("", timeout_s=10))
    await asyncio.sleep(0.5)
    made.air.out_of_range("near", True)
    link = await connecting
    assert link.peer == f"ble:{made.radios[2]._peripheral._device.random_address.to_string(False)}"
    made.over.set()
    for radio in made.radios:
        await radio.close()


@in_virtual_time
async def test_a_hop_is_found_by_name_and_by_address() -> None:
    made = Lab("1m", 1)
    edge = await made.radio("edge")
    names = ("north", "warehouse-north-entrance", "warehouse-south-entrance-2nd-floor-behind-the-blue-door")
    for name in names:
        await (await made.radio(name)).listen(made.hold, name=name)
    address = made.radios[1]._peripheral._device.random_address.to_string(with_type_qualifier=False)
    for name in (names[0], address):
        link = await connect(Endpoint.parse(f"ble:{name}"), radio=edge)
        assert link.peer == f"ble:{address}"
        await link.close()
    assert await connect(Endpoint.parse(f"ble:{names[2]}"), radio=edge)
    with pytest.raises(LinkLost) as lost:
        await connect(Endpoint.parse("ble:south"), radio=edge, timeout_s=3)
    assert lost.value.reason == "out_of_range"
    made.over.set()
    for radio in made.radios:
        await radio.close()


async def false_hop(made: Lab, *, info: bytes | None) -> None:
    """A device that says it is a hop; `info` None: and has none of a hop's characteristics."""
    device = await made.air.device("false")
    kinds = Characteristic.Properties
    parts = [] if info is None else [
        Characteristic(RX, kinds.WRITE_WITHOUT_RESPONSE, Characteristic.WRITEABLE, b""),
        Characteristic(TX, kinds.NOTIFY, Characteristic.READABLE, b""),
        Characteristic(INFO, kinds.READ, Characteristic.READABLE, info),
    ]
    device.add_service(Service(SERVICE, parts))
    await device.start_advertising(auto_restart=True, advertising_data=bytes(AdvertisingData([
        (AdvertisingData.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS, bytes(UUID(SERVICE)))])))
    made.air.signal("false", -20)


@pytest.mark.parametrize(("info", "words"), [
    (None, "service"), (b"", "length"), (bytes(500), "length"), (b"\x02\x01\x01\xef\x20", "version"),
    (b"\x01\x01\x01\xef\xff", "bounds"),
])
@in_virtual_time
async def test_a_device_that_only_says_it_is_a_hop_is_passed_over(info: bytes | None, words: str) -> None:
    made = Lab("1m", 1)
    edge = await made.radio("edge")
    await false_hop(made, info=info)
    with pytest.raises(LinkLost, match=words) as lost:
        await edge.connect("", timeout_s=10)
    assert lost.value.reason == "error"
    made.hop = await made.radio("hop")
    listener = await made.hop.listen(made.hold, name="")
    near, far = await made.pair(edge)  # though the false one's signal is stronger
    assert await rate(near, far, 1_000)
    await near.close()
    made.over.set()
    await listener.close()
    for radio in made.radios:
        await radio.close()


@in_virtual_time
async def test_the_value_size_is_asked_for_until_it_is_known() -> None:
    """BlueZ says 20 for a moment, whatever the two ends have agreed on."""
    async with lab("1m") as made:
        backend = bleak_backend(await made.air.device("edge"))
        asked = 0

        class Late(backend.client):  # type: ignore[name-defined, misc]
            def _value_max(self) -> int:
                nonlocal asked
                asked += 1
                return 20 if asked < 4 else int(super()._value_max())

        central = BleCentral(backend.scanner, Late)
        near = await central.connect("", timeout_s=20)
        assert await rate(near, await made.arrival(), 100_000) > 80_000
        await central.close()


@pytest.mark.parametrize("fault", ["absent", "failed"])
@in_virtual_time
async def test_a_hop_whose_services_are_not_shown_at_first_is_asked_again(fault: str) -> None:
    """BlueZ says that services are resolved before it shows those that have moved, and a first connection may fail."""
    async with lab("1m") as made:
        backend = bleak_backend(await made.air.device("edge"))
        connections: list[str] = []

        class Behind(backend.client):  # type: ignore[name-defined, misc]
            async def connect(self, pair: bool, **kwargs: Any) -> None:
                await super().connect(pair, **kwargs)
                connections.append(self.address)
                if len(connections) > 1:
                    return
                if fault == "failed":
                    raise BleakError("failed to discover services, device disconnected")
                self.services = BleakGATTServiceCollection()

        central = BleCentral(backend.scanner, Behind)
        near = await central.connect("", timeout_s=20)
        assert await rate(near, await made.arrival(), 1_000)
        assert len(connections) == 2
        await central.close()


@pytest.mark.parametrize("info", [None, b""])
@in_virtual_time
async def test_a_connection_that_came_to_nothing_is_not_remembered(
    info: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BlueZ may find a hop no longer after half a discovery."""
    forgotten: list[str] = []

    async def forget(_: BleCentral, device: BLEDevice) -> None:
        forgotten.append(device.address)

    monkeypatch.setattr(BleCentral, "_forget", forget)
    async with lab("1m") as made:
        near, far = await made.pair(await made.radio("edge"))
        await asyncio.gather(near.close(), far.close())
    assert not forgotten
    made = Lab("1m", 1)
    edge = await made.radio("edge")
    await false_hop(made, info=info)
    with pytest.raises(LinkLost):
        await edge.connect("", timeout_s=10)
    assert len(forgotten) == 1
    await edge.close()


# --- bad company ------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_stranger_that_begins_no_pipe_is_shown_out() -> None:
    async with lab("1m") as made:
        near, far = await made.pair(await made.radio("edge"))
        stranger = await made.stranger()
        assert made.centrals == 2
        transfer = asyncio.create_task(rate(near, far, 1_500_000))
        assert 5 < await until(lambda: not stranger.is_connected) < 12
        assert made.centrals == 1 and await transfer > 90_000
        await near.close()


@in_virtual_time
async def test_M20_garbage_on_every_characteristic_disturbs_nobody() -> None:
    dice = random.Random(7)
    async with lab("2m") as made:
        near, far = await made.pair(await made.radio("edge"))
        device = await made.air.device("stranger")
        backend = bleak_backend(device)
        for subscribed in (False, True):
            stranger = await made.meet(backend)
            service = stranger.services.get_service(SERVICE)
            assert service is not None
            if subscribed:
                await stranger.start_notify(TX, lambda *_: None)
                far_one = await made.arrival()
            for number in range(300):
                for part in service.characteristics:
                    value = dice.randbytes(dice.choice([0, 1, 2, 9, 20, 400, 495, 512]))
                    try:
                        await stranger.write_gatt_char(part, value, response=number % 10 == 0)
                    except BleakError:
                        if not stranger.is_connected:
                            break
            if subscribed:  # one who breaks the rules of a pipe has to go
                with pytest.raises(LinkLost) as lost:
                    while True:
                        await far_one.receive()
                assert lost.value.reason == "error"
                await far_one.close()
                await until(lambda: not stranger.is_connected)  # noqa: B023
            await stranger.disconnect()
        assert await rate(near, far, 50_000) > 0.92 * 178_000
        await near.close()


@pytest.mark.parametrize(
    "value", [b"", b"\x00", bytes(VALUE_MAX + 1), bytes(512), b"\x28jump", b"\x82?", b"\x01a\x01b"]
)
@in_virtual_time
async def test_what_is_no_value_ends_the_strangers_pipe_with_a_clear_error(value: bytes) -> None:
    async with lab("1m") as made:
        stranger = await made.stranger()
        await stranger.start_notify(TX, lambda *_: None)
        far = await made.arrival()
        await stranger.write_gatt_char(RX, b"\x00hello", response=False)
        if value == b"\x01a\x01b":  # the same number twice
            await stranger.write_gatt_char(RX, b"\x00hello", response=False)
        else:
            await stranger.write_gatt_char(RX, value, response=False)
        assert await read(far, 5) == b"hello"
        with pytest.raises(LinkLost) as lost:
            await far.receive()
        assert lost.value.reason == "error"
        await far.close()
        await until(lambda: not stranger.is_connected)


@in_virtual_time
async def test_a_peer_that_never_reads_is_given_up_in_time_and_bounded() -> None:
    async with lab("1m") as made:
        near, far = await made.pair(await made.radio("edge"))
        loop = asyncio.get_running_loop()
        begun, sent = loop.time(), 0
        with pytest.raises(LinkLost, match="takes nothing"):
            while True:
                await near.send(bytes(1_000))
                sent += 1_000
        assert sent < 48 * 1024 and STARVED_S <= loop.time() - begun < STARVED_S + 5
        await asyncio.gather(near.close(), far.close())


@in_virtual_time
async def test_M20_a_central_that_grants_nothing_is_given_up() -> None:
    async with lab("1m") as made:
        stranger = await made.stranger()
        await stranger.start_notify(TX, lambda *_: None)
        far = await made.arrival()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(LinkLost, match="takes nothing"):
            await far.send(bytes(100_000))
        assert asyncio.get_running_loop().time() - begun < STARVED_S + 5
        await far.close()
        await until(lambda: not stranger.is_connected)


@pytest.mark.parametrize(("requests", "alone"), [(20, False), (100_000, False), (100_000, True)])
@in_virtual_time
async def test_one_who_asks_and_takes_no_answer_holds_nobody_up(requests: int, alone: bool) -> None:
    """Its answers would fill the controller's few buffers, or the memory behind them. It acknowledges nothing, yet is
    on the air, so that the radio itself does not end the connection.
    """
    async with lab(replace(PHYS["1m"], supervision_s=30.0)) as made:
        edge = await made.radio("edge")
        link = None if alone else await made.pair(edge)
        device = await made.air.device("stranger")
        stranger = await made.meet(bleak_backend(device))
        (controller,) = [one for one in made.air._on_air if one.is_called("stranger")]
        controller.host_reads(False)
        (connection,) = device.connections.values()
        info = stranger.services.get_characteristic(INFO)
        assert info is not None
        queue = made.hop._peripheral._device.host.le_acl_packet_queue
        most = 0

        async def ask() -> None:
            nonlocal most
            for number in range(requests):
                if not controller.ends:
                    return
                device.send_l2cap_pdu(connection.handle, ATT_CID, b"\x0a" + info.handle.to_bytes(2, "little"))
                if number % 8 == 7:
                    await device.host.le_acl_packet_queue.drain(connection.handle)
                most = max(most, queue.pending)

        asking = asyncio.create_task(ask())
        await until(lambda: not controller.ends, 5)
        near, far = link or await made.pair(edge)
        assert await rate(far, near, 50_000) > 80_000 and await rate(near, far, 50_000) > 80_000
        assert most < 4_000 and queue.pending < 20
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await near.close()


@in_virtual_time
async def test_a_value_a_minute_is_a_slow_peer_and_no_error() -> None:
    async with lab("1m") as made:
        near, far = await made.pair(await made.radio("edge"))
        for number in range(30):
            await asyncio.sleep(60)
            await near.send(bytes([number]))
            assert await far.receive() == bytes([number])
        await near.close()


@in_virtual_time
async def test_hundreds_of_connects_leave_nothing_behind() -> None:
    async with lab("2m") as made:
        near, far = await made.pair(await made.radio("edge"))
        backend = bleak_backend(await made.air.device("stranger"))
        tasks = len(asyncio.all_tasks())
        for number in range(200):
            stranger = await made.meet(backend)
            if number % 2:
                await stranger.start_notify(TX, lambda *_: None)
                await made.arrival()
            await stranger.disconnect()
        await asyncio.sleep(gatt_bumble.SUBSCRIBE_S + 1)
        listener = made.hop._peripheral._listener
        assert made.centrals == 1 and len(listener._chores) <= 1
        made.over.set()
        await until(lambda: len(listener._links._running) == 0)
        assert len(asyncio.all_tasks()) <= tasks
        del near, far


@in_virtual_time
async def test_a_full_hop_is_silent_until_there_is_room() -> None:
    async with lab("1m") as made:
        strangers = [await made.stranger(f"stranger {number}") for number in range(gatt_bumble.CENTRALS_MAX)]
        edge = await made.radio("edge")
        with pytest.raises(LinkLost) as lost:
            await edge.connect("", timeout_s=2)
        assert lost.value.reason == "out_of_range"
        await strangers[3].disconnect()
        near, far = await made.pair(edge)
        assert await rate(near, far, 1_000)
        await near.close()


@in_virtual_time
async def test_a_new_pipe_needs_no_new_connection() -> None:
    async with lab("1m") as made:
        stranger, last = await made.stranger(), None
        for number in range(5):
            values: list[bytes] = []
            await stranger.start_notify(TX, lambda _, value, got=values: got.append(bytes(value)))  # type: ignore[misc]
            if last is not None:
                await last.close()  # the hop is not always quicker than the edge
            last = far = await made.arrival()
            await stranger.write_gatt_char(RX, b"\x00" + bytes([number]), response=False)
            assert await far.receive() == bytes([number])
            await stranger.write_gatt_char(RX, b"\x80\0\0\0\x20\0\0\0\x01", response=False)
            await far.send(b"answer")
            await until(lambda: b"\x00answer" in values)  # noqa: B023
            if number % 2:  # in an orderly way, or not
                await stranger.write_gatt_char(RX, b"\x81\x00\0\0\0\x01", response=False)
                assert await far.receive() == b""
                await until(lambda: values[-1] == b"\x81\x00\x00\x00\x00\x01")  # noqa: B023
            await stranger.stop_notify(TX)
            if not number % 2:
                with pytest.raises(LinkLost):
                    await far.receive()
        assert last is not None
        await last.close()
        assert stranger.is_connected and made.centrals == 1
        await until(lambda: not stranger.is_connected)  # and one who begins none has to go, as at first


# --- radios that cannot be had ----------------------------------------------------------------------------------------


def scanner_that_raises(error: BaseException) -> type[BaseBleakScanner]:
    class Scanner(BaseBleakScanner):
        def __init__(self, detection_callback: Any, service_uuids: Any, *_: Any, **__: Any) -> None:
            super().__init__(detection_callback, service_uuids)

        async def start(self) -> None:
            raise error

        async def stop(self) -> None:
            raise AssertionError("what has not begun is not stopped")

    return Scanner


def not_available(reason: BleakBluetoothNotAvailableReason) -> BleakError:
    return BleakBluetoothNotAvailableError("private words of a system", reason)


@pytest.mark.parametrize(("error", "reason", "words"), [
    (not_available(BleakBluetoothNotAvailableReason.NO_BLUETOOTH), "unavailable", "no Bluetooth radio"),
    (not_available(BleakBluetoothNotAvailableReason.NO_BLE_CENTRAL_ROLE), "unavailable", "no Bluetooth radio"),
    (not_available(BleakBluetoothNotAvailableReason.POWERED_OFF), "unavailable", "switched off"),
    (not_available(BleakBluetoothNotAvailableReason.DENIED_BY_USER), "refused", "may not use"),
    (not_available(BleakBluetoothNotAvailableReason.DENIED_BY_SYSTEM), "refused", "may not use"),
    (not_available(BleakBluetoothNotAvailableReason.DENIED_BY_UNKNOWN), "refused", "may not use"),
    (BleakDBusError("org.freedesktop.DBus.Error.AccessDenied", ["private words"]), "refused", "may not use"),
    (BleakDBusError("org.bluez.Error.NotPermitted", []), "refused", "may not use"),
    (BleakDBusError("org.bluez.Error.NotReady", ["Resource Not Ready"]), "unavailable", "switched off"),
    (BleakDBusError("org.freedesktop.DBus.Error.ServiceUnknown", []), "unavailable", "does not run"),
    (BleakDBusError("org.bluez.Error.InProgress", []), "lost", "failed"),
    (FileNotFoundError(2, "private words"), "unavailable", "cannot be reached"),
    (PermissionError(13, "private words"), "refused", "may not use"),
    (EOFError(), "unavailable", "cannot be reached"),
    (BleakError("private words"), "lost", "failed"),
])
@in_virtual_time
async def test_a_radio_that_cannot_be_had_is_named(error: Exception, reason: str, words: str) -> None:
    central = BleCentral(scanner_that_raises(error))
    with pytest.raises(LinkLost, match=words) as lost:
        await central.connect("", timeout_s=5)
    assert lost.value.reason == reason and lost.value.hint and "private" not in str(lost.value) + lost.value.hint
    await central.close()


async def test_what_is_no_radio_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in ("", "systems", "virtual:", "virtual", "hci:", "usb:0"):
        with pytest.raises(BadInput, match="not a radio"):
            await open_radio(spec)
    with pytest.raises(LinkLost):
        await open_radio(f"virtual:{tmp_path}/nobody")
    for where in ("usb:99", "file:/nowhere", "nonsense", "tcp-client:127.0.0.1:1"):
        with pytest.raises(LinkLost) as lost:
            await open_radio(f"hci:{where}")
        assert lost.value.reason == "unavailable" and lost.value.hint
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nobody")
    radio = await open_radio("system")
    with pytest.raises(LinkLost, match="cannot be reached") as lost:
        await radio.listen(lambda _: asyncio.sleep(0), name="")
    assert lost.value.reason == "unavailable" and lost.value.hint
    await radio.close()
    monkeypatch.setattr("sys.platform", "win32")
    radio = await open_radio("system")
    with pytest.raises(BadInput, match="cannot be a hop"):
        await radio.listen(lambda _: asyncio.sleep(0), name="")
    await radio.close()
    with pytest.raises(BadInput, match="no Bluetooth radio is open"):
        await connect(Endpoint.parse("ble:"))
    with pytest.raises(BadInput, match="no Bluetooth radio is open"):
        await listen(Endpoint.parse("ble:"), lambda _: asyncio.sleep(0))


async def test_radios_of_one_air_are_opened_by_its_path(tmp_path: Any) -> None:
    """As in several processes; here they share one."""
    server = await serve_radio(tmp_path / "air")
    spec = f"virtual:{tmp_path}/air"
    hop, edge = await open_radio(spec), await open_radio(spec)
    links: asyncio.Queue[Link] = asyncio.Queue()
    over = asyncio.Event()

    async def hold(link: Link) -> None:
        links.put_nowait(link)
        await over.wait()

    listener = await listen(Endpoint.parse("ble:here"), hold, radio=hop)
    near = await connect(Endpoint.parse("ble:here"), radio=edge)
    assert await rate(near, await links.get(), 50_000) > 0
    over.set()
    await near.close()
    await listener.close()
    await asyncio.gather(hop.close(), edge.close())
    await hop.close()  # again
    await server.close()
