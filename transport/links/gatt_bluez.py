"""The Bluetooth peripheral on BlueZ, Linux's own stack, by D-Bus: a hop that edges find and connect to, or an edge that
waits for a phone.

Values travel over socket pairs that BlueZ acquires, a D-Bus call for each would cost a third of the rate. What is
advertised is the service and the name, the same for all hops unless one is given. When the adapter goes, is switched
off, or BlueZ is started anew, links are lost and the hop registers again as soon as it can.

While a socket for writes is being acquired, BlueZ 5.66 loses what else is written, or repeats it. So the first credit
is one, which tells the central to wait, and nothing is granted before the first value is here.

BlueZ before 5.77 sends a notification to every device that has subscribed, whichever socket it came from, and lets
several devices write into one socket: there, one edge is served at a time, and nothing advertised meanwhile.
"""

import asyncio
import contextlib
import re
import socket
from typing import Any, Final

from dbus_fast import Variant

from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint
from transport.links.bluez_bus import ADAPTER, DEVICE, BluezBus, Properties, Refused, keep
from transport.links.gatt import (
    ADVERTISED,
    FIRST_CREDIT,
    INFO,
    RX,
    SERVICE,
    TX,
    VALUE_MAX,
    VALUE_MIN,
    GattPipe,
    Info,
    Role,
)
from transport.links.gatt_link import GattLink
from transport.links.served import OnLink, ServedLinks

CENTRALS_MAX: Final = 8  # pipes at once; while there are as many, the hop does not advertise
SUBSCRIBE_S: Final = 10.0  # for an edge to begin another pipe after its last one ended
GENERIC_NAME: Final = "Causeway"
_SEPARATE_SINCE: Final = (5, 77)
_GATT: Final = "org.bluez.GattManager1"
_ADVERTISING: Final = "org.bluez.LEAdvertisingManager1"
_ROOT: Final = "/causeway"
_SERVICE, _RX, _TX, _INFO = f"{_ROOT}/service", f"{_ROOT}/service/rx", f"{_ROOT}/service/tx", f"{_ROOT}/service/info"
_ADVERTISEMENT: Final = "/causeway_advertisement"
_ADDRESS: Final = re.compile(r".*/dev_((?:[0-9A-F]{2}_){5}[0-9A-F]{2})")



class BluezPeripheral:
    """An adapter's peripheral role; `adapter` is as in "hci0", "" for the first that can be one. One listener."""

    def __init__(self, adapter: str = "") -> None:
        self._adapter = adapter
        self._listener: BluezListener | None = None

    async def listen(self, on_link: OnLink, *, name: str, role: Role = "hop") -> "BluezListener":
        """Under `name`, or a generic one. A hop advertises from now on, an edge when the listener is told to.

        Raises BadInput if it listens already, LinkLost if it cannot.
        """
        if self._listener is not None and not self._listener.closed:
            raise BadInput("this radio listens already", hint="one listener serves many edges")
        self._listener = listener = BluezListener(self._adapter, on_link, name, role)
        try:
            await listener.start()
        except BaseException:
            await listener.close()
            raise
        return listener

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()


class _Pipe:
    """One subscription of one device: its link, and our end of the socket that takes notifications."""

    def __init__(self, device: str, tx: socket.socket) -> None:
        self.device, self.tx = device, tx
        self.link: GattLink
        self.first = b""  # value from the device
        self.heard = asyncio.Event()  # it has come
        self.over = False  # the device has unsubscribed or gone


class BluezListener:
    """Accepts links from centrals, see `transport.links.base.Listener`."""

    def __init__(self, adapter: str, on_link: OnLink, name: str, role: Role) -> None:
        self.endpoint = Endpoint("ble", name)
        self.closed = False
        self._role: Role = role
        self._wanted = role == "hop"  # that it advertises while it has room
        self._adapter = adapter
        self._bus = BluezBus(self._changed)
        self._centrals_max = 1
        self._registered = ""  # path of the adapter that knows the service
        self._epoch = 0  # of the bus, at that time
        self._advertised = False
        self._pipes: dict[str, _Pipe] = {}  # by path of the device
        self._inputs: dict[socket.socket, str] = {}  # sockets that devices write to, with the path of each
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._links = ServedLinks(on_link)
        self._chores: set[asyncio.Task[None]] = set()
        self._registering = asyncio.Lock()
        self._stale = asyncio.Event()  # something has changed since BlueZ was looked at
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises LinkLost."""
        if _version(await _bluez_says()) >= _SEPARATE_SINCE:
            self._centrals_max = CENTRALS_MAX
        await self._open()
        self._keeper = asyncio.get_running_loop().create_task(keep(self._stale, self._look_again))

    async def advertise(self, on: bool) -> None:
        """Begins or stops to be found; who is connected stays. Raises LinkLost."""
        self._wanted = on
        if not self.closed:
            await self._register()

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._keeper is not None:
            self._keeper.cancel()
        await self._links.close()
        for alarm in self._alarms.values():
            alarm.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        if self._registered:
            await self._unregister(self._registered)
        for end in list(self._inputs):
            self._shut(end)
        self._bus.close()

    # --- being known to BlueZ -----------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._bus.open()
        self._bus.export(_objects(self.endpoint.address, ADVERTISED[self._role]), {
            (_INFO, "ReadValue"): lambda options: ("ay", [self._info(options)], None),
            (_TX, "AcquireNotify"): self._subscribed,
            (_TX, "StopNotify"): lambda _: ("", [], None),
            (_RX, "AcquireWrite"): self._writes,
            (_ADVERTISEMENT, "Release"): self._released,
        })
        await self._register()

    async def _look_again(self) -> None:
        if self._bus.lost:
            self._forget()
            self._bus = BluezBus(self._changed)
            await self._open()
        else:
            await self._register()

    async def _register(self) -> None:
        """Has BlueZ know what it should. Raises LinkLost."""
        async with self._registering:
            await self._agree()

    async def _agree(self) -> None:
        try:
            adapter = self._choose(await self._bus.objects())
        except LinkLost:
            self._forget()
            raise
        if adapter != self._registered or self._bus.epoch != self._epoch:
            self._forget()
            self._epoch = self._bus.epoch
            await self._unregister(adapter)  # one that was switched off and on remembers
            await self._bus.call(adapter, _GATT, "RegisterApplication", "oa{sv}", _ROOT, {})
            self._registered = adapter
        if self._wanted and len(self._pipes) < self._centrals_max:
            if not self._advertised:
                await self._bus.call(
                    adapter, _ADVERTISING, "RegisterAdvertisement", "oa{sv}", _ADVERTISEMENT, {})
                self._advertised = True
        else:
            await self._withdraw()

    def _choose(self, objects: dict[str, dict[str, Properties]]) -> str:
        """Raises LinkLost if there is no adapter that can be a peripheral, or it is switched off."""
        wanted = f"/{self._adapter}" if self._adapter else ""
        able = [path for path, interfaces in sorted(objects.items())
                if {ADAPTER, _GATT, _ADVERTISING} <= interfaces.keys() and path.endswith(wanted)]
        if not able:
            raise LinkLost("there is no Bluetooth radio", reason="unavailable", hint="plug one in, or name another")
        on = [path for path in able if objects[path][ADAPTER]["Powered"].value]
        if not on:
            raise LinkLost("Bluetooth is switched off", reason="unavailable", hint="switch it on")
        return self._registered if self._registered in on else on[0]

    def _forget(self) -> None:
        """BlueZ or its adapter has gone: it knows nothing of us any more."""
        self._registered, self._advertised = "", False
        for pipe in list(self._pipes.values()):
            self._lose(pipe, "the Bluetooth radio has gone")

    async def _unregister(self, adapter: str) -> None:
        for manager, what, path in ((_ADVERTISING, "Advertisement", _ADVERTISEMENT), (_GATT, "Application", _ROOT)):
            with contextlib.suppress(LinkLost):
                await self._bus.call(adapter, manager, f"Unregister{what}", "o", path)

    async def _withdraw(self) -> None:
        if self._advertised:
            self._advertised = False
            await self._bus.call(self._registered, _ADVERTISING, "UnregisterAdvertisement", "o", _ADVERTISEMENT)

    def _released(self, _: Properties) -> tuple[str, list[Any], None]:
        self._advertised = False
        self._stale.set()
        return "", [], None

    def _changed(self, device: str | None) -> None:
        if device is None:
            self._stale.set()
        elif pipe := self._pipes.get(device):
            self._lose(pipe, "the connection was lost")

    # --- centrals -----------------------------------------------------------------------------------------------------

    def _info(self, options: Properties) -> bytes:
        """A central in a browser does not know how long its writes may be: an edge, which waits for such, tells it."""
        size = VALUE_MAX
        if self._role == "edge" and "mtu" in options:
            size = max(VALUE_MIN, min(VALUE_MAX, int(options["mtu"].value) - 3))
        return Info(self._role, size, FIRST_CREDIT).encode()

    def _subscribed(self, options: Properties) -> tuple[str, list[Any], int]:
        """A device wants values: a pipe begins."""
        device, mtu = _asked(options)
        if self.closed or (device not in self._pipes and len(self._pipes) >= self._centrals_max):
            raise Refused("NotPermitted")
        if before := self._pipes.get(device):
            self._lose(before, "the other end has given the link up")
        if alarm := self._alarms.pop(device, None):
            alarm.cancel()
        ours, theirs = _pair()
        self._begin(_Pipe(device, ours), min(VALUE_MAX, mtu - 3))
        return "hq", [0, mtu], theirs

    def _begin(self, pipe: _Pipe, size: int) -> None:
        loop = asyncio.get_running_loop()

        async def write(value: bytes) -> None:
            await pipe.heard.wait()
            try:
                await loop.sock_sendall(pipe.tx, value)
            except OSError as error:
                raise LinkLost("the connection was lost") from error

        async def let_go() -> None:
            loop.remove_reader(pipe.tx)
            pipe.tx.close()
            if self._pipes.get(pipe.device) is not pipe:
                return  # it has begun another one
            del self._pipes[pipe.device]
            for end in [end for end, device in self._inputs.items() if device == pipe.device]:
                self._shut(end)
            self._stale.set()
            if not pipe.over and (self.closed or not pipe.link.finished):
                await self._disconnect(pipe.device)
            elif not pipe.over:
                self._alarms[pipe.device] = loop.call_later(SUBSCRIBE_S, self._show_out, pipe.device)

        address = _ADDRESS.fullmatch(pipe.device)
        peer = address[1].replace("_", ":") if address else "unknown"
        pipe.link = GattLink(GattPipe(size, 0, FIRST_CREDIT, loop.time()), f"ble:{peer}", write, let_go)
        self._pipes[pipe.device] = pipe
        loop.add_reader(pipe.tx, self._hung_up, pipe)
        self._stale.set()
        pipe.link.start()
        self._links.serve(pipe.link)

    def _hung_up(self, pipe: _Pipe) -> None:
        """BlueZ's end of a notifying socket says nothing but its end."""
        with contextlib.suppress(BlockingIOError):
            with contextlib.suppress(ConnectionError):
                if pipe.tx.recv(1):
                    return
            self._lose(pipe, "the other end has given the link up")

    def _lose(self, pipe: _Pipe, why: str) -> None:
        pipe.over = True
        pipe.heard.set()
        asyncio.get_running_loop().remove_reader(pipe.tx)
        pipe.link.carrier_lost(LinkLost(why))

    def _writes(self, options: Properties) -> tuple[str, list[Any], int]:
        """A device has written: what it and, before BlueZ 5.67, any other writes from now on comes by this socket."""
        device, mtu = _asked(options)
        if self.closed or device not in self._pipes:
            raise Refused("NotPermitted")
        ours, theirs = _pair()
        self._inputs[ours] = device
        asyncio.get_running_loop().add_reader(ours, self._written, ours)
        return "hq", [0, mtu], theirs

    def _written(self, end: socket.socket) -> None:
        try:
            value = end.recv(1024)
        except BlockingIOError:
            return
        except ConnectionError:
            value = b""
        if not value:
            self._shut(end)
        elif pipe := self._pipes.get(self._inputs[end]):
            if value == pipe.first:
                pipe.first = b""  # it came by two sockets; if a state was said twice, nothing is lost
            elif pipe.heard.is_set():
                pipe.link.take(value)
            elif value[0] in (0x00, 0x80):  # its first data, or state; anything else was spoilt on the way
                pipe.first = value
                pipe.heard.set()
                pipe.link.take(value)

    def _shut(self, end: socket.socket) -> None:
        del self._inputs[end]
        asyncio.get_running_loop().remove_reader(end)
        end.close()

    def _show_out(self, device: str) -> None:
        self._alarms.pop(device, None)
        task = asyncio.get_running_loop().create_task(self._disconnect(device))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _disconnect(self, device: str) -> None:
        with contextlib.suppress(LinkLost):
            await self._bus.call(device, DEVICE, "Disconnect")


def _objects(name: str, advertised: str) -> dict[str, dict[str, Properties]]:
    """The service as BlueZ wants it, and the advertisement: nothing in it differs between hops without a name."""
    def characteristic(uuid: str, flag: str, **more: Variant) -> dict[str, Properties]:
        return {"org.bluez.GattCharacteristic1": {
            "UUID": Variant("s", uuid), "Service": Variant("o", _SERVICE), "Flags": Variant("as", [flag]), **more,
        }}

    return {
        _SERVICE: {"org.bluez.GattService1": {"UUID": Variant("s", SERVICE), "Primary": Variant("b", True)}},
        _RX: characteristic(RX, "write-without-response", WriteAcquired=Variant("b", False)),
        _TX: characteristic(TX, "notify", NotifyAcquired=Variant("b", False)),
        _INFO: characteristic(INFO, "read"),
        _ADVERTISEMENT: {"org.bluez.LEAdvertisement1": {
            "Type": Variant("s", "peripheral"), "ServiceUUIDs": Variant("as", [advertised]),
            "LocalName": Variant("s", name or GENERIC_NAME), "Discoverable": Variant("b", True),
        }},
    }


def _asked(options: Properties) -> tuple[str, int]:
    """Device and ATT_MTU of a call that acquires a socket."""
    try:
        return str(options["device"].value), int(options["mtu"].value)
    except (KeyError, ValueError):
        raise Refused("InvalidArguments") from None


def _pair() -> tuple[socket.socket, int]:
    """Our end, which does not wait, and BlueZ's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs.detach()


async def _bluez_says() -> str:
    """What BlueZ's own tool says of its version, "" if it is not there."""
    with contextlib.suppress(OSError, TimeoutError):
        process = await asyncio.create_subprocess_exec(
            "bluetoothctl", "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(5):
                return (await process.communicate())[0].decode(errors="replace")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return ""


def _version(text: str) -> tuple[int, int]:
    found = re.search(r"([0-9]+)\.([0-9]+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
