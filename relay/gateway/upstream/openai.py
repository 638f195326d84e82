"""A provider over HTTP, whichever of the APIs it speaks: see `dialects` and `formats`.

One configured base URL, no redirects, no proxy, no cookies.

Only two kinds of answer leave this module: a complete JSON object, and an event stream in whole lines that ends as its
API says. Everything else is a ProviderFailure of ours. A provider's own error text is never passed on: such texts quote
keys.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Answer
from relay.gateway.upstream.base import Timeouts, checked_base_url
from relay.gateway.upstream.dialects import Dialect, OpenAi
from relay.gateway.upstream.formats import AnswerFormat
from transport.primitives import Secret

ANSWER_MAX: Final = 8 << 20  # bytes of a whole JSON answer
STREAM_MAX: Final = 64 << 20  # bytes of a streamed one
CONNECTIONS: Final = 100
LINE_MAX: Final = 1 << 20
_AFTER_DONE_S: Final = 2.0  # a stream that has said [DONE] need not be waited for
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_CODE = re.compile(r"[a-z][a-z_]{0,47}")


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Reply(msgspec.Struct):
    error: _Error | str | None = None


_reply = msgspec.json.Decoder(_Reply)


class OpenAiUpstream:
    """See `Upstream`. One pool of connections; made inside the running event loop, on first use."""

    def __init__(
        self, base_url: str, *, dialect: Dialect | None = None, name: str = "openai", timeouts: Timeouts | None = None,
        stream_max: int = STREAM_MAX,
    ) -> None:
        self._base = checked_base_url(base_url)
        self.name = name
        self.dialect = dialect or OpenAi()
        self.host = urlsplit(self._base).hostname or ""
        self._timeouts = timeouts or Timeouts()
        self._stream_max = stream_max
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def call(
        self, route: str, body: bytes, *, form: AnswerFormat, model: str, stream: bool, key: Secret | None
    ) -> AsyncIterator[Answer]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if stream else "application/json",
        }
        response = await self._send("POST", self.dialect.path(route, model), body, headers, key)
        try:
            if response.status != 200:
                raise await self._failure(response)
            yield await self._answer(response, form, stream)
        finally:
            response.close()  # an answer read to its end has given its connection back already

    async def ping(self, *, key: Secret | None) -> tuple[int, bool]:
        """Asks for something that costs nothing: its HTTP status, and whether JSON came, of which nothing is read.

        Raises ProviderFailure if there was no answer.
        """
        headers = {"Accept": "application/json"}
        response = await self._send("GET", self.dialect.ping, None, headers, key)
        response.close()
        return response.status, response.content_type == "application/json"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], key: Secret | None
    ) -> aiohttp.ClientResponse:
        headers |= {"Accept-Encoding": "identity", "User-Agent": "causeway-gateway"}
        headers |= self.dialect.headers(key)  # added last; nothing can replace it
        try:
            async with asyncio.timeout(self._timeouts.connect + self._timeouts.first_byte):
                return await self._pool().request(
                    method, self._base + path, data=body, headers=headers, allow_redirects=False
                )
        except aiohttp.ConnectionTimeoutError:
            raise ProviderFailure(
                "the provider could not be reached in time", kind="provider_timeout", status=504, again=True
            ) from None
        except TimeoutError:  # also aiohttp's; the request may have been accepted
            raise _timed_out() from None
        except aiohttp.ClientConnectorError:
            raise ProviderFailure(
                "the provider cannot be reached", kind="provider_unreachable", status=502, again=True
            ) from None
        except aiohttp.ClientError:
            raise _garbled() from None

    async def _answer(self, response: aiohttp.ClientResponse, form: AnswerFormat, stream: bool) -> Answer:
        """Waits for the first good piece, so that a failure up to there has a status of its own."""
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _garbled()
        if stream:
            if response.content_type != "text/event-stream":
                raise _garbled()
            lines = self._lines(response, form.ends)
            try:
                async with asyncio.timeout(self._timeouts.first_byte):
                    first = await anext(lines)
            except TimeoutError:
                raise _timed_out() from None
            return Answer(200, "text/event-stream", True, _chained(first, lines))
        whole = await self._whole(response, ANSWER_MAX)
        form.check(whole)
        return Answer(200, "application/json", False, _chained(whole, None))

    async def _whole(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        parts = bytearray()
        async for chunk in self._chunks(response):
            parts += chunk
            if len(parts) > limit:
                raise ProviderFailure("the provider's answer is too large", kind="provider_garbled", status=502)
        return bytes(parts)

    async def _lines(
        self, response: aiohttp.ClientResponse, ends: Callable[[bytes], bool]
    ) -> AsyncIterator[bytes]:
        """The stream's bytes, cut only behind newlines. ProviderFailure unless it is an event stream up to its end."""
        held, total, done = b"", 0, False
        chunks = self._chunks(response)
        while True:
            try:
                async with asyncio.timeout(_AFTER_DONE_S if done else None):
                    chunk = await anext(chunks, b"")
            except (ProviderFailure, TimeoutError):
                if done:
                    return
                raise
            if not chunk:
                break
            total += len(chunk)
            held += chunk
            if total > self._stream_max or len(held) > LINE_MAX + len(chunk):
                raise ProviderFailure("the provider's answer is too large", kind="provider_garbled", status=502)
            cut = held.rfind(b"\n") + 1
            if cut:
                whole, held = held[:cut], held[cut:]
                done = _check_lines(whole, ends) or done
                yield whole
        if not done or held.strip():
            raise _garbled()

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            while True:
                async with asyncio.timeout(self._timeouts.idle):
                    chunk = await response.content.readany()
                if not chunk:
                    return
                yield chunk
        except TimeoutError:
            raise _timed_out() from None
        except (aiohttp.ClientError, ValueError):  # cut connection, bad chunking, line limits
            raise _garbled() from None

    async def _failure(self, response: aiohttp.ClientResponse) -> ProviderFailure:
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

    async def _reason(self, response: aiohttp.ClientResponse) -> str:
        """The provider's error code, if it looks like one; its text is not for anyone's eyes."""
        try:
            error = _reply.decode(await self._whole(response, 65_536)).error
        except (ProviderFailure, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return ""
        for word in (error.code, error.type) if isinstance(error, _Error) else ():
            if isinstance(word, str) and _CODE.fullmatch(word):
                return f" ({word})"
        return ""

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=15),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


async def _chained(first: bytes, rest: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    yield first
    if rest is not None:
        async for chunk in rest:
            yield chunk


def _check_lines(whole: bytes, ends: Callable[[bytes], bool]) -> bool:
    """Whether the end is among these lines (WHATWG event streams). Raises ProviderFailure for lines that are none."""
    done = False
    for line in whole.split(b"\n"):
        if line.startswith(b"data:"):
            done = ends(line[5:].strip()) or done
        elif line.rstrip(b"\r") and not line.startswith(_FIELDS):
            raise _garbled()
    return done


def _garbled() -> ProviderFailure:
    return ProviderFailure(
        "the provider's answer was cut short or is not one of its API", kind="provider_garbled", status=502
    )


def _timed_out() -> ProviderFailure:
    return ProviderFailure("the provider did not answer in time", kind="provider_timeout", status=504)
