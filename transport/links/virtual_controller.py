"""A bumble controller on a modelled air: flow control, timing, and the truth where bumble's own simplifies."""

import asyncio
from dataclasses import dataclass
from typing import Final

from bumble import controller as bumble_controller
from bumble import hci, ll
from bumble.link import LocalLink

from transport.errors import ProtocolViolation
from transport.links.virtual_air import Air, Antenna, Phy, Sky

RSSI_DBM: Final = -50  # of a device unless told


class VirtualController(bumble_controller.Controller):
    """bumble's controller, on a modelled air, with what its host needs to be told the truth."""

    def __init__(self, link: LocalLink, phy: Phy, name: str, address: str) -> None:
        super().__init__(name, link=link, public_address=address)
        self.phy = phy
        self.local_name = name
        self.antenna = Antenna()
        self.dbm = RSSI_DBM
        self.ends: dict[int, End] = {}  # by connection handle
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
            asyncio.get_running_loop().call_later(self.phy.supervision_s, end.peer.lose)
            self.on_le_disconnected(end.connection, hci.HCI_ErrorCode.CONNECTION_TERMINATED_BY_LOCAL_HOST_ERROR)

    def host_reads(self, reads: bool) -> None:
        """Whether the host takes packets; while it does not, its peers' packets wait, for `supervision_s` at most."""
        self.antenna.full = not reads
        for air in list(self.antenna.airs):
            air.reach_changed()

    def send_hci_packet(self, packet: hci.HCI_Packet) -> None:
        if isinstance(packet, hci.HCI_LE_Connection_Complete_Event):
            packet.connection_interval = max(6, round(self.phy.interval_s / 1.25e-3))
            packet.supervision_timeout = max(10, round(self.phy.supervision_s / 10e-3))
        elif isinstance(packet, hci.HCI_LE_Extended_Advertising_Report_Event):
            for report in packet.reports:
                report.rssi = self._heard_dbm
        if self.host is not None:
            asyncio.get_running_loop().call_soon(self.host.on_packet, bytes(packet))

    def on_hci_acl_data_packet(self, packet: hci.HCI_AclDataPacket) -> None:
        """Raises ProtocolViolation if the host sends more than it was told there is room for."""
        if (end := self.ends.get(packet.connection_handle)) is None:
            return  # it was on its way when the connection ended
        if end.air.waiting(end.number) >= self.phy.buffers:
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


@dataclass(eq=False)
class End:
    """One controller's side of a connection."""

    controller: VirtualController
    connection: bumble_controller.Connection
    number: int
    air: Air = None  # type: ignore[assignment]  # both are set by join, which makes ends in pairs
    peer: "End" = None  # type: ignore[assignment]

    def lose(self) -> None:
        """Both sides notice that the other one is gone, if they have not yet."""
        for end in (self, self.peer):
            if end.controller.ends.get(end.connection.handle) is end:
                end.controller.on_le_disconnected(end.connection, hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR)

    def hear(self, sender: hci.Address, packet: ll.ControlPdu) -> None:
        if self.controller.ends.get(self.connection.handle) is self:
            self.controller.on_ll_control_pdu(sender, packet)


def join(central: End, peripheral: End, sky: Sky) -> None:
    """Two controllers have a connection from now on."""
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
