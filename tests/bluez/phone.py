"""An edge that waits for a phone on BlueZ, and a central that does what a phone's page does."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bleak.exc import BleakError

from tests.bluez.links import carry
from tests.bluez.stack import EDGE, HOP, Stack
from tests.support.phone_central import PhoneCentral
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link, connect
from transport.links.bluez_bus import forget
from transport.links.gatt_link import GattLink
from transport.links.radio import OpenRadio

TRIES = 4
SIZE = 50_000  # bytes


class Lab:
    """The phone's central is on the adapter that is a hop's in other steps."""

    def __init__(self) -> None:
        self.edge = OpenRadio(adapter=f"hci{EDGE}")
        self.phone = PhoneCentral(adapter=f"hci{HOP}")

    async def pair(self) -> tuple[Link, GattLink]:
        """A new link's ends, the edge's first. A first connection may have to be tried again, as by any page."""
        for tries in range(TRIES):
            waiting = asyncio.create_task(connect(Endpoint("phone", ""), radio=self.edge, timeout_s=40))
            try:
                async with asyncio.timeout(30):
                    await self.phone.connect()
                    far = await self.phone.begin()
                    return await waiting, far
            except (BleakError, TimeoutError, LinkLost):
                waiting.cancel()
                for ended in await asyncio.gather(waiting, return_exceptions=True):
                    if not isinstance(ended, BaseException):
                        await ended.close("error")
                await self.leave()
                if tries == TRIES - 1:
                    raise
        raise AssertionError

    async def leave(self) -> None:
        """The phone goes, and each adapter forgets the other: BlueZ 5.66 finds it by what it advertises only then."""
        if (client := getattr(self.phone, "client", None)) is not None:
            with contextlib.suppress(BleakError):
                await client.disconnect()
        for one, other in ((HOP, EDGE), (EDGE, HOP)):
            await forget(f"/org/bluez/hci{one}/dev_" + "_".join([f"C{other}"] * 6))


@asynccontextmanager
async def lab() -> AsyncIterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        await made.edge.close()
        await made.leave()


async def phone_both_ways(stack: Stack) -> str:
    """Bulk, the next pipe over the same connection, and a phone that comes back."""
    async with lab() as made:
        near, far = await made.pair()
        assert made.phone.info is not None and made.phone.info.role == "edge"
        size = made.phone.info.value_size
        into, out = await carry(far, near, SIZE), await carry(near, far, SIZE)
        await asyncio.gather(near.close(), far.close())
        far = await made.phone.begin()
        near = await connect(Endpoint("phone", ""), radio=made.edge, timeout_s=20)
        await carry(near, far, 5_000)
        begun = time.monotonic()
        await stack.radio("drop")
        with contextlib.suppress(LinkLost):
            while await near.receive():
                pass
        await asyncio.gather(near.close(), far.close())
        near, far = await made.pair()
        await carry(near, far, 5_000)
        again = time.monotonic() - begun
        await asyncio.gather(near.close(), far.close())
        return f"values of {size}, in {into}, out {out}, back {again:.1f} s after a drop"


STEPS = {"phone": phone_both_ways}


