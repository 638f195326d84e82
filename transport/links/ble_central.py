"""The Bluetooth central: finds hops by their service, connects to one and makes a link of it. bleak's API alone.

Anyone can call itself a hop, and a strong signal proves nothing. So hops that have led to a completed handshake come
first, those that have led nowhere last, and the signal decides among the rest.
"""

import asyncio
import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bleak import BleakClient, BleakScanner
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDBusError,
    BleakDeviceNotFoundError,
    BleakError,
)

from transport.errors import LinkLost, ProtocolViolation, TransportError
from transport.links.gatt import FIRST_CREDIT, INFO, RX, SERVICE, SHORT_NAME, TX, VALUE_MAX, VALUE_MIN, GattPipe, Info
from transport.links.gatt_link import GattLink

EDGE_REST_S: Final = 300.0  # for which a device that is no hop but an edge is left alone
LOOK_S: Final = 1.0  # how long others are looked for once one hop was heard
CANDIDATES_MAX: Final = 64  # hops of one search; the weakest are dropped
REMEMBERED_MAX: Final = 256  # hops whose history is kept
DISCONNECT_S: Final = 5.0
_ANY, _BEGINNING, _EXACT = 1, 1, 2  # likeness
_SIZE_TRIES: Final = 5  # BlueZ says 20 for a moment after connecting, whatever was agreed
_SIZE_PAUSE_S: Final = 0.1
_GO_NEARER: Final = "go nearer to a hop, and see that it is running"
_ACCESS: Final = "allow this program to use Bluetooth: on Linux a D-Bus policy, elsewhere the system's privacy settings"


@dataclass
class _History:
    handshakes: int = 0
    in_vain: int = 0  # connections since the last completed handshake
    until: float = 0.0  # when it is worth a try again


class _Stale(LinkLost):
    """A connection failed, or showed a device without its services: a system's memory of it may be out of date."""


@dataclass(frozen=True)
class _Heard:
    device: BLEDevice
    likeness: int
    rssi: int  # dBm


class BleCentral:
    """A radio's central role. `scanner` and `client` are bleak's backends, None for the system's own, where `adapter`
    names one of several.
    """

    def __init__(
        self, scanner: type[BaseBleakScanner] | None = None, client: type[BaseBleakClient] | None = None, *,
        adapter: str = "",
    ) -> None:
        self._scanner, self._client = scanner, client
        self._options: dict[str, Any] = {"bluez": {"adapter": adapter}} if adapter else {}
        self._known: OrderedDict[str, _History] = OrderedDict()  # by address
        self._links: set[GattLink] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def connect(self, name: str, *, timeout_s: float) -> GattLink:
        """To the best hop in reach, or to the one of that name or address. Raises LinkLost: "out_of_range" if none was
        heard, "unavailable" and "refused" if the radio itself is off or not ours to use, else what the last hop said.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        failure = LinkLost("no hop is in reach", reason="out_of_range", hint=_GO_NEARER)
        with _as_link_lost():
            candidates = await self._search(name, timeout_s)
        for number, device in enumerate(candidates):
            left = until - loop.time()
            if left <= 0:
                break
            try:
                return await self._reach(device, left if number == len(candidates) - 1 else left / 2)
            except LinkLost as error:
                failure = error
        raise failure

    def worked(self, peer: str) -> None:
        """A handshake was completed over a link to `peer` (its `peer`): this hop leads somewhere."""
        history = self._history(peer.removeprefix("ble:"))
        history.handshakes, history.in_vain = history.handshakes + 1, 0

    async def close(self) -> None:
        """Closes every link."""
        await asyncio.gather(*(link.close() for link in list(self._links)))
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _search(self, name: str, timeout_s: float) -> list[BLEDevice]:
        """Hops, the best first, perhaps none. Ends `LOOK_S` after the first, so as to hear others, or with the one of
        that name, or the only one that is known to work.
        """
        heard: dict[str, _Heard] = {}
        first, wanted = asyncio.Event(), asyncio.Event()

        def seen(device: BLEDevice, data: AdvertisementData) -> None:
            # some systems' scanners filter by service only as far as they can, and report the rest as well
            likeness = _likeness(name, device, data) if SERVICE in data.service_uuids else 0
            if not likeness:
                return
            heard[device.address] = _Heard(device, likeness, data.rssi)
            if len(heard) > CANDIDATES_MAX:
                del heard[min(heard, key=lambda address: (heard[address].likeness, heard[address].rssi))]
            first.set()
            if likeness == _EXACT or self._is_the_one(device.address):
                wanted.set()

        async with BleakScanner(seen, [SERVICE], backend=self._scanner, **self._options):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await first.wait()
                    async with asyncio.timeout(min(LOOK_S, timeout_s / 4)):
                        await wanted.wait()
        now = asyncio.get_running_loop().time()
        rested = (one for address, one in heard.items() if self._known.get(address, _History()).until <= now)
        return [one.device for one in sorted(rested, key=self._rank)]

    def _is_the_one(self, address: str) -> bool:
        """Whether no other could come before this hop, however near."""
        return [each for each, past in self._known.items() if past.handshakes and not past.in_vain] == [address]

    def _rank(self, heard: "_Heard") -> tuple[int, int, bool, int]:
        history = self._known.get(heard.device.address, _History())
        return -heard.likeness, history.in_vain, not history.handshakes, -heard.rssi

    def _history(self, address: str) -> _History:
        history = self._known.setdefault(address, _History())
        self._known.move_to_end(address)
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return history

    async def _reach(self, device: BLEDevice, timeout_s: float) -> GattLink:
        """Connects, and once more without what the system remembers of the device.

        A hop's service moves with each registration. BlueZ then tells that services are resolved before it shows those
        that are new (https://github.com/bluez/bluez/issues/1489), which looks like a device without them.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        self._history(device.address).in_vain += 1
        try:
            return await self._open(device, timeout_s)
        except LinkLost as failure:
            await self._forget(device)  # after half a discovery, BlueZ 5.66 no longer finds it by its service
            left = until - loop.time()
            if not isinstance(failure, _Stale) or left <= 0:
                raise
            with _as_link_lost():
                again = await self._search(device.address.removesuffix("/P"), left)
            if not again or (left := until - loop.time()) <= 0:
                raise
        return await self._open(again[0], left)

    async def _forget(self, device: BLEDevice) -> None:
        """Has BlueZ find out about the device anew. Other systems are not told."""
        if self._client is not None or sys.platform != "linux":
            return
        from transport.links.bluez_bus import forget

        with contextlib.suppress(LinkLost):
            await forget(device.details["path"])

    async def _open(self, device: BLEDevice, timeout_s: float) -> GattLink:
        link: GattLink | None = None

        def disconnected(_: BleakClient) -> None:
            if link is not None:
                link.carrier_lost(LinkLost("the connection to the hop was lost", hint=_GO_NEARER))

        client = BleakClient(device, disconnected, timeout=timeout_s, backend=self._client, **self._options)
        try:
            async with asyncio.timeout(timeout_s):
                with _as_link_lost():
                    await client.connect()
                    pipe = await self._agree(client, self._history(device.address))
                    link = self._link(client, pipe, device.address)
                    await client.start_notify(TX, lambda _, value: link.take(bytes(value)))
        except BaseException as error:
            if link is not None:
                self._links.discard(link)
            await self._leave(client)
            if isinstance(error, TimeoutError):
                raise LinkLost("the hop does not answer", reason="out_of_range", hint=_GO_NEARER) from None
            raise
        link.start()
        return link

    async def _agree(self, client: BleakClient, history: _History) -> GattPipe:
        service = client.services.get_service(SERVICE)
        rx = service.get_characteristic(RX) if service else None
        if service is None or rx is None or not (service.get_characteristic(TX) and service.get_characteristic(INFO)):
            raise _Stale("this device has not the service of a hop", reason="error")
        try:
            info = Info.decode(bytes(await client.read_gatt_char(INFO)))
        except ProtocolViolation as error:
            raise LinkLost(str(error), reason="error", hint=error.hint) from error
        if info.role != "hop":  # it does not advertise a hop's service, but a system may remember that it has it
            history.until = asyncio.get_running_loop().time() + EDGE_REST_S
            raise LinkLost("this device is an edge, and needs a hop itself", reason="error", hint=_GO_NEARER)
        for _ in range(_SIZE_TRIES):
            if (longest := await self._longest(rx)) > VALUE_MIN:
                break
            await asyncio.sleep(_SIZE_PAUSE_S)
        size = max(VALUE_MIN, min(VALUE_MAX, info.value_size, longest))
        credit = 0 if info.credit == FIRST_CREDIT else info.credit  # its first state says when it is ready
        return GattPipe(size, credit, 0, asyncio.get_running_loop().time())

    async def _longest(self, rx: BleakGATTCharacteristic) -> int:
        """Bytes of the longest write without response."""
        said = rx.max_write_without_response_size
        if said > VALUE_MIN or self._client is not None or sys.platform != "linux":
            return said
        from transport.links.bluez_bus import mtu_of

        # BlueZ (5.66) tells bleak of 20 for good when it connects to a device again, but has the right number if asked
        with contextlib.suppress(LinkLost):
            return max(said, await mtu_of(rx.obj[0]) - 3)
        return said

    def _link(self, client: BleakClient, pipe: GattPipe, address: str) -> GattLink:
        rx = client.services.get_characteristic(RX)

        async def write(value: bytes) -> None:
            with _as_link_lost():
                await client.write_gatt_char(rx or RX, value, response=False)

        async def let_go() -> None:
            self._links.discard(link)
            await self._leave(client)

        link = GattLink(pipe, f"ble:{address}", write, let_go)
        self._links.add(link)
        return link

    async def _leave(self, client: BleakClient) -> None:
        """Disconnects, also if the caller is cancelled: a connection nobody knows of would block hop and radio."""

        async def disconnect() -> None:
            with contextlib.suppress(TransportError, TimeoutError), _as_link_lost():
                async with asyncio.timeout(DISCONNECT_S):
                    await client.disconnect()

        task = asyncio.get_running_loop().create_task(disconnect())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        await asyncio.shield(task)


def _likeness(name: str, device: BLEDevice, data: AdvertisementData) -> int:
    """How well a device is called by this name or address. Advertisements may have room for a name's beginning only."""
    heard = data.local_name or ""
    if not name:
        return _ANY
    if name == heard or device.address.upper().removesuffix("/P") == name.upper():
        return _EXACT
    return _BEGINNING if len(heard) >= SHORT_NAME and name.startswith(heard) else 0


@contextlib.contextmanager
def _as_link_lost() -> Iterator[None]:
    """What bleak and the systems beneath it raise, in this project's words and without their details."""
    try:
        yield
    except (TransportError, TimeoutError):
        raise
    except (BleakError, OSError, EOFError) as error:
        raise _explain(error) from error


def _explain(error: Any) -> LinkLost:
    if isinstance(error, BleakBluetoothNotAvailableError):
        why = BleakBluetoothNotAvailableReason
        if error.reason in (why.DENIED_BY_USER, why.DENIED_BY_SYSTEM, why.DENIED_BY_UNKNOWN):
            return LinkLost("this program may not use Bluetooth", reason="refused", hint=_ACCESS)
        if error.reason is why.POWERED_OFF:
            return LinkLost("Bluetooth is switched off", reason="unavailable", hint="switch it on")
        return LinkLost("there is no Bluetooth radio", reason="unavailable", hint="plug one in, or use another link")
    if isinstance(error, BleakDBusError):
        if error.dbus_error.endswith((".AccessDenied", ".NotPermitted", ".NotAuthorized", ".AuthFailed")):
            return LinkLost("this program may not use Bluetooth", reason="refused", hint=_ACCESS)
        if error.dbus_error.endswith((".NotReady", ".NotAvailable")):
            return LinkLost("Bluetooth is switched off", reason="unavailable", hint="switch it on")
        if error.dbus_error.endswith((".ServiceUnknown", ".NameHasNoOwner", ".NoReply", ".Disconnected")):
            return LinkLost(
                "the system's Bluetooth service does not run", reason="unavailable", hint="start bluetooth.service")
    if isinstance(error, BleakDeviceNotFoundError):
        return LinkLost("the hop is out of reach", reason="out_of_range", hint=_GO_NEARER)
    if isinstance(error, PermissionError):
        return LinkLost("this program may not use Bluetooth", reason="refused", hint=_ACCESS)
    if isinstance(error, (OSError, EOFError)):  # no system bus: it is how bleak reaches BlueZ
        return LinkLost(
            "the system's Bluetooth service cannot be reached", reason="unavailable", hint="is BlueZ installed?")
    return _Stale("the connection to the hop failed", hint=_GO_NEARER)
