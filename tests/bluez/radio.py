"""Virtual controllers given to this machine's kernel through `hci_vhci`, on one air, by commands on standard input.

`add N [classic]`, `remove N` (the adapter is pulled out), `drop` (every connection is lost). A line answers each.
"""

import asyncio
import logging
import sys
from typing import Any

from bumble import hci
from bumble.controller import Controller
from bumble.core import PhysicalTransport
from bumble.link import LocalLink
from bumble.transport import open_transport
from bumble.transport.common import Transport

from transport.links.virtual_controller import VirtualController
from transport.links.virtual_radio import VirtualRadio

# With these two the kernel waits for events that bumble's controllers do not send.
_NOT_OFFERED = hci.LeFeatureMask.LL_PRIVACY | hci.LeFeatureMask.LE_EXTENDED_ADVERTISING
ACL_MAX = 1021  # bytes of a packet of BR/EDR

# What the kernel asks of a controller of BR/EDR and bumble's does not know, with the answers of one that can little.
_ANSWERS = {
    0x0C05: b"\0",  # set event filter
    0x0C16: b"\0",  # write connection accept timeout
    0x0C1B: b"\0\0\x08\x12\0",  # read page scan activity
    0x0C1C: b"\0",  # write page scan activity
    0x0C25: b"\0\x60\0",  # read voice setting
    0x0C38: b"\0\1",  # read number of supported IACs
    0x0C39: b"\0\1\x33\x8b\x9e",  # read current IAC LAP
    0x0C3A: b"\0",  # write current IAC LAP
    0x0C45: b"\0",  # write inquiry mode
    0x0C46: b"\0\0",  # read page scan type
    0x0C58: b"\0\0",  # read inquiry response transmit power level
}


class VhciRadio(VirtualRadio):
    """Whose controllers have connections of BR/EDR as well, at once and without a timing model."""

    def drop(self, which: str | None = None) -> None:
        super().drop(which)
        for controller in self._on_air:
            for peer in list(controller.classic_connections):
                controller.on_classic_disconnected(peer, hci.HCI_CONNECTION_TIMEOUT_ERROR)

    def send_acl_data(
        self, sender_controller: Controller, destination_address: hci.Address, transport: PhysicalTransport,
        data: bytes,
    ) -> None:
        if transport == PhysicalTransport.BR_EDR:
            LocalLink.send_acl_data(self, sender_controller, destination_address, transport, data)
        else:
            super().send_acl_data(sender_controller, destination_address, transport, data)


class VhciController(VirtualController):
    def on_hci_command_packet(self, command: hci.HCI_Command) -> None:
        answer = _ANSWERS.get(command.op_code)
        if answer is None or self.host is None:
            super().on_hci_command_packet(command)
            return
        event = b"\1" + command.op_code.to_bytes(2, "little") + answer
        asyncio.get_running_loop().call_soon(self.host.on_packet, bytes([4, 0x0E, len(event)]) + event)

    def on_hci_le_set_advertising_parameters_command(
        self, command: hci.HCI_LE_Set_Advertising_Parameters_Command
    ) -> Any:
        """bumble takes the interval for milliseconds: 2.05 s between advertisements where a radio has 1.28 s."""
        command.advertising_interval_min = round(command.advertising_interval_min * 0.625)
        return super().on_hci_le_set_advertising_parameters_command(command)

    def on_link_acl_data(self, sender_address: hci.Address, transport: PhysicalTransport, data: bytes) -> None:
        """bumble's own gives the host a whole L2CAP packet at once, however long, and the kernel takes no such."""
        connection = self.classic_connections.get(sender_address)
        if transport != PhysicalTransport.BR_EDR or connection is None:
            super().on_link_acl_data(sender_address, transport, data)
            return
        for start in range(0, len(data), ACL_MAX):
            part = data[start:start + ACL_MAX]
            self.send_hci_packet(hci.HCI_AclDataPacket(connection.handle, 1 if start else 2, 0, len(part), part))

    def on_hci_acl_data_packet(self, packet: hci.HCI_AclDataPacket) -> None:
        if packet.connection_handle in self.ends:
            super().on_hci_acl_data_packet(packet)
        else:
            Controller.on_hci_acl_data_packet(self, packet)


class Adapters:
    def __init__(self, phy: str) -> None:
        self.air = VhciRadio(phy, seed=1)
        self.plugged: dict[int, tuple[Transport, VhciController]] = {}

    async def add(self, number: int, *, classic: bool = False) -> None:
        transport = await open_transport("vhci")
        controller = VhciController(self.air, self.air.phy, f"C{number}", ":".join([f"C{number}"] * 6))
        self.air._on_air.append(controller)
        controller.le_features &= ~_NOT_OFFERED
        if classic:
            controller.lmp_features &= ~hci.LmpFeatureMask.BR_EDR_NOT_SUPPORTED
            controller.acl_data_packet_length, controller.total_num_acl_data_packets = ACL_MAX, 8
        controller.host = transport.sink
        transport.source.set_packet_sink(controller)
        self.plugged[number] = transport, controller

    async def remove(self, number: int) -> None:
        transport, controller = self.plugged.pop(number)
        self.air.remove(controller)
        await transport.close()


async def main() -> None:
    logging.getLogger("bumble").setLevel(logging.CRITICAL)
    adapters = Adapters(sys.argv[1])
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *words = line.split()
        if command == "add":
            await adapters.add(int(words[0]), classic="classic" in words)
        elif command == "remove":
            await adapters.remove(int(words[0]))
        else:
            adapters.air.drop()
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
