"""The Bluetooth peripheral on a bumble device, which is a virtual radio's or owns a dongle: a hop that edges find and
connect to, or an edge that waits for a phone.

Several centrals at once; each has state of its own, bounded, and gives way to the others in the controller's buffers.
The name that is advertised is the same for all unless one is given, nothing is paired or bonded. A central that does
not subscribe, or lets its pipe end and begins no other, is disconnected.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final

from bumble import hci
from bumble.att import Attribute
from bumble.core import UUID, AdvertisingData, BaseBumbleError, PhysicalTransport
from bumble.device import Connection, Device
from bumble.gatt import Characteristic, CharacteristicValue, Service
from bumble.smp import SMP_CID

from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint
from transport.links.gatt import (
    ADVERTISED,
    INFO,
    RX,
    SERVICE,
    SHORT_NAME,
    TX,
    VALUE_MAX,
    VALUE_MIN,
    WINDOW,
    GattPipe,
    Info,
    Role,
)
from transport.links.gatt_link import GattLink
from transport.links.served import OnLink, ServedLinks

CENTRALS_MAX: Final = 8  # connections at once; while there are as many, nothing is advertised
SUBSCRIBE_S: Final = 10.0  # for a central to begin a pipe: after connecting, and after its last one ended
DISCONNECT_S: Final = 5.0
ADVERTISE_MS: Final = 100.0  # a compromise of what scanners find quickly and what batteries like
GENERIC_NAME: Final = "Causeway"
_MTU: Final = 517
WATCH_S: Final = 1.0  # between looks at the controller's buffers
_BACKLOG_MAX: Final = 256  # packets that may wait for them: pipes wait for room, a flood of requests does not
_SCAN_NAME_MAX: Final = 29  # bytes: a scan response of 31
_PAIRING_REQUEST: Final = b"\x01"  # Core 5.4, vol 3, part H, section 3.5
_PAIRING_NOT_SUPPORTED: Final = b"\x05\x05"



class BumblePeripheral:
    """A device's peripheral role. One listener at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._listener: BumbleListener | None = None
        self.tx: Characteristic[bytes] | None = None

    async def listen(self, on_link: OnLink, *, name: str, role: Role = "hop") -> "BumbleListener":
        """Under `name`, or a generic one. A hop advertises from now on, an edge when the listener is told to.

        Raises BadInput if it listens already, LinkLost if it cannot.
        """
        if self._listener is not None and not self._listener.closed:
            raise BadInput("this radio listens already", hint="one listener serves many edges")
        if self.tx is None:
            self.tx = self._add_service()
            # bumble's own would pair with whoever asks, and keep a key of each
            self._device.l2cap_channel_manager.register_fixed_channel(SMP_CID, self._refuse_pairing)
        listener = BumbleListener(self._device, self.tx, on_link, name, role)
        self._listener = listener
        try:
            await listener.start()
        except BaseException:
            await listener.close()
            raise
        return listener

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()

    def _add_service(self) -> Characteristic[bytes]:
        kinds = Characteristic.Properties
        tx: Characteristic[bytes] = Characteristic(TX, kinds.NOTIFY, Attribute.Permissions(0), b"")
        tx.on(tx.EVENT_SUBSCRIPTION, self._subscribed)
        self._device.gatt_server.max_mtu = _MTU
        self._device.add_service(Service(SERVICE, [
            Characteristic(RX, kinds.WRITE_WITHOUT_RESPONSE, Attribute.WRITEABLE,
                           CharacteristicValue(write=self._written)),
            tx,
            Characteristic(INFO, kinds.READ, Attribute.READABLE, CharacteristicValue(read=self._info)),
        ]))
        return tx

    def _refuse_pairing(self, handle: int, pdu: bytes) -> None:
        if pdu.startswith(_PAIRING_REQUEST):
            self._device.send_l2cap_pdu(handle, SMP_CID, _PAIRING_NOT_SUPPORTED)

    def _info(self, connection: Any) -> bytes:
        """A central in a browser does not know how long its writes may be: an edge, which waits for such, tells it."""
        if self._listener is not None and self._listener.role == "edge" and isinstance(connection, Connection):
            return Info("edge", max(VALUE_MIN, min(VALUE_MAX, connection.att_mtu - 3)), WINDOW).encode()
        return Info("hop", VALUE_MAX, WINDOW).encode()

    def _subscribed(self, bearer: Any, notify: bool, _indicate: bool) -> None:
        if self._listener is not None and isinstance(bearer, Connection):
            self._listener.subscribed(bearer, notify)

    def _written(self, connection: Any, value: bytes) -> None:
        if self._listener is not None and isinstance(connection, Connection):
            self._listener.written(connection, value)


class _Central:
    """One connection, and the pipe over it if it has begun one."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.link: GattLink | None = None
        self.given_up = False  # it has unsubscribed under its pipe
        self.again = False  # it waits for a new pipe, while the last one is being tidied up
        self.alarm: asyncio.TimerHandle | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class BumbleListener:
    """Accepts links from centrals, see `transport.links.base.Listener`."""

    def __init__(self, device: Device, tx: Characteristic[bytes], on_link: OnLink, name: str, role: Role) -> None:
        self.endpoint = Endpoint("ble", name)
        self.role = role
        self.closed = False
        self._wanted = role == "hop"  # that it advertises while it has room
        self._device, self._tx = device, tx
        self._centrals: dict[int, _Central] = {}  # by connection handle
        self._links = ServedLinks(on_link)
        self._chores: set[asyncio.Task[None]] = set()
        self._advertising = asyncio.Lock()
        self._look: asyncio.TimerHandle | None = None
        self._completed = 0  # packets of the controller at the last look

    async def start(self) -> None:
        """Raises LinkLost."""
        self._device.on(self._device.EVENT_CONNECTION, self._connected)
        if self._wanted:
            await self.advertise(True)

    async def advertise(self, on: bool) -> None:
        """Begins or stops to be found; who is connected stays. Raises LinkLost."""
        self._wanted = on
        # bumble takes the answer to an abandoned command for the answer to the next one: none is abandoned
        await asyncio.shield(self._do(self._adjust()))

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._device.remove_listener(self._device.EVENT_CONNECTION, self._connected)
        await self._links.close()
        await asyncio.gather(*(self._disconnect(central) for central in list(self._centrals.values())))
        if self._look is not None:
            self._look.cancel()
        if self._chores:
            await asyncio.wait(set(self._chores), timeout=DISCONNECT_S)
        with contextlib.suppress(BaseBumbleError, TimeoutError):
            await self._device.stop_advertising()

    def subscribed(self, connection: Connection, notify: bool) -> None:
        """A central wants values, or none any more: a pipe begins or ends."""
        central = self._centrals.get(connection.handle)
        if central is None or self.closed:
            return
        if central.link is None:
            if notify:
                self._begin(central)
        elif not notify:
            central.given_up, central.again = True, False
            central.link.carrier_lost(LinkLost("the other end has given the link up"))
        elif central.given_up or central.link.finished:
            central.again = True

    def written(self, connection: Connection, value: bytes) -> None:
        """A value from a central. Without a pipe it goes nowhere."""
        central = self._centrals.get(connection.handle)
        if central is not None and central.link is not None:
            central.link.take(value)

    async def _adjust(self) -> None:
        """Raises LinkLost."""
        async with self._advertising:
            if self._wanted and not self.closed and len(self._centrals) < CENTRALS_MAX:
                await self._advertise()
            else:
                with contextlib.suppress(BaseBumbleError, TimeoutError):
                    await self._device.stop_advertising()

    async def _advertise(self) -> None:
        name = (self.endpoint.address or GENERIC_NAME).encode()
        flags = AdvertisingData.Flags.LE_GENERAL_DISCOVERABLE_MODE | AdvertisingData.Flags.BR_EDR_NOT_SUPPORTED
        try:
            await self._device.start_advertising(
                own_address_type=hci.OwnAddressType.RANDOM,
                advertising_interval_min=ADVERTISE_MS, advertising_interval_max=ADVERTISE_MS,
                advertising_data=bytes(AdvertisingData([
                    (AdvertisingData.FLAGS, bytes([flags])),
                    (AdvertisingData.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS, bytes(UUID(ADVERTISED[self.role]))),
                    _named(name, SHORT_NAME),
                ])),
                scan_response_data=bytes(AdvertisingData([_named(name, _SCAN_NAME_MAX)])),
            )
        except (BaseBumbleError, TimeoutError) as error:
            raise LinkLost("the Bluetooth radio does not advertise", reason="unavailable") from error

    def _connected(self, connection: Connection) -> None:
        if connection.transport != PhysicalTransport.LE or connection.role != hci.Role.PERIPHERAL or self.closed:
            return
        central = _Central(connection)
        self._centrals[connection.handle] = central
        connection.once(connection.EVENT_DISCONNECTION, lambda _: self._disconnected(central))
        self._await_pipe(central)
        self._advertise_again()
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(WATCH_S, self._watch)

    def _disconnected(self, central: _Central) -> None:
        if self._centrals.get(central.connection.handle) is central:
            del self._centrals[central.connection.handle]
        if central.alarm is not None:
            central.alarm.cancel()
        if not central.gone.done():
            central.gone.set_result(None)
        if central.link is not None:
            central.link.carrier_lost(LinkLost("the connection was lost"))
        if len(self._centrals) == CENTRALS_MAX - 1:
            self._advertise_again()

    def _advertise_again(self) -> None:
        """A controller stops advertising with each connection."""

        async def again() -> None:
            with contextlib.suppress(LinkLost):  # the radio has gone, and with it everything else
                await self._adjust()

        self._do(again())

    def _await_pipe(self, central: _Central) -> None:
        if central.alarm is not None:
            central.alarm.cancel()
        loop = asyncio.get_running_loop()
        central.alarm = loop.call_later(SUBSCRIBE_S, lambda: self._do(self._disconnect(central)))

    def _begin(self, central: _Central) -> None:
        connection = central.connection
        if central.alarm is not None:
            central.alarm.cancel()
        central.given_up = central.again = False
        size = min(VALUE_MAX, connection.att_mtu - 3)
        pipe = GattPipe(size, 0, WINDOW, asyncio.get_running_loop().time())

        async def write(value: bytes) -> None:
            await self._room(central)
            try:
                await self._device.gatt_server.notify_subscriber(connection, self._tx, value)
            except BaseBumbleError as error:
                raise LinkLost("the connection was lost") from error

        async def let_go() -> None:
            central.link = None
            if central.gone.done():
                return
            if self.closed or not (link.finished or central.given_up):
                await self._disconnect(central)
            elif central.again:
                self._begin(central)
            else:
                self._await_pipe(central)

        link = GattLink(pipe, f"ble:{connection.peer_address.to_string(with_type_qualifier=False)}", write, let_go)
        central.link = link
        link.start()
        self._links.serve(link)

    async def _room(self, central: _Central) -> None:
        """Waits until the controller has room for a value, of which nobody takes more than a fair share: the packets
        to a central that has walked away stay in the buffers until the connection is given up.
        """
        while not central.gone.done():
            queue = central.connection.data_packet_queue
            if queue is None:
                return
            busy = sum(other.link is not None for other in self._centrals.values())
            share = max(2, queue.max_in_flight // max(1, busy))
            if queue.pending < queue.max_in_flight and _in_flight(central.connection) < share:
                return
            flowed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def flow(flowed: asyncio.Future[None] = flowed) -> None:
                if not flowed.done():
                    flowed.set_result(None)

            queue.on("flow", flow)
            try:
                await asyncio.wait((flowed, central.gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                queue.remove_listener("flow", flow)
        raise LinkLost("the connection was lost")

    def _watch(self) -> None:
        """Shows a central out that takes nothing while others wait for the buffers it holds, or asks for more than it
        takes: a controller's buffers are few, and bumble's queue for them has no end.
        """
        self._look = None
        if not self._centrals:
            return
        self._look = asyncio.get_running_loop().call_later(WATCH_S, self._watch)
        worst = max(self._centrals.values(), key=lambda one: _in_flight(one.connection))
        if (queue := worst.connection.data_packet_queue) is None:
            return
        stuck = queue.pending >= queue.max_in_flight and queue.completed == self._completed
        if queue.pending > queue.max_in_flight + _BACKLOG_MAX or (stuck and len(self._centrals) > 1):
            self._do(self._disconnect(worst))
        self._completed = queue.completed

    async def _disconnect(self, central: _Central) -> None:
        if central.gone.done():
            return
        with contextlib.suppress(BaseBumbleError, TimeoutError):
            async with asyncio.timeout(DISCONNECT_S):
                await central.connection.disconnect()

    def _do(self, chore: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        return task


def _named(name: bytes, room: int) -> tuple[int, bytes]:
    if len(name) <= room:
        return AdvertisingData.COMPLETE_LOCAL_NAME, name
    return AdvertisingData.SHORTENED_LOCAL_NAME, name[:room]


def _in_flight(connection: Connection) -> int:
    """Packets of one connection that the controller has. bumble counts them and has no public word for it."""
    queue = connection.data_packet_queue
    state = queue._connection_state.get(connection.handle) if queue is not None else None
    return state.in_flight if state is not None else 0
