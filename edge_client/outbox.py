"""Prompts on their way: on stable storage before they are sent, with a visible outcome after.

A row's payload is the header as it was sent, byte for byte, and the body, so that sending it again is the same request.
"""

import msgspec

from store.queue import Queue


class _Payload(msgspec.Struct, array_like=True, frozen=True):
    header: bytes
    body: bytes

    def __repr__(self) -> str:
        return "<outbox payload>"


class Outbox:
    """The outbox rows of this device. Times in unix seconds; all methods raise StoreError."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def accept(self, request_id: bytes, header: bytes, body: bytes, *, now: int, expires_at: int) -> None:
        """Stores a request and marks it as being sent. From here on it has an outcome whatever happens."""
        await self._queue.append(request_id, msgspec.msgpack.encode(_Payload(header, body)), expires_at, now=now)
        await self._queue.claim(now=now, id=request_id)

    async def done(self, request_id: bytes) -> None:
        """The whole answer has arrived; the prompt is erased."""
        await self._queue.settle(request_id, "done", erase=True)

    async def failed(self, request_id: bytes, code: str) -> None:
        """No answer will come, and no provider accepted the request; the prompt is kept."""
        await self._queue.settle(request_id, "failed", note=code)

    async def interrupted(self, request_id: bytes, code: str) -> None:
        """The session ended before the answer was whole: whether a provider was called is not known."""
        await self._queue.settle(request_id, "interrupted", note=code)

    async def counts(self) -> dict[str, int]:
        """Rows by state, `done` left out."""
        found: dict[str, int] = {}
        for row in await self._queue.list(("waiting", "sent", "failed", "interrupted", "expired")):
            found[row.state] = found.get(row.state, 0) + 1
        return found
