"""A peripheral in a process of its own, driven by lines on standard input: `python -m tests.bluez.peripheral WHICH`.

`ours` is a hop's. `peer` is written with the package `bluez-peripheral` as its documentation shows, a method for writes
and `changed` for notifications, and has the same pipe above it: without a credit, notifications overfill the socket to
D-Bus, which dbus-fast takes for its end. `take N` is answered once N bytes have come, `give N` sends as many.
"""

import asyncio
import contextlib
import sys
from typing import Any

from tests.bluez.stack import HOP
from transport.links.base import Endpoint, Link, listen
from transport.links.gatt import FIRST_CREDIT, INFO, RX, SERVICE, TX, VALUE_MAX, GattPipe, Info
from transport.links.gatt_link import GattLink
from transport.links.radio import OpenRadio

ADDRESS = ":".join([f"C{HOP}"] * 6)


class Ours:
    def __init__(self) -> None:
        self._links: asyncio.Queue[Link] = asyncio.Queue()
        self._over = asyncio.Event()

    async def start(self) -> None:
        self._radio = OpenRadio(adapter=f"hci{HOP}")
        self._listener = await listen(Endpoint("ble", ""), self._hold, radio=self._radio)

    async def _hold(self, link: Link) -> None:
        self._links.put_nowait(link)
        await self._over.wait()

    async def linked(self) -> Link:
        return await self._links.get()

    async def close(self) -> None:
        self._over.set()
        await self._listener.close()
        await self._radio.close()


class Peer:
    """For one link."""

    async def start(self) -> None:
        from bluez_peripheral.adapter import Adapter
        from bluez_peripheral.advert import Advertisement
        from bluez_peripheral.gatt import CharacteristicFlags, Service, characteristic
        from bluez_peripheral.util import get_message_bus

        heard = asyncio.Event()

        async def write(value: bytes) -> None:
            await heard.wait()
            service.tx.changed(value)
            await asyncio.sleep(0)

        async def let_go() -> None:
            pass

        self._link = GattLink(
            GattPipe(VALUE_MAX, 0, FIRST_CREDIT, asyncio.get_running_loop().time()), "ble:peer", write, let_go)
        link = self._link

        class Pipe(Service):
            def __init__(self) -> None:
                super().__init__(SERVICE, True)

            @characteristic(INFO, CharacteristicFlags.READ)
            def info(self, options: Any) -> bytes:
                return Info("hop", VALUE_MAX, FIRST_CREDIT).encode()

            @characteristic(TX, CharacteristicFlags.NOTIFY)
            def tx(self, options: Any) -> bytes:
                return b""

            def written(self, value: bytes, options: Any) -> None:
                heard.set()
                link.take(bytes(value))

            rx = characteristic(RX, CharacteristicFlags.WRITE_WITHOUT_RESPONSE).setter(written)

        self._bus = await get_message_bus()
        adapter = {await one.get_address(): one for one in await Adapter.get_all(self._bus)}[ADDRESS]
        self._service = service = Pipe()
        await service.register(self._bus, adapter=adapter)
        self._advertisement = Advertisement("Peer", [SERVICE], appearance=0)
        await self._advertisement.register(self._bus, adapter=adapter)

    async def linked(self) -> Link:
        self._link.start()
        return self._link

    async def close(self) -> None:
        await self._link.close("shutdown")
        with contextlib.suppress(Exception):
            await self._advertisement.unregister()
            await self._service.unregister()
        self._bus.disconnect()


async def main(which: str) -> None:
    peripheral = Ours() if which == "ours" else Peer()
    await peripheral.start()
    print("ready", flush=True)
    link = await peripheral.linked()
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, number = line.split()
        left = int(number)
        if command == "give":
            await link.send(bytes(left))
        while command == "take" and left:
            part = await link.receive()
            assert part
            left -= len(part)
        print("done", flush=True)
    await peripheral.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
