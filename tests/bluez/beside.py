"""Our peripheral beside one that is written with `bluez-peripheral`, each in a process of its own, in turns."""

import asyncio
import functools
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bluez import figures
from tests.bluez.links import read
from tests.bluez.peripheral import ADDRESS
from tests.bluez.stack import EDGE, LIMIT_S, Stack
from transport.links.base import Endpoint, connect
from transport.links.bluez_bus import forget
from transport.links.gatt import VALUE_MAX
from transport.links.radio import OpenRadio

BULK = 200 * VALUE_MAX  # bytes
PEER = "bluez-peripheral 0.2.0a5"
_DEVICE = f"/org/bluez/hci{EDGE}/dev_{ADDRESS.replace(':', '_')}"


class Process:
    """tests/bluez/peripheral.py at work."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, expected: str) -> None:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), LIMIT_S * 2)
        assert line.decode().strip() == expected, line

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")


@asynccontextmanager
async def peripheral(which: str) -> AsyncIterator[Process]:
    await forget(_DEVICE)  # services of the one before
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bluez.peripheral", which,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )
    try:
        made = Process(process)
        await made.says("ready")
        yield made
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.wait_for(process.wait(), LIMIT_S)


async def rates(which: str) -> tuple[float, float]:
    """Bytes a second in and out of this peripheral, by the central that ships."""
    radio = OpenRadio(adapter=f"hci{EDGE}")
    async with peripheral(which) as process:
        link = await connect(Endpoint("ble", ""), radio=radio, timeout_s=LIMIT_S)
        begun = time.monotonic()
        process.ask(f"take {BULK}")
        await link.send(random.Random(1).randbytes(BULK))
        await process.says("done")
        into, begun = BULK / (time.monotonic() - begun), time.monotonic()
        process.ask(f"give {BULK}")
        await read(link, BULK)
        out = BULK / (time.monotonic() - begun)
        await process.says("done")
        await link.close()
        await radio.close()
    return into, out


async def beside_peer(stack: Stack, rounds: int) -> str:
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(await rates("ours"))
        theirs.append(await rates("peer"))
    return "; ".join(
        figures.show(f"a peripheral on BlueZ, {way}", [one[at] for one in mine], [one[at] for one in theirs], PEER)
        for at, way in enumerate(("in", "out")))


STEPS = {
    "beside-peer": functools.partial(beside_peer, rounds=5),
    "beside-peer-twice": functools.partial(beside_peer, rounds=2),
}
