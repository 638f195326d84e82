"""Who gets the local model next, and who is told that there are too many; without a model."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from edge_client.engine.base import Finished, Message, Sampling, Text
from edge_client.engine.llama import LlamaChat
from edge_client.errors import EngineBusy


class Gated(LlamaChat):
    """Answers with the question, once `gate` is open."""

    def __init__(self) -> None:
        super().__init__(Path, name="gated", context=512)
        self.gate = asyncio.Event()
        self.order: list[str] = []

    async def _answer(
        self, messages: tuple[Message, ...], sampling: Sampling
    ) -> AsyncGenerator[Text | Finished, None]:
        self.order.append(messages[-1].content)
        await self.gate.wait()
        yield Finished("stop", 1, 1)


async def ask(chat: LlamaChat, content: str) -> int:
    async with contextlib.aclosing(chat.generate([Message("user", content)], Sampling())) as events:
        return len([event async for event in events])


async def test_first_come_first_served_and_who_goes_leaves_the_line() -> None:
    chat = Gated()
    asked = [asyncio.ensure_future(ask(chat, str(number))) for number in range(6)]
    await asyncio.sleep(0)
    asked[2].cancel()
    asked[0].cancel()
    chat.gate.set()
    await asyncio.wait(asked)
    assert chat.order == ["0", "1", "3", "4", "5"]
    assert await ask(chat, "again") == 1, "nobody holds the turn any more"


async def test_too_many_are_refused_until_there_is_room() -> None:
    chat = Gated()
    asked = [asyncio.ensure_future(ask(chat, "x")) for _ in range(65)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusy) as caught:
        await ask(chat, "one too many")
    assert caught.value.retryable and caught.value.hint
    chat.gate.set()
    assert await asyncio.gather(*asked) == [1] * 65
    assert await ask(chat, "x") == 1
