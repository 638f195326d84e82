"""A Bluetooth link in virtual time, bleak at one end and bumble at the other, whose values are counted; and sessions.

What is measured is the code that ships, from the session down to the attribute protocol; only the air is a model
(`transport.links.virtual_air`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from benchmarks.chains import Chains
from benchmarks.cores import EPOCH
from transport.edge_session import EdgeSession
from transport.identity.verify import verify_svid
from transport.initiator import SvidLogin
from transport.links import virtual_time
from transport.links.base import Link
from transport.links.radio import OpenRadio
from transport.links.virtual_radio import VirtualRadio
from transport.messages import Padding, Welcome
from transport.serving import GatewaySession, Responder
from transport.tickets import TicketStore


@dataclass
class Pair:
    """Both ends of one link, and the bytes of the values that each end has written."""

    edge: Link
    hop: Link
    up: int = 0
    down: int = 0
    values: int = 0

    def reset(self) -> None:
        self.up = self.down = self.values = 0


@contextlib.asynccontextmanager
async def linked(phy: str, seed: int = 1) -> AsyncIterator[Pair]:
    """To be used in virtual time."""
    air = VirtualRadio(phy, seed=seed)
    hop_radio, edge_radio = OpenRadio(await air.device("hop")), OpenRadio(await air.device("edge"))
    arrived: asyncio.Queue[Link] = asyncio.Queue()
    over = asyncio.Event()

    async def hold(link: Link) -> None:
        arrived.put_nowait(link)
        await over.wait()

    listener = await hop_radio.listen(hold, name="")
    edge = await edge_radio.connect("", timeout_s=10)
    pair = Pair(edge, await arrived.get())
    _count(pair, "up", pair.edge)
    _count(pair, "down", pair.hop)
    try:
        yield pair
    finally:
        over.set()
        await edge.close()
        await listener.close()
        await edge_radio.close()
        await hop_radio.close()


def _count(pair: Pair, way: str, link: Any) -> None:
    next_value = link._pipe.next_value

    def counted(now: float) -> bytes | None:
        value: bytes | None = next_value(now)
        if value is not None:
            setattr(pair, way, getattr(pair, way) + len(value))
            pair.values += 1
        return value

    link._pipe.next_value = counted


async def session_over(pair: Pair, chains: Chains, padding: Padding) -> tuple[EdgeSession, GatewaySession]:
    """A session between the two ends, as if the hop took no time."""
    svid, own = chains.issue("edge/bench"), chains.issue("gateway/bench")

    def verify(role: str) -> Any:
        return lambda chain, now: verify_svid(chain, chains.bundle, role=role, now=now)

    gateway = Responder(
        lambda: own, lambda: chains.root, verify("edge"), TicketStore(), clock=lambda: virtual_time.wall
    )

    async def accept() -> GatewaySession:
        session = await GatewaySession.accept(pair.hop, gateway)
        session.admit(Welcome(EPOCH, "", 1))
        return session

    accepted = asyncio.create_task(accept())
    edge = await EdgeSession(
        pair.edge, SvidLogin(svid.chain, svid.not_after), svid.key, verify("gateway"), padding,
        clock=virtual_time.wall,
    ).open()
    return edge, await accepted
