"""A virtual Bluetooth radio: bumble controllers on one air with a timing model: the real code without hardware.

In one process: `await VirtualRadio("1m").device("hop")` for each device. The devices are bumble's own, with true
addresses, advertising, GATT and flow control; only the air between them is modelled (`virtual_air`). Everything random
comes from `seed`, and time from the running loop, so it runs in virtual time as well. Across processes:
`virtual_radio_server`.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from bumble import controller as bumble_controller
from bumble import hci, ll
from bumble.core import PhysicalTransport
from bumble.device import Device
from bumble.host import Host
from bumble.link import LocalLink
from bumble.transport.common import TransportLostError, TransportSource

from transport.errors import BadInput, LinkLost, ProtocolViolation
from transport.links.virtual_air import PHYS, Air, Antenna, Phy, Sky

DEVICES_MAX: Final = 64  # on one radio
RSSI_DBM: Final = -50  # of a device unless told
_ATT: Final = b"\x04\x00"  # the channel of the attribute protocol
_ATT_MTU: Final = (0x02, 0x03)  # exchange MTU request and response; the sender's MTU follows


class VirtualRadio(LocalLink):
    """One air and the controllers on it. `phy` is a name from PHYS or a Phy of your own. Raises BadInput."""

    def __init__(self, phy: Phy | str = "instant", *, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phy = phy if isinstance(phy, Phy) else named_phy(phy)
        self.sky = Sky(self.phy, random.Random(seed))  # noqa: S311 - weather, not secrets
        self._on_air: list[VirtualController] = []
        self._count = 0

    def controller(self, name: str) -> "VirtualController":
        """A controller with an address of its own. Raises LinkLost for the 65th."""
        if len(self._on_air) >= DEVICES_MAX:
            raise LinkLost("too many devices are on this virtual radio")
        self._count += 1
        made = VirtualController(self, name, f"C0:00:00:00:{self._count >> 8 & 255:02X}:{self._count & 255:02X}")
        self._on_air.append(made)
        return made

    async def device(self, name: str) -> "RadioDevice":
        """A device of this process, switched on. Close it, or leave it to the end of the process."""
        controller = self.controller(name)
        wire = _Wire(controller)

        async def take_away() -> None:
            wire.cut = True
            self.remove(controller)

        return await switch_on(name, controller, wire, take_away)

    def drop(self, which: str | None = None) -> None:
        """Ends the connections of this device (name or address; None: all) on both sides, as a supervision timeout."""
        for end in list(self._ends()):
            if which is None or end.controller.is_called(which) or end.peer.controller.is_called(which):
                end.lose()

    def out_of_range(self, which: str, away: bool) -> None:
        """Takes a device out of everyone's reach, or brings it back: connections end after `supervision_s` of it.

        Raises BadInput if no such device is on this radio.
        """
        for controller in self._called(which):
            controller.antenna.in_range = not away
            for air in list(controller.antenna.airs):
                air.range_changed()

    def signal(self, which: str, dbm: int) -> None:
        """How strongly others hear this device advertise, -127 to 20 dBm. Raises BadInput."""
        if not -127 <= dbm <= 20:
            raise BadInput("a signal strength is -127 to 20 dBm")
        for controller in self._called(which):
            controller.dbm = dbm

    def remove(self, controller: "VirtualController") -> None:
        """Takes a controller away as if its power was cut: its peers see a supervision timeout."""
        if controller in self._on_air:
            self._on_air.remove(controller)
            self.remove_controller(controller)
            controller.host = None
            controller.fall_silent()

    def send_acl_data(
        self,
        sender_controller: bumble_controller.Controller,
        destination_address: hci.Address,
        transport: PhysicalTransport,
        data: bytes,
    ) -> None:
        """Called by a controller when the last packet of an L2CAP frame has crossed."""
        connection = sender_controller.le_connections.get(destination_address)
        if connection is not None and isinstance(sender_controller, VirtualController):
            peer = sender_controller.ends[connection.handle].peer
            # bumble's own link would name the sender's random address, also where it connected with its public one
            peer.controller.on_link_acl_data(peer.connection.peer_address, transport, self._weaker_mtu(data))

    def send_advertising_pdu(self, sender_controller: bumble_controller.Controller, packet: ll.AdvertisingPdu) -> None:
        """Called by a controller that advertises, or that connects to an advertiser."""
        if not isinstance(sender_controller, VirtualController) or not sender_controller.antenna.in_range:
            return
        if isinstance(packet, ll.ConnectInd):
            self._connect(sender_controller, packet)
            return
        for controller in self._on_air:
            if controller is not sender_controller:
                asyncio.get_running_loop().call_soon(controller.hear, sender_controller, packet)

    def send_ll_control_pdu(
        self, sender_address: hci.Address, receiver_address: hci.Address, packet: ll.ControlPdu
    ) -> None:
        """Called by a controller for its link layer's own messages; they cross at the next connection event."""
        for end in list(self._ends()):
            if end.connection.self_address == sender_address and end.connection.peer_address == receiver_address:
                loop = asyncio.get_running_loop()
                if end.air.silent:
                    if isinstance(packet, ll.TerminateInd):  # nobody hears it
                        loop.call_later(self.phy.supervision_s, end.peer.lose)
                elif self.phy.interval_s:
                    loop.call_at(end.air.next_event(), end.peer.hear, sender_address, packet)
                else:
                    loop.call_soon(end.peer.hear, sender_address, packet)

    def _ends(self) -> "Iterator[_End]":
        for controller in self._on_air:
            yield from controller.ends.values()

    def _called(self, which: str) -> "list[VirtualController]":
        found = [controller for controller in self._on_air if controller.is_called(which)]
        if not found:
            raise BadInput("no such device is on this virtual radio")
        return found

    def _connect(self, central: "VirtualController", packet: ll.ConnectInd) -> None:
        ours = central.le_connections[packet.advertiser_address]
        for controller in self._on_air:
            if controller is central or not controller.antenna.in_range:
                continue
            if stale := controller.le_connections.get(packet.initiator_address):
                controller.on_le_disconnected(stale, hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR)
            controller.on_le_connect_ind(packet)
            if theirs := controller.le_connections.get(packet.initiator_address):
                _join(_End(central, ours, 0), _End(controller, theirs, 1), self.sky)
                return
        # someone else was faster, or it went away: the central's host is told of a connection and of its end
        reason = hci.HCI_ErrorCode.CONNECTION_FAILED_TO_BE_ESTABLISHED_ERROR
        asyncio.get_running_loop().call_soon(central.on_le_disconnected, ours, reason)

    def _weaker_mtu(self, frame: bytes) -> bytes:
        """Hosts of small MTUs are part of what a Phy models, whatever hosts really run here."""
        if len(frame) != 7 or frame[2:4] != _ATT or frame[4] not in _ATT_MTU:
            return frame
        return frame[:5] + min(self.phy.mtu, int.from_bytes(frame[5:], "little")).to_bytes(2, "little")


class VirtualController(bumble_controller.Controller):
    """bumble's controller, on a modelled air, with what its host needs to be told the truth."""

    def __init__(self, radio: VirtualRadio, name: str, address: str) -> None:
        super().__init__(name, link=radio, public_address=address)
        phy = radio.phy
        self.radio = radio
        self.antenna = Antenna()
        self.dbm = RSSI_DBM
        self.ends: dict[int, _End] = {}  # by connection handle
        self.le_acl_data_packet_length = phy.pdu
        self.total_num_le_acl_data_packets = phy.buffers
        self.supported_max_tx_octets = self.supported_max_rx_octets = phy.pdu
        self._heard_dbm = RSSI_DBM

    def is_called(self, which: str) -> bool:
        """Whether this is its name, the name its host told it, or its address."""
        return which in (self.name, self.local_name) or which.upper().removesuffix("/P") == self.address

    @property
    def address(self) -> str:
        return self.public_address.to_string(with_type_qualifier=False)

    def hear(self, sender: "VirtualController", packet: ll.AdvertisingPdu) -> None:
        """An advertisement, if both are in reach."""
        if self.host is not None and self.antenna.in_range and sender.antenna.in_range and not self.antenna.full:
            self._heard_dbm = sender.dbm
            self.on_ll_advertising_pdu(packet)

    def fall_silent(self) -> None:
        """Nothing is sent any more: peers notice after `supervision_s`."""
        self.le_legacy_advertiser.stop()
        for advertising_set in self.advertising_sets.values():
            advertising_set.stop()
        self.le_scan_enable = False
        self.pending_le_connection = None
        for end in list(self.ends.values()):
            asyncio.get_running_loop().call_later(self.radio.phy.supervision_s, end.peer.lose)
            self.on_le_disconnected(end.connection, hci.HCI_ErrorCode.CONNECTION_TERMINATED_BY_LOCAL_HOST_ERROR)

    def host_reads(self, reads: bool) -> None:
        """Whether the host takes packets; while it does not, its peers' packets wait at their side."""
        self.antenna.full = not reads
        if reads:
            for air in list(self.antenna.airs):
                air.wake()

    def send_hci_packet(self, packet: hci.HCI_Packet) -> None:
        if isinstance(packet, hci.HCI_LE_Connection_Complete_Event):
            phy = self.radio.phy
            packet.connection_interval = max(6, round(phy.interval_s / 1.25e-3))
            packet.supervision_timeout = max(10, round(phy.supervision_s / 10e-3))
        elif isinstance(packet, hci.HCI_LE_Extended_Advertising_Report_Event):
            for report in packet.reports:
                report.rssi = self._heard_dbm
        if self.host is not None:
            asyncio.get_running_loop().call_soon(self.host.on_packet, bytes(packet))

    def on_hci_acl_data_packet(self, packet: hci.HCI_AclDataPacket) -> None:
        """Raises ProtocolViolation if the host sends more than it was told there is room for."""
        if (end := self.ends.get(packet.connection_handle)) is None:
            return  # it was on its way when the connection ended
        if end.air.waiting(end.number) >= self.radio.phy.buffers:
            raise ProtocolViolation("a host sent more packets than its controller has room for")
        end.air.submit(end.number, packet, packet.data_total_length)

    def on_le_disconnected(self, connection: bumble_controller.Connection, reason: int) -> None:
        if end := self.ends.pop(connection.handle, None):
            end.air.close()
        if self.le_connections.get(connection.peer_address) is connection:
            super().on_le_disconnected(connection, reason)

    def on_hci_reset_command(self, command: hci.HCI_Reset_Command) -> hci.HCI_StatusReturnParameters:
        self.fall_silent()
        return super().on_hci_reset_command(command)

    def on_hci_le_create_connection_cancel_command(
        self, command: hci.HCI_LE_Create_Connection_Cancel_Command
    ) -> hci.HCI_StatusReturnParameters:
        """bumble's own leaves the connection pending, and its host waiting."""
        pending, self.pending_le_connection = self.pending_le_connection, None
        if pending is None:
            return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        self.send_hci_packet(
            hci.HCI_LE_Connection_Complete_Event(
                status=hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR,
                connection_handle=0,
                role=hci.Role.CENTRAL,
                peer_address_type=pending.peer_address.address_type,
                peer_address=pending.peer_address,
                connection_interval=0,
                peripheral_latency=0,
                supervision_timeout=0,
                central_clock_accuracy=0,
            )
        )
        return super().on_hci_le_create_connection_cancel_command(command)


class RadioDevice(Device):
    """A bumble device that can lose its radio: then `radio_lost` is true and its connections end."""

    radio_lost: bool = False
    take_away: Callable[[], Any]

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
        if self.host.pending_response is not None and self.host.pending_response.done():
            self.host.emit("flush")
        else:
            self.host.on_transport_lost()  # type: ignore[no-untyped-call]


@dataclass(eq=False)
class _End:
    """One controller's side of a connection."""

    controller: VirtualController
    connection: bumble_controller.Connection
    number: int
    air: Air = None  # type: ignore[assignment]  # both are set by _join, which makes ends in pairs
    peer: "_End" = None  # type: ignore[assignment]

    def lose(self) -> None:
        """Both sides notice that the other one is gone, if they have not yet."""
        for end in (self, self.peer):
            if end.controller.ends.get(end.connection.handle) is end:
                end.controller.on_le_disconnected(end.connection, hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR)

    def hear(self, sender: hci.Address, packet: ll.ControlPdu) -> None:
        if self.controller.ends.get(self.connection.handle) is self:
            self.controller.on_ll_control_pdu(sender, packet)


class _Wire:
    """From a host to its controller in the same process."""

    def __init__(self, controller: VirtualController) -> None:
        self.cut = False
        self._controller = controller

    def on_packet(self, packet: bytes) -> None:
        if self.cut:
            raise TransportLostError("the virtual radio is switched off")
        asyncio.get_running_loop().call_soon(self._controller.on_packet, packet)


def named_phy(name: str) -> Phy:
    """Raises BadInput."""
    if name not in PHYS:
        raise BadInput("there is no such virtual radio", hint=f"one of {', '.join(PHYS)}")
    return PHYS[name]


async def switch_on(name: str, source: TransportSource, sink: Any, take_away: Callable[[], Any]) -> RadioDevice:
    """A device over a controller's HCI. Its random static address has the octets of the controller's public one."""
    host = Host(source, sink)
    await host.reset()
    octets = bytes((await host.send_sync_command(hci.HCI_Read_BD_ADDR_Command())).bd_addr)
    device = RadioDevice(name=name, address=hci.Address(octets, hci.Address.RANDOM_DEVICE_ADDRESS), host=host)
    device.take_away = take_away
    await device.power_on()
    return device


def _join(central: _End, peripheral: _End, sky: Sky) -> None:
    central.peer, peripheral.peer = peripheral, central
    air = Air(
        sky,
        (central.controller.antenna, central.connection.on_hci_acl_data_packet),
        (peripheral.controller.antenna, peripheral.connection.on_hci_acl_data_packet),
        central.lose,
    )
    for end in (central, peripheral):
        end.air = air
        end.controller.ends[end.connection.handle] = end
