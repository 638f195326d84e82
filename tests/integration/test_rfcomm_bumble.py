"""RFCOMM by bumble at both ends: several edges, strangers, ends and losses, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from bumble.core import PhysicalTransport
from bumble.device import Connection, Device
from bumble.hci import Address
from bumble.l2cap import ClassicChannelSpec
from bumble.rfcomm import RFCOMM_PSM, Client, RFCOMM_Frame

from tests.support.classic_radio import ClassicAir, Dongle, address
from tests.support.virtually import in_virtual_time
from transport.errors import BadInput, LinkLost
from transport.links import sdp
from transport.links.base import RECEIVE_MAX, Endpoint, Link, connect, listen
from transport.links.radio import OpenRadio, open_radio
from transport.links.rfcomm import REDIAL_S, SERVICE
from transport.links.rfcomm_bumble import EDGES_MAX, SILENT_S
from transport.links.virtual_radio import VirtualRadio

HOP = Endpoint.parse(f"rfcomm:{address(0)}")


class Lab:
    """A hop that echoes, and as many edges and strangers as are asked for."""

    def __init__(self, air: ClassicAir, device: Device) -> None:
        self.air, self.device, self.radio = air, device, OpenRadio(device)
        self.peers: list[str] = []
        self._count = 0

    async def echo(self, link: Link) -> None:
        self.peers.append(link.peer)
        while data := await link.receive():
            await link.send(data)

    async def stranger(self) -> Device:
        self._count += 1
        return await self.air.device(self._count)

    async def edge(self) -> OpenRadio:
        return OpenRadio(await self.stranger())

    async def call(self, device: Device) -> Connection:
        return await device.connect(Address(address(0), Address.PUBLIC_DEVICE_ADDRESS), PhysicalTransport.BR_EDR)


@asynccontextmanager
async def lab(text: str = "rfcomm:") -> AsyncIterator[Lab]:
    air = ClassicAir()
    made = Lab(air, await air.device(0))
    listener = await listen(Endpoint.parse(text), made.echo, radio=made.radio)
    yield made
    await listener.close()
    await made.radio.close()


async def says(link: Link, word: bytes) -> bytes:
    await link.send(word)
    return await link.receive()


async def ends(connection: Connection) -> float:
    """Seconds until the other side ends it."""
    loop = asyncio.get_running_loop()
    begun, over = loop.time(), loop.create_future()
    connection.once(connection.EVENT_DISCONNECTION, over.set_result)
    await over
    return loop.time() - begun


@in_virtual_time
async def test_several_edges_at_once_and_no_more_than_a_radio_has_room_for() -> None:
    async with lab() as made:
        radios = [await made.edge() for _ in range(EDGES_MAX)]
        links = await asyncio.gather(*(connect(HOP, radio=radio) for radio in radios))
        words = [b"edge %d" % number for number in range(EDGES_MAX)]
        assert await asyncio.gather(*(says(link, word) for link, word in zip(links, words, strict=True))) == words
        assert sorted(made.peers) == [f"rfcomm:{address(number)}" for number in range(1, EDGES_MAX + 1)]
        assert await ends(await made.call(await made.stranger())) == 0
        await links[0].close()
        late = await connect(HOP, radio=await made.edge())
        assert await says(late, b"late") == b"late"
        await asyncio.gather(*(link.close() for link in (*links, late)))


@in_virtual_time
async def test_the_channel_that_is_named_and_the_one_in_the_record() -> None:
    async with lab("rfcomm:?channel=17") as made:
        for text in (f"{HOP}?channel=17", f"{HOP}"):
            link = await connect(Endpoint.parse(text), radio=await made.edge())
            assert await says(link, b"pump") == b"pump"
            await link.close()
        with pytest.raises(LinkLost, match="no hop listens") as lost:
            await connect(Endpoint.parse(f"{HOP}?channel=16"), radio=await made.edge())
        assert lost.value.hint and not made.device.connections


@in_virtual_time
async def test_two_who_ask_for_the_channel_at_once_both_hear_it() -> None:
    async with lab() as made:
        channels = []
        for _ in range(2):
            connection = await made.call(await made.stranger())
            channels.append(await connection.create_l2cap_channel(ClassicChannelSpec(psm=sdp.PSM)))
        answers: list[asyncio.Future[bytes]] = []
        for number, asking in enumerate(channels):
            answers.append(answer := asyncio.get_running_loop().create_future())
            asking.sink = answer.set_result
            asking.write(sdp.question(SERVICE, number))
        assert [sdp.channel(await answer, number) for number, answer in enumerate(answers)] == [1, 1]


async def nothing(connection: Connection) -> None: ...


async def a_question(connection: Connection) -> None:
    (await connection.create_l2cap_channel(ClassicChannelSpec(psm=sdp.PSM))).write(sdp.question(SERVICE, 1))


async def no_channel(connection: Connection) -> None:
    await Client(connection).start()


@pytest.mark.parametrize("deed", [nothing, a_question, no_channel])
@in_virtual_time
async def test_who_connects_and_opens_no_channel_is_disconnected(deed: Callable[[Connection], Awaitable[None]]) -> None:
    async with lab() as made:
        connection = await made.call(await made.stranger())
        await deed(connection)
        assert await ends(connection) == SILENT_S
        assert not made.peers


async def garbage(connection: Connection) -> None:
    (await connection.create_l2cap_channel(ClassicChannelSpec(psm=RFCOMM_PSM))).write(b"no frame")


async def a_bad_question(connection: Connection) -> None:
    (await connection.create_l2cap_channel(ClassicChannelSpec(psm=sdp.PSM))).write(b"\x06")


async def a_second_channel(connection: Connection) -> None:
    """The same number anew, since a hop has only one."""
    multiplexer = await Client(connection).start()
    await multiplexer.open_dlc(1)
    await multiplexer.open_dlc(1)


async def more_than_its_credit(connection: Connection) -> None:
    dlc = await (await Client(connection).start()).open_dlc(1)
    await dlc.drained.wait()
    dlc.tx_credits = 10_000
    dlc.write(bytes(4 * RECEIVE_MAX))


@pytest.mark.parametrize("deed", [garbage, a_bad_question, a_second_channel, more_than_its_credit])
@in_virtual_time
async def test_who_breaks_the_rules_is_disconnected_and_nobody_else(
    deed: Callable[[Connection], Awaitable[None]]
) -> None:
    async with lab() as made:
        link = await connect(HOP, radio=await made.edge())
        connection = await made.call(await made.stranger())
        over = asyncio.create_task(ends(connection))
        await deed(connection)
        assert await over < SILENT_S
        assert await says(link, b"pump") == b"pump"
        await link.close()


@in_virtual_time
async def test_a_drop_is_a_loss_at_both_ends_and_the_next_link_waits_a_little() -> None:
    async with lab() as made:
        loop, radio = asyncio.get_running_loop(), await made.edge()
        link = await connect(HOP, radio=radio)
        sending = asyncio.create_task(link.send(bytes(10 << 20)))
        await link.receive()
        made.air.drop()
        with pytest.raises(LinkLost, match="was lost"):
            await sending
        with pytest.raises(LinkLost, match="was lost"):
            while await link.receive():
                pass
        await link.close()
        begun = loop.time()
        again = await connect(HOP, radio=radio)
        assert loop.time() - begun == REDIAL_S
        assert await says(again, b"pump") == b"pump"
        await again.close()


@in_virtual_time
async def test_a_hop_that_is_not_there_or_no_longer_listens() -> None:
    async with lab() as made:
        radio = await made.edge()
        with pytest.raises(LinkLost) as lost:
            await connect(Endpoint.parse(f"rfcomm:{address(9)}"), radio=radio, timeout_s=20)
        assert lost.value.reason == "out_of_range" and lost.value.hint
        link = await connect(HOP, radio=radio)
    assert await link.receive() == b""
    await link.close()
    assert not made.device.sdp_service_records
    with pytest.raises(LinkLost) as lost:
        await connect(HOP, radio=radio, timeout_s=20)
    assert lost.value.reason == "out_of_range"


@in_virtual_time
async def test_who_gives_up_leaves_no_connection() -> None:
    async with lab() as made:
        radio = await made.edge()
        for turns in range(40):
            dialling = asyncio.create_task(connect(HOP, radio=radio))
            for _ in range(turns):
                await asyncio.sleep(0)
            dialling.cancel()
            await asyncio.gather(dialling, return_exceptions=True)
            await asyncio.sleep(1)
            assert not made.device.connections
            await asyncio.sleep(REDIAL_S)
        link = await connect(HOP, radio=radio)
        assert await says(link, b"pump") == b"pump"
        await link.close()


@in_virtual_time
async def test_a_connection_that_is_lost_while_the_link_is_made() -> None:
    async with lab() as made:
        radio, lost = await made.edge(), 0
        for turns in range(60):
            dialling = asyncio.create_task(connect(HOP, radio=radio))
            for _ in range(turns):
                await asyncio.sleep(0)
            made.air.drop()
            try:
                link = await dialling
            except LinkLost:
                lost += 1
            else:
                await link.close()
            await asyncio.sleep(REDIAL_S)
        assert 0 < lost < 60


def full(device: Device) -> None:
    """From now on its controller has no room for another packet."""
    device.host.on_hci_number_of_completed_packets_event = lambda event: None


@in_virtual_time
async def test_a_hop_sends_no_more_than_its_radio_has_room_for() -> None:
    sent = 0

    async def flood(link: Link) -> None:
        nonlocal sent
        while True:
            await link.send(bytes(1000))
            sent += 1

    made = Lab(air := ClassicAir(), device := await air.device(0))
    listener = await listen(Endpoint.parse("rfcomm:"), flood, radio=made.radio)
    multiplexer = await Client(await made.call(await made.stranger())).start()
    full(device)
    dlc = await multiplexer.open_dlc(1)
    for _ in range(10):
        dlc.send_frame(RFCOMM_Frame.uih(dlc.c_r, dlc.dlci, bytes([255]), p_f=1))  # credit for two thousand frames
    await asyncio.sleep(60)
    queue = next(iter(device.connections.values())).data_packet_queue
    assert queue is not None and sent < 30 and queue.pending < 2 * queue.max_in_flight + 8
    await listener.close()
    await made.radio.close()


@in_virtual_time
async def test_who_asks_and_takes_no_answers_is_disconnected() -> None:
    async with lab() as made:
        connection = await made.call(await made.stranger())
        asking = await connection.create_l2cap_channel(ClassicChannelSpec(psm=sdp.PSM))
        full(made.device)
        over = asyncio.create_task(ends(connection))
        for number in range(300):
            asking.write(sdp.question(SERVICE, number))
        assert await over < SILENT_S


@in_virtual_time
async def test_a_radio_that_goes_away_meanwhile() -> None:
    async with lab() as made:
        device = await made.stranger()
        link = await connect(HOP, radio=OpenRadio(device))
        device.host.on_transport_lost()
        await asyncio.wait_for(link.close(), 60)


@in_virtual_time
async def test_one_listener_at_a_time_and_none_for_others_addresses() -> None:
    async with lab() as made:
        for text in ("rfcomm:", f"{HOP}"):
            with pytest.raises(BadInput):
                await listen(Endpoint.parse(text), made.echo, radio=made.radio)
    for _ in range(2):
        listener = await listen(Endpoint.parse("rfcomm:?channel=17"), made.echo, radio=made.radio)
        link = await connect(HOP, radio=await made.edge())
        assert await says(link, b"pump") == b"pump"
        await listener.close()
        await link.close()


@in_virtual_time
async def test_a_radio_for_low_energy_alone_says_so() -> None:
    radio = OpenRadio(await VirtualRadio().device("edge"))
    for trying in (connect(HOP, radio=radio), listen(Endpoint.parse("rfcomm:"), Lab.echo, radio=radio)):
        with pytest.raises(LinkLost, match="Low Energy alone") as lost:
            await trying
        assert lost.value.reason == "unavailable" and lost.value.hint
    await radio.close()


@in_virtual_time
async def test_low_energy_takes_no_notice_of_classic_connections() -> None:
    """A hop on both ways: who has a link by RFCOMM is not taken for one who begins no pipe of GATT."""
    async with lab() as made:
        listener = await listen(Endpoint.parse("ble:"), made.echo, radio=made.radio)
        link = await connect(HOP, radio=await made.edge())
        await asyncio.sleep(60)
        assert await says(link, b"pump") == b"pump"
        await link.close()
        await listener.close()


async def test_dongles_that_are_opened_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can connect to one before a hop listens, nor after it."""
    air = ClassicAir()
    plugged = {f"usb:{number}": Dongle(air.controller(number)) for number in range(2)}
    scans = lambda: [dongle.source.classic_scan_enable for dongle in plugged.values()]  # noqa: E731

    async def open_transport(name: str) -> Dongle:
        return plugged[name]

    async def echo(link: Link) -> None:
        while data := await link.receive():
            await link.send(data)

    monkeypatch.setattr("bumble.transport.open_transport", open_transport)
    hop, edge = [await open_radio(f"hci:{name}") for name in plugged]
    assert scans() == [0, 0]
    listener = await listen(Endpoint.parse("rfcomm:"), echo, radio=hop)
    assert scans() == [2, 0]  # connectable, and not shown to those who look around
    link = await connect(HOP, radio=edge)
    assert await says(link, b"pump") == b"pump"
    await link.close()
    await listener.close()
    assert scans() == [0, 0]
    await asyncio.gather(hop.close(), edge.close())
    assert all(dongle.closed for dongle in plugged.values())
