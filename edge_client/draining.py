"""The outbox drains by itself: promised questions are sent in order when a gateway can be reached, answers are kept."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from edge_client.completions import ROUTE, AnswerReader, failure
from edge_client.errors import EdgeError, GaveUp, NotJoined, ProviderFailed
from edge_client.gateway_client import GatewayClient
from edge_client.outbox import Entry, question_of
from edge_client.promises import Kept, Promises
from edge_client.remote_answer import RemoteAnswer
from edge_client.sessions import Clock
from store.errors import StoreError
from transport.errors import TransportError
from transport.messages import decode_header
from transport.reconnect import pause, worth_retrying

__all__ = ["Drain"]

LOOK_S: Final = 5.0  # another process may have queued something
SELDOM_S: Final = 60.0  # where only a person can help: not joined, refused, no endpoint
_PAUSE_MIN_S: Final = 0.2
_RAW_MAX: Final = 8 << 20  # bytes of one answer as its provider sent it


class Drain:
    """Runs from `start` to `stop`. `tell` shows a person what happened."""

    def __init__(
        self, client: GatewayClient, promises: Promises, *, clock: Clock | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._client, self._promises = client, promises
        self._clock, self._tell = clock or Clock(), tell
        self._attempt = 0
        self._said = ""
        self._task: asyncio.Task[None] | None = None
        self._fetching = self._stopping = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Begins nothing more. An answer under way is left to the client's closing: to cancel it would be for good."""
        self._stopping = True
        if self._task is not None and not self._fetching:
            self._task.cancel()

    async def ended(self) -> None:
        """To be awaited after `stop` and the client's closing."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                wait = await self.step()
            except StoreError as error:  # such as a full disk
                wait = SELDOM_S
                if not self._stopping:
                    self._say(f"the queue stands still: {error}")
            if self._stopping:
                return
            await self._clock.sleep(wait)

    async def step(self) -> float:
        """Does what can be done now; seconds until it is worth looking again, as transport.reconnect says."""
        waiting = await self._waiting()
        if not waiting:
            return LOOK_S
        try:
            await self._client.reach()
        except NotJoined:
            return SELDOM_S
        except TransportError as error:
            if not worth_retrying(error):
                self._say(f"{len(waiting)} questions wait: {error}")
                return SELDOM_S
            self._attempt += 1
            return max(_PAUSE_MIN_S, pause(self._attempt - 1, self._clock.dice()))
        self._attempt, self._said = 0, ""
        for entry in waiting:
            if self._stopping:
                break
            self._fetching = True
            try:
                await self._fetch(entry)
            except GaveUp:
                return _PAUSE_MIN_S  # `reach` finds out how it is now; the order stays
            except (EdgeError, TransportError) as error:
                if not self._stopping:
                    self._tell(f"the queued question {entry.name} came to no answer: {error}")
            finally:
                self._fetching = False
        return LOOK_S

    async def _waiting(self) -> list[Entry]:
        """Promised questions in order. A promise whose row has an outcome is over."""
        promised = await self._promises.promised()
        if not promised:
            return []
        unsettled = {entry.id: entry for entry in await self._client.unsettled()}
        for request_id, at in promised.items():
            if request_id not in unsettled:
                await self._promises.settled(request_id, at, now=int(self._clock.now()))
        return [entry for id, entry in unsettled.items() if id in promised and _asks(entry)]

    async def _fetch(self, entry: Entry) -> None:
        answer: RemoteAnswer
        held = bytearray()

        async def keep() -> None:
            await self._promises.keep(entry.id, await self._read(entry, answer, bytes(held)))

        answer = await self._client.take_up(entry.id, keep=keep)
        async for chunk in answer.chunks():
            held += chunk[: _RAW_MAX - len(held)]
        self._tell(f"the answer to the queued question {entry.name} is here: `edge outbox show {entry.name}`")

    async def _read(self, entry: Entry, answer: RemoteAnswer, data: bytes) -> Kept:
        reader, pieces, why = AnswerReader(answer.content_type), list[str](), ""
        try:
            if answer.status != 200:
                raise await failure(answer.status, _once(data))
            async for text in reader.texts(_once(data)):
                pieces.append(text)
        except ProviderFailed as error:  # what there is may still help
            why = str(error)
        return Kept(
            int(self._clock.now()), question_of(entry), "".join(pieces), answer.via, answer.trace_id,
            reader.finish_reason, why,
        )

    def _say(self, text: str) -> None:
        """Once, until it was otherwise."""
        if text != self._said:
            self._said = text
            self._tell(text)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _asks(entry: Entry) -> bool:
    with contextlib.suppress(TransportError):
        return entry.header is not None and decode_header(entry.header).route == ROUTE
    return False
