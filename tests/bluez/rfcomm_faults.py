"""RFCOMM when BlueZ or an adapter goes away, with many edges or silent ones, and with bumble at one end."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator

from tests.bluez.links import carry, lost_in_the_middle, read
from tests.bluez.rfcomm import ADDRESS, Lab, lab
from tests.bluez.stack import AIR, EDGE, HOP, Stack
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link, connect, listen
from transport.links.radio import OpenRadio
from transport.links.rfcomm import REDIAL_S, RfcommLink
from transport.links.virtual_join import join_radio

EDGES = (EDGE, 2, 3)  # adapters
PATIENCE_S = 10.0  # as relay.hop.app's
_CHANNEL = 21
_TRIES = 4


async def _again(made: Lab) -> tuple[Link, Link]:
    """As the edge does, which tries again: a hop that has just come back may need a moment."""
    for tries in range(_TRIES):
        try:
            return await made.pair()
        except LinkLost:
            if tries == _TRIES - 1:
                raise
    raise AssertionError


async def _ended(link: Link) -> str:
    """How a link ends, of which nobody reads any more."""
    try:
        async with asyncio.timeout(20):
            while await link.receive():
                pass
        return "ended"
    except LinkLost:
        return "lost"
    finally:
        await link.close()


async def daemon_restarted(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        await carry(near, far, 5_000)
        begun = time.monotonic()
        await stack.stop_daemon()
        how = await asyncio.gather(_ended(near), _ended(far))
        noticed = time.monotonic() - begun
        await stack.start_daemon()
        back = time.monotonic()
        near, far = await _again(made)
        await carry(near, far, 5_000)
        await near.close()
        return (f"edge's link {how[0]}, hop's {how[1]} after {noticed:.1f} s, new link {time.monotonic() - back:.1f} s "
                "after it is back")


async def adapter_removed(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        await carry(near, far, 5_000)
        begun = time.monotonic()
        await stack.radio(f"remove {HOP}")
        await lost_in_the_middle(made, near, far)
        noticed = time.monotonic() - begun
        await stack.radio(f"add {HOP} classic")
        await stack.switch_on(HOP)
        back = time.monotonic()
        near, far = await _again(made)
        await carry(near, far, 5_000)
        await near.close()
        return f"noticed after {noticed:.1f} s, new link {time.monotonic() - back:.1f} s after it is back"


async def _dial(adapter: int, channel: int) -> socket.socket:
    """From this adapter, where our edge takes the first that is on."""
    kind = (getattr(socket, "AF_BLUETOOTH"), socket.SOCK_STREAM, getattr(socket, "BTPROTO_RFCOMM"))  # noqa: B009
    sock = socket.socket(*kind)
    sock.bind((":".join([f"C{adapter}"] * 6), 0))
    sock.settimeout(20)
    await asyncio.to_thread(sock.connect, (ADDRESS, channel))
    return sock


@contextlib.asynccontextmanager
async def _more_adapters(stack: Stack) -> AsyncIterator[None]:
    for number in EDGES[1:]:
        await stack.radio(f"add {number} classic")
        await stack.switch_on(number)
    try:
        yield
    finally:
        for number in EDGES[1:]:
            await stack.radio(f"remove {number}")


async def several_edges(stack: Stack) -> str:
    """Each on an adapter of its own, all at once, and one that leaves does not disturb the others."""
    async with lab(stack, f"?channel={_CHANNEL}") as made, _more_adapters(stack):
        pairs = []
        for adapter in EDGES:
            near = RfcommLink(await _dial(adapter, _CHANNEL), "rfcomm:hop")
            far = await asyncio.wait_for(made.links.get(), 20)
            assert far.peer == f"rfcomm:{':'.join([f'C{adapter}'] * 6)}", far.peer
            pairs.append((near, far))
        begun = time.monotonic()
        ways = [way for near, far in pairs for way in ((near, far), (far, near))]
        await asyncio.gather(*(carry(one, two, 60_000) for one, two in ways))
        took = time.monotonic() - begun
        await pairs[0][0].close()
        assert await pairs[0][1].receive() == b""
        await asyncio.gather(*(carry(near, far, 10_000) for near, far in pairs[1:]))
        for near, _ in pairs[1:]:
            await near.close()
        return f"{len(pairs)} edges, {len(pairs) * 120 / took:.0f} kB/s together"


async def silent_edges(stack: Stack) -> str:
    """Who connects and says nothing is given up, as the product's hop does, and its link ends; another is served."""
    async def serve(link: Link) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                first = await link.receive()
            await link.send(first)
            await link.receive()

    async with stack.classic(), _more_adapters(stack):
        listener = await listen(Endpoint.parse(f"rfcomm:?channel={_CHANNEL}"), serve)
        begun = time.monotonic()
        *silent, speaking = [RfcommLink(await _dial(adapter, _CHANNEL), "rfcomm:hop") for adapter in EDGES]
        await speaking.send(b"pump")
        assert await read(speaking, 4) == b"pump"
        how = await asyncio.gather(*map(_ended, silent))
        waited = time.monotonic() - begun
        await speaking.send(b"pump")
        await speaking.close()
        await listener.close()
        return f"two silent ones {how[0]} and {how[1]} after {waited:.1f} s, a third was served"


async def _whole_and_both_ways(near: Link, far: Link) -> str:
    rates = [await carry(near, far, 100_000), await carry(far, near, 100_000)]
    data = random.Random(3).randbytes(50_000)
    sending = asyncio.create_task(_send_and_close(near, data))
    got = await read(far, len(data))
    assert (got, await far.receive()) == (data, b"")
    await sending
    await far.close()
    return " and ".join(rates)


async def _send_and_close(link: Link, data: bytes) -> None:
    await link.send(data)
    await link.close()


async def bumble_at_one_end(stack: Stack) -> str:
    """bumble's RFCOMM, at the hop and then at the edge, with the kernel's at the other end."""
    async with lab(stack) as made:
        device = await join_radio(AIR, "bumble")
        device.classic_enabled, device.discoverable = True, False
        radio = OpenRadio(device, device.close)
        address = str(device.public_address).removesuffix("/P")
        hop = Lab()
        listener = await listen(Endpoint.parse("rfcomm:"), hop.hold, radio=radio)
        near = await connect(Endpoint.parse(f"rfcomm:{address}"), timeout_s=20)
        as_hop = await _whole_and_both_ways(near, await asyncio.wait_for(hop.links.get(), 20))
        await asyncio.sleep(REDIAL_S)
        near = await connect(Endpoint.parse(f"rfcomm:{address}"), timeout_s=20)
        far = await asyncio.wait_for(hop.links.get(), 20)
        await far.send(b"the last")
        await far.close()
        assert (await read(near, 8), await near.receive()) == (b"the last", b"")
        await near.close()
        await asyncio.sleep(REDIAL_S)
        near = await connect(Endpoint.parse(f"rfcomm:{ADDRESS}"), radio=radio, timeout_s=20)
        as_edge = await _whole_and_both_ways(near, await asyncio.wait_for(made.links.get(), 20))
        near = await connect(Endpoint.parse(f"rfcomm:{ADDRESS}"), radio=radio, timeout_s=20)
        far = await asyncio.wait_for(made.links.get(), 20)
        await carry(near, far, 5_000)
        await stack.radio("drop")
        await lost_in_the_middle(made, near, far)
        hop.over.set()
        await listener.close()
        await radio.close()
        return f"as the hop {as_hop}, as the edge {as_edge}"


STEPS = {
    "rfcomm-daemon-restarted": daemon_restarted,
    "rfcomm-adapter-removed": adapter_removed,
    "rfcomm-several-edges": several_edges,
    "rfcomm-silent-edges": silent_edges,
    "rfcomm-bumble": bumble_at_one_end,
}
