"""A BlueZ that is none, on a D-Bus of its own: it answers as bluetoothd does, and is told what devices do."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

HCI0 = "/org/bluez/hci0"
MANAGERS = ("org.bluez.GattManager1", "org.bluez.LEAdvertisingManager1")


def device(number: int) -> str:
    return f"{HCI0}/dev_00_00_00_00_00_{number:02X}"


class FakeBluez:
    """`application`, `advertisement` and `profile` are the names on the bus of who has registered one now, or ""."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self.powered = True
        self.set: dict[str, Any] = {"Discoverable": False, "DiscoverableTimeout": 180}  # properties, by name
        self.mtu = 517
        self.adapters = [HCI0]
        self.application = self.advertisement = self.profile = ""
        self.profile_options: dict[str, Any] = {}
        self.disconnected: list[str] = []
        self.devices: dict[str, dict[str, bool]] = {}  # properties by path, of those that it remembers
        self.ends: list[socket.socket] = []
        self.changed = asyncio.Event()
        bus.add_message_handler(self._on_message)

    async def start(self) -> None:
        rule = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged'"
        await self._bus.call(Message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
                                     "AddMatch", signature="s", body=[rule]))
        await self._bus.request_name("org.bluez")

    async def stop(self) -> None:
        self.application = self.advertisement = self.profile = ""
        await self._bus.release_name("org.bluez")

    def restart(self) -> None:
        """So quickly that nobody finds it absent."""
        self.application = self.advertisement = self.profile = ""
        for member, signature, body in (("ReleaseName", "s", ["org.bluez"]), ("RequestName", "su", ["org.bluez", 0])):
            self._bus.send(Message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", member,
                                   signature=signature, body=body))

    def pull_out(self) -> None:
        self.application = self.advertisement = ""
        self.adapters = []
        self._signal("/", "org.freedesktop.DBus.ObjectManager", "InterfacesRemoved", "oas",
                     [HCI0, ["org.bluez.Adapter1", *MANAGERS]])

    def plug_in(self) -> None:
        self.adapters = [HCI0]
        self._signal("/", "org.freedesktop.DBus.ObjectManager", "InterfacesAdded", "oa{sa{sv}}",
                     [HCI0, self._adapter()])

    def switch(self, on: bool) -> None:
        self.powered = on
        self._property(HCI0, "org.bluez.Adapter1", "Powered", on)

    def leave(self, path: str) -> None:
        """A device has disconnected, and no more than that is said."""
        self._property(path, "org.bluez.Device1", "Connected", False)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ask(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Message:
        """Of the application."""
        return await self._bus.call(
            Message(self.application, path, interface, member, signature=signature, body=list(body)))

    async def acquire(self, what: str, path: str, mtu: int = 517) -> socket.socket:
        """`what` is "AcquireWrite" or "AcquireNotify". Raises PermissionError if it is refused."""
        characteristic = "/causeway/service/" + {"AcquireWrite": "rx", "AcquireNotify": "tx"}[what]
        options = {"device": Variant("o", path), "mtu": Variant("q", mtu), "link": Variant("s", "LE")}
        reply = await self.ask(characteristic, "org.bluez.GattCharacteristic1", what, "a{sv}", options)
        if reply.message_type is MessageType.ERROR:
            raise PermissionError(reply.error_name)
        assert reply.signature == "hq" and reply.body[1] == mtu
        end = socket.socket(fileno=reply.unix_fds[0])
        end.setblocking(False)
        self.ends.append(end)
        return end

    async def connect(self, path: str, end: socket.socket, *, member: str = "NewConnection") -> str:
        """Gives the profile this connection of a device, and lets go of it; the name of the error, "" for none."""
        reply = await self._bus.call(Message(
            self.profile, "/causeway_rfcomm", "org.bluez.Profile1", member, signature="oha{sv}",
            body=[path, 0, {"Version": Variant("q", 1)}], unix_fds=[end.fileno()]))
        end.close()
        return reply.error_name or ""

    def _on_message(self, message: Message) -> Message | None:
        if message.member == "NameOwnerChanged" and not message.body[2]:
            for what in ("application", "advertisement", "profile"):
                if getattr(self, what) == message.body[0]:  # BlueZ forgets what a program that has gone registered
                    setattr(self, what, "")
            self.changed.set()
        if message.message_type is not MessageType.METHOD_CALL or message.interface == "org.freedesktop.DBus.Peer":
            return None
        self.changed.set()
        if message.member == "GetManagedObjects":
            objects = {path: self._adapter() for path in self.adapters} | {
                path: {"org.bluez.Device1": {name: Variant("b", value) for name, value in properties.items()}}
                for path, properties in self.devices.items()
            }
            return Message.new_method_return(message, "a{oa{sa{sv}}}", [objects])
        if message.member == "Get":
            return Message.new_method_return(message, "v", [Variant("q", self.mtu)])
        if message.member == "Set":
            assert message.path in self.adapters and message.body[1] in self.set
            self.set[message.body[1]] = message.body[2].value
        elif message.member == "Disconnect":
            self.disconnected.append(message.path or "")
        elif message.path not in (*self.adapters, "/org/bluez"):
            return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownObject", "")
        elif message.member == "RemoveDevice":
            del self.devices[message.body[0]]
        else:
            verb, _, what = (message.member or "").replace("ister", "ister ").partition(" ")
            held = getattr(self, what.lower())
            if bool(held) is (verb == "Register"):
                return Message.new_error(message, f"org.bluez.Error.{'Already' if held else 'DoesNot'}Exist", "")
            setattr(self, what.lower(), message.sender if verb == "Register" else "")
            if message.member == "RegisterProfile":
                self.profile_options = {"UUID": message.body[1], **{key: v.value for key, v in message.body[2].items()}}
        return Message.new_method_return(message)

    def _adapter(self) -> dict[str, dict[str, Variant]]:
        properties = {name: Variant("b" if isinstance(value, bool) else "u", value) for name, value in self.set.items()}
        return {"org.bluez.Adapter1": {"Powered": Variant("b", self.powered), **properties},
                **{name: {} for name in MANAGERS}}

    def _property(self, path: str, interface: str, name: str, value: bool) -> None:
        self._signal(path, "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as",
                     [interface, {name: Variant("b", value)}, []])

    def _signal(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        self._bus.send(Message.new_signal(path, interface, member, signature, body))


@asynccontextmanager
async def fake_bluez() -> AsyncIterator[FakeBluez]:
    """On a bus that `DBUS_SYSTEM_BUS_ADDRESS` names from then on: patch that variable back."""
    daemon = await asyncio.create_subprocess_exec(
        "dbus-daemon", "--session", "--nofork", "--print-address", stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = (await daemon.stdout.readline()).decode().strip()
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    try:
        fake = FakeBluez(bus)
        await fake.start()
        yield fake
        for end in fake.ends:
            end.close()
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()
        daemon.kill()
        await daemon.wait()
