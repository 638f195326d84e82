"""Conversations of the chat page, in the encrypted store, and search through them.

A search decrypts and reads all of them: a thousand conversations of ten kilobytes take some tens of milliseconds. An
index of their words would hold them a second time.
"""

from typing import Any, Final, Literal

import msgspec

from edge_client.errors import BadUse
from store.settings import Settings

__all__ = ["NAMESPACE", "History"]

NAMESPACE: Final = "history"
_KEPT: Final = 1000  # conversations; the oldest go
_BYTES: Final = 1 << 20
_EXCERPT: Final = 80  # characters around what was searched for


class _Turn(msgspec.Struct):
    role: Literal["user", "assistant"]
    text: str
    about: dict[str, Any] | None = None  # what the answer's `causeway` said


class _Talk(msgspec.Struct):
    turns: list[_Turn]


class _Kept(msgspec.Struct):
    at: int  # unix seconds
    turns: list[_Turn]


_decoder: Final = msgspec.msgpack.Decoder(_Kept)


class History:
    """All methods raise StoreError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def put(self, id: str, body: bytes, *, now: int) -> None:
        """Keeps a conversation, JSON `{"turns": [{"role", "text", "about"?}]}` of at most 1 MiB. Raises BadUse."""
        try:
            turns = msgspec.json.decode(body, type=_Talk).turns
        except (msgspec.MsgspecError, RecursionError):
            raise BadUse("this is no conversation") from None
        kept = msgspec.msgpack.encode(_Kept(now, turns))
        if not turns or len(kept) > _BYTES:
            raise BadUse("a conversation of over 1 MiB is not kept", hint="begin a new one")
        await self._settings.put(id, kept)
        found = await self._all()
        for old, _ in found[_KEPT:]:
            await self._settings.delete(old)

    async def get(self, id: str) -> bytes | None:
        """The conversation as JSON, or None."""
        value = await self._settings.get(id)
        return None if value is None else msgspec.json.encode(_Talk(_decoder.decode(value).turns))

    async def delete(self, id: str) -> None:
        await self._settings.delete(id)

    async def search(self, words: str) -> list[dict[str, Any]]:
        """Conversations that hold every word, newest first, each with its beginning and where the first word stands."""
        wanted = words.casefold().split()
        found = []
        for id, kept in await self._all():
            text = "\n".join(turn.text for turn in kept.turns)
            folded = text.casefold()
            if all(word in folded for word in wanted):
                place = folded.find(wanted[0]) if wanted else 0
                begin = max(0, place - _EXCERPT // 2) if wanted else 0
                found.append({
                    "id": id, "at": kept.at, "title": kept.turns[0].text[:_EXCERPT],
                    "excerpt": text[begin : begin + _EXCERPT] if wanted else "",
                })
        return found

    async def waiting(self, request_id: str) -> str:
        """The conversation with a turn whose `about` says that it `waits` for this request; empty if there is none."""
        for id, kept in await self._all():
            if any((turn.about or {}).get("waits") == request_id for turn in kept.turns):
                return id
        return ""

    async def _all(self) -> list[tuple[str, _Kept]]:
        """Newest first."""
        kept = [(id, _decoder.decode(value)) for id, value in await self._settings.items()]
        return sorted(kept, key=lambda item: -item[1].at)
