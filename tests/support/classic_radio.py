"""Bluetooth Classic without a radio: devices of bumble's own controllers, on one air without timing or loss."""

import asyncio

from bumble import hci, lmp
from bumble.controller import Controller
from bumble.device import Device
from bumble.host import Host
from bumble.link import LocalLink
from bumble.transport.common import AsyncPipeSink

ACL_MAX = 1021  # bytes of a packet
PAGE_S = 5.12


class ClassicAir(LocalLink):
    """Controllers that are not connectable, or not there, are called for PAGE_S."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def controller(self, number: int) -> Controller:
        """With the address that `address` tells."""
        controller = Controller(f"C{number}", link=self, public_address=address(number))
        controller.lmp_features &= ~hci.LmpFeatureMask.BR_EDR_NOT_SUPPORTED
        controller.acl_data_packet_length, controller.total_num_acl_data_packets = ACL_MAX, 8
        return controller

    async def device(self, number: int) -> Device:
        """On such a controller, not connectable."""
        controller = self.controller(number)
        host = Host(controller, AsyncPipeSink(controller))
        device = Device(name=f"C{number}", address=hci.Address(address(number)), host=host)
        device.classic_enabled, device.connectable, device.discoverable = True, False, False
        await device.power_on()
        return device

    def send_lmp_packet(
        self, sender_controller: Controller, receiver_address: hci.Address, packet: lmp.Packet
    ) -> None:
        receiver = self.find_classic_controller(receiver_address)
        if isinstance(packet, lmp.LmpHostConnectionReq) and not (receiver and receiver.classic_scan_enable & 2):
            refusal = lmp.LmpNotAccepted(lmp.Opcode.LMP_HOST_CONNECTION_REQ, hci.HCI_PAGE_TIMEOUT_ERROR)
            asyncio.get_running_loop().call_later(PAGE_S, sender_controller.on_lmp_packet, receiver_address, refusal)
        elif receiver is not None:
            super().send_lmp_packet(sender_controller, receiver_address, packet)

    def drop(self) -> None:
        """Ends every connection on both sides, as a supervision timeout."""
        for controller in self.controllers:
            for peer in list(controller.classic_connections):
                controller.on_classic_disconnected(peer, hci.HCI_CONNECTION_TIMEOUT_ERROR)


class Dongle:
    """What bumble opens: a controller's two directions."""

    def __init__(self, controller: Controller) -> None:
        self.source, self.sink = controller, AsyncPipeSink(controller)
        self.closed = False

    async def close(self) -> None:
        self.closed = True


def address(number: int) -> str:
    return ":".join([f"A{number}"] * 6)
