"""bleak's backend over a bumble device, so that code written for bleak runs on a virtual radio or on a dongle.

`BleakScanner(backend=made.scanner)` and `BleakClient(found, backend=made.client)` with `made = bleak_backend(device)`.
It behaves as the systems' backends do where bumble alone does not: requests fail when the connection ends, a write
without response waits while the controller has no room, and what GATT cannot carry is refused instead of dropped.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from bleak.args import SizedBuffer
from bleak.assigned_numbers import gatt_char_props_to_strs
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient, NotifyCallback
from bleak.backends.descriptor import BleakGATTDescriptor
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, AdvertisementDataCallback, BaseBleakScanner
from bleak.backends.service import BleakGATTService, BleakGATTServiceCollection
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDeviceNotFoundError,
    BleakError,
)
from bleak.uuids import normalize_uuid_str
from bumble import hci
from bumble.core import UUID, AdvertisingData, BaseBumbleError
from bumble.device import Advertisement, Connection, Device, Peer

MTU: Final = 517  # what bleak's systems ask for
COMMAND_S: Final = 2.0  # for a controller to answer whom nobody waits for any more
VALUE_MAX: Final = 512  # bytes of one attribute (Core 5.4, vol 3, part F, section 3.2.9); bumble drops longer ones
_UUID_LISTS: Final = (
    AdvertisingData.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS,
    AdvertisingData.INCOMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS,
    AdvertisingData.COMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS,
    AdvertisingData.INCOMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS,
)

T = TypeVar("T")


class Backend(NamedTuple):
    """What bleak's `backend=` takes."""

    scanner: type[BaseBleakScanner]
    client: type[BaseBleakClient]


def bleak_backend(device: Device) -> Backend:
    """For one device that is switched on. It may connect to one peer at a time; more wait for their turn."""
    radio = _Radio(device)
    return Backend(
        type("BumbleScanner", (_Scanner,), {"radio": radio}), type("BumbleClient", (_Client,), {"radio": radio})
    )


class _Radio:
    """The device, and whether it still is one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.connecting = asyncio.Lock()
        self.scanners = 0

    def check(self) -> None:
        if getattr(self.device, "radio_lost", False) or not self.device.powered_on:
            raise BleakBluetoothNotAvailableError(
                "the Bluetooth radio is gone", BleakBluetoothNotAvailableReason.NO_BLUETOOTH
            )

    async def run(self, work: Coroutine[Any, Any, T], ended: asyncio.Future[None]) -> T:
        """The result of `work`, or BleakError as soon as `ended` is done: bumble's own requests would wait on."""
        task = asyncio.create_task(work)
        waited: set[asyncio.Future[Any]] = {task, ended}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        if task.done() and not task.cancelled():
            try:
                return task.result()
            except BaseBumbleError as error:
                self.check()
                raise BleakError(f"the request failed: {error}") from error
        self.check()
        raise BleakError("disconnected")


    async def command(self, work: Coroutine[Any, Any, T]) -> T:
        """For what sends commands to the controller: goes on to its end though the caller be cancelled.

        bumble takes the answer to an abandoned command for the answer to the next one.
        """
        task = asyncio.create_task(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await self.finish(task)
            raise
        except BaseBumbleError as error:
            self.check()
            raise BleakError(f"the controller refused: {error}") from error
        return task.result()

    async def finish(self, task: asyncio.Task[Any]) -> None:
        """Waits for a task that others have no more use for; what it ended with does not matter."""
        await asyncio.wait({task}, timeout=COMMAND_S)
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # it has been seen


class _Scanner(BaseBleakScanner):
    radio: ClassVar[_Radio]

    def __init__(
        self,
        detection_callback: AdvertisementDataCallback | None,
        service_uuids: list[str] | None,
        scanning_mode: str = "active",
        **_systems: Any,
    ) -> None:
        super().__init__(detection_callback, service_uuids)
        self._active = scanning_mode == "active"
        self._scanning = False

    async def start(self) -> None:
        self.radio.check()
        self.seen_devices = {}
        device = self.radio.device
        device.on(device.EVENT_ADVERTISEMENT, self._heard)
        self._scanning = True
        self.radio.scanners += 1
        try:
            if self.radio.scanners == 1:
                await self.radio.command(device.start_scanning(active=self._active))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if not self._scanning:
            return
        self._forget()
        if self.radio.scanners == 0:
            with contextlib.suppress(BleakError):
                self.radio.check()
                await self.radio.command(self.radio.device.stop_scanning())

    def _forget(self) -> None:
        self._scanning = False
        self.radio.scanners -= 1
        self.radio.device.remove_listener(self.radio.device.EVENT_ADVERTISEMENT, self._heard)

    def _heard(self, advertisement: Advertisement) -> None:
        data = advertisement.data
        uuids = [_text(uuid) for kind in _UUID_LISTS for uuid in data.get(kind) or ()]
        if not self.is_allowed_uuid(uuids):
            return
        name = data.get(AdvertisingData.COMPLETE_LOCAL_NAME) or data.get(AdvertisingData.SHORTENED_LOCAL_NAME)
        maker = data.get(AdvertisingData.MANUFACTURER_SPECIFIC_DATA)
        service = data.get(AdvertisingData.SERVICE_DATA_128_BIT_UUID) or data.get(AdvertisingData.SERVICE_DATA)
        seen = AdvertisementData(
            local_name=name,
            manufacturer_data=dict([maker]) if maker else {},
            service_data={_text(service[0]): service[1]} if service else {},
            service_uuids=uuids,
            tx_power=data.get(AdvertisingData.TX_POWER_LEVEL),
            rssi=advertisement.rssi,
            platform_data=(advertisement,),
        )
        address = str(advertisement.address)
        device = self.create_or_update_device(address, address, name, advertisement.address, seen)
        self.call_detection_callbacks(device, seen)


class _Client(BaseBleakClient):
    radio: ClassVar[_Radio]

    def __init__(
        self,
        address_or_ble_device: BLEDevice | str,
        *,
        disconnected_callback: Callable[[], None] | None,
        timeout: float,
        **systems: Any,
    ) -> None:
        super().__init__(
            address_or_ble_device, disconnected_callback=disconnected_callback, timeout=timeout, **systems
        )
        known = address_or_ble_device if isinstance(address_or_ble_device, BLEDevice) else None
        self._peer_address = known.details if known else hci.Address(self.address)
        self._name = (known.name if known else None) or self.address.replace(":", "-")
        self._connection: Connection | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing = asyncio.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def mtu_size(self) -> int:
        return self._connection.att_mtu if self._connection else 23

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    async def connect(self, pair: bool, **kwargs: Any) -> None:
        """Raises BleakDeviceNotFoundError if it is not heard in time, BleakError."""
        if self._connection is not None:
            raise BleakError("already connected")
        try:
            async with asyncio.timeout(kwargs.get("timeout", self._timeout)):
                connection = await self._reach()
        except TimeoutError:
            raise BleakDeviceNotFoundError(self.address, "the device was not heard in time") from None
        if self.radio.device.connections.get(connection.handle) is not connection:
            raise BleakError("the connection ended as soon as it was made")  # another central was faster
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connection, self._ended = connection, ended
        connection.once(connection.EVENT_DISCONNECTION, lambda _: self._disconnected(connection, ended))
        try:
            peer = Peer(connection)
            await self._run(peer.request_mtu(MTU))
            self.services = await self._run(self._discover(peer))
            if pair:
                await self._run(connection.pair())
        except BaseException:
            await self.disconnect()
            raise

    async def disconnect(self) -> None:
        connection, ended = self._connection, self._ended
        if connection is None:
            return
        with contextlib.suppress(BleakError):
            self.radio.check()
            task = asyncio.create_task(connection.disconnect())
            waited: set[asyncio.Future[Any]] = {task, ended}
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await self.radio.finish(task)

    async def pair(self, *args: Any, **kwargs: Any) -> None:
        await self._run(self._live().pair())

    async def unpair(self) -> None:
        raise NotImplementedError

    async def read_gatt_char(
        self, characteristic: BleakGATTCharacteristic, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        return bytearray(await self._run(characteristic.obj.read_value()))

    async def read_gatt_descriptor(
        self, descriptor: BleakGATTDescriptor, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        return bytearray(await self._run(descriptor.obj.read_value()))

    async def write_gatt_char(
        self, characteristic: BleakGATTCharacteristic, data: SizedBuffer, response: bool
    ) -> None:
        value = bytes(data)
        if len(value) > (VALUE_MAX if response else self._value_max()):
            raise BleakError("the value is too long for this connection")
        if response:
            await self._run(characteristic.obj.write_value(value, with_response=True))
            return
        async with self._writing:
            await self._room()
            await characteristic.obj.write_value(value, with_response=False)  # waits for nothing

    async def write_gatt_descriptor(self, descriptor: BleakGATTDescriptor, data: SizedBuffer) -> None:
        await self._run(descriptor.obj.write_value(bytes(data), with_response=True))

    async def start_notify(
        self, characteristic: BleakGATTCharacteristic, callback: NotifyCallback, **kwargs: Any
    ) -> None:
        await self._run(characteristic.obj.subscribe(lambda value: callback(bytearray(value))))

    async def stop_notify(self, characteristic: BleakGATTCharacteristic) -> None:
        await self._run(characteristic.obj.unsubscribe(force=True))

    def _live(self) -> Connection:
        self.radio.check()
        if self._connection is None:
            raise BleakError("not connected")
        return self._connection

    def _value_max(self) -> int:
        return min(self.mtu_size - 3, VALUE_MAX)

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            self._live()
        except BaseException:
            work.close()
            raise
        return await self.radio.run(work, self._ended)

    async def _reach(self) -> Connection:
        """A connection as central. bumble hands over the next connection of the device, whoever made it."""
        device = self.radio.device
        async with self.radio.connecting:
            while True:
                self.radio.check()
                gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

                def lost(gone: asyncio.Future[None] = gone) -> None:
                    if not gone.done():
                        gone.set_result(None)

                device.on(device.EVENT_FLUSH, lost)
                task = asyncio.create_task(device.connect_le(self._peer_address, timeout=None))
                waited: set[asyncio.Future[Any]] = {task, gone}
                connection = None
                try:
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    connection = self._wanted(task)
                finally:
                    device.remove_listener(device.EVENT_FLUSH, lost)
                    if connection is None:
                        await asyncio.shield(self._give_up(task))
                if connection is not None:
                    return connection

    def _wanted(self, task: asyncio.Task[Connection]) -> Connection | None:
        self.radio.check()
        try:
            connection = task.result()
        except BaseBumbleError as error:
            raise BleakError(f"cannot connect: {error}") from error
        except asyncio.CancelledError:  # bumble's way to say that the radio was reset
            raise BleakError("cannot connect") from None
        ours = connection.role == hci.Role.CENTRAL and connection.peer_address == self._peer_address
        return connection if ours else None

    async def _give_up(self, task: asyncio.Task[Connection]) -> None:
        """The controller would go on and connect later, to nobody's knowledge."""
        device = self.radio.device
        await asyncio.sleep(0)  # the task may not have begun; commands keep their order
        if not getattr(device, "radio_lost", False):
            with contextlib.suppress(BaseBumbleError):
                await device.send_sync_command(hci.HCI_LE_Create_Connection_Cancel_Command())
        await self.radio.finish(task)
        late = device.find_connection_by_bd_addr(self._peer_address)
        if late is not None and late.role == hci.Role.CENTRAL:
            with contextlib.suppress(BaseBumbleError):
                await late.disconnect()

    async def _discover(self, peer: Peer) -> BleakGATTServiceCollection:
        found = BleakGATTServiceCollection()
        for service in await peer.discover_services():
            ours = BleakGATTService(service, service.handle, _text(service.uuid))
            found.add_service(ours)
            for part in await service.discover_characteristics():
                characteristic = BleakGATTCharacteristic(
                    part, part.handle, _text(part.uuid), list(gatt_char_props_to_strs(part.properties)),
                    self._value_max, ours,
                )
                found.add_characteristic(characteristic)
                for descriptor in await part.discover_descriptors():
                    found.add_descriptor(
                        BleakGATTDescriptor(descriptor, descriptor.handle, _text(descriptor.type), characteristic)
                    )
        return found

    async def _room(self) -> None:
        """Waits until the controller has room. The device's connections share it, as on real controllers."""
        while True:
            queue = self._live().data_packet_queue
            if queue is None or queue.pending < queue.max_in_flight:
                return
            flowed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue.once("flow", lambda flowed=flowed: flowed.done() or flowed.set_result(None))
            await asyncio.wait({flowed, self._ended}, return_when=asyncio.FIRST_COMPLETED)

    def _disconnected(self, connection: Connection, ended: asyncio.Future[None]) -> None:
        if self._connection is not connection:
            return
        self._connection = None
        if not ended.done():
            ended.set_result(None)
        if self._disconnected_callback is not None:
            self._disconnected_callback()


def _text(uuid: UUID) -> str:
    """As bleak writes it: 128 bits, small letters."""
    return normalize_uuid_str(uuid.to_hex_str("-"))
