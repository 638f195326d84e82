"""RFCOMM between our edge's socket and our hop's profile on BlueZ, beside a plain copy over the same kind of socket."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bluez.links import carry, lost_in_the_middle, read
from tests.bluez.sessions import chain
from tests.bluez.stack import HOP, Stack
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link, connect, listen
from transport.links.rfcomm import REDIAL_S

BULK = 300_000  # bytes
PLAIN_CHANNEL = 9
LIMIT_S = 40.0
ADDRESS = ":".join([f"C{HOP}"] * 6)
_CHUNK = 65_536  # what our link takes and gives at once


class Lab:
    def __init__(self) -> None:
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.over = asyncio.Event()

    async def hold(self, link: Link) -> None:
        self.links.put_nowait(link)
        await self.over.wait()

    async def pair(self, form: str = "") -> tuple[Link, Link]:
        near = await connect(Endpoint.parse(f"rfcomm:{ADDRESS}{form}"), timeout_s=20)
        return near, await asyncio.wait_for(self.links.get(), 20)


@asynccontextmanager
async def lab(stack: Stack, form: str = "") -> AsyncIterator[Lab]:
    async with stack.classic():
        made = Lab()
        listener = await listen(Endpoint.parse(f"rfcomm:{form}"), made.hold)
        try:
            yield made
        finally:
            made.over.set()
            await listener.close()


def _plain(data: bytes) -> tuple[float, float]:
    """Bytes a second each way between two blocking sockets, in two threads."""
    import threading

    kind = (getattr(socket, "AF_BLUETOOTH"), socket.SOCK_STREAM, getattr(socket, "BTPROTO_RFCOMM"))  # noqa: B009
    rates: list[float] = []

    def take(sock: socket.socket) -> None:
        begun, got = time.monotonic(), bytearray()
        while len(got) < len(data):
            part = sock.recv(_CHUNK)
            assert part
            got += part
        assert got == data
        rates.append(len(data) / (time.monotonic() - begun))

    with socket.socket(*kind) as server, socket.socket(*kind) as near:
        server.bind((ADDRESS, PLAIN_CHANNEL))
        server.listen(1)
        near.connect((ADDRESS, PLAIN_CHANNEL))
        far = server.accept()[0]
        near.settimeout(LIMIT_S)
        far.settimeout(LIMIT_S)
        with far:
            for source, sink in ((near, far), (far, near)):
                taking = threading.Thread(target=take, args=(sink,))
                taking.start()
                source.sendall(data)
                taking.join(60)
            near.shutdown(socket.SHUT_RDWR)
    return rates[0], rates[1]


async def bulk_beside_plain_sockets(stack: Stack) -> str:
    data = random.Random(7).randbytes(BULK)
    async with lab(stack) as made:
        near, far = await made.pair()
        ours = []
        for source, sink in ((near, far), (far, near)):
            begun = time.monotonic()
            _, got = await asyncio.gather(source.send(data), read(sink, BULK))
            assert got == data
            ours.append(BULK / (time.monotonic() - begun))
        await near.close()
        assert await far.receive() == b""
        await asyncio.sleep(REDIAL_S)
        plain = await asyncio.to_thread(_plain, data)
    return "; ".join(
        f"{way} {one / 1000:.0f} kB/s, plain {other / 1000:.0f}, {one / other:.2f} times"
        for way, one, other in zip(("in", "out"), ours, plain, strict=True))


async def ends(stack: Stack) -> str:
    """All that was sent comes before the end, whoever closes; then the pause before the same hop is dialled again."""
    async with lab(stack, "?channel=17") as made:
        begun = time.monotonic()
        for number in range(4):
            near, far = await made.pair("?channel=17" if number % 2 else "")
            one, two = (near, far) if number < 2 else (far, near)
            _, got = await asyncio.gather(one.send(bytes([number]) * 50_000), read(two, 1))
            closing = asyncio.create_task(one.close())
            while part := await two.receive():
                got += part
            assert got == bytes([number]) * 50_000, (number, len(got))
            await closing
            await two.close()
            assert time.monotonic() - begun >= number * REDIAL_S
        return f"four links in {time.monotonic() - begun:.1f} s, with three pauses of {REDIAL_S:g} s"


async def drop(stack: Stack) -> str:
    async with lab(stack) as made:
        near, far = await made.pair()
        sending = asyncio.create_task(near.send(bytes(BULK * 20)))
        await read(far, 50_000)
        begun = time.monotonic()
        await stack.radio("drop")
        await lost_in_the_middle(made, near, far)
        noticed = time.monotonic() - begun
        await asyncio.gather(sending, return_exceptions=True)
        assert isinstance(sending.exception(), LinkLost)
        near, far = await made.pair()
        await carry(near, far, 5_000)
        await near.close()
        return f"noticed after {noticed:.1f} s, new link after {time.monotonic() - begun:.1f} s"


async def join_and_ask(stack: Stack) -> str:
    """The product's processes, with nothing but RFCOMM between edge and hop."""
    async with stack.classic(), contextlib.AsyncExitStack() as exits:
        made = await chain(exits, "rfcomm", f"rfcomm:{ADDRESS}")
        took = await made.ask("How fast does the pump run?", "The pump runs at 6 bar.")
        return f"answer after {took:.1f} s"


STEPS = {
    "rfcomm-bulk": bulk_beside_plain_sockets,
    "rfcomm-ends": ends,
    "rfcomm-drop": drop,
    "rfcomm-join-and-ask": join_and_ask,
}
