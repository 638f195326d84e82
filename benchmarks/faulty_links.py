"""What is done to one prompt of the fault campaign, drawn from a seed, and links that do it."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.support.memory_link import MemoryLink
from transport.errors import CloseReason, LinkLost

# Bytes of one direction after which a fault strikes: frame 1 or 2, record 0, the request, early and late in the answer.
CLASSES: Final = ((1, 1_252), (1_253, 2_300), (2_301, 3_500), (3_501, 6_000), (6_001, 20_000))


@dataclass
class Plan:
    """What is done to one prompt. `links` holds a (fault, direction, byte) for each of the first links it takes."""

    links: list[tuple[str, str, int]] = field(default_factory=list)
    kill: str = ""  # "edge", "gateway", "journal"
    kill_after: int = 0  # bytes of the answer that the reader has had

    @classmethod
    def draw(cls, dice: random.Random) -> "Plan":
        plan = cls()
        for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
            low, high = dice.choice(CLASSES)
            fault = dice.choice(("cut", "cut", "stall", "duplicate", "corrupt", "reorder"))
            plan.links.append((fault, dice.choice(("up", "down")), dice.randint(low, high)))
        if dice.random() < 0.12:
            plan.kill = dice.choice(("edge", "edge", "gateway", "journal"))
            plan.kill_after = dice.choice((0, 0, dice.randint(1, 6_000)))
        return plan


class FaultyLink:
    """A link that does one thing at one byte of one direction; `cut` is told when it breaks."""

    def __init__(self, link: MemoryLink, fault: str, direction: str, at: int, cut: Callable[[], None]) -> None:
        self.peer = link.peer
        self._link, self._fault, self._direction, self._left, self._cut = link, fault, direction, at, cut

    async def send(self, data: bytes) -> None:
        for part in await self._bend("up", data):
            await self._link.send(part)

    async def receive(self) -> bytes:
        while True:
            data = await self._link.receive()
            if not data:
                return data
            if bent := b"".join(await self._bend("down", data)):
                return bent

    async def close(self, reason: CloseReason = "done") -> None:
        await self._link.close(reason)

    async def abort(self) -> None:
        await self._link.abort()

    async def _bend(self, direction: str, data: bytes) -> list[bytes]:
        if direction != self._direction or not self._fault:
            return [data]
        if self._left >= len(data):
            self._left -= len(data)
            return [data]
        at, fault = self._left, self._fault
        self._fault = ""
        if fault == "reorder":
            return [data[at:], data[:at]] if at else [data[1:], data[:1]]
        if fault == "duplicate":
            return [data, data]
        if fault == "corrupt":
            return [data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]]
        if fault == "stall":
            await asyncio.sleep(0.002)
        if direction == "up" and at:
            with contextlib.suppress(LinkLost):
                await self._link.send(data[:at])
        self._cut()
        await self._link.abort()
        raise LinkLost("the link was cut")
