"""A hop's side of RFCOMM on BlueZ: a profile of ours, whose record, channel and listening socket BlueZ keeps.

So this program needs neither to speak SDP nor a Python that knows Bluetooth's sockets: connections come by D-Bus.
"""

import asyncio
import contextlib
import re
import socket
from typing import Final

from dbus_fast import Variant

from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint
from transport.links.bluez_bus import ADAPTER, PROPERTIES, BluezBus, Properties, Refused, keep
from transport.links.rfcomm import SERVICE, RfcommLink, address_of
from transport.links.served import OnLink, ServedLinks

NAME: Final = "Causeway"  # in the record, the same for all hops
_PROFILE: Final = "/causeway_rfcomm"
_MANAGER: Final = "org.bluez.ProfileManager1"
_DEVICE: Final = re.compile(r".*/dev_((?:[0-9A-F]{2}_){5}[0-9A-F]{2})")
_DISCOVERABLE: Final = {"DiscoverableTimeout": Variant("u", 0), "Discoverable": Variant("b", True)}



class RfcommListener:
    """A service of BlueZ's on every adapter, see `transport.links.base.Listener`. When BlueZ is started anew, it is
    registered again as soon as can be.

    Linux lets no device connect that it does not know unless the adapter is connectable, which BlueZ before it had a
    property of that name makes it by being discoverable. It is so while the hop listens, and then as it was.
    """

    def __init__(self, endpoint: Endpoint, on_link: OnLink) -> None:
        self.endpoint = endpoint
        self._channel = address_of(endpoint)[1]
        self._bus = BluezBus(self._changed)
        self._epoch: int | None = None  # of the bus, when the service was registered
        self._before: dict[tuple[str, str], Variant] = {}  # properties of adapters, by path and name
        self._links = ServedLinks(on_link)
        self._stale = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Raises LinkLost."""
        await self._open()
        self._keeper = asyncio.get_running_loop().create_task(keep(self._stale, self._look_again))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
        await self._links.close()
        if self._epoch is not None and not self._bus.lost:
            await self._unregister()
            for (path, name), value in reversed(self._before.items()):
                with contextlib.suppress(LinkLost):
                    await self._set(path, name, value)
        self._bus.close()

    async def _open(self) -> None:
        await self._bus.open()
        self._bus.export({_PROFILE: {}}, {
            (_PROFILE, "NewConnection"): self._connected,
            (_PROFILE, "RequestDisconnection"): lambda _: ("", [], None),  # BlueZ ends the connection itself
            (_PROFILE, "Release"): lambda _: ("", [], None),
        })
        await self._register()
        await self._let_in()

    async def _look_again(self) -> None:
        if self._bus.lost:
            self._bus, self._epoch = BluezBus(self._changed), None
            await self._open()
            return
        if self._epoch != self._bus.epoch:
            await self._register()
        await self._let_in()

    async def _register(self) -> None:
        """Nothing is paired or asked of a person: what protects the bytes is inside them. BlueZ makes the record."""
        epoch = self._bus.epoch
        await self._unregister()
        await self._bus.call("/org/bluez", _MANAGER, "RegisterProfile", "osa{sv}", _PROFILE, SERVICE, {
            "Name": Variant("s", NAME), "Role": Variant("s", "server"), "Channel": Variant("q", self._channel or 0),
            "RequireAuthentication": Variant("b", False), "RequireAuthorization": Variant("b", False),
        })
        self._epoch = epoch

    async def _unregister(self) -> None:
        with contextlib.suppress(LinkLost):
            await self._bus.call("/org/bluez", _MANAGER, "UnregisterProfile", "o", _PROFILE)

    async def _let_in(self) -> None:
        for path, interfaces in (await self._bus.objects()).items():
            now = interfaces.get(ADAPTER, {})
            if "Powered" not in now or not now["Powered"].value:
                continue
            wanted = {"Connectable": Variant("b", True)} if "Connectable" in now else _DISCOVERABLE
            for name, value in wanted.items():
                if now[name].value != value.value:
                    self._before.setdefault((path, name), now[name])
                    await self._set(path, name, value)

    async def _set(self, path: str, name: str, value: Variant) -> None:
        await self._bus.call(path, PROPERTIES, "Set", "ssv", ADAPTER, name, value)

    def _changed(self, _: str | None) -> None:
        self._stale.set()

    def _connected(self, options: Properties) -> tuple[str, list[object], None]:
        try:
            sock = socket.socket(fileno=options["fd"].value)
        except (KeyError, OSError):
            raise Refused("InvalidArguments") from None
        if self._closed:
            sock.close()
            raise Refused("Rejected")
        device = _DEVICE.fullmatch(str(options["device"].value))
        self._links.serve(RfcommLink(sock, f"rfcomm:{device[1].replace('_', ':') if device else 'unknown'}"))
        return "", [], None


async def listen_rfcomm(endpoint: Endpoint, on_link: OnLink) -> RfcommListener:
    """See `transport.links.base.listen`; `endpoint` is `rfcomm:[?channel=N]`. Raises LinkLost, BadInput."""
    if address_of(endpoint)[0]:
        raise BadInput("a hop listens on all of its adapters", hint="listen on rfcomm: or rfcomm:?channel=N")
    listener = RfcommListener(endpoint, on_link)
    try:
        await listener.start()
    except BaseException:
        await listener.close()
        raise
    return listener
