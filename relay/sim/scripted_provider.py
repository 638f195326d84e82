"""A provider that answers from a script, in process: numbered prompts, token by token, at a given rate.

Its texts are a function of the seed and the prompt's number, so that whoever reads an answer can tell whether it is
whole; it remembers when it wrote each token, and how often it was asked.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from relay.gateway.pipeline import Answer
from relay.sim.scenario import Prompts, seconds
from transport.primitives import Secret

MODEL: Final = "scripted"
_WORDS: Final = ("the", "pump", "valve", "of", "a", "is", "closed", "to", "bar", "at", "pressure", "check", "oil")


class ScriptedProvider:
    """An `Upstream`. By the prompt's number, `accepted` counts calls, and `written` has (end offset, loop time)."""

    name = "scripted"
    host = "scripted.invalid"

    def __init__(self, prompts: Prompts, seed: int) -> None:
        self._prompts, self._seed = prompts, seed
        self.accepted: Counter[int] = Counter()
        self.written: dict[int, list[tuple[int, float]]] = {}

    def body(self, number: int) -> bytes:
        """The request of prompt `number`, its text filled up to the size that was asked for."""
        text = f"prompt {number} "
        text += "x" * max(0, self._prompts.size - len(text))
        return json.dumps(
            {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}
        ).encode()

    def number_of(self, body: bytes) -> int:
        """Of a request that `body` made."""
        return int(json.loads(body)["messages"][0]["content"].split()[1])

    def events(self, number: int) -> list[bytes]:
        """The whole answer, an event a token."""
        dice = random.Random(f"{self._seed} answer {number}")  # noqa: S311  # a text, not a key
        count = max(1, round(self._prompts.tokens * dice.uniform(0.5, 1.5)))
        tokens = [" " + dice.choice(_WORDS) for _ in range(count)]
        head = f'data: {{"id":"c{number}","object":"chat.completion.chunk","model":"{MODEL}","choices":[{{"index":0,'
        events = [f'{head}"delta":{{"content":{json.dumps(token)}}},"finish_reason":null}}]}}\n\n' for token in tokens]
        return [event.encode() for event in events] + [b"data: [DONE]\n\n"]

    @asynccontextmanager
    async def call(
        self, route: str, body: bytes, *, stream: bool, key: Secret | None, **_: object
    ) -> AsyncIterator[Answer]:
        number = self.number_of(body)
        self.accepted[number] += 1
        yield Answer(200, "text/event-stream", stream, self._stream(number))

    async def ping(self, *, key: Secret | None) -> tuple[int, bool]:
        return 200, True

    async def _stream(self, number: int) -> AsyncIterator[bytes]:
        loop, offset = asyncio.get_running_loop(), 0
        self.written[number] = written = []
        due = loop.time() + seconds(self._prompts.first)
        for event in self.events(number):
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += 1 / self._prompts.rate
            offset += len(event)
            written.append((offset, loop.time()))
            yield event

    async def close(self) -> None:
        pass
