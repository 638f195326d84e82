"""A peripheral with one characteristic each way and nothing above it, and a bleak client that uses it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bleak import BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bumble.core import UUID, AdvertisingData
from bumble.device import Connection, Device
from bumble.gatt import Characteristic, CharacteristicValue, Service

from transport.links.virtual_bleak import Backend, bleak_backend

SERVICE = "9d1c0001-5a0e-4f5c-9a7e-3f6f2d6f3c11"
UP = "9d1c0002-5a0e-4f5c-9a7e-3f6f2d6f3c11"
DOWN = "9d1c0003-5a0e-4f5c-9a7e-3f6f2d6f3c11"
_CAN = Characteristic.Properties


class Peripheral:
    """`values` is what was written to it, with the loop time of each; `gone` the reasons of ended connections."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.values: list[tuple[float, bytes]] = []
        self.size = 0
        self.gone: list[int] = []
        self.connections: list[Connection] = []
        self.on_value: Callable[[Connection, bytes], None] = lambda connection, value: None
        self._came = asyncio.Event()
        up = Characteristic(UP, _CAN.WRITE | _CAN.WRITE_WITHOUT_RESPONSE, Characteristic.WRITEABLE,
                            CharacteristicValue(write=self._written))
        self.down = Characteristic(DOWN, _CAN.NOTIFY | _CAN.READ, Characteristic.READABLE, b"down")
        device.add_service(Service(SERVICE, [up, self.down]))
        device.on("connection", self._connected)

    async def advertise(self, name: str, *, many: bool = True) -> None:
        """To `many` centrals at once, or to one."""
        if many:
            self.device.on("connection", lambda connection: self._advertise(name))
        await self._advertise(name)

    async def _advertise(self, name: str) -> None:
        parts = [(AdvertisingData.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS, bytes(UUID(SERVICE))),
                 (AdvertisingData.SHORTENED_LOCAL_NAME, name.encode())]
        await self.device.start_advertising(
            advertising_data=bytes(AdvertisingData(parts)),
            advertising_interval_min=100, advertising_interval_max=100)

    async def received(self, size: int) -> None:
        """Waits until that many bytes were written to it in all."""
        while self.size < size:
            self._came.clear()
            await self._came.wait()

    async def notify(self, connection: Connection, value: bytes) -> None:
        """One notification, as soon as the controller has room."""
        queue = connection.data_packet_queue
        while queue is not None and queue.pending >= queue.max_in_flight:
            flowed = asyncio.get_running_loop().create_future()
            queue.once("flow", lambda flowed=flowed: flowed.done() or flowed.set_result(None))
            await flowed
        await self.device.notify_subscriber(connection, self.down, value)

    def _written(self, connection: Connection, value: bytes) -> None:
        self.values.append((asyncio.get_running_loop().time(), value))
        self.size += len(value)
        self._came.set()
        self.on_value(connection, value)

    def _connected(self, connection: Connection) -> None:
        self.connections.append(connection)
        connection.on("disconnection", self.gone.append)


async def find(backend: Backend, *, timeout_s: float = 5.0) -> BLEDevice:
    found = await BleakScanner.find_device_by_filter(
        lambda device, seen: SERVICE in seen.service_uuids, timeout=timeout_s, backend=backend.scanner)
    assert found is not None
    return found


@asynccontextmanager
async def connected(device: Device, **options: Any) -> AsyncIterator[BleakClient]:
    """A bleak client of the first peripheral that the device hears."""
    backend = bleak_backend(device)
    async with BleakClient(await find(backend), backend=backend.client, **options) as client:
        yield client


async def write_all(client: BleakClient, data: bytes, value_size: int) -> None:
    """Without response, in values of that size."""
    for start in range(0, len(data), value_size):
        await client.write_gatt_char(UP, data[start:start + value_size], response=False)
