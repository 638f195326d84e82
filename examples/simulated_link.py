"""Four kilobytes over a modelled Bluetooth link that breaks after three of them, in virtual time."""

import asyncio

from transport.errors import LinkLost
from transport.links import simulated, virtual_time


async def main() -> None:
    edge, hop = simulated.pair("ble-1m?cut_bytes=3000", seed=7)
    sending = asyncio.create_task(edge.send(bytes(4096)))
    got = 0
    try:
        while data := await hop.receive():
            got += len(data)
            print(f"{asyncio.get_running_loop().time() - 1000:.3f} s: {got} bytes")
    except LinkLost as error:
        print(f"{asyncio.get_running_loop().time() - 1000:.3f} s: {error.reason}")
    await asyncio.gather(sending, edge.close(), hop.close(), return_exceptions=True)


virtual_time.run(main())
