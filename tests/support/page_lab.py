"""A loopback server with its chat page, in front of a real store and of stand-ins for models and gateway."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

from aiohttp import web

from edge_client.answering import Assistant
from edge_client.api.names import Names
from edge_client.api.page import Behind, Page
from edge_client.api.server import make_runner
from edge_client.errors import NoStore
from edge_client.history import NAMESPACE, History
from edge_client.ingest import Ingest
from edge_client.offline import Queued
from edge_client.outbox import Outbox
from edge_client.promises import ANSWERS, PROMISES, Promises
from edge_client.retrieval import Retrieval
from edge_client.ways import LinkPicture, Way
from store.documents import Documents
from store.errors import StoreLocked
from store.queue import Queue
from store.search import Search
from store.settings import Settings
from tests.support.fake_engine import FakeAnswer, FakeChat, FakeEmbedder, FakeRelay, sse
from tests.support.stores import open_store
from transport import telemetry
from transport.messages import RequestHeader, encode_header

TOKEN = "t" * 43


class SteppedChat(FakeChat):
    """Goes on to the next word when `gate` is set, so that a stream can be looked at in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def generate(self, messages, sampling):  # type: ignore[no-untyped-def]
        async with contextlib.aclosing(super().generate(messages, sampling)) as events:
            async for event in events:
                yield event
                await self.gate.wait()


class RetriedAnswer(FakeAnswer):
    trace_id = "5" * 32
    gate: asyncio.Event

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        async for part in super().chunks():
            yield part
            await self.gate.wait()


class FakeWay(FakeRelay):
    """A gateway whose link is what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.link: tuple[Literal["up", "down", "idle"], str] = ("up", "spiffe://field.example/hop/pi-1")
        self.endpoint = "tcp:192.168.7.20:7443"
        self.sent, self.received = 2_345, 67_890
        self.reached = 0
        self.outbox: Outbox | None = None
        self.retry_error: Exception | None = None
        self.gate = asyncio.Event()  # clear it, and a retried answer stops after its first word
        self.gate.set()

    def picture(self) -> LinkPicture:
        state, via = self.link
        up = state == "up"
        ways = [Way(self.endpoint, "worked" if up else "failed", 84), Way("ble:", "untried", None)]
        return LinkPicture(state, via, self.endpoint if up else "", 0.084, self.sent, self.received, ways)

    async def reach(self) -> str:
        self.reached += 1
        return self.endpoint

    async def retry(self, request_id: bytes) -> RetriedAnswer:
        if self.retry_error is not None:
            raise self.retry_error
        assert self.outbox is not None
        await self.outbox.done(request_id)
        answer = RetriedAnswer(200, "text/event-stream", sse("Rest ", "and drink."), "spiffe://field.example/hop/pi-1")
        answer.gate = self.gate
        return answer

    async def cancel(self, request_id: bytes) -> bool:
        assert self.outbox is not None
        await self.outbox.cancel(request_id)
        await self.outbox.erase(request_id)
        return True


class LaterWay(FakeRelay):
    """As edge_client.offline.Later, without a gateway's client."""

    def __init__(self, lab: "Lab") -> None:
        super().__init__()
        self._lab = lab

    async def request(self, method: str, route: str, body: bytes) -> FakeAnswer:
        now = int(time.time())
        header = encode_header(RequestHeader(method, route, "application/json", "", len(body), now + 3600))
        id = hashlib.sha256(body).digest()[:16]
        await self._lab.promises.promise(id, now=now)
        await self._lab.outbox.accept(id, header, body, now=now, expires_at=now + 3600)
        raise Queued(id, now + 3600)


class Lab:
    def __init__(self, folder: Path, tracing: telemetry.Telemetry) -> None:
        self.database = open_store(folder / "store.db")
        self.chat, self.relay, self.embedder = SteppedChat(), FakeWay(), FakeEmbedder()
        self.documents = Documents(self.database)
        self.outbox = self.relay.outbox = Outbox(Queue(self.database, "outbox"))
        self.history = History(Settings(self.database, NAMESPACE))
        self.promises = Promises(Settings(self.database, PROMISES), Settings(self.database, ANSWERS))
        self.told: list[str] = []
        self._tracing = tracing
        self.page = Page(
            Behind(
                documents=lambda: self.documents, outbox=lambda: self.outbox, relay=self._way,
                promises=lambda: self.promises, later=self._later,
                history=lambda: self.history, ingest=self._ingest,
            ),
            TOKEN, self.told.append,
        )
        alone = Assistant(chat=self.chat, retrieval=None, relay=None, tracing=tracing)
        self.runner = make_runner(
            Names(alone=alone, auto=self._auto, granted=self.relay.models), TOKEN, self.page
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _way(self) -> FakeWay:
        return self.relay

    async def _ingest(self) -> Ingest:
        return Ingest(self.documents, self.embedder)

    async def _auto(self) -> Assistant:
        retrieval = Retrieval(Search(self.database), self.embedder)
        return Assistant(chat=self.chat, retrieval=retrieval, relay=self.relay, tracing=self._tracing)

    async def _later(self) -> Assistant:
        return Assistant(chat=self.chat, retrieval=None, relay=LaterWay(self), tracing=self._tracing)

    def without_store(self) -> None:
        """From here on as before there is one."""

        async def ingest() -> Ingest:
            raise NoStore

        self.page._behind = replace(self.page._behind, store=lambda: "none", ingest=ingest)

    def lock(self) -> None:
        """From here on as when the store is locked."""

        def locked() -> NoReturn:
            raise StoreLocked("the store is locked", hint="`edge store unlock`")

        async def later() -> NoReturn:
            locked()

        self.page._behind = Behind(
            documents=locked, outbox=locked, promises=locked, history=locked, later=later, ingest=later, relay=later,
            store=lambda: "locked",
        )

    async def queue(self, number: int, question: str, *, now: int) -> bytes:
        """A question in the outbox that waits."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": question}]}).encode()
        header = RequestHeader("POST", "/v1/chat/completions", "application/json", "", len(body), now + 3600)
        id = bytes([number]) * 16
        await self.outbox.accept(id, encode_header(header), body, now=now, expires_at=now + 3600)
        return id


@contextlib.asynccontextmanager
async def page_lab(folder: Path) -> AsyncIterator[Lab]:
    tracing = telemetry.start("edge")
    lab = Lab(folder, tracing)
    await lab.runner.setup()
    try:
        await web.TCPSite(lab.runner, "127.0.0.1", 0).start()
        yield lab
    finally:
        lab.chat.gate.set()
        await lab.runner.cleanup()
        lab.database.close()
        tracing.close()
