"""When a hop opens a radio of its own, and what it does once that is gone."""

import asyncio
from typing import Any

import pytest

from relay.hop import cli
from transport.errors import LinkLost
from transport.links import radio as radios
from transport.links.base import Endpoint


class Radio:
    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class Hop:
    """`goes`: whether its radio is pulled out as soon as it runs."""

    def __init__(self, goes: bool = False) -> None:
        self.goes = goes
        self.radio: Radio | None = None

    async def run(
        self, endpoints: list[Endpoint], stop: asyncio.Event, *, radio: Radio | None = None, announce: bool
    ) -> None:
        self.radio = radio
        if self.goes and radio is not None:
            radio.gone.set()
            await stop.wait()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    specs: list[str] = []

    async def open_radio(spec: str) -> Radio:
        specs.append(spec)
        return Radio()

    monkeypatch.setattr(radios, "open_radio", open_radio)
    return specs


async def serve(hop: Any, listens: list[str], spec: str) -> None:
    await cli._until_signal(hop, [Endpoint.parse(text) for text in listens], spec, announce=False)


@pytest.mark.parametrize(("listens", "spec", "needed"), [
    (["ble:"], "system", True), (["ble:", "rfcomm:"], "system:hci1", True), (["rfcomm:"], "hci:usb:0", True),
    (["rfcomm:"], "system", False), (["rfcomm:"], "system:hci1", False), (["tcp:127.0.0.1:0"], "hci:usb:0", False),
])
async def test_a_radio_is_opened_for_what_goes_by_it(
    opened: list[str], listens: list[str], spec: str, needed: bool
) -> None:
    hop = Hop()
    await serve(hop, listens, spec)
    assert opened == ([spec] if needed else [])
    assert (hop.radio is not None and hop.radio.closed) == needed


async def test_a_hop_by_rfcomm_alone_ends_with_its_dongle(opened: list[str]) -> None:
    with pytest.raises(LinkLost, match="radio is gone"):
        await serve(Hop(goes=True), ["rfcomm:"], "hci:usb:0")
