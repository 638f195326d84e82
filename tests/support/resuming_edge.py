"""A device that loses its link in the middle of an answer and comes back for the rest; and that answer."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.gateway_lab import chat
from tests.support.memory_link import MemoryLink
from tests.support.mock_provider import chunk
from tests.support.session_lab import Lab
from transport.edge_session import EdgeSession, RemoteAnswer
from transport.errors import LinkLost, RequestRefused, StreamEnded
from transport.events import EventEncoder
from transport.identity.svid import Svid
from transport.messages import RequestHeader, encode_header
from transport.primitives import random_bytes
from transport.stream import Progress
from transport.tickets import Wallet

STREAM = [chunk(f"{number} " + "x" * 900) for number in range(300)] + [b"data: [DONE]\n\n"]
_encoder = EventEncoder()
_HELD = _encoder.feed(STREAM[0] + STREAM[1])
HELD = len(_HELD)  # what comes of what a provider in mode stream_stall gives before it waits
WHOLE = _HELD + _encoder.feed(b"".join(STREAM[2:])) + _encoder.finish()


@dataclass
class Edge:
    """A device with one request, which it asks for over as many links as it takes."""

    lab: Lab
    svid: Svid
    body: bytes = field(default_factory=lambda: chat(stream=True))
    request_id: bytes = field(default_factory=lambda: random_bytes(16))
    progress: Progress = field(default_factory=Progress)
    wallet: Wallet = field(default_factory=Wallet)
    got: bytes = b""
    link: MemoryLink | None = None
    session: EdgeSession | None = None
    answer: RemoteAnswer | None = None  # the latest one that was taken from

    def __post_init__(self) -> None:
        self.header = encode_header(RequestHeader(
            "POST", "/v1/chat/completions", "application/json", "", len(self.body), int(time.time()) + 600
        ))

    @classmethod
    async def joined(cls, lab: Lab, name: str = "lap-1") -> "Edge":
        return cls(lab, await lab.device(name))

    async def connect(self, before: Callable[[EdgeSession], RemoteAnswer] | None = None) -> RemoteAnswer | None:
        """A new session, by ticket if there is one; `before` asks early."""
        self.link = self.lab.link()
        ticket = self.wallet.take(time.time())
        session = self.lab.unopened(self.link, self.svid, ticket)
        answer = None if before is None else before(session)
        self.session = await session.open()
        self.wallet.put(session.tickets)
        return answer

    def open(self, session: EdgeSession) -> RemoteAnswer:
        return session.request(self.request_id, self.header, self.body, self.progress)

    def resume(self, session: EdgeSession) -> RemoteAnswer:
        return session.resume(self.request_id, self.progress)

    async def ask(self) -> RemoteAnswer:
        answer = await self.connect(self.open)
        assert answer is not None
        return answer

    async def come_back(self) -> RemoteAnswer:
        answer = await self.connect(self.resume)
        assert answer is not None
        return answer

    async def take(self, answer: RemoteAnswer, upto: int | None = None) -> None:
        """Reads to the end, or until there are `upto` bytes in all."""
        if answer is not self.answer:
            self.answer = await answer.started()
        async for data in answer:
            self.got += data
            if upto is not None and len(self.got) >= upto:
                return

    async def cut(self) -> None:
        """Breaks the link, and keeps what had come by then."""
        assert self.link is not None
        await self.link.abort()
        if self.answer is not None:
            with contextlib.suppress(LinkLost, StreamEnded):
                await self.take(self.answer)

    async def finish(self) -> None:
        assert self.session is not None
        await self.session.close()


async def refused(answer: RemoteAnswer) -> tuple[int, str, bool]:
    with pytest.raises(RequestRefused) as caught:
        async for _ in await answer.started():
            pass
    return caught.value.status, caught.value.reason, caught.value.may_retry


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop turn until something is true; the fixture's time-out is the limit."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)
