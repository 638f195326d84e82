"""Sends requests in the clear over a Bluetooth link, to whoever answers at a port: the control of the demo's search.

The link is the products' own, from bleak at the one end to the GATT service at the other; only the session is missing
that would protect what it carries.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from transport.errors import LinkLost
from transport.links.base import Link, Radio
from transport.links.radio import open_radio

NAME = "control"  # how the listening end is called on the air
CONNECT_S = 20.0
EXCHANGE_S = 120.0


async def exchange(central: Path, peripheral: Path, port: int, requests: Sequence[bytes]) -> list[bytes]:
    """The answers to HTTP requests that ask for the connection to be closed, one link each.

    `central` and `peripheral` are the sockets at which the two ends join the virtual radio. Raises LinkLost, OSError,
    TimeoutError.
    """

    async def pass_on(link: Link) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        there = asyncio.create_task(_forward(link, writer))
        try:
            while data := await reader.read(4096):
                await link.send(data)
        finally:
            there.cancel()
            writer.close()

    async with asyncio.timeout(EXCHANGE_S), contextlib.AsyncExitStack() as stack:
        near, far = await _radio(stack, central), await _radio(stack, peripheral)
        listener = await far.listen(pass_on, name=NAME)
        stack.push_async_callback(listener.close)
        return [await _ask(near, request) for request in requests]


async def _radio(stack: contextlib.AsyncExitStack, sock: Path) -> Radio:
    radio = await open_radio(f"virtual:{sock}")
    stack.push_async_callback(radio.close)
    return radio


async def _ask(radio: Radio, request: bytes) -> bytes:
    link = await radio.connect(NAME, timeout_s=CONNECT_S)
    try:
        await link.send(request)
        answer = b""
        while data := await link.receive():
            answer += data
        return answer
    finally:
        await link.close()


async def _forward(link: Link, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(LinkLost, ConnectionError):
        while data := await link.receive():
            writer.write(data)
            await writer.drain()
