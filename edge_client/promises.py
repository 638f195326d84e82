"""Questions that were put into the outbox for later, and their answers, which wait here until somebody reads them.

A promise says that the outbox row of its id is to be sent when there is a way to the gateway. An answer is kept before
the outbox says `done`, and so before the gateway may forget it.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from edge_client.errors import BadUse
from edge_client.outbox import short
from store.settings import Settings

__all__ = ["ANSWERS", "PROMISES", "Kept", "KeptAnswer", "Promises"]

PROMISES: Final = "promises"  # namespaces of store.settings
ANSWERS: Final = "kept answers"
_QUEUED_MAX: Final = 1000
_ANSWERS_MAX: Final = 500
_ANSWERS_KEPT_S: Final = 30 * 24 * 3600
_TEXT_MAX: Final = 900 << 10  # bytes; a setting holds 1 MiB
_QUESTION_MAX: Final = 400  # characters
_UNBORN_S: Final = 60  # a promise is written before its row, which follows within so many seconds or never


class Kept(msgspec.Struct, frozen=True):
    """One answer; `failure` says instead why there is none. `at` in unix seconds, `via` a SPIFFE ID or empty."""

    at: int
    question: str
    text: str
    via: str = ""
    trace_id: str = ""
    finish_reason: str = ""
    failure: str = ""


@dataclass(frozen=True)
class KeptAnswer:
    id: bytes
    kept: Kept

    @property
    def name(self) -> str:
        return short(self.id)


_decoder: Final = msgspec.msgpack.Decoder(Kept)


class Promises:
    """All methods raise StoreError."""

    def __init__(self, promises: Settings, answers: Settings) -> None:
        self._promises, self._answers = promises, answers

    async def promise(self, request_id: bytes, *, now: int) -> None:
        """To be called before the row enters the outbox. Raises BadUse if 1,000 wait already."""
        if len(await self._promises.items()) >= _QUEUED_MAX:
            raise BadUse(f"{_QUEUED_MAX} questions wait already", hint="`edge outbox` lists them, `cancel` drops one")
        await self._promises.put(request_id.hex(), str(now).encode())

    async def promised(self) -> dict[bytes, int]:
        """The ids, each with when it was promised."""
        return {bytes.fromhex(name): int(at) for name, at in await self._promises.items()}

    async def settled(self, request_id: bytes, promised_at: int, *, now: int) -> None:
        """Nothing of this id waits in the outbox, unless its row is just about to be written."""
        if now - promised_at >= _UNBORN_S:
            await self._promises.delete(request_id.hex())

    async def keep(self, request_id: bytes, answer: Kept) -> None:
        """Keeps an answer, cut to 900 KiB, for 30 days or until 500 newer ones have come, and ends its promise."""
        text = answer.text.encode()
        if len(text) > _TEXT_MAX:
            answer = msgspec.structs.replace(
                answer, text=text[:_TEXT_MAX].decode("utf-8", "ignore"), finish_reason="length"
            )
        answer = msgspec.structs.replace(answer, question=answer.question[:_QUESTION_MAX])
        await self._answers.put(request_id.hex(), msgspec.msgpack.encode(answer))
        newest_first = sorted(await self.answers(), key=lambda one: -one.kept.at)
        for place, one in enumerate(newest_first):
            if place >= _ANSWERS_MAX or one.kept.at < answer.at - _ANSWERS_KEPT_S:
                await self.drop(one.id)
        await self._promises.delete(request_id.hex())

    async def answers(self) -> list[KeptAnswer]:
        """Oldest first, by the second."""
        found = [KeptAnswer(bytes.fromhex(name), _decoder.decode(value)) for name, value in await self._answers.items()]
        return sorted(found, key=lambda one: one.kept.at)

    async def find(self, prefix: str) -> KeptAnswer | None:
        """The answer whose id (hex) begins so; None if none does. Raises BadUse if more than one does."""
        wanted = prefix.strip().lower()
        found = [one for one in await self.answers() if wanted and one.id.hex().startswith(wanted)]
        if len(found) > 1:
            raise BadUse(f"{len(found)} answers have an id that begins so", hint="give more of its digits")
        return found[0] if found else None

    async def drop(self, request_id: bytes) -> None:
        await self._answers.delete(request_id.hex())
