"""bleak and bumble's GATT over the virtual radio: rates, flow control, drops, and bumble's traps."""

import asyncio
import contextlib
import random
from dataclasses import replace

import pytest
from bleak import BleakClient, BleakScanner
from bleak.exc import BleakBluetoothNotAvailableError, BleakDeviceNotFoundError, BleakError
from bumble import hci

from tests.support.plain_gatt import DOWN, SERVICE, UP, Peripheral, connected, find, write_all
from tests.support.virtually import in_virtual_time
from transport.errors import BadInput, LinkLost, ProtocolViolation
from transport.links import virtual_time
from transport.links.virtual_air import PHYS, Phy
from transport.links.virtual_bleak import bleak_backend
from transport.links.virtual_device import RadioDevice
from transport.links.virtual_radio import DEVICES_MAX, VirtualRadio

NO_DLE = replace(PHYS["1m"], pdu=27, mtu=23)
DATA = random.Random(7).randbytes(360_000)


async def hop_and_edge(phy: Phy | str, *, seed: int = 1) -> tuple[VirtualRadio, Peripheral, RadioDevice]:
    radio = VirtualRadio(phy, seed=seed)
    hop = Peripheral(await radio.device("hop"))
    await hop.advertise("hop")
    return radio, hop, await radio.device("edge")


@pytest.mark.parametrize(("phy", "value_size", "ceiling"), [
    (PHYS["1m"], 495, 100_280), (PHYS["2m"], 495, 177_800), (NO_DLE, 20, 29_590), (PHYS["ios"], 182, 24_270),
])
@in_virtual_time
async def test_values_reach_the_ceiling_of_the_radio_both_ways(phy: Phy, value_size: int, ceiling: float) -> None:
    _, hop, edge = await hop_and_edge(phy)
    loop, data = asyncio.get_running_loop(), DATA[:round(2 * ceiling)]
    async with connected(edge) as client:
        up = client.services.get_characteristic(UP)
        assert up is not None and min(495, up.max_write_without_response_size) == value_size
        start = loop.time()
        await write_all(client, data, value_size)
        await hop.received(len(data))
        assert 0.97 * ceiling < len(data) / (loop.time() - start) <= ceiling
        assert b"".join(value for _, value in hop.values) == data

        heard, over = bytearray(), asyncio.Event()

        def notified(_: object, value: bytearray) -> None:
            heard.extend(value)
            if len(heard) >= len(data):
                over.set()

        await client.start_notify(DOWN, notified)
        start = loop.time()
        for at in range(0, len(data), value_size):
            await hop.notify(hop.connections[0], data[at:at + value_size])
        await over.wait()
        assert 0.97 * ceiling < len(data) / (loop.time() - start) <= ceiling
        assert bytes(heard) == data


@in_virtual_time
async def test_packet_errors_only_delay() -> None:
    _, hop, edge = await hop_and_edge(replace(PHYS["1m"], per=0.1))
    async with connected(edge) as client:
        start = asyncio.get_running_loop().time()
        await write_all(client, DATA, 495)
        await hop.received(len(DATA))
        assert b"".join(value for _, value in hop.values) == DATA
        rate = len(DATA) / (asyncio.get_running_loop().time() - start)
        assert 70_000 < rate < 0.92 * 100_280


def test_the_same_seed_takes_the_same_course() -> None:
    async def course(seed: int) -> list[tuple[float, bytes]]:
        _, hop, edge = await hop_and_edge(PHYS["bluez-worst"], seed=seed)
        async with connected(edge) as client:
            await write_all(client, DATA[:2000], 20)
            await hop.received(2000)
        return hop.values

    first = virtual_time.run(course(1))
    assert virtual_time.run(course(1)) == first
    assert virtual_time.run(course(2)) != first


@in_virtual_time
async def test_three_edges_share_one_hop_fairly() -> None:
    radio, hop, _ = await hop_and_edge("1m")
    share, counts, spread = 99_000, [0, 0, 0], []

    def count(_: object, value: bytes) -> None:
        counts[value[0]] += len(value)
        if max(counts) < share:
            spread.append(max(counts) - min(counts))

    hop.on_value = count
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(await radio.device(name))) for name in "abc"]
        start = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                group.create_task(write_all(client, bytes((number,)) * share, 495))
        await hop.received(3 * share)
        assert 3 * share / (asyncio.get_running_loop().time() - start) == pytest.approx(100_000, rel=0.03)
        assert max(spread) < 20_000  # two connection events


@in_virtual_time
async def test_a_drop_is_noticed_on_both_sides_and_the_same_client_connects_again() -> None:
    radio, hop, edge = await hop_and_edge("1m")
    gone = asyncio.Event()
    async with connected(edge, disconnected_callback=lambda _: gone.set()) as client:
        await write_all(client, DATA[:5000], 495)
        radio.drop("hop")
        await asyncio.wait_for(gone.wait(), 1)
        assert not client.is_connected
        assert hop.gone == [hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR]
        for response in (False, True):
            with pytest.raises(BleakError, match="not connected"):
                await client.write_gatt_char(UP, b"x", response=response)
        await client.connect()
        before = hop.size
        await write_all(client, DATA[:5000], 495)
        await hop.received(before + 5000)
    await asyncio.sleep(1)
    assert hop.gone[1:] == [hci.HCI_ErrorCode.REMOTE_USER_TERMINATED_CONNECTION_ERROR]


@in_virtual_time
async def test_a_short_absence_delays_and_a_long_one_ends_the_connection() -> None:
    radio, hop, edge = await hop_and_edge("1m")
    async with connected(edge) as client:
        radio.out_of_range("edge", True)
        await client.write_gatt_char(UP, b"late", response=False)
        await asyncio.sleep(3)
        assert hop.size == 0
        radio.out_of_range("edge", False)
        await asyncio.wait_for(hop.received(4), 1)
        radio.out_of_range("hop", True)
        await asyncio.sleep(5)
        assert not client.is_connected
        assert hop.gone == [hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR]
        with pytest.raises(BleakDeviceNotFoundError):
            await BleakClient(client.address, timeout=3, backend=bleak_backend(edge).client).connect()
        radio.out_of_range("hop", False)
        await client.connect()


@in_virtual_time
async def test_who_waits_for_an_answer_is_told_when_the_connection_drops() -> None:
    radio, _, edge = await hop_and_edge("1m")
    async with connected(edge) as client:
        radio.out_of_range("hop", True)
        start = asyncio.get_running_loop().time()
        results = await asyncio.gather(*(client.read_gatt_char(DOWN) for _ in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["disconnected"] * 3
        assert {type(result) for result in results} == {BleakError}
        # bumble alone cancels the first one, and lets each of the others wait 30 s
        assert asyncio.get_running_loop().time() - start < 5


@in_virtual_time
async def test_a_blast_waits_for_the_radio_and_fills_no_memory() -> None:
    radio, _, edge = await hop_and_edge("1m")
    async with connected(edge) as client:
        radio.out_of_range("hop", True)
        blast = asyncio.create_task(write_all(client, DATA, 495))
        await asyncio.sleep(2)
        queue = next(iter(edge.connections.values())).data_packet_queue
        assert queue.pending <= radio.phy.buffers + 1
        with pytest.raises(BleakError, match="not connected"):
            await blast


@in_virtual_time
async def test_values_that_gatt_cannot_carry_are_refused() -> None:
    _, hop, edge = await hop_and_edge("instant")
    async with connected(edge) as client:
        assert client.mtu_size == 517
        up = client.services.get_characteristic(UP)
        assert up is not None and up.max_write_without_response_size == 512  # not 514: bumble would drop it silently
        for response in (False, True):
            with pytest.raises(BleakError, match="too long"):
                await client.write_gatt_char(UP, bytes(513), response=response)
            await client.write_gatt_char(UP, bytes(512), response=response)
        await hop.received(1024)


@in_virtual_time
async def test_cancelled_and_timed_out_connects_leave_the_radio_free(caplog: pytest.LogCaptureFixture) -> None:
    radio, hop, edge = await hop_and_edge("1m")
    backend = bleak_backend(edge)
    stumbles: list[object] = []  # of bumble, over answers to commands that were abandoned
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: stumbles.append(context))
    absent = await radio.device("absent")
    with pytest.raises(BleakDeviceNotFoundError):
        await BleakClient(str(absent.random_address), timeout=2, backend=backend.client).connect()
    for wait_s in (0.0, 0.05, 0.1, 0.101, 0.2, 0.5):
        client = BleakClient(str(hop.device.random_address), backend=backend.client)
        attempt = asyncio.create_task(client.connect())
        await asyncio.sleep(wait_s)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await asyncio.sleep(1)
        assert not edge.connections and not hop.device.connections, wait_s
    client = BleakClient(str(hop.device.random_address), backend=backend.client)
    attempt = asyncio.create_task(client.connect())
    edge.once("connection", lambda _: attempt.cancel())  # it has come, and nobody has taken it yet
    with pytest.raises(asyncio.CancelledError):
        await attempt
    await asyncio.sleep(1)
    assert not edge.connections and not hop.device.connections
    async with connected(edge):
        assert len(edge.connections) == 1
    for steps in range(12):
        scan = asyncio.create_task(BleakScanner.discover(1, backend=backend.scanner))
        for _ in range(steps):
            await asyncio.sleep(0)
        scan.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scan
        await asyncio.sleep(0.1)
        assert not edge.is_scanning, steps
    await find(backend)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert stumbles == []
    assert "mismatch" not in caplog.text and "no pending" not in caplog.text


@in_virtual_time
async def test_a_command_gets_its_answer_though_its_caller_is_cancelled() -> None:
    _, _, edge = await hop_and_edge("instant")
    radio, steps = bleak_backend(edge).scanner.radio, []  # type: ignore[attr-defined]

    async def command() -> None:
        steps.append("sent")
        await asyncio.sleep(0.5)
        steps.append("answered")

    task = asyncio.create_task(radio.command(command()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["sent", "answered"]


@in_virtual_time
async def test_two_centrals_want_an_advertiser_that_takes_one() -> None:
    radio = VirtualRadio("1m", seed=1)
    hop = Peripheral(await radio.device("hop"))
    await hop.advertise("hop", many=False)
    address = str(hop.device.random_address)
    clients = [BleakClient(address, timeout=3, backend=bleak_backend(await radio.device(name)).client) for name in "ab"]
    start = asyncio.get_running_loop().time()
    results = await asyncio.gather(*(client.connect() for client in clients), return_exceptions=True)
    assert asyncio.get_running_loop().time() - start < 3  # the other one is told, and does not wait for answers
    assert sorted(isinstance(result, BleakError) for result in results) == [False, True]
    assert [client.is_connected for client in clients].count(True) == 1


@in_virtual_time
async def test_a_connection_by_public_address_carries_data() -> None:
    radio = VirtualRadio("instant", seed=1)
    hop, edge = Peripheral(await radio.device("hop")), await radio.device("edge")
    public = hci.OwnAddressType.PUBLIC
    await hop.device.start_advertising(own_address_type=public)
    client = BleakClient(str(hop.device.public_address), backend=bleak_backend(edge).client)
    assert client.address.endswith("/P")
    async with client:
        await client.write_gatt_char(UP, b"x", response=True)
    await hop.device.start_advertising(own_address_type=public)
    connection = await edge.connect_le(hop.device.public_address, own_address_type=public, timeout=5)
    assert await connection.gatt_client.request_mtu(100) == 100  # an answer: bumble's own link would lose it
    assert hop.size == 1


@in_virtual_time
async def test_a_hop_that_listens_while_it_connects_gets_the_connection_it_asked_for() -> None:
    radio, hop, edge = await hop_and_edge("1m")
    far = Peripheral(await radio.device("far"))
    client = BleakClient(str(far.device.random_address), backend=bleak_backend(hop.device).client)
    onward = asyncio.create_task(client.connect())
    await asyncio.sleep(0.2)
    async with connected(edge):  # comes in while the other one is pending
        await far.advertise("far")
        await asyncio.wait_for(onward, 10)
        assert len(far.connections) == 1
        assert {connection.role for connection in hop.device.connections.values()} == {
            hci.Role.CENTRAL, hci.Role.PERIPHERAL}


@in_virtual_time
async def test_a_disconnect_that_nobody_hears_is_a_timeout_for_the_peer() -> None:
    radio, hop, edge = await hop_and_edge("1m")
    async with connected(edge) as client:
        radio.out_of_range("edge", True)
        await client.disconnect()
        assert not client.is_connected
        await asyncio.sleep(1)
        assert hop.gone == []
        radio.out_of_range("edge", False)
        await client.connect()  # while the hop has not noticed
        assert hop.gone == [hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR]
        await asyncio.sleep(10)
        assert client.is_connected
        await client.write_gatt_char(UP, b"x", response=True)
        radio.out_of_range("edge", True)
        await client.disconnect()
        await asyncio.sleep(radio.phy.supervision_s + 1)
        assert hop.gone == [hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR] * 2


@in_virtual_time
async def test_a_disconnect_reaches_the_peer_at_the_next_event_and_the_next_connection_survives_it() -> None:
    _, hop, edge = await hop_and_edge(replace(PHYS["1m"], interval_s=0.4))  # the hop advertises every 0.1 s
    async with connected(edge) as client:
        pass
    assert hop.gone == []
    await client.connect()
    await asyncio.sleep(1)
    assert client.is_connected
    await client.write_gatt_char(UP, b"x", response=True)
    assert len(hop.gone) == 1
    await client.disconnect()


@in_virtual_time
async def test_a_host_that_overruns_its_controllers_buffers_is_refused() -> None:
    radio, hop, edge = await hop_and_edge("1m")
    async with connected(edge):
        radio.out_of_range("hop", True)
        controller = next(c for c in radio._on_air if c.is_called("edge"))
        packet = hci.HCI_AclDataPacket(1, 2, 0, 5, b"\x01\x00\x04\x00x")
        for _ in range(radio.phy.buffers):
            controller.on_hci_acl_data_packet(packet)
        with pytest.raises(ProtocolViolation):
            controller.on_hci_acl_data_packet(packet)
    assert hop.size == 0


@in_virtual_time
async def test_hosts_are_told_the_radios_interval_and_supervision() -> None:
    _, hop, edge = await hop_and_edge("bluez-worst")
    async with connected(edge):
        for connection in (hop.connections[0], next(iter(edge.connections.values()))):
            assert connection.parameters.connection_interval == 50.0
            assert connection.parameters.supervision_timeout == 420.0


@in_virtual_time
async def test_a_scan_hears_names_services_and_signals_of_those_in_range() -> None:
    radio, _, edge = await hop_and_edge("instant")
    other = Peripheral(await radio.device("other"))
    await other.advertise("other")
    away = Peripheral(await radio.device("away"))
    await away.advertise("away")
    radio.signal("other", -80)
    radio.out_of_range("away", True)
    heard = await BleakScanner.discover(
        3, return_adv=True, service_uuids=[SERVICE], backend=bleak_backend(edge).scanner)
    assert {seen.local_name: (seen.rssi, seen.service_uuids) for _, seen in heard.values()} == {
        "hop": (-50, [SERVICE]), "other": (-80, [SERVICE])}
    assert not edge.is_scanning


@in_virtual_time
async def test_a_device_that_is_switched_off_tells_its_user_and_its_peers() -> None:
    radio, hop, edge = await hop_and_edge("1m")
    async with connected(edge) as client:
        request = asyncio.create_task(client.read_gatt_char(DOWN))
        absent = BleakClient("C0:00:00:00:77:77", backend=bleak_backend(edge).client)
        connect = asyncio.create_task(absent.connect())
        await asyncio.sleep(0.001)
        await edge.close()
        for waiting in (request, connect):
            with pytest.raises(BleakBluetoothNotAvailableError):
                await asyncio.wait_for(waiting, 1)
        assert not client.is_connected
        with pytest.raises(BleakBluetoothNotAvailableError):
            await find(bleak_backend(edge))
        with pytest.raises(BleakBluetoothNotAvailableError):
            await client.connect()
        assert hop.gone == []
        await asyncio.sleep(radio.phy.supervision_s + 1)
        assert hop.gone == [hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR]
    await edge.close()


@in_virtual_time
async def test_bad_names_and_too_many_devices() -> None:
    with pytest.raises(BadInput) as refused:
        VirtualRadio("3m")
    assert refused.value.hint and "2m" in refused.value.hint
    radio = VirtualRadio()
    with pytest.raises(BadInput):
        radio.out_of_range("nobody", True)
    with pytest.raises(BadInput):
        radio.signal("nobody", 0)
    made = [radio.controller(f"c{number}") for number in range(DEVICES_MAX)]
    assert len({controller.address for controller in made}) == DEVICES_MAX
    with pytest.raises(LinkLost):
        radio.controller("one more")
    radio.remove(made[0])
    radio.controller("one more")
