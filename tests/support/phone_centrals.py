"""Centrals for an emulated phone: one on a virtual radio, to a real edge, and one to a stand-in for a laptop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from bleak import BleakClient, BleakScanner
from bleak.exc import BleakError
from bumble.device import Device

from transport.errors import LinkLost
from transport.links.gatt import INFO, RX, TX, VALUE_MAX, WAITING, WINDOW, GattPipe, Info
from transport.links.gatt_link import GattLink
from transport.links.virtual_bleak import bleak_backend

_HEARD_S = 3.0  # for an edge to be heard; the page tries again


class RadioCentral:
    """Copies what the browser asks for to an edge that waits under that name on a virtual radio, and back."""

    def __init__(self, device: Device, name: str) -> None:
        self._backend, self._name = bleak_backend(device), name
        self._client: BleakClient | None = None

    async def connect(self, notify: Callable[[bytes], None], gone: Callable[[], object]) -> None:
        self._values = notify
        with _as_link_lost():
            found = await BleakScanner.find_device_by_filter(
                lambda _, said: WAITING in said.service_uuids and said.local_name == self._name, _HEARD_S,
                backend=self._backend.scanner,
            )
            if found is None:
                raise LinkLost("no edge waits")
            self._client = BleakClient(found, lambda _: (gone(), None)[1], backend=self._backend.client)
            await self._client.connect()

    async def info(self) -> bytes:
        with _as_link_lost():
            return bytes(await self._connected.read_gatt_char(INFO))

    async def subscribe(self, on: bool) -> None:
        with _as_link_lost():
            if on:
                await self._connected.start_notify(TX, lambda _, value: self._values(bytes(value)))
            else:
                await self._connected.stop_notify(TX)

    async def write(self, value: bytes) -> None:
        with _as_link_lost():
            await self._connected.write_gatt_char(RX, value, response=False)

    async def disconnect(self) -> None:
        with contextlib.suppress(BleakError):
            if self._client is not None:
                await self._client.disconnect()

    @property
    def _connected(self) -> BleakClient:
        if self._client is None:
            raise LinkLost("not connected")
        return self._client


@contextlib.contextmanager
def _as_link_lost() -> Iterator[None]:
    try:
        yield
    except (BleakError, TimeoutError) as error:
        raise LinkLost("the edge has gone") from error


class StandInLaptop:
    """Is the laptop itself: the peripheral's end of each pipe is put into `links`. `info` is what it says of itself."""

    def __init__(self, info: Info | None = None) -> None:
        self.said = (info or Info("edge", VALUE_MAX, WINDOW)).encode()
        self.links: asyncio.Queue[GattLink] = asyncio.Queue()
        self.reachable = True
        self.written: list[bytes] = []  # the latest values
        self._link: GattLink | None = None
        self.notify: Callable[[bytes], None]

    async def connect(self, notify: Callable[[bytes], None], gone: Callable[[], object]) -> None:
        if not self.reachable:
            raise LinkLost("out of reach")
        self.notify = notify

    async def info(self) -> bytes:
        return self.said

    async def subscribe(self, on: bool) -> None:
        if self._link is not None:
            self._link.carrier_lost(LinkLost("the phone has given the link up"))
        if not on:
            return
        info, now = Info.decode(self.said), asyncio.get_running_loop().time()
        pipe = GattPipe(VALUE_MAX, 0, info.credit, now)
        self._link = GattLink(pipe, "phone", self._write, self._let_go)
        self._link.start()
        self.links.put_nowait(self._link)

    async def write(self, value: bytes) -> None:
        self.written = [*self.written[-63:], value]
        if self._link is not None:
            self._link.take(value)

    async def disconnect(self) -> None:
        if self._link is not None:
            self._link.carrier_lost(LinkLost("the connection to the phone was lost"))

    async def _write(self, value: bytes) -> None:
        self.notify(value)

    async def _let_go(self) -> None:
        """The connection stays, as for a next pipe."""
