"""Virtual controllers given to this machine's kernel through `hci_vhci`, on one air, by commands on standard input.

Data of Low Energy is handed from one kernel's end to the other as it is, or this process would be what is measured.

`add N [classic]`, `remove N` (the adapter is pulled out), `drop` (every connection is lost), `count` (of Low Energy,
since it was asked last: connections, and frames that hosts have sent by adapter and channel). A line answers each.
"""

import asyncio
import itertools
import logging
import os
import sys
from collections import Counter
from typing import Any

from bumble import hci
from bumble.controller import Controller
from bumble.core import PhysicalTransport
from bumble.link import LocalLink

from transport.links.virtual_controller import VirtualController
from transport.links.virtual_join import RadioServer
from transport.links.virtual_radio import VirtualRadio

# With these two the kernel waits for events that bumble's controllers do not send.
_NOT_OFFERED = hci.LeFeatureMask.LL_PRIVACY | hci.LeFeatureMask.LE_EXTENDED_ADVERTISING
ACL_MAX = 1021  # bytes of a packet of BR/EDR
_PACKETS_AT_ONCE = 64  # that are read before the air has its turn
_CONTINUES = 0x10  # in a packet's third byte: it has no header of L2CAP
_FIRST = 0x20  # likewise, from controller to host

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

    def __init__(self, phy: str) -> None:
        super().__init__(phy, seed=1)
        self.count: Counter[str] = Counter()
        self._joined = itertools.count(1)

    def controller(self, name: str) -> VirtualController:
        """For a host that joins the air by the socket."""
        made = VhciController(self, name, f"D0:00:00:00:00:{next(self._joined):02X}")
        made.add_classic()
        self._on_air.append(made)
        return made

    def _connect(self, central: VirtualController, packet: Any) -> None:
        self.count["connections"] += 1
        super()._connect(central, packet)

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


class Vhci:
    """An adapter of this machine, whose controller we are. Every read and write is a packet."""

    def __init__(self, controller: "VhciController") -> None:
        self._controller = controller
        self._file = os.open("/dev/vhci", os.O_RDWR | os.O_NONBLOCK)
        os.write(self._file, b"\xff\0")  # the adapter is there from now on
        asyncio.get_running_loop().add_reader(self._file, self._read)

    def on_packet(self, packet: bytes) -> None:
        if self._file >= 0:
            os.write(self._file, packet)

    def _read(self) -> None:
        try:
            for _ in range(_PACKETS_AT_ONCE):
                packet = os.read(self._file, 4096)
                if packet[0] != 0xFF:  # the answer to the first
                    self._controller.on_packet(packet)
        except BlockingIOError:
            pass

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)
        self._file = -1


class VhciController(VirtualController):
    def __init__(self, link: VhciRadio, name: str, address: str) -> None:
        super().__init__(link, link.phy, name, address)
        self._crossed: Counter[int] = Counter()  # packets by connection, of which the host is to be told

    def fall_silent(self) -> None:
        super().fall_silent()
        for peer in list(self.classic_connections):
            other = self.link.find_classic_controller(peer)
            if other is not None and self.public_address in other.classic_connections:
                other.on_classic_disconnected(self.public_address, hci.HCI_CONNECTION_TIMEOUT_ERROR)
        self.classic_connections.clear()

    def add_classic(self) -> None:
        """BR/EDR beside Low Energy."""
        self.lmp_features &= ~hci.LmpFeatureMask.BR_EDR_NOT_SUPPORTED
        self.acl_data_packet_length, self.total_num_acl_data_packets = ACL_MAX, 8

    def on_packet(self, packet: bytes) -> None:
        end = self.ends.get(int.from_bytes(packet[1:3], "little") & 0x0FFF) if packet[0] == 2 else None
        if end is None:
            super().on_packet(packet)
            return
        first = not packet[2] & _CONTINUES
        if first:
            self.link.count[f"{self.name}:{int.from_bytes(packet[7:9], 'little')}"] += 1
        if not self.phy.instant:
            super().on_packet(packet)
        elif peer := end.peer.controller.host:
            handle = end.peer.connection.handle
            flag = _FIRST if first else _CONTINUES
            peer.on_packet(bytes([2, handle & 0xFF, handle >> 8 | flag]) + packet[3:])
            if not self._crossed:
                asyncio.get_running_loop().call_soon(self._tell)
            self._crossed[end.connection.handle] += 1

    def _tell(self) -> None:
        for handle, count in self._crossed.items():
            if handle in self.ends and self.host is not None:
                self.host.on_packet(bytes([4, 0x13, 5, 1]) + handle.to_bytes(2, "little") + count.to_bytes(2, "little"))
        self._crossed.clear()

    def on_hci_packet(self, packet: hci.HCI_Packet) -> None:
        """bumble's own puts every packet into words for its log, whether anybody reads it or not."""
        if isinstance(packet, hci.HCI_Command):
            self.on_hci_command_packet(packet)
        elif isinstance(packet, hci.HCI_AclDataPacket):
            self.on_hci_acl_data_packet(packet)

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
        self.air = VhciRadio(phy)
        self.plugged: dict[int, tuple[Vhci, VhciController]] = {}

    def add(self, number: int, *, classic: bool = False) -> None:
        controller = VhciController(self.air, f"C{number}", ":".join([f"C{number}"] * 6))
        self.air._on_air.append(controller)
        controller.le_features &= ~_NOT_OFFERED
        if classic:
            controller.add_classic()
        adapter = Vhci(controller)
        controller.host = adapter
        self.plugged[number] = adapter, controller

    def count(self) -> str:
        count, self.air.count = self.air.count, Counter()
        return "".join(f" {what}={number}" for what, number in sorted(count.items()))

    def remove(self, number: int) -> None:
        adapter, controller = self.plugged.pop(number)
        self.air.remove(controller)
        adapter.close()


async def main() -> None:
    logging.getLogger("bumble").setLevel(logging.CRITICAL)
    adapters = Adapters(sys.argv[1])
    await RadioServer(adapters.air).start(sys.argv[2])
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *words = line.split()
        answer = ""
        if command == "add":
            adapters.add(int(words[0]), classic="classic" in words)
        elif command == "remove":
            adapters.remove(int(words[0]))
        elif command == "count":
            answer = adapters.count()
        else:
            adapters.air.drop()
        print(f"done{answer}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
