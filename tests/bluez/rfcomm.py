"""RFCOMM between our edge's socket and our hop's profile on BlueZ, beside a plain copy over the same kind of socket."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from tests.bluez import figures
from tests.bluez.links import carry, lost_in_the_middle, read
from tests.bluez.sessions import chain
from tests.bluez.stack import HOP, Stack
from transport.errors import LinkLost
from transport.links.base import RECEIVE_MAX, Endpoint, Link, connect, listen
from transport.links.rfcomm import REDIAL_S

BULK = 300_000  # bytes
PLAIN_CHANNEL = 9
LIMIT_S = 40.0
ADDRESS = ":".join([f"C{HOP}"] * 6)
ROUNDS, ROUNDS_S = 20, 60.0  # at most, whichever comes first, and five at least; the medians are told


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


def _plain(source: socket.socket, sink: socket.socket, data: bytes) -> float:
    """Bytes a second between two blocking sockets, in two threads. They have time limits, without which the kernel
    waits for room for all that it is given before it sends any of it.
    """
    import threading

    got = bytearray()

    def take() -> None:
        while len(got) < len(data) and (part := sink.recv(RECEIVE_MAX)):
            got.extend(part)

    begun = time.monotonic()
    taking = threading.Thread(target=take)
    taking.start()
    source.sendall(data)
    taking.join()
    assert got == data
    return len(data) / (time.monotonic() - begun)


async def _ours(source: Link, sink: Link, data: bytes) -> float:
    begun = time.monotonic()
    _, got = await asyncio.gather(source.send(data), read(sink, len(data)))
    assert got == data
    return len(data) / (time.monotonic() - begun)


@contextlib.contextmanager
def _plain_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    kind = (getattr(socket, "AF_BLUETOOTH"), socket.SOCK_STREAM, getattr(socket, "BTPROTO_RFCOMM"))  # noqa: B009
    with socket.socket(*kind) as server, socket.socket(*kind) as near:
        server.bind((ADDRESS, PLAIN_CHANNEL))
        server.listen(1)
        near.connect((ADDRESS, PLAIN_CHANNEL))
        with server.accept()[0] as far:
            for end in (near, far):
                end.settimeout(LIMIT_S)
            yield near, far
            near.shutdown(socket.SHUT_RDWR)


async def bulk_beside_plain_sockets(stack: Stack) -> str:
    """In turns over one connection of the radio, so that what else the machine does falls on both alike."""
    data = random.Random(7).randbytes(BULK)
    rates: dict[str, list[tuple[float, float]]] = {"in": [], "out": []}
    begun = time.monotonic()
    async with lab(stack) as made:
        near, far = await made.pair()
        with _plain_pair() as (one, other):
            for number in range(ROUNDS):
                if number >= 5 and time.monotonic() - begun > ROUNDS_S:
                    break
                for way, ours, plain in (("in", (near, far), (one, other)), ("out", (far, near), (other, one))):
                    if number % 2:
                        first = await _ours(*ours, data)
                        rates[way].append((first, await asyncio.to_thread(_plain, *plain, data)))
                    else:
                        second = await asyncio.to_thread(_plain, *plain, data)
                        rates[way].append((await _ours(*ours, data), second))
        await near.close()
        assert await far.receive() == b""
    return "; ".join(
        figures.show(f"RFCOMM, {way}", [ours for ours, _ in rows], [plain for _, plain in rows], "plain socket copy")
        for way, rows in rates.items())


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
