"""A virtual Bluetooth radio: bumble controllers on one air with a timing model: the real code without hardware.

In one process: `await VirtualRadio("1m").device("hop")` for each device. The devices are bumble's own, with true
addresses, advertising, GATT and flow control; only the air between them is modelled (`virtual_air`). Everything random
comes from `seed`, and time from the running loop, so it runs in virtual time as well. Across processes:
`virtual_join`.
"""

import asyncio
import random
from collections.abc import Iterator
from typing import Final

from bumble import controller as bumble_controller
from bumble import hci, ll
from bumble.core import PhysicalTransport
from bumble.link import LocalLink

from transport.errors import BadInput, LinkLost
from transport.links.virtual_air import PHYS, Phy, Sky
from transport.links.virtual_controller import End, VirtualController, join
from transport.links.virtual_device import RadioDevice, Wire, switch_on

DEVICES_MAX: Final = 64  # on one radio
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

    def controller(self, name: str) -> VirtualController:
        """A controller with an address of its own. Raises LinkLost for the 65th."""
        if len(self._on_air) >= DEVICES_MAX:
            raise LinkLost("too many devices are on this virtual radio")
        self._count += 1
        address = f"C0:00:00:00:{self._count >> 8 & 255:02X}:{self._count & 255:02X}"
        made = VirtualController(self, self.phy, name, address)
        self._on_air.append(made)
        return made

    async def device(self, name: str) -> RadioDevice:
        """A device of this process, switched on. Close it, or leave it to the end of the process."""
        controller = self.controller(name)
        wire = Wire(controller)

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
                air.reach_changed()

    def signal(self, which: str, dbm: int) -> None:
        """How strongly others hear this device advertise, -127 to 20 dBm. Raises BadInput."""
        if not -127 <= dbm <= 20:
            raise BadInput("a signal strength is -127 to 20 dBm")
        for controller in self._called(which):
            controller.dbm = dbm

    def remove(self, controller: VirtualController) -> None:
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

    def _ends(self) -> Iterator[End]:
        for controller in self._on_air:
            yield from controller.ends.values()

    def _called(self, which: str) -> list[VirtualController]:
        found = [controller for controller in self._on_air if controller.is_called(which)]
        if not found:
            raise BadInput("no such device is on this virtual radio")
        return found

    def _connect(self, central: VirtualController, packet: ll.ConnectInd) -> None:
        ours = central.le_connections[packet.advertiser_address]
        for controller in self._on_air:
            if controller is central or not controller.antenna.in_range:
                continue
            if stale := controller.le_connections.get(packet.initiator_address):
                controller.on_le_disconnected(stale, hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR)
            controller.on_le_connect_ind(packet)
            if theirs := controller.le_connections.get(packet.initiator_address):
                join(End(central, ours, 0), End(controller, theirs, 1), self.sky)
                return
        # someone else was faster, or it went away: the central's host is told of a connection and of its end
        reason = hci.HCI_ErrorCode.CONNECTION_FAILED_TO_BE_ESTABLISHED_ERROR
        asyncio.get_running_loop().call_soon(central.on_le_disconnected, ours, reason)

    def _weaker_mtu(self, frame: bytes) -> bytes:
        """Hosts of small MTUs are part of what a Phy models, whatever hosts really run here."""
        if len(frame) != 7 or frame[2:4] != _ATT or frame[4] not in _ATT_MTU:
            return frame
        return frame[:5] + min(self.phy.mtu, int.from_bytes(frame[5:], "little")).to_bytes(2, "little")


def named_phy(name: str) -> Phy:
    """Raises BadInput."""
    if name not in PHYS:
        raise BadInput("there is no such virtual radio", hint=f"one of {', '.join(PHYS)}")
    return PHYS[name]
