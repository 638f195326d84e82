"""Prompts on their way: on stable storage before they are sent, with a visible outcome after.

    accept            sent                 done | failed | interrupted | expired
    ------> waiting  ------> sent  ------->

A row's payload is the header as it was sent, byte for byte, and the body, so that sending it again is the same request.
Its mark is the gateway's journal epoch under which it was sent: under another one it must not be sent again, since the
gateway no longer knows what it has done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edge_client.errors import BadUse
from store.queue import Queue, Row, State

CANCELLED: Final = "cancelled"
_KEPT_S: Final = 7 * 24 * 3600  # a settled row stays visible for so long after its expiry
_UNSETTLED: Final = ("waiting", "sent")


class _Payload(msgspec.Struct, array_like=True, frozen=True):
    header: bytes
    body: bytes

    def __repr__(self) -> str:
        return "<outbox payload>"


@dataclass(frozen=True)
class Entry:
    """A request in the outbox. `header` and `body` are None once erased; times in unix seconds."""

    id: bytes
    state: State
    note: str
    epoch: bytes | None
    attempts: int
    created_at: int
    expires_at: int
    header: bytes | None
    body: bytes | None

    @property
    def name(self) -> str:
        """The id as people see it and may give it: 8 hex digits."""
        return short(self.id)

    def __repr__(self) -> str:
        return f"<outbox entry {self.name} {self.state}>"


class _Message(msgspec.Struct):
    content: str


class _Body(msgspec.Struct):
    messages: list[_Message]


def question_of(entry: Entry) -> str:
    """What was asked, on one line; empty if it is erased or no question."""
    try:
        return " ".join(msgspec.json.decode(entry.body or b"", type=_Body).messages[-1].content.split())
    except (msgspec.MsgspecError, IndexError):
        return ""


def short(request_id: bytes) -> str:
    return request_id[:4].hex()


class Outbox:
    """The outbox rows of this device. Times in unix seconds; all methods raise StoreError."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def accept(self, request_id: bytes, header: bytes, body: bytes, *, now: int, expires_at: int) -> None:
        """Stores a request. From here on it has an outcome, whatever happens."""
        await self._queue.append(request_id, msgspec.msgpack.encode(_Payload(header, body)), expires_at, now=now)

    async def sent(self, request_id: bytes, epoch: bytes, *, now: int) -> None:
        """To be called before a request's first byte leaves, with the epoch last told, and again if that changes."""
        if await self._queue.claim(now=now, id=request_id, mark=epoch) is None:
            await self._queue.mark(request_id, epoch)

    async def done(self, request_id: bytes) -> None:
        """The whole answer has arrived; the prompt is erased."""
        await self._queue.settle(request_id, "done", erase=True)

    async def failed(self, request_id: bytes, code: str) -> None:
        """No answer will come, and no provider accepted the request; the prompt is kept."""
        await self._queue.settle(request_id, "failed", note=code)

    async def interrupted(self, request_id: bytes, code: str) -> None:
        """No whole answer will come, and whether a provider was called is not known; the prompt is kept."""
        await self._queue.settle(request_id, "interrupted", note=code)

    async def cancel(self, request_id: bytes) -> None:
        """Nobody wants the answer any more; the prompt is erased. What was sent is `cancelled()` until confirmed."""
        row = await self._queue.get(request_id)
        if row is not None and row.state in _UNSETTLED:
            state: Final = "failed" if row.state == "waiting" else "interrupted"
            await self._queue.settle(request_id, state, note=CANCELLED, erase=True)
        elif row is not None:
            await self._queue.erase(request_id)

    async def cancelled(self, *, now: int) -> list[bytes]:
        """Requests whose cancellation the gateway has not confirmed, as far as it may still know them."""
        rows = await self._queue.list(("interrupted",))
        return [row.id for row in rows if row.note == CANCELLED and row.mark is not None and row.expires_at > now]

    async def cancel_confirmed(self, request_id: bytes) -> None:
        await self._queue.mark(request_id, None)

    async def erase(self, request_id: bytes) -> None:
        """Removes a settled request's prompt, which has been given to another request."""
        await self._queue.erase(request_id)

    async def expire(self, *, now: int) -> None:
        """Settles what has waited beyond its expiry, and forgets what settled long ago."""
        await self._queue.expire(now=now)
        await self._queue.forget(expired_before=now - _KEPT_S)

    async def entries(self, states: Sequence[State] = ("waiting", "sent", "failed", "interrupted", "expired")) -> (
        list[Entry]
    ):
        """What is under way or went wrong, in order of arrival; `done` only if asked for."""
        return [_entry(row) for row in await self._queue.list(states)]

    async def unsettled(self) -> list[Entry]:
        """What a restart has to take up again."""
        return await self.entries(_UNSETTLED)

    async def get(self, request_id: bytes) -> Entry | None:
        row = await self._queue.get(request_id)
        return None if row is None else _entry(row)

    async def find(self, prefix: str) -> Entry:
        """The entry whose id (hex) begins so. Raises BadUse if none does, or more than one."""
        hint = "`edge outbox` lists the ids"
        wanted = prefix.strip().lower()
        if not wanted or set(wanted) - set("0123456789abcdef"):
            raise BadUse("this is not an id of the outbox", hint=hint)
        found = [entry for entry in await self.entries() if entry.id.hex().startswith(wanted)]
        if not found:
            raise BadUse("no such id in the outbox", hint=hint)
        if len(found) > 1:
            raise BadUse(f"{len(found)} ids in the outbox begin so", hint="give more of its digits; " + hint)
        return found[0]

    async def counts(self) -> dict[str, int]:
        """Rows by state, `done` left out."""
        found: dict[str, int] = {}
        for entry in await self.entries():
            found[entry.state] = found.get(entry.state, 0) + 1
        return found


def _entry(row: Row) -> Entry:
    payload = None if row.payload is None else msgspec.msgpack.decode(row.payload, type=_Payload)
    return Entry(
        row.id, row.state, row.note, row.mark, row.attempts, row.created_at, row.expires_at,
        payload.header if payload else None, payload.body if payload else None,
    )
