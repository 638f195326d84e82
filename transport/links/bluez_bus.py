"""BlueZ over D-Bus: its objects, calls to it, objects of ours that it calls, and word of every change. dbus-fast alone.

Messages are read and made here rather than through classes of an interface, so that what another process may call is
one table. https://github.com/bluez/bluez/tree/master/doc describes the interfaces.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from dbus_fast import BusType, DBusError, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from transport.errors import LinkLost

BLUEZ: Final = "org.bluez"
ADAPTER: Final = "org.bluez.Adapter1"
DEVICE: Final = "org.bluez.Device1"
CALL_S: Final = 10.0
RETRY_S: Final = (1.0, 30.0)  # first and longest wait before BlueZ is asked again
_OBJECTS: Final = "org.freedesktop.DBus.ObjectManager"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_RULES: Final = (
    f"type='signal',sender='{BLUEZ}',interface='{_OBJECTS}'",
    f"type='signal',sender='{BLUEZ}',interface='{PROPERTIES}',arg0='{ADAPTER}'",
    f"type='signal',sender='{BLUEZ}',interface='{PROPERTIES}',arg0='{DEVICE}'",
    f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{BLUEZ}'",
)
_ACCESS: Final = "allow this program to use Bluetooth by a D-Bus policy, as in bluetooth.conf"

Properties = dict[str, Variant]
Objects = dict[str, dict[str, Properties]]  # properties by interface by path


class Refused(Exception):
    """A call of BlueZ is answered with this D-Bus error; the rest of the name follows "org.bluez.Error."."""


class BluezBus:
    """A connection to the system's bus. `changed` is called for every change of BlueZ's adapters and of its own life,
    with the path of a device when it has disconnected, else None.
    """

    def __init__(self, changed: Callable[[str | None], None]) -> None:
        self.lost = False  # the bus itself has gone
        self.epoch = 0  # changes when BlueZ or an adapter goes, and what was registered with it
        self._changed = changed
        self._end: asyncio.Task[None] | None = None
        self._bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
        self._own: dict[str, dict[str, Properties]] = {}
        self._methods: dict[tuple[str, str], Callable[[Properties], tuple[str, list[Any], int | None]]] = {}

    async def open(self) -> None:
        """Raises LinkLost."""
        try:
            async with asyncio.timeout(CALL_S):
                await self._bus.connect()
                self._bus.add_message_handler(self._on_message)
                for rule in _RULES:
                    await self._ask("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
                                    "AddMatch", "s", rule)
        except (OSError, EOFError, TimeoutError, DBusError) as error:
            raise LinkLost(
                "the system's Bluetooth service cannot be reached", reason="unavailable", hint="is BlueZ installed?"
            ) from error
        self._end = asyncio.get_running_loop().create_task(self._await_end())

    def close(self) -> None:
        self._bus.disconnect()

    def export(
        self, objects: Mapping[str, Mapping[str, Properties]],
        methods: Mapping[tuple[str, str], Callable[[Properties], tuple[str, list[Any], int | None]]],
    ) -> None:
        """What BlueZ finds here. A method, by path and name, is given the options of its call and returns signature,
        body and a file descriptor to be sent, which is closed here; it may raise Refused. A descriptor that comes with
        a call, from then on the method's own, and its device are given as the options "fd" and "device".
        """
        self._own = {path: dict(interfaces) for path, interfaces in objects.items()}
        self._methods = dict(methods)

    async def objects(self) -> Objects:
        """BlueZ's own. Raises LinkLost if it does not run."""
        found: Objects = (await self._ask(BLUEZ, "/", _OBJECTS, "GetManagedObjects"))[0]
        return found

    async def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> list[Any]:
        """Raises LinkLost: "unavailable" if BlueZ does not run or answer, "refused" if it may not be asked."""
        return await self._ask(BLUEZ, path, interface, member, signature, *body)

    async def _await_end(self) -> None:
        with contextlib.suppress(Exception):
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self.lost = True
        self._changed(None)

    async def _ask(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> list[Any]:
        message = Message(destination, path, interface, member, signature=signature, body=list(body))
        try:
            async with asyncio.timeout(CALL_S):
                reply = await self._bus.call(message)
        except (OSError, EOFError, TimeoutError, DBusError) as error:
            raise LinkLost("the system's Bluetooth service does not answer", reason="unavailable") from error
        if reply.message_type is MessageType.ERROR:
            name = reply.error_name or ""
            if name.endswith((".AccessDenied", ".NotPermitted", ".NotAuthorized")):
                raise LinkLost("this program may not use Bluetooth", reason="refused", hint=_ACCESS)
            if name.endswith((".ServiceUnknown", ".NameHasNoOwner", ".NoReply", ".Disconnected")):
                raise LinkLost(
                    "the system's Bluetooth service does not run", reason="unavailable", hint="start bluetooth.service")
            raise LinkLost("the system's Bluetooth service refuses", reason="unavailable", hint=f"it says {name}")
        return list(reply.body)

    def _on_message(self, message: Message) -> Message | bool | None:
        if message.message_type is MessageType.SIGNAL:
            self._on_signal(message)
            return None
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        body = message.body
        if message.interface == _OBJECTS and message.member == "GetManagedObjects":
            return Message.new_method_return(message, "a{oa{sa{sv}}}", [self._own])
        if message.interface == PROPERTIES and message.member == "GetAll" and len(body) == 1:
            properties = self._own.get(message.path or "", {}).get(body[0], {})
            return Message.new_method_return(message, "a{sv}", [properties])
        method = self._methods.get((message.path or "", message.member or ""))
        if method is None:
            for unwanted in message.unix_fds:
                _close(unwanted)
            return None
        options = next((part for part in reversed(body) if isinstance(part, dict)), {})
        if message.unix_fds:
            options = {**options, "device": Variant("o", str(body[0])), "fd": Variant("h", message.unix_fds[0])}
        try:
            signature, values, fd = method(options)
        except Refused as error:
            return Message.new_error(message, f"org.bluez.Error.{error}", "not now")
        if fd is None:
            return Message.new_method_return(message, signature, values)
        sent = self._bus.send(Message.new_method_return(message, signature, values, [fd]))
        sent.add_done_callback(lambda _: _close(fd))
        return True

    def _on_signal(self, message: Message) -> None:
        if message.member != "PropertiesChanged":
            self.epoch += message.member != "InterfacesAdded" and (len(message.body) != 2 or ADAPTER in message.body[1])
            self._changed(None)
            return
        interface, changes, _ = message.body
        if interface == ADAPTER and "Powered" in changes:
            self._changed(None)
        elif interface == DEVICE and "Connected" in changes and not changes["Connected"].value:
            self._changed(message.path)


async def keep(stale: asyncio.Event, look: Callable[[], Awaitable[None]]) -> None:
    """Has BlueZ looked at again whenever something is `stale`, and after a pause where that fails with LinkLost: BlueZ
    without an adapter is waited for, and one that fails is asked again. Never returns.
    """
    pause = RETRY_S[0]
    while True:
        await stale.wait()
        stale.clear()
        try:
            await look()
            pause = RETRY_S[0]
        except LinkLost:
            stale.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_S[1])


async def mtu_of(characteristic: str) -> int:
    """ATT_MTU of the connection that a remote characteristic, by its path, belongs to. Raises LinkLost."""
    bus = BluezBus(lambda _: None)
    await bus.open()
    try:
        found = await bus.call(characteristic, PROPERTIES, "Get", "ss", "org.bluez.GattCharacteristic1", "MTU")
        return int(found[0].value)
    finally:
        bus.close()


async def forget(device: str) -> None:
    """Has BlueZ drop what it keeps of a remote device, by its path: services, names, the object. Not of one that is
    connected, or paired, trusted or blocked by somebody. Raises LinkLost.
    """
    bus = BluezBus(lambda _: None)
    await bus.open()
    try:
        known = (await bus.objects()).get(device, {}).get(DEVICE, {})
        kept = ("Connected", "Paired", "Trusted", "Blocked")
        if known and not any(known[name].value for name in kept if name in known):
            await bus.call(device.rpartition("/")[0], ADAPTER, "RemoveDevice", "o", device)
    finally:
        bus.close()


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
