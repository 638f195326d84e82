"""A stranger on the radio who talks nonsense: nobody sees a traceback of it, or a byte, and the hop goes on."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bumble.core import ProtocolError

from transport.links.base import Link
from transport.links.gatt_bumble import BumblePeripheral
from transport.links.radio import open_radio
from transport.links.virtual_join import join_radio, serve_radio
from transport.links.virtual_radio import VirtualRadio

ATT, SIGNALS, SMP = 4, 5, 6
NONSENSE = [
    (ATT, b"\x04\x01"), (ATT, b""), (ATT, b"\xff\xff"), (ATT, b"\x12\xff\xffCANARY"), (ATT, b"\x0e\x01"),
    (ATT, b"\x52\x03"), (SIGNALS, b"\x12"), (SIGNALS, b"\x16\x01\x02\x00CANARY"), (SMP, b"\x01\x02"),
    (SMP, b"\x99CANARY"), (0x77, b"CANARY"),
]


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(30):
        yield


async def test_nonsense_on_the_radio_is_not_shown_and_disturbs_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def echo(link: Link) -> None:
        while data := await link.receive():
            await link.send(data)

    path = tmp_path / "radio"
    server = await serve_radio(path)
    hop, edge = await open_radio(f"virtual:{path}"), await open_radio(f"virtual:{path}")
    stranger = await join_radio(path, "stranger")
    caplog.set_level(logging.WARNING)
    try:
        await hop.listen(echo, name="hop")
        link = await edge.connect("hop", timeout_s=10)
        connection = await stranger.connect(link.peer.removeprefix("ble:"))
        for channel, pdu in NONSENSE:
            stranger.send_l2cap_pdu(connection.handle, channel, pdu)
            await link.send(b"hello")  # and its answer comes after what the hop has made of the stranger's
            assert await link.receive() == b"hello"
        await link.close()
    finally:
        for one in (edge, hop, stranger):
            await one.close()
        await server.close()
    assert not caplog.records
    assert "CANARY" not in "".join(capfd.readouterr())


async def test_nobody_is_paired_with_and_no_key_of_a_stranger_is_kept() -> None:
    async def ignore(link: Link) -> None:
        await link.receive()

    radio = VirtualRadio()
    hop, stranger = await radio.device("hop"), await radio.device("stranger")
    listener = await BumblePeripheral(hop).listen(ignore, name="hop")
    connection = await stranger.connect(hop.static_address)
    with pytest.raises(ProtocolError, match="PAIRING_NOT_SUPPORTED"):
        await connection.pair()
    assert hop.keystore is not None
    assert await hop.keystore.get_all() == []
    await listener.close()
    for device in (hop, stranger):
        await device.close()
