"""A Bluetooth radio without Bluetooth: everybody who holds the same one is in reach, over memory links."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.memory_link import MemoryLink, memory_links
from transport.errors import LinkLost, LostReason
from transport.links.base import Endpoint, Link


class FakeRadio:
    """`fails` is what the next connections, also of phones, end with. Each central has an address of its own, unless
    `address` says.
    """

    def __init__(self) -> None:
        self.connects: list[str] = []
        self.worked_peers: list[str] = []
        self.closed = 0
        self.address = ""
        self.fails: list[LostReason] = []
        self.rfcomm: Any = None
        self._listeners: dict[str, FakeListener] = {}

    async def connect(self, name: str, *, timeout_s: float) -> Link:
        self.connects.append(name)
        if self.fails:
            raise LinkLost("the radio is not there", reason=self.fails.pop(0))
        for known, listener in self._listeners.items():
            if name in ("", known):
                return listener.accept(self.address or f"ble:{len(self.connects):02X}:00:00:00:00:00")
        raise LinkLost("no hop is in reach", reason="out_of_range")

    async def wait_for_phone(self, name: str, *, timeout_s: float) -> Link:
        self.connects.append(f"phone:{name}")
        if self.fails:
            raise LinkLost("no phone has come", reason=self.fails.pop(0))
        ours, _ = memory_links()
        ours.peer = "phone:00:00:00:00:00:01"
        return ours

    async def listen(self, on_link: Callable[[Link], Awaitable[None]], *, name: str) -> "FakeListener":
        self._listeners[name] = listener = FakeListener(on_link, name)
        return listener

    def worked(self, peer: str) -> None:
        self.worked_peers.append(peer)

    async def close(self) -> None:
        self.closed += 1


class FakeListener:
    def __init__(self, on_link: Callable[[Link], Awaitable[None]], name: str) -> None:
        self.endpoint = Endpoint("ble", name)
        self._on_link = on_link
        self._running: set[asyncio.Task[None]] = set()

    def accept(self, peer: str) -> MemoryLink:
        ours, theirs = memory_links()
        ours.peer, theirs.peer = f"ble:hop {self.endpoint.address}", peer
        self._running.add(task := asyncio.create_task(self._run(theirs)))
        task.add_done_callback(self._running.discard)
        return ours

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, link: MemoryLink) -> None:
        try:
            await self._on_link(link)
        finally:
            await link.close()
