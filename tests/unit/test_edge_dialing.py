"""How an edge opens links: the radio only when it is needed, once, and anew after it was gone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge_client.dialing import Dialer
from edge_client.identity import NAMESPACE
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.settings import Settings
from tests.support.fake_radio import FakeRadio
from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint, Link


class Shop:
    """Where radios come from."""

    def __init__(self) -> None:
        self.radios: list[FakeRadio] = []
        self.asked: list[str] = []
        self.told: list[str] = []
        self.fails: list[LinkLost | BadInput] = []
        self.rfcomm: Any = None

    async def __call__(self, spec: str) -> FakeRadio:
        self.asked.append(spec)
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails.pop(0)
        self.radios.append(radio := FakeRadio())
        radio.rfcomm = self.rfcomm
        await radio.listen(self.hold, name="hop")
        return radio

    async def hold(self, link: Link) -> None:
        await link.receive()


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def dial(tmp_path: Path, shop: Shop) -> AsyncIterator[Dialer]:
    database = Database.open(tmp_path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    yield Dialer(
        Settings(database, NAMESPACE), radio="hci:x", wss_trust="bundle", open_radio=shop, tell=shop.told.append
    )
    database.close()


async def test_the_radio_is_opened_by_the_first_ble_endpoint_and_closed_at_the_end(dial: Dialer, shop: Shop) -> None:
    with pytest.raises(LinkLost):
        await dial(Endpoint.parse("tcp:127.0.0.1:1"))
    await dial.close()
    assert shop.asked == []
    links = await asyncio.gather(*(dial(Endpoint.parse(text)) for text in ("ble:", "ble:hop")))
    assert (shop.asked, shop.radios[0].connects) == (["hci:x"], ["", "hop"])
    assert shop.radios[0].closed == 0
    dial.worked(links[1])
    assert shop.radios[0].worked_peers == [links[1].peer]
    await dial.close()
    await dial.close()
    assert shop.radios[0].closed == 1
    await asyncio.gather(*(link.close() for link in links))


async def test_a_radio_that_was_pulled_out_is_looked_for_anew(dial: Dialer, shop: Shop) -> None:
    await (await dial(Endpoint.parse("ble:"))).close()
    first = shop.radios[0]
    first.fails = ["out_of_range", "unavailable"]
    for closed in (0, 1):
        with pytest.raises(LinkLost):
            await dial(Endpoint.parse("ble:"))
        assert first.closed == closed
    await (await dial(Endpoint.parse("ble:"))).close()
    assert len(shop.radios) == 2
    await dial.close()


async def test_a_radio_that_cannot_be_opened_is_tried_again(dial: Dialer, shop: Shop) -> None:
    shop.fails = [LinkLost("bluetooth is off", reason="unavailable"), BadInput("there is no such radio")]
    for expected in (LinkLost, BadInput):
        with pytest.raises(expected):
            await dial(Endpoint.parse("ble:"))
    await (await dial(Endpoint.parse("ble:"))).close()
    await dial.close()


async def test_a_phone_is_waited_for_and_a_person_is_told_once(dial: Dialer, shop: Shop) -> None:
    await dial(Endpoint.parse("ble:"))
    shop.radios[0].fails = ["out_of_range", "out_of_range"]
    for _ in range(2):
        with pytest.raises(LinkLost):
            await dial(Endpoint.parse("phone:van 3"))
    link = await dial(Endpoint.parse("phone:van 3"))
    dial.worked(link)
    assert shop.radios[0].connects == ["", *["phone:van 3"] * 3] and shop.radios[0].worked_peers == [link.peer]
    assert len(shop.told) == 1 and "tap Connect" in shop.told[0]
    shop.radios[0].fails = ["unavailable"]
    with pytest.raises(LinkLost):
        await dial(Endpoint.parse("phone:"))
    assert len(shop.told) == 2 and shop.radios[0].closed == 1
    await (await dial(Endpoint.parse("sim:ble-1m@phone:"))).close()
    assert shop.radios[1].connects == ["phone:"]
    await dial.close()


async def test_weather_over_a_radio_opens_the_radio(dial: Dialer, shop: Shop) -> None:
    await (await dial(Endpoint.parse("sim:ble-1m@ble:hop"))).close()
    assert shop.radios[0].connects == ["hop"]
    await dial.close()


async def test_rfcomm_is_by_the_radio_that_this_program_drives(dial: Dialer, shop: Shop) -> None:
    class Rfcomm:
        async def connect(self, endpoint: Endpoint, *, timeout_s: float) -> Link:
            raise LinkLost(f"nobody at {endpoint.address}")

    shop.rfcomm = Rfcomm()
    with pytest.raises(LinkLost, match="nobody at 00:11:22:33:44:55"):
        await dial(Endpoint.parse("rfcomm:00:11:22:33:44:55"))
    assert shop.asked == ["hci:x"]
    await dial.close()


async def test_rfcomm_of_the_system_needs_no_radio(tmp_path: Path, shop: Shop) -> None:
    database = Database.open(tmp_path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    dial = Dialer(Settings(database, NAMESPACE), radio="system:hci1", wss_trust="bundle", open_radio=shop)
    with pytest.raises(LinkLost):
        await dial(Endpoint.parse("rfcomm:00:11:22:33:44:55?channel=1"))
    assert not shop.asked
    database.close()
