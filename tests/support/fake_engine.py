"""Stand-ins for the models and the gateway: what they are told is kept, what they say is scripted."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_client.engine.base import EMBEDDER_TOKENS, Finished, Message, Sampling, Text
from edge_client.errors import BadUse, EdgeError


class FakeChat:
    """Says `words`, one event each. With `endless` it goes on until it is closed; `error` is raised after the words."""

    def __init__(
        self, words: Sequence[str] = ("Six", " bar."), *, name: str = "local", endless: bool = False,
        error: EdgeError | None = None,
    ) -> None:
        self.words, self.endless, self.error = list(words), endless, error
        self.reason: Literal["stop", "length"] = "stop"
        self.dropped = 0
        self._name = name
        self.asked: list[tuple[Message, ...]] = []
        self.sampled: list[Sampling] = []
        self.said = 0
        self.began, self.closed = asyncio.Event(), asyncio.Event()

    @property
    def name(self) -> str:
        return self._name

    async def load(self) -> None:
        pass

    async def generate(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncGenerator[Text | Finished, None]:
        self.asked.append(tuple(messages))
        self.sampled.append(sampling)
        try:
            while True:
                for word in self.words:
                    self.said += 1
                    self.began.set()
                    yield Text(word)
                    await asyncio.sleep(0)
                if not self.endless:
                    break
            if self.error is not None:
                raise self.error
            yield Finished(self.reason, 7, len(self.words), self.dropped)
        finally:
            self.closed.set()


class FakeEmbedder:
    """Texts that share words lie close: each word has a random direction, a text is the sum of its words'."""

    model_id = "fake-embedder"

    def __init__(self) -> None:
        self.embedded = 0

    def count(self, text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text))

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), 384), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if self.count(text) > EMBEDDER_TOKENS:
                raise BadUse("too long to embed")
            self.embedded += 1
            for word in set(re.findall(r"\w+", text.lower())) or {""}:
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
                row += np.random.default_rng(seed).standard_normal(384).astype(np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class FakeAnswer:
    def __init__(self, status: int, content_type: str, parts: Sequence[bytes], via: str) -> None:
        self.status, self.content_type, self.via = status, content_type, via
        self._parts = parts
        self.finished = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for part in self._parts:
            yield part
        self.finished = True


class FakeRelay:
    """A gateway that answers every request alike."""

    error: Exception | None = None  # instead of an answer

    def __init__(
        self, parts: Sequence[bytes] | None = None, *, status: int = 200, content_type: str = "text/event-stream",
        via: str = "spiffe://field.example/hop/pi-1", granted: Sequence[str] = ("cloud-model",),
    ) -> None:
        self._parts = sse("It ", "stands.") if parts is None else parts
        self._status, self._content_type, self._via, self._granted = status, content_type, via, list(granted)
        self.requests: list[tuple[str, str, bytes]] = []
        self.reported: list[str] = []
        self.last: FakeAnswer | None = None

    async def request(self, method: str, route: str, body: bytes) -> FakeAnswer:
        self.requests.append((method, route, body))
        if self.error is not None:
            raise self.error
        self.last = FakeAnswer(self._status, self._content_type, self._parts, self._via)
        return self.last

    async def models(self) -> list[str]:
        return self._granted

    def report(self, trace_id: str) -> None:
        self.reported.append(trace_id)

    async def close(self) -> None:
        pass


def sse(*texts: str) -> list[bytes]:
    """A streamed answer as a provider sends it, one part an event."""
    deltas = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    last = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": len(texts), "total_tokens": 5 + len(texts)},
    }
    events = [f"data: {json.dumps(event)}\n\n".encode() for event in (*deltas, last)]
    return [*events, b"data: [DONE]\n\n"]
