"""EATT: the attribute protocol over several channels of one connection, its bearers, which may overtake each other.

BlueZ 5.66 takes bearers and uses them, but asks for none as a central: it tells the other end that it knows no EATT,
whatever `[GATT] Channels` says. So the hop is on BlueZ, and the edge's host is bumble's, on the same air; it opens the
bearers and writes by each in turn.
"""

import itertools
import os
import sys
from pathlib import Path

from bumble.att import ATT_PDU, ATT_Write_Command
from bumble.gatt_client import Client

from tests.bluez.links import BULK, carry, lab
from tests.bluez.sessions import LONG, PROMPT
from tests.bluez.sessions import lab as lab_of_sessions
from tests.bluez.stack import AIR, HOP, Stack
from transport.links.base import Link
from transport.links.radio import OpenRadio
from transport.links.virtual_device import RadioDevice
from transport.links.virtual_join import join_radio

BEARERS = 3
SPREAD = Path(__file__).parent / "spread"
SEQUENCES = 128  # numbers of data values, docs/SPEC.md section 9


class Order:
    """Counts the data values that a link takes, and those that come after one that was sent later."""

    def __init__(self, link: Link) -> None:
        self.values = self.late = 0
        self._next, self._take = 0, link.take
        link.take = self._counted

    def _counted(self, value: bytes) -> None:
        if value[0] < SEQUENCES:
            self.values += 1
            if 0 < (self._next - value[0]) % SEQUENCES <= SEQUENCES // 2:
                self.late += 1
            else:
                self._next = (value[0] + 1) % SEQUENCES
        self._take(value)


async def spread(device: RadioDevice) -> None:
    """Opens more bearers on the device's one connection; what is written without response goes by each in turn. bumble
    would join what waits for a bearer's credit to one packet, so nothing is made to wait there.
    """
    (connection,) = device.connections.values()
    main = connection.gatt_client
    more = await Client.connect_eatt(connection, count=BEARERS - 1)
    for one in more:
        one.bearer.sink = lambda pdu: main.on_gatt_pdu(ATT_PDU.from_bytes(pdu))
    turns, plain = itertools.cycle([None, *more]), main.send_gatt_pdu

    def send(pdu: bytes) -> None:
        one = next(turns) if pdu[0] == ATT_Write_Command.op_code else None
        (plain if one is None or one.bearer.out_queue or one.bearer.out_sdu else one.send_gatt_pdu)(pdu)

    main.send_gatt_pdu = send


def spread_always() -> None:
    """In this process, as soon as a pipe begins."""
    from transport.links import virtual_bleak

    backend = virtual_bleak.bleak_backend

    def spreading(device: RadioDevice) -> virtual_bleak.Backend:
        found = backend(device)

        class SpreadClient(found.client):  # type: ignore[name-defined, misc]
            async def start_notify(self, *arguments: object, **more: object) -> None:
                await super().start_notify(*arguments, **more)
                await spread(device)

        return virtual_bleak.Backend(found.scanner, SpreadClient)

    virtual_bleak.bleak_backend = spreading


def check_bearers(used: dict[str, list[int]], bearers: int) -> None:
    for who in (f"C{HOP}", "joined"):
        assert (len(used[who]) > 1) == (bearers > 1), f"EATT was {'not ' * (bearers > 1)}in use: {used}"


async def sessions(stack: Stack) -> str:
    """Whole requests and answers by several bearers, with one connection for each."""
    made = await lab_of_sessions(stack)
    await stack.stop_daemon()
    await stack.start_daemon(bearers=BEARERS)
    try:
        with made.edge.instead(f"virtual:{AIR}", PYTHONPATH=os.pathsep.join([str(SPREAD), *sys.path])):
            await stack.count()
            took = await made.ask("Explain the pump.", LONG)
            print(f"      long answer after {took:.1f} s", flush=True)
            took += await made.ask(PROMPT, "Noted.")
            connections, used = await stack.count()
        check_bearers(used, BEARERS)
        assert connections == 2, connections
        return f"a long answer and a large prompt in {took:.1f} s, no link lost"
    finally:
        await stack.stop_daemon()
        await stack.start_daemon()


async def one_and_several_bearers(stack: Stack) -> str:
    """The same bytes over one bearer and over several: whole and in order, by one link each."""
    said = []
    try:
        for bearers in (1, BEARERS):
            await stack.stop_daemon()
            await stack.start_daemon(bearers=bearers)
            device = await join_radio(AIR, "edge")
            async with lab(stack, OpenRadio(device, device.close)) as made:
                near, far = await made.pair()
                if bearers > 1:
                    await spread(device)
                orders = Order(far), Order(near)
                await stack.count()
                into, out = await carry(near, far, BULK), await carry(far, near, BULK)
                connections, used = await stack.count()
                await near.close()
            assert not connections
            check_bearers(used, bearers)
            late = ", ".join(f"{order.late} of {order.values}" for order in orders)
            said.append(f"{'on' if bearers > 1 else 'off'}: in {into}, out {out}, late {late}")
            print(f"      {said[-1]}; frames by bearer {used}", flush=True)
    finally:
        if bearers > 1:
            await stack.stop_daemon()
            await stack.start_daemon()
    return "; ".join(said)


STEPS = {"eatt": one_and_several_bearers}
SESSION_STEPS = {"session-eatt": sessions}
