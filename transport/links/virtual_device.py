"""A bumble device whose radio can be taken away, in this process or by the end of another one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from bumble import hci
from bumble.controller import Controller
from bumble.device import Device
from bumble.host import Host
from bumble.transport.common import TransportLostError, TransportSink, TransportSource

NAME_MAX: Final = 247  # bytes that a controller takes


class RadioGone(TransportLostError, TimeoutError):
    """A TimeoutError too, because that is what bumble hands on to the caller without a traceback in the log."""


class RadioDevice(Device):
    """A bumble device that can lose its radio: then `radio_lost` is true and its connections end."""

    radio_lost: bool = False
    take_away: Callable[[], Awaitable[None]]

    async def close(self) -> None:
        """Takes it off the air. Disconnect before, or peers notice after `supervision_s`."""
        self.lose_radio()
        await self.take_away()

    def lose_radio(self) -> None:
        """Tells everyone who waits for something of this device. bumble tells only who waits for a command."""
        if self.radio_lost:
            return
        self.radio_lost = True
        for handle in list(self.connections):
            self.host.on_hci_disconnection_complete_event(
                hci.HCI_Disconnection_Complete_Event(
                    status=hci.HCI_ErrorCode.SUCCESS,
                    connection_handle=handle,
                    reason=hci.HCI_ErrorCode.HARDWARE_FAILURE_ERROR,
                )
            )
        fail_command(self.host)
        self.host.emit("flush")


class Wire:
    """From a host to its controller in the same process."""

    def __init__(self, controller: Controller) -> None:
        self.cut = False
        self._controller = controller

    def on_packet(self, packet: bytes) -> None:
        if self.cut:
            raise RadioGone("the virtual radio is switched off")
        asyncio.get_running_loop().call_soon(self._controller.on_packet, packet)


def fail_command(host: Host) -> None:
    """Whoever waits for the answer to a command learns that none will come."""
    if host.pending_response is not None and not host.pending_response.done():
        host.pending_response.set_exception(RadioGone("the virtual radio is gone"))


async def switch_on(
    name: str, source: TransportSource, sink: TransportSink, take_away: Callable[[], Awaitable[None]]
) -> RadioDevice:
    """A device over a controller's HCI. Its random static address has the octets of the controller's public one.

    Raises RadioGone if the controller goes away meanwhile.
    """
    host = Host(source, sink)
    await host.reset()
    await host.send_sync_command(hci.HCI_Write_Local_Name_Command(local_name=name.encode()[:NAME_MAX]))
    octets = bytes((await host.send_sync_command(hci.HCI_Read_BD_ADDR_Command())).bd_addr)
    device = RadioDevice(name=name, address=hci.Address(octets, hci.Address.RANDOM_DEVICE_ADDRESS), host=host)
    device.take_away = take_away
    await device.power_on()
    return device
