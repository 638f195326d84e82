"""Records every byte that passes one place: `capture.py --listen ENDPOINT --to ENDPOINT --out FOLDER`.

Sits between two programs as a relay that cannot do anything but copy, and writes what passes to files in FOLDER, one
for each direction of each connection. Endpoints are `unix:PATH` or `tcp:HOST:PORT`. Prints `capture: ready` when
listening and runs until it is ended. The files are what an attacker at that place would hold.
"""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import BinaryIO

CHUNK = 65536


async def connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    scheme, _, address = endpoint.partition(":")
    if scheme == "unix":
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, out: BinaryIO) -> None:
    """One direction, until its end; each chunk is on file before it is passed on."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK):
            out.write(data)
            out.flush()
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def serve(listen: str, to: str, path: Path) -> None:
    # One file for each direction of each connection: interleaving would tear words apart and hide them from a search.
    # A search then reads the files of the folder, each a gapless stream.
    count = 0

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        number = count
        try:
            far_reader, far_writer = await connect(to)
        except OSError:
            writer.close()
            return
        with (path / f"{number:03}.out").open("wb") as out, (path / f"{number:03}.back").open("wb") as back:
            await asyncio.gather(copy(reader, far_writer, out), copy(far_reader, writer, back))
        for end in (writer, far_writer):
            end.close()

    scheme, _, address = listen.partition(":")
    if scheme == "unix":
        server = await asyncio.start_unix_server(relay, address)
    else:
        host, _, port = address.rpartition(":")
        server = await asyncio.start_server(relay, host, int(port))
    print("capture: ready", flush=True)
    async with server:
        await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description="Copies bytes between two endpoints and keeps what it saw.")
    parser.add_argument("--listen", required=True, metavar="ENDPOINT")
    parser.add_argument("--to", required=True, metavar="ENDPOINT")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    arguments.out.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.listen, arguments.to, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
