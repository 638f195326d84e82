"""Run as `python -m tests.support.radio_process serve|hop|edge PATH`: one process each of a virtual radio's users.

`edge` prints a line for each step; `alone` is all three in one process, to be run where there is no network.
"""

import asyncio
import sys

from bleak.exc import BleakError

from tests.support.plain_gatt import UP, Peripheral, connected, find
from transport.links.virtual_bleak import bleak_backend
from transport.links.virtual_join import join_radio, serve_radio


async def serve(path: str) -> None:
    server = await serve_radio(path, "1m", seed=1)
    print("serving", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await server.close()


async def hop(path: str) -> None:
    device = await join_radio(path, "hop")
    peripheral = Peripheral(device)
    await peripheral.advertise("hop")
    print("advertising", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await device.close()


async def edge(path: str) -> None:
    device = await join_radio(path, "edge")
    async with connected(device) as client:
        print("connected", flush=True)
        await client.write_gatt_char(UP, bytes(495), response=False)
        await client.write_gatt_char(UP, b"over", response=True)
        print("written", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for step in (client.write_gatt_char(UP, b"x", response=True), find(bleak_backend(device))):
            try:
                await step
                print("no error", flush=True)
            except BleakError as error:
                print(type(error).__name__, flush=True)
    await device.close()


async def alone(path: str) -> None:
    server = await serve_radio(path, "1m", seed=1)
    device = await join_radio(path, "hop")
    peripheral = Peripheral(device)
    await peripheral.advertise("hop")
    other = await join_radio(path, "edge")
    async with connected(other) as client:
        await client.write_gatt_char(UP, b"over", response=True)
    print(peripheral.size, flush=True)
    for end in (other, device, server):
        await end.close()


if __name__ == "__main__":
    role, path = sys.argv[1:]
    asyncio.run({"serve": serve, "hop": hop, "edge": edge, "alone": alone}[role](path))
