"""Opens the Bluetooth radio of this process: the system's own, one that bumble drives alone, or a virtual one."""

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint, Link, Listener, listen
from transport.links.ble_central import BleCentral
from transport.links.phone import OnLink, PhoneDoor

_FORMS: Final = (
    'a radio is "system", "system:ADAPTER" as in "system:hci1", "virtual:PATH" or "hci:TRANSPORT", as in "hci:usb:0" '
    "for a dongle"
)
_HCI_OPEN_S: Final = 10.0
_CLOSE_S: Final = 5.0


class OpenRadio:
    """A `transport.links.base.Radio`. `device` is the bumble device that it drives, None for the system's radio, of
    which `adapter` names one of several. `gone` is set when that device is: a dongle that was pulled out, a virtual
    radio that was ended. BlueZ is waited for instead.
    """

    def __init__(
        self, device: Any = None, give_back: Callable[[], Awaitable[None]] | None = None, *, adapter: str = ""
    ) -> None:
        self._give_back = give_back
        self.gone = asyncio.Event()
        self._peripheral: Any = None
        self._door: PhoneDoor | None = None
        self.rfcomm: Any = None
        if device is None:
            self._central = BleCentral(adapter=adapter)
            if sys.platform == "linux":
                from transport.links.gatt_bluez import BluezPeripheral

                self._peripheral = BluezPeripheral(adapter)
                self._door = PhoneDoor(self._peripheral, _listen_rfcomm)
            return
        logging.getLogger("bumble").setLevel(logging.CRITICAL)  # it shows strangers' bytes, with tracebacks
        from transport.links.gatt_bumble import BumblePeripheral
        from transport.links.rfcomm_bumble import BumbleRfcomm
        from transport.links.virtual_bleak import bleak_backend

        device.host.on("flush", self._lost)  # once it is switched on, bumble says so at the end alone
        backend = bleak_backend(device)
        self._central = BleCentral(backend.scanner, backend.client)
        self._peripheral = BumblePeripheral(device)
        self._door = PhoneDoor(self._peripheral)
        self.rfcomm = BumbleRfcomm(device)

    async def connect(self, name: str, *, timeout_s: float) -> Link:
        return await self._central.connect(name, timeout_s=timeout_s)

    def worked(self, peer: str) -> None:
        if peer.startswith("ble:"):
            self._central.worked(peer)
        elif self._door is not None:
            self._door.worked(peer)

    async def listen(self, on_link: Callable[[Link], Awaitable[None]], *, name: str) -> Listener:
        if self._peripheral is None:
            raise BadInput(
                "this system's own radio cannot be a hop's", hint='use a dongle: radio "hci:usb:0", or a virtual one'
            )
        listener: Listener = await self._peripheral.listen(on_link, name=name)
        return listener

    async def wait_for_phone(self, name: str, *, timeout_s: float) -> Link:
        if self._door is None:
            raise BadInput(
                "this system's own radio cannot wait for a phone",
                hint='use a dongle, radio "hci:usb:0", or the phone\'s hotspot and a wss:// endpoint',
            )
        return await self._door.wait(name, timeout_s=timeout_s)

    def _lost(self) -> None:
        self.gone.set()
        if self._door is not None:
            self._door.radio_lost()

    async def close(self) -> None:
        await self._central.close()
        if self._door is not None:
            await self._door.close()
        if self.rfcomm is not None:
            await self.rfcomm.close()
        if self._peripheral is not None:
            await self._peripheral.close()
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            with contextlib.suppress(TimeoutError, OSError, LinkLost):
                async with asyncio.timeout(_CLOSE_S):
                    await give_back()


async def _listen_rfcomm(on_link: OnLink) -> Listener:
    return await listen(Endpoint("rfcomm", ""), on_link)


async def open_radio(spec: str) -> OpenRadio:
    """"system[:ADAPTER]": the system's own stack; "virtual:PATH": joins the virtual radio that is served on this Unix
    socket; "hci:TRANSPORT": bumble alone over one of its transports. Raises BadInput, LinkLost.
    """
    kind, _, where = spec.partition(":")
    if spec == "system" or (kind == "system" and re.fullmatch("hci[0-9]{1,3}", where, re.ASCII)):
        return OpenRadio(adapter=where)
    if kind == "virtual" and where:
        from transport.links.virtual_join import join_radio

        device = await join_radio(where, "causeway")
        return OpenRadio(device, device.close)
    if kind == "hci" and where:
        return await _open_hci(where)
    raise BadInput("this is not a radio", hint=_FORMS)


async def _open_hci(where: str) -> OpenRadio:
    from bumble.device import Device
    from bumble.hci import Address, LmpFeatureMask
    from bumble.host import Host
    from bumble.transport import open_transport

    try:
        async with asyncio.timeout(_HCI_OPEN_S):
            transport = await open_transport(where)
    except PermissionError as error:
        raise LinkLost(
            "this program may not use the Bluetooth dongle", reason="refused", hint="a udev rule can allow it"
        ) from error
    except Exception as error:  # each of bumble's transports raises errors of its own kind
        raise LinkLost(
            "the Bluetooth dongle cannot be opened", reason="unavailable",
            hint="is it plugged in, and not in use by the system?",
        ) from error
    try:
        async with asyncio.timeout(_HCI_OPEN_S):
            # an address of this run alone: nothing recognises the radio another day
            host = Host(transport.source, transport.sink)
            device = Device(name="Causeway", address=Address.generate_static_address(), host=host)
            await host.reset()
            device.classic_enabled = not host.supports_lmp_features(LmpFeatureMask.BR_EDR_NOT_SUPPORTED)
            device.connectable = device.discoverable = False  # of Bluetooth Classic, until a hop listens there
            await device.power_on()
    except Exception as error:
        await transport.close()
        raise LinkLost("the Bluetooth dongle does not answer", reason="unavailable", hint="plug it in anew") from error
    except BaseException:
        await transport.close()
        raise
    return OpenRadio(device, transport.close)
