"""Links between our edge and our hop on BlueZ, without a session above them."""

import asyncio
import contextlib
import functools
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bleak import BleakScanner

from tests.bluez.stack import EDGE, HOP, Stack
from tests.support.radios import VARIABLE
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link, connect, listen
from transport.links.gatt import SERVICE
from transport.links.radio import OpenRadio

BULK = 200_000  # bytes


class Lab:
    def __init__(self, stack: Stack, edge: OpenRadio | None) -> None:
        self.stack = stack
        self.hop = OpenRadio(adapter=f"hci{HOP}")
        self.edge = edge or OpenRadio(adapter=f"hci{EDGE}")
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.over = asyncio.Event()

    async def hold(self, link: Link) -> None:
        self.links.put_nowait(link)
        await self.over.wait()

    async def pair(self) -> tuple[Link, Link]:
        """A new link's ends; tries again as the edge does, since a radio that has just come back may need a moment."""
        for tries in range(4):
            try:
                near = await connect(Endpoint("ble", ""), radio=self.edge, timeout_s=20)
                return near, await asyncio.wait_for(self.links.get(), 20)
            except LinkLost:
                if tries == 3:
                    raise
        raise AssertionError


@asynccontextmanager
async def lab(stack: Stack, edge: OpenRadio | None = None) -> AsyncIterator[Lab]:
    """`edge` is the second adapter's radio unless told."""
    made = Lab(stack, edge)
    listener = await listen(Endpoint("ble", ""), made.hold, radio=made.hop)
    try:
        yield made
    finally:
        made.over.set()
        await made.edge.close()
        await listener.close()
        await made.hop.close()


async def read(link: Link, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await link.receive()
        assert part
        data += part
    return bytes(data)


async def carry(one: Link, two: Link, size: int) -> str:
    begun = time.monotonic()
    data = random.Random(size).randbytes(size)
    _, got = await asyncio.gather(one.send(data), read(two, size))
    assert got == data
    return f"{size / (time.monotonic() - begun) / 1000:.0f} kB/s"


async def advertisement_says_nothing(stack: Stack) -> str:
    async with lab(stack):
        async with BleakScanner(bluez={"adapter": f"hci{EDGE}"}) as scanner:
            async with asyncio.timeout(20):
                device, data = await anext(
                    found async for found in scanner.advertisement_data() if SERVICE in found[1].service_uuids)
        assert data.service_uuids == [SERVICE] and not data.manufacturer_data and not data.service_data
        assert data.local_name in (None, "Causeway") and data.tx_power is None, data
        return f"the service and nothing else; address {device.address}"


async def bulk_both_ways(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        into, out = await carry(near, far, BULK), await carry(far, near, BULK)
        await near.close()
        assert await far.receive() == b""
        return f"in {into}, out {out}"


async def both_ways_at_once(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        rates = await asyncio.gather(carry(near, far, BULK // 2), carry(far, near, BULK // 2))
        await near.close()
        return f"in {rates[0]}, out {rates[1]}"


async def next_edge_after_the_last(stack: Stack) -> str:
    """Several links, one after the other: each ends and the hop is found again."""
    begun = time.monotonic()
    async with lab(stack) as made:
        for number in range(3):
            near, far = await made.pair()
            await near.send(bytes([number]) * 600)
            assert await read(far, 600) == bytes([number]) * 600
            await (near if number % 2 else far).close()
            await (far if number % 2 else near).close()
    return f"{(time.monotonic() - begun) / 3:.1f} s each"


async def lost_in_the_middle(made: object, near: Link, far: Link) -> None:
    for end in (near, far):
        try:
            async with asyncio.timeout(20):
                while await end.receive():
                    pass
            raise AssertionError("a lost link looked like an ended one")
        except LinkLost:
            await end.close()


async def drop(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        sending = asyncio.create_task(near.send(bytes(BULK)))
        await read(far, 5_000)
        begun = time.monotonic()
        await stack.radio("drop")
        await lost_in_the_middle(made, near, far)
        noticed = time.monotonic() - begun
        await asyncio.gather(sending, return_exceptions=True)
        assert isinstance(sending.exception(), LinkLost)
        near, far = await made.pair()
        await carry(near, far, 5_000)
        await near.close()
        return f"noticed after {noticed:.1f} s, new link after {time.monotonic() - begun:.1f} s"


async def adapter_removed(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        await carry(near, far, 5_000)
        begun = time.monotonic()
        await stack.radio(f"remove {HOP}")
        await lost_in_the_middle(made, near, far)
        noticed = time.monotonic() - begun
        await stack.radio(f"add {HOP}")
        await stack.switch_on(HOP)
        back = time.monotonic()
        near, far = await made.pair()
        await carry(near, far, 5_000)
        await near.close()
        return f"noticed after {noticed:.1f} s, new link {time.monotonic() - back:.1f} s after it is back"


async def daemon_restarted(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        await carry(near, far, 5_000)
        begun = time.monotonic()
        await stack.stop_daemon()
        await lost_in_the_middle(made, near, far)
        noticed = time.monotonic() - begun
        await stack.start_daemon()
        back = time.monotonic()
        near, far = await made.pair()
        await carry(near, far, 5_000)
        await near.close()
        return f"noticed after {noticed:.1f} s, new link {time.monotonic() - back:.1f} s after it is back"


async def contract(stack: Stack, kind: str) -> str:
    """The suite for radios of one's own, on these adapters."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-v", "-m", "hardware", "-k", kind, "-p", "no:cacheprovider", "tests/hardware",
        env={**os.environ, VARIABLE: f"hci{HOP} hci{EDGE}"},
    )
    try:
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return ""


async def contract_of_rfcomm(stack: Stack) -> str:
    async with stack.classic():
        return await contract(stack, "rfcomm")


STEPS = {
    "advertisement": advertisement_says_nothing,
    "bulk": bulk_both_ways,
    "both-ways-at-once": both_ways_at_once,
    "next-edge": next_edge_after_the_last,
    "drop": drop,
    "adapter-removed": adapter_removed,
    "daemon-restarted": daemon_restarted,
}
SUITE = {"hardware-ble": functools.partial(contract, kind="ble"), "hardware-rfcomm": contract_of_rfcomm}
