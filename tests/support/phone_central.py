"""What the phone's page does, in Python: a central that finds edges that wait, and carries each pipe to a tunnel."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from bleak import BleakClient, BleakScanner
from bleak.exc import BleakError
from bumble.device import Device

from relay.hop.pipe import Pipe, PipeLimits, Tunnel
from transport.errors import LinkLost
from transport.links.gatt import INFO, RX, TX, WAITING, GattPipe, Info
from transport.links.gatt_link import GattLink
from transport.links.virtual_bleak import bleak_backend

Dial = Callable[[], Awaitable[Tunnel]]


class PhoneCentral:
    """On a bumble device, or the system's own radio, of which `adapter` names one. `info` is what the edge that it is
    connected to has said, `pipes` how many it has begun.
    """

    def __init__(self, device: Device | None = None, *, adapter: str = "") -> None:
        backend = None if device is None else bleak_backend(device)
        bluez = {"bluez": {"adapter": adapter}} if adapter else {}
        self._scanner: dict[str, Any] = {"backend": backend.scanner} if backend else bluez
        self._client: dict[str, Any] = {"backend": backend.client} if backend else bluez
        self._link: GattLink | None = None
        self.info: Info | None = None
        self.pipes = 0
        self.client: BleakClient

    async def connect(self) -> None:
        """To the first edge that waits."""
        async with BleakScanner(service_uuids=[WAITING], **self._scanner) as scanner:
            heard = scanner.advertisement_data()
            found = await anext(found async for found, data in heard if WAITING in data.service_uuids)
        self.client = BleakClient(found, self._disconnected, **self._client)
        await self.client.connect()
        self.info = Info.decode(bytes(await self.client.read_gatt_char(INFO)))

    async def begin(self) -> GattLink:
        """A pipe over the connection. Raises BleakError."""
        assert self.info is not None
        client, loop = self.client, asyncio.get_running_loop()

        async def write(value: bytes) -> None:
            try:
                await client.write_gatt_char(RX, value, response=False)
            except BleakError as error:
                raise LinkLost("the edge has gone") from error

        async def let_go() -> None:
            with contextlib.suppress(BleakError):
                await client.stop_notify(TX)

        pipe = GattPipe(self.info.value_size, self.info.credit if self.info.credit > 1 else 0, 0, loop.time())
        self._link = link = GattLink(pipe, "ble:edge", write, let_go)
        await client.start_notify(TX, lambda _, value: link.take(bytes(value)))
        link.start()
        self.pipes += 1
        return link

    def _disconnected(self, _: BleakClient) -> None:
        if self._link is not None:
            self._link.carrier_lost(LinkLost("the edge has gone"))

    async def carry(self, dial: Dial) -> None:
        """Finds an edge and carries its pipes, one after the other, over and over, until it is cancelled."""
        while True:
            with contextlib.suppress(BleakError, LinkLost):
                await self.connect()
                try:
                    while True:
                        await self._one(dial)
                finally:
                    with contextlib.suppress(BleakError):
                        await self.client.disconnect()

    async def _one(self, dial: Dial) -> None:
        link = await self.begin()
        try:
            first = await link.receive()
            tunnel = await dial()
        except BaseException:
            await link.close("error")
            raise
        await Pipe(link, tunnel, PipeLimits(), first=first).run()
