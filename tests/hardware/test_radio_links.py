"""The contract of links on two radios of this machine, by BlueZ: `pytest -m hardware`, see docs/HARDWARE.md.

The tests are those of tests/contract/test_links.py, on ends that are made here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.contract.test_links import *  # noqa: F403
from tests.contract.test_links import Pair
from tests.support.radios import adapters
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link, connect, listen
from transport.links.bluez_bus import ADAPTER, DEVICE, BluezBus
from transport.links.radio import OpenRadio
from transport.links.rfcomm import REDIAL_S

pytestmark = pytest.mark.hardware
LIMIT_S = 300.0  # of one test: megabytes over a radio
CONNECT_S = 30.0
TRIES = 3


async def _ask(path: str, interface: str, member: str) -> None:
    bus = BluezBus(lambda _: None)
    await bus.open()
    try:
        with contextlib.suppress(LinkLost):
            await bus.call(path, interface, member)
    finally:
        bus.close()


async def _address(adapter: str) -> str:
    bus = BluezBus(lambda _: None)
    await bus.open()
    try:
        return str((await bus.objects())[f"/org/bluez/{adapter}"][ADAPTER]["Address"].value)
    finally:
        bus.close()


@pytest.fixture(params=["ble", "rfcomm"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Both ends of a new link, which `abort` breaks by ending the radio's connection beneath it."""
    found = adapters()
    assert not isinstance(found, str), found
    hop_adapter, edge_adapter = found
    hop, edge = OpenRadio(adapter=hop_adapter), OpenRadio(adapter=edge_adapter)
    address = await _address(hop_adapter)
    peer = f"/org/bluez/{edge_adapter}/dev_{address.replace(':', '_')}"
    where = Endpoint("ble", address) if request.param == "ble" else Endpoint.parse(f"rfcomm:{address}")
    links: asyncio.Queue[Link] = asyncio.Queue()
    over = asyncio.Event()

    async def hold(link: Link) -> None:
        links.put_nowait(link)
        await over.wait()

    async def reach() -> Link:
        for left in reversed(range(TRIES)):
            try:
                return await connect(where, radio=edge, timeout_s=CONNECT_S)
            except LinkLost:
                if not left:
                    raise
                await asyncio.sleep(REDIAL_S)
        raise AssertionError

    async def abort() -> None:
        await _ask(peer, DEVICE, "Disconnect")

    async with asyncio.timeout(LIMIT_S):
        listener = await listen(Endpoint(request.param, ""), hold, radio=hop)
        try:
            near = await reach()
            yield near, await links.get(), abort
            await near.close()
        finally:
            over.set()
            await listener.close()
            await asyncio.gather(edge.close(), hop.close())
