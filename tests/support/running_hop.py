"""A hop that serves in this process, and connections to it from wherever a test likes."""

import asyncio
from collections.abc import Sequence

from relay.hop.app import Hop, HopLimits
from relay.hop.identity import HopHome, HopIdentity
from transport.links.base import Endpoint, Link, Radio, connect

LIMIT = 60.0


class Running:
    """A hop that serves, its lines and its address."""

    def __init__(self, home: HopHome, identity: HopIdentity, url: str | list[str], *listen: str,
                 radio: Radio | None = None, announce: bool = False, **limits: object) -> None:
        self.lines: list[str] = []
        self.ready = asyncio.Event()
        self.stop = asyncio.Event()
        self.changed = asyncio.Condition()
        urls = [url] if isinstance(url, str) else url
        self.hop = Hop(home, identity, urls, limits=HopLimits(**limits), report=self._report)  # type: ignore[arg-type]
        self.listen: Sequence[Endpoint] = [Endpoint.parse(text) for text in listen or ["tcp:127.0.0.1:0"]]
        self.radio, self.announce = radio, announce

    def _report(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith("hop ready"):
            self.ready.set()

    async def __aenter__(self) -> "Running":
        serving = self.hop.run(self.listen, self.stop, radio=self.radio, announce=self.announce)
        self.task = asyncio.create_task(serving)
        await asyncio.wait_for(self.ready.wait(), LIMIT)
        self.endpoint = Endpoint.parse(self.lines[0].rpartition(" ")[2])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, LIMIT)

    async def connect(self) -> Link:
        return await connect(self.endpoint)


async def read(link: Link, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await link.receive()
        assert part
        data += part
    return data


async def dial(running: Running, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from an address of its own; every one in 127.0.0.0/8 is this machine's."""
    return await asyncio.open_connection(*running.endpoint.host_port(), local_addr=(host, 0))
