"""A provider over HTTP, whichever of the APIs it speaks: see `dialects` and `formats`.

Only two kinds of answer leave this module: a complete JSON object, and an event stream in whole lines that ends as its
API says. Everything else is a ProviderFailure of ours. A provider's own error text is never passed on: such texts quote
keys.
"""

import re
from collections.abc import AsyncIterator, Coroutine
from typing import Final, Self

import msgspec

from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Answer
from relay.gateway.upstream.base import Timeouts
from relay.gateway.upstream.client import Client
from relay.gateway.upstream.connection import Response
from relay.gateway.upstream.dialects import Dialect, OpenAi
from relay.gateway.upstream.formats import AnswerFormat, Code, garbled
from relay.gateway.upstream.lines import whole_lines
from transport.primitives import Secret

ANSWER_MAX: Final = 8 << 20  # bytes of a whole JSON answer
STREAM_MAX: Final = 64 << 20  # bytes of a streamed one
_CODE = re.compile(r"[a-z][a-z_]{0,47}")


class _Reply(msgspec.Struct):
    error: Code | str | None = None


_reply = msgspec.json.Decoder(_Reply)


class HttpUpstream:
    """See `Upstream`. One pool of connections."""

    def __init__(
        self, base_url: str, *, dialect: Dialect | None = None, name: str = "openai", timeouts: Timeouts | None = None,
        stream_max: int = STREAM_MAX,
    ) -> None:
        self._client = Client(base_url, timeouts or Timeouts())
        self._dialect = dialect or OpenAi()
        self.name = name
        self.host = self._client.host
        self._stream_max = stream_max

    def call(
        self, route: str, body: bytes, *, form: AnswerFormat, model: str, stream: bool, key: Secret | None
    ) -> "_Call":
        return _Call(self._asked(self._dialect.path(route, model), body, form, stream, key))

    async def _asked(
        self, path: str, body: bytes, form: AnswerFormat, stream: bool, key: Secret | None
    ) -> tuple[Response, Answer]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if stream else "application/json",
        }
        response = await self._send("POST", path, headers, key, body)
        try:
            if response.status != 200:
                raise await self._failure(response)
            return response, await self._answer(response, form, stream)
        except BaseException:
            response.close()
            raise

    async def ping(self, *, key: Secret | None) -> tuple[int, bool]:
        response = await self._send("GET", self._dialect.ping, {"Accept": "application/json"}, key)
        response.close()
        return response.status, response.content_type == "application/json"

    async def close(self) -> None:
        await self._client.close()

    async def _send(
        self, method: str, path: str, headers: dict[str, str], key: Secret | None, body: bytes | None = None
    ) -> Response:
        headers |= self._dialect.headers(key)  # added last; nothing can replace it
        return await self._client.request(method, path, headers, body)

    async def _answer(self, response: Response, form: AnswerFormat, stream: bool) -> Answer:
        """Waits for the first good piece, so that a failure up to there has a status of its own."""
        if response.header("content-encoding").lower() not in ("", "identity"):
            raise garbled()
        if stream:
            if response.content_type != "text/event-stream":
                raise garbled()
            lines = whole_lines(response, self._stream_max, form.ends)
            return Answer(200, "text/event-stream", True, _Chunks(await anext(lines), lines))
        whole = await response.read(ANSWER_MAX)
        form.check(whole)
        return Answer(200, "application/json", False, _Chunks(whole, None))

    async def _failure(self, response: Response) -> ProviderFailure:
        status = response.status
        if status in (401, 403):
            return ProviderFailure(
                "the provider refused the gateway's key; the gateway's operator has to see to it",
                kind="provider_auth", status=502,
            )
        if status == 429:
            return ProviderFailure(
                "the provider limits the gateway's rate; try again later",
                kind="provider_rate_limited", status=429, again=True,
            )
        if status in (400, 404, 409, 413, 415, 422):
            return ProviderFailure(
                "the provider refused the request" + await self._reason(response),
                kind="provider_rejected", status=400,
            )
        return ProviderFailure(
            "the provider failed", kind="provider_error", status=502,
            again=status in (503, 529),  # these were not accepted; 529 is Anthropic's, when it has too much to do
        )

    async def _reason(self, response: Response) -> str:
        """The provider's error code, if it looks like one; its text is not for anyone's eyes."""
        try:
            error = _reply.decode(await response.read(65_536)).error
        except (ProviderFailure, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return ""
        for word in (error.code, error.type) if isinstance(error, Code) else ():
            if isinstance(word, str) and _CODE.fullmatch(word):
                return f" ({word})"
        return ""


class _Call:
    """The answer that `asked` waits for, until it is left."""

    __slots__ = ("_asked", "_response")

    def __init__(self, asked: Coroutine[None, None, tuple[Response, Answer]]) -> None:
        self._asked = asked

    async def __aenter__(self) -> Answer:
        self._response, answer = await self._asked
        return answer

    async def __aexit__(self, *_: object) -> None:
        self._response.close()  # an answer read to its end has given its connection back already


class _Chunks:
    """What has been waited for, then the rest."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: bytes, rest: AsyncIterator[bytes] | None) -> None:
        self._first, self._rest = first, rest

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._rest is None:
            raise StopAsyncIteration
        return await self._rest.__anext__()
