"""Four kilobytes over a modelled Bluetooth link that breaks after three of them; two seconds pass in no time."""

import asyncio

from transport.errors import LinkLost
from transport.links import simulated, virtual_time


async def main() -> None:
    edge, hop = simulated.pair("ble-1m?cut_bytes=3000", seed=7)
    sending = asyncio.create_task(edge.send(bytes(4096)))
    try:
        while data := await hop.receive():
            print(f"{virtual_time.wall():.3f} s: {len(data)} bytes")
    except LinkLost as error:
        print(f"{virtual_time.wall():.3f} s: {error.reason}")
    await asyncio.gather(sending, edge.close(), hop.close(), return_exceptions=True)


virtual_time.run(main(), start=0)
