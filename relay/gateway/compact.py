"""A sink that writes streamed answers in the compact form of the session, so that the journal keeps no more either."""

from relay.gateway.pipeline import Refusal, Sink
from transport.events import CONTENT_TYPE, PLAIN_TYPE, EventEncoder


class Compact:
    """Passes an answer of server-sent events on to `sink` as `transport.events` has it, and all else unchanged."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._encoder: EventEncoder | None = None

    async def calling(self) -> None:
        await self._sink.calling()

    async def begin(self, status: int, content_type: str, *, streamed: bool) -> None:
        if streamed and content_type == PLAIN_TYPE:
            self._encoder, content_type = EventEncoder(), CONTENT_TYPE
        await self._sink.begin(status, content_type, streamed=streamed)

    async def write(self, data: bytes) -> None:
        if self._encoder is not None:
            data = self._encoder.feed(data)
        if data:
            await self._sink.write(data)

    async def end(self) -> None:
        if self._encoder is not None and (rest := self._encoder.finish()):
            await self._sink.write(rest)
        await self._sink.end()

    async def refuse(self, refusal: Refusal) -> None:
        await self._sink.refuse(refusal)
